//! The shell patterns of `${n#p}`, `${n%p}` and `${n/p/r}`: `*`, `?` and escapes, no `[…]`.
//!
//! Matching is by `regex`, which takes linear time whatever a Dockerfile asks for.

use regex::Regex;

/// `value` without the shortest or longest prefix that matches.
pub fn cut_prefix<'a>(value: &'a str, pattern: &str, is_longest: bool) -> Result<&'a str, String> {
    let mut source = "^".to_owned();
    for part in parts(pattern)? {
        part.write(&mut source, is_longest);
    }
    let end = compile(&source)?.find(value).map_or(0, |found| found.end());
    Ok(&value[end..])
}

/// `value` without the shortest or longest suffix that matches.
pub fn cut_suffix<'a>(value: &'a str, pattern: &str, is_longest: bool) -> Result<&'a str, String> {
    // A search goes forward, and the shortest suffix begins last: both are turned round.
    let mut source = "^".to_owned();
    for part in parts(pattern)?.into_iter().rev() {
        part.write(&mut source, is_longest);
    }
    let reversed: String = value.chars().rev().collect();
    let length = compile(&source)?.find(&reversed).map_or(0, |found| found.end());
    Ok(&value[..value.len() - length])
}

/// `value` with the first or every match, each as long as possible, replaced. The result is an error
/// when it is longer than `limit_bytes`.
pub fn replace(
    value: &str,
    pattern: &str,
    replacement: &str,
    is_global: bool,
    limit_bytes: usize,
) -> Result<String, String> {
    let mut source = String::new();
    for part in parts(pattern)? {
        part.write(&mut source, true);
    }
    let regex = compile(&source)?;
    let mut out = String::new();
    let mut rest_at = 0;
    for found in regex.find_iter(value).take(if is_global { usize::MAX } else { 1 }) {
        out.push_str(&value[rest_at..found.start()]);
        out.push_str(replacement);
        rest_at = found.end();
        if out.len() > limit_bytes {
            return Err(format!("the value becomes larger than {} MiB", limit_bytes >> 20));
        }
    }
    out.push_str(&value[rest_at..]);
    Ok(out)
}

enum Part {
    Any,
    AnyRun,
    Literal(char),
}

impl Part {
    fn write(&self, source: &mut String, is_greedy: bool) {
        match self {
            Self::Any => source.push('.'),
            Self::AnyRun if is_greedy => source.push_str(".*"),
            Self::AnyRun => source.push_str(".*?"),
            Self::Literal(c) => source.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
}

fn parts(pattern: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::AnyRun,
            '?' => Part::Any,
            '\\' => match chars.next() {
                Some(c @ ('*' | '?' | '\\' | '/' | '}')) => Part::Literal(c),
                Some(c) => {
                    return Err(format!(
                        "invalid escape `\\{c}` in a pattern: only `*`, `?`, `\\`, `/` and `}}` can be escaped"
                    ));
                }
                None => return Err("a pattern cannot end in `\\`".to_owned()),
            },
            c => Part::Literal(c),
        });
    }
    Ok(parts)
}

fn compile(source: &str) -> Result<Regex, String> {
    // `s`: `*` and `?` match newlines too. The only way to fail is the size limit.
    Regex::new(&format!("(?s){source}")).map_err(|_| "the pattern is too long".to_owned())
}
