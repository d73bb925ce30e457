//! JSON form: arguments that are an array of strings.

use std::borrow::Cow;

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
    let Ok(values) = serde_json::from_str::<Vec<Value>>(&whole(text)) else { return Form::Shell };
    let elements = elements(args);
    match values.iter().position(|value| !value.is_string()) {
        Some(index) => Form::NotString(elements.get(index).map_or(args.span(), |element| element.span())),
        None => Form::Json(elements.into_iter().map(decode).collect()),
    }
}

/// The text with `\u` escapes of half a pair made those of the replacement character, which is what Go reads them as;
/// `serde_json` refuses them.
fn whole(text: &str) -> Cow<'_, str> {
    let mut whole = Cow::Borrowed(text);
    let mut at = 0;
    while let Some(found) = text[at..].find('\\') {
        let start = at + found;
        at = match unit(&text[start..]) {
            Some(0xd800..0xdc00) if matches!(unit(&text[start + 6..]), Some(0xdc00..0xe000)) => start + 12,
            Some(0xd800..0xe000) => {
                whole.to_mut().replace_range(start + 2..start + 6, "fffd");
                start + 6
            }
            Some(_) => start + 6,
            None => start + 1 + text[start + 1..].chars().next().map_or(0, char::len_utf8),
        };
    }
    whole
}

/// The number of the `\uXXXX` that the text begins with.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
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
                    let first = unit(&text[at..]).unwrap_or_default();
                    let second = unit(text.get(at + 6..).unwrap_or_default());
                    let (code, length) = match (first, second) {
                        (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
                            (0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00), 12)
                        }
                        _ => (first, 6),
                    };
                    while chars.next_if(|(next, _)| *next < at + length).is_some() {}
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
