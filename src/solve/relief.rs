//! What a copy or WORKDIR stands on while layers below are packed: a directory that shows what the step meets, made of the
//! tables of all layers. To the step it is the same; nothing is unpacked for it.
//!
//! ```text
//! upper dir of the step
//! layers on top that are unpacked: of their files the bytes are there, too
//! relief: /  /usr  /usr/share  /usr/share/nginx  /usr/share/nginx/html  and what is there under names that land
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use super::input::{Read, inputs};
use super::{Keyed, Solver, Stack};
use crate::container::{Ground, Rung, Worker, passwd};
use crate::context::{Entry, EntryKind, Listing, Selection};
use crate::copy::{self, Owner};
use crate::diag::Result;
use crate::layer::{self, Cutting, Met};
use crate::plan::{Copy, CopyKind, CopySource, Input, Located, Op, Root, StepId, Workdir};
use crate::store::{Draft, Layer};

/// Layer dirs that show a rootfs, or as much of it as somebody meets.
pub(super) struct Lowers {
    /// Topmost first.
    layers: Vec<Arc<Layer>>,
    /// Below them. It is deleted when nobody stands on it any more.
    relief: Option<Draft>,
}

impl Lowers {
    pub fn of(layers: Vec<Arc<Layer>>) -> Self {
        Self { layers, relief: None }
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        let layers = self.layers.iter().map(|layer| layer.path.clone());
        layers.chain(self.relief.iter().map(|relief| relief.path.join("u"))).collect()
    }

    pub fn dirs(&self) -> Vec<BorrowedFd<'_>> {
        let layers = self.layers.iter().map(|layer| layer.dir.as_fd());
        layers.chain(self.relief.iter().map(Draft::upper)).collect()
    }
}

/// A name that something lands under.
struct Landed<'a> {
    name: &'a [u8],
    /// Of a regular file: size and time.
    file: Option<(u64, (i64, u32))>,
}

/// More names than these are found faster in layers.
const MOST: usize = 4_000;

