//! Step titles: the instruction as written, with the variables that are known replaced by their values.

use crate::dockerfile::expand::{self, Variables};
use crate::image::Platform;

/// The title of COPY, ADD and WORKDIR: words expanded and unquoted.
pub(super) fn words(text: &str, escape: char, variables: &dyn Variables) -> String {
    upper_keyword(&expand::expand(text, escape, variables).map_or_else(|_| text.to_owned(), |expanded| expanded.text))
}

/// The title of RUN. `secrets` are variables whose values are never shown.
pub(super) fn command(text: &str, escape: char, variables: &dyn Variables, secrets: &[&str]) -> String {
    upper_keyword(&known(text, escape, variables, secrets))
}

/// A command with its known variables replaced: quotes stay, and so does every variable that only the shell
/// will know.
fn known(text: &str, escape: char, variables: &dyn Variables, secrets: &[&str]) -> String {
    let masked = Masked { variables, secrets };
    let mut out = String::new();
    let mut rest = text;
    let mut in_double_quotes = false;
    while let Some(character) = rest.chars().next() {
        let length = match character {
            character if character == escape => {
                character.len_utf8() + rest[character.len_utf8()..].chars().next().map_or(0, char::len_utf8)
            }
            '\'' if !in_double_quotes => rest[1..].find('\'').map_or(rest.len(), |close| close + 2),
            '$' => {
                let reference = reference(rest);
                let name = reference.trim_start_matches(['$', '{']);
                let name = &name[..name.find(|c: char| !is_name(c)).unwrap_or(name.len())];
                match masked.get(name) {
                    Some(_) => match expand::expand_raw(reference, escape, &masked) {
                        Ok(expanded) => out.push_str(&expanded.text),
                        Err(_) => out.push_str(reference),
                    },
                    None => out.push_str(reference),
                }
                rest = &rest[reference.len()..];
                continue;
            }
            '"' => {
                in_double_quotes = !in_double_quotes;
                1
            }
            character => character.len_utf8(),
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}

/// What a heredoc adds to the title of RUN: ` (first line of its body...)`.
pub(super) fn summary(body: &str, escape: char, variables: &dyn Variables, secrets: &[&str]) -> String {
    let body = body.trim();
    match body.split_once('\n') {
        _ if body.is_empty() => String::new(),
        Some((first, _)) => {
            format!(" ({}...)", known(first.trim_end_matches('\r'), escape, variables, secrets))
        }
        None => format!(" ({})", known(body, escape, variables, secrets)),
    }
}

/// `[stage 2/5] `. `place` is what stands before the number, with a space behind each of its words.
pub(super) fn number(place: &str, index: usize, total: usize) -> String {
    let width = total.to_string().len();
    format!("[{place}{index:>width$}/{total}] ")
}

/// `linux/amd64`, or `linux/amd64->arm64` for a stage of one platform that works for another, as far as it
/// knows.
pub(super) fn platform(own: &Platform, variables: &dyn Variables) -> String {
    let target = variables.get("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok());
    let Some(target) = target.filter(|target| target != own) else { return own.to_string() };
    if target.os != own.os {
        return format!("{own}->{target}");
    }
    let machine = target.to_string();
    format!("{own}->{}", machine.strip_prefix(&format!("{}/", own.os)).unwrap_or(&machine))
}

struct Masked<'a> {
    variables: &'a dyn Variables,
    secrets: &'a [&'a str],
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secrets.contains(&name) { Some("****") } else { self.variables.get(name) }
    }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// The `$NAME` or `${…}` that `text` begins with; `$` alone where there is neither.
pub(super) fn reference(text: &str) -> &str {
    if !text.starts_with("${") {
        let length = text[1..].find(|c: char| !is_name(c)).unwrap_or(text.len() - 1);
        return &text[..1 + length];
    }
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => return &text[..=at],
            '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// Instructions are shown in upper case however they are written.
fn upper_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_ascii_uppercase()),
        None => text.to_ascii_uppercase(),
    }
}
