//! Cache mounts (`RUN --mount=type=cache`): directories that outlive builds and are no part of any
//! image. Their names are hashes of ids, so that no id can be a path.
//!
//! ```text
//! mounts/<hash of the id>[.<n>]/
//!   fs/        what the step sees
//!   lock       flocked by the steps that use it; its time is when one last did
//!   id         the id, for people
//! ```

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Gid, Mode, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::diag::Result;
use crate::digest::Digest;
use crate::layer;

const DIRECTORY: &str = "mounts";

/// The most private copies of one cache.
const COPIES: usize = 1_000;

/// How steps that run at once share one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountLock {
    /// All use it together.
    Shared,
    /// One after the other.
    Exclusive,
    /// Each has one that nobody else is using.
    Private,
}

/// A cache mount as it lies in the store.
#[derive(Clone, Debug)]
pub struct StoredMount {
    /// Names it in the store.
    pub folder: String,
    /// Namespace and id.
    pub id: String,
    pub size_bytes: u64,
    /// In seconds since the epoch.
    pub last_used: i64,
    pub is_in_use: bool,
}

/// What a cache mount is besides what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountMeta {
    /// Namespace and id.
    pub id: String,
    /// Of its directory, as ids of images.
    mode: u32,
    uid: u32,
    gid: u32,
}

impl MountMeta {
    /// Its id, for people.
    pub fn shown(&self) -> &str {
        self.id.strip_prefix('/').unwrap_or(&self.id)
    }
}

/// A cache mount in use; released when dropped.
pub struct CacheMount {
    /// `…/fs`.
    pub path: PathBuf,
    _lock: File,
}

impl Store {
    /// The cache called `name` (namespace and id). Where it is new, `fill` gets its empty directory before
    /// anybody else sees it. Waits if the lock asks for that.
    pub fn cache_mount(
        &self,
        name: &str,
        lock: MountLock,
        fill: impl Fn(&OwnedFd) -> Result<()>,
    ) -> Result<CacheMount> {
        let hash = Digest::of(name.as_bytes()).hex();
        let cannot = |error: io::Error| self.inner.error(format_args!("open the cache mount `{name}`"), error);
        let copies = if lock == MountLock::Private { COPIES } else { 1 };
        for copy in 0..copies {
            let folder = if copy == 0 { hash.clone() } else { format!("{hash}.{copy}") };
            match self.lock_cache_mount(name, &folder, lock, &fill)? {
                Some(mount) => return Ok(mount),
                None => continue,
            }
        }
        Err(cannot(io::Error::other("all of its private copies are in use")))
    }

    /// `None` when others use it and it is not to be waited for.
    fn lock_cache_mount(
        &self,
        name: &str,
        folder: &str,
        lock: MountLock,
        fill: &impl Fn(&OwnedFd) -> Result<()>,
    ) -> Result<Option<CacheMount>> {
        let cannot = |error: io::Error| self.inner.error(format_args!("open the cache mount `{name}`"), error);
        let path = self.inner.path.join(DIRECTORY).join(folder);
        loop {
            if !path.join("fs").is_dir() {
                self.make_cache_mount(name, &path, fill)?;
            }
            let file = match File::options().read(true).write(true).open(path.join("lock")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(cannot)?,
            };
            let operation = match lock {
                MountLock::Shared => FlockOperation::LockShared,
                MountLock::Exclusive => FlockOperation::LockExclusive,
                MountLock::Private => FlockOperation::NonBlockingLockExclusive,
            };
            match super::flock(file.as_fd(), operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(cannot(errno.into())),
            }
            // Pruned before it was locked: look again.
            if super::is_still_at(rustix::fs::CWD, &path.join("lock").to_string_lossy(), file.as_fd()) {
                let _ = rustix::fs::futimens(&file, &super::NOW);
                return Ok(Some(CacheMount { path: path.join("fs"), _lock: file }));
            }
        }
    }

    pub fn has_cache_mounts(&self) -> Result<bool> {
        Ok(!self.mount_folders()?.is_empty())
    }

    /// All cache mounts.
    pub fn cache_mounts(&self) -> Result<Vec<StoredMount>> {
        let mut mounts = Vec::new();
        for folder in self.mount_folders()? {
            let path = self.inner.path.join(DIRECTORY).join(&folder);
            // One that vanishes meanwhile is none.
            let Ok(lock) = File::open(path.join("lock")) else { continue };
            let id = fs::read_to_string(path.join("id")).unwrap_or_default();
            let last_used = rustix::fs::fstat(&lock).map_or(0, |stat| stat.st_mtime);
            let is_in_use = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
            let size_bytes = super::gc::walk_size(&path.join("fs")).size_bytes;
            mounts.push(StoredMount { folder, id, size_bytes, last_used, is_in_use });
        }
        Ok(mounts)
    }

