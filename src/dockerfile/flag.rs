//! Flags of instructions: `--name=value` right after the keyword, quotes and escapes removed. A bare
//! `--` or the first word that does not begin with `--` ends them. The escape character is the backslash
//! whatever `# escape=` says, as in BuildKit.

use crate::diag::{Diagnostic, Span, nearest};
use crate::dockerfile::line::{Slice, WordBuilder};
use crate::dockerfile::statement::{Statement, brief};
use crate::dockerfile::{Flag, Word};

/// A flag as written.
#[derive(Debug)]
pub struct RawFlag {
    pub name: String,
    pub name_span: Span,
    /// `None` without `=`.
    pub value: Option<Flag>,
}

/// Takes the flags off the front of the arguments; the rest is trimmed.
pub fn split(args: Slice<'_>) -> (Vec<RawFlag>, Slice<'_>) {
    let mut flags = Vec::new();
    let text = args.text();
    let mut position = 0;
    loop {
        position += text[position..].len() - text[position..].trim_start().len();
        if !text[position..].starts_with("--") {
            return (flags, args.from(position).trim());
        }
        let (flag, length) = read(args.from(position));
        position += length;
        match flag {
            Some(flag) => flags.push(flag),
            None => return (flags, args.from(position).trim()),
        }
    }
}

/// The flag at the start of `args` and its length; `None` for the bare `--`.
fn read(args: Slice<'_>) -> (Option<RawFlag>, usize) {
    let text = args.text();
    let mut name = WordBuilder::default();
    let mut value: Option<(WordBuilder, usize)> = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    let mut length = text.len();
    while let Some((mut at, mut c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            length = at;
            break;
        }
        if quote == Some(c) {
            quote = None;
            continue;
        }
        if quote.is_none() && (c == '\'' || c == '"') {
            quote = Some(c);
            continue;
        }
        if c == '\\' {
            match chars.next() {
                Some(next) => (at, c) = next,
                None => break,
            }
        }
        if c == '=' && value.is_none() {
            value = Some((WordBuilder::default(), at + 1));
            continue;
        }
        let word = value.as_mut().map_or(&mut name, |(value, _)| value);
        word.push(c, args.place(at), args.place(at) + c.len_utf8());
    }
    if name.as_str() == "--" && value.is_none() {
        return (None, length);
    }
    let span = args.sub(0..length).span();
    let name = name.finish();
    let flag = RawFlag {
        name: name.raw[2..].to_owned(),
        name_span: name.span,
        value: value.map(|(word, at)| {
            let place = args.place(at - 1) + 1;
            let empty = Word { span: Span::new(place, place), ..Word::default() };
            Flag { value: if word.is_empty() { empty } else { word.finish() }, span }
        }),
    };
    (Some(flag), length)
}

/// The flags of one instruction, taken one by one by name. Those left over are unknown.
pub struct Flags {
    all: Vec<RawFlag>,
    known: Vec<&'static str>,
}

impl Flags {
    pub fn new(all: Vec<RawFlag>) -> Self {
        Self { all, known: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Vec<RawFlag> {
        self.known.push(name);
        if self.all.iter().all(|flag| flag.name != name) {
            return Vec::new();
        }
        let (taken, rest) = std::mem::take(&mut self.all).into_iter().partition(|flag| flag.name == name);
        self.all = rest;
        taken
    }

    fn take_one(&mut self, name: &'static str, statement: &mut Statement<'_>) -> Option<RawFlag> {
        let mut taken = self.take(name).into_iter();
        let first = taken.next()?;
        for again in taken {
            let fault = Diagnostic::error(format!("flag `--{name}` is given twice"))
                .at(statement.source, again.name_span, "")
                .at(statement.source, first.name_span, "the first one");
            statement.faults.push(fault);
        }
        Some(first)
    }

    /// A flag that may be repeated.
    pub fn many(&mut self, name: &'static str, statement: &mut Statement<'_>) -> Vec<Flag> {
        self.take(name).into_iter().filter_map(|flag| require_value(flag, statement)).collect()
    }

    pub fn one(&mut self, name: &'static str, statement: &mut Statement<'_>) -> Option<Flag> {
        let flag = self.take_one(name, statement)?;
        require_value(flag, statement)
    }

    /// `--name`, `--name=true` or `--name=false`.
    pub fn boolean(&mut self, name: &'static str, statement: &mut Statement<'_>) -> Option<bool> {
        let flag = self.take_one(name, statement)?;
        let Some(flag) = flag.value else { return Some(true) };
        match &*flag.value.raw.to_ascii_lowercase() {
            "true" => Some(true),
            "false" => Some(false),
            "" => {
                statement.error(flag.span, format!("flag `--{name}=` has no value"), "");
                None
            }
            _ => {
                let message = format!("flag `--{name}` is `true` or `false`, not `{}`", brief(&flag.value.raw));
                statement.error(flag.value.span, message, "");
                None
            }
        }
    }

    /// Reports what was not taken. To be called last, before the other words are looked at.
    pub fn finish(self, statement: &mut Statement<'_>) {
        for flag in self.all {
            if statement.faults.is_full() {
                break;
            }
            let mut fault = Diagnostic::error(format!("unknown flag `--{}` of {}", brief(&flag.name), statement.name));
            fault = fault.at(statement.source, flag.name_span, "");
            if let Some(name) = nearest(&flag.name, self.known.iter().copied()) {
                fault = fault.hint(format!("did you mean `--{name}`?"));
            }
            statement.faults.push(fault);
        }
    }
}

fn require_value(flag: RawFlag, statement: &mut Statement<'_>) -> Option<Flag> {
    if flag.value.is_none() {
        statement.error(flag.name_span, format!("flag `--{}` has no value", flag.name), "a `=` is missing");
    }
    flag.value
}
