//! How much the store is thought to hold: a number that builds add to, so that none has to count.
//!
//! ```text
//! <root>/usage     sealed: the total, when it was counted, when collecting did not help
//! ```

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, sealed};
use crate::diag::Result;

const NAME: &str = "usage";
/// Held while something is collected.
const LOCK: &str = "collection";

/// Times are in seconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub total_bytes: u64,
    pub counted_at: i64,
    /// When something was last collected, if it was not enough.
    pub collected_at: i64,
}

impl Store {
    /// Adds what this process has put into the store since it last did so, and gives the sum; nothing
    /// where it has put nothing in.
    pub fn add_to_tally(&self, now: i64) -> Result<Option<Tally>> {
        let added = self.inner.added_bytes.swap(0, Ordering::Relaxed);
        if added == 0 {
            return Ok(None);
        }
        let _lock = self.lock_name("tally".into(), || {})?;
        let before = self.tally()?.unwrap_or(Tally { counted_at: now, ..Tally::default() });
        let tally = Tally { total_bytes: before.total_bytes.saturating_add(added), ..before };
        self.write_tally(&tally)?;
        Ok(Some(tally))
    }

    /// Puts what was counted in the place of what was thought.
    pub fn set_tally(&self, tally: &Tally) -> Result<()> {
        let _lock = self.lock_name("tally".into(), || {})?;
        self.inner.added_bytes.store(0, Ordering::Relaxed);
        self.write_tally(tally)
    }

    pub fn tally(&self) -> Result<Option<Tally>> {
        sealed::read_json(self.inner.root.as_fd(), NAME).map_err(|error| self.inner.error("read `usage`", error))
    }

    fn write_tally(&self, tally: &Tally) -> Result<()> {
        sealed::write(&self.inner, self.inner.root.as_fd(), NAME, &sealed::to_json(tally))
    }

    /// The right to collect, as long as the file is open, in whatever process; `None` if another has it
    /// and it is not to be waited for.
    pub fn lock_collection(&self, waits: bool) -> Result<Option<File>> {
        let cannot_lock = |errno| self.inner.error("collect", errno);
        let operation = if waits { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(&self.inner.locks, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(cannot_lock)?;
            match super::flock(fd.as_fd(), operation) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(cannot_lock(errno)),
            }
            // Swept away before it was locked.
            if super::is_still_at(self.inner.locks.as_fd(), LOCK, fd.as_fd()) {
                return Ok(Some(File::from(fd)));
            }
        }
    }
}
