//! One pattern of `.dockerignore`, `--exclude` or `--parents`, matching whole paths as Docker's
//! matcher does: through a translation to a Go regular expression, its quirks included.
//!
//! ```text
//! *        [^/]*        ?      [^/]         [..]   as it stands, so [!a] is `!` or `a`; [^a] negates
//! **/      (.*/)?       \c     \c, so \d is a digit
//! ** at the end   .*    { } |  not escaped: x{2}* is two x, a|b* is an alternative
//! ```
//!
//! A pattern without wildcards is compared byte by byte, whatever else is in it. The usual shapes
//! never become a regular expression at all.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::OnceLock;

use regex::Regex;

use super::pattern::{BadPattern, Pattern};

/// A compiled pattern.
#[derive(Debug)]
pub struct Glob {
    pattern: Vec<u8>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Exact,
    /// `dir/**`: what is before the stars.
    Prefix(Vec<u8>),
    /// `**/name`, `**name`: what is behind the stars.
    Suffix(Vec<u8>),
    /// `before*after`, or the same for the last component at any depth (`**/before*after`).
    Star {
        is_anywhere: bool,
        before: Vec<u8>,
        after: Vec<u8>,
    },
    Regex {
        translated: String,
        compiled: OnceLock<Option<Regex>>,
    },
}

impl Glob {
    /// Compiles a cleaned pattern.
    pub fn parse(pattern: &[u8]) -> Result<Self, BadPattern> {
        // Docker asks `filepath.Match` whether the syntax is right before it goes its own way.
        Pattern::parse(pattern)?;
        let shape = match star(pattern) {
            Some(shape) => shape,
            None => translate(pattern),
        };
        if let Shape::Regex { translated, compiled } = &shape {
            // Without these the translation is always right, and can wait until it is needed.
            if pattern.iter().any(|byte| b"[]\\{}|^".contains(byte)) {
                let regex = rust_syntax(translated).and_then(|regex| Regex::new(&regex).map_err(|_| BadPattern))?;
                _ = compiled.set(Some(regex));
            }
        }
        Ok(Self { pattern: pattern.to_vec(), shape })
    }

    /// Whether it matches `path` itself; a match of a parent is the caller's to know.
    pub fn matches(&self, path: &[u8]) -> bool {
        match &self.shape {
            Shape::Exact => path == self.pattern,
            Shape::Prefix(prefix) => path.starts_with(prefix),
            Shape::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path),
            Shape::Star { is_anywhere, before, after } => {
                let path = match path.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) if *is_anywhere => &path[slash + 1..],
                    _ => path,
                };
                path.strip_prefix(before.as_slice())
                    .and_then(|rest| rest.strip_suffix(after.as_slice()))
                    .is_some_and(|middle| !middle.contains(&b'/'))
            }
            Shape::Regex { translated, compiled } => compiled
                .get_or_init(|| rust_syntax(translated).ok().and_then(|regex| Regex::new(&regex).ok()))
                .as_ref()
                .is_some_and(|regex| regex.is_match(&text(path))),
        }
    }

    /// Whether it could match something below the directory `path`. May say yes too often.
    pub fn may_match_below(&self, path: &[u8]) -> bool {
        if self.pattern.contains(&b'|') {
            return true;
        }
        let mut wanted = self.pattern.split(|byte| *byte == b'/');
        for component in path.split(|byte| *byte == b'/') {
            let Some(wanted) = wanted.next() else {
                return false;
            };
            if wanted.windows(2).any(|pair| pair == b"**") || wanted.iter().any(|byte| b"[]\\{}^".contains(byte)) {
                return true;
            }
            if !Pattern::parse(wanted).is_ok_and(|wanted| wanted.matches(component)) {
                return false;
            }
        }
        wanted.next().is_some()
    }
}

/// The shape of a pattern with a single `*`, perhaps after `**/`, and nothing else that is special.
fn star(pattern: &[u8]) -> Option<Shape> {
    let rest = pattern.strip_prefix(b"**/");
    let (is_anywhere, pattern) = (rest.is_some(), rest.unwrap_or(pattern));
    let star = pattern.iter().position(|byte| *byte == b'*')?;
    let (before, after) = (&pattern[..star], &pattern[star + 1..]);
    let is_plain =
        |part: &[u8]| part.iter().all(|byte| !b"*?[]\\{}|^".contains(byte)) && !(is_anywhere && part.contains(&b'/'));
    (is_plain(before) && is_plain(after)).then(|| Shape::Star {
        is_anywhere,
        before: before.to_vec(),
        after: after.to_vec(),
    })
}

