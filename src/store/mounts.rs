//! Cache mounts (`RUN --mount=type=cache`): directories that outlive builds and are no part of any
//! image. Their names are hashes of ids, so that no id can be a path.
//!
//! ```text
//! mounts/<hash of the id>[.<n>]/
//!   fs/        what the step sees
//!   lock       flocked by the steps that use it
//!   id         the id, for people
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use super::Store;
use crate::diag::Result;
use crate::digest::Digest;

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
            let path = self.inner.path.join("mounts").join(&folder);
            if !path.join("fs").is_dir() {
                self.make_cache_mount(name, &path, &fill)?;
            }
            let file = File::options().read(true).write(true).open(path.join("lock")).map_err(cannot)?;
            let operation = match lock {
                MountLock::Shared => FlockOperation::LockShared,
                MountLock::Exclusive => FlockOperation::LockExclusive,
                MountLock::Private => FlockOperation::NonBlockingLockExclusive,
            };
            match super::flock(file.as_fd(), operation) {
                Ok(()) => return Ok(CacheMount { path: path.join("fs"), _lock: file }),
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(cannot(errno.into())),
            }
        }
        Err(cannot(io::Error::other("all of its private copies are in use")))
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
