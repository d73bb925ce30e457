//! Progress as lines of a log:
//!
//! ```text
//! #2 [build 2/3] RUN make
//! #2 runs: `src/main.c` changed
//! #2 0.105 cc -c main.c
//! #2 ...
//!
//! #3 [docs 2/2] RUN make doc
//! #3 DONE 0.3s (cpu 0.2s, memory 4.1 MiB)
//!
//! #2 [build 2/3] RUN make
//! #2 1.250 cc -o app
//! #2 DONE 1.3s
//! ```
//!
//! Lines of one step stand together: while a step is speaking the others wait, for a bounded time
//! and a bounded number of bytes. `#2 ...` says that the step goes on further down.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::table::Table;
use super::text::{Lines, defuse};
use super::ticker::Ticker;
use super::units::{seconds, size};
use super::{Clock, Event, Number, Outcome, Reporter, Usage, stopwatch, warning_lines};

/// Columns of the table of steps: a log has no width of its own.
const TABLE_COLUMNS: usize = 100;
/// A step silent for so long gives way to one that has something to say.
const SILENCE: Duration = Duration::from_secs(1);
/// No step is kept waiting for longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// No step keeps more back.
const WAITING_BYTES: usize = 32 << 10;
/// What came from the cache is written together, up to so much of it.
const GATHERED_BYTES: usize = 32 << 10;
/// A transfer says how far it is no more often.
const TRANSFER_PERIOD: Duration = Duration::from_secs(5);

pub struct Plain<W> {
    state: Arc<Mutex<State<W>>>,
    _ticker: Option<Ticker>,
}

struct State<W> {
    writer: W,
    is_broken: bool,
    is_ended: bool,
    is_terminal: bool,
    clock: Clock,
    steps: BTreeMap<Number, Step>,
    current: Option<Number>,
    /// When `current` last wrote something.
    spoke_at: Duration,
    last: Block,
    /// Not written yet. A write for each of many cached steps would cost more than to find them.
    gathered: Vec<u8>,
    table: Table,
}

/// What the last line written belongs to.
#[derive(PartialEq)]
enum Block {
    None,
    Step,
    Warnings,
}

struct Step {
    title: String,
    started_at: Duration,
    lines: Lines,
    /// When the unfinished line began.
    line_at: Option<Duration>,
    /// Whole lines not written yet.
    waiting: Vec<u8>,
    waiting_since: Option<Duration>,
    transfer_at: Duration,
    fault: Option<String>,
    usage: Option<Usage>,
    is_finished: bool,
}

