//! Progress on a terminal: finished steps leave a line, and below them running steps are redrawn in
//! place with the last lines they wrote.
//!
//! ```text
//!  => CACHED [1/5] FROM busybox
//!  => [2/5] COPY . /src  0.1s
//!  => [3/5] RUN ./configure  cpu 1.2s, 45 MiB  2.1s
//! building 5.4s, 3 done
//!  => [4/5] RUN make  3.2s
//!     cc -c main.c
//!     cc -c parse.c
//! ```
//!
//! indicatif redraws; what it draws is one text, laid out by [`view`] for the size of the moment.
//! No byte of a step's output reaches the terminal but as defused text.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::screen::{Screen, Size, size_of};
use super::table::Table;
use super::text::{Lines, defuse, fit};
use super::ticker::Ticker;
use super::units::{binary_size, duration, size};
use super::{Clock, Event, Number, Outcome, Reporter, Usage, stopwatch, warning_lines};

const FRAME: Duration = Duration::from_millis(100);
/// Lines of output shown of a running step, where there is room.
const OUTPUT_LINES: usize = 6;
const TABLE_COLUMNS: usize = 100;
/// Sooner nobody knows how fast it is.
const RATE_MS: u128 = 500;
/// In a narrower window a step's title takes all the room.
const COST_COLUMNS: usize = 60;

/// The live view is gone when this is closed or dropped, whether the build ended or not.
/// While it lives nobody else should write to the terminal.
pub struct Terminal {
    state: Arc<Mutex<State>>,
    _ticker: Option<Ticker>,
}

struct State {
    clock: Clock,
    has_color: bool,
    is_ended: bool,
    screen: Screen,
    bar: ProgressBar,
    running: BTreeMap<Number, Running>,
    done: usize,
    table: Table,
}

struct Running {
    title: String,
    started_at: Duration,
    lines: Lines,
    /// The last lines written, defused; never an empty one.
    shown: VecDeque<String>,
    transfer: Option<Transfer>,
    /// Why it was not cached.
    reasons: Vec<String>,
    fault: Option<String>,
    usage: Option<Usage>,
}

/// How far a transfer is.
#[derive(Clone, Copy)]
struct Transfer {
    done_bytes: u64,
    total_bytes: Option<u64>,
    /// When, and how far, it was first heard of: what was there before then says nothing of the rate.
    since: (Duration, u64),
}

impl Transfer {
    /// `4.1 MB / 9.0 MB  1.2 MB/s`
    fn show(&self, now: Duration) -> String {
        let total = self.total_bytes.map_or(String::new(), |total| format!(" / {}", size(total)));
        let (since, before) = self.since;
        let elapsed_ms = now.saturating_sub(since).as_millis();
        let rate = u128::from(self.done_bytes.saturating_sub(before)) * 1000 / elapsed_ms.max(1);
        let rate = match u64::try_from(rate) {
            Ok(rate) if rate > 0 && elapsed_ms >= RATE_MS => format!("  {}/s", size(rate)),
            _ => String::new(),
        };
        format!("  {}{total}{rate}", size(self.done_bytes))
    }
}

impl Terminal {
    /// On the standard error stream. Starts a thread.
    pub fn new(has_color: bool) -> Self {
        let size = size_of(io::stderr());
        let mut terminal = Self::with_clock(Box::new(io::stderr()), size, has_color, stopwatch());
        let state = Arc::clone(&terminal.state);
        terminal._ticker = Some(Ticker::start(FRAME, move || lock(&state).draw()));
        terminal
    }

    /// On any writer, with a time of one's own and without a thread: [`Terminal::tick`] takes its
    /// place.
    pub fn with_clock(writer: Box<dyn Write + Send>, size: Size, has_color: bool, clock: Clock) -> Self {
        let screen = Screen::new(writer, size);
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        let state = State {
            clock,
            has_color,
            is_ended: false,
            screen,
            bar,
            running: BTreeMap::new(),
            done: 0,
            table: Table::default(),
        };
        Self { state: Arc::new(Mutex::new(state)), _ticker: None }
    }

