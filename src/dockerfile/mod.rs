//! The Dockerfile language: text in, typed instructions with byte spans out. Pure; nothing is
//! opened, expanded or looked up here.
//!
//! ```text
//! text ── lines ──▶ logical lines (continuations joined, comments dropped, heredocs taken)
//!      ── flags, words ──▶ instruction ──▶ Dockerfile { global_args, stages }
//! ```
//!
//! [`parse`] reports every fault of a file in one go. Expansion ([`expand`]) happens at planning,
//! when variables are known.

pub mod instruction;
pub mod expand;
pub mod check;
mod line;
mod comment;
mod directive;
mod heredoc;
mod json;
mod pair;
pub mod duration;
mod fault;
mod flag;
mod statement;
mod lint;
mod parse;

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};

pub use instruction::{
    Add, ArgDeclaration, Command, Copy, CopySource, Flag, From, Healthcheck, Heredoc, Instruction, Kind, Onbuild, Run,
    Word,
};
pub use parse::{parse, parse_trigger};

/// A whole file.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    pub source: Arc<Source>,
    /// `\` or a backtick, from `# escape=`.
    pub escape: char,
    /// The value of `# syntax=`, up to the first space.
    pub syntax: Option<Word>,
    /// The value of `# check=`.
    pub check: Option<Word>,
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Instruction>,
    /// At least one.
    pub stages: Vec<Stage>,
    /// Lint findings that need no variables.
    pub warnings: Vec<Diagnostic>,
}

impl Dockerfile {
    /// What the comment lines right above `span` say of `name`: the rest of the line that begins with it.
    pub fn description(&self, span: Span, name: &str) -> Option<String> {
        let comments = comment::above(&self.source, span).into_iter();
        let mut texts = comments.map(|comment| &self.source.text[comment.range()]);
        texts.find_map(|text| Some(text.strip_prefix(name)?.strip_prefix(' ')?.trim().to_owned()))
    }
}

#[derive(Clone, Debug)]
pub struct Stage {
    pub from: From,
    /// All but FROM, in order.
    pub instructions: Vec<Instruction>,
}

impl Stage {
    /// The name after `AS`, lower-cased as BuildKit stores it.
    pub fn name(&self) -> Option<&str> {
        self.from.name.as_deref()
    }
}

/// The span that covers both.
pub fn cover(a: Span, b: Span) -> Span {
    Span { start: a.start.min(b.start), end: a.end.max(b.end) }
}
