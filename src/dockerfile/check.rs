//! `# check=skip=RuleA,RuleB;error=true`: which warnings are wanted.

use std::collections::BTreeSet;

use super::Word;
use crate::diag::{Diagnostic, Severity};

/// What the `check` directive says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    skips_all: bool,
    /// Names of rules.
    skipped: BTreeSet<String>,
    /// A warning that is not skipped ends the build.
    pub is_error: bool,
}

impl Check {
    /// Reads the value of the directive; what it does not know it passes over, as BuildKit does.
    pub fn parse(value: Option<&Word>) -> Self {
        let mut check = Self::default();
        for part in value.map_or("", |value| &value.raw).split(';') {
            match part.trim().split_once('=') {
                Some(("skip", "all")) => check.skips_all = true,
                Some(("skip", rules)) => check.skipped.extend(rules.split(',').map(|rule| rule.trim().to_owned())),
                Some(("error", value)) => check.is_error = value.eq_ignore_ascii_case("true"),
                _ => {}
            }
        }
        check
    }

    /// Whether `diagnostic` is to be told. Errors always are, and so are warnings without a rule.
    pub fn admits(&self, diagnostic: &Diagnostic) -> bool {
        diagnostic.severity == Severity::Error
            || diagnostic.rule.is_none_or(|rule| !self.skips_all && !self.skipped.contains(rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Check {
        Check::parse(Some(&Word { raw: text.into(), ..Word::default() }))
    }

    #[test]
    fn rules_are_skipped_by_name_or_all() {
        let undefined = Diagnostic::warning("UndefinedVar", "");
        let casing = Diagnostic::warning("StageNameCasing", "");
        assert!(Check::parse(None).admits(&undefined));
        let some = check("skip=UndefinedVar, Other;error=true");
        assert!(!some.admits(&undefined) && some.admits(&casing) && some.is_error);
        assert!(!check("skip=all").admits(&casing));
        assert!(check("skip=all").admits(&Diagnostic::error("")));
    }
}
