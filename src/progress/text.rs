//! Bytes a step wrote, made fit to be shown: cut into lines, kept as a short tail, and freed of
//! everything that would move the cursor, change colours or reorder characters.

use std::collections::VecDeque;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A line longer than this is shown in pieces, so that output without line ends stays bounded.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Hands every line completed by `bytes` to `each`, without its line feed.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            match piece.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&piece[..end]);
                    bytes = &bytes[end + 1..];
                    each(&std::mem::take(&mut self.partial));
                }
                None => {
                    self.partial.extend_from_slice(piece);
                    bytes = &bytes[piece.len()..];
                    if self.partial.len() == MAX_LINE_BYTES {
                        each(&std::mem::take(&mut self.partial));
                    }
                }
            }
        }
    }

    /// What stands after the last line feed.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// The unfinished line, if there is one; nothing is left.
    pub fn finish(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

/// The last lines of what a step wrote: at most 20 lines and 8 KiB, the unfinished one included.
#[derive(Debug, Default)]
pub struct Tail {
    lines: Lines,
    kept: VecDeque<Vec<u8>>,
    kept_bytes: usize,
}

impl Tail {
    const LINES: usize = 20;
    const BYTES: usize = 8 << 10;

    pub fn push(&mut self, bytes: &[u8]) {
        let Self { lines, kept, kept_bytes } = self;
        lines.push(bytes, |line| {
            let line = &line[line.len().saturating_sub(Self::BYTES)..];
            *kept_bytes += line.len();
            kept.push_back(line.to_vec());
            while kept.len() > Self::LINES || *kept_bytes > Self::BYTES {
                *kept_bytes -= kept.pop_front().map_or(0, |line| line.len());
            }
        });
    }

    /// The kept lines, fit to be shown on a terminal.
    pub fn lines(&self) -> Vec<String> {
        let partial = self.lines.partial();
        let mut room = Self::BYTES;
        let mut shown: Vec<_> = std::iter::once(partial)
            .filter(|partial| !partial.is_empty())
            .chain(self.kept.iter().rev().map(Vec::as_slice))
            .take(Self::LINES)
            .map_while(|line| {
                room = room.checked_sub(line.len().min(Self::BYTES))?;
                Some(defuse(&line[line.len().saturating_sub(Self::BYTES)..]))
            })
            .collect();
        shown.reverse();
        shown
    }
}

/// One line as a terminal may show it: text that a later one overwrote after a carriage return is
/// gone, tabs are blanks, bytes that are no UTF-8 are replaced; escape sequences, control
/// characters and those that change the direction of text are dropped.
pub fn defuse(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let shown = text.split('\r').rfind(|piece| !piece.is_empty()).unwrap_or_default();
    let mut clean = String::with_capacity(shown.len());
    let mut rest = shown.chars();
    while let Some(char) = rest.next() {
        match char {
            '\x1b' => skip_escape(&mut rest),
            '\u{9b}' => skip_parameters(&mut rest),
            '\t' => clean.push_str(&" ".repeat(8 - clean.width() % 8)),
            '\n' => clean.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            '\u{2028}' | '\u{2029}' => clean.push(' '),
            char if char.is_control() => {}
            char => clean.push(char),
        }
    }
    clean
}

/// ECMA-48, 5.3 to 5.6: what follows an ESC.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    match rest.next() {
        Some('[') => skip_parameters(rest),
        // Operating system command and its kin: up to BEL or ESC `\`.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(char) = rest.next() {
                if char == '\x07' || char == '\u{9c}' || (char == '\x1b' && rest.as_str().starts_with('\\')) {
                    break;
                }
            }
            if rest.as_str().starts_with('\\') {
                rest.next();
            }
        }
        Some(' '..='/') => {
            rest.find(|char| !matches!(char, ' '..='/'));
        }
        _ => {}
    }
}

/// A control sequence up to and with its final character; ends early at one that cannot be part.
fn skip_parameters(rest: &mut std::str::Chars<'_>) {
    while let Some(char) = rest.clone().next() {
        match char {
            ' '..='?' => {
                rest.next();
            }
            '@'..='~' => {
                rest.next();
                return;
            }
            _ => return,
        }
    }
}

/// Columns that `text` takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `columns` columns, ended with `…` if something had to go.
pub fn fit(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.into();
    }
    let mut used = 1;
    let mut kept: String = text
        .chars()
        .take_while(|char| {
            used += char.width().unwrap_or(0);
            used <= columns
        })
        .collect();
    if columns > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_is_left() {
        for (line, expected) in [
            (&b"plain"[..], "plain"),
            (b"10%\r50%\r100%", "100%"),
            (b"windows\r", "windows"),
            (b"a\tb", "a       b"),
            (b"\x1b[31mred\x1b[0m", "red"),
            (b"\x1b[2J\x1b[1;1Hhome", "home"),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1bPdevice\x1b\\x", "x"),
            (b"\x1b(Bcharset", "charset"),
            (b"\x1b[31", ""),
            (b"\x1b[3\xc3\xa9", "é"),
            (b"bell\x07 back\x08space del\x7f", "bell backspace del"),
            (b"\xc2\x9b31mc1", "c1"),
            ("safe\u{202e}evil".as_bytes(), "safeevil"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(defuse(line), expected, "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn lines_join_across_pushes_and_long_ones_are_cut() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in ["a", "b\nc\n\n", "d"] {
            lines.push(piece.as_bytes(), |line| seen.push(String::from_utf8_lossy(line).into_owned()));
        }
        assert_eq!(seen, ["ab", "c", ""]);
        assert_eq!(lines.finish(), Some(b"d".to_vec()));
        assert_eq!(lines.finish(), None);

        let mut lengths = Vec::new();
        lines.push(&vec![b'x'; MAX_LINE_BYTES * 2 + 1], |line| lengths.push(line.len()));
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES]);
        assert_eq!(lines.partial(), b"x");
    }

    #[test]
    fn tail_keeps_the_end_and_is_bounded() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        tail.push(b"unfinished");
        let lines = tail.lines();
        assert_eq!(lines.len(), Tail::LINES);
        assert_eq!(lines[0], "line 81");
        assert_eq!(lines[19], "unfinished");

        tail.push(&[b'x'; 100_000]);
        let kept: usize = tail.lines().iter().map(String::len).sum();
        assert!(kept <= Tail::BYTES, "{kept}");
        assert!(tail.lines().last().is_some_and(|line| line.ends_with('x')));
    }

    #[test]
    fn fitting_counts_columns() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("abc", 0), "");
    }
}
