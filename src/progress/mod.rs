//! What a build tells while it runs, and who shows it.
//!
//! A step is told of in this order: `Started`, `Missed` if it has to run, any number of `Output` and
//! `Progress`, `Exited` if it was a container, `Fault` if it failed, `Finished`. Steps run side by side
//! and their events mix. `Ended` comes last, once.
//!
//! | reporter     | shows                                                         |
//! |--------------|---------------------------------------------------------------|
//! | [`Plain`]    | `#3 …` lines, for logs                                        |
//! | [`Terminal`] | running steps and the end of their output, redrawn in place   |
//! | [`Json`]     | one object a line, for programs                               |
//! | [`Silent`]   | nothing                                                       |
//!
//! Showing never fails a build: when nobody reads any more, a reporter falls silent.

mod held;
mod json;
mod meter;
mod plain;
mod screen;
mod table;
mod terminal;
mod text;
mod ticker;
pub mod units;
mod usage;

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::diag::Diagnostic;

pub use held::Held;
pub use json::Json;
pub use meter::{Audience, Meter, Metered};
pub use plain::Plain;
pub use screen::Size;
pub use terminal::Terminal;
pub use text::{Tail, defuse, fit};
pub use usage::Usage;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Cached,
    Done,
    Failed,
    Canceled,
}

/// Numbers steps in the order they are first told of: `#1`, `#2`, ….
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub usize);

/// Gives out numbers, from `#1` on.
#[derive(Debug, Default)]
pub struct Numbers(AtomicUsize);

impl Numbers {
    pub fn next(&self) -> Number {
        Number(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// How the container of a step ended, and what it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// `None` where a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    #[serde(flatten)]
    pub usage: Usage,
}

#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// `title` as in `[build 2/5] RUN make`.
    Started {
        number: Number,
        title: &'a str,
    },
    /// The cache has no result of the step: it is executed now.
    Missed {
        number: Number,
        /// What changed since it last ran, a line each; empty where nobody asked.
        reasons: &'a [String],
    },
    /// Bytes a step wrote, whole lines or not.
    Output {
        number: Number,
        bytes: &'a [u8],
    },
    /// How far a transfer is.
    Progress {
        number: Number,
        done_bytes: u64,
        total_bytes: Option<u64>,
    },
    /// The step's container is over.
    Exited {
        number: Number,
        exit: Exit,
    },
    /// Why the step is about to finish as [`Outcome::Failed`].
    Fault {
        number: Number,
        message: &'a str,
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

    /// Leaves the terminal to others: nothing more will be reported. Shows the table of steps if
    /// [`Event::Ended`] was not reported.
    fn close(&self) {}
}

/// Shows nothing.
pub struct Silent;

impl Reporter for Silent {
    fn report(&self, _: Event<'_>) {}
}

/// Where the output of one step is written to: passes it on to the reporter and keeps its end.
/// Writing never fails.
pub struct Output<'a> {
    reporter: &'a dyn Reporter,
    number: Number,
    tail: Tail,
}

impl<'a> Output<'a> {
    pub fn new(reporter: &'a dyn Reporter, number: Number) -> Self {
        Self { reporter, number, tail: Tail::default() }
    }

    pub fn tail(&self) -> &Tail {
        &self.tail
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.push(bytes);
        self.reporter.report(Event::Output { number: self.number, bytes });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Time since the reporter was made.
pub type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

fn stopwatch() -> Clock {
    let start = Instant::now();
    Box::new(move || start.elapsed())
}

/// A warning as lines of text: where, what, which rule; then what may help.
fn warning_lines(warning: &Diagnostic) -> Vec<String> {
    let place = warning.labels.first().map_or(String::new(), |label| {
        let (line, column) = label.source.position(label.span.start as usize);
        format!("{}:{line}:{column}: ", label.source.name)
    });
    let rule = warning.rule.map_or(String::new(), |rule| format!(" [{rule}]"));
    let mut lines = vec![format!("{place}warning: {}{rule}", warning.message)];
    lines.extend(warning.cause.iter().map(|cause| format!("  cause: {cause}")));
    lines.extend(warning.hints.iter().map(|hint| format!("  hint: {hint}")));
    lines.iter().map(|line| defuse(line.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn output_is_passed_on_and_its_end_kept() {
        struct Seen(Mutex<Vec<u8>>);
        impl Reporter for Seen {
            fn report(&self, event: Event<'_>) {
                if let Event::Output { number: Number(7), bytes } = event {
                    self.0.lock().unwrap().extend_from_slice(bytes);
                }
            }
        }
        let seen = Seen(Mutex::default());
        let mut output = Output::new(&seen, Number(7));
        output.write_all(b"one\ntw").unwrap();
        output.write_all(b"o\n").unwrap();
        assert_eq!(output.tail().lines(), ["one", "two"]);
        assert_eq!(*seen.0.lock().unwrap(), b"one\ntwo\n");
    }
}
