//! What builds left: for each a record (when, what, how it ended, its steps) and all that its steps
//! wrote.
//!
//! ```text
//! builds/<start, ms since the epoch>-<id>   a [`Build`] as JSON, where nothing had to run
//! builds/<start, ms since the epoch>-<id>/  where something had
//!   record      the same, when the build is over
//!   events      while it runs: what is known of it so far, an [`Entry`] a line
//!   3.log       what step 3 wrote, byte for byte
//!   3.times     when: lines of `<offset in 3.log> <ms since the step began>`
//! ```
//!
//! Of a build that was killed the events and the output stay as they were: it shows as interrupted. A secret that a step prints is in its output.

mod builds;
mod output;
mod recorder;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::progress::{Exit, Outcome};

pub use builds::{Builds, Found};
pub use output::{Lines, Output};
pub use recorder::{Recorder, Writes};

/// As many builds are kept.
pub const KEPT: usize = 100;
/// And for so long.
pub const KEPT_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// What is known of a build when it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Since the epoch.
    pub started_ms: i64,
    /// The names the image is to get.
    pub names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// As the user named it.
    pub dockerfile: String,
    pub context: String,
    pub platforms: Vec<String>,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    Done,
    Failed,
    /// By a signal.
    Stopped,
    /// Killed, or the power went.
    Interrupted,
    /// It has not.
    Running,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub outcome: Ending,
    pub elapsed_ms: u64,
    /// Image IDs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// As they were shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub title: String,
    /// Since the build began.
    pub started_ms: u64,
    /// `None`: it did not come to an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_ms: Option<u64>,
    /// Bytes of files it added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_bytes: Option<u64>,
    /// Of its container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why it was not cached, where that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// All that is known of a build but the output of its steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    #[serde(flatten)]
    pub head: Head,
    /// By number.
    pub steps: BTreeMap<usize, Step>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// A piece of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Head(Head),
    Started { number: usize, title: String, at_ms: u64 },
    Missed { number: usize, reasons: Vec<String> },
    Exited { number: usize, exit: Exit },
    Fault { number: usize, message: String },
    Finished { number: usize, outcome: Outcome, elapsed_ms: u64, added_bytes: Option<u64> },
}

impl Build {
    /// Steps, and how many of them were cached.
    pub fn counts(&self) -> (usize, usize) {
        let is_cached = |step: &&Step| step.outcome == Some(Outcome::Cached);
        (self.steps.len(), self.steps.values().filter(is_cached).count())
    }

    /// What a person calls it: the names of its image, or what was built.
    pub fn name(&self) -> String {
        let name = match self.head.names.as_slice() {
            [] => self.head.dockerfile.clone(),
            names => names.join(", "),
        };
        match &self.head.target {
            Some(target) => format!("{name} ({target})"),
            None => name,
        }
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Head(head) => self.head = head,
            Entry::Started { number, title, at_ms } => {
                let step = Step {
                    title,
                    started_ms: at_ms,
                    outcome: None,
                    elapsed_ms: None,
                    added_bytes: None,
                    exit: None,
                    reasons: Vec::new(),
                    fault: None,
                };
                self.steps.insert(number, step);
            }
            Entry::Missed { number, reasons } => self.change(number, |step| step.reasons = reasons),
            Entry::Exited { number, exit } => self.change(number, |step| step.exit = Some(exit)),
            Entry::Fault { number, message } => self.change(number, |step| step.fault = Some(message)),
            Entry::Finished { number, outcome, elapsed_ms, added_bytes } => self.change(number, |step| {
                step.outcome = Some(outcome);
                step.elapsed_ms = Some(elapsed_ms);
                step.added_bytes = added_bytes;
            }),
        }
    }

    fn change(&mut self, number: usize, change: impl FnOnce(&mut Step)) {
        if let Some(step) = self.steps.get_mut(&number) {
            change(step);
        }
    }
}
