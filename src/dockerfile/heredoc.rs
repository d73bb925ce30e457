//! Heredocs: `<<NAME` words of an instruction, and the bodies that follow it.

use crate::diag::Span;
use crate::dockerfile::Heredoc;
use crate::dockerfile::expand::{split_raw, split_unquoted};
use crate::dockerfile::line::{Line, Reader, trim_line_end};

/// What `[fd]<<[-]NAME` says of the body that follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub name: String,
    pub fd: Option<u32>,
    pub expands: bool,
    pub strips_tabs: bool,
}

/// Reads a word, quotes kept, as the beginning of a heredoc.
pub fn mark(word: &str) -> Option<Mark> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let rest = word[digits..].strip_prefix("<<")?;
    let (strips_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.contains('<') {
        return None;
    }
    // Exactly one word: `<<` alone or `<<""` is none.
    let [name] = &*split_unquoted(rest).ok()? else { return None };
    let raw = split_raw(rest).ok()?;
    let expands = raw.len() == 1 && raw[0].text == name.text;
    Some(Mark { name: name.text.clone(), fd: word[..digits].parse().ok(), expands, strips_tabs })
}

/// The heredocs a logical line announces, each with the place of its word. None if quotes are
/// unbalanced or a variable is malformed: then the line is what it says, as in BuildKit.
pub fn marks(line: &Line) -> Vec<(Mark, Span)> {
    let words = split_raw(&line.text).unwrap_or_default();
    words.iter().filter_map(|word| Some((mark(&word.text)?, line.span_of(word.start..word.end)))).collect()
}

/// Takes the body of a heredoc: the lines up to its terminator. `None` if there is no terminator;
/// then nothing is left to read.
pub fn body(reader: &mut Reader<'_>, mark: Mark) -> Option<Heredoc> {
    let start = reader.position();
    let mut body = String::new();
    while let Some((at, raw)) = reader.next_raw() {
        let line = trim_line_end(raw);
        let line = if mark.strips_tabs { line.trim_start_matches('\t') } else { line };
        if line == mark.name {
            return Some(Heredoc {
                name: mark.name,
                fd: mark.fd,
                expands: mark.expands,
                strips_tabs: mark.strips_tabs,
                body,
                body_span: Span::new(start, at),
            });
        }
        body.push_str(raw);
    }
    None
}
