//! Writes the record of a build while it runs: a reporter that passes on what it is told.
//!
//! As long as everything is found in the cache nothing is written. Recording never fails a build:
//! what cannot be written is left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Build, Builds, End, Ending, Entry, Head, Output};
use crate::digest::Digest;
use crate::progress::{self, Event, Number, Reporter};
use crate::store::{BuildDir, Store};

/// Digits of an ID.
const ID: usize = 12;

/// When a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// From the first step on that has to run, so that a killed build leaves what there was.
    AsItComes,
    /// As a whole: of a process that may give way to another before then.
    AtTheEnd,
}

pub struct Recorder<'a> {
    store: &'a Store,
    reporter: &'a dyn Reporter,
    writes: Writes,
    id: String,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    build: Build,
    live: Live,
    outputs: BTreeMap<usize, Option<Output>>,
}

/// Where entries go.
enum Live {
    /// Nowhere: so far there is nothing that the next build would not find in the cache as well.
    NotYet,
    Yes(BuildDir, File),
    /// It cannot be written.
    Never,
}

impl<'a> Recorder<'a> {
    /// Passes on to `reporter`. The build begins now.
    pub fn new(store: &'a Store, reporter: &'a dyn Reporter, head: Head, writes: Writes) -> Self {
        let begun = Instant::now();
        // Unlike any other's: nothing of it gets into an image.
        let unique = format!("{} {} {begun:?} {}", head.started_ms, std::process::id(), head.context);
        let id = Digest::of(unique.as_bytes()).hex()[..ID].to_owned();
        let build = Build { head, ..Build::default() };
        let state = State { build, live: Live::NotYet, outputs: BTreeMap::new() };
        Self { store, reporter, writes, id, begun, state: Mutex::new(state) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a step failed that wrote something.
    pub fn has_output_of_failure(&self) -> bool {
        let state = self.state();
        let mut failed = state.build.steps.iter().filter(|(_, step)| step.outcome == Some(progress::Outcome::Failed));
        failed.any(|(number, _)| state.outputs.contains_key(number))
    }

    /// The build is over: writes its record and lets old ones go. What is reported later, or said a
    /// second time, is not recorded.
    pub fn finish(&self, outcome: Ending, images: Vec<String>, errors: Vec<String>) {
        let mut state = self.state();
        if state.build.end.is_some() {
            return;
        }
        let elapsed_ms = milliseconds(self.begun.elapsed());
        state.build.end = Some(End { outcome, elapsed_ms, images, errors });
        state.outputs.values_mut().for_each(|output| *output = None);
        // A struct of strings and numbers always serialises.
        let record = serde_json::to_vec(&state.build).unwrap_or_default();
        // Where it cannot be written there is no record.
        let _ = match std::mem::replace(&mut state.live, Live::Never) {
            Live::NotYet => self.store.put_build(&self.name(&state.build), &record),
            Live::Yes(dir, _events) => dir.end(&record),
            Live::Never => Ok(()),
        };
        let now_ms = state.build.head.started_ms + i64::try_from(elapsed_ms).unwrap_or(0);
        let _ = Builds::of(self.store).expire(now_ms);
    }

    fn name(&self, build: &Build) -> String {
        format!("{:013}-{}", build.head.started_ms, self.id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everything is written as it comes, so that a killed build leaves it.
    fn go_live(&self, state: &mut State) {
        if !matches!(state.live, Live::NotYet) || self.writes == Writes::AtTheEnd {
            return;
        }
        state.live = match self.store.begin_build(&self.name(&state.build)) {
            Ok((dir, events)) => Live::Yes(dir, events),
            Err(_) => Live::Never,
        };
        state.append(&Entry::Head(state.build.head.clone()));
        for (number, step) in &state.build.steps.clone() {
            let (number, title, at_ms) = (*number, step.title.clone(), step.started_ms);
            state.append(&Entry::Started { number, title, at_ms });
            if let (Some(outcome), Some(elapsed_ms)) = (step.outcome, step.elapsed_ms) {
                state.append(&Entry::Finished { number, outcome, elapsed_ms, added_bytes: step.added_bytes });
            }
        }
    }
}

impl Reporter for Recorder<'_> {
    fn report(&self, event: Event<'_>) {
        self.reporter.report(event.clone());
        let mut state = self.state();
        let now_ms = || milliseconds(self.begun.elapsed());
        let entry = match event {
            Event::Started { number: Number(number), title } => {
                Entry::Started { number, title: title.to_owned(), at_ms: now_ms() }
            }
            Event::Missed { number: Number(number), reasons } => {
                self.go_live(&mut state);
                Entry::Missed { number, reasons: reasons.to_vec() }
            }
            Event::Output { number: Number(number), bytes } => {
                self.go_live(&mut state);
                state.output(number, bytes, now_ms());
                return;
            }
            Event::Progress { .. } => return self.go_live(&mut state),
            Event::Exited { number: Number(number), exit } => Entry::Exited { number, exit },
            Event::Fault { number: Number(number), message } => Entry::Fault { number, message: message.to_owned() },
            Event::Finished { number: Number(number), outcome, elapsed, added_bytes } => {
                // Closes its files.
                state.outputs.entry(number).and_modify(|output| *output = None);
                Entry::Finished { number, outcome, elapsed_ms: milliseconds(elapsed), added_bytes }
            }
            Event::Warning(_) | Event::Ended => return,
        };
        state.append(&entry);
        state.build.apply(entry);
    }

    fn close(&self) {
        self.reporter.close();
    }
}

impl State {
    fn append(&mut self, entry: &Entry) {
        let Live::Yes(_, events) = &mut self.live else { return };
        let Ok(mut line) = serde_json::to_vec(entry) else { return };
        line.push(b'\n');
        // One call, so that a reader sees whole lines.
        if events.write_all(&line).is_err() {
            self.live = Live::Never;
        }
    }

    fn output(&mut self, number: usize, bytes: &[u8], now_ms: u64) {
        let Some(step) = self.build.steps.get(&number) else { return };
        let Live::Yes(dir, _) = &self.live else { return };
        let output = self.outputs.entry(number).or_insert_with(|| Output::create(dir, number).ok());
        if let Some(open) = output
            && open.write(bytes, now_ms.saturating_sub(step.started_ms)).is_err()
        {
            *output = None;
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
