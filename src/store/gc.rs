//! What the store holds, and taking away what nobody needs. What is needed the caller says (`Keep`);
//! what is in use the locks and the live builders say:
//!
//! - a layer or blob that somebody holds is flocked;
//! - what appeared or was found since the oldest live builder started may be about to be used by it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Form, ImageRecord, LayerMeta, Store, sealed};
use crate::diag::Result;
use crate::digest::{ChainId, DiffId, Digest};
use crate::image::manifest::{self, Document};

/// What a prune leaves alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// With all they stand on: the caller adds those too, or uses [`Keep::stack`].
    pub layers: BTreeSet<ChainId>,
    /// Whose forms, and the blobs these name, are kept.
    pub diff_ids: BTreeSet<DiffId>,
    pub blobs: BTreeSet<Digest>,
}

impl Keep {
    /// Keeps a stack of layers, bottom first, in whatever form they are there.
    pub fn stack<'a>(&mut self, diff_ids: impl IntoIterator<Item = &'a DiffId>) {
        let mut below = None;
        for diff_id in diff_ids {
            let id = ChainId::extend(below.as_ref(), diff_id);
            self.layers.insert(id);
            self.diff_ids.insert(*diff_id);
            below = Some(id);
        }
    }

    pub fn image(&mut self, image: &ImageRecord) {
        self.stack(image.layers.iter().map(|layer| &layer.diff_id));
        self.blobs.extend(image.layers.iter().filter_map(|layer| layer.blob));
        self.blobs.extend(image.manifest);
        self.blobs.insert(image.config);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub count: u64,
    pub size_bytes: u64,
}

impl Total {
    fn add(&mut self, size_bytes: u64) {
        self.count += 1;
        self.size_bytes += size_bytes;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub layers: Total,
    pub blobs: Total,
    /// Of `RUN --mount=type=cache`.
    pub mounts: Total,
    /// Work in progress, and what is being deleted.
    pub transient: Total,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub layers: Total,
    pub blobs: Total,
    /// What was fetched from git.
    pub repositories: Total,
    /// What could have gone, but is being used.
    pub in_use: u64,
}

/// Whether a prune removes or only tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Remove,
    /// Nothing changes.
    Tell,
}

