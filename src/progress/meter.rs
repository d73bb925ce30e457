//! Tells a reporter how far a transfer is.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::{Event, Number, Numbers, Outcome, Reporter, Silent};
use crate::diag::Result;

/// Who is told of a transfer, and whether anybody still wants it.
#[derive(Clone, Copy)]
pub struct Audience<'a> {
    pub reporter: &'a dyn Reporter,
    pub numbers: &'a Numbers,
    pub canceled: &'a AtomicBool,
}

impl<'a> Audience<'a> {
    /// Nobody looks, and nobody cancels.
    pub fn nobody() -> Audience<'static> {
        static NUMBERS: Numbers = Numbers(AtomicUsize::new(0));
        static NEVER: AtomicBool = AtomicBool::new(false);
        Audience { reporter: &Silent, numbers: &NUMBERS, canceled: &NEVER }
    }

    /// Shows `work` as a step of its own. One that transferred nothing is shown as cached; one that
    /// fails after it was canceled is none that failed.
    pub fn show<T>(&self, title: &str, work: impl FnOnce(&Meter<'a>) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let (reporter, number) = (self.reporter, self.numbers.next());
        reporter.report(Event::Started { number, title });
        let zero = || AtomicU64::new(0);
        let (done_bytes, total_bytes, told_bytes) = (zero(), zero(), zero());
        let has_worked = AtomicBool::new(false);
        let meter =
            Meter { reporter, canceled: self.canceled, number, done_bytes, total_bytes, told_bytes, has_worked };
        let result = work(&meter);
        let outcome = match &result {
            Err(_) if self.canceled.load(Ordering::Relaxed) => Outcome::Canceled,
            Err(error) => {
                reporter.report(Event::Fault { number, message: &error.message });
                Outcome::Failed
            }
            Ok(_) if meter.is_idle() => Outcome::Cached,
            Ok(_) => Outcome::Done,
        };
        reporter.report(Event::Finished { number, outcome, elapsed: begun.elapsed(), added_bytes: None });
        result
    }
}

/// Counts the bytes of one pull, push, download or export; shared by its threads.
pub struct Meter<'a> {
    reporter: &'a dyn Reporter,
    canceled: &'a AtomicBool,
    number: Number,
    done_bytes: AtomicU64,
    /// 0 while it is not known.
    total_bytes: AtomicU64,
    told_bytes: AtomicU64,
    has_worked: AtomicBool,
}

impl Meter<'_> {
    /// A line about what is done.
    pub fn say(&self, line: &str) {
        self.reporter.report(Event::Output { number: self.number, bytes: format!("{line}\n").as_bytes() });
    }

    /// Something is done, even if nothing is transferred.
    pub fn work(&self) {
        self.has_worked.store(true, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.done_bytes.load(Ordering::Relaxed) == 0 && !self.has_worked.load(Ordering::Relaxed)
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

/// Counts what is read or written through it, and fails once that is to end.
pub struct Metered<'a, R> {
    pub inner: R,
    pub meter: &'a Meter<'a>,
}

impl<R> Metered<'_, R> {
    fn go_on(&self) -> io::Result<()> {
        match self.meter.canceled.load(Ordering::Relaxed) {
            true => Err(io::Error::other("canceled")),
            false => Ok(()),
        }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.go_on()?;
        let count = self.inner.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}

impl<W: Write> Write for Metered<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.go_on()?;
        let count = self.inner.write(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
