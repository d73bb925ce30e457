//! What the text of a file alone gives reason to say: casing, names of stages, forms that are no longer
//! advised. What needs variables or images is found at planning.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::directive;
use super::comment;
use super::statement::{as_json, brief};
use super::{Command, CopySource, Dockerfile, From, Healthcheck, Instruction, Kind, Word};
use crate::diag::{Diagnostic, Source, Span};

/// Findings in the order of the text.
pub(super) fn lint(file: &Dockerfile) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    casing(file, &mut found);
    stage_names(file, &mut found);
    for instruction in &file.global_args {
        description(instruction, &mut found);
    }
    for stage in &file.stages {
        from_description(&stage.from, &mut found);
        for instruction in &stage.instructions {
            form(instruction, &mut found);
            description(instruction, &mut found);
        }
    }
    found.sort_by_key(|warning: &Diagnostic| warning.labels.first().map(|label| label.span.start));
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Casing {
    Lower,
    Upper,
    Mixed,
}

fn casing_of(word: &str) -> Casing {
    match (word.contains(|c: char| c.is_ascii_lowercase()), word.contains(|c: char| c.is_ascii_uppercase())) {
        (true, true) => Casing::Mixed,
        (true, false) => Casing::Lower,
        (false, _) => Casing::Upper,
    }
}

/// The first word of a logical line.
fn keyword(text: &str) -> &str {
    text.split(super::line::SEPARATORS).next().unwrap_or_default()
}

/// Every keyword is written as most are. The ARGs before the first FROM do not count.
fn casing(file: &Dockerfile, found: &mut Vec<Diagnostic>) {
    let mut keywords: Vec<(&str, &Arc<Source>, Span)> = Vec::new();
    for stage in &file.stages {
        let from = &stage.from;
        let word = keyword(&from.text);
        let start = from.span.start as usize;
        keywords.push((word, &from.source, Span::new(start, start + word.len())));
        keywords.extend(
            stage
                .instructions
                .iter()
                .map(|instruction| (keyword(&instruction.text), &instruction.source, instruction.keyword)),
        );
    }
    let count = |casing| keywords.iter().filter(|(word, ..)| casing_of(word) == casing).count();
    let (most, shown) = match count(Casing::Lower) > count(Casing::Upper) {
        true => (Casing::Lower, "lower case"),
        false => (Casing::Upper, "upper case"),
    };
    for (word, source, span) in keywords.into_iter().filter(|(word, ..)| casing_of(word) != most) {
        let message = format!("`{word}` is not written like most instructions of this file, in {shown}");
        found.push(Diagnostic::warning("ConsistentInstructionCasing", message).at(source, span, ""));
    }
}

fn stage_names(file: &Dockerfile, found: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<&str, &From> = BTreeMap::new();
    for stage in &file.stages {
        let from = &stage.from;
        let Some(name) = &from.name else { continue };
        as_casing(from, found);
        let written = &from.source.text[from.name_span.range()];
        if written.chars().any(char::is_uppercase) {
            let message = format!("the name of the stage `{}` is kept in lower case", brief(written));
            let warning = Diagnostic::warning("StageNameCasing", message).at(&from.source, from.name_span, "");
            found.push(warning.hint(format!("write `{}`", brief(name))));
        }
        if matches!(name.as_str(), "scratch" | "context") {
            let message = format!("`{name}` is reserved: as a stage it cannot be told from what it means elsewhere");
            found.push(Diagnostic::warning("ReservedStageName", message).at(&from.source, from.name_span, ""));
        }
        if let Some(first) = seen.insert(name, from) {
            let message = format!("there is another stage `{}`", brief(name));
            let warning = Diagnostic::warning("DuplicateStageName", message).at(&from.source, from.name_span, "");
            found.push(warning.at(&first.source, first.name_span, "the other one"));
        }
    }
}

/// `AS` is written like its FROM. One that is in mixed case is told of elsewhere.
fn as_casing(from: &From, found: &mut Vec<Diagnostic>) {
    let words: Vec<&str> = from.text.split(super::line::SEPARATORS).filter(|word| !word.is_empty()).collect();
    let [first, .., keyword, _] = &*words else { return };
    let is_wrong = match casing_of(first) {
        Casing::Mixed => false,
        casing => casing_of(keyword) != casing,
    };
    if is_wrong {
        let message = format!("`{keyword}` is not written like `{first}`");
        let before = &from.source.text[from.span.start as usize..from.name_span.start as usize];
        let span = match before.rfind(keyword) {
            Some(at) => Span::new(from.span.start as usize + at, from.span.start as usize + at + keyword.len()),
            None => from.span,
        };
        found.push(Diagnostic::warning("FromAsCasing", message).at(&from.source, span, ""));
    }
}

