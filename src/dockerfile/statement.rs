//! From a logical line to a typed instruction: each keyword's flags and arguments.
//!
//! A fault is reported and reading goes on as far as sense can be made of the rest, so that one run
//! shows all that is wrong.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span, nearest};
use crate::dockerfile::duration;
use crate::dockerfile::fault::Faults;
use crate::dockerfile::flag::{self, Flags};
use crate::dockerfile::heredoc;
use crate::dockerfile::json::{self, Form};
use crate::dockerfile::line::Slice;
use crate::dockerfile::pair;
use crate::dockerfile::{
    Add, ArgDeclaration, Command, Copy, CopySource, Flag, From, Healthcheck, Heredoc, Instruction, Kind, Onbuild, Run,
    Word,
};

pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The keyword a word was probably meant to be.
pub fn nearest_keyword(word: &str) -> Option<&'static str> {
    nearest(word, KEYWORDS)
}

/// The known keyword at the start of an instruction, in upper case.
pub fn keyword_of(text: Slice<'_>) -> Option<&'static str> {
    let word = text.split_first().0.text();
    KEYWORDS.into_iter().find(|keyword| keyword.eq_ignore_ascii_case(word))
}

/// An instruction being read.
pub struct Statement<'a> {
    pub source: &'a Arc<Source>,
    pub escape: char,
    /// The whole logical line, ends trimmed.
    pub text: Slice<'a>,
    pub keyword: Slice<'a>,
    /// The keyword in upper case.
    pub name: &'static str,
    /// What follows the keyword, then what follows the flags.
    args: Slice<'a>,
    heredocs: Vec<(Heredoc, Span)>,
    /// Heredoc bodies included.
    span: Span,
    pub faults: &'a mut Faults,
}

/// A fault was reported; nothing can be made of the instruction.
pub struct Reported;

type Outcome<T> = Result<T, Reported>;

/// What a logical line is.
pub enum Parsed {
    From(From),
    Instruction(Instruction),
}

/// Reads one instruction. `heredocs` are those its line announces, in order; `span` covers all of
/// it. Every fault found goes to `faults`.
pub fn parse(
    source: &Arc<Source>,
    escape: char,
    text: Slice<'_>,
    heredocs: Vec<(Heredoc, Span)>,
    span: Span,
    faults: &mut Faults,
) -> Outcome<Parsed> {
    let (keyword, args) = text.split_first();
    let Some(name) = keyword_of(text) else {
        faults.push(unknown_keyword(source, escape, keyword));
        return Err(Reported);
    };
    let count_before = faults.count();
    let mut statement = Statement { source, escape, text, keyword, name, args, heredocs, span, faults };
    let parsed = match name {
        "FROM" => Parsed::From(statement.from()?),
        _ => {
            let kind = statement.kind()?;
            Parsed::Instruction(Instruction {
                source: Arc::clone(source),
                span,
                keyword: keyword.span(),
                text: text.text().to_owned(),
                kind,
            })
        }
    };
    if faults.count() > count_before { Err(Reported) } else { Ok(parsed) }
}

fn unknown_keyword(source: &Arc<Source>, escape: char, keyword: Slice<'_>) -> Diagnostic {
    if keyword.is_empty() {
        return Diagnostic::error("an instruction is missing").at(source, keyword.span(), "");
    }
    let word = keyword.text();
    let fault = Diagnostic::error(format!("unknown instruction: `{}`", brief(word)));
    // White space that separates nothing: what looks like two words is one.
    if let Some((at, c)) = word.char_indices().find(|(_, c)| c.is_whitespace()) {
        let label = format!("not a space but U+{:04X}", u32::from(c));
        return fault.at(source, keyword.sub(at..at + c.len_utf8()).span(), label);
    }
    let fault = fault.at(source, keyword.span(), "");
    if let Some(near) = nearest_keyword(word) {
        return fault.hint(format!("did you mean `{near}`?"));
    }
    if ["&&", "||", "|"].iter().any(|operator| word.starts_with(operator)) {
        let mark = if escape == '`' { "`` ` ``" } else { "`\\`" };
        return fault.hint(format!("to continue the line above, end it with {mark}"));
    }
    fault
}

