//! Progress for programs: one JSON object a line. `event` says which; `at_ms` is the time since the
//! build began.
//!
//! ```text
//! {"event":"started","at_ms":0,"number":1,"title":"[1/2] FROM busybox"}
//! {"event":"missed","at_ms":1,"number":2,"reasons":["ENV A changed: was `1`, is `2`"]}
//! {"event":"output","at_ms":20,"number":2,"text":"one line, without its line feed"}
//! {"event":"progress","at_ms":20,"number":1,"done_bytes":10,"total_bytes":20}
//! {"event":"exited","at_ms":30,"number":2,"code":1,"cpu_us":800,"memory_bytes":4096,"read_bytes":0,"written_bytes":0}
//! {"event":"fault","at_ms":30,"number":2,"message":"process … exit code: 1"}
//! {"event":"finished","at_ms":30,"number":2,"outcome":"failed","elapsed_ms":10,"added_bytes":5}
//! {"event":"warning","at_ms":30,"rule":"…","message":"…","source":"Dockerfile","line":3,"column":1,…}
//! {"event":"ended","at_ms":31}
//! ```
//!
//! A line that is no UTF-8 has `bytes`, a list of numbers, beside a `text` with replacements. Keys
//! without a value are left out; more may be added.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::text::Lines;
use super::{Clock, Event, Exit, Number, Outcome, Reporter, stopwatch};
use crate::diag::Diagnostic;

pub struct Json<W> {
    clock: Clock,
    state: Mutex<State<W>>,
}

struct State<W> {
    writer: W,
    is_broken: bool,
    lines: BTreeMap<usize, Lines>,
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    at_ms: u128,
    #[serde(flatten)]
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Started {
        number: usize,
        title: &'a str,
    },
    Missed {
        number: usize,
        reasons: &'a [String],
    },
    Exited {
        number: usize,
        #[serde(flatten)]
        exit: Exit,
    },
    Output {
        number: usize,
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        bytes: Option<&'a [u8]>,
    },
    Progress {
        number: usize,
        done_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        total_bytes: Option<u64>,
    },
    Fault {
        number: usize,
        message: &'a str,
    },
    Finished {
        number: usize,
        outcome: Outcome,
        elapsed_ms: u128,
        #[serde(skip_serializing_if = "Option::is_none")]
        added_bytes: Option<u64>,
    },
    Warning {
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<&'static str>,
        message: &'a str,
        #[serde(flatten)]
        place: Option<Place<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<&'a str>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        hints: &'a [String],
    },
    Ended {},
}

#[derive(Serialize)]
struct Place<'a> {
    source: &'a str,
    line: usize,
    column: usize,
}

impl<W: Write + Send> Json<W> {
    pub fn new(writer: W) -> Self {
        Self::with_clock(writer, stopwatch())
    }

    pub fn with_clock(writer: W, clock: Clock) -> Self {
        Self { clock, state: Mutex::new(State { writer, is_broken: false, lines: BTreeMap::new() }) }
    }
}

impl<W: Write + Send> Reporter for Json<W> {
    fn report(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at_ms = (self.clock)().as_millis();
        match event {
            Event::Started { number: Number(number), title } => {
                state.write("started", at_ms, Body::Started { number, title });
            }
            Event::Missed { reasons: [], .. } => {}
            Event::Missed { number: Number(number), reasons } => {
                state.write("missed", at_ms, Body::Missed { number, reasons });
            }
            Event::Exited { number: Number(number), exit } => {
                if let Some(line) = state.lines.get_mut(&number).and_then(Lines::finish) {
                    state.output(number, at_ms, &line);
                }
                state.write("exited", at_ms, Body::Exited { number, exit });
            }
            Event::Output { number: Number(number), bytes } => {
                let mut whole = Vec::new();
                state.lines.entry(number).or_default().push(bytes, |line| whole.push(line.to_vec()));
                for line in whole {
                    state.output(number, at_ms, &line);
                }
            }
            Event::Progress { number: Number(number), done_bytes, total_bytes } => {
                state.write("progress", at_ms, Body::Progress { number, done_bytes, total_bytes });
            }
            Event::Fault { number: Number(number), message } => {
                state.write("fault", at_ms, Body::Fault { number, message });
            }
            Event::Finished { number: Number(number), outcome, elapsed, added_bytes } => {
                if let Some(line) = state.lines.remove(&number).and_then(|mut lines| lines.finish()) {
                    state.output(number, at_ms, &line);
                }
                let elapsed_ms = elapsed.as_millis();
                state.write("finished", at_ms, Body::Finished { number, outcome, elapsed_ms, added_bytes });
            }
            Event::Warning(warning) => state.write("warning", at_ms, body(warning)),
            Event::Ended => state.write("ended", at_ms, Body::Ended {}),
        }
    }
}

fn body(warning: &Diagnostic) -> Body<'_> {
    let place = warning.labels.first().map(|label| {
        let (line, column) = label.source.position(label.span.start as usize);
        Place { source: &label.source.name, line, column }
    });
    Body::Warning {
        rule: warning.rule,
        message: &warning.message,
        place,
        cause: warning.cause.as_deref(),
        hints: &warning.hints,
    }
}

impl<W: Write> State<W> {
    fn output(&mut self, number: usize, at_ms: u128, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let bytes = std::str::from_utf8(line).is_err().then_some(line);
        self.write("output", at_ms, Body::Output { number, text: &text, bytes });
    }

    /// Nothing more is written once nobody reads.
    fn write(&mut self, event: &'static str, at_ms: u128, body: Body<'_>) {
        if self.is_broken {
            return;
        }
        let written = serde_json::to_vec(&Line { event, at_ms, body }).map_err(Into::into).and_then(|mut line| {
            line.push(b'\n');
            self.writer.write_all(&line)?;
            self.writer.flush()
        });
        self.is_broken = written.is_err();
    }
}
