//! What a build tells while it runs, and who shows it.

use std::time::Duration;

use crate::diag::Diagnostic;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Cached,
    Done,
    Failed,
    Canceled,
}

/// Numbers steps in the order they are first told of: `#1`, `#2`, ….
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub usize);

#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// `title` as in `[build 2/5] RUN make`.
    Started {
        number: Number,
        title: &'a str,
    },
    /// Bytes a step wrote, whole lines or not.
    Output {
        number: Number,
        bytes: &'a [u8],
    },
    Finished {
        number: Number,
        outcome: Outcome,
        elapsed: Duration,
        /// Bytes of files the step added; `None` where it makes no layer.
        added_bytes: Option<u64>,
    },
    Warning(&'a Diagnostic),
    /// Everything is over; the table of steps follows.
    Ended,
}

/// Shows events; called from several threads.
pub trait Reporter: Send + Sync {
    fn report(&self, event: Event<'_>);
}
