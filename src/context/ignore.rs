//! `.dockerignore`.

use crate::diag::Diagnostic;

/// Compiled rules; the last pattern that matches decides.
#[derive(Debug)]
pub struct IgnoreRules {
    _todo: (),
}

impl IgnoreRules {
    /// Parses the text of an ignore file; `name` is its path for messages.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Diagnostic> {
        let _ = (name, text);
        todo!()
    }
}
