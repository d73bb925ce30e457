//! Logical lines: comments dropped, continuations joined, and every byte still knowing where it came
//! from.
//!
//! ```text
//! RUN a \        ┐
//!   # why        ├─▶  "RUN a   b"     runs: (0, 0) (6, 18)
//!   b            ┘                          text ↑  ↑ source
//! ```

use std::ops::Range;

use crate::diag::Span;
use crate::dockerfile::Word;

/// White space between a keyword and its arguments. Other white space (a no-break space) is part of
/// the word, as in BuildKit.
pub const SEPARATORS: [char; 5] = ['\t', '\x0b', '\x0c', '\r', ' '];

/// A logical line.
#[derive(Debug, Default)]
pub struct Line {
    pub text: String,
    /// `(offset in text, offset in the source)` of each unbroken run, ascending, from offset 0.
    runs: Vec<(u32, u32)>,
    /// From the first character to the end of the last physical line, line end not included.
    pub span: Span,
    /// The first blank physical line among the continued ones.
    pub blank: Option<Span>,
}

impl Line {
    fn push(&mut self, text: &str, at: usize) {
        if text.is_empty() && !self.runs.is_empty() {
            return;
        }
        self.runs.push((self.text.len() as u32, at as u32));
        self.text.push_str(text);
    }

    /// The whole text, ends trimmed.
    pub fn slice(&self) -> Slice<'_> {
        Slice { line: self, start: 0, end: self.text.len() }.trim()
    }

    /// Where a range of [`Line::text`] stands in the source.
    pub fn span_of(&self, range: Range<usize>) -> Span {
        Slice { line: self, start: range.start, end: range.end }.span()
    }

    fn place(&self, offset: usize) -> usize {
        let next = self.runs.partition_point(|(text, _)| *text as usize <= offset);
        match next.checked_sub(1) {
            Some(index) => self.runs[index].1 as usize + (offset - self.runs[index].0 as usize),
            None => self.span.start as usize,
        }
    }
}

/// A part of a [`Line`].
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    line: &'a Line,
    start: usize,
    end: usize,
}

impl<'a> Slice<'a> {
    pub fn text(self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The part at a range of bytes of [`Slice::text`].
    pub fn sub(self, range: Range<usize>) -> Self {
        Self { line: self.line, start: self.start + range.start, end: self.start + range.end }
    }

    pub fn from(self, start: usize) -> Self {
        self.sub(start..self.end - self.start)
    }

    pub fn trim(self) -> Self {
        let text = self.text();
        let start = text.len() - text.trim_start().len();
        self.sub(start..start + text.trim().len())
    }

    /// From where it begins to the end of the line, white space there too.
    pub fn to_line_end(self) -> Self {
        Self { end: self.line.text.len(), ..self }
    }

    /// Before and after the first run of [`SEPARATORS`]; the second is empty when there is none.
    pub fn split_first(self) -> (Self, Self) {
        let text = self.text();
        let first = text.find(SEPARATORS).unwrap_or(text.len());
        let rest = &text[first..];
        let second = first + (rest.len() - rest.trim_start_matches(SEPARATORS).len());
        (self.sub(0..first), self.from(second))
    }

    /// The words between [`SEPARATORS`]; quotes do not group.
    pub fn words(self) -> Vec<Self> {
        let mut words = Vec::new();
        let mut rest = self.trim();
        while !rest.is_empty() {
            let (word, after) = rest.split_first();
            words.push(word);
            rest = after;
        }
        words
    }

    /// From the first to the last byte in the source; an empty slice has the place it stands at.
    pub fn span(self) -> Span {
        let start = self.line.place(self.start);
        let end = if self.end > self.start { self.line.place(self.end - 1) + 1 } else { start };
        Span::new(start, end.max(start))
    }

    /// The source offset of the byte at `offset`.
    pub fn place(self, offset: usize) -> usize {
        self.line.place(self.start + offset)
    }

    pub fn word(self) -> Word {
        let first = self.line.runs.partition_point(|(text, _)| *text as usize <= self.start);
        let inner = self.line.runs[first..].iter().take_while(|(text, _)| (*text as usize) < self.end);
        let mut runs: Vec<_> = inner.map(|(text, at)| (*text - self.start as u32, *at)).collect();
        if !runs.is_empty() {
            runs.insert(0, (0, self.line.place(self.start) as u32));
        }
        Word { raw: self.text().to_owned(), span: self.span(), runs }
    }
}

/// Builds a word whose characters do not stand side by side: one from which quotes or escapes were
/// removed.
#[derive(Debug, Default)]
pub struct WordBuilder {
    raw: String,
    runs: Vec<(u32, u32)>,
    end: usize,
}

impl WordBuilder {
    /// Appends a character that is written at `start..end` in the source.
    pub fn push(&mut self, c: char, start: usize, end: usize) {
        // An escape sequence (`\u0041`) is longer than its character: the next one starts a run.
        if self.raw.is_empty() || start != self.end || end - start != c.len_utf8() {
            self.runs.push((self.raw.len() as u32, start as u32));
        }
        self.raw.push(c);
        self.end = if end - start == c.len_utf8() { end } else { usize::MAX };
    }

    pub fn as_str(&self) -> &str {
        &self.raw
    }

    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The word; an empty one has an empty span at 0.
    pub fn finish(self) -> Word {
        let Some((raw, at)) = self.runs.last() else { return Word::default() };
        let start = self.runs[0].1 as usize;
        let end = *at as usize + (self.raw.len() - *raw as usize);
        let runs = if self.runs.len() == 1 { Vec::new() } else { self.runs };
        Word { raw: self.raw, span: Span::new(start, end.max(start)), runs }
    }
}

/// Goes through the physical lines of a text.
pub struct Reader<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reads `text` from byte `position` on.
    pub fn new(text: &'a str, position: usize) -> Self {
        Self { text, position }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    /// The next physical line and its offset, line end included.
    pub fn next_raw(&mut self) -> Option<(usize, &'a str)> {
        let at = self.position;
        let rest = &self.text[at..];
        let length = rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        self.position += length;
        (length > 0).then(|| (at, &rest[..length]))
    }

    /// The next logical line that is not blank.
    pub fn next_line(&mut self, escape: char) -> Option<Line> {
        loop {
            let (at, raw) = self.next_raw()?;
            let physical = trim_line_end(raw).trim_start();
            if physical.is_empty() || physical.starts_with('#') {
                continue;
            }
            let start = at + (trim_line_end(raw).len() - physical.len());
            let mut line = Line::default();
            let (text, mut continues) = continued(physical, escape);
            line.push(text, start);
            let mut end = start + physical.len();
            while continues {
                let Some((at, raw)) = self.next_raw() else { break };
                let physical = trim_line_end(raw);
                let content = physical.trim_start();
                if content.starts_with('#') {
                    continue;
                }
                if content.is_empty() {
                    line.blank.get_or_insert(Span::new(at, at + physical.len()));
                    continue;
                }
                let text;
                (text, continues) = continued(physical, escape);
                line.push(text, at);
                end = at + physical.len();
            }
            line.span = Span::new(start, end);
            return Some(line);
        }
    }
}

pub fn trim_line_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// A physical line without its continuation mark, and whether it had one: the escape character at
/// the end, spaces and tabs after it allowed, and not escaped itself.
fn continued(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(text) if !text.ends_with(escape) => (text, true),
        _ => (line, false),
    }
}
