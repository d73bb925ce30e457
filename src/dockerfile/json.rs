//! JSON form: arguments that are an array of strings.

use serde_json::Value;

use crate::diag::Span;
use crate::dockerfile::Word;
use crate::dockerfile::line::{Slice, WordBuilder};

/// What arguments turned out to be.
pub enum Form {
    /// An array of strings, decoded.
    Json(Vec<Word>),
    /// Not a JSON array: shell form. A malformed array is no error, since `[ -f x ] && y` is a
    /// command.
    Shell,
    /// An array with an element that is no string; the first such.
    NotString(Span),
}

pub fn form(args: Slice<'_>) -> Form {
    let text = args.text();
    if !text.starts_with('[') {
        return Form::Shell;
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(text) else { return Form::Shell };
    let elements = elements(args);
    match values.iter().position(|value| !value.is_string()) {
        Some(index) => Form::NotString(elements.get(index).map_or(args.span(), |element| element.span())),
        None => Form::Json(elements.into_iter().map(decode).collect()),
    }
}

/// The elements of a valid JSON array, as written.
fn elements(array: Slice<'_>) -> Vec<Slice<'_>> {
    let text = array.text();
    let mut elements = Vec::new();
    let (mut depth, mut start, mut in_string, mut is_escaped) = (0, 0, false, false);
    for (at, c) in text.char_indices() {
        if in_string {
            in_string = is_escaped || c != '"';
            is_escaped = !is_escaped && c == '\\';
            continue;
        }
        match c {
            '"' => in_string = true,
            '[' | '{' => {
                depth += 1;
                if depth == 1 {
                    start = at + 1;
                }
            }
            ',' if depth == 1 => {
                elements.push(array.sub(start..at).trim());
                start = at + 1;
            }
            ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    elements.push(array.sub(start..at).trim());
                }
            }
            _ => {}
        }
    }
    // `[]` has no element, though there is a place for one.
    elements.retain(|element| !element.is_empty());
    elements
}

/// A valid JSON string, quotes included, as the word it stands for.
fn decode(string: Slice<'_>) -> Word {
    let text = string.text();
    let mut word = WordBuilder::default();
    let mut chars = text.char_indices().peekable();
    chars.next();
    while let Some((at, c)) = chars.next() {
        let c = match c {
            '"' => break,
            '\\' => match chars.next() {
                Some((_, 'b')) => '\x08',
                Some((_, 'f')) => '\x0c',
                Some((_, 'n')) => '\n',
                Some((_, 'r')) => '\r',
                Some((_, 't')) => '\t',
                Some((_, 'u')) => {
                    let mut unit =
                        || (0..4).filter_map(|_| chars.next()?.1.to_digit(16)).fold(0, |sum, hex| sum * 16 + hex);
                    let first = unit();
                    // The pair is whole: a lone surrogate is not valid for serde_json.
                    let code = if (0xd800..0xdc00).contains(&first) {
                        chars.next();
                        chars.next();
                        let mut unit =
                            || (0..4).filter_map(|_| chars.next()?.1.to_digit(16)).fold(0, |sum, hex| sum * 16 + hex);
                        0x10000 + ((first - 0xd800) << 10) + unit().saturating_sub(0xdc00)
                    } else {
                        first
                    };
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
                Some((_, c)) => c,
                None => break,
            },
            c => c,
        };
        let end = chars.peek().map_or(text.len(), |(end, _)| *end);
        word.push(c, string.place(at), string.place(end - 1) + 1);
    }
    if word.is_empty() {
        return Word { span: string.span(), ..Word::default() };
    }
    word.finish()
}
