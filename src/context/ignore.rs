//! `.dockerignore`: which paths of a context are hidden.
//!
//! Rules are anchored at the root of the tree; a rule that matches a directory matches all below
//! it; the last rule that matches decides, and one with `!` decides for "visible". So the verdict
//! on a path is the number of a rule, and a walk hands the verdict of each directory down to what
//! is in it: only the rules after that one need to be tried.

use std::fmt;

use super::glob::Glob;
use crate::diag::{Diagnostic, Source, Span};
use crate::digest::{Digest, Hasher};

/// Compiled rules.
#[derive(Debug)]
pub struct IgnoreRules {
    name: String,
    rules: Vec<Rule>,
    /// Of what they were made of.
    digest: Digest,
}

/// One line of an ignore file, or one `--exclude`.
#[derive(Debug)]
pub struct Rule {
    /// Counted from 1.
    pub line: usize,
    /// As written, without the space around it.
    pub text: String,
    /// It had a `!`: what it matches is visible.
    pub is_exception: bool,
    glob: Glob,
}

/// The rule that decides on a path so far, if any matched it or a directory above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict(Option<usize>);

/// Why a path is not visible, for messages: "line 3 of `.dockerignore`: `*.log`".
#[derive(Clone, Copy, Debug)]
pub struct Hidden<'a> {
    pub file: &'a str,
    pub rule: &'a Rule,
}

impl fmt::Display for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of `{}`: `{}`", self.rule.line, self.file, self.rule.text)
    }
}

impl IgnoreRules {
    /// Parses the text of an ignore file; `name` is its path for messages.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Diagnostic> {
        let mut rules = Vec::new();
        for (index, line) in lines(text) {
            rules.push(rule(index + 1, line, &read_pattern(line)).map_err(|fault| {
                let source = Source::new(name, String::from_utf8_lossy(text));
                let start = source.text.split_inclusive('\n').take(index).map(str::len).sum::<usize>();
                let length = source.text[start..].lines().next().map_or(0, str::len);
                Diagnostic::error(fault).at(&source, Span::new(start, start + length), "")
            })?);
        }
        Ok(Self { name: name.to_owned(), rules: rules.into_iter().flatten().collect(), digest: Digest::of(text) })
    }

    /// The rules of `--exclude` options, in order. They are not read like lines of a file: a
    /// leading slash stays, and so matches nothing. An error comes with the index of its pattern.
    pub fn from_patterns<S: AsRef<[u8]>>(patterns: &[S]) -> Result<Self, (usize, Box<Diagnostic>)> {
        let (mut rules, mut hasher) = (Vec::new(), Hasher::default());
        for (index, pattern) in patterns.iter().enumerate() {
            let pattern = pattern.as_ref();
            hasher.field(pattern);
            rules.push(rule(index + 1, pattern, pattern).map_err(|fault| (index, Box::new(Diagnostic::error(fault))))?);
        }
        let rules = rules.into_iter().flatten().collect();
        Ok(Self { name: "--exclude".to_owned(), rules, digest: hasher.finish() })
    }

    /// Equal only for rules that say the same.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule has a `!`. Docker's lint does not look for ignored sources then.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|rule| rule.is_exception)
    }

    /// The verdict on `path`, whose parent directory has the verdict `parent`. Paths are relative
    /// to the root, without a leading slash; the root itself has the default verdict.
    pub fn judge(&self, parent: Verdict, path: &[u8]) -> Verdict {
        let undecided = parent.0.map_or(0, |decided| decided + 1);
        let later = self.rules[undecided..].iter().rposition(|rule| rule.glob.matches(path));
        later.map_or(parent, |index| Verdict(Some(undecided + index)))
    }

    pub fn hides(&self, verdict: Verdict) -> bool {
        verdict.0.is_some_and(|index| !self.rules[index].is_exception)
    }

    /// Whether nothing below the hidden directory `path` can be visible, so that a walk need not
    /// enter it. False for a directory that is not hidden.
    pub fn may_prune(&self, verdict: Verdict, path: &[u8]) -> bool {
        self.hides(verdict)
            && verdict.0.is_some_and(|decided| {
                !self.rules[decided + 1..].iter().any(|rule| rule.is_exception && rule.glob.may_match_below(path))
            })
    }

    /// Whether a single path is hidden; a walk does better with [`IgnoreRules::judge`].
    pub fn is_ignored(&self, path: &[u8]) -> bool {
        self.hidden_by(path).is_some()
    }

    /// The rule that hides `path`, if one does.
    pub fn hidden_by(&self, path: &[u8]) -> Option<Hidden<'_>> {
        let mut verdict = Verdict::default();
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            verdict = self.judge(verdict, &path[..end]);
        }
        self.reason(self.judge(verdict, path))
    }

    /// The rule behind a verdict, if it hides.
    pub fn reason(&self, verdict: Verdict) -> Option<Hidden<'_>> {
        let rule = &self.rules[verdict.0?];
        (!rule.is_exception).then_some(Hidden { file: &self.name, rule })
    }
}