    /// Moves it to the trash unless it is being used; whether it went.
    pub fn remove_cache_mount(&self, folder: &str) -> Result<bool> {
        let cannot = |errno| self.inner.error(format_args!("remove the cache mount `{folder}`"), errno);
        let path = self.inner.path.join(DIRECTORY);
        // Held over the rename: who waits for it looks again and finds nothing.
        let lock = File::open(path.join(folder).join("lock")).ok();
        if let Some(lock) = &lock
            && rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            return Ok(false);
        }
        let mounts = super::open_dir(self.inner.root.as_fd(), DIRECTORY).map_err(cannot)?;
        self.inner.trash.take(mounts.as_fd(), folder).map_err(cannot)?;
        Ok(true)
    }

    /// What is in a cache mount, as a tar, with what it is; `None` while somebody uses it.
    pub fn pack_cache_mount(&self, folder: &str) -> Result<Option<(MountMeta, File)>> {
        let cannot = |error: io::Error| self.inner.error(format_args!("pack the cache mount `{folder}`"), error);
        let path = self.inner.path.join(DIRECTORY).join(folder);
        let (Ok(lock), Ok(id)) = (File::open(path.join("lock")), fs::read_to_string(path.join("id"))) else {
            return Ok(None);
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let dir = super::open_dir(rustix::fs::CWD, &path.join("fs").to_string_lossy())
            .map_err(|errno| cannot(errno.into()))?;
        let stat = rustix::fs::fstat(&dir).map_err(|errno| cannot(errno.into()))?;
        let meta = MountMeta { id, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid };
        let packed = tempfile::tempfile_in(self.inner.path.join("tmp")).map_err(cannot)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, &packed);
        layer::pack(dir.as_fd(), &mut out)?;
        io::Write::flush(&mut out).map_err(cannot)?;
        drop(out);
        Ok(Some((meta, packed)))
    }

    /// Makes a cache mount of a tar; `false` if there is one of this id, which stays as it is.
    pub fn put_cache_mount(&self, meta: &MountMeta, tar: &mut dyn Read) -> Result<bool> {
        let path = self.inner.path.join(DIRECTORY).join(Digest::of(meta.id.as_bytes()).hex());
        if path.join("fs").exists() {
            return Ok(false);
        }
        let cannot = |errno: Errno| self.inner.error(format_args!("make the cache mount `{}`", meta.shown()), errno);
        let tar = RefCell::new(tar);
        self.make_cache_mount(&meta.id, &path, &|dir: &OwnedFd| {
            layer::unpack(&mut *tar.borrow_mut(), dir.as_fd(), &[])?;
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            rustix::fs::fchown(dir, Some(uid), Some(gid)).map_err(cannot)?;
            rustix::fs::fchmod(dir, Mode::from_raw_mode(meta.mode)).map_err(cannot)
        })?;
        Ok(true)
    }

    fn mount_folders(&self) -> Result<Vec<String>> {
        match super::open_dir(self.inner.root.as_fd(), DIRECTORY).and_then(|dir| super::names(dir.as_fd())) {
            Ok(folders) => Ok(folders),
            Err(Errno::NOENT) => Ok(Vec::new()),
            Err(errno) => Err(self.inner.error("list cache mounts", errno)),
        }
    }

    /// Makes it beside and renames it into place; if another builder is first, theirs stays.
    fn make_cache_mount(&self, name: &str, path: &PathBuf, fill: &impl Fn(&OwnedFd) -> Result<()>) -> Result<()> {
        let cannot = |error: io::Error| self.inner.error(format_args!("make the cache mount `{name}`"), error);
        let (bench, fresh) = self.inner.workspace.fresh().map_err(|errno| cannot(errno.into()))?;
        let beside = bench.path.join(&fresh);
        fs::create_dir_all(beside.join("fs")).map_err(cannot)?;
        fs::write(beside.join("lock"), b"").map_err(cannot)?;
        fs::write(beside.join("id"), name).map_err(cannot)?;
        let dir = super::open_dir(rustix::fs::CWD, &beside.join("fs").to_string_lossy())
            .map_err(|errno| cannot(errno.into()))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(|errno| cannot(errno.into()))?;
        fill(&dir)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(cannot)?;
        }
        match fs::rename(&beside, path) {
            Ok(()) => Ok(()),
            Err(_) if path.join("fs").is_dir() => {
                let _ = self.inner.trash.take(bench.fd(), &fresh);
                Ok(())
            }
            Err(error) => Err(cannot(error)),
        }
    }
}
