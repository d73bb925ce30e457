//! Variable expansion and unquoting of words, as BuildKit's shell lexer does it: `$n`, `${n}`,
//! `${n:-w}` and its kin, `#`, `%` and `/` modifiers, quotes and escapes.
//!
//! ```text
//! a"b $x"'c $x'\$d   ──▶   a, then "b " and the value of x, then c $x literally, then $d
//! ```
//!
//! Every function here is linear in what it reads and writes; nesting and the size of the result
//! are bounded, since a Dockerfile can ask for both to explode.

mod pattern;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};
use crate::dockerfile::Word;

/// Where a name gets its value.
pub trait Variables {
    /// `None`: unset.
    fn get(&self, name: &str) -> Option<&str>;
}

/// A failed expansion: what is wrong and where in the raw text of the word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandError {
    pub message: String,
    /// Bytes of [`Word::raw`].
    pub start: usize,
    pub end: usize,
}

/// The result of an expansion.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Expanded {
    pub text: String,
    /// Names that were asked for and unset, each once, in order; for the UndefinedVar lint.
    pub unset: Vec<String>,
}

/// Expands and unquotes to one string.
pub fn expand(word: &str, escape: char, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    Lexer::new(word, escape, variables, Mode::default()).text()
}

/// Expands and splits at unquoted white space, as EXPOSE does: one variable may yield several words.
pub fn expand_words(word: &str, escape: char, variables: &dyn Variables) -> Result<Vec<String>, ExpandError> {
    let words = Lexer::new(word, escape, variables, Mode::default()).words()?;
    Ok(words.into_iter().map(|word| word.text).collect())
}

/// Expands but keeps quotes and escapes of the surrounding text (ONBUILD, flag values that are
/// parsed again).
pub fn expand_raw(word: &str, escape: char, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    Lexer::new(word, escape, variables, Mode { keeps_quotes: true, keeps_escapes: true, ..Mode::default() }).text()
}

/// Expands a heredoc body: quotes are ordinary characters, `\` escapes whatever `# escape=` says.
pub fn expand_heredoc(body: &str, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    Lexer::new(body, '\\', variables, Mode { ignores_quotes: true, ..Mode::default() }).text()
}

/// Splits a line as a shell would, keeping quotes, escapes and variables as they are written; each
/// word comes with the offset of its first byte. What the heredoc scanner looks through.
pub(super) fn split_raw(line: &str) -> Result<Vec<SplitWord>, ExpandError> {
    let mode = Mode { keeps_quotes: true, keeps_escapes: true, keeps_unset: true, ..Mode::default() };
    Lexer::new(line, '\\', &NoVariables, mode).words()
}

/// As [`split_raw`], but with quotes and escapes removed.
pub(super) fn split_unquoted(line: &str) -> Result<Vec<SplitWord>, ExpandError> {
    Lexer::new(line, '\\', &NoVariables, Mode { keeps_unset: true, ..Mode::default() }).words()
}

/// A scope in which nothing is set.
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

