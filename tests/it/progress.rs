//! Every reporter on the same events: `testdata/progress/<case>/events` is played at the times
//! written in it, and what each reporter shows is compared with a golden.
//!
//! ```text
//! 0.000 start 1 [1/2] FROM busybox          \n \r \t \e \xff are understood in texts
//! 0.000 missed 1 a reason
//! 0.100 output 1 text\n
//! 0.100 transfer 1 500 1000
//! 0.200 exited 1 2 1500000 45000000 0 4096  with a code; microseconds of CPU, bytes of memory, read, written
//! 0.200 fault 1 message
//! 0.300 finish 1 done|cached|failed|canceled 0.3 [bytes]
//! 0.300 warning Rule message                with a hint, at 2:5 of a Dockerfile
//! 0.400 tick
//! 0.400 screen                              the terminal as it looks now goes into terminal.txt
//! 0.400 size 40 10                          the terminal is resized
//! 0.500 end
//! 0.500 close
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wythe::diag::{Diagnostic, Source, Span};
use wythe::progress::{Event, Exit, Json, Number, Outcome, Plain, Reporter, Terminal, Usage};

#[test]
fn reporters_show_what_the_goldens_say() {
    for case in super::cases("progress") {
        check(&case);
    }
}

fn check(case: &Path) {
    let events = fs::read_to_string(case.join("events")).unwrap();
    let stage = Stage::default();
    let (plain_bytes, defused_bytes, json_bytes) = (Shared::default(), Shared::default(), Shared::default());
    let plain = Plain::with_clock(plain_bytes.clone(), false, stage.clock());
    let defused = Plain::with_clock(defused_bytes.clone(), true, stage.clock());
    let json = Json::with_clock(json_bytes.clone(), stage.clock());
    let terminal = stage.terminal();

    for line in events.lines().filter(|line| !line.trim().is_empty()) {
        let (time, line) = line.split_once(' ').unwrap();
        *stage.now.lock().unwrap() = seconds(time);
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (first, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let number = Number(first.parse().unwrap_or(0));
        let text = unescape(text);
        let string = String::from_utf8_lossy(&text);
        let mut words = string.split(' ').filter(|word| !word.is_empty());
        let source = Source::new("Dockerfile", "FROM a\nRUN x\n");
        let (warning, reasons);
        let event = match verb {
            "start" => Event::Started { number, title: &string },
            "missed" => {
                reasons = vec![string.clone().into_owned()];
                Event::Missed { number, reasons: &reasons }
            }
            "exited" => {
                let code = words.next().unwrap().parse().unwrap();
                let mut next = || words.next().unwrap().parse().unwrap();
                let (cpu_us, memory_bytes, read_bytes, written_bytes) = (next(), next(), next(), next());
                let usage = Usage { cpu_us, memory_bytes, read_bytes, written_bytes };
                Event::Exited { number, exit: Exit { code: Some(code), signal: None, usage } }
            }
            "output" => Event::Output { number, bytes: &text },
            "transfer" => {
                let done_bytes = words.next().unwrap().parse().unwrap();
                Event::Progress { number, done_bytes, total_bytes: words.next().map(|word| word.parse().unwrap()) }
            }
            "fault" => Event::Fault { number, message: &string },
            "finish" => {
                let outcome = match words.next() {
                    Some("done") => Outcome::Done,
                    Some("cached") => Outcome::Cached,
                    Some("failed") => Outcome::Failed,
                    Some("canceled") => Outcome::Canceled,
                    other => panic!("no outcome: {other:?}"),
                };
                let elapsed = seconds(words.next().unwrap());
                Event::Finished {
                    number,
                    outcome,
                    elapsed,
                    added_bytes: words.next().map(|word| word.parse().unwrap()),
                }
            }
            "warning" => {
                let rule: &'static str = Box::leak(first.to_owned().into_boxed_str());
                warning = Diagnostic::warning(rule, string).at(&source, Span::new(11, 12), "").hint("try `y`");
                Event::Warning(&warning)
            }
            "tick" => {
                plain.tick();
                defused.tick();
                terminal.tick();
                continue;
            }
            "screen" => {
                terminal.tick();
                stage.shoot(&format!("at {time}"));
                continue;
            }
            "size" => {
                stage.resize(first.parse().unwrap(), string.parse().unwrap());
                continue;
            }
            "end" => Event::Ended,
            "close" => {
                for reporter in [&plain as &dyn Reporter, &defused, &json, &terminal] {
                    reporter.close();
                }
                continue;
            }
            other => panic!("{}: unknown event `{other}`", case.display()),
        };
        for reporter in [&plain as &dyn Reporter, &defused, &json, &terminal] {
            reporter.report(event.clone());
        }
    }
    drop(terminal);
    stage.shoot("at last");

    super::check_golden(&case.join("plain.txt"), &plain_bytes.take());
    super::check_golden(&case.join("plain-terminal.txt"), &defused_bytes.take());
    super::check_golden(&case.join("json.txt"), &json_bytes.take());
    super::check_golden(&case.join("terminal.txt"), stage.shots.lock().unwrap().as_bytes());
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().unwrap())
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        if char != '\\' {
            bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match rest.next().unwrap() {
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'e' => bytes.push(0x1b),
            '\\' => bytes.push(b'\\'),
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            other => panic!("unknown escape `\\{other}`"),
        }
    }
    bytes
}

