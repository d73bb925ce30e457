//! Deleting in two phases: a rename into `trash/`, which is quick and atomic, and the walk, which a
//! background thread does. What a process does not finish the next one goes on with.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Directories nested deeper than this are moved up to the trash itself, which bounds the stack and
/// the open files.
const MAX_DEPTH: usize = 64;

pub(super) struct Trash {
    dir: Arc<TrashDir>,
    /// Whether this process can delete what others made; else it leaves that to one that can.
    may_delete: bool,
    worker: Arc<(Mutex<Worker>, Condvar)>,
}

#[derive(Default)]
struct Worker {
    is_running: bool,
    /// Something was added since the running walk began.
    is_asked_again: bool,
    /// The thread is to end when the trash is empty.
    is_ending: bool,
    thread: Option<JoinHandle<()>>,
}

/// How long the thread waits for more: one that is there costs a step less than a new one.
const LINGER: Duration = Duration::from_millis(500);

struct TrashDir {
    fd: OwnedFd,
    next: AtomicU64,
}

impl Trash {
    pub(super) fn new(fd: OwnedFd, may_delete: bool) -> Self {
        Self { dir: Arc::new(TrashDir { fd, next: AtomicU64::new(0) }), may_delete, worker: Arc::default() }
    }

    /// Moves `name` out of `from`; it is no error if it is not there (any more).
    pub(super) fn take(&self, from: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
        self.dir.take(from, name)
    }

    /// Deletes a file, which may take longer than to write it: by the thread in the background, if there is one.
    pub(super) fn discard(&self, from: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
        if !lock(&self.worker).is_running {
            return rustix::fs::unlinkat(from, name, AtFlags::empty());
        }
        self.take(from, name)?;
        self.wake();
        Ok(())
    }

    /// Deletes in the background what is in the trash now.
    pub(super) fn wake(&self) {
        if !self.may_delete || self.dir.is_empty() {
            return;
        }
        let mut worker = lock(&self.worker);
        if worker.is_running {
            worker.is_asked_again = true;
            self.worker.1.notify_one();
            return;
        }
        let (dir, shared) = (Arc::clone(&self.dir), Arc::clone(&self.worker));
        let spawned = std::thread::Builder::new().name("trash".into()).spawn(move || {
            loop {
                dir.delete_all();
                let idle = |worker: &mut Worker| !worker.is_asked_again && !worker.is_ending;
                let waited = shared.1.wait_timeout_while(lock(&shared), LINGER, idle);
                let (mut worker, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if !std::mem::take(&mut worker.is_asked_again) {
                    worker.is_running = false;
                    return;
                }
            }
        });
        // Without a thread to be had, the next process deletes it.
        if let Ok(thread) = spawned {
            worker.is_running = true;
            worker.thread = Some(thread);
        }
    }

    /// Waits until the background thread has deleted what it can.
    pub(super) fn finish(&self) {
        let thread = {
            let mut worker = lock(&self.worker);
            worker.is_ending = true;
            self.worker.1.notify_one();
            worker.thread.take()
        };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        lock(&self.worker).is_ending = false;
    }
}

fn lock(worker: &(Mutex<Worker>, Condvar)) -> MutexGuard<'_, Worker> {
    worker.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TrashDir {
    fn take(&self, from: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> rustix::io::Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            // A name that is taken (by a process with our id in another pid namespace) is either
            // replaced, when it is a file or an empty directory, or refused.
            match rustix::fs::renameat(from, name, &self.fd, format!("{}-{number}", std::process::id())) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn is_empty(&self) -> bool {
        super::names(self.fd.as_fd()).is_ok_and(|names| names.is_empty())
    }

    /// Deletes what can be deleted; the rest stays.
    fn delete_all(&self) {
        let mut failed = std::collections::BTreeSet::new();
        loop {
            let Ok(names) = super::names(self.fd.as_fd()) else { return };
            let names: Vec<_> = names.into_iter().filter(|name| !failed.contains(name)).collect();
            if names.is_empty() {
                return;
            }
            for name in names {
                if !self.delete(self.fd.as_fd(), name.as_str(), 0) {
                    failed.insert(name);
                }
            }
        }
    }

    /// Whether `name` is gone from `parent`.
    fn delete<P: rustix::path::Arg + Copy>(&self, parent: BorrowedFd<'_>, name: P, depth: usize) -> bool {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return true,
            // EPERM is what POSIX has for a directory.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(_) => return false,
        }
        if matches!(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT)) {
            return true;
        }
        if depth >= MAX_DEPTH {
            return self.take(parent, name).is_ok();
        }
        let Some(dir) = open_for_deletion(parent, name) else { return false };
        // Entries may be passed over when others go while the directory is read: look again.
        for _ in 0..4 {
            let Ok(entries) = Dir::read_from(&dir) else { return false };
            for entry in entries {
                let Ok(entry) = entry else { break };
                let name: &CStr = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    self.delete(dir.as_fd(), name, depth + 1);
                }
            }
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return true,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// Opens a directory and makes it one whose entries its owner may remove: an overlay's work
/// directory has mode 0, and images hold read-only ones.
fn open_for_deletion<P: rustix::path::Arg + Copy>(parent: BorrowedFd<'_>, name: P) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let dir = match open() {
        Err(Errno::ACCESS) => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            // chmodat follows links: only what was just seen to be a directory, in a directory that
            // nobody else writes to.
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return None;
            }
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty()).ok()?;
            open().ok()?
        }
        result => result.ok()?,
    };
    if rustix::fs::fstat(&dir).is_ok_and(|stat| stat.st_mode & 0o700 != 0o700) {
        let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    }
    Some(dir)
}
