//! What the store holds, and taking away what nobody needs. What is needed the caller says (`Keep`);
//! what is in use the locks and the live builders say:
//!
//! - a layer or blob that somebody holds is flocked;
//! - what appeared or was found since the oldest live builder started may be about to be used by it.

use std::collections::{BTreeMap, BTreeSet};
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
            // One that was made on nothing has another name, wherever it stands.
            self.layers.insert(ChainId::extend(None, diff_id));
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
    /// What could have gone, but is being used.
    pub in_use: u64,
}

/// A layer as it lies in the store.
#[derive(Clone, Debug)]
pub struct StoredLayer {
    pub id: ChainId,
    /// `None` where it cannot be read.
    pub diff_id: Option<DiffId>,
    /// Of its regular files.
    pub size_bytes: u64,
    /// In seconds since the epoch.
    pub last_used: i64,
}

#[derive(Clone, Debug)]
pub struct StoredBlob {
    pub digest: Digest,
    pub size_bytes: u64,
    /// In seconds since the epoch.
    pub last_used: i64,
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
        for layer in self.stored_layers()? {
            usage.layers.add(layer.size_bytes);
        }
        for (_, stat) in self.all_blobs()? {
            usage.blobs.add(stat.st_size as u64);
        }
        usage.mounts = walk_size(&self.inner.path.join("mounts"));
        for name in ["tmp", "partial", "trash"] {
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

        for (name, stat, meta) in self.all_layers()? {
            let size_bytes = meta.map_or(0, |meta| meta.size_bytes);
            if Digest::from_hex(&name).is_some_and(|hex| keep.layers.contains(&ChainId::new(hex))) || !is_due(&stat) {
                continue;
            }
            match self.take_unlocked(self.inner.layers.as_fd(), &name, &format!("{name}/fs"), is_old, action)? {
                true => pruned.layers.add(size_bytes),
                false => pruned.in_use += 1,
            }
        }

        let forms = self.all_forms()?;
        let kept_blobs = self.kept_blobs(keep, &forms)?;
        for (name, stat) in self.all_blobs()? {
            if Digest::from_hex(&name).is_some_and(|hex| kept_blobs.contains(&hex)) || !is_due(&stat) {
                continue;
            }
            match self.take_unlocked(self.inner.blobs.as_fd(), &name, &name, is_old, action)? {
                true => pruned.blobs.add(stat.st_size as u64),
                false => pruned.in_use += 1,
            }
        }
        // What broke off is worth something to the next one that wants it, but not to be counted.
        let partial = self.inner.partial.as_fd();
        for (name, stat) in self.list(partial, "what broke off")? {
            if is_due(&stat) {
                self.take_unlocked(partial, &name, &name, is_old, action)?;
            }
        }
        if action == Action::Tell {
            return Ok(pruned);
        }
        // Forms whose blobs are all gone say nothing any more.
        let mut there = BTreeSet::new();
        for (diff_id, known) in &forms {
            match known.iter().any(|form| self.has_blob(&form.digest)) {
                true => drop(there.insert(diff_id.hex())),
                false => self.remove_forms(&diff_id.hex()).map_err(|errno| self.inner.error("remove forms", errno))?,
            }
        }
        self.forget_tables(|diff_id| there.contains(diff_id))?;
        self.inner.trash.wake();
        Ok(pruned)
    }

    /// The blobs that `keep` stands for: those it names, what kept manifests refer to, the forms of kept
    /// layers.
    pub fn kept_blobs(&self, keep: &Keep, forms: &BTreeMap<DiffId, Vec<Form>>) -> Result<BTreeSet<Digest>> {
        let mut kept = keep.blobs.clone();
        for manifest in &keep.blobs {
            self.keep_referenced(manifest, &mut kept)?;
        }
        let of_kept = forms.iter().filter(|(diff_id, _)| keep.diff_ids.contains(diff_id));
        kept.extend(of_kept.flat_map(|(_, forms)| forms).map(|form| form.digest));
        Ok(kept)
    }

