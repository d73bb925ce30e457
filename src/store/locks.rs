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
        self.lock_name(format!("key-{}", key.hex()), waiting)
    }

    /// The same, unless somebody does.
    pub fn try_lock_key(&self, key: &CacheKey) -> Option<KeyLock> {
        let (locks, name) = (self.inner.locks.as_fd(), format!("key-{}", key.hex()));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(locks, name.as_str(), flags, Mode::from_raw_mode(0o600)).ok()?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
        super::is_still_at(locks, &name, fd.as_fd()).then(|| KeyLock { inner: Arc::clone(&self.inner), name, _fd: fd })
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
        let locks = self.inner.locks.as_fd();
        let mut waiting = Some(waiting);
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(locks, name, flags, Mode::from_raw_mode(0o600))?;
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
            if super::is_still_at(locks, name, fd.as_fd()) {
                return Ok(fd);
            }
        }
    }
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
