//! Blobs on their way: written by one thread, read by others while they grow, so that a layer is unpacked
//! while it is fetched.
//!
//! ```text
//! receive ──▶ partial/<hex> ── whole, of the right digest ──▶ blobs/sha256/<hex>
//!                   │
//!                   └──▶ readers, as far as it goes
//! ```
//!
//! What breaks off stays in `partial/`: the next one that wants the blob goes on from there, whatever
//! ended the one before. A lock by name makes two builders that want the same blob fetch it once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::Store;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{Digest, Hasher};
use crate::image::Descriptor;

const BUFFER_BYTES: usize = 256 << 10;
/// What is not worth to be kept for the next one.
const LITTLE_BYTES: u64 = 64 << 10;

/// A blob that somebody waits for.
pub struct Arrival {
    pub descriptor: Descriptor,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    /// How much of it can be read.
    bytes: u64,
    end: Option<End>,
    why: Option<Diagnostic>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// Whether all of a blob is what it should be.
enum Filled {
    Right,
    Wrong(Digest),
}

impl State {
    fn whole(file: Arc<File>, bytes: u64) -> Self {
        Self { file: Some(file), bytes, end: Some(End::Whole), why: None }
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    pub fn new(descriptor: Descriptor) -> Self {
        Self { descriptor, shared: Arc::default() }
    }

    /// Reads the blob from its beginning, as it comes. The end is told only when all of it is there and
    /// has the right digest; one that breaks off is an error.
    pub fn reader(&self) -> Follower {
        Follower { shared: Arc::clone(&self.shared), offset: 0 }
    }

    /// Waits for the end. Whether all of it is there.
    pub fn wait(&self) -> bool {
        let mut state = self.shared.lock();
        loop {
            match state.end {
                Some(end) => return end == End::Whole,
                None => state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Nobody will receive it, or go on to.
    pub fn abandon(&self, why: &Diagnostic) {
        self.shared.change(|state| {
            if state.end.is_none() {
                (state.end, state.why) = (Some(End::Broken), Some(why.clone()));
            }
        });
    }

    /// Why it did not come.
    pub(super) fn why(&self) -> Diagnostic {
        let why = self.shared.lock().why.clone();
        why.unwrap_or_else(|| Diagnostic::error(format!("blob `{}` did not come to its end", self.descriptor.digest)))
    }

    /// Whether what was to come will not.
    pub fn is_broken(&self) -> bool {
        self.shared.lock().end == Some(End::Broken)
    }
}

/// See [`Arrival::reader`].
pub struct Follower {
    shared: Arc<Shared>,
    offset: u64,
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        let file = loop {
            match (&state.file, state.end) {
                (_, Some(End::Broken)) => return Err(io::Error::other("the blob did not come to its end")),
                (Some(file), _) if state.bytes > self.offset => break Arc::clone(file),
                (_, Some(End::Whole)) => return Ok(0),
                _ => state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        let there = usize::try_from(state.bytes - self.offset).unwrap_or(usize::MAX);
        drop(state);
        let length = buffer.len().min(there);
        let count = file.read_at(&mut buffer[..length], self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Store {
    /// Receives a blob, unless it is there. `open` gives what follows the first so many bytes. Those who read
    /// the arrival get all that came, or learn that no more will.
    pub fn receive<R: Read>(&self, arrival: &Arrival, open: impl FnMut(u64) -> R) -> Result<()> {
        let received = self.receive_or_break(arrival, open);
        received.inspect_err(|why| arrival.abandon(why))
    }

    fn receive_or_break<R: Read>(&self, arrival: &Arrival, mut open: impl FnMut(u64) -> R) -> Result<()> {
        let Descriptor { digest, size_bytes, .. } = &arrival.descriptor;
        // Held until the blob has its name and no longer: nobody who holds it waits for another one's.
        let _lock = self.lock_blob(digest, || {})?;
        // It may be there, but nobody vouches for it.
        if self.verify_blob(digest)?
            && let Some(blob) = self.open_blob(digest)?
            && blob.size_bytes == *size_bytes
        {
            arrival.shared.change(|state| *state = State::whole(Arc::new(blob.into_file()), *size_bytes));
            return Ok(());
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let partial = rustix::fs::openat(&self.inner.partial, digest.hex(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| self.inner.error(format_args!("write blob `{digest}`"), errno))?;
        // Prune leaves alone what was touched since the oldest builder began.
        self.inner.workspace.announce();
        let _ = rustix::fs::futimens(&partial, &super::NOW);
        let partial = Arc::new(File::from(partial));
        let begun = partial.metadata().map_or(0, |metadata| metadata.len());
        if begun > 0 && begun <= *size_bytes {
            match self.fill(arrival, &partial, begun, &mut open)? {
                Filled::Right => return Ok(()),
                // What another boot or a full disk left of it was not what it looked like.
                Filled::Wrong(_) => {}
            }
        }
        partial.set_len(0).map_err(|error| self.inner.error(format_args!("write blob `{digest}`"), error))?;
        match self.fill(arrival, &partial, 0, &mut open)? {
            Filled::Right => Ok(()),
            Filled::Wrong(actual) => {
                let _ = rustix::fs::unlinkat(&self.inner.partial, digest.hex(), AtFlags::empty());
                Err(Diagnostic::error(format!("blob `{digest}` is damaged: its bytes hash to `{actual}`")))
            }
        }
    }

    /// Adds what follows the first `begun` bytes and publishes the blob, if it has the right digest. It
    /// is an error if it does not come to its end.
    fn fill<R: Read>(
        &self,
        arrival: &Arrival,
        partial: &Arc<File>,
        begun: u64,
        open: &mut impl FnMut(u64) -> R,
    ) -> Result<Filled> {
        let Descriptor { digest, size_bytes, .. } = &arrival.descriptor;
        let cannot_write = |error: io::Error| self.inner.error(format_args!("write blob `{digest}`"), error);
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut bytes = 0;
        while bytes < begun {
            let length = BUFFER_BYTES.min(usize::try_from(begun - bytes).unwrap_or(BUFFER_BYTES));
            let count = partial.read_at(&mut buffer[..length], bytes).map_err(cannot_write)?;
            if count == 0 {
                return Err(cannot_write(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
        }
        // What was there before is read only when it is known to be right: it cannot be taken back.
        let is_followed = begun == 0;
        if is_followed {
            arrival.shared.change(|state| state.file = Some(Arc::clone(partial)));
        }
        let filled = (|| {
            let mut input = open(begun);
            while bytes < *size_bytes {
                let length = BUFFER_BYTES.min(usize::try_from(size_bytes - bytes).unwrap_or(BUFFER_BYTES));
                let count = match input.read(&mut buffer[..length]) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    _ if arrival.is_broken() => Err(io::Error::other("nobody waits for it any more")),
                    read => read,
                };
                let count = count.context(|| format!("cannot read blob `{digest}`"))?;
                partial.write_all_at(&buffer[..count], bytes).map_err(cannot_write)?;
                hasher.update(&buffer[..count]);
                bytes += count as u64;
                if is_followed {
                    arrival.shared.change(|state| state.bytes = bytes);
                }
            }
            Ok(())
        })();
        if let Err(error) = filled {
            if bytes < LITTLE_BYTES {
                let _ = rustix::fs::unlinkat(&self.inner.partial, digest.hex(), AtFlags::empty());
            }
            return Err(error);
        }
        let actual = hasher.finish();
        if actual != *digest {
            return Ok(Filled::Wrong(actual));
        }
        let _ = rustix::fs::fchmod(partial, Mode::from_raw_mode(0o400));
        rustix::fs::renameat(&self.inner.partial, digest.hex(), &self.inner.blobs, digest.hex())
            .map_err(|errno| cannot_write(errno.into()))?;
        arrival.shared.change(|state| *state = State::whole(Arc::clone(partial), bytes));
        Ok(Filled::Right)
    }
}
