//! The errors of one file, as they are found.

use crate::diag::Diagnostic;

/// More errors are not kept: who has that many does not read them.
const LIMIT: usize = 50;

#[derive(Default)]
pub struct Faults {
    kept: Vec<Diagnostic>,
    count: usize,
}

impl Faults {
    pub fn push(&mut self, fault: Diagnostic) {
        self.count += 1;
        if !self.is_full() {
            self.kept.push(fault);
        }
    }

    /// How many were found so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Nothing more needs to be looked for.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= LIMIT
    }

    /// In the order of the text.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by_key(|fault| fault.labels.first().map_or(0, |label| label.span.start));
        if self.is_full() {
            self.kept.push(Diagnostic::error(format!("there may be more errors than these {LIMIT}")));
        }
        self.kept
    }
}
