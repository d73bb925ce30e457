//! Variable expansion and unquoting of words, as BuildKit's shell lexer does it: `$n`, `${n}`,
//! `${n:-w}` and its kin, `#`, `%` and `/` modifiers, quotes and escapes.

use crate::diag::{Diagnostic, Source, Span};
use crate::dockerfile::Word;

/// Where a name gets its value.
pub trait Variables {
    /// `None`: unset.
    fn get(&self, name: &str) -> Option<&str>;
}

/// A failed expansion: what is wrong and where in the raw text of the word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandError {
    pub message: String,
    /// Bytes of [`Word::raw`].
    pub start: usize,
    pub end: usize,
}

/// The result of an expansion.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Expanded {
    pub text: String,
    /// Names that were asked for and unset, each once, in order; for the UndefinedVar lint.
    pub unset: Vec<String>,
}

/// Expands and unquotes to one string.
pub fn expand(word: &str, escape: char, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    let _ = (word, escape, variables);
    todo!()
}

/// Expands and splits at unquoted white space, as EXPOSE does: one variable may yield several words.
pub fn expand_words(word: &str, escape: char, variables: &dyn Variables) -> Result<Vec<String>, ExpandError> {
    let _ = (word, escape, variables);
    todo!()
}

/// Expands but keeps quotes and escapes of the surrounding text (ONBUILD, flag values that are
/// parsed again).
pub fn expand_raw(word: &str, escape: char, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    let _ = (word, escape, variables);
    todo!()
}

/// Expands a heredoc body: quotes are ordinary characters, `\` escapes whatever `# escape=` says.
pub fn expand_heredoc(body: &str, variables: &dyn Variables) -> Result<Expanded, ExpandError> {
    let _ = (body, variables);
    todo!()
}

impl ExpandError {
    /// The diagnostic that points into `word`.
    pub fn at(&self, source: &std::sync::Arc<Source>, word: &Word) -> Diagnostic {
        let span: Span = word.span_of(self.start, self.end);
        Diagnostic::error(self.message.clone()).at(source, span, "")
    }
}