/// The lines of an ignore file that are rules, with their index.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.starts_with(b"#"))
        .map(|(index, line)| (index, trim(line)))
        .filter(|(_, line)| !line.is_empty())
}

/// A line as the reader of ignore files hands it on: cleaned, without its leading slash.
fn read_pattern(line: &[u8]) -> Vec<u8> {
    let (exclamation, pattern) = match line.strip_prefix(b"!") {
        Some(pattern) => (&b"!"[..], trim(pattern)),
        None => (&b""[..], line),
    };
    if pattern.is_empty() {
        return exclamation.to_vec();
    }
    let cleaned = clean(pattern);
    let anchored = cleaned.strip_prefix(b"/").filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
    [exclamation, anchored].concat()
}

/// Compiles a pattern; a blank one is no rule. An error is a message.
fn rule(line: usize, text: &[u8], pattern: &[u8]) -> Result<Option<Rule>, String> {
    let pattern = trim(pattern);
    if pattern.is_empty() {
        return Ok(None);
    }
    // Cleaned with its `!`, so that `!..` stays what it is; the reader has cleaned what is behind.
    let cleaned = clean(pattern);
    let (is_exception, cleaned) = match cleaned.strip_prefix(b"!") {
        Some(b"") => return Err("`!` has no pattern".to_owned()),
        Some(pattern) => (true, pattern),
        None => (false, cleaned.as_slice()),
    };
    let text = String::from_utf8_lossy(text).into_owned();
    let glob = Glob::parse(cleaned).map_err(|_| format!("bad pattern `{text}`"))?;
    Ok(Some(Rule { line, text, is_exception, glob }))
}

/// Without the white space around it.
fn trim(bytes: &[u8]) -> &[u8] {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.trim_ascii(), |text| text.trim().as_bytes())
}

