//! The words of ENV, LABEL and ARG: split at white space outside quotes, quotes kept.

use crate::dockerfile::line::Slice;

/// The words, quotes and escapes as written. An escape character at the very end is dropped.
pub fn words(args: Slice<'_>, escape: char) -> Vec<Slice<'_>> {
    let text = args.text();
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut end = text.len();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(start.take().map(|start| args.sub(start..at)));
            continue;
        }
        start.get_or_insert(at);
        if c == escape && quote != Some('\'') {
            if chars.next().is_none() {
                end = at;
            }
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '\'' || c == '"') {
            quote = Some(c);
        }
    }
    words.extend(start.filter(|start| *start < end).map(|start| args.sub(start..end)));
    words
}

/// The two sides of the first `=`.
pub fn split_value(word: Slice<'_>) -> Option<(Slice<'_>, Slice<'_>)> {
    let equals = word.text().find('=')?;
    Some((word.sub(0..equals), word.from(equals + 1)))
}
