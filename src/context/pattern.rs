//! The patterns of COPY and ADD sources: Go's `filepath.Match`, one path component at a time, on
//! bytes. `*`, `?`, `[a-z]`, `[^x]`, and `\` before a character that is to be taken as it is.
//!
//! A name that is not UTF-8 matches as Go has it: each stray byte counts as one character.

/// A pattern for one component of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `*`: any characters, or none.
    Many,
    /// `?`
    One,
    Literal(char),
    /// A byte of the pattern that is no part of a character.
    Byte(u8),
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// The pattern has an unclosed or empty `[]`, a range without an end, or ends in `\`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPattern;

impl Pattern {
    pub fn parse(pattern: &[u8]) -> Result<Self, BadPattern> {
        let mut tokens = Vec::new();
        let mut rest = pattern;
        while let Some((&first, after)) = rest.split_first() {
            let (token, after) = match first {
                b'*' => (Token::Many, after),
                b'?' => (Token::One, after),
                b'[' => class(after)?,
                b'\\' if after.is_empty() => return Err(BadPattern),
                b'\\' => literal(after),
                _ => literal(rest),
            };
            if !(token == Token::Many && tokens.last() == Some(&Token::Many)) {
                tokens.push(token);
            }
            rest = after;
        }
        Ok(Self { tokens })
    }

    /// Whether the pattern matches all of `name`, which has no slash.
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut token, mut at) = (0, 0);
        // Where to go on when a later token fails: the last `*` takes one character more. An
        // earlier `*` never needs to, as the last one can take whatever it would have taken.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            if self.tokens.get(token) == Some(&Token::Many) {
                retry = Some((token, at));
                token += 1;
                continue;
            }
            let step = match self.tokens.get(token) {
                None if at == name.len() => return true,
                Some(token) if at < name.len() => token.step(&name[at..]),
                _ => None,
            };
            if let Some(width) = step {
                token += 1;
                at += width;
                continue;
            }
            match retry {
                Some((star, from)) if from < name.len() => {
                    let next = from + decode(&name[from..]).1;
                    retry = Some((star, next));
                    token = star + 1;
                    at = next;
                }
                _ => return false,
            }
        }
    }
}

impl Token {
    /// How many bytes of `name`, which is not empty, this one token takes.
    fn step(&self, name: &[u8]) -> Option<usize> {
        let (character, width) = decode(name);
        let takes = match self {
            Self::Many => return None,
            Self::One => true,
            Self::Literal(literal) => character == Some(*literal),
            Self::Byte(byte) => character.is_none() && name[0] == *byte,
            Self::Class { is_negated, ranges } => {
                let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
                ranges.iter().any(|(low, high)| *low <= character && character <= *high) != *is_negated
            }
        };
        takes.then_some(width)
    }
}

fn literal(bytes: &[u8]) -> (Token, &[u8]) {
    match decode(bytes) {
        (Some(character), width) => (Token::Literal(character), &bytes[width..]),
        (None, width) => (Token::Byte(bytes[0]), &bytes[width..]),
    }
}

/// Parses what follows a `[`.
fn class(bytes: &[u8]) -> Result<(Token, &[u8]), BadPattern> {
    let (is_negated, mut rest) = match bytes.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let mut ranges = Vec::new();
    loop {
        // A `]` in the first place is not the end, and not a member either: Go refuses `[]a]`.
        if let (Some(after), false) = (rest.strip_prefix(b"]"), ranges.is_empty()) {
            return Ok((Token::Class { is_negated, ranges }, after));
        }
        let low;
        (low, rest) = class_member(rest)?;
        let mut high = low;
        if let Some(after) = rest.strip_prefix(b"-") {
            (high, rest) = class_member(after)?;
        }
        ranges.push((low, high));
    }
}

fn class_member(bytes: &[u8]) -> Result<(char, &[u8]), BadPattern> {
    let bytes = match bytes.first() {
        None | Some(b'-' | b']') => return Err(BadPattern),
        Some(b'\\') => &bytes[1..],
        Some(_) => bytes,
    };
    match decode(bytes) {
        // The class must still be closed.
        (Some(character), width) if width < bytes.len() => Ok((character, &bytes[width..])),
        _ => Err(BadPattern),
    }
}