impl Solver<'_> {
    /// What `copy` lands on, given what it reads of one path. `None` where all of it is unpacked, or has to be.
    pub(super) fn lowers_of_copy(
        &self,
        id: StepId,
        copy: &Copy,
        below: &Stack,
        listing: &Listing,
    ) -> Result<Option<Lowers>> {
        self.lowers_of_landings(id, copy, below, landings_of(listing))
    }

    /// The same of all that is read.
    fn lowers_of_reads(&self, id: StepId, copy: &Copy, below: &Stack, reads: &[Read]) -> Result<Option<Lowers>> {
        // What an archive lands is not listed.
        let unpacks = copy.kind == CopyKind::Add && copy.unpack != Some(false);
        let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. } | EntryKind::Unread { .. });
        let mut landings = Vec::new();
        for (source, read) in copy.sources.iter().zip(reads) {
            match (source, read) {
                (CopySource::Path(_), Read::Listed { listing, .. }) => {
                    let mut firsts = listing.selections.iter().flat_map(|selection| selection.entries.first());
                    if unpacks && firsts.any(is_file) {
                        return Ok(None);
                    }
                    landings.extend(landings_of(listing));
                }
                (CopySource::Heredoc(file), _) if !unpacks => {
                    let look = (file.content.len() as u64, (self.host.now(), 0));
                    let landed = Landed { name: file.name.as_bytes(), file: Some(look) };
                    landings.push((Lands::Alone, vec![landed]));
                }
                _ => return Ok(None),
            }
        }
        self.lowers_of_landings(id, copy, below, landings)
    }

    fn lowers_of_landings<'a>(
        &self,
        id: StepId,
        copy: &Copy,
        below: &Stack,
        landings: impl IntoIterator<Item = (Lands, Vec<Landed<'a>>)>,
    ) -> Result<Option<Lowers>> {
        if copy.is_link {
            return Ok(None);
        }
        self.lowers_met(id, below, |cutting, above| {
            // Where it leads nowhere, it says so over what is met on the way.
            let Some(base) = cutting.walk(&copy::clamped(copy.destination.as_bytes())) else { return true };
            landings.into_iter().all(|(lands, landed)| {
                landed.iter().all(|landed| {
                    let mut is_free = |name: &[u8]| {
                        let met = cutting.meet(&base, name);
                        !is_compared(landed, met) || has_file(above, &[&base, &b"/"[..], name].concat())
                    };
                    let is_free = (lands == Lands::Within || is_free(b"")) && is_free(landed.name);
                    is_free && cutting.names() <= MOST
                })
            })
        })
    }

    /// What stands below a step, as far as it is cut out, given what is unpacked on top; `None` where all is unpacked, is
    /// going to be, or `cut` says that it has to be.
    fn lowers_met(
        &self,
        id: StepId,
        below: &Stack,
        cut: impl FnOnce(&mut Cutting<'_>, &[BorrowedFd<'_>]) -> bool,
    ) -> Result<Option<Lowers>> {
        let footing = self.footing();
        if footing.rung != Rung::Overlay
            || footing.rung.takes_one_layer(self.host.store)?
            || self.layers.are_unpacked(below)?
            || self.is_unpacked_anyway(id)
        {
            return Ok(None);
        }
        let Some(relief) = self.layers.relief(below)? else { return Ok(None) };
        let layers = self.layers.unpacked_on_top(below)?;
        let above: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
        let mut cutting = Cutting::of(&relief);
        if !cut(&mut cutting, &above) {
            return Ok(None);
        }
        let draft = self.host.store.draft()?;
        // What this filesystem or these ids cannot do, unpacking will say.
        Ok(cutting.make(draft.upper()).is_ok().then_some(Lowers { layers, relief: Some(draft) }))
    }

    /// Who a name of `--chown` or of WORKDIR's USER is.
    pub(super) fn owner_below(&self, id: StepId, below: &Stack, name: &Located) -> Result<Owner> {
        let (uid, gid) = self.owner(&self.lowers_of_names(id, below, &name.text)?, name)?;
        Ok(Owner { uid, gid })
    }

    /// What tells who is who below a step.
    fn lowers_of_names(&self, id: StepId, below: &Stack, spec: &str) -> Result<Lowers> {
        let mut files = passwd::files_of_owner(spec).peekable();
        if files.peek().is_none() {
            return Ok(Lowers::of(Vec::new()));
        }
        let met = self.lowers_met(id, below, |cutting, _| {
            files.all(|path| match cutting.walk(path.as_bytes()) {
                Some(end) => {
                    matches!(cutting.meet(&end, b""), Met::Nothing | Met::File { has_content: true, .. })
                }
                None => false,
            })
        })?;
        met.map_or_else(|| self.layers.lowers(below).map(Lowers::of), Ok)
    }

    /// Whether files of the layers below a step will be read in this build, so that they are unpacked whatever this step
    /// needs: by a RUN, a copy from them, an archive, or an output.
    pub(super) fn is_unpacked_anyway(&self, id: StepId) -> bool {
        if self.settings.exports_files {
            return true;
        }
        let base = self.base(id);
        let is_same = |other: StepId| match (&self.plan.step(other).op, &self.plan.step(base).op) {
            (Op::From(Root::Image(other)), Op::From(Root::Image(base))) => other == base,
            _ => other == base,
        };
        (0..self.plan.steps.len()).map(StepId).filter(|other| self.get(*other).is_none()).any(|other| {
            let op = &self.plan.step(other).op;
            let needs_all = match op {
                Op::Run(_) => true,
                Op::Copy(copy) => other != id && !copy.is_link && needs_all(copy),
                Op::From(_) | Op::Workdir(_) | Op::Configure => false,
            };
            let reads = |input: &&Input| match input {
                Input::Step(step) => is_same(self.base(*step)),
                Input::Image(key) => matches!(&self.plan.step(base).op, Op::From(Root::Image(base)) if base == key),
                _ => false,
            };
            (needs_all && is_same(self.base(other))) || inputs(op).iter().any(reads)
        })
    }

    /// The step that the stage of a step, or the one that it stands on, begins with.
    fn base(&self, mut id: StepId) -> StepId {
        while let Some(parent) = self.plan.step(id).parent {
            id = parent;
        }
        id
    }

    /// Has something written over lowers, into a draft.
    fn write_over_lowers(
        &self,
        lowers: &Lowers,
        draft: &Draft,
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<()> {
        let paths = lowers.paths();
        let ground = Ground::new(Rung::Overlay, Worker::Builder, &paths, draft, self.host.store)?;
        let root = ground.root(&paths, draft)?;
        write(&root)?;
        drop(root);
        ground.settle(draft, &lowers.dirs(), None)
    }

    /// Has a copy written over what it meets. Where that cannot be done nothing is said, as the copy over all layers says
    /// why: then there are no lowers, and the draft is one that nothing was written to.
    pub(super) fn copy_over_relief(
        &self,
        id: StepId,
        copy: &Copy,
        below: &Stack,
        key: &Keyed,
        draft: Draft,
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<(Draft, Option<Lowers>)> {
        let lowers = self.lowers_of_reads(id, copy, below, &key.reads.sources)?;
        self.try_over(lowers, draft, write)
    }

    /// The same of a WORKDIR.
    pub(super) fn workdir_over_relief(
        &self,
        id: StepId,
        workdir: &Workdir,
        below: &Stack,
        draft: Draft,
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<(Draft, Option<Lowers>)> {
        let lowers = self.lowers_met(id, below, |cutting, _| {
            cutting.walk(workdir.path.as_bytes());
            true
        })?;
        self.try_over(lowers, draft, write)
    }

    fn try_over(
        &self,
        lowers: Option<Lowers>,
        draft: Draft,
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<(Draft, Option<Lowers>)> {
        let Some(lowers) = lowers else { return Ok((draft, None)) };
        match self.write_over_lowers(&lowers, &draft, write) {
            Ok(()) => Ok((draft, Some(lowers))),
            Err(_) => Ok((self.host.store.draft()?, None)),
        }
    }
}

/// How a selection lands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lands {
    /// In the place of the destination, or under its name in it.
    Alone,
    /// In the destination.
    Within,
}

fn landings_of(listing: &Listing) -> Vec<(Lands, Vec<Landed<'_>>)> {
    listing.selections.iter().map(landing_of).collect()
}

fn landing_of(selection: &Selection) -> (Lands, Vec<Landed<'_>>) {
    fn landed<'a>(name: &'a [u8], entry: &Entry) -> Landed<'a> {
        let file = match entry.kind {
            EntryKind::File { size_bytes, .. } | EntryKind::Unread { size_bytes, .. } => {
                Some((size_bytes, entry.mtime))
            }
            _ => None,
        };
        Landed { name, file }
    }
    match selection.entries.as_slice() {
        [alone] if alone.land.is_empty() && alone.kind != EntryKind::Directory => {
            (Lands::Alone, vec![landed(&selection.name, alone)])
        }
        entries => (Lands::Within, entries.iter().map(|entry| landed(&entry.land, entry)).collect()),
    }
}

/// Whether the bytes of a file that lands may be held against those of the one that is met: of two that differ in nothing
/// else.
fn is_compared(landed: &Landed<'_>, met: Met) -> bool {
    match (landed.file, met) {
        (Some((size, time)), Met::File { size_bytes, mtime, has_content: false }) => {
            size > 0 && size == size_bytes && time.0 == mtime.0
        }
        _ => false,
    }
}

/// Whether the file that is met at a path without links is in one of these layers.
fn has_file(layers: &[BorrowedFd<'_>], path: &[u8]) -> bool {
    matches!(layer::lookup(layers, path), Ok(Some(found)) if found.node.is_file())
}

/// Whether what a copy meets may not be known before: members of archives, or what is not listed.
pub(super) fn needs_all(copy: &Copy) -> bool {
    (copy.kind == CopyKind::Add && copy.unpack != Some(false))
        || copy.sources.iter().any(|source| matches!(source, CopySource::Url(_) | CopySource::Git(_)))
}