    /// What is known of all layers' blobs.
    pub fn all_forms(&self) -> Result<BTreeMap<DiffId, Vec<Form>>> {
        let mut forms = BTreeMap::new();
        let names = super::names(self.inner.forms.as_fd()).map_err(|errno| self.inner.error("list forms", errno))?;
        for name in names {
            // One that cannot be read says nothing.
            let known: Option<Vec<Form>> = sealed::read_json(self.inner.forms.as_fd(), &name).unwrap_or_default();
            if let Some(hex) = Digest::from_hex(&name) {
                forms.insert(DiffId::new(hex), known.unwrap_or_default());
            }
        }
        Ok(forms)
    }

    pub fn stored_layers(&self) -> Result<Vec<StoredLayer>> {
        let layers = self.all_layers()?.into_iter().filter_map(|(name, stat, meta)| {
            let (diff_id, size_bytes) = meta.map_or((None, 0), |meta| (Some(meta.diff_id), meta.size_bytes));
            Some(StoredLayer {
                id: ChainId::new(Digest::from_hex(&name)?),
                diff_id,
                size_bytes,
                last_used: stat.st_mtime,
            })
        });
        Ok(layers.collect())
    }

    pub fn stored_blobs(&self) -> Result<Vec<StoredBlob>> {
        let blobs = self.all_blobs()?.into_iter().filter_map(|(name, stat)| {
            let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
            Some(StoredBlob { digest: Digest::from_hex(&name)?, size_bytes, last_used: stat.st_mtime })
        });
        Ok(blobs.collect())
    }

    /// Whether somebody holds the layer.
    pub fn is_layer_held(&self, id: &ChainId) -> bool {
        self.is_held(self.inner.layers.as_fd(), &format!("{}/fs", id.hex()))
    }

    pub fn is_blob_held(&self, digest: &Digest) -> bool {
        self.is_held(self.inner.blobs.as_fd(), &digest.hex())
    }

    pub(super) fn is_held(&self, dir: BorrowedFd<'_>, name: &str) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(file) => rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK),
            Err(_) => false,
        }
    }

    /// The present of the store's filesystem: what is made or used from now on has no earlier time.
    pub fn present(&self) -> Result<SystemTime> {
        self.inner.workspace.now().map(|stat| modified(&stat)).map_err(|errno| self.inner.error("prune", errno))
    }

    /// What is left on the store's filesystem for who is not privileged.
    pub fn free_bytes(&self) -> u64 {
        self.filesystem().1
    }

    /// Size of the store's filesystem, and what is left on it; a kernel that does not tell leaves all.
    pub fn filesystem(&self) -> (u64, u64) {
        match rustix::fs::fstatvfs(&self.inner.root) {
            Ok(stat) => (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(_) => (u64::MAX, u64::MAX),
        }
    }

    /// Bytes of files below these directories of the store.
    pub fn size_below(&self, names: &[&str]) -> u64 {
        names.iter().map(|name| walk_size(&self.inner.path.join(name)).size_bytes).sum()
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

    /// Names, stats and descriptions of all layers.
    fn all_layers(&self) -> Result<Vec<(String, Stat, Option<LayerMeta>)>> {
        let layers = self.inner.layers.as_fd();
        let mut all = Vec::new();
        for (name, stat) in self.list(layers, "layers")? {
            let meta = super::open_dir(layers, &name)
                .ok()
                .and_then(|dir| sealed::read_json::<LayerMeta>(dir.as_fd(), "layer.json").ok()?);
            all.push((name, stat, meta));
        }
        Ok(all)
    }

    fn all_blobs(&self) -> Result<Vec<(String, Stat)>> {
        self.list(self.inner.blobs.as_fd(), "blobs")
    }

    pub(super) fn list(&self, dir: BorrowedFd<'_>, what: &str) -> Result<Vec<(String, Stat)>> {
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
    pub(super) fn take_unlocked(
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
pub(super) fn walk_size(path: &std::path::Path) -> Total {
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
