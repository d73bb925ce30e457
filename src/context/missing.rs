//! What to say when a source is not there.

use super::ignore::Verdict;
use super::pattern::{components, has_wildcard};
use super::resolve::{Directory, Found, Missing, Resolver, join};
use super::select::{Selector, children};
use crate::diag::{Diagnostic, nearest};

/// So many suggestions at most, out of the first so many names.
const SUGGESTIONS: usize = 3;
const NAMES: usize = 10_000;

impl Selector<'_, '_, '_> {
    /// `asked` is the path that was asked for, below the root; the resolver stands where it ended.
    pub(super) fn missing(&self, resolver: &Resolver<'_>, missing: &Missing, asked: &[u8]) -> Diagnostic {
        let tree = self.tree.described();
        let shown = String::from_utf8_lossy(asked);
        let not_found = || Diagnostic::error(format!("`{shown}` not found in {tree}"));
        let error = match missing {
            Missing::Hidden { path } => {
                let rules = self.tree.ignore.as_ref();
                let reason = rules.and_then(|rules| rules.hidden_by(path)).map(|reason| reason.to_string());
                let reason = format!("hidden by {}", reason.unwrap_or_else(|| "the ignore file".to_owned()));
                if path == asked {
                    Diagnostic::error(format!("`{shown}` is {reason}"))
                } else {
                    not_found().caused_by(format!("`{}` is {reason}", String::from_utf8_lossy(path)))
                }
            }
            Missing::NotDirectory { path } => {
                not_found().caused_by(format!("`{}` is not a directory", String::from_utf8_lossy(path)))
            }
            Missing::Loop { path } => {
                let reason = format!("`{}` leads through too many symbolic links", String::from_utf8_lossy(path));
                return not_found().caused_by(reason);
            }
            Missing::Absent { name } => {
                let directory = resolver.directory();
                let path = join(&directory.path, name);
                let mut error = not_found();
                if path != asked {
                    error = error.caused_by(format!("there is no `{}`", String::from_utf8_lossy(&path)));
                }
                // What follows the missing name; nothing to go by if that is part of a link.
                let Some(rest) = asked.strip_prefix(path.as_slice()) else {
                    return self.through_link(resolver, error);
                };
                for name in self.similar(directory, name) {
                    let path = [&join(&directory.path, name.as_bytes()), rest].concat();
                    if has_wildcard(rest) || self.exists(&path) {
                        error = error.hint(format!("did you mean `{}`?", String::from_utf8_lossy(&path)));
                    }
                }
                error
            }
        };
        self.through_link(resolver, error)
    }

    /// The error, with the link that led to it.
    fn through_link(&self, resolver: &Resolver<'_>, error: Diagnostic) -> Diagnostic {
        match &resolver.link {
            Some((link, target)) => {
                let (link, target) = (String::from_utf8_lossy(link), String::from_utf8_lossy(target));
                let link = format!("`{link}` is a symbolic link to `{target}`");
                let cause = error.cause.clone().map_or_else(|| link.clone(), |cause| format!("{link}, and {cause}"));
                error.caused_by(cause)
            }
            None => error,
        }
    }

    fn exists(&self, path: &[u8]) -> bool {
        let found = self.root.clone().go(&components(path), true);
        matches!(found, Ok(Found::Directory | Found::Leaf(_)))
    }

    /// Visible names in the directory that are like `name`, the most similar first.
    fn similar(&self, directory: &Directory, name: &[u8]) -> Vec<String> {
        let name = String::from_utf8_lossy(name);
        let mut names: Vec<String> = children(self.tree, directory)
            .unwrap_or_default()
            .into_iter()
            .filter(|name| !self.hides(directory.verdict, &join(&directory.path, name)))
            .filter_map(|name| String::from_utf8(name).ok())
            .take(NAMES)
            .collect();
        let mut similar = Vec::new();
        while similar.len() < SUGGESTIONS {
            let Some(best) = nearest(&name, names.iter().map(String::as_str)).map(str::to_owned) else {
                break;
            };
            names.retain(|name| *name != best);
            similar.push(best);
        }
        similar
    }

    fn hides(&self, parent: Verdict, path: &[u8]) -> bool {
        self.tree.ignore.as_ref().is_some_and(|rules| rules.hides(rules.judge(parent, path)))
    }
}