/// Docker's translation. What it escapes are the characters `.+()$`: it means to escape `{}|` too,
/// but keeps the set in a table of eight bytes in which they fall off the end.
fn translate(pattern: &[u8]) -> Shape {
    #[derive(PartialEq)]
    enum Kind {
        Exact,
        Prefix,
        Suffix,
        Regex,
    }
    let text = text(pattern);
    let mut regex = String::from("^");
    let mut kind = Kind::Exact;
    let mut characters = text.chars().peekable();
    let mut is_first = true;
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                characters.next_if_eq(&'/');
                if characters.peek().is_some() {
                    regex.push_str("(.*/)?");
                    kind = Kind::Regex;
                } else if kind == Kind::Exact {
                    kind = Kind::Prefix;
                } else {
                    regex.push_str(".*");
                    kind = Kind::Regex;
                }
                if is_first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                kind = Kind::Regex;
            }
            '?' => {
                regex.push_str("[^/]");
                kind = Kind::Regex;
            }
            '.' | '+' | '(' | ')' | '$' => regex.extend(['\\', character]),
            '\\' => {
                regex.push('\\');
                if let Some(escaped) = characters.next() {
                    regex.push(escaped);
                    kind = Kind::Regex;
                }
            }
            '[' | ']' => {
                regex.push(character);
                kind = Kind::Regex;
            }
            _ => regex.push(character),
        }
        is_first = false;
    }
    match kind {
        Kind::Exact => Shape::Exact,
        Kind::Prefix => Shape::Prefix(pattern[..pattern.len() - 2].to_vec()),
        Kind::Suffix => Shape::Suffix(pattern[2..].to_vec()),
        Kind::Regex => Shape::Regex { translated: regex + "$", compiled: OnceLock::new() },
    }
}

/// Bytes as characters: each byte that is no part of a character becomes one of its own, from the
/// end of the last private plane, so that `*` and `?` take it and no other byte is equal to it.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(0x10_ff00 + u32::from(*byte))));
    }
    Cow::Owned(text)
}

/// Rewrites a regular expression from Go's syntax to that of the `regex` crate, which nests
/// classes, has set operators in them, and takes no `{` that is not a repetition.
///
/// One difference is meant: `.` also takes a newline, which Docker forgets a name can have.
fn rust_syntax(go: &str) -> Result<String, BadPattern> {
    let mut regex = String::from("(?s)");
    let mut rest = go;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '\\' => rest = escape(rest, &mut regex, false)?,
            '[' => rest = class(rest, &mut regex)?,
            '{' if !is_repetition(rest) => regex.push_str("\\{"),
            ']' => regex.push_str("\\]"),
            _ => regex.push(character),
        }
    }
    Ok(regex)
}

/// Whether what follows a `{` makes it a repetition: `2}`, `2,}`, `2,3}`.
fn is_repetition(rest: &str) -> bool {
    let Some((inside, _)) = rest.split_once('}') else {
        return false;
    };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    !low.is_empty() && low.bytes().chain(high.bytes()).all(|byte| byte.is_ascii_digit())
}

/// Rewrites the character behind a backslash; returns what is after it.
fn escape<'a>(rest: &'a str, regex: &mut String, is_in_class: bool) -> Result<&'a str, BadPattern> {
    let character = rest.chars().next().ok_or(BadPattern)?;
    // Perl's classes are ASCII in Go.
    let class = match character {
        'd' => "0-9",
        's' => r"\t\n\f\r ",
        'w' => "0-9A-Za-z_",
        'D' => "^0-9",
        'S' => r"^\t\n\f\r ",
        'W' => "^0-9A-Za-z_",
        _ if character.is_ascii_alphanumeric() => {
            regex.extend(['\\', character]);
            return Ok(&rest[1..]);
        }
        _ if character.is_ascii() => {
            push_literal(regex, character);
            return Ok(&rest[1..]);
        }
        _ => return Err(BadPattern),
    };
    match class.strip_prefix('^') {
        None if is_in_class => regex.push_str(class),
        _ => _ = write!(regex, "[{class}]"),
    }
    Ok(&rest[1..])
}

/// Rewrites what follows a `[`; returns what is after the class.
fn class<'a>(mut rest: &'a str, regex: &mut String) -> Result<&'a str, BadPattern> {
    const POSIX: &[&str] = &[
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ];
    regex.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        regex.push('^');
        rest = after;
    }
    let mut is_first = true;
    loop {
        if let (Some(after), false) = (rest.strip_prefix(']'), is_first) {
            regex.push(']');
            return Ok(after);
        }
        is_first = false;
        if let Some((name, after)) = rest.strip_prefix("[:").and_then(|rest| rest.split_once(":]")) {
            if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
                return Err(BadPattern);
            }
            _ = write!(regex, "[:{name}:]");
            rest = after;
            continue;
        }
        rest = class_member(rest, regex)?;
        if let Some(after) = rest.strip_prefix('-').filter(|after| !after.starts_with(']')) {
            regex.push('-');
            rest = class_member(after, regex)?;
        }
    }
}