/// A word as quoted in a message: the beginning of a long one.
pub fn brief(word: &str) -> String {
    const LIMIT: usize = 60;
    match word.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}

/// A command in JSON form, where it is plain what that is: no quoting, or single quotes for double.
pub fn as_json(text: &str) -> Option<String> {
    if text.len() > 200 || text.contains(['"', '\\', '`']) {
        return None;
    }
    let list = match text.starts_with('[') {
        true => text.replace('\'', "\""),
        false if text.contains(['\'', '[', ',']) => return None,
        false => {
            format!("[{}]", text.split_whitespace().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", "))
        }
    };
    serde_json::from_str::<Vec<String>>(&list).ok()?;
    Some(list)
}

/// Of a name in lower case.
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}

impl Statement<'_> {
    pub fn error(&mut self, span: Span, message: impl Into<String>, label: impl Into<String>) {
        self.faults.push(Diagnostic::error(message).at(self.source, span, label));
    }

    fn fail<T>(&mut self, span: Span, message: impl Into<String>) -> Outcome<T> {
        self.error(span, message, "");
        Err(Reported)
    }

    /// Takes the flags off the arguments.
    fn flags(&mut self) -> Flags {
        let (flags, rest) = flag::split(self.args);
        self.args = rest;
        Flags::new(flags)
    }

    /// For an instruction that has none.
    fn no_flags(&mut self) {
        self.flags().finish(self);
    }

    fn kind(&mut self) -> Outcome<Kind> {
        match self.name {
            "RUN" => self.run().map(Kind::Run),
            "COPY" => self.copy().map(Kind::Copy),
            "ADD" => self.add().map(Kind::Add),
            "HEALTHCHECK" => self.healthcheck().map(Kind::Healthcheck),
            name => {
                self.no_flags();
                match name {
                    "ARG" => self.arg().map(Kind::Arg),
                    "ENV" => self.pairs().map(Kind::Env),
                    "LABEL" => self.pairs().map(Kind::Label),
                    "WORKDIR" => self.one_word("a path").map(Kind::Workdir),
                    "USER" => self.one_word("a user").map(Kind::User),
                    "STOPSIGNAL" => self.one_word("a signal").map(Kind::StopSignal),
                    "MAINTAINER" => self.one_word("a name").map(|word| Kind::Maintainer(word.raw)),
                    "CMD" => self.command().map(Kind::Cmd),
                    "ENTRYPOINT" => self.command().map(Kind::Entrypoint),
                    "SHELL" => self.shell().map(Kind::Shell),
                    "EXPOSE" => self.at_least_one("a port").map(Kind::Expose),
                    "VOLUME" => self.volume().map(Kind::Volume),
                    "ONBUILD" => self.onbuild().map(Kind::Onbuild),
                    _ => unreachable!("FROM is no instruction of a stage, and KEYWORDS has no other"),
                }
            }
        }
    }

    fn from(&mut self) -> Outcome<From> {
        let mut flags = self.flags();
        let platform = flags.one("platform", self).map(|flag| flag.value);
        flags.finish(self);
        let words = self.args.words();
        let (image, name) = match &*words {
            [image] => (image, None),
            [image, keyword, name] if keyword.text().eq_ignore_ascii_case("as") => (image, Some(name)),
            [] => return self.fail(self.keyword.span(), "FROM needs an image"),
            [_, keyword] if keyword.text().eq_ignore_ascii_case("as") => {
                return self.fail(keyword.span(), "FROM … AS needs a name for the stage");
            }
            [_, keyword, ..] if !keyword.text().eq_ignore_ascii_case("as") => {
                let message = "FROM takes an image, then at most `AS` and a name";
                let mut fault = Diagnostic::error(message).at(self.source, keyword.span(), "expected `AS`");
                if words.len() == 3 && nearest(keyword.text(), ["as"]).is_some() {
                    fault = fault.hint("did you mean `AS`?");
                } else if words.len() == 2 && is_stage_name(keyword.text()) {
                    fault = fault.hint(format!("to name the stage, write `AS {}`", brief(keyword.text())));
                }
                self.faults.push(fault);
                return Err(Reported);
            }
            [_, _, _, rest @ ..] => {
                let span = crate::dockerfile::cover(rest[0].span(), rest[rest.len() - 1].span());
                return self.fail(span, "FROM takes nothing after the name of the stage");
            }
            [_, _] => unreachable!("two words are covered by the arms for a wrong and a lone `AS`"),
        };
        let lower = name.map(|name| name.text().to_lowercase());
        if let Some(name) = name.filter(|name| !is_stage_name(&name.text().to_lowercase())) {
            let label = "letters, digits, `-`, `_` and `.`, a letter first";
            self.error(name.span(), format!("invalid name for a build stage: `{}`", brief(name.text())), label);
            return Err(Reported);
        }
        Ok(From {
            source: Arc::clone(self.source),
            span: self.span,
            text: self.text.text().to_owned(),
            platform,
            image: image.word(),
            name_span: name.map_or(Span::default(), |name| name.span()),
            name: lower,
        })
    }

    fn run(&mut self) -> Outcome<Run> {
        let mut flags = self.flags();
        let mounts = flags.many("mount", self);
        let network = flags.one("network", self);
        let security = flags.one("security", self);
        let devices = flags.many("device", self);
        flags.finish(self);
        self.one_of(network.as_ref(), "network", &["default", "none", "host"]);
        self.one_of(security.as_ref(), "security", &["sandbox", "insecure"]);
        let command = self.command()?;
        let heredocs = std::mem::take(&mut self.heredocs).into_iter().map(|(heredoc, _)| heredoc).collect();
        Ok(Run { command, command_span: self.args.span(), mounts, network, security, devices, heredocs })
    }

    /// The value of a flag that is never expanded is one of a few words.
    fn one_of(&mut self, flag: Option<&Flag>, name: &str, known: &[&str]) {
        let Some(flag) = flag.filter(|flag| !known.contains(&&*flag.value.raw)) else { return };
        let value = &flag.value.raw;
        let list = known.iter().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
        let span = if value.is_empty() { flag.span } else { flag.value.span };
        let mut fault = Diagnostic::error(format!("`--{name}={}` is not valid: it can be {list}", brief(value)));
        fault = fault.at(self.source, span, "");
        if let Some(near) = nearest(value, known.iter().copied()) {
            fault = fault.hint(format!("did you mean `--{name}={near}`?"));
        }
        self.faults.push(fault);
    }

    fn copy(&mut self) -> Outcome<Copy> {
        let mut flags = self.flags();
        let from = flags.one("from", self);
        let chown = flags.one("chown", self);
        let chmod = flags.one("chmod", self);
        let is_link = flags.boolean("link", self).unwrap_or(false);
        let has_parents = flags.boolean("parents", self).unwrap_or(false);
        let exclude = flags.many("exclude", self);
        flags.finish(self);
        let (sources, destination) = self.sources_and_destination()?;
        Ok(Copy { sources, destination, from, chown, chmod, is_link, has_parents, exclude })
    }

    fn add(&mut self) -> Outcome<Add> {
        let mut flags = self.flags();
        let chown = flags.one("chown", self);
        let chmod = flags.one("chmod", self);
        let checksum = flags.one("checksum", self);
        let is_link = flags.boolean("link", self).unwrap_or(false);
        let keeps_git_dir = flags.boolean("keep-git-dir", self);
        let unpack = flags.boolean("unpack", self);
        let exclude = flags.many("exclude", self);
        flags.finish(self);
        let (sources, destination) = self.sources_and_destination()?;
        Ok(Add { sources, destination, chown, chmod, checksum, is_link, keeps_git_dir, unpack, exclude })
    }

    fn sources_and_destination(&mut self) -> Outcome<(Vec<CopySource>, Word)> {
        let (mut words, is_json) = match json::form(self.args) {
            Form::Json(words) => (words, true),
            Form::Shell => (self.args.words().into_iter().map(Slice::word).collect::<Vec<_>>(), false),
            Form::NotString(span) => return self.not_string(span),
        };
        let name = self.name;
        let destination = match words.pop() {
            Some(destination) if !words.is_empty() => destination,
            Some(only) => return self.fail(only.span, format!("{name} needs a source and a destination")),
            None => return self.fail(self.keyword.span(), format!("{name} needs a source and a destination")),
        };
        if heredoc::mark(&destination.raw).is_some() {
            return self.fail(destination.span, format!("a heredoc cannot be the destination of {name}"));
        }
        // By name, in order: a line may hold thousands.
        let mut bodies: BTreeMap<String, VecDeque<(Heredoc, Span)>> = BTreeMap::new();
        for (heredoc, span) in std::mem::take(&mut self.heredocs) {
            bodies.entry(heredoc.name.clone()).or_default().push_back((heredoc, span));
        }
        let mut sources = Vec::new();
        for word in words {
            let Some(mark) = heredoc::mark(&word.raw) else {
                sources.push(CopySource::Path(word));
                continue;
            };
            match bodies.get_mut(&mark.name).and_then(VecDeque::pop_front) {
                Some((heredoc, span)) => sources.push(CopySource::Heredoc(heredoc, span)),
                None if is_json => self.error(word.span, "a heredoc cannot be used in JSON form", ""),
                None => self.error(word.span, "this heredoc has no body: a quote on the line is not closed", ""),
            }
        }
        Ok((sources, destination))
    }

    fn not_string<T>(&mut self, span: Span) -> Outcome<T> {
        self.fail(span, "the elements of a JSON array of arguments must be strings")
    }

    fn command(&mut self) -> Outcome<Command> {
        match json::form(self.args) {
            Form::Json(words) => Ok(Command::Exec(words.into_iter().map(|word| word.raw).collect())),
            Form::Shell => Ok(Command::Shell(self.args.text().to_owned())),
            Form::NotString(span) => self.not_string(span),
        }
    }

    fn shell(&mut self) -> Outcome<Vec<String>> {
        match json::form(self.args) {
            Form::Json(words) if words.is_empty() => self.fail(self.args.span(), "SHELL needs at least one element"),
            Form::Json(words) => Ok(words.into_iter().map(|word| word.raw).collect()),
            Form::NotString(span) => self.not_string(span),
            Form::Shell if self.args.is_empty() => self.fail(self.keyword.span(), "SHELL needs a command in JSON form"),
            Form::Shell => {
                let mut fault = Diagnostic::error("SHELL takes its arguments in JSON form only");
                fault = fault.at(self.source, self.args.span(), "");
                if let Some(list) = as_json(self.args.text()) {
                    fault = fault.hint(format!("write `SHELL {list}`"));
                }
                self.faults.push(fault);
                Err(Reported)
            }
        }
    }

    /// One argument: all that follows, spaces included.
    fn one_word(&mut self, what: &str) -> Outcome<Word> {
        if self.args.is_empty() {
            return self.fail(self.keyword.span(), format!("{} needs {what}", self.name));
        }
        Ok(self.args.word())
    }

    fn at_least_one(&mut self, what: &str) -> Outcome<Vec<Word>> {
        if self.args.is_empty() {
            return self.fail(self.keyword.span(), format!("{} needs {what}", self.name));
        }
        Ok(self.args.words().into_iter().map(Slice::word).collect())
    }

    fn volume(&mut self) -> Outcome<Vec<Word>> {
        let words = match json::form(self.args) {
            Form::Json(words) if words.is_empty() => return self.fail(self.args.span(), "VOLUME needs a path"),
            Form::Json(words) => words,
            Form::Shell => return self.at_least_one("a path"),
            Form::NotString(span) => return self.not_string(span),
        };
        for word in words.iter().filter(|word| word.raw.trim().is_empty()) {
            self.error(word.span, "the path of a volume cannot be empty", "");
        }
        Ok(words.iter().map(Word::trim).collect())
    }

    fn arg(&mut self) -> Outcome<Vec<ArgDeclaration>> {
        let words = pair::words(self.args, self.escape);
        if words.is_empty() {
            return self.fail(self.keyword.span(), "ARG needs a name");
        }
        let mut declarations = Vec::new();
        for word in words {
            let (name, value) = match pair::split_value(word) {
                Some((name, value)) => (name, Some(value.word())),
                None => (word, None),
            };
            if name.is_empty() {
                self.error(word.span(), "the name of an ARG cannot be empty", "");
                continue;
            }
            declarations.push(ArgDeclaration { name: name.text().to_owned(), name_span: name.span(), value });
        }
        Ok(declarations)
    }

    /// `k=v k=v`, or the older `KEY rest of the line`.
    fn pairs(&mut self) -> Outcome<Vec<(Word, Word)>> {
        let name = self.name;
        let words = pair::words(self.args, self.escape);
        let Some(first) = words.first() else {
            return self.fail(self.keyword.span(), format!("{name} needs a name and a value"));
        };
        if !first.text().contains('=') {
            let (key, value) = self.args.split_first();
            if value.is_empty() {
                return self.fail(key.span(), format!("{name} needs a value as well as a name"));
            }
            return Ok(vec![(key.word(), value.word())]);
        }
        let mut pairs = Vec::new();
        let mut rest = &*words;
        while let Some((word, after)) = rest.split_first() {
            match pair::split_value(*word) {
                Some((key, _)) if key.is_empty() => {
                    self.error(word.span(), format!("the name of {name} cannot be empty"), "");
                    rest = after;
                }
                Some((key, value)) => {
                    pairs.push((key.word(), value.word()));
                    rest = after;
                }
                None => {
                    let length = rest.iter().take_while(|word| !word.text().contains('=')).count();
                    let before = words.len() - rest.len();
                    self.no_equals(before.checked_sub(1).map(|index| words[index]), &rest[..length]);
                    rest = &rest[length..];
                }
            }
        }
        Ok(pairs)
    }

    /// Words of a list of pairs without `=`, mostly a value that was to be quoted.
    fn no_equals(&mut self, before: Option<Slice<'_>>, words: &[Slice<'_>]) {
        let text = words.iter().map(|word| word.text()).collect::<Vec<_>>().join(" ");
        let span = crate::dockerfile::cover(words[0].span(), words[words.len() - 1].span());
        let mut fault = Diagnostic::error(format!("`=` is missing in `{}`", brief(&text)));
        fault = fault.at(self.source, span, "expected `name=value`");
        let is_beside =
            |before: &Slice<'_>| !self.source.text[before.span().range().end..span.range().start].contains('\n');
        if let Some((key, value)) = before.filter(is_beside).and_then(pair::split_value) {
            let value = format!("{} {text}", value.text());
            if value.len() < 80 && !value.contains(['"', '\'', '\\', '`', '$']) {
                let key = key.text();
                fault = fault.hint(format!("if it belongs to the value of `{key}`, write `{key}=\"{value}\"`"));
            }
        }
        self.faults.push(fault);
    }

    fn healthcheck(&mut self) -> Outcome<Healthcheck> {
        let mut flags = self.flags();
        let (kind, rest) = self.args.split_first();
        if kind.text().eq_ignore_ascii_case("NONE") {
            // No flag is looked at, as in BuildKit.
            self.args = rest;
            return match rest.is_empty() {
                true => Ok(Healthcheck::None),
                false => self.fail(rest.span(), "HEALTHCHECK NONE takes nothing more"),
            };
        }
        let interval_ns = self.duration(&mut flags, "interval");
        let timeout_ns = self.duration(&mut flags, "timeout");
        let start_period_ns = self.duration(&mut flags, "start-period");
        let start_interval_ns = self.duration(&mut flags, "start-interval");
        let retries = self.retries(&mut flags);
        flags.finish(self);
        self.args = rest;
        match &*kind.text().to_ascii_uppercase() {
            "" => self.fail(self.keyword.span(), "HEALTHCHECK needs `CMD` and a command, or `NONE`"),
            "CMD" => {
                let command = self.command()?;
                let is_empty = match &command {
                    Command::Shell(text) => text.is_empty(),
                    Command::Exec(words) => words.is_empty(),
                };
                if is_empty {
                    return self.fail(kind.span(), "HEALTHCHECK CMD needs a command");
                }
                Ok(Healthcheck::Command {
                    command,
                    interval_ns,
                    timeout_ns,
                    start_period_ns,
                    start_interval_ns,
                    retries,
                })
            }
            _ => {
                let message = format!("`{}` is not a kind of HEALTHCHECK", brief(kind.text()));
                let fault = Diagnostic::error(message).at(self.source, kind.span(), "expected `CMD` or `NONE`");
                self.faults.push(fault);
                Err(Reported)
            }
        }
    }

    fn duration(&mut self, flags: &mut Flags, name: &'static str) -> i64 {
        const MINIMUM_NS: i64 = 1_000_000;
        let Some(flag) = flags.one(name, self).filter(|flag| !flag.value.raw.is_empty()) else { return 0 };
        match duration::parse_ns(&flag.value.raw) {
            Ok(ns) if ns == 0 || ns >= MINIMUM_NS => return ns,
            Ok(_) => self.error(flag.value.span, format!("`--{name}` cannot be less than 1ms"), ""),
            Err(why) => self.error(flag.value.span, why, ""),
        }
        0
    }

    fn retries(&mut self, flags: &mut Flags) -> i64 {
        let Some(flag) = flags.one("retries", self).filter(|flag| !flag.value.raw.is_empty()) else { return 0 };
        match flag.value.raw.parse::<i32>() {
            Ok(retries) if retries >= 0 => return retries.into(),
            Ok(_) => self.error(flag.value.span, "`--retries` cannot be negative", ""),
            Err(_) => self.error(flag.value.span, format!("`{}` is not a number", brief(&flag.value.raw)), ""),
        }
        0
    }

    fn onbuild(&mut self) -> Outcome<Onbuild> {
        if self.args.is_empty() {
            return self.fail(self.keyword.span(), "ONBUILD needs an instruction");
        }
        let keyword = self.args.split_first().0;
        match keyword_of(self.args) {
            Some("ONBUILD") => return self.fail(keyword.span(), "ONBUILD cannot be chained"),
            Some(name @ ("FROM" | "MAINTAINER")) => {
                return self.fail(keyword.span(), format!("{name} cannot be an ONBUILD trigger"));
            }
            _ => {}
        }
        let mut text = self.args.to_line_end().text().to_owned();
        for (heredoc, _) in &self.heredocs {
            text.push('\n');
            text.push_str(&heredoc.body);
            text.push_str(&heredoc.name);
        }
        let heredocs = std::mem::take(&mut self.heredocs);
        let start = self.args.span().start;
        let span = Span { start, end: self.span.end };
        match parse(self.source, self.escape, self.args, heredocs, span, self.faults)? {
            Parsed::Instruction(trigger) => Ok(Onbuild { text, trigger: Box::new(trigger) }),
            Parsed::From(_) => unreachable!("FROM was refused above"),
        }
    }
}
