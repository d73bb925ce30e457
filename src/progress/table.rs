//! The table of steps at the end of a build: number, title, time, what processes used (where any ran),
//! bytes added, how it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::text::{defuse, fit, width};
use super::units::{binary_size, duration, size};
use super::{Event, Number, Outcome, Usage};

/// Which column the titles are in.
const STEP: usize = 1;
/// In a narrower table titles need the room.
const USAGE_COLUMNS: usize = 70;

/// Rows, by number; filled from events.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<Number, Row>,
}

#[derive(Debug)]
struct Row {
    title: String,
    usage: Option<Usage>,
    end: Option<(Outcome, Duration, Option<u64>)>,
}

impl Table {
    pub fn observe(&mut self, event: &Event<'_>) {
        match *event {
            Event::Started { number, title } => {
                self.rows.insert(number, Row { title: defuse(title.as_bytes()), usage: None, end: None });
            }
            Event::Exited { number, exit } => {
                if let Some(row) = self.rows.get_mut(&number) {
                    row.usage = Some(exit.usage);
                }
            }
            Event::Finished { number, outcome, elapsed, added_bytes } => {
                if let Some(row) = self.rows.get_mut(&number) {
                    row.end = Some((outcome, elapsed, added_bytes));
                }
            }
            _ => {}
        }
    }

    /// The steps that were told of, and how many of them were cached.
    pub fn counts(&self) -> (usize, usize) {
        let is_cached = |row: &&Row| matches!(row.end, Some((Outcome::Cached, ..)));
        (self.rows.len(), self.rows.values().filter(is_cached).count())
    }

    /// The lines of the table, none longer than `columns` unless that is absurdly small. `total` is
    /// the time of the whole build. Empty when nothing was started.
    pub fn lines(&self, columns: usize, total: Duration) -> Vec<String> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        let has_usage = columns >= USAGE_COLUMNS && self.rows.values().any(|row| row.usage.is_some());
        let usage: &[&str] = if has_usage { &["CPU", "MEMORY"] } else { &[] };
        let heads = [&["#", "STEP", "TIME"], usage, &["ADDED", ""]].concat();
        let mut cells: Vec<Vec<String>> = vec![heads.into_iter().map(String::from).collect()];
        for (number, row) in &self.rows {
            let (outcome, time, added) = match row.end {
                Some((outcome, time, added)) => (word(outcome), duration(time), added.map(size)),
                None => ("unfinished", String::new(), None),
            };
            let none = || "-".to_owned();
            let mut line = vec![number.0.to_string(), row.title.clone(), time];
            if has_usage {
                line.push(row.usage.map_or_else(none, |usage| duration(usage.cpu())));
                line.push(row.usage.map_or_else(none, |usage| binary_size(usage.memory_bytes)));
            }
            line.extend([added.unwrap_or_else(none), outcome.to_owned()]);
            cells.push(line);
        }
        let mut widths: Vec<usize> = vec![0; cells[0].len()];
        for row in &cells {
            for (width_max, cell) in widths.iter_mut().zip(row) {
                *width_max = width(cell).max(*width_max);
            }
        }
        // A space before the first column, two between any two.
        let others = 1 + 2 * (widths.len() - 1) + widths.iter().sum::<usize>() - widths[STEP];
        widths[STEP] = widths[STEP].min(columns.saturating_sub(others)).max(12);

        let mut lines: Vec<_> = cells
            .iter()
            .map(|row| {
                let mut line = String::new();
                for (column, (cell, room)) in row.iter().zip(&widths).enumerate() {
                    let cell = if column == STEP { fit(cell, *room) } else { cell.clone() };
                    let blanks = " ".repeat(room - width(&cell));
                    // Words begin under each other, numbers end so.
                    let is_text = column == STEP || column + 1 == row.len();
                    line.push_str(if column == 0 { " " } else { "  " });
                    line.push_str(&if is_text { cell + &blanks } else { blanks + &cell });
                }
                line.trim_end().to_owned()
            })
            .collect();
        let (steps, cached) = self.counts();
        lines.push(format!(" {steps} step{}, {cached} cached, {}", if steps == 1 { "" } else { "s" }, duration(total)));
        lines
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Cached => "cached",
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        Outcome::Canceled => "canceled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(titles: &[&str]) -> Table {
        let mut table = Table::default();
        for (index, title) in titles.iter().enumerate() {
            let number = Number(index + 1);
            table.observe(&Event::Started { number, title });
            let elapsed = Duration::from_millis(1234);
            table.observe(&Event::Finished { number, outcome: Outcome::Done, elapsed, added_bytes: Some(4_100_000) });
        }
        table
    }

    #[test]
    fn fits_the_columns() {
        let long = "x".repeat(300);
        let table =
            table(&["[1/2] FROM a", &long, "日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語"]);
        for columns in [50, 80, 100] {
            for line in table.lines(columns, Duration::ZERO) {
                assert!(width(&line) <= columns, "{columns}: {line}");
            }
        }
        assert!(table.lines(1, Duration::ZERO).len() == 5);
    }

    #[test]
    fn columns_stand_under_each_other() {
        let lines = table(&["日本語", "a"]).lines(80, Duration::ZERO);
        let before_time = |line: &String| width(&line[..line.find("1.2s").unwrap()]);
        assert_eq!(before_time(&lines[1]), before_time(&lines[2]));
    }

    #[test]
    fn no_steps_no_table() {
        assert!(Table::default().lines(80, Duration::ZERO).is_empty());
    }
}
