//! What was fetched from git repositories: a bare repository for each remote, so that the next fetch brings
//! only what is new.
//!
//! ```text
//! git/<hash of the remote>/      flocked by whoever uses it; its mtime is the last use
//!   repository/                  bare; git's own business
//!   remote                       the remote, for people
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Inner, Store};
use crate::diag::Result;
use crate::digest::Digest;

/// A bare repository, or the place for one, that nobody else uses while this lives.
pub struct Repository {
    /// Absolute; there is nothing while [`Repository::is_new`].
    pub path: PathBuf,
    inner: Arc<Inner>,
    dir: OwnedFd,
}

impl Repository {
    /// Whether git has still to make it.
    pub fn is_new(&self) -> bool {
        super::open_dir(self.dir.as_fd(), NAME).is_err()
    }

    /// Throws away what is there: it is damaged, or cannot take what the remote has now.
    pub fn reset(&self) -> Result<()> {
        self.inner
            .trash
            .take(self.dir.as_fd(), NAME)
            .map_err(|errno| self.inner.error("remove a damaged git repository", errno))?;
        self.inner.trash.wake();
        Ok(())
    }
}

const NAME: &str = "repository";

impl Store {
    /// The repository of what was fetched from `remote`; `shown` is its name for people. Waits while
    /// somebody else uses it.
    pub fn repository(&self, remote: &str, shown: &str) -> Result<Repository> {
        let hash = Digest::of(remote.as_bytes()).hex();
        self.open_repository(&hash, shown)
            .map_err(|errno| self.inner.error(format_args!("open the copy of the git repository `{shown}`"), errno))
    }

    fn open_repository(&self, hash: &str, shown: &str) -> Result<Repository, Errno> {
        let git = super::open_or_make(self.inner.root.as_fd(), super::REPOSITORIES)?;
        loop {
            let dir = super::open_or_make(git.as_fd(), hash)?;
            super::flock(dir.as_fd(), FlockOperation::LockExclusive)?;
            // Pruned before it was locked: look again.
            if !super::is_still_at(git.as_fd(), hash, dir.as_fd()) {
                continue;
            }
            self.inner.workspace.announce();
            let _ = rustix::fs::utimensat(&git, hash, &super::NOW, AtFlags::SYMLINK_NOFOLLOW);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            if let Ok(file) = rustix::fs::openat(&dir, "remote", flags, Mode::from_raw_mode(0o600)) {
                let _ = rustix::io::write(file, format!("{shown}\n").as_bytes());
            }
            let path = self.inner.path.join(super::REPOSITORIES).join(hash).join(NAME);
            return Ok(Repository { path, inner: Arc::clone(&self.inner), dir });
        }
    }
}
