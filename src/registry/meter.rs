//! Tells a reporter how far a transfer is.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::diag::Result;
use crate::progress::{Event, Number, Outcome, Reporter};

/// Counts the bytes of one pull, push or download; shared by its threads.
pub struct Meter<'a> {
    reporter: &'a dyn Reporter,
    number: Number,
    done_bytes: AtomicU64,
    /// 0 while it is not known.
    total_bytes: AtomicU64,
    told_bytes: AtomicU64,
}

impl<'a> Meter<'a> {
    /// Shows `work` as a step of its own. One that transferred nothing is shown as cached.
    pub fn show<T>(
        reporter: &'a dyn Reporter,
        number: Number,
        title: &str,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        reporter.report(Event::Started { number, title });
        let zero = || AtomicU64::new(0);
        let meter = Self { reporter, number, done_bytes: zero(), total_bytes: zero(), told_bytes: zero() };
        let result = work(&meter);
        let outcome = match &result {
            Err(_) => Outcome::Failed,
            Ok(_) if meter.done_bytes.load(Ordering::Relaxed) == 0 => Outcome::Cached,
            Ok(_) => Outcome::Done,
        };
        reporter.report(Event::Finished { number, outcome, elapsed: begun.elapsed(), added_bytes: None });
        result
    }

    /// A line about what is done.
    pub fn say(&self, line: &str) {
        self.reporter.report(Event::Output { number: self.number, bytes: format!("{line}\n").as_bytes() });
    }

    /// So much more is to be transferred.
    pub fn expect(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        const STEP_BYTES: u64 = 256 << 10;
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total_bytes = Some(self.total_bytes.load(Ordering::Relaxed)).filter(|total| *total > 0);
        let told = self.told_bytes.load(Ordering::Relaxed);
        if done_bytes >= told + STEP_BYTES || Some(done_bytes) == total_bytes {
            self.told_bytes.store(done_bytes, Ordering::Relaxed);
            // What was sent twice counts once.
            let done_bytes = total_bytes.map_or(done_bytes, |total| done_bytes.min(total));
            self.reporter.report(Event::Progress { number: self.number, done_bytes, total_bytes });
        }
    }
}

/// Counts what is read through it.
pub(super) struct Metered<'a, R> {
    pub inner: R,
    pub meter: &'a Meter<'a>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}