/// Forms that are old, or that are read as another form than they look like.
fn form(instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    let source = &instruction.source;
    let name = keyword(&instruction.text).to_ascii_uppercase();
    match &instruction.kind {
        Kind::Maintainer(author) => {
            let warning = Diagnostic::warning("MaintainerDeprecated", "MAINTAINER is deprecated");
            let author = brief(author).replace('"', "");
            let hint = format!("write `LABEL org.opencontainers.image.authors=\"{author}\"`");
            found.push(warning.at(source, instruction.keyword, "").hint(hint));
        }
        Kind::Env(pairs) | Kind::Label(pairs) => {
            if let [(key, value)] = &**pairs
                && is_legacy(&instruction.text, key)
            {
                let message =
                    format!("`{name} key value` is an old form, which takes the rest of the line as one value");
                let warning = Diagnostic::warning("LegacyKeyValueFormat", message);
                let span = super::cover(key.span, value.span);
                let warning = warning.at(source, span, "");
                let (key, value) = (&key.raw, &value.raw);
                let is_short = value.len() < 80 && !value.contains(['"', '\'', '\\', '`']);
                found.push(match value.contains(char::is_whitespace) {
                    _ if !is_short => warning,
                    false => warning.hint(format!("write `{name} {key}={value}`")),
                    true => warning.hint(format!("write `{name} {key}=\"{value}\"`")),
                });
            }
        }
        Kind::Run(run) => json_like(&run.command, "RUN", instruction, found),
        Kind::Cmd(command) | Kind::Entrypoint(command) => json_like(command, &name, instruction, found),
        Kind::Healthcheck(Healthcheck::Command { command, .. }) => {
            json_like(command, "HEALTHCHECK CMD", instruction, found);
        }
        Kind::Volume(words) => json_like_words(words.iter(), words.last(), &name, instruction, found),
        Kind::Copy(copy) => {
            json_like_words(paths(&copy.sources), Some(&copy.destination), &name, instruction, found);
        }
        Kind::Add(add) => json_like_words(paths(&add.sources), Some(&add.destination), &name, instruction, found),
        Kind::Onbuild(onbuild) => form(&onbuild.trigger, found),
        _ => {}
    }
}

fn paths(sources: &[CopySource]) -> impl Iterator<Item = &Word> {
    sources.iter().filter_map(|source| match source {
        CopySource::Path(word) => Some(word),
        CopySource::Heredoc(..) => None,
    })
}

/// Whether the only pair of ENV or LABEL is written `KEY rest of the line`.
fn is_legacy(text: &str, key: &Word) -> bool {
    let args = text[keyword(text).len()..].trim_start();
    args.strip_prefix(key.raw.as_str()).is_some_and(|rest| !rest.starts_with('='))
}

/// A list that is no JSON is a command for the shell. `[ -f x ]` is one as well, and is meant as such.
fn json_like(command: &Command, name: &str, instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    let Command::Shell(text) = command else { return };
    let is_test = matches!(name, "RUN" | "HEALTHCHECK CMD");
    let is_meant = match is_test {
        true => text.starts_with("[\"") || text.starts_with("['"),
        false => text.starts_with('[') && text.ends_with(']'),
    };
    if is_meant {
        found.push(malformed(text, name, instruction));
    }
}

fn json_like_words<'a>(
    words: impl Iterator<Item = &'a Word>,
    last: Option<&Word>,
    name: &str,
    instruction: &Instruction,
    found: &mut Vec<Diagnostic>,
) {
    let mut words = words;
    // An opening bracket also begins a wildcard; a list has a quote behind it.
    if words.next().is_some_and(|first| first.raw.starts_with("[\"") || first.raw.starts_with("['"))
        && last.is_some_and(|last| last.raw.ends_with(']'))
    {
        let text = instruction.text.split_once('[').map_or("", |(_, rest)| rest);
        found.push(malformed(&format!("[{text}"), name, instruction));
    }
}

fn malformed(text: &str, name: &str, instruction: &Instruction) -> Diagnostic {
    let message = format!("this looks like a JSON list and is none: {name} takes it as plain words");
    let start = instruction.source.text[instruction.span.range()].find('[').unwrap_or(0);
    let span = Span { start: instruction.span.start + start as u32, end: instruction.span.end };
    let warning = Diagnostic::warning("MalformedJSONForm", message).at(&instruction.source, span, "");
    match as_json(text) {
        Some(list) => warning.hint(format!("write `{name} {list}`")),
        None => warning,
    }
}

/// A comment right above an ARG says what it is for, and begins with its name.
fn description(instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    let Kind::Arg(declarations) = &instruction.kind else { return };
    let names: Vec<&str> = declarations.iter().map(|declaration| declaration.name.as_str()).collect();
    described(&instruction.source, instruction.span, "ARG", &names, found);
}

fn from_description(from: &From, found: &mut Vec<Diagnostic>) {
    if let Some(name) = &from.name {
        described(&from.source, from.span, "FROM", &[name], found);
    }
}

fn described(source: &Arc<Source>, span: Span, keyword: &str, names: &[&str], found: &mut Vec<Diagnostic>) {
    let mut comments = comment::above(source, span).into_iter().map(|span| (span, &source.text[span.range()]));
    let Some((comment, text)) = comments.rfind(|(_, text)| directive(text).is_none()) else { return };
    if names.contains(&text.split(' ').next().unwrap_or_default()) {
        return;
    }
    let name = if let [name] = names { name } else { "NAME" };
    let message = format!("the comment above this {keyword} does not describe it");
    let warning = Diagnostic::warning("InvalidDefinitionDescription", message).at(source, comment, "");
    found.push(warning.hint(format!("write `# {} what it is`, or leave a line blank below it", brief(name))));
}