fn class_member<'a>(rest: &'a str, regex: &mut String) -> Result<&'a str, BadPattern> {
    let character = rest.chars().next().ok_or(BadPattern)?;
    let rest = &rest[character.len_utf8()..];
    if character == '\\' {
        return escape(rest, regex, true);
    }
    push_literal(regex, character);
    Ok(rest)
}

/// As a code point, which no syntax of the crate can misread.
fn push_literal(regex: &mut String, character: char) {
    _ = write!(regex, "\\x{{{:x}}}", u32::from(character));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quirks_of_the_translation_are_kept() {
        let table: &[(&[u8], &[u8], bool)] = &[
            (b"x{2}*", b"xxy", true),
            (b"x{2}*", b"x{2}", false),
            (b"x{1,2}", b"x{1,2}", true),
            (b"{a,b}*", b"{a,b}c", true),
            (b"a|b*", b"abc/d", true),
            (b"a|b*", b"c/b", true),
            (b"a|b*", b"c/d", false),
            (b"a^*", b"a^b", false),
            (b"a^b", b"a^b", true),
            (b"v\\d*", b"v1", true),
            (b"v\\d*", b"vd", false),
            (b"\\a", b"\x07", true),
            (b"[*]", b"^/]", true),
            (b"[*]", b"*", false),
            (b"[[:digit:]]", b"7", true),
            (b"[a&&b]", b"&", true),
            (b"[a~~b]", b"~", true),
            (b"[[a]*", b"[x", true),
            (b"a**/b", b"ab", true),
            (b"a**/b", b"ax/b", true),
            (b"a**/b", b"axb", false),
            (b"**{x}", b"a/{x}", true),
            (b"**", b"anything/at all", true),
            (b"***", b"a/b", true),
            (b"**/a*b/c", b"x/y/a-b/c", true),
            (b"**/a*b/c", b"x/a/b/c", false),
            (b"**/a?c", b"x/abc", true),
            (b"dir/*", b"dir/", true),
            (b"a\nb/**/c", b"a\nb/x\ny/c", true),
        ];
        for (pattern, path, expected) in table {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.matches(path), *expected, "{} {}", pattern.escape_ascii(), path.escape_ascii());
        }
    }

    #[test]
    fn a_class_that_only_the_regex_refuses_is_bad() {
        for pattern in ["[z-a]", "[[:nope:]]", "\\ü", "x\\8"] {
            assert!(Glob::parse(pattern.as_bytes()).is_err(), "{pattern}");
        }
    }

    #[test]
    fn names_need_not_be_text() {
        for (pattern, path, expected) in [
            (&b"**/?.log"[..], &b"a/\xff.log"[..], true),
            (b"**/??.log", b"a/\xff.log", false),
            (b"*.log", b"\xe2\x82.log", true),
            (b"a?\xff", b"ab\xff", true),
            (b"a?\xff", b"ab\xfe", false),
            (b"[^x]?", b"\xff\xfe", true),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.matches(path), expected, "{} {}", pattern.escape_ascii(), path.escape_ascii());
        }
    }

    /// The shortcut and the regular expression must agree.
    #[test]
    fn a_single_star_means_the_same_both_ways() {
        let paths: &[&[u8]] =
            &[b"", b"a", b"a.b", b"x/a.b", b"x/a/.b", b"ab", b"a/b", b"x/ab/a.b", b".b", b"a.b/c", b"a."];
        for pattern in ["*", "a*", "*.b", "a*b", "x/*", "x/a*", "x/*.b", "**/*", "**/a*", "**/*.b", "**/a*.b"] {
            let Shape::Regex { translated, .. } = translate(pattern.as_bytes()) else {
                panic!("{pattern} is no regular expression");
            };
            let regex = Regex::new(&rust_syntax(&translated).unwrap()).unwrap();
            let glob = Glob::parse(pattern.as_bytes()).unwrap();
            assert!(matches!(glob.shape, Shape::Star { .. }), "{pattern}");
            for path in paths {
                let path_text = std::str::from_utf8(path).unwrap();
                assert_eq!(glob.matches(path), regex.is_match(path_text), "{pattern} {path_text}");
            }
        }
    }

    #[test]
    fn knows_where_a_match_cannot_be() {
        for (pattern, directory, expected) in [
            ("a/b/c", "a", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "a/b/c", false),
            ("a/b/c", "b", false),
            ("*/keep", "node_modules", true),
            ("*/keep", "node_modules/x", false),
            ("a*/keep", "b", false),
            ("**/keep", "b/c/d", true),
            ("a/**", "b", false),
            ("a/**", "a/x/y", true),
            ("[ab]/x/y", "c", true),
            ("x|y", "c", true),
        ] {
            let glob = Glob::parse(pattern.as_bytes()).unwrap();
            assert_eq!(glob.may_match_below(directory.as_bytes()), expected, "{pattern} {directory}");
        }
    }
}
