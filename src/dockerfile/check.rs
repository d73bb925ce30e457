//! `# check=skip=RuleA,RuleB;error=true`: which warnings are wanted, of a file or of the instruction below.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Dockerfile, comment};
use crate::diag::{Diagnostic, Severity, Span};

/// Rules that are asked for by `experimental=`.
const EXPERIMENTAL: [&str; 1] = ["InvalidDefinitionDescription"];

/// What a `check` directive says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    skipped: Rules,
    experimental: Rules,
    /// A warning that is not skipped ends the build.
    pub is_error: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    is_all: bool,
    names: BTreeSet<String>,
}

impl Rules {
    fn add(&mut self, list: &str) {
        match list.trim() {
            "all" => self.is_all = true,
            list => self.names.extend(list.split(',').map(|rule| rule.trim().to_owned())),
        }
    }

    fn has(&self, rule: &str) -> bool {
        self.is_all || self.names.contains(rule)
    }
}

impl Check {
    /// Reads the value of the directive; what it does not know it passes over, as BuildKit does.
    pub fn parse(value: &str) -> Self {
        let mut check = Self::default();
        for part in value.split(';') {
            match part.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
                Some(("skip", rules)) => check.skipped.add(rules),
                Some(("experimental", rules)) => check.experimental.add(rules),
                Some(("error", value)) => check.is_error = matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
                _ => {}
            }
        }
        check
    }

    /// Whether `warning`, found in `file`, is to be told. Errors always are, and so are warnings without a rule.
    pub fn admits(&self, warning: &Diagnostic, file: &Dockerfile) -> bool {
        let (Severity::Warning, Some(rule)) = (warning.severity, warning.rule) else { return true };
        let own = Self::above(warning, file);
        let skips = |check: &Self| check.skipped.has(rule);
        let wants = |check: &Self| check.experimental.has(rule);
        // One that must be asked for is there when it is, whatever is skipped.
        match EXPERIMENTAL.contains(&rule) {
            true => wants(self) || own.iter().any(wants),
            false => !skips(self) && !own.iter().any(skips),
        }
    }

    /// The directives in the comments right above the instruction that `warning` points at.
    fn above(warning: &Diagnostic, file: &Dockerfile) -> Vec<Self> {
        let Some(label) = warning.labels.first() else { return Vec::new() };
        if !Arc::ptr_eq(&label.source, &file.source) {
            return Vec::new();
        }
        let instructions = file.stages.iter().flat_map(|stage| {
            std::iter::once(stage.from.span).chain(stage.instructions.iter().map(|instruction| instruction.span))
        });
        let all = file.global_args.iter().map(|instruction| instruction.span).chain(instructions);
        // What is said of a comment is said of the instruction below it.
        let Some(span) = all.into_iter().find(|span| span.end > label.span.start) else { return Vec::new() };
        let is_of_file = |comment: &Span| file.check.as_ref().is_some_and(|check| check.span.end == comment.end);
        comment::above(&file.source, span)
            .into_iter()
            .filter(|comment| !is_of_file(comment))
            .filter_map(|comment| directive(&file.source.text[comment.range()]).map(Self::parse))
            .collect()
    }
}

/// The value of a comment that is a `check` directive.
pub(super) fn directive(comment: &str) -> Option<&str> {
    let (key, value) = comment.split_once('=')?;
    key.trim().eq_ignore_ascii_case("check").then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Source;

    fn told(text: &str, check: &str) -> Vec<&'static str> {
        let file = super::super::parse(Source::new("Dockerfile", text)).expect("a file");
        let check = Check::parse(check);
        file.warnings.iter().filter(|warning| check.admits(warning, &file)).filter_map(|warning| warning.rule).collect()
    }

    #[test]
    fn rules_are_skipped_by_name_or_all() {
        let text = "FROM scratch as A\nmaintainer me";
        let all = ["FromAsCasing", "StageNameCasing", "MaintainerDeprecated", "ConsistentInstructionCasing"];
        assert!(all.iter().all(|rule| told(text, "").contains(rule)));
        assert_eq!(told(text, "skip=FromAsCasing, StageNameCasing,MaintainerDeprecated;error=true").len(), 1);
        assert!(told(text, " skip = all ").is_empty());
        assert!(Check::parse("skip=x;error=True").is_error && !Check::parse("error=yes").is_error);
    }

    #[test]
    fn a_comment_is_for_the_instruction_below() {
        let text = "FROM scratch\n# check=skip=MaintainerDeprecated\nMAINTAINER me\nMAINTAINER you";
        assert_eq!(told(text, "").len(), 1);
        assert_eq!(told(&text.replace("Deprecated\n", "Deprecated\n\n"), "").len(), 2);
    }

    #[test]
    fn an_experimental_rule_is_asked_for() {
        let text = "# bad\nARG X\nFROM scratch";
        assert!(told(text, "").is_empty());
        assert_eq!(told(text, "experimental=all"), ["InvalidDefinitionDescription"]);
        assert_eq!(told(text, "skip=all;experimental=InvalidDefinitionDescription").len(), 1);
        assert_eq!(told("FROM scratch\n# bad\n# check=experimental=all\nARG X", "").len(), 1);
        assert_eq!(told("FROM scratch\n# X is good\n# check=experimental=all\nARG X", "").len(), 0);
    }
}