/// Bytes written by a reporter and read by the test.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time, and an emulated terminal with its size.
struct Stage {
    now: Arc<Mutex<Duration>>,
    emulator: Arc<Mutex<vt100::Parser>>,
    shots: Mutex<String>,
}

impl Default for Stage {
    fn default() -> Self {
        let emulator = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 100)));
        Self { now: Arc::default(), emulator, shots: Mutex::default() }
    }
}

struct Tty(Arc<Mutex<vt100::Parser>>);

impl Write for Tty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A terminal in its usual mode makes a carriage return and line feed of a line feed.
        for byte in bytes {
            let bytes: &[u8] = if *byte == b'\n' { b"\r\n" } else { std::slice::from_ref(byte) };
            self.0.lock().unwrap().process(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stage {
    fn clock(&self) -> Box<dyn Fn() -> Duration + Send + Sync> {
        let now = Arc::clone(&self.now);
        Box::new(move || *now.lock().unwrap())
    }

    fn terminal(&self) -> Terminal {
        let emulator = Arc::clone(&self.emulator);
        let size = Arc::new(move || {
            let (rows, columns) = emulator.lock().unwrap().screen().size();
            (columns, rows)
        });
        Terminal::with_clock(Box::new(Tty(Arc::clone(&self.emulator))), size, true, self.clock())
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.emulator.lock().unwrap().screen_mut().set_size(rows, columns);
    }

    /// Keeps what the terminal shows; `▏` stands where the cursor is.
    fn shoot(&self, title: &str) {
        let emulator = self.emulator.lock().unwrap();
        let screen = emulator.screen();
        assert!(!screen.hide_cursor(), "the cursor is hidden");
        let (cursor_row, cursor_column) = screen.cursor_position();
        let mut shots = self.shots.lock().unwrap();
        shots.push_str(&format!("==== {title}\n"));
        let rows: Vec<_> = screen.rows(0, screen.size().1).collect();
        let last = rows.iter().rposition(|row| !row.is_empty()).unwrap_or(0).max(cursor_row.into());
        for (index, row) in rows[..=last].iter().enumerate() {
            let mark = if index == usize::from(cursor_row) { format!("▏{cursor_column}") } else { String::new() };
            shots.push_str(&format!("{row}{mark}\n"));
        }
    }
}

/// Whatever a step writes, only what the reporter itself needs reaches the terminal.
#[test]
fn no_escape_of_a_step_reaches_the_terminal() {
    let stage = Stage::default();
    let bytes = Shared::default();
    let terminal = Terminal::with_clock(Box::new(bytes.clone()), Arc::new(|| (80, 24)), false, stage.clock());
    let hostile = b"\x1b]0;owned\x07\x1b[?25l\x1b[31mred\x9b2J\xc2\x9b2J\x1b[6n\x05\x0e\x1bc\r\x1b[2Jtext\n";
    let title = String::from_utf8_lossy(hostile).into_owned();
    for (number, outcome) in [(1, Outcome::Done), (2, Outcome::Failed)] {
        let number = Number(number);
        terminal.report(Event::Started { number, title: &title });
        for byte in hostile {
            terminal.report(Event::Output { number, bytes: &[*byte] });
            terminal.tick();
        }
        terminal.report(Event::Fault { number, message: &title });
        terminal.report(Event::Finished { number, outcome, elapsed: Duration::ZERO, added_bytes: None });
    }
    terminal.report(Event::Warning(&Diagnostic::warning("Rule", &title).hint(&title)));
    terminal.report(Event::Ended);
    drop(terminal);

    let bytes = bytes.take();
    let mut rest = bytes.as_slice();
    while let Some((byte, after)) = rest.split_first() {
        match byte {
            0x1b => {
                let end = after.iter().position(u8::is_ascii_alphabetic).unwrap();
                let sequence = &after[..=end];
                let is_ours = matches!(sequence.split_last(), Some((b'A' | b'B' | b'K', [b'[', digits @ ..]))
                    if digits.iter().all(u8::is_ascii_digit));
                assert!(is_ours, "ESC {:?}", String::from_utf8_lossy(sequence));
                rest = &after[end + 1..];
            }
            b'\r' | b'\n' | 0x20.. => rest = after,
            other => panic!("byte {other:#04x} reached the terminal"),
        }
    }
    assert!(!bytes.windows(2).any(|pair| pair == b"\xc2\x9b"));
    assert!(bytes.windows(4).any(|word| word == b"text"));
}
