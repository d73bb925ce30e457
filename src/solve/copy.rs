//! COPY, ADD, WORKDIR and roots that are directories.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::execute::locate;
use super::input::{Opened, Read, is_much};
use super::pending::Made;
use super::{Keyed, Solver, Stack, Standing};
use crate::cache::Record;
use crate::container::Rung;
use crate::context::{EntryKind, Listing, lines};
use crate::copy::{self, Landing, Owner};
use crate::diag::Result;
use crate::digest::ChainId;
use crate::plan::{Copy, CopyKind, CopySource, StepId, Workdir};
use crate::store::{Draft, Layer};

impl Solver<'_> {
    /// `draft` is for what it makes.
    pub(super) fn execute_copy(
        &self,
        id: StepId,
        copy: &Copy,
        below: &Stack,
        draft: Draft,
        key: &mut Keyed,
    ) -> Result<Made> {
        let owner = self.copy_owner(id, copy, below)?;
        // What it read of a context to make the key; a rootfs is listed only now.
        self.remember_listing(key)?;
        self.list_rootfs(copy, key)?;
        let mut earlier = None;
        if let Some(listing) = much_of(key) {
            let before = if self.asks_cache(id) { self.records.nearest(&key.facts, &self.slot(id))? } else { None };
            // Of very much that is copied again, a directory is made, which the next copy shares files with.
            if (before.is_none() || listing.size_bytes() <= REPACKED_BYTES)
                && let Some(made) = self.outlined(id, copy, owner, below, &draft, key)?
            {
                return Ok(made);
            }
            // Of files that come from several directories, one may take the place of another.
            if let Some(before) = before
                && !copy.has_parents
            {
                earlier = self.layer_of(&before)?;
            }
        }
        let earlier = earlier.as_deref().map(|layer| layer.dir.as_fd());
        let mut kept = copy::Kept::default();
        let mut write = |root: &OwnedFd| {
            // Only the kernel's overlay leaves its upper dir for others to go on with.
            let earlier = earlier.filter(|_| self.footing().rung == Rung::Overlay);
            kept = self.copy_into(copy, root, owner, key, earlier)?;
            Ok(())
        };
        let (draft, lowers) = self.copy_over_relief(id, copy, below, key, draft, &mut write)?;
        let lowers = match lowers {
            Some(lowers) => lowers,
            None => {
                let nothing = Stack::default();
                self.write_over(id, if copy.is_link { &nothing } else { below }, &draft, write)?;
                self.lowers(id, below)?
            }
        };
        if let Some(earlier) = earlier {
            kept.link(earlier, draft.upper())?;
        }
        self.made(draft, &lowers, None, key)
    }

    /// Lists what a copy reads of a rootfs, opened once for all its sources.
    fn list_rootfs(&self, copy: &Copy, key: &mut Keyed) -> Result<()> {
        let mut rootfs = None;
        for (source, read) in copy.sources.iter().zip(&mut key.reads.sources) {
            let (CopySource::Path(path), Read::Immutable) = (source, &read) else { continue };
            let opened = match &rootfs {
                Some(opened) => Arc::clone(opened),
                None => {
                    let stack = self.stack_of(&copy.from).unwrap_or_default();
                    Arc::new(Opened::of_rootfs(self.rootfs_tree(&copy.from, &stack)?))
                }
            };
            let listing = Arc::new(self.listing(&opened.tree, copy, path, None)?);
            rootfs = Some(Arc::clone(&opened));
            *read = Read::Listed { opened, listing };
        }
        Ok(())
    }

    pub(super) fn copy_owner(&self, id: StepId, copy: &Copy, below: &Stack) -> Result<Option<Owner>> {
        let owner = copy.chown.as_ref().map(|chown| self.owner_below(id, below, chown)).transpose()?;
        if let Some(chmod) = &copy.chmod {
            copy::chmod::Mode::parse(&chmod.text).map_err(|error| locate(error, Some(chmod)))?;
        }
        Ok(owner)
    }

    /// The directory that a step made, if it is there.
    fn layer_of(&self, record: &Record) -> Result<Option<Arc<Layer>>> {
        let Some((result, parent)) = record.layer.zip(record.facts.get("parent")) else { return Ok(None) };
        // Those that stand on nothing have no chain there.
        let parent = parent.parse().ok();
        self.layers.get(&ChainId::extend(parent.as_ref(), &result.diff_id))
    }

    /// How the files of a copy land.
    pub(super) fn copy_landing<'c>(&self, copy: &'c Copy, owner: Option<Owner>) -> Landing<'c> {
        Landing {
            destination: &copy.destination,
            owner,
            chmod: copy.chmod.as_ref().map(|chmod| chmod.text.as_str()),
            is_link: copy.is_link,
            has_parents: copy.has_parents,
            unpacks: copy.kind == CopyKind::Add && copy.unpack != Some(false),
            now: self.host.now(),
        }
    }

    /// Copies into `root`. Returns what is there already, in the layer dir `earlier`.
    fn copy_into(
        &self,
        copy: &Copy,
        root: &OwnedFd,
        owner: Option<Owner>,
        key: &Keyed,
        earlier: Option<BorrowedFd<'_>>,
    ) -> Result<copy::Kept> {
        let landing = self.copy_landing(copy, owner);
        let mut kept = copy::Kept::default();
        for (source, read) in copy.sources.iter().zip(&key.reads.sources) {
            match (source, read) {
                (CopySource::Heredoc(file), _) => {
                    let blob = copy::Blob {
                        name: &file.name,
                        content: file.content.as_bytes(),
                        mode: 0o644,
                        mtime: self.host.now(),
                    };
                    copy::land_blob(&blob, root.as_fd(), &landing)?;
                }
                (CopySource::Path(path), Read::Listed { opened, listing }) => {
                    kept = copy::land_beside(&opened.tree, listing, root.as_fd(), &landing, earlier)
                        .map_err(|error| locate(error, Some(path)))?;
                }
                (CopySource::Url(url), Read::Downloaded(download)) => {
                    let landing = Landing { unpacks: copy.unpack == Some(true), ..landing.clone() };
                    self.land_download(download, root.as_fd(), &landing).map_err(|error| locate(error, Some(url)))?;
                }
                (CopySource::Git(git), Read::Git(commit)) => {
                    let landing = Landing { unpacks: false, ..landing.clone() };
                    let landed = self.list_git(copy, git, commit).and_then(|(directory, opened, listing)| {
                        let landed = copy::land(&opened.tree, &listing, root.as_fd(), &landing);
                        // Held until here, so that no prune takes it.
                        drop(directory);
                        landed
                    });
                    landed.map_err(|error| locate(error, Some(&git.at)))?;
                }
                // A source and what was read of it are of one kind.
                (CopySource::Path(_), _) => unreachable!("it was listed"),
                (CopySource::Url(_) | CopySource::Git(_), _) => unreachable!("it has no key"),
            }
        }
        Ok(kept)
    }

    /// Keeps what a copy read, for `cache explain` to compare with.
    pub(super) fn remember_listing(&self, key: &Keyed) -> Result<()> {
        let Some(digest) = key.facts.get("files").and_then(|files| files.parse::<crate::digest::Digest>().ok()) else {
            return Ok(());
        };
        let lines = key.reads.lines();
        if lines.is_empty() {
            return Ok(());
        }
        self.host.store.write_record("files", &digest.hex(), &lines::to_bytes(&lines))
    }

    pub(super) fn execute_workdir(
        &self,
        id: StepId,
        workdir: &Workdir,
        below: &Stack,
        draft: Draft,
        key: &Keyed,
    ) -> Result<Made> {
        // A number alone is the group too, whatever passwd says (BuildKit).
        let owner = workdir.user.as_ref().map(|user| self.owner_below(id, below, user)).transpose()?;
        let write = |root: &OwnedFd| copy::make_workdir(root.as_fd(), &workdir.path, owner, self.host.now()).map(drop);
        let (draft, lowers) = self.workdir_over_relief(id, workdir, below, draft, write)?;
        let lowers = match lowers {
            Some(lowers) => lowers,
            None => {
                self.write_over(id, below, &draft, write)?;
                self.lowers(id, below)?
            }
        };
        self.made(draft, &lowers, None, key)
    }

    /// A named context as the root of a stage.
    pub(super) fn land_all(&self, key: &Keyed, draft: &Draft) -> Result<()> {
        for read in &key.reads.sources {
            if let Read::Listed { opened, listing } = read {
                copy::land(&opened.tree, listing, draft.upper(), &landing("/", self.host.now()))?;
            }
        }
        Ok(())
    }

    /// The layer (none for nothing) that holds what a listing says, made once for each content, and the
    /// path of the source in them.
    pub(super) fn listed_layer(
        &self,
        tree: &crate::context::Tree,
        listing: &Arc<Listing>,
    ) -> Result<(Option<Arc<Layer>>, String)> {
        let begun = Instant::now();
        let mut facts = crate::cache::Facts::new("scratch", "bind");
        facts.add("files", listing.digest().to_string());
        let path = match listing.selections.first() {
            Some(selection) if selection.entries.first().is_none_or(|entry| entry.kind != EntryKind::Directory) => {
                format!("/{}", String::from_utf8_lossy(&selection.name))
            }
            _ => "/".to_owned(),
        };
        let _lock = self.host.store.lock_key(&facts.key(), || {})?;
        if let Some(record) = self.records.hit(&facts.key())?
            && let Some(result) = record.layer
            && let Some(layer) = self.layers.get(&Stack::default().id_above(&result.diff_id, Standing::Alone))?
        {
            return Ok((Some(layer), path));
        }
        let draft = self.host.store.draft()?;
        copy::land(tree, listing, draft.upper(), &landing("/", self.host.now()))?;
        Ok((self.commit_alone(draft, facts, "files of a bind mount", begun)?, path))
    }
}

/// How much is packed again for each change of it.
const REPACKED_BYTES: u64 = 64 << 20;

/// What a copy reads, if it is of one path, and much.
fn much_of(key: &Keyed) -> Option<&Listing> {
    let [Read::Listed { listing, .. }] = key.reads.sources.as_slice() else { return None };
    is_much(listing).then_some(listing)
}

pub(super) fn landing(destination: &str, now: i64) -> Landing<'_> {
    Landing { destination, owner: None, chmod: None, is_link: false, has_parents: false, unpacks: false, now }
}
