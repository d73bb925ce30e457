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

use super::{Action, Inner, Store};
use crate::diag::Result;
use crate::digest::Digest;

/// A bare repository, or the place for one, that nobody else uses while this lives.
pub struct Repository {
    /// Absolute; there is nothing while [`Repository::is_new`].
    pub path: PathBuf,
    inner: Arc<Inner>,
    dir: OwnedFd,
}

/// A repository as it lies in the store.
#[derive(Clone, Debug)]
pub struct StoredRepository {
    /// Names it in the store.
    pub folder: String,
    /// What was fetched from, for people.
    pub remote: String,
    pub size_bytes: u64,
    /// In seconds since the epoch.
    pub last_used: i64,
    pub is_in_use: bool,
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

    /// All copies of repositories.
    pub fn stored_repositories(&self) -> Result<Vec<StoredRepository>> {
        let Ok(git) = super::open_dir(self.inner.root.as_fd(), super::REPOSITORIES) else { return Ok(Vec::new()) };
        let stored = self.list(git.as_fd(), "git repositories")?.into_iter().map(|(folder, stat)| {
            let path = self.inner.path.join(super::REPOSITORIES).join(&folder);
            StoredRepository {
                remote: std::fs::read_to_string(path.join("remote")).unwrap_or_default().trim_end().to_owned(),
                size_bytes: super::gc::walk_size(&path).size_bytes,
                last_used: stat.st_mtime,
                is_in_use: self.is_held(git.as_fd(), &folder),
                folder,
            }
        });
        Ok(stored.collect())
    }

    /// Moves it to the trash unless somebody is using it; whether it went. It only saves a download.
    pub fn remove_repository(&self, folder: &str) -> Result<bool> {
        let git = super::open_dir(self.inner.root.as_fd(), super::REPOSITORIES)
            .map_err(|errno| self.inner.error("remove the copy of a git repository", errno))?;
        self.take_unlocked(git.as_fd(), folder, folder, |_| true, Action::Remove)
    }
}