impl Store {
    /// Counts and sizes of what is there; a layer counts with the sizes of its files.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        for (_, _, size_bytes) in self.all_layers()? {
            usage.layers.add(size_bytes);
        }
        for (_, stat) in self.all_blobs()? {
            usage.blobs.add(stat.st_size as u64);
        }
        usage.mounts = walk_size(&self.inner.path.join("mounts"));
        for name in ["tmp", "trash"] {
            let total = walk_size(&self.inner.path.join(name));
            usage.transient.count += total.count;
            usage.transient.size_bytes += total.size_bytes;
        }
        Ok(usage)
    }

    /// Moves to the trash every layer and blob that is neither kept nor in use and was last used
    /// before `unused_since` (when given). Images and cache records are the caller's to remove first. The
    /// space is free after [`Store::empty_trash`].
    pub fn prune(&self, keep: &Keep, unused_since: Option<SystemTime>, action: Action) -> Result<Pruned> {
        // A builder that starts after it was looked for uses nothing before this instant either.
        let now = self.inner.workspace.now().map_err(|errno| self.inner.error("prune", errno))?;
        let live = self.inner.workspace.live_others();
        let before = live.iter().chain([&now]).map(modified).chain(unused_since).min();
        let is_old = |stat: &Stat| before.is_none_or(|before| modified(stat) < before);
        let is_due = |stat: &Stat| unused_since.is_none_or(|since| modified(stat) < since);
        let mut pruned = Pruned::default();

        for (name, stat, size_bytes) in self.all_layers()? {
            if Digest::from_hex(&name).is_some_and(|hex| keep.layers.contains(&ChainId::new(hex))) || !is_due(&stat) {
                continue;
            }
            match self.take_unlocked(self.inner.layers.as_fd(), &name, &format!("{name}/fs"), is_old, action)? {
                true => pruned.layers.add(size_bytes),
                false => pruned.in_use += 1,
            }
        }

        let mut kept_blobs = keep.blobs.clone();
        for manifest in &keep.blobs {
            self.keep_referenced(manifest, &mut kept_blobs)?;
        }
        let forms = super::names(self.inner.forms.as_fd()).map_err(|errno| self.inner.error("list forms", errno))?;
        for name in &forms {
            if Digest::from_hex(name).is_some_and(|hex| keep.diff_ids.contains(&DiffId::new(hex))) {
                let known: Option<Vec<Form>> = sealed::read_json(self.inner.forms.as_fd(), name).unwrap_or_default();
                kept_blobs.extend(known.iter().flatten().map(|form| form.digest));
            }
        }
        for (name, stat) in self.all_blobs()? {
            if Digest::from_hex(&name).is_some_and(|hex| kept_blobs.contains(&hex)) || !is_due(&stat) {
                continue;
            }
            match self.take_unlocked(self.inner.blobs.as_fd(), &name, &name, is_old, action)? {
                true => pruned.blobs.add(stat.st_size as u64),
                false => pruned.in_use += 1,
            }
        }
        self.prune_repositories(is_due, action, &mut pruned)?;
        if action == Action::Tell {
            return Ok(pruned);
        }
        // Forms whose blobs are all gone say nothing any more.
        for name in &forms {
            let known: Option<Vec<Form>> = sealed::read_json(self.inner.forms.as_fd(), name).unwrap_or_default();
            if !known.iter().flatten().any(|form| self.has_blob(&form.digest)) {
                self.remove_forms(name).map_err(|errno| self.inner.error("remove forms", errno))?;
            }
        }
        self.inner.trash.wake();
        Ok(pruned)
    }

    /// Repositories that nobody is using: they only save a download.
    fn prune_repositories(&self, is_due: impl Fn(&Stat) -> bool, action: Action, pruned: &mut Pruned) -> Result<()> {
        let Ok(git) = super::open_dir(self.inner.root.as_fd(), super::REPOSITORIES) else { return Ok(()) };
        for (name, stat) in self.list(git.as_fd(), "git repositories")? {
            if !is_due(&stat) {
                continue;
            }
            let size_bytes = walk_size(&self.inner.path.join(super::REPOSITORIES).join(&name)).size_bytes;
            match self.take_unlocked(git.as_fd(), &name, &name, |_| true, action)? {
                true => pruned.repositories.add(size_bytes),
                false => pruned.in_use += 1,
            }
        }
        Ok(())
    }

    /// Adds what a kept manifest or index refers to.
    fn keep_referenced(&self, digest: &Digest, kept: &mut BTreeSet<Digest>) -> Result<()> {
        let Some(bytes) = self.read_blob(digest, manifest::MAX_MANIFEST_BYTES)? else { return Ok(()) };
        match Document::from_json(&bytes) {
            Ok(Document::Manifest(manifest)) => {
                kept.insert(manifest.config.digest);
                kept.extend(manifest.layers.iter().map(|layer| layer.digest));
            }
            Ok(Document::Index(index)) => kept.extend(index.manifests.iter().map(|manifest| manifest.digest)),
            Err(_) => {}
        }
        Ok(())
    }

    /// Names, stats and sizes of all layers.
    fn all_layers(&self) -> Result<Vec<(String, Stat, u64)>> {
        let layers = self.inner.layers.as_fd();
        let mut all = Vec::new();
        for (name, stat) in self.list(layers, "layers")? {
            let size_bytes = super::open_dir(layers, &name)
                .ok()
                .and_then(|dir| sealed::read_json::<LayerMeta>(dir.as_fd(), "layer.json").ok()?)
                .map_or(0, |meta| meta.size_bytes);
            all.push((name, stat, size_bytes));
        }
        Ok(all)
    }

    fn all_blobs(&self) -> Result<Vec<(String, Stat)>> {
        self.list(self.inner.blobs.as_fd(), "blobs")
    }

    fn list(&self, dir: BorrowedFd<'_>, what: &str) -> Result<Vec<(String, Stat)>> {
        let cannot_list = |errno| self.inner.error(format_args!("list {what}"), errno);
        let mut all = Vec::new();
        for name in super::names(dir).map_err(cannot_list)? {
            match rustix::fs::statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => all.push((name, stat)),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(cannot_list(errno)),
            }
        }
        Ok(all)
    }

    /// Moves it to the trash, unless somebody holds its lock (on the file `locked`) or used it of late.
    fn take_unlocked(
        &self,
        dir: BorrowedFd<'_>,
        name: &str,
        locked: &str,
        is_old: impl Fn(&Stat) -> bool,
        action: Action,
    ) -> Result<bool> {
        let cannot_take = |errno| self.inner.error(format_args!("remove `{name}`"), errno);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = match rustix::fs::openat(dir, locked, flags, Mode::empty()) {
            Ok(lock) => Some(lock),
            // Gone, or none of ours: a link, a directory that is no layer.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => None,
            Err(errno) => return Err(cannot_take(errno)),
        };
        if let Some(lock) = &lock {
            match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(false),
                Err(errno) => return Err(cannot_take(errno)),
            }
            if !super::is_still_at(dir, locked, lock.as_fd()) {
                return Ok(false);
            }
        }
        // Looked at under the lock, under which its users set the time.
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_old(&stat) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(cannot_take(errno)),
        }
        if action == Action::Tell {
            return Ok(true);
        }
        // The lock is held over the rename: who waits for it looks again and finds nothing.
        self.inner.trash.take(dir, name).map_err(cannot_take)?;
        Ok(true)
    }
}

fn modified(stat: &Stat) -> SystemTime {
    let nanos = Duration::from_nanos(stat.st_mtime_nsec);
    match u64::try_from(stat.st_mtime) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

/// What vanishes or may not be read while it is walked counts nothing.
fn walk_size(path: &std::path::Path) -> Total {
    let mut total = Total::default();
    for entry in walkdir::WalkDir::new(path).min_depth(1).into_iter().flatten() {
        if entry.depth() == 1 {
            total.count += 1;
        }
        if entry.file_type().is_file() {
            total.size_bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    total
}
