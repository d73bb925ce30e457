//! A process's own directory below `tmp/`, where everything is made before it is renamed into place.
//! Its lock file is flocked while the process lives, so that the next builder can tell what a killed
//! one left behind.
//!
//! ```text
//! tmp/<pid>-<n>.lock     made and locked first, removed last
//! tmp/<pid>-<n>/         made when first needed
//! ```

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::trash::Trash;
use crate::layer::whiteout;

pub(super) struct Workspace {
    tmp: OwnedFd,
    tmp_path: PathBuf,
    bench: Mutex<Option<Arc<Bench>>>,
    next: AtomicU64,
    /// Whether whiteouts are made as the host's root makes them.
    is_roots: bool,
}

/// The directory, once there is one.
pub(super) struct Bench {
    pub dir: OwnedFd,
    pub path: PathBuf,
    name: String,
    _lock: File,
}

impl Workspace {
    pub(super) fn new(tmp: OwnedFd, tmp_path: PathBuf, is_roots: bool) -> Self {
        Self { tmp, tmp_path, bench: Mutex::new(None), next: AtomicU64::new(0), is_roots }
    }

    /// The directory and a name in it that nothing has.
    pub(super) fn fresh(&self) -> rustix::io::Result<(Arc<Bench>, String)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let mut bench = self.bench.lock().unwrap_or_else(PoisonError::into_inner);
        let bench = match &*bench {
            Some(bench) => Arc::clone(bench),
            None => Arc::clone(bench.insert(Arc::new(self.make()?))),
        };
        Ok((bench, name))
    }

    fn make(&self) -> rustix::io::Result<Bench> {
        let mut attempt = 0_u64;
        loop {
            // Process ids repeat in other pid namespaces that share the store: the lock file decides.
            let name = format!("{}-{attempt}", std::process::id());
            attempt += 1;
            let lock_name = format!("{name}.lock");
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let lock = match rustix::fs::openat(&self.tmp, &lock_name, flags, Mode::from_raw_mode(0o600)) {
                Ok(lock) => lock,
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(errno),
            };
            super::flock(lock.as_fd(), FlockOperation::LockExclusive)?;
            // A sweeper may have taken it for a dead one's before it was locked.
            if !super::is_still_at(self.tmp.as_fd(), &lock_name, lock.as_fd()) {
                continue;
            }
            match rustix::fs::mkdirat(&self.tmp, &name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(errno),
            }
            let dir = super::open_dir(self.tmp.as_fd(), &name)?;
            super::spread_subdirectories(dir.as_fd());
            if self.is_roots {
                whiteout::note_if_ours(dir.as_fd(), self.tmp.as_fd())?;
            }
            return Ok(Bench { dir, path: self.tmp_path.join(&name), name, _lock: File::from(lock) });
        }
    }

    /// Whether layers here may have whiteouts that no overlay of the kernel's knows.
    pub(super) fn has_our_whiteouts(&self) -> rustix::io::Result<bool> {
        whiteout::are_noted_as_ours(self.tmp.as_fd())
    }

    /// Makes the lock file, if there is none yet: from now on prune leaves alone what is used. Where
    /// nothing can be written, nothing can be pruned.
    pub(super) fn announce(&self) {
        let mut bench = self.bench.lock().unwrap_or_else(PoisonError::into_inner);
        if bench.is_none() {
            *bench = self.make().ok().map(Arc::new);
        }
    }

    /// A file just made: its times are the filesystem's present.
    pub(super) fn now(&self) -> rustix::io::Result<rustix::fs::Stat> {
        let (bench, name) = self.fresh()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(bench.fd(), &name, flags, Mode::from_raw_mode(0o600))?;
        let _ = rustix::fs::unlinkat(bench.fd(), &name, AtFlags::empty());
        rustix::fs::fstat(file)
    }

    /// The lock files of other builders that live; each was made before its builder wrote or used
    /// anything.
    pub(super) fn live_others(&self) -> Vec<rustix::fs::Stat> {
        let own = self.bench.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|bench| bench.name.clone());
        let tmp = self.tmp.as_fd();
        let mut live = Vec::new();
        for name in super::names(tmp).unwrap_or_default() {
            let Some(builder) = name.strip_suffix(".lock") else { continue };
            if own.as_deref() == Some(builder) {
                continue;
            }
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(lock) = rustix::fs::openat(tmp, name.as_str(), flags, Mode::empty()) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
                && let Ok(stat) = rustix::fs::fstat(&lock)
            {
                live.push(stat);
            }
        }
        live
    }

    /// Moves to the trash what builders that no longer live left in `tmp/`. What cannot be moved now
    /// is left for the next one.
    pub(super) fn sweep(&self, trash: &Trash) {
        let tmp = self.tmp.as_fd();
        let Ok(names) = super::names(tmp) else { return };
        for name in &names {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let (builder, lock_name, flags) = match name.strip_suffix(".lock") {
                Some(builder) => (builder, name.clone(), flags),
                // The lock file is made before the directory and removed after it: without one it is nobody's. Nor does
                // it become anybody's of that name while there is ours.
                None => (name.as_str(), format!("{name}.lock"), flags | OFlags::CREATE | OFlags::EXCL),
            };
            let Ok(lock) = rustix::fs::openat(tmp, &lock_name, flags, Mode::from_raw_mode(0o600)) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            if super::is_still_at(tmp, &lock_name, lock.as_fd()) && trash.take(tmp, builder).is_ok() {
                let _ = rustix::fs::unlinkat(tmp, &lock_name, AtFlags::empty());
            }
        }
    }

    /// Removes the directory of this process, with whatever is in it.
    pub(super) fn close(&self, trash: &Trash) {
        let bench = self.bench.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(bench) = bench else { return };
        let is_gone = match rustix::fs::unlinkat(&self.tmp, &bench.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => true,
            Err(_) => trash.take(self.tmp.as_fd(), &bench.name).is_ok(),
        };
        if is_gone {
            let _ = rustix::fs::unlinkat(&self.tmp, format!("{}.lock", bench.name), AtFlags::empty());
        }
    }
}

impl Bench {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for super::Inner {
    fn drop(&mut self) {
        if let Some(blank) = self.blank.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            blank.remove();
        }
        self.workspace.close(&self.trash);
    }
}
