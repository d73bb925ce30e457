//! The table of steps at the end of a build: number, title, time, bytes added, how it ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::text::{defuse, fit, width};
use super::units::{duration, size};
use super::{Event, Number, Outcome};

/// Rows, by number; filled from events.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<Number, Row>,
}

#[derive(Debug)]
struct Row {
    title: String,
    end: Option<(Outcome, Duration, Option<u64>)>,
}

impl Table {
    pub fn observe(&mut self, event: &Event<'_>) {
        match *event {
            Event::Started { number, title } => {
                self.rows.insert(number, Row { title: defuse(title.as_bytes()), end: None });
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
        let mut cells = vec![["#", "STEP", "TIME", "ADDED", ""].map(String::from)];
        for (number, row) in &self.rows {
            let (outcome, time, added) = match row.end {
                Some((outcome, time, added)) => (word(outcome), duration(time), added.map(size)),
                None => ("unfinished", String::new(), None),
            };
            let added = added.unwrap_or_else(|| "-".into());
            cells.push([number.0.to_string(), row.title.clone(), time, added, outcome.into()]);
        }
        let mut widths = [0; 5];
        for row in &cells {
            for (width_max, cell) in widths.iter_mut().zip(row) {
                *width_max = width(cell).max(*width_max);
            }
        }
        let [number, title, time, added, outcome] = widths;
        let others = 1 + number + 2 + 2 + time + 2 + added + 2 + outcome;
        let title = title.min(columns.saturating_sub(others)).max(12);

        let mut lines: Vec<_> = cells
            .iter()
            .map(|cell| {
                let step = fit(&cell[1], title);
                let blanks = title - width(&step);
                let line = format!(
                    " {:>number$}  {step}{:blanks$}  {:>time$}  {:>added$}  {}",
                    cell[0], "", cell[2], cell[3], cell[4]
                );
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
