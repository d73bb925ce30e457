//! Sources of COPY and ADD that an ignore file hides: found before anything is read.

use super::{CopyKind, CopySource, Input, Op, Plan, path};
use crate::context::IgnoreRules;
use crate::diag::Diagnostic;

/// A warning for each source that is named in `plan` and hidden by the rules of the build context. Rules with
/// exceptions may show a part of what they hide: BuildKit says nothing then, and neither does this.
pub fn ignored(plan: &Plan, rules: &IgnoreRules) -> Vec<Diagnostic> {
    if rules.has_exceptions() {
        return Vec::new();
    }
    let copies = plan.steps.iter().filter_map(|step| match &step.op {
        Op::Copy(copy) if copy.from == Input::Context => Some(copy),
        _ => None,
    });
    let mut found = Vec::new();
    for copy in copies {
        let keyword = if copy.kind == CopyKind::Add { "ADD" } else { "COPY" };
        for source in &copy.sources {
            let CopySource::Path(located) = source else { continue };
            // What stands for the whole context is hidden by what hides every name.
            let clean = path::join("/", &located.text);
            let clean = if clean == "/" { "." } else { clean.trim_start_matches('/') };
            let Some(hidden) = rules.hidden_by(clean.as_bytes()) else { continue };
            let message = format!("{keyword} finds no `{}`: {hidden} hides it", located.text);
            found.push(Diagnostic::warning("CopyIgnoredFile", message).at(&located.source, located.span, ""));
        }
    }
    found
}