impl ExpandError {
    /// The diagnostic that points into `word`.
    pub fn at(&self, source: &Arc<Source>, word: &Word) -> Diagnostic {
        let span: Span = word.span_of(self.start, self.end);
        Diagnostic::error(self.message.clone()).at(source, span, "")
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct SplitWord {
    pub text: String,
    /// The bytes, in the text that was split, of the first to the last character.
    pub start: usize,
    pub end: usize,
}

/// `${a:-${b:-…}}` deeper than this is an error: each level is a stack frame.
const NESTING_LIMIT: usize = 100;

/// No result is longer: `A=$A$A` doubles with every line.
const SIZE_LIMIT: usize = 64 << 20;

#[derive(Clone, Copy, Default)]
struct Mode {
    keeps_quotes: bool,
    keeps_escapes: bool,
    /// Leaves `$x` of an unset `x` as it is.
    keeps_unset: bool,
    ignores_quotes: bool,
}

/// Collects the words of a text while it is expanded.
#[derive(Default)]
struct Words {
    done: Vec<SplitWord>,
    word: String,
    start: usize,
    end: usize,
}

impl Words {
    /// A character that splits if it is white space.
    fn split(&mut self, c: char, start: usize, end: usize) {
        if c.is_whitespace() { self.finish() } else { self.join(c, start, end) }
    }

    /// A quoted or escaped character: white space does not split.
    fn join(&mut self, c: char, start: usize, end: usize) {
        if self.word.is_empty() {
            self.start = start;
        }
        self.word.push(c);
        self.end = end;
    }

    fn finish(&mut self) {
        if !self.word.is_empty() {
            self.done.push(SplitWord { text: std::mem::take(&mut self.word), start: self.start, end: self.end });
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    position: usize,
    escape: char,
    variables: &'a dyn Variables,
    mode: Mode,
    depth: usize,
    unset: Vec<String>,
    seen_unset: BTreeSet<String>,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str, escape: char, variables: &'a dyn Variables, mode: Mode) -> Self {
        Self { text, position: 0, escape, variables, mode, depth: 0, unset: Vec::new(), seen_unset: BTreeSet::new() }
    }

    fn text(mut self) -> Result<Expanded, ExpandError> {
        let text = self.until(None, self.mode.keeps_escapes, None)?;
        Ok(Expanded { text, unset: self.unset })
    }

    fn words(mut self) -> Result<Vec<SplitWord>, ExpandError> {
        let mut words = Words::default();
        self.until(None, self.mode.keeps_escapes, Some(&mut words))?;
        words.finish();
        Ok(words.done)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.position..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.position += c.len_utf8();
        Some(c)
    }

    fn error<T>(&self, start: usize, end: usize, message: impl Into<String>) -> Result<T, ExpandError> {
        Err(ExpandError { message: message.into(), start, end })
    }

    /// Reads up to and over `stop`, or to the end when there is none. The caller words the error of
    /// a missing `stop`: then the result is short of it and nothing is left to read.
    fn until(
        &mut self,
        stop: Option<char>,
        keeps_escapes: bool,
        mut words: Option<&mut Words>,
    ) -> Result<String, ExpandError> {
        let mut out = String::new();
        while let Some(c) = self.peek() {
            let at = self.position;
            if Some(c) == stop {
                return Ok(out);
            }
            match c {
                '\'' | '"' if !self.mode.ignores_quotes => {
                    let quoted = if c == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    if let Some(words) = words.as_deref_mut() {
                        quoted.chars().for_each(|c| words.join(c, at, self.position));
                    }
                    out.push_str(&quoted);
                }
                '$' => {
                    let value = self.dollar()?;
                    if let Some(words) = words.as_deref_mut() {
                        value.chars().for_each(|c| words.split(c, at, self.position));
                    }
                    self.append(&mut out, &value, at)?;
                }
                _ => {
                    self.position += c.len_utf8();
                    if c != self.escape {
                        out.push(c);
                        if let Some(words) = words.as_deref_mut() {
                            words.split(c, at, self.position);
                        }
                        continue;
                    }
                    // An escape at the very end stands for nothing.
                    let escaped = self.next();
                    for c in keeps_escapes.then_some(c).into_iter().chain(escaped) {
                        out.push(c);
                        if let Some(words) = words.as_deref_mut() {
                            words.join(c, at, self.position);
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    fn append(&self, out: &mut String, value: &str, at: usize) -> Result<(), ExpandError> {
        if out.len() + value.len() > SIZE_LIMIT {
            return self.error(at, self.position, "the value becomes larger than 64 MiB");
        }
        out.push_str(value);
        Ok(())
    }

    /// `'…'`: everything is literal.
    fn single_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        let Some(length) = self.text[start + 1..].find('\'') else {
            return self.error(start, start + 1, "missing closing single quote");
        };
        self.position = start + length + 2;
        let range = if self.mode.keeps_quotes { start..self.position } else { start + 1..self.position - 1 };
        Ok(self.text[range].to_owned())
    }

    /// `"…"`: `$` is special, and the escape character before `"`, `$` and itself.
    fn double_quoted(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        self.position += 1;
        let mut out = String::new();
        if self.mode.keeps_quotes {
            out.push('"');
        }
        loop {
            let at = self.position;
            match self.peek() {
                None => return self.error(start, start + 1, "missing closing double quote"),
                Some('"') => {
                    self.position += 1;
                    if self.mode.keeps_quotes {
                        out.push('"');
                    }
                    return Ok(out);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    self.append(&mut out, &value, at)?;
                }
                Some(c) => {
                    self.position += c.len_utf8();
                    if c != self.escape {
                        out.push(c);
                        continue;
                    }
                    // `"\n"` keeps its backslash, so where escapes are kept it is written twice: to
                    // be read once more.
                    if self.mode.keeps_escapes {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(special) if special == '"' || special == '$' || special == self.escape => {
                            self.position += special.len_utf8();
                            out.push(special);
                        }
                        Some(_) => out.push(c),
                    }
                }
            }
        }
    }

    /// `$…`, the position being at the dollar sign.
    fn dollar(&mut self) -> Result<String, ExpandError> {
        let start = self.position;
        self.position += 1;
        if self.peek() == Some('{') {
            self.depth += 1;
            if self.depth > NESTING_LIMIT {
                return self.error(start, start + 2, format!("`${{` is nested more than {NESTING_LIMIT} deep"));
            }
            let value = self.braced(start)?;
            self.depth -= 1;
            return Ok(value);
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.look_up(name) {
            Some(value) => value.to_owned(),
            None if self.mode.keeps_unset => format!("${name}"),
            None => String::new(),
        })
    }

    /// Letters, digits and `_`; or digits alone (`$12`); or one of the shell's special parameters,
    /// which are never set here.
    fn name(&mut self) -> &'a str {
        let rest = &self.text[self.position..];
        let length = match rest.chars().next() {
            Some(c) if c.is_numeric() => rest.find(|c: char| !c.is_numeric()).unwrap_or(rest.len()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()),
        };
        self.position += length;
        &rest[..length]
    }

    fn look_up(&mut self, name: &str) -> Option<&'a str> {
        let value = self.variables.get(name);
        if value.is_none() && self.seen_unset.insert(name.to_owned()) {
            self.unset.push(name.to_owned());
        }
        value
    }

    /// The text up to `stop`, which must come; `missing` words its absence.
    fn word(&mut self, start: usize, stop: char, keeps_escapes: bool, missing: &str) -> Result<String, ExpandError> {
        let word = self.until(Some(stop), keeps_escapes, None)?;
        if self.next() != Some(stop) {
            // To the end of the line: a heredoc body may go on for pages.
            let line = &self.text[start..];
            return self.error(start, start + line.find('\n').unwrap_or(line.len()), missing);
        }
        Ok(word)
    }

    /// `{…}` of the dollar sign at `start`.
    fn braced(&mut self, start: usize) -> Result<String, ExpandError> {
        const MISSING_BRACE: &str = "missing closing `}`";
        self.position += 1;
        match self.peek() {
            None => return self.error(start, self.position, MISSING_BRACE),
            Some('{' | '}' | ':') => {
                return self.error(start, self.position + 1, "a variable name is missing after `${`");
            }
            Some(_) => {}
        }
        let name = self.name();
        let modifier_at = self.position;
        let Some(mut modifier) = self.next() else {
            return self.error(start, self.position, MISSING_BRACE);
        };
        let treats_empty_as_unset = modifier == ':';
        if treats_empty_as_unset {
            match self.next() {
                None | Some('}') => return self.error(modifier_at, self.position, "a modifier is missing after `:`"),
                Some(next) => modifier = next,
            }
        }
        match modifier {
            c if c.is_whitespace() => self.error(start, modifier_at, MISSING_BRACE),
            '}' => {
                let value = self.look_up(name);
                Ok(self.value_or_unset(name, value))
            }
            '-' | '+' | '?' => {
                let word = self.word(start, '}', false, MISSING_BRACE)?;
                let value = self.look_up(name);
                if value.is_none() && self.mode.keeps_unset {
                    let colon = if treats_empty_as_unset { ":" } else { "" };
                    return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
                }
                let usable = value.filter(|value| !(treats_empty_as_unset && value.is_empty()));
                match (modifier, usable) {
                    ('-', Some(value)) => Ok(value.to_owned()),
                    ('-', None) => Ok(word),
                    ('+', Some(_)) => Ok(word),
                    ('+', None) => Ok(String::new()),
                    (_, Some(value)) => Ok(value.to_owned()),
                    (_, None) => {
                        let state = if value.is_some() { "empty" } else { "not set" };
                        let reason = if word.is_empty() { word } else { format!(": {word}") };
                        self.error(start, self.position, format!("variable `{name}` is {state}{reason}"))
                    }
                }
            }
            '#' | '%' if !treats_empty_as_unset => {
                let pattern_at = self.position;
                let pattern = self.word(start, '}', true, MISSING_BRACE)?;
                let value = self.look_up(name);
                if value.is_none() && self.mode.keeps_unset {
                    return Ok(format!("${{{name}{modifier}{pattern}}}"));
                }
                let (glob, is_longest) = match pattern.strip_prefix(modifier) {
                    Some(rest) => (rest, true),
                    None => (&*pattern, false),
                };
                let cut = if modifier == '#' { pattern::cut_prefix } else { pattern::cut_suffix };
                match cut(value.unwrap_or_default(), glob, is_longest) {
                    Ok(rest) => Ok(rest.to_owned()),
                    Err(why) => self.error(pattern_at, self.position - 1, why),
                }
            }
            '/' if !treats_empty_as_unset => {
                let is_global = self.peek() == Some('/');
                self.position += usize::from(is_global);
                let pattern_at = self.position;
                let missing_slash = "missing second `/`: a replacement is written `${name/pattern/replacement}`";
                let pattern = self.word(start, '/', true, missing_slash)?;
                let pattern_end = self.position - 1;
                let replacement = self.word(start, '}', true, MISSING_BRACE)?;
                let value = self.look_up(name);
                if value.is_none() && self.mode.keeps_unset {
                    return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
                }
                pattern::replace(value.unwrap_or_default(), &pattern, &replacement, is_global, SIZE_LIMIT)
                    .or_else(|why| self.error(pattern_at, pattern_end, why))
            }
            _ if treats_empty_as_unset && self.mode.keeps_unset && self.look_up(name).is_none() => {
                let word = self.word(start, '}', false, MISSING_BRACE)?;
                Ok(format!("${{{name}:{modifier}{word}}}"))
            }
            _ => {
                let written = &self.text[modifier_at..self.position];
                self.error(modifier_at, self.position, format!("unsupported modifier `{written}` in `${{…}}`"))
            }
        }
    }

    fn value_or_unset(&self, name: &str, value: Option<&str>) -> String {
        match value {
            Some(value) => value.to_owned(),
            None if self.mode.keeps_unset => format!("${{{name}}}"),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    impl Variables for BTreeMap<String, String> {
        fn get(&self, name: &str) -> Option<&str> {
            BTreeMap::get(self, name).map(String::as_str)
        }
    }

    fn variables() -> BTreeMap<String, String> {
        serde_json::from_str(include_str!("../../testdata/expand/variables.json")).unwrap()
    }

    /// A row has the word and what becomes of it: `result`, `words`, `unset` or `error`; `raw` with
    /// quotes and escapes kept and `kept` with unset variables left alone, where they differ from
    /// `result`.
    #[test]
    fn every_row_of_the_table() {
        let variables = variables();
        let table = include_str!("../../testdata/expand/words.jsonl");
        let mut wrong = Vec::new();
        for row in table.lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            let word = row["word"].as_str().unwrap();
            let escape = row["escape"].as_str().map_or('\\', |escape| escape.chars().next().unwrap());
            let mut compare = |what: &str, error_key: &str, key: &str, got: Result<Value, ExpandError>| {
                let expected = if row[key].is_null() && key != "words" { &row["result"] } else { &row[key] };
                match got {
                    Err(_) if row[error_key] == true => {}
                    Ok(got) if row[error_key] != true && got == *expected => {}
                    got => wrong.push(format!("{what} of {word:?}: {got:?}, expected {expected}")),
                }
            };
            compare("text", "error", "result", expand(word, escape, &variables).map(|got| got.text.into()));
            compare("words", "error", "words", expand_words(word, escape, &variables).map(Value::from));
            compare("raw text", "raw_error", "raw", expand_raw(word, escape, &variables).map(|got| got.text.into()));
            let mode = Mode { keeps_unset: true, ..Mode::default() };
            let kept = Lexer::new(word, escape, &variables, mode).text();
            compare("kept text", "kept_error", "kept", kept.map(|got| got.text.into()));
            if let Ok(got) = expand(word, escape, &variables) {
                let mut unset = got.unset;
                unset.sort();
                let expected: Vec<_> =
                    row["unset"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                if unset != expected {
                    wrong.push(format!("unset of {word:?}: {unset:?}, expected {expected:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    }
}
