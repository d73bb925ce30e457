//! Diagnostics as text, in the shape rustc made familiar.
//!
//! ```text
//! error: unknown flag `--form` of COPY
//!  --> Dockerfile:3:6
//!   |
//! 3 | COPY --form=build /out /
//!   |      ^^^^^^
//!   |
//!   = help: did you mean `--from`?
//! ```
//!
//! What comes from a file is shown, never obeyed: no control character of a source or a message
//! reaches the terminal. Nor does the password of a URL.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use crate::diag::{Diagnostic, Label, Severity, Source, floor_boundary};
use crate::location::{mask, redact};

/// Lines longer than this many bytes are shown in part.
const LINE_LIMIT: usize = 200;

/// Of such a line, what is kept before the first character pointed at, in bytes.
const KEPT_BEFORE: usize = 60;

const WIDTH: usize = 240;

impl Diagnostic {
    /// The text for a terminal or a log, line end included. `color` allows escape sequences of our
    /// own.
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let renderer = if color { Renderer::styled().hyperlink(false) } else { Renderer::plain() };
        let renderer = renderer.term_width(WIDTH);
        let mut title = level.primary_title(clean(&self.message));
        if let Some(rule) = self.rule {
            title = title.id(rule);
        }
        let excerpts = self.excerpts();
        let mut group = Group::with_title(title);
        for excerpt in &excerpts {
            group = group.element(excerpt.snippet());
        }
        let cause = self.cause.as_deref().map(clean);
        let hints = self.hints.iter().map(|hint| clean(hint));
        let mut text;
        if excerpts.is_empty() {
            text = renderer.render(&[group]);
            for (name, line) in cause.map(|cause| ("cause", cause)).into_iter().chain(hints.map(|hint| ("help", hint)))
            {
                let indent = format!("\n{:width$}", "", width = name.len() + 4);
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  {name}: {}", line.replace('\n', &indent));
            }
        } else {
            group = group.elements(cause.map(|cause| Level::NOTE.with_name("cause").message(cause)));
            group = group.elements(hints.map(|hint| Level::HELP.message(hint)));
            text = renderer.render(&[group]);
            for excerpt in &excerpts {
                excerpt.correct_position(&mut text);
            }
        }
        text.push('\n');
        text
    }

    /// One excerpt for each source pointed at, that of the primary label first.
    fn excerpts(&self) -> Vec<Excerpt<'_>> {
        let mut sources: Vec<&Arc<Source>> = Vec::new();
        for label in &self.labels {
            if !sources.iter().any(|source| Arc::ptr_eq(source, &label.source)) {
                sources.push(&label.source);
            }
        }
        sources.into_iter().map(|source| Excerpt::new(source, &self.labels)).collect()
    }
}

/// The lines of a source that labels point at.
struct Excerpt<'a> {
    source: &'a Source,
    /// From the first to the last line pointed at, long lines cut.
    text: String,
    line_start: usize,
    /// Each label and its place in `text`.
    marks: Vec<Mark<'a>>,
}

struct Mark<'a> {
    label: &'a Label,
    is_primary: bool,
    /// In the source.
    original: Range<usize>,
    /// In the excerpt.
    start: usize,
    end: usize,
}

impl<'a> Excerpt<'a> {
    fn new(source: &'a Arc<Source>, labels: &'a [Label]) -> Self {
        let mut marks: Vec<_> = labels
            .iter()
            .enumerate()
            .filter(|(_, label)| Arc::ptr_eq(&label.source, source))
            .map(|(index, label)| {
                let range = label.span.range();
                let start = floor_boundary(&source.text, range.start);
                let end = floor_boundary(&source.text, range.end.max(range.start)).max(start);
                Mark { label, is_primary: index == 0, original: start..end, start: 0, end: 0 }
            })
            .collect();
        let text = &source.text;
        let first = marks.iter().map(|mark| mark.original.start).min().unwrap_or(0);
        let last = marks.iter().map(|mark| mark.original.end.max(mark.original.start + 1) - 1).max().unwrap_or(0);
        let first = text[..first].rfind('\n').map_or(0, |newline| newline + 1);
        let last = floor_boundary(&source.text, last).max(first);
        let last = text[last..].find('\n').map_or(text.len(), |newline| last + newline);
        let mut out = String::new();
        let mut at = first;
        // Who looks at an error need not be who may know a password.
        for line in mask(&text[first..last]).split('\n') {
            copy_line(line, at, &mut marks, &mut out);
            out.push('\n');
            at += line.len() + 1;
        }
        for mark in &mut marks {
            // A span may go on over the end of its last line.
            if mark.original.end > last {
                mark.end = out.len() - 1;
            }
            mark.end = mark.end.max(mark.start);
        }
        Self { source, text: out, line_start: text[..first].matches('\n').count() + 1, marks }
    }

