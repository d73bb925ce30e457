//! The instructions, typed. Words keep their quotes and variables: they are expanded at planning.

use std::sync::Arc;

use crate::diag::{Source, Span};
use crate::dockerfile::heredoc;

/// A piece of an instruction as written: quotes, escapes and variables untouched, continuations
/// removed. Knows where each of its bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Word {
    pub raw: String,
    /// From the first to the last byte, continuations included.
    pub span: Span,
    /// `(offset in raw, offset in the source)` of each unbroken run, ascending, when the word was
    /// joined from several lines; empty when `raw` is the source text at `span`.
    pub runs: Vec<(u32, u32)>,
}

impl Word {
    /// Where `raw[start..end]` stands in the source.
    pub fn span_of(&self, start: usize, end: usize) -> Span {
        let place = |offset: usize| match self.runs.iter().rev().find(|(raw, _)| *raw as usize <= offset) {
            Some((raw, at)) => *at as usize + (offset - *raw as usize),
            None => self.span.start as usize + offset,
        };
        let end = end.max(start);
        Span::new(place(start), if end > start { place(end - 1) + 1 } else { place(start) })
    }

    /// The part `raw[start..end]`, which knows its place as well.
    pub fn part(&self, start: usize, end: usize) -> Self {
        let mut runs = vec![(0, self.span_of(start, start).start)];
        let inside = self.runs.iter().filter(|(raw, _)| (*raw as usize) > start && (*raw as usize) < end);
        runs.extend(inside.map(|(raw, place)| (raw - start as u32, *place)));
        Self { raw: self.raw[start..end].into(), span: self.span_of(start, end), runs }
    }

    /// Without white space at its ends.
    pub fn trim(&self) -> Self {
        let start = self.raw.len() - self.raw.trim_start().len();
        self.part(start, start + self.raw.trim().len())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub source: Arc<Source>,
    /// The whole instruction, heredocs included.
    pub span: Span,
    /// The keyword alone.
    pub keyword: Span,
    /// The logical line: continuations joined, comments dropped, ends trimmed, without heredoc
    /// bodies. What a step's title is made from.
    pub text: String,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Arg(Vec<ArgDeclaration>),
    Env(Vec<(Word, Word)>),
    Label(Vec<(Word, Word)>),
    Run(Run),
    Copy(Copy),
    Add(Add),
    Workdir(Word),
    User(Word),
    Cmd(Command),
    Entrypoint(Command),
    /// JSON form only, at least one element; not expanded.
    Shell(Vec<String>),
    Expose(Vec<Word>),
    Volume(Vec<Word>),
    StopSignal(Word),
    Healthcheck(Healthcheck),
    Onbuild(Onbuild),
    /// Not expanded.
    Maintainer(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    pub source: Arc<Source>,
    pub span: Span,
    pub text: String,
    /// `--platform=`, expanded with global ARGs.
    pub platform: Option<Word>,
    /// Expanded with global ARGs.
    pub image: Word,
    /// Lower-cased and checked.
    pub name: Option<String>,
    pub name_span: Span,
}

/// One `NAME` or `NAME=value` of an ARG list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// As written: quotes and variables are part of it.
    pub name: String,
    pub name_span: Span,
    pub value: Option<Word>,
}

/// CMD, ENTRYPOINT, and what RUN executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The text handed to the shell: never expanded or unquoted by us.
    Shell(String),
    /// JSON form.
    Exec(Vec<String>),
}

/// A flag value (`--name=value`), unquoted, not expanded. `value.span` covers the value alone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Flag {
    pub value: Word,
    /// The whole `--name=value`.
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub command_span: Span,
    /// Values of `--mount=`, in order, unexpanded (key=value lists, parsed at planning because
    /// values may hold variables).
    pub mounts: Vec<Flag>,
    pub network: Option<Flag>,
    pub security: Option<Flag>,
    pub devices: Vec<Flag>,
    /// Bodies that follow. With [`Command::Shell`], the planner decides between "the body is the
    /// script", "the body is an executable" (`#!`) and "the shell reads the heredoc itself".
    pub heredocs: Vec<Heredoc>,
}

impl Run {
    /// The heredoc whose body is what RUN executes: `RUN <<EOF` and nothing else. `None` where the
    /// shell is to read the heredocs itself, or there are none.
    pub fn script(&self) -> Option<&Heredoc> {
        match &self.command {
            Command::Shell(text) if heredoc::mark(text).is_some() => self.heredocs.first(),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter, unquoted.
    pub name: String,
    /// The file descriptor before `<<`, if one is written (`3<<EOF`).
    pub fd: Option<u32>,
    /// Whether variables are to be expanded: no part of the delimiter was quoted.
    pub expands: bool,
    /// `<<-`: leading tabs of the body and of the terminator are stripped where the body is used
    /// as a file; `body` still has them.
    pub strips_tabs: bool,
    /// The lines between, line ends included, exactly as in the file.
    pub body: String,
    pub body_span: Span,
}

impl Heredoc {
    /// The body with leading tabs removed where `<<-` asks for it.
    pub fn content(&self) -> String {
        self.word().raw
    }

    /// [`Heredoc::content`] as a word that knows its place, so that an error of its expansion can
    /// point at it.
    pub fn word(&self) -> Word {
        if !self.strips_tabs {
            return Word { raw: self.body.clone(), span: self.body_span, runs: Vec::new() };
        }
        let mut word = Word { span: self.body_span, ..Word::default() };
        let mut at = self.body_span.start;
        for line in self.body.split_inclusive('\n') {
            let content = line.trim_start_matches('\t');
            word.runs.push((word.raw.len() as u32, at + (line.len() - content.len()) as u32));
            word.raw.push_str(content);
            at += line.len() as u32;
        }
        word
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// A path, wildcard, URL or git reference as written; expanded at planning.
    Path(Word),
    /// `<<NAME`: a file of that name.
    Heredoc(Heredoc, Span),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub sources: Vec<CopySource>,
    pub destination: Word,
    pub from: Option<Flag>,
    pub chown: Option<Flag>,
    pub chmod: Option<Flag>,
    pub is_link: bool,
    pub has_parents: bool,
    pub exclude: Vec<Flag>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Add {
    pub sources: Vec<CopySource>,
    pub destination: Word,
    pub chown: Option<Flag>,
    pub chmod: Option<Flag>,
    pub checksum: Option<Flag>,
    pub is_link: bool,
    pub keeps_git_dir: Option<bool>,
    pub unpack: Option<bool>,
    pub exclude: Vec<Flag>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    None,
    Command {
        command: Command,
        /// Nanoseconds; 0 means inherit.
        interval_ns: i64,
        timeout_ns: i64,
        start_period_ns: i64,
        start_interval_ns: i64,
        retries: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The text stored in the image config: the logical line after ONBUILD, spaces at its end too, with heredoc
    /// bodies.
    pub text: String,
    pub trigger: Box<Instruction>,
}