impl<W: Write + Send + 'static> Plain<W> {
    /// `is_terminal` says that `writer` is one: then the output of steps is defused, else its bytes
    /// are written as they are. Starts a thread.
    pub fn new(writer: W, is_terminal: bool) -> Self {
        let mut plain = Self::with_clock(writer, is_terminal, stopwatch());
        let state = Arc::clone(&plain.state);
        plain._ticker = Some(Ticker::start(SILENCE / 2, move || lock(&state).tick()));
        plain
    }

    /// With a time of one's own and without a thread: [`Plain::tick`] takes its place.
    pub fn with_clock(writer: W, is_terminal: bool, clock: Clock) -> Self {
        let state = State {
            writer,
            is_broken: false,
            is_ended: false,
            is_terminal,
            clock,
            steps: BTreeMap::new(),
            current: None,
            spoke_at: Duration::ZERO,
            last: Block::None,
            gathered: Vec::new(),
            table: Table::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), _ticker: None }
    }

    /// Lets steps speak that have waited long enough.
    pub fn tick(&self) {
        lock(&self.state).tick();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write + Send> Reporter for Plain<W> {
    fn report(&self, event: Event<'_>) {
        lock(&self.state).take(&event);
    }

    fn close(&self) {
        lock(&self.state).end();
    }
}

impl<W: Write> State<W> {
    fn take(&mut self, event: &Event<'_>) {
        self.table.observe(event);
        let now = (self.clock)();
        match *event {
            Event::Started { number, title } => {
                let step = Step {
                    title: defuse(title.as_bytes()),
                    started_at: now,
                    lines: Lines::default(),
                    line_at: None,
                    waiting: Vec::new(),
                    waiting_since: Some(now),
                    transfer_at: now,
                    fault: None,
                    usage: None,
                    is_finished: false,
                };
                self.steps.insert(number, step);
            }
            Event::Missed { number, reasons } => {
                let Some(step) = self.steps.get_mut(&number) else { return };
                for reason in reasons {
                    step.say(number, None, format!("runs: {}", defuse(reason.as_bytes())).as_bytes(), now);
                }
            }
            Event::Output { number, bytes } => {
                let is_terminal = self.is_terminal;
                let Some(step) = self.steps.get_mut(&number) else { return };
                step.output(number, bytes, now, is_terminal);
            }
            Event::Progress { number, done_bytes, total_bytes } => {
                let Some(step) = self.steps.get_mut(&number) else { return };
                if now < step.transfer_at + TRANSFER_PERIOD {
                    return;
                }
                step.transfer_at = now;
                let total = total_bytes.map_or(String::new(), |total| format!(" of {}", size(total)));
                step.say(number, Some(now), format!("{}{total}", size(done_bytes)).as_bytes(), now);
            }
            Event::Exited { number, exit } => {
                let Some(step) = self.steps.get_mut(&number) else { return };
                step.usage = Some(exit.usage);
            }
            Event::Fault { number, message } => {
                let Some(step) = self.steps.get_mut(&number) else { return };
                step.fault = Some(defuse(message.as_bytes()));
            }
            Event::Finished { number, outcome, elapsed, .. } => {
                let is_terminal = self.is_terminal;
                let Some(step) = self.steps.get_mut(&number) else { return };
                step.end_line(number, now, is_terminal);
                let end = match outcome {
                    Outcome::Cached => "CACHED".into(),
                    Outcome::Done => match step.usage {
                        Some(usage) => format!("DONE {} ({})", seconds(elapsed), usage.line()),
                        None => format!("DONE {}", seconds(elapsed)),
                    },
                    Outcome::Canceled => "CANCELED".into(),
                    Outcome::Failed => match step.fault.take() {
                        Some(message) => format!("ERROR: {message}"),
                        None => "ERROR".into(),
                    },
                };
                step.say(number, None, end.as_bytes(), now);
                step.is_finished = true;
            }
            Event::Warning(warning) => {
                self.warn(&warning_lines(warning));
                return;
            }
            Event::Ended => {
                self.end();
                return;
            }
        }
        self.advance();
        let is_more_to_come = matches!(event, Event::Started { .. } | Event::Finished { outcome: Outcome::Cached, .. });
        if !is_more_to_come || self.gathered.len() > GATHERED_BYTES {
            self.flush();
        }
    }

    fn tick(&mut self) {
        self.advance();
        self.flush();
    }

    /// Gathers what may be written now.
    fn advance(&mut self) {
        let now = (self.clock)();
        let mut text = std::mem::take(&mut self.gathered);
        while self.speak(&mut text, now, PATIENCE) {}
        self.gathered = text;
    }

    /// Appends to `text` what the next step in turn has to say; false if nothing is due.
    fn speak(&mut self, text: &mut Vec<u8>, now: Duration, patience: Duration) -> bool {
        if let Some((number, step)) = self.current.and_then(|number| Some((number, self.steps.get_mut(&number)?))) {
            if step.waiting_since.take().is_some() {
                text.append(&mut step.waiting);
                self.spoke_at = now;
            }
            if step.is_finished {
                self.steps.remove(&number);
                self.current = None;
                return true;
            }
            let is_silent = now >= self.spoke_at + SILENCE;
            let is_due = |step: &Step| {
                let Some(since) = step.waiting_since else { return false };
                is_silent || now >= since + patience || step.waiting.len() > WAITING_BYTES
            };
            if !self.steps.values().any(is_due) {
                return false;
            }
            self.interrupt(text);
        }
        let longest = self.steps.iter().filter_map(|(number, step)| Some((step.waiting_since?, *number))).min();
        let Some((_, number)) = longest else { return false };
        if self.last != Block::None {
            text.push(b'\n');
        }
        self.last = Block::Step;
        text.extend_from_slice(format!("#{} {}\n", number.0, self.steps[&number].title).as_bytes());
        self.current = Some(number);
        true
    }

    /// Says of the step that is speaking that it goes on further down.
    fn interrupt(&mut self, text: &mut Vec<u8>) {
        if let Some(number) = self.current.take() {
            text.extend_from_slice(format!("#{} ...\n", number.0).as_bytes());
        }
    }

    fn warn(&mut self, lines: &[String]) {
        let mut text = std::mem::take(&mut self.gathered);
        self.interrupt(&mut text);
        if self.last == Block::Step {
            text.push(b'\n');
        }
        self.last = Block::Warnings;
        for line in lines {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        self.gathered = text;
        self.flush();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        let now = (self.clock)();
        let is_terminal = self.is_terminal;
        for (number, step) in &mut self.steps {
            step.end_line(*number, now, is_terminal);
        }
        let mut text = std::mem::take(&mut self.gathered);
        while self.speak(&mut text, now, Duration::ZERO) {}
        let table = self.table.lines(TABLE_COLUMNS, now);
        if !table.is_empty() {
            text.push(b'\n');
        }
        for line in table {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        self.gathered = text;
        self.flush();
    }

    /// A reader that went away (EPIPE) or a full disk must not stop the build: nothing more is
    /// written then.
    fn flush(&mut self) {
        if !self.gathered.is_empty() && !self.is_broken {
            self.is_broken = self.writer.write_all(&self.gathered).and_then(|()| self.writer.flush()).is_err();
        }
        self.gathered.clear();
    }
}

impl Step {
    fn output(&mut self, number: Number, bytes: &[u8], now: Duration, is_terminal: bool) {
        let mut whole = Vec::new();
        self.lines.push(bytes, |line| whole.push(line.to_vec()));
        for line in whole {
            // A line's time is that of its first byte.
            let at = self.line_at.take().unwrap_or(now);
            self.say_output(number, at, &line, now, is_terminal);
        }
        if !self.lines.partial().is_empty() {
            self.line_at.get_or_insert(now);
        }
    }

    /// The unfinished line counts as a line when nothing more will come.
    fn end_line(&mut self, number: Number, now: Duration, is_terminal: bool) {
        if let Some(line) = self.lines.finish() {
            let at = self.line_at.take().unwrap_or(now);
            self.say_output(number, at, &line, now, is_terminal);
        }
    }

    fn say_output(&mut self, number: Number, at: Duration, line: &[u8], now: Duration, is_terminal: bool) {
        if is_terminal {
            self.say(number, Some(at), defuse(line).as_bytes(), now);
        } else {
            self.say(number, Some(at), line, now);
        }
    }

    /// Queues one line, with the time since the step's start if it has one.
    fn say(&mut self, number: Number, at: Option<Duration>, line: &[u8], now: Duration) {
        self.waiting_since.get_or_insert(now);
        let head = match at {
            Some(at) => format!("#{} {:.3} ", number.0, at.saturating_sub(self.started_at).as_secs_f64()),
            None => format!("#{} ", number.0),
        };
        self.waiting.extend_from_slice(head.as_bytes());
        self.waiting.extend_from_slice(line);
        self.waiting.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A pipe whose reader went away.
    struct Closed(Arc<AtomicUsize>);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_asked_once() {
        let writes = Arc::new(AtomicUsize::new(0));
        let plain = Plain::with_clock(Closed(Arc::clone(&writes)), false, Box::new(|| Duration::ZERO));
        for number in [Number(1), Number(2)] {
            plain.report(Event::Started { number, title: "RUN true" });
            plain.report(Event::Output { number, bytes: b"text\n" });
            let elapsed = Duration::ZERO;
            plain.report(Event::Finished { number, outcome: Outcome::Done, elapsed, added_bytes: None });
        }
        plain.report(Event::Ended);
        assert_eq!(writes.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn events_of_steps_never_started_are_ignored() {
        let plain = Plain::with_clock(io::sink(), false, Box::new(|| Duration::ZERO));
        plain.report(Event::Output { number: Number(9), bytes: b"x\n" });
        plain.report(Event::Fault { number: Number(9), message: "x" });
        plain.report(Event::Ended);
    }
}