/// The first character and its width in bytes; `None` and 1 where a byte is no part of one.
fn decode(bytes: &[u8]) -> (Option<char>, usize) {
    match bytes.first() {
        None => (None, 0),
        Some(byte) if byte.is_ascii() => (Some(char::from(*byte)), 1),
        Some(_) => {
            let head = &bytes[..bytes.len().min(4)];
            let valid = head.utf8_chunks().next().map_or("", |chunk| chunk.valid());
            valid.chars().next().map_or((None, 1), |character| (Some(character), character.len_utf8()))
        }
    }
}

/// Whether Docker takes this for a pattern rather than a name: an unescaped `*`, `?` or `[`.
pub fn has_wildcard(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => _ = bytes.next(),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// `text` without the backslashes that escape the character after them.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
    }
    plain
}

/// The components of a path as seen from a root: empty ones and `.` dropped, `..` taken back
/// lexically and never above the root.
pub fn components(path: &[u8]) -> Vec<&[u8]> {
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => _ = components.pop(),
            _ => components.push(component),
        }
    }
    components
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_go_does() {
        let table: &[(&[u8], &[u8], Option<bool>)] = &[
            (b"abc", b"abc", Some(true)),
            (b"abc", b"abcd", Some(false)),
            (b"*", b"", Some(true)),
            (b"*", b".hidden", Some(true)),
            (b"*c", b"abc", Some(true)),
            (b"a*b*c", b"a1b2b3c", Some(true)),
            (b"a*b*c", b"a1b2b3cx", Some(false)),
            (b"a**b", b"ab", Some(true)),
            (b"a*b?c*x", b"abxbbxdbxebxczzx", Some(true)),
            (b"a*b?c*x", b"abxbbxdbxebxczzy", Some(false)),
            (b"?", b"", Some(false)),
            (b"?", "ü".as_bytes(), Some(true)),
            (b"??", "ü".as_bytes(), Some(false)),
            (b"?", b"\xff", Some(true)),
            (b"\xff*", b"\xff\xfe", Some(true)),
            (b"\xff", b"\xfe", Some(false)),
            (b"*.txt", b"\xe2\x82.txt", Some(true)),
            (b"[a-c]x", b"bx", Some(true)),
            (b"[^a-c]x", b"bx", Some(false)),
            (b"[^a-c]x", b"dx", Some(true)),
            (b"[!a]", b"!", Some(true)),
            (b"[!a]", b"b", Some(false)),
            ("[à-ü]".as_bytes(), "é".as_bytes(), Some(true)),
            (b"[\\]]", b"]", Some(true)),
            (b"[\\-x]", b"-", Some(true)),
            (b"[a\\-c]", b"b", Some(false)),
            (b"lit[[]x].txt", b"lit[x].txt", Some(true)),
            (b"lit[[]x].txt", b"litx.txt", Some(false)),
            (b"\\*", b"*", Some(true)),
            (b"\\*", b"x", Some(false)),
            (b"a]", b"a]", Some(true)),
            (b"[z-a]", b"m", Some(false)),
            (b"{a,b}", b"a", Some(false)),
            (b"[", b"a", None),
            (b"[a", b"a", None),
            (b"[]a]", b"a", None),
            (b"[-]", b"-", None),
            (b"[a-]", b"a", None),
            (b"[-x]", b"x", None),
            (b"[^]", b"x", None),
            (b"x\\", b"x", None),
            (b"[\xff]", b"\xff", None),
        ];
        for (pattern, name, expected) in table {
            let actual = Pattern::parse(pattern).ok().map(|pattern| pattern.matches(name));
            assert_eq!(actual, *expected, "{} {}", pattern.escape_ascii(), name.escape_ascii());
        }
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        let pattern = Pattern::parse(b"*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b").unwrap();
        assert!(!pattern.matches(&[b'a'; 4096]));
    }

    #[test]
    fn an_escaped_star_is_no_wildcard() {
        for (text, expected) in
            [("a*", true), ("a\\*", false), ("a?", true), ("[", true), ("\\\\*", true), ("a]", false)]
        {
            assert_eq!(has_wildcard(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(unescape(b"a\\*b\\\\c\\"), b"a*b\\c\\");
    }

    #[test]
    fn no_path_leaves_the_root() {
        for (path, expected) in
            [("/", ""), ("../../x", "x"), ("a/../../b/./c//", "b/c"), ("./a", "a"), ("a/..", ""), ("/a/b/", "a/b")]
        {
            assert_eq!(components(path.as_bytes()).join(&b'/'), expected.as_bytes(), "{path}");
        }
    }
}