    /// Draws the view anew.
    pub fn tick(&self) {
        lock(&self.state).draw();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporter for Terminal {
    fn report(&self, event: Event<'_>) {
        lock(&self.state).take(&event);
    }

    fn close(&self) {
        lock(&self.state).end();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let state = lock(&self.state);
        state.bar.finish_and_clear();
        state.screen.close();
    }
}

impl State {
    fn take(&mut self, event: &Event<'_>) {
        self.table.observe(event);
        match *event {
            Event::Started { number, title } => {
                let running = Running {
                    title: defuse(title.as_bytes()),
                    started_at: (self.clock)(),
                    lines: Lines::default(),
                    shown: VecDeque::new(),
                    transfer: None,
                    reasons: Vec::new(),
                    fault: None,
                    usage: None,
                };
                self.running.insert(number, running);
            }
            Event::Missed { number, reasons } => {
                if let Some(running) = self.running.get_mut(&number) {
                    running.reasons = reasons.iter().map(|reason| defuse(reason.as_bytes())).collect();
                }
            }
            Event::Output { number, bytes } => {
                if let Some(running) = self.running.get_mut(&number) {
                    running.output(bytes);
                }
            }
            Event::Progress { number, done_bytes, total_bytes } => {
                if let Some(running) = self.running.get_mut(&number) {
                    let since = running.transfer.map_or(((self.clock)(), done_bytes), |transfer| transfer.since);
                    running.transfer = Some(Transfer { done_bytes, total_bytes, since });
                }
            }
            Event::Exited { number, exit } => {
                if let Some(running) = self.running.get_mut(&number) {
                    running.usage = Some(exit.usage);
                }
            }
            Event::Fault { number, message } => {
                if let Some(running) = self.running.get_mut(&number) {
                    running.fault = Some(defuse(message.as_bytes()));
                }
            }
            Event::Finished { number, outcome, elapsed, .. } => {
                if let Some(running) = self.running.remove(&number) {
                    self.done += 1;
                    self.leave(&running.epitaph(outcome, elapsed, self.columns()), self.color(outcome));
                }
            }
            Event::Warning(warning) => self.leave(&warning_lines(warning), Some("33")),
            Event::Ended => self.end(),
        }
    }

    /// Prints lines above the view, for good.
    fn leave(&mut self, lines: &[String], color: Option<&str>) {
        self.lay_out();
        for (index, line) in lines.iter().enumerate() {
            match color {
                Some(color) if index == 0 && self.has_color => {
                    self.bar.println(format!("\x1b[{color}m{line}\x1b[0m"));
                }
                _ => self.bar.println(line),
            }
        }
    }

    fn color(&self, outcome: Outcome) -> Option<&'static str> {
        match outcome {
            Outcome::Cached | Outcome::Done => Some("34"),
            Outcome::Failed => Some("31"),
            Outcome::Canceled => Some("33"),
        }
    }

    fn draw(&mut self) {
        if !self.is_ended && !self.running.is_empty() {
            self.lay_out();
        }
    }

    /// Hands the view to indicatif, which draws it at once.
    fn lay_out(&mut self) {
        let (columns, rows) = self.screen.size();
        let lines = view(&self.running, self.done, (self.clock)(), usize::from(columns) - 1, usize::from(rows) - 1);
        self.bar.set_message(lines.join("\n"));
    }

    /// One less than there are: a full line would wrap on some terminals.
    fn columns(&self) -> usize {
        usize::from(self.screen.size().0) - 1
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        self.bar.finish_and_clear();
        let table = self.table.lines(self.columns().min(TABLE_COLUMNS), (self.clock)());
        for line in &table {
            // The screen's functions never fail.
            let _ = self.screen.write_line(line);
        }
        self.screen.close();
    }
}

impl Running {
    fn output(&mut self, bytes: &[u8]) {
        let Self { lines, shown, .. } = self;
        lines.push(bytes, |line| {
            let line = defuse(line);
            if !line.trim().is_empty() {
                if shown.len() == OUTPUT_LINES {
                    shown.pop_front();
                }
                shown.push_back(line);
            }
        });
    }

    /// What is left of a step when it is over: one line in `columns`, and why it
    /// failed.
    fn epitaph(&self, outcome: Outcome, elapsed: Duration, columns: usize) -> Vec<String> {
        let cost = self.usage.filter(|_| columns >= COST_COLUMNS).map_or(String::new(), cost);
        let (word, time) = match outcome {
            Outcome::Cached => ("CACHED ", String::new()),
            Outcome::Done => ("", format!("{cost}  {}", duration(elapsed))),
            Outcome::Canceled => ("CANCELED ", format!("  {}", duration(elapsed))),
            Outcome::Failed => ("ERROR ", format!("  {}", duration(elapsed))),
        };
        let title = fit(&format!(" => {word}{}", self.title), columns.saturating_sub(time.len()));
        let mut lines = vec![format!("{title}{time}")];
        lines.extend(self.reasons.iter().map(|reason| fit(&format!("    ran: {reason}"), columns)));
        lines.extend(self.fault.iter().map(|fault| format!("    {fault}")));
        lines
    }
}

/// What a step took besides time, as short as can be.
fn cost(usage: Usage) -> String {
    format!("  cpu {}, {}", duration(usage.cpu()), binary_size(usage.memory_bytes))
}

/// The lines of the live view in at most `columns` by `rows`; empty when nothing runs.
fn view(running: &BTreeMap<Number, Running>, done: usize, now: Duration, columns: usize, rows: usize) -> Vec<String> {
    if running.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("building {}, {done} done", duration(now))];
    // Below the head: a line a step, and output where there is room for a line of each.
    let room = rows.saturating_sub(1);
    let steps = if running.len() > room { room.saturating_sub(1) } else { running.len() };
    let output_lines = ((room - steps) / running.len()).min(OUTPUT_LINES);
    for step in running.values().take(steps) {
        let transfer = step.transfer.map_or(String::new(), |transfer| transfer.show(now));
        let facts = format!("{transfer}  {}", duration(now.saturating_sub(step.started_at)));
        let title = fit(&format!(" => {}", step.title), columns.saturating_sub(facts.len()));
        lines.push(format!("{title}{facts}"));
        let partial = Some(defuse(step.lines.partial())).filter(|partial| !partial.trim().is_empty());
        let reasons: Vec<_> = step.reasons.iter().map(|reason| format!("runs: {reason}")).collect();
        let output: Vec<_> = reasons.iter().chain(&step.shown).chain(&partial).collect();
        let hidden = output.len().saturating_sub(output_lines);
        lines.extend(output[hidden..].iter().map(|line| format!("    {line}")));
    }
    if steps < running.len() {
        lines.push(format!("    and {} more", running.len() - steps));
    }
    lines.iter().map(|line| fit(line, columns)).collect()
}
