//! A copy of one source whose files nothing reads any more is packed from where they are: its layer is a blob from
//! the beginning, and becomes a directory only should a later build need its files.
//!
//! Where nothing like it was built before, no record can match, and its files are read for its key while they are
//! packed.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::input::{Opened, Read, files_fact, inputs};
use super::pending::Made;
use super::relief::Lowers;
use super::{Keyed, Solver, Stack};
use crate::container::{Rung, Sketch};
use crate::context::{self, EntryKind, Listing, Survey, Unread};
use crate::copy::{self, Outlining, Owner};
use crate::diag::Result;
use crate::digest::DiffId;
use crate::layer;
use crate::plan::{Copy, CopyKind, CopySource, Input, Op, StepId};
use crate::store::Draft;

/// What came of packing a copy from where its files are.
enum Sketched {
    /// It cannot be done.
    Unfit,
    /// These files have to be read before.
    Unread(Vec<usize>),
    /// It changes nothing.
    Nothing,
    Packed {
        diff_id: DiffId,
        /// Of its regular files.
        size_bytes: u64,
        read: Vec<context::Read>,
    },
}

impl Solver<'_> {
    /// Whether nothing in this build reads files of the rootfs after a step.
    fn is_last(&self, id: StepId) -> bool {
        let mut same = vec![id];
        for later in (id.0 + 1..self.plan.steps.len()).map(StepId) {
            let step = self.plan.step(later);
            let is_read = |input: &&Input| matches!(input, Input::Step(id) if same.contains(id));
            if inputs(&step.op).iter().any(is_read) {
                return false;
            }
            if step.parent.is_some_and(|parent| same.contains(&parent)) {
                if step.op != Op::Configure {
                    return false;
                }
                same.push(later);
            }
        }
        !self.settings.exports_files
    }

    /// Whether the files of a copy need not be read for its key yet.
    pub(super) fn may_leave_unread(&self, id: StepId, copy: &Copy) -> Result<bool> {
        let is_of_context = matches!(copy.from, Input::Context | Input::Directory(_));
        Ok(self.leaves_unread
            && is_of_context
            && matches!(copy.sources.as_slice(), [CopySource::Path(_)])
            && !may_unpack(copy)
            && self.is_last(id)
            && self.footing().rung == Rung::Overlay
            && !self.may_hit(id)?)
    }

    /// Makes the layer of a copy over `below` so, if it is one that it can be done for. `draft` stays as it is.
    pub(super) fn outlined(
        &self,
        id: StepId,
        copy: &Copy,
        owner: Option<Owner>,
        below: &Stack,
        draft: &Draft,
        key: &Keyed,
    ) -> Result<Option<Made>> {
        let [Read::Listed { opened, listing }] = key.reads.sources.as_slice() else { return Ok(None) };
        // What is unpacked takes files.
        let is_file = |entry: &context::Entry| matches!(entry.kind, EntryKind::File { .. });
        let mut firsts = listing.selections.iter().flat_map(|selection| selection.entries.first());
        if (may_unpack(copy) && firsts.any(is_file)) || self.footing().rung != Rung::Overlay || !self.is_last(id) {
            return Ok(None);
        }
        Ok(match self.sketch(id, copy, owner, below, draft, opened, (listing, &[]))? {
            // Nothing in it is unread.
            Sketched::Unfit | Sketched::Unread(_) => None,
            Sketched::Nothing => Some(Made::Nothing),
            Sketched::Packed { diff_id, size_bytes, .. } => Some(Made::Packed { diff_id, size_bytes }),
        })
    }

    /// Makes the layer of a copy whose files nobody has read, if that can be done; completes its key in any case.
    pub(super) fn made_unread(&self, id: StepId, key: &mut Keyed) -> Result<Option<Made>> {
        let (Op::Copy(copy), Some(Read::Surveyed { .. })) = (&self.plan.step(id).op, key.reads.sources.first()) else {
            return Ok(None);
        };
        let Some(Read::Surveyed { opened, mut survey }) = key.reads.sources.pop() else { return Ok(None) };
        let below = self.below(id);
        let owner = self.copy_owner(id, copy, &below)?;
        let draft = self.host.store.draft()?;
        let sketched = loop {
            let sketched = self.sketch(id, copy, owner, &below, &draft, &opened, (&survey.listing, &survey.unread))?;
            match sketched {
                Sketched::Unread(numbers) => self.read_left(&mut survey, &opened, Some(&numbers))?,
                sketched => break sketched,
            }
        };
        let made = match sketched {
            Sketched::Packed { diff_id, size_bytes, read } => {
                survey.learn(read, opened.index());
                Some(Made::Packed { diff_id, size_bytes })
            }
            Sketched::Nothing => Some(Made::Nothing),
            Sketched::Unfit | Sketched::Unread(_) => None,
        };
        // All of it, where nothing was packed.
        self.read_left(&mut survey, &opened, None)?;
        let listing = Arc::new(survey.listing);
        key.facts.replace("files", files_fact(&listing.digest()).to_string());
        key.reads.sources.push(Read::Listed { opened, listing });
        Ok(made)
    }

    /// Reads files of a survey that nobody has read, all of them or those with these numbers.
    pub(super) fn read_left(&self, survey: &mut Survey, opened: &Opened, wanted: Option<&[usize]>) -> Result<()> {
        survey.read(&opened.tree, opened.index(), wanted, self.settings.hash_threads)
    }

    /// Packs what a listing says from where it is.
    #[allow(clippy::too_many_arguments)] // All that a copy is.
    fn sketch(
        &self,
        id: StepId,
        copy: &Copy,
        owner: Option<Owner>,
        below: &Stack,
        draft: &Draft,
        opened: &Opened,
        (listing, unread): (&Listing, &[Unread]),
    ) -> Result<Sketched> {
        let still = self.still(below);
        let lowers = match self.lowers_of_copy(id, copy, below, listing)? {
            Some(lowers) => lowers,
            None if copy.is_link => Lowers::of(Vec::new()),
            None => Lowers::of(self.layers_on(self.footing(), below)?),
        };
        let landing = self.copy_landing(copy, owner);
        let sketched = Sketch::new(draft, self.host.store).and_then(|sketch| {
            let root = sketch.root(&lowers.paths())?;
            let outlining = copy::outline(&opened.tree, listing, unread, root.as_fd(), &landing)?;
            Ok((sketch.upper()?, outlining))
        });
        drop(still);
        let (upper, outline) = match sketched {
            Ok((upper, Outlining::Done(outline))) => (upper, outline),
            Ok((_, Outlining::Unread(numbers))) => return Ok(Sketched::Unread(numbers)),
            // Whatever it is: where it is not for want of memory, an overlay or room, the copy says it as well.
            Err(_) => return Ok(Sketched::Unfit),
        };
        let summary = layer::canonicalize(upper.as_fd(), &lowers.dirs(), None)?;
        if summary.entries == 0 {
            return Ok(Sketched::Nothing);
        }
        let size_bytes = summary.size_bytes.saturating_add(outline.size_bytes());
        let (diff_id, found) = self.host.store.pack_outline(upper.as_fd(), &outline)?;
        Ok(Sketched::Packed { diff_id, size_bytes, read: outline.read(found) })
    }
}

/// Whether a file that is a source would be unpacked if it is an archive.
fn may_unpack(copy: &Copy) -> bool {
    copy.kind == CopyKind::Add && copy.unpack != Some(false)
}