    fn snippet(&self) -> Snippet<'_, Annotation<'_>> {
        let annotations = self.marks.iter().map(|mark| {
            let kind = if mark.is_primary { AnnotationKind::Primary } else { AnnotationKind::Context };
            let label = Some(clean(&mark.label.text)).filter(|text| !text.is_empty());
            kind.span(mark.start..mark.end).label(label)
        });
        Snippet::source(self.text.as_str())
            .path(clean(&self.source.name))
            .line_start(self.line_start)
            .annotations(annotations)
    }

    /// The renderer counts columns in what it is given; where the beginning of a line was cut, the
    /// header is made to say the true one.
    fn correct_position(&self, text: &mut String) {
        let Some(mark) = self.marks.iter().find(|mark| mark.is_primary).or(self.marks.first()) else { return };
        let (line, column) = self.source.position(mark.original.start);
        let line_start = self.text[..mark.start].rfind('\n').map_or(0, |newline| newline + 1);
        let shown = self.text[line_start..mark.start].chars().count() + 1;
        if shown != column {
            let name = clean(&self.source.name);
            *text = text.replacen(&format!("{name}:{line}:{shown}"), &format!("{name}:{line}:{column}"), 1);
        }
    }
}

/// Copies a line of the source, which begins at byte `at` there, and notes where the marks on it
/// come to stand.
fn copy_line(line: &str, at: usize, marks: &mut [Mark<'_>], out: &mut String) {
    let line_end = at + line.len();
    let line = line.strip_suffix('\r').unwrap_or(line);
    let end = at + line.len();
    let kept = if line.len() <= LINE_LIMIT {
        at..end
    } else {
        // The primary label is to be seen, the others if they are near.
        let edges =
            marks.iter().flat_map(|mark| [mark.original.start, mark.original.end].map(|at| (!mark.is_primary, at)));
        let first = edges.filter(|(_, edge)| (at..=end).contains(edge)).min().map_or(at, |(_, edge)| edge);
        let start = floor_boundary(line, (first - at).saturating_sub(KEPT_BEFORE).min(line.len() - KEPT_BEFORE));
        let stop = floor_boundary(line, start + LINE_LIMIT - KEPT_BEFORE);
        at + start..at + stop
    };
    if kept.start > at {
        out.push_str("...");
    }
    let begin = out.len();
    for mark in marks.iter_mut() {
        if (at..=line_end).contains(&mark.original.start) {
            mark.start = begin;
        }
        if (at..=line_end).contains(&mark.original.end) {
            mark.end = begin;
        }
    }
    for (offset, c) in line[kept.start - at..kept.end - at].char_indices() {
        // The renderer replaces the other control characters itself, one for one.
        out.push(if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c });
        let next = kept.start + offset + c.len_utf8();
        for mark in marks.iter_mut() {
            if (next..=line_end).contains(&mark.original.start) {
                mark.start = out.len();
            }
            if (next..=line_end).contains(&mark.original.end) {
                mark.end = out.len();
            }
        }
    }
    if kept.end < end {
        out.push_str("...");
    }
}

/// Characters that steer a terminal or reorder text and that the renderer lets through.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
}

