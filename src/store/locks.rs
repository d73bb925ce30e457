//! Locks by name: a second builder with the same step waits for the first, and then finds its result.
//! The file is unlinked by whoever held the lock, so that files do not gather.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Inner, Store};
use crate::diag::Result;
use crate::digest::{CacheKey, Digest};

/// Held until dropped. The kernel releases it if the process dies.
pub struct KeyLock {
    inner: Arc<Inner>,
    name: String,
    _fd: OwnedFd,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Unlinked while held: who waits for it will find that it has another file to lock.
        let _ = rustix::fs::unlinkat(&self.inner.locks, &self.name, AtFlags::empty());
    }
}

impl Store {
    /// Waits until no other thread or process works on this key. `waiting` is called once, before
    /// the wait, if there is one.
    pub fn lock_key(&self, key: &CacheKey, waiting: impl FnOnce()) -> Result<KeyLock> {
        self.lock_name(name_of(key), waiting)
    }

    /// The same, unless somebody does.
    pub fn try_lock_key(&self, key: &CacheKey) -> Option<KeyLock> {
        let name = name_of(key);
        let fd = self.open_lock(&name).ok()?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
        let is_held = super::is_still_at(self.inner.locks.as_fd(), &name, fd.as_fd());
        is_held.then(|| KeyLock { inner: Arc::clone(&self.inner), name, _fd: fd })
    }

    /// The same for whoever fetches a blob.
    pub fn lock_blob(&self, digest: &Digest, waiting: impl FnOnce()) -> Result<KeyLock> {
        self.lock_name(format!("blob-{}", digest.hex()), waiting)
    }

    pub(super) fn lock_name(&self, name: String, waiting: impl FnOnce()) -> Result<KeyLock> {
        self.lock(&name, waiting)
            .map(|fd| KeyLock { inner: Arc::clone(&self.inner), name: name.clone(), _fd: fd })
            .map_err(|errno| self.inner.error(format_args!("lock `{name}`"), errno))
    }

    /// Whether somebody holds the lock of this name, for who need not have it.
    pub(super) fn is_locked(&self, name: &str) -> bool {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(&self.inner.locks, name, flags, Mode::empty()) else { return false };
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    }

    fn lock(&self, name: &str, waiting: impl FnOnce()) -> rustix::io::Result<OwnedFd> {
        let mut waiting = Some(waiting);
        loop {
            let fd = self.open_lock(name)?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    super::flock(fd.as_fd(), FlockOperation::LockExclusive)?;
                }
                Err(errno) => return Err(errno),
            }
            if super::is_still_at(self.inner.locks.as_fd(), name, fd.as_fd()) {
                return Ok(fd);
            }
        }
    }

    fn open_lock(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.inner.locks, name, flags, Mode::from_raw_mode(0o600))
    }
}

fn name_of(key: &CacheKey) -> String {
    format!("key-{}", key.hex())
}

/// Removes the lock files of killed processes.
pub(super) fn sweep(locks: BorrowedFd<'_>) {
    for name in super::names(locks).unwrap_or_default() {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(fd) = rustix::fs::openat(locks, name.as_str(), flags, Mode::empty()) else { continue };
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok()
            && super::is_still_at(locks, &name, fd.as_fd())
        {
            let _ = rustix::fs::unlinkat(locks, name.as_str(), AtFlags::empty());
        }
    }
}
