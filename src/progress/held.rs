//! Progress of a build that may have to begin anew: told only when it is known that it need not. What
//! the cache answers takes no time to speak of; whatever does is shown at once, with all before it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Event, Number, Outcome, Reporter};
use crate::diag::Diagnostic;

/// Holds events back for another reporter.
pub struct Held {
    state: Mutex<State>,
}

struct State {
    /// `None` once nothing is to be shown any more.
    reporter: Option<Box<dyn Reporter>>,
    /// `None` once nothing is held back any more.
    events: Option<Vec<Kept>>,
}

/// An event that outlives its report.
enum Kept {
    Started { number: Number, title: String },
    Missed { number: Number, reasons: Vec<String> },
    Finished { number: Number, outcome: Outcome, elapsed: Duration, added_bytes: Option<u64> },
    Warning(Diagnostic),
}

impl Held {
    pub fn new(reporter: Box<dyn Reporter>) -> Self {
        Self { state: Mutex::new(State { reporter: Some(reporter), events: Some(Vec::new()) }) }
    }

    /// Drops the reporter and what was held back for it, so that somebody else can tell it all again.
    pub fn drop_all(&self) {
        let mut state = self.lock();
        state.events = None;
        state.reporter = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn show_all(&mut self) {
        let (Some(reporter), Some(events)) = (&self.reporter, self.events.take()) else { return };
        for event in &events {
            reporter.report(match event {
                Kept::Started { number, title } => Event::Started { number: *number, title },
                Kept::Missed { number, reasons } => Event::Missed { number: *number, reasons },
                Kept::Finished { number, outcome, elapsed, added_bytes } => {
                    Event::Finished { number: *number, outcome: *outcome, elapsed: *elapsed, added_bytes: *added_bytes }
                }
                Kept::Warning(warning) => Event::Warning(warning),
            });
        }
    }
}

impl Reporter for Held {
    fn report(&self, event: Event<'_>) {
        let mut state = self.lock();
        if let Some(events) = &mut state.events {
            match event {
                Event::Started { number, title } => {
                    return events.push(Kept::Started { number, title: title.to_owned() });
                }
                Event::Missed { number, reasons } => {
                    return events.push(Kept::Missed { number, reasons: reasons.to_vec() });
                }
                Event::Finished { number, outcome, elapsed, added_bytes } => {
                    return events.push(Kept::Finished { number, outcome, elapsed, added_bytes });
                }
                Event::Warning(warning) => return events.push(Kept::Warning(warning.clone())),
                _ => {}
            }
        }
        state.show_all();
        if let Some(reporter) = &state.reporter {
            reporter.report(event);
        }
    }

    fn close(&self) {
        let mut state = self.lock();
        state.show_all();
        if let Some(reporter) = &state.reporter {
            reporter.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Reporter for Seen {
        fn report(&self, event: Event<'_>) {
            self.0.lock().unwrap().push(match event {
                Event::Started { title, .. } => title.to_owned(),
                Event::Finished { number, .. } => format!("{} finished", number.0),
                Event::Warning(warning) => warning.message.clone(),
                other => format!("{other:?}"),
            });
        }

        fn close(&self) {
            self.0.lock().unwrap().push("closed".into());
        }
    }

    fn tell(held: &Held) {
        held.report(Event::Warning(&Diagnostic::error("careful")));
        held.report(Event::Started { number: Number(1), title: "one" });
        let (outcome, elapsed, added_bytes) = (Outcome::Cached, Duration::ZERO, None);
        held.report(Event::Finished { number: Number(1), outcome, elapsed, added_bytes });
    }

    #[test]
    fn nothing_is_shown_before_the_end_or_before_something_takes_time() {
        for ends in [true, false] {
            let seen = Seen::default();
            let shown = Arc::clone(&seen.0);
            let held = Held::new(Box::new(seen));
            tell(&held);
            assert!(shown.lock().unwrap().is_empty());
            if !ends {
                held.report(Event::Output { number: Number(2), bytes: b"x" });
                held.report(Event::Started { number: Number(3), title: "three" });
                let expected = ["careful", "one", "1 finished", "Output { number: Number(2), bytes: [120] }", "three"];
                assert_eq!(*shown.lock().unwrap(), expected);
                continue;
            }
            held.close();
            assert_eq!(*shown.lock().unwrap(), ["careful", "one", "1 finished", "closed"]);
        }
    }

    #[test]
    fn what_is_dropped_is_never_shown() {
        let seen = Seen::default();
        let shown = Arc::clone(&seen.0);
        let held = Held::new(Box::new(seen));
        tell(&held);
        held.drop_all();
        tell(&held);
        held.close();
        assert!(shown.lock().unwrap().is_empty());
    }
}
