//! The table.

use std::time::Duration;

use crate::Sample;
use crate::player::Player;
use crate::row::{Row, Target};

pub struct Report {
    rounds: usize,
    peers: Vec<String>,
    pub lines: Vec<Line>,
}

pub struct Line {
    pub name: &'static str,
    pub results: Vec<(Player, Sample)>,
    /// What wythe may take.
    pub target: Option<Duration>,
    /// Its shortest round: of what others do to a machine that shows the least.
    shortest: Duration,
    notes: Vec<String>,
}

/// How far off its target a row may be before `--check` fails.
const MARGIN: f64 = 3.0;

/// What the targets in milliseconds were set on needs so long for [`Player::Floor`]'s `pace`. A machine that needs
/// longer, because it is a slower or a busy one, gets as much more time.
const PACE: Duration = Duration::from_millis(14);

/// The most memory that any row may take, whatever the size of its files.
const PEAK_BYTES: u64 = 40_000_000;

impl Line {
    pub fn of(&self, player: Player) -> Option<Sample> {
        self.results.iter().find(|(known, _)| *known == player).map(|(_, sample)| *sample)
    }

    /// What it is about.
    pub fn own(&self) -> Option<Sample> {
        self.of(Player::Wythe).or_else(|| self.of(Player::User))
    }

    fn has_floor(&self) -> bool {
        self.of(Player::Floor).is_some()
    }
}

impl Report {
    pub fn new(rounds: usize, peers: Vec<String>) -> Self {
        Self { rounds, peers, lines: Vec::new() }
    }

    /// The samples and notes are those of the row's players, in order.
    pub fn add(&mut self, row: &Row, samples: &[Vec<Sample>], notes: &[Option<String>]) {
        let results: Vec<_> = row
            .players
            .iter()
            .zip(samples)
            .filter_map(|(player, samples)| Some((*player, Sample::median(samples)?)))
            .collect();
        let notes = row.players.iter().zip(notes);
        let notes = notes.filter_map(|(player, note)| Some(format!("{}: {}", player.name(), note.as_ref()?))).collect();
        let own = row.players.iter().zip(samples).find(|(player, _)| matches!(player, Player::Wythe | Player::User));
        let shortest = own.and_then(|(_, samples)| samples.iter().map(|sample| sample.wall).min()).unwrap_or_default();
        let mut line = Line { name: row.name, results, target: None, shortest, notes };
        line.target = match row.target {
            Target::Within(limit) => Some(limit),
            Target::TimesFloor(times) => line.of(Player::Floor).map(|floor| floor.wall.mul_f64(times)),
        };
        self.lines.push(line);
    }

    /// Whether no row is far off its target. `pace` is what the floor of that name takes on this machine.
    pub fn is_within_check(&self, pace: Duration) -> bool {
        let slowness = (pace.as_secs_f64() / PACE.as_secs_f64()).max(1.0);
        let mut is_within = true;
        for line in &self.lines {
            let (Some(own), Some(target)) = (line.own(), line.target) else { continue };
            // A floor was as slow as the machine is.
            let margin = if line.has_floor() { MARGIN } else { MARGIN * slowness };
            if line.shortest > target.mul_f64(margin) {
                eprintln!("{}: {} is more than {margin:.1} times {}", line.name, show(line.shortest), show(target));
                is_within = false;
            }
            if own.peak_bytes > PEAK_BYTES {
                eprintln!("{}: {} bytes of memory are more than {PEAK_BYTES}", line.name, own.peak_bytes);
                is_within = false;
            }
        }
        is_within
    }

    pub fn table(&self) -> String {
        let head = ["", "wythe", "target", "CPU", "peak", "floor", "ratio", "buildah", "ratio", "runc", "ratio"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for line in &self.lines {
            let Some(own) = line.own() else { continue };
            let mut row = vec![
                line.name.to_owned(),
                show(own.wall),
                line.target.map_or_else(String::new, show),
                show(own.cpu),
                format!("{:.1} MB", own.peak_bytes as f64 / 1e6),
            ];
            for (player, is_inverse) in [(Player::Floor, true), (Player::Buildah, false), (Player::Runc, false)] {
                match line.of(player) {
                    None => row.extend([String::new(), String::new()]),
                    Some(other) => {
                        let ratio = other.wall.as_secs_f64() / own.wall.as_secs_f64().max(1e-9);
                        let ratio = if is_inverse { 1.0 / ratio.max(1e-9) } else { ratio };
                        row.extend([show(other.wall), format!("{ratio:.1}")]);
                    }
                }
            }
            rows.push(row);
        }
        let mut text = grid(&rows);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let peers = self.peers.join(", ");
        text.push_str(&format!(
            "\nMedians of {} rounds; {processors} processors, Linux {}; {peers}.\n\
             Ratios: to the floor, how many times its time; to a peer, how many times faster than it.\n",
            self.rounds,
            kernel.trim()
        ));
        for line in &self.lines {
            for note in &line.notes {
                text.push_str(&format!("{}: {note}\n", line.name));
            }
        }
        text
    }
}

/// Rows of cells as a table of Markdown.
fn grid(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column == 0 { format!("| {cell:width$} ") } else { format!("| {cell:>width$} ") };
            text.push_str(&cell);
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                text.push_str(&format!("| {}{} ", "-".repeat(width - 1), if column == 0 { "-" } else { ":" }));
            }
            text.push_str("|\n");
        }
    }
    text
}

pub fn show(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        _ if seconds >= 1.0 => format!("{seconds:.2} s"),
        _ if seconds >= 1e-3 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.1} µs", seconds * 1e6),
    }
}