/// Go's `filepath.Clean`: the shortest path of the same meaning, found in the text alone.
fn clean(path: &[u8]) -> Vec<u8> {
    let is_absolute = path.starts_with(b"/");
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if components.last().is_some_and(|last| *last != b"..") => _ = components.pop(),
            b".." if is_absolute => {}
            _ => components.push(component),
        }
    }
    let cleaned = components.join(&b'/');
    match (is_absolute, cleaned.is_empty()) {
        (true, _) => [b"/", cleaned.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => cleaned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &serde_json::Value) -> Vec<String> {
        let values = value.as_array().map(Vec::as_slice).unwrap_or_default();
        values.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    /// The first line lists the paths, the others say which of them each set of patterns hides.
    #[test]
    fn hides_what_docker_hides() {
        let mut lines = include_str!("../../testdata/ignore/match.jsonl").lines();
        let paths: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        let paths = texts(&paths["paths"]);
        let mut rows = 0;
        for line in lines {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let rules = IgnoreRules::from_patterns(&texts(&row["patterns"]));
            let Ok(rules) = rules else {
                assert!(row["error"].is_string(), "{line}");
                continue;
            };
            assert!(row["error"].is_null(), "{line}");
            let ignored: Vec<&String> = paths.iter().filter(|path| rules.is_ignored(path.as_bytes())).collect();
            assert_eq!(ignored, texts(&row["ignored"]).iter().collect::<Vec<_>>(), "{line}");
            rows += 1;
        }
        assert!(rows > 90);
    }

    #[test]
    fn reads_lines_as_docker_does() {
        for line in include_str!("../../testdata/ignore/parse.jsonl").lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let content = row["content"].as_str().unwrap();
            let patterns: Vec<Vec<u8>> = lines(content.as_bytes()).map(|(_, line)| read_pattern(line)).collect();
            let expected: Vec<Vec<u8>> = texts(&row["patterns"]).into_iter().map(String::into_bytes).collect();
            assert_eq!(patterns, expected, "{line}");
        }
    }

    #[test]
    fn a_line_may_be_long() {
        let long = "x".repeat(100_000);
        let rules = IgnoreRules::parse(".dockerignore", format!("a\n{long}\n").as_bytes()).unwrap();
        assert!(rules.is_ignored(long.as_bytes()));
    }

    #[test]
    fn says_which_line_hides() {
        let rules =
            IgnoreRules::parse("sub/.dockerignore", b"\xef\xbb\xbf# c\n\n *.log \r\n!keep.log\n**/x\n").unwrap();
        let reason = |path: &str| rules.hidden_by(path.as_bytes()).map(|hidden| hidden.to_string());
        assert_eq!(reason("a.log").as_deref(), Some("line 3 of `sub/.dockerignore`: `*.log`"));
        assert_eq!(reason("keep.log"), None);
        assert_eq!(reason("other"), None);
        assert_eq!(reason("d/x/y/z").as_deref(), Some("line 5 of `sub/.dockerignore`: `**/x`"));
    }

    #[test]
    fn a_fault_points_at_its_line() {
        for (text, message, span) in [
            (&b"ok\n  !  \n"[..], "`!` has no pattern", "  !  "),
            (b"\xef\xbb\xbfok\n\nx[\r\n", "bad pattern `x[`", "x["),
            (b"\xff\n![z-a]", "bad pattern `![z-a]`", "![z-a]"),
        ] {
            let error = IgnoreRules::parse(".dockerignore", text).unwrap_err();
            assert_eq!(error.message, message);
            let label = &error.labels[0];
            assert_eq!(&label.source.text[label.span.range()], span);
        }
        let (index, error) = IgnoreRules::from_patterns(&["a", " ", "b\\"]).unwrap_err();
        assert_eq!((index, error.message.as_str()), (2, "bad pattern `b\\`"));
    }

    /// Verdicts handed down by a walk are those of the whole path, and what is pruned is hidden.
    #[test]
    fn a_walk_agrees_with_single_questions() {
        let words = ["a", "b", "*", "**", "a*", "?", "[ab]", "!a", "x{1,2}*", "a|b*", "\\a"];
        let mut random = 1_u64;
        let mut next = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % bound
        };
        let names = ["a", "b", "ab", "xx"];
        let mut paths = Vec::new();
        for first in names {
            for second in names {
                for third in names {
                    paths.push(format!("{first}/{second}/{third}"));
                }
            }
        }
        for _ in 0..500 {
            let patterns: Vec<String> = (0..1 + next(4))
                .map(|_| {
                    let depth = 1 + next(3);
                    let exclamation = if next(3) == 0 { "!" } else { "" };
                    let path = (0..depth).map(|_| words[next(words.len())]).collect::<Vec<_>>().join("/");
                    exclamation.to_owned() + &path
                })
                .collect();
            let Ok(rules) = IgnoreRules::from_patterns(&patterns) else { continue };
            for path in &paths {
                let prefixes: Vec<&str> =
                    path.match_indices('/').map(|(at, _)| &path[..at]).chain([path.as_str()]).collect();
                // Docker's loop: each rule in turn, asked about the path and all its parents.
                let mut expected = false;
                for rule in &rules.rules {
                    if rule.is_exception == expected && prefixes.iter().any(|path| rule.glob.matches(path.as_bytes())) {
                        expected = !rule.is_exception;
                    }
                }
                let mut verdict = Verdict::default();
                let mut was_pruned = false;
                for prefix in prefixes {
                    was_pruned |= !verdict.eq(&Verdict::default()) && rules.may_prune(verdict, parent(prefix));
                    verdict = rules.judge(verdict, prefix.as_bytes());
                }
                assert_eq!(rules.hides(verdict), expected, "{patterns:?} {path}");
                assert!(!was_pruned || expected, "{patterns:?} {path}");
            }
        }
    }

    fn parent(path: &str) -> &[u8] {
        path.rsplit_once('/').map_or(b"", |(parent, _)| parent.as_bytes())
    }
}
