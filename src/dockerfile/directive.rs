//! Parser directives: `# syntax=`, `# escape=` and `# check=` on the first lines.

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};
use crate::dockerfile::Word;
use crate::dockerfile::fault::Faults;
use crate::dockerfile::line::{Reader, trim_line_end};
use crate::dockerfile::statement::brief;

pub struct Directives {
    pub escape: char,
    pub syntax: Option<Word>,
    pub check: Option<Word>,
}

/// Reads the directives of `text` from byte `start` on; they end at the first line that is none.
/// They are comments as well, so nothing need be skipped afterwards.
pub fn read(source: &Arc<Source>, start: usize, faults: &mut Faults) -> Directives {
    let mut directives = Directives { escape: '\\', syntax: None, check: None };
    let mut seen: Vec<(&str, Span)> = Vec::new();
    let mut reader = Reader::new(&source.text, start);
    // BuildKit looks for `syntax` and `check` below a shebang, and for `escape` not.
    let mut has_shebang = false;
    while let Some((at, raw)) = reader.next_raw() {
        let line = trim_line_end(raw);
        if at == start && line.starts_with("#!") {
            has_shebang = true;
            continue;
        }
        let Some((key, value)) = split(line) else { break };
        let span_of = |part: &str| {
            let offset = at + (part.as_ptr() as usize - line.as_ptr() as usize);
            Span::new(offset, offset + part.len())
        };
        let Some(name) = ["syntax", "escape", "check"].into_iter().find(|name| name.eq_ignore_ascii_case(key)) else {
            break;
        };
        if let Some((_, first)) = seen.iter().find(|(seen, _)| *seen == name) {
            faults.push(
                Diagnostic::error(format!("only one `{name}` parser directive can be used"))
                    .at(source, span_of(key), "")
                    .at(source, *first, "the first one"),
            );
            continue;
        }
        seen.push((name, span_of(key)));
        let word = |text: &str| Some(Word { raw: text.to_owned(), span: span_of(text), runs: Vec::new() });
        match name {
            "syntax" => directives.syntax = word(value.split(' ').next().unwrap_or(value)),
            "check" => directives.check = word(value),
            _ if has_shebang => {}
            _ => match value {
                "\\" => directives.escape = '\\',
                "`" => directives.escape = '`',
                _ => faults.push(
                    Diagnostic::error(format!("invalid escape character `{}`", brief(value)))
                        .at(source, span_of(value), "must be `\\` or a backtick")
                        .hint("write `# escape=\\` or `` # escape=` ``"),
                ),
            },
        }
    }
    directives
}

/// `# key = value`: letters and digits, then anything up to trailing white space.
fn split(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let is_name = key.starts_with(|c: char| c.is_ascii_alphabetic()) && key.chars().all(|c| c.is_ascii_alphanumeric());
    (is_name && !value.is_empty()).then_some((key, value))
}
