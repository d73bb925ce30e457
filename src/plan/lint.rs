//! Findings that need variables or configs: warnings, each with the rule's name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::diag::{Diagnostic, Source, nearest};
use crate::dockerfile::expand::{self, Variables as _};
use crate::dockerfile::{Dockerfile, From, Word};
use crate::image::{Platform, Reference};

use super::scope::{self, Scope};
use super::{Options, title};

/// The faults, and the warnings about places where there is no fault.
pub(super) fn with_warnings(faults: Vec<Diagnostic>, mut warnings: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let place = |diagnostic: &Diagnostic| {
        let label = diagnostic.labels.first()?;
        Some((Arc::as_ptr(&label.source), label.span))
    };
    let places: Vec<_> = faults.iter().filter_map(place).collect();
    warnings.retain(|warning| place(warning).is_none_or(|place| !places.contains(&place)));
    warnings.into_iter().chain(faults).collect()
}

/// Findings about FROM lines.
pub(super) fn froms(dockerfile: &Dockerfile, options: &Options, globals: &Scope) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    let declared = scope::global_names(dockerfile, globals);
    let defaults = scope::globals(dockerfile, options, &BTreeMap::new(), &mut Vec::new());
    for stage in &dockerfile.stages {
        let from = &stage.from;
        let default = expand::expand(&from.image.raw, dockerfile.escape, &defaults);
        if default.is_ok_and(|name| name.text.parse::<Reference>().is_err()) && from.image.raw.contains('$') {
            warnings.push(
                Diagnostic::warning(
                    "InvalidDefaultArgInFrom",
                    format!("without build arguments `{}` is no image reference", from.image.raw),
                )
                .at(&from.source, from.image.span, ""),
            );
        }
        for word in std::iter::once(&from.image).chain(&from.platform) {
            let Ok(expanded) = expand::expand(&word.raw, dockerfile.escape, globals) else { continue };
            for name in expanded.unset.iter().filter(|name| !declared.contains(name.as_str())) {
                let warning = Diagnostic::warning(
                    "UndefinedArgInFrom",
                    format!("no ARG before FROM declares `{name}`"),
                )
                .at(&from.source, place(word, name), "");
                warnings.push(suggest(warning, nearest(name, declared.iter().copied())));
            }
        }
        warnings.extend(platform(from, dockerfile.escape, globals));
    }
    warnings
}

fn platform(from: &From, escape: char, globals: &Scope) -> Option<Diagnostic> {
    let word = from.platform.as_ref()?;
    let expanded = expand::expand(&word.raw, escape, globals).ok()?.text;
    // Where nothing is set, all that it asks for is unset.
    let asked = expand::expand(&word.raw, escape, &Scope::default()).map(|expanded| expanded.unset);
    match asked.as_deref() {
        Ok([]) => {}
        Ok([name]) if name == "TARGETPLATFORM" && globals.get(name) == Some(&expanded) => {
            let message = "the target platform is the default of `--platform`";
            return Some(Diagnostic::warning("RedundantTargetPlatform", message).at(&from.source, word.span, ""));
        }
        _ => return None,
    }
    let platform: Platform = expanded.parse().ok()?;
    // A stage named for its platform says that the constant is meant.
    let name = from.name.as_deref().unwrap_or_default();
    if name.contains(&platform.os) || name.contains(&platform.architecture) {
        return None;
    }
    Some(
        Diagnostic::warning(
            "FromPlatformFlagConstDisallowed",
            format!("`--platform={}` builds this stage for one platform whatever the target is", word.raw),
        )
        .at(&from.source, word.span, ""),
    )
}

/// The base is for another platform than the stage.
pub(super) fn base_platform(
    from: &From,
    name: &str,
    wanted: &Platform,
    os: &str,
    architecture: &str,
) -> Option<Diagnostic> {
    if os.is_empty() || (wanted.os == os && wanted.architecture == architecture) {
        return None;
    }
    Some(
        Diagnostic::warning("InvalidBaseImagePlatform", format!("`{name}` is for {os}/{architecture}, not {wanted}"))
            .at(&from.source, from.image.span, ""),
    )
}

/// A variable that nothing has set. `known` are the names to suggest from.
pub(super) fn undefined<'a>(
    name: &str,
    word: &Word,
    source: &Arc<Source>,
    known: impl Iterator<Item = &'a str>,
) -> Diagnostic {
    let warning = Diagnostic::warning("UndefinedVar", format!("nothing sets the variable `{name}`")).at(
        source,
        place(word, name),
        "",
    );
    let near = nearest(name, known).map(|near| format!("${near}"));
    suggest(warning, near.as_deref())
}

fn suggest(warning: Diagnostic, near: Option<&str>) -> Diagnostic {
    match near {
        Some(near) => warning.hint(format!("did you mean `{near}`?")),
        None => warning,
    }
}

/// Where `$name` stands in a word; the whole word if that cannot be told.
fn place(word: &Word, name: &str) -> crate::diag::Span {
    for prefix in ["$", "${"] {
        let text = format!("{prefix}{name}");
        for (start, _) in word.raw.match_indices(&text) {
            let end = start + text.len();
            if !word.raw[end..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_') {
                return word.span_of(start, start + title::reference(&word.raw[start..]).len());
            }
        }
    }
    word.span
}

const SECRET_WORDS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS_WORDS: [&str; 3] = ["public", "file", "version"];

/// Whether a variable is called as secrets are.
pub(super) fn is_secret_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    has(&SECRET_WORDS) && !has(&HARMLESS_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_names_are_whole_words() {
        for name in ["PASSWORD", "API_TOKEN", "git_key", "A_PASSWORD_B", "CREDENTIALS", "APIKEY"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["PASS", "PWD_X", "KEYS", "PUBLIC_KEY", "TOKEN_FILE", "AUTHOR", "KEY_VERSION"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
