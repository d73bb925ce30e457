//! What a user is told when something is wrong: one type for every error and warning, able to
//! point at the characters of a Dockerfile.
//!
//! A function that can fail returns [`Result`]; one that finds several faults at once (the parser,
//! the planner) returns `Result<T, Vec<Diagnostic>>`.

mod render;

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

pub type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// A text that can be pointed at: a Dockerfile, or an ONBUILD trigger of a base image.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// The name shown before `:line:column`; a path as the user wrote it.
    pub name: String,
    pub text: String,
}

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), text: text.into() })
    }

    /// Line and column of a byte offset, both counted from 1; columns count characters. A byte order
    /// mark is none.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..floor_boundary(&self.text, offset)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = &before[line_start..];
        let is_marked = line_start == 0 && line.starts_with('\u{feff}');
        (before.matches('\n').count() + 1, line.chars().count() + 1 - usize::from(is_marked))
    }
}

/// The last character boundary of `text` that is not after `offset`.
fn floor_boundary(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.len());
    (0..=offset).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// A range of bytes in a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub const fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    pub const fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Error,
}

/// A place in a source and what is to be said there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub source: Arc<Source>,
    pub span: Span,
    pub text: String,
}

/// An error or a warning as the user sees it. The message is lower case, without a full stop, with
/// literals in backticks; a hint is something that works if typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    /// The first is the primary one: its position stands in the header line.
    pub labels: Vec<Label>,
    pub hints: Vec<String>,
    /// What the kernel or a library said.
    pub cause: Option<String>,
    /// The lint rule behind a warning, as `# check=skip=RULE` names it.
    pub rule: Option<&'static str>,
}

impl Diagnostic {
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            labels: Vec::new(),
            hints: Vec::new(),
            cause: None,
            rule: None,
        }
    }

    pub fn warning(rule: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule: Some(rule), ..Self::error(message) }
    }

    /// Points at `span`; `text` may be empty, then only the caret is shown.
    #[must_use]
    pub fn at(mut self, source: &Arc<Source>, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { source: Arc::clone(source), span, text: text.into() });
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    #[must_use]
    pub fn caused_by(mut self, cause: impl ToString) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
}

/// Says what was being done when the system refused.
pub trait Context<T> {
    /// Turns the error into a diagnostic whose message is `doing()` (as in "cannot read `x`") and
    /// whose cause is the original error.
    fn context<M: Into<String>>(self, doing: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<M: Into<String>>(self, doing: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Diagnostic::error(doing()).caused_by(error))
    }
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<M: Into<String>>(self, doing: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|errno| Diagnostic::error(doing()).caused_by(io::Error::from(errno)))
    }
}

/// The name among `known` that `word` was most likely meant to be, if one is near enough to suggest
/// (edit distance at most a third of the length, ASCII case ignored).
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let lower = |text: &str| text.chars().map(|character| character.to_ascii_lowercase()).collect::<Vec<_>>();
    let word = lower(word);
    let distance = |name: &'a str| {
        // An edit changes the length by one at most.
        let length = name.chars().count();
        let most = 1.max(length.max(word.len()) / 3);
        let is_like = name.len() <= LONGEST && length.abs_diff(word.len()) <= most;
        let distance = if is_like { edit_distance(&word, &lower(name)) } else { usize::MAX };
        (distance <= most).then_some((distance, name))
    };
    known.into_iter().filter_map(distance).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// The distance takes time by the product of the lengths, and nobody mistypes more.
const LONGEST: usize = 100;

/// Optimal string alignment distance: insert, delete, replace and swap of neighbours cost one each. Neither is longer
/// than [`LONGEST`].
fn edit_distance(a: &[char], b: &[char]) -> usize {
    // Of the beginning of `a`, one character shorter and two, to each beginning of `b`. None is above `LONGEST`.
    let (mut before, mut above, mut row) = ([0_u8; LONGEST + 1], [0; LONGEST + 1], [0; LONGEST + 1]);
    row.iter_mut().zip(0..).for_each(|(cell, length)| *cell = length);
    for (i, length) in (1..=a.len()).zip(1..) {
        mem::swap(&mut before, &mut above);
        mem::swap(&mut above, &mut row);
        row[0] = length;
        for j in 1..=b.len() {
            let replace = above[j - 1] + u8::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row[j] = best;
        }
    }
    row[b.len()].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(nearest("CPOY", ["ADD", "COPY", "CMD"]), Some("COPY"));
        assert_eq!(nearest("mont", ["mount", "network"]), Some("mount"));
        assert_eq!(nearest("frobnicate", ["mount", "network"]), None);
        assert_eq!(nearest("", ["a", "bcd"]), Some("a"));
        assert_eq!(nearest("ÄRGER", ["Ärgre", "ärger"]), Some("Ärgre"));
        assert_eq!(nearest(&"x".repeat(99), [&*"x".repeat(100)]), Some(&*"x".repeat(100)));
        assert_eq!(nearest(&"x".repeat(1 << 20), [&*"x".repeat(1 << 20)]), None);
    }

    #[test]
    fn positions_count_characters() {
        let source = Source::new("Dockerfile", "FROM a\nRUN é x\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position("FROM a\nRUN é ".len()), (2, 7));
    }
}
