//! Reading files for their digests, on a second thread once there is enough to read.
//!
//! The walk pushes files as it meets them and helps when the queue is full, so no more directory
//! descriptors are held than the queue has places, and the result does not depend on who read what.

use std::cell::Cell;
use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::facts::Facts;
use super::index::{FileKey, HashIndex, Remembered};
use super::xattr;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{Digest, Hasher};

/// A file to be read.
pub struct Job {
    /// Where the result goes; of several errors the one with the lowest slot is reported.
    pub slot: usize,
    pub directory: Arc<OwnedFd>,
    pub name: Vec<u8>,
    /// For messages.
    pub path: Vec<u8>,
    pub key: FileKey,
    /// The digest is known, only the extended attributes are to be read.
    pub digest: Option<Digest>,
    /// The file system is one whose files may be remembered.
    pub is_trusted: bool,
}

pub struct Hashed {
    pub slot: usize,
    pub size_bytes: u64,
    pub digest: Digest,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// So many files wait at most, each with its directory open: stages select at the same time, and a
/// process may have 1024 files open.
const QUEUE_FILES: usize = 128;
/// From here on another thread pays.
const MUCH_FILES: usize = 64;
const MUCH_BYTES: u64 = 2 << 20;
const BUFFER_BYTES: usize = 128 << 10;

/// Files waiting to be read, and the threads that read them.
pub struct Hashers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared<'env>,
    idle_threads: Cell<usize>,
    buffer: Cell<Vec<u8>>,
}

pub struct Shared<'a> {
    index: Option<&'a HashIndex>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    waiting_bytes: u64,
    is_closed: bool,
    done: Vec<Hashed>,
    error: Option<(usize, Box<Diagnostic>)>,
}

impl<'a> Shared<'a> {
    pub fn new(index: Option<&'a HashIndex>) -> Self {
        Self { index, state: Mutex::default(), changed: Condvar::new() }
    }

    /// All results, in no order, after all threads have ended; or an error and its slot.
    pub fn finish(self) -> Result<Vec<Hashed>, (usize, Box<Diagnostic>)> {
        let state = self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.error.map_or(Ok(state.done), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panics here takes the scope, and so the build, with it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self, job: Job, buffer: &mut Vec<u8>) {
        let slot = job.slot;
        let result = read(&job, self.index, buffer);
        let mut state = self.lock();
        match result {
            Ok(hashed) => state.done.push(hashed),
            Err(error) if state.error.as_ref().is_none_or(|(first, _)| slot < *first) => {
                state.error = Some((slot, Box::new(error)));
            }
            Err(_) => {}
        }
    }

    /// The life of a thread: until the queue is closed and empty.
    fn work(&self) {
        let mut buffer = Vec::new();
        loop {
            let mut state = self.lock();
            let job = loop {
                if let Some(job) = state.take() {
                    break job;
                }
                if state.is_closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            };
            drop(state);
            self.run(job, &mut buffer);
        }
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.waiting_bytes -= job.key.size_bytes;
        Some(job)
    }
}

impl<'scope, 'env> Hashers<'scope, 'env> {
    /// `threads` counts the one that walks, too.
    pub fn new(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared<'env>, threads: usize) -> Self {
        Self { scope, shared, idle_threads: Cell::new(threads.saturating_sub(1)), buffer: Cell::default() }
    }

    pub fn push(&self, job: Job) {
        let mut state = self.shared.lock();
        state.waiting_bytes += job.key.size_bytes;
        state.jobs.push_back(job);
        let is_much = state.jobs.len() >= MUCH_FILES || state.waiting_bytes >= MUCH_BYTES;
        let overflow = if state.jobs.len() > QUEUE_FILES { state.take() } else { None };
        drop(state);
        if is_much {
            // Threads sleep until it pays to wake them, and then work until nothing is left.
            self.shared.changed.notify_one();
        }
        if is_much && self.idle_threads.get() > 0 {
            self.idle_threads.set(self.idle_threads.get() - 1);
            let shared = self.shared;
            self.scope.spawn(move || shared.work());
        }
        if let Some(job) = overflow {
            self.run(job);
        }
    }

    /// Reads what is left, together with the other threads.
    pub fn drain(&self) {
        loop {
            let job = self.shared.lock().take();
            let Some(job) = job else {
                return;
            };
            self.run(job);
        }
    }

    fn run(&self, job: Job) {
        let mut buffer = self.buffer.take();
        self.shared.run(job, &mut buffer);
        self.buffer.set(buffer);
    }
}

impl Drop for Hashers<'_, '_> {
    /// Lets the threads end; what still waits is of no use, as the walk has failed.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.jobs.clear();
        state.waiting_bytes = 0;
        drop(state);
        self.shared.changed.notify_all();
    }
}

fn read(job: &Job, index: Option<&HashIndex>, buffer: &mut Vec<u8>) -> Result<Hashed> {
    let doing = || format!("cannot read `{}`", String::from_utf8_lossy(&job.path));
    // Not to be stopped by a fifo that has taken the file's place.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&job.directory, job.name.as_slice(), flags, Mode::empty());
    let file = file.map_err(|errno| super::walk::refused(doing(), errno))?;
    if let Some(digest) = job.digest {
        let xattrs = xattr::of_file(file.as_fd()).context(doing)?;
        return Ok(Hashed { slot: job.slot, size_bytes: job.key.size_bytes, digest, xattrs });
    }
    let facts = Facts::of_open(&file).context(doing)?;
    if facts.file_type != FileType::RegularFile {
        return Err(Diagnostic::error(doing()).caused_by("it was replaced while it was read"));
    }
    let (digest, size_bytes) = digest(file.as_fd(), buffer).context(doing)?;
    let xattrs = xattr::of_file(file.as_fd()).context(doing)?;
    let key = facts.key;
    if let Some(index) = index
        && job.is_trusted
        && key == job.key
        && key.size_bytes == size_bytes
    {
        index.insert(key, Remembered { digest, has_xattrs: !xattrs.is_empty() });
    }
    Ok(Hashed { slot: job.slot, size_bytes, digest, xattrs })
}

/// Digest and size of what is in a file.
fn digest(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> rustix::io::Result<(Digest, u64)> {
    buffer.resize(BUFFER_BYTES, 0);
    let mut hasher = Hasher::default();
    let mut size_bytes = 0;
    loop {
        match rustix::io::read(file, &mut buffer[..]) {
            Ok(0) => return Ok((hasher.finish(), size_bytes)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