/// Text of ours or a stranger's, fit for a terminal: only line ends are left of what controls one,
/// and it has an end.
fn clean(text: &str) -> String {
    const LIMIT: usize = 4000;
    let text = &text[..floor_boundary(text, LIMIT)];
    normalize_untrusted_str(&redact(text)).replace(is_hidden, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Span;

    fn check(diagnostic: &Diagnostic, expected: &str) {
        let shown = diagnostic.render(false);
        assert_eq!(shown, expected, "\n{shown}");
    }

    fn span_of(source: &Source, part: &str) -> Span {
        let start = source.text.find(part).unwrap();
        Span::new(start, start + part.len())
    }

    #[test]
    fn without_a_place() {
        let diagnostic = Diagnostic::error("cannot open `x`").caused_by("No such file\nor directory").hint("try `y`");
        let expected = "error: cannot open `x`\n  cause: No such file\n         or directory\n  help: try `y`\n";
        check(&diagnostic, expected);
        check(&Diagnostic::warning("Rule", "odd"), "warning[Rule]: odd\n");
    }

    #[test]
    fn with_cause_and_several_sources() {
        let file = Source::new("app/Dockerfile", "FROM base\nRUN a\nCOPY x \\\n  y\n");
        let trigger = Source::new("ONBUILD of `base`", "COPY /a /b");
        let diagnostic = Diagnostic::error("cannot copy `/a`")
            .at(&trigger, span_of(&trigger, "/a"), "named here")
            .at(&file, span_of(&file, "base"), "brings the trigger")
            .at(&file, span_of(&file, "x \\\n  y"), "")
            .caused_by("No such file")
            .hint("one")
            .hint("two");
        let expected = "\
error: cannot copy `/a`
 --> ONBUILD of `base`:1:6
  |
1 |   COPY /a /b
  |        ^^ named here
  |
 ::: app/Dockerfile:1:6
  |
1 |   FROM base
  |        ---- brings the trigger
2 |   RUN a
3 |   COPY x \\
  |  ______-
4 | |   y
  | |___-
  |
  = cause: No such file
  = help: one
  = help: two
";
        check(&diagnostic, expected);
    }

    #[test]
    fn a_span_over_many_lines_is_folded() {
        let file = Source::new("Dockerfile", format!("FROM a\n{}LAST\nEND\n", "RUN x\n".repeat(100)));
        let span = Span::new(7, file.text.find("\nEND").unwrap());
        let shown = Diagnostic::error("long").at(&file, span, "all of it").render(false);
        assert!(shown.lines().count() < 15 && shown.contains("102 | | LAST"), "{shown}");
    }

    #[test]
    fn spans_that_are_off_do_no_harm() {
        let file = Source::new("Dockerfile", "é\r\n\n");
        for start in 0..8 {
            for end in 0..8 {
                let shown = Diagnostic::error("odd").at(&file, Span { start, end }, "here").render(false);
                assert!(shown.contains("--> Dockerfile:"), "{shown}");
            }
        }
        let empty = Source::new("Dockerfile", "");
        assert!(Diagnostic::error("odd").at(&empty, Span::new(0, 0), "here").render(false).contains("here"));
    }

    #[test]
    fn strangers_do_not_reach_the_terminal() {
        let file = Source::new("\x1b]0;x\x07", "RUN \u{9b}2J\x1b[2J \u{202e}x\n");
        let diagnostic = Diagnostic::error("bad \x1b[1m")
            .at(&file, span_of(&file, "x"), "\u{9b}1m")
            .hint("\x08")
            .caused_by("\u{85}\r\x0b");
        let is_plain = |shown: &str| shown.chars().all(|c| c == '\n' || !c.is_control());
        assert!(is_plain(&diagnostic.render(false)));
        let nowhere = Diagnostic { labels: Vec::new(), ..diagnostic.clone() };
        assert!(is_plain(&nowhere.render(false)));
        // With color the only escape sequences are our own.
        let colored = diagnostic.render(true);
        assert!(
            colored.contains("\x1b[1m") && !colored.contains("\x1b[2J") && !colored.contains("\x1b]"),
            "{colored:?}"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_fault() {
        let file = Source::new("Dockerfile", format!("RUN {} NEEDLE {}\n", "é ".repeat(500), "x ".repeat(500)));
        let span = span_of(&file, "NEEDLE");
        let shown = Diagnostic::error("here").at(&file, span, "").at(&file, Span::new(0, 3), "this").render(false);
        assert!(shown.lines().all(|line| line.chars().count() < 200), "{shown}");
        assert!(shown.contains("NEEDLE") && shown.contains("--> Dockerfile:1:1006\n"), "{shown}");
        let shown = Diagnostic::error("here").at(&file, span, "").render(false);
        let lines: Vec<_> = shown.lines().collect();
        let column = |line: &str, what: &str| line[..line.find(what).unwrap()].chars().count();
        assert_eq!(column(lines[3], "NEEDLE"), column(lines[4], "^^^^^^"), "{shown}");
        assert!(shown.contains("--> Dockerfile:1:1006\n"), "{shown}");
    }
}
