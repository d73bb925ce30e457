//! COPY `--parents`: the path of each source is kept, and its directories come along.
//!
//! ```text
//! src/./lib/**/*.c     pivot `src` (links followed, wildcards allowed), pattern `lib/**/*.c`
//!                      entries: the pivot, lib, lib/…, as far as something in them matches
//! ```
//!
//! The pattern is one of `.dockerignore`'s kind, so it also takes all that is in a directory that
//! it matches. Links on the way to its first wildcard are followed, and land as the directories
//! they lead to; a link it matches lands as a link.

use std::sync::Arc;

use super::ignore::IgnoreRules;
use super::look::{Filter, Verdicts};
use super::pattern::{components, has_wildcard, unescape};
use super::resolve::{Found, Missing, Resolver, join};
use super::select::Selector;
use super::walk::{Start, Walked, walk};
use crate::diag::{Diagnostic, Result};

impl<'scope> Selector<'_, 'scope, '_> {
    pub(super) fn parents(&mut self, source: &[u8]) -> Result<()> {
        let pivot = source.windows(3).position(|window| window == b"/./");
        let (pivot, pattern) = pivot.map_or((&b""[..], source), |at| (&source[..at], &source[at + 3..]));
        let (pivot, pattern) = (components(pivot), components(pattern));
        if !pivot.iter().any(|component| has_wildcard(component)) {
            let mut resolver = self.root.clone();
            return match resolver.go(&pivot, true)? {
                Found::Directory => self.below(resolver, &pattern),
                Found::Leaf(leaf) => {
                    let missing = Missing::NotDirectory { path: leaf.path };
                    Err(self.missing(&resolver, &missing, &[pivot, pattern].concat().join(&b'/')))
                }
                Found::Missing(missing) => {
                    Err(self.missing(&resolver, &missing, &[pivot, pattern].concat().join(&b'/')))
                }
            };
        }
        for (mut resolver, name) in self.matches(&pivot)? {
            if let Found::Directory = resolver.go(&[&name], true)? {
                self.below(resolver, &pattern)?;
            }
        }
        Ok(())
    }

    /// Selects what the pattern matches below the directory where the resolver stands.
    fn below(&mut self, mut resolver: Resolver<'scope>, pattern: &[&[u8]]) -> Result<()> {
        let pivot = resolver.directory().clone();
        if pattern.is_empty() {
            return match self.take_directory(&pivot, b"")? {
                None => Ok(()),
                Some(missing) => Err(self.missing(&resolver, &missing, &pivot.path)),
            };
        }
        let first = self.out.len();
        self.out.begin(b"");
        if self.below_from(&mut resolver, pattern)? {
            self.found.push((Vec::new(), self.out.len() - first));
        } else {
            self.out.truncate(first);
        }
        Ok(())
    }

    /// Whether anything was selected; otherwise directories may have been, in vain.
    fn below_from(&mut self, resolver: &mut Resolver<'scope>, pattern: &[&[u8]]) -> Result<bool> {
        let pivot = resolver.directory().path.clone();
        let asked = || join(&pivot, &pattern.join(&b'/'));
        let literal = pattern.iter().take_while(|component| !has_wildcard(component)).count();
        let include = if literal == pattern.len() { None } else { Some(Arc::new(include(pattern)?)) };
        let filter = Filter { exclude: self.exclude, include: include.clone() };

        let (mut land, mut verdicts) = (Vec::new(), Verdicts::default());
        for component in &pattern[..literal.min(pattern.len() - 1)] {
            let name = unescape(component);
            let above = resolver.directory().clone();
            match resolver.go(&[&name], true)? {
                Found::Directory => {}
                _ if include.is_some() => return Ok(false),
                Found::Leaf(leaf) => {
                    return Err(self.missing(resolver, &Missing::NotDirectory { path: leaf.path }, &asked()));
                }
                Found::Missing(missing) => return Err(self.missing(resolver, &missing, &asked())),
            }
            self.push_directory(&above, &land)?;
            land = join(&land, &name);
            verdicts = filter.judge(verdicts, &land);
        }
        let mut directory = resolver.directory().clone();
        if include.is_none() {
            let name = unescape(pattern[pattern.len() - 1]);
            self.push_directory(&directory, &land)?;
            land = join(&land, &name);
            verdicts = filter.judge(verdicts, &land);
            match resolver.go(&[&name], false)? {
                Found::Directory => directory = resolver.directory().clone(),
                Found::Leaf(leaf) if filter.selects(verdicts) => {
                    self.push_leaf(&leaf, &land)?;
                    return Ok(true);
                }
                Found::Leaf(_) => return Ok(false),
                Found::Missing(missing) => return Err(self.missing(resolver, &missing, &asked())),
            }
        }
        let is_selected = !land.is_empty() && filter.selects(verdicts);
        let start = Start { directory: &directory, land: &land, verdicts, is_selected };
        match walk(self.tree, &start, filter, &self.ahead, &mut self.out)? {
            Walked::Selected => Ok(true),
            Walked::Hidden if include.is_none() => {
                Err(self.missing(resolver, &Missing::Hidden { path: directory.path }, &asked()))
            }
            Walked::Filtered | Walked::Hidden => Ok(false),
        }
    }
}

/// Rules that hide all but what the pattern matches.
fn include(pattern: &[&[u8]]) -> Result<IgnoreRules> {
    let exception = [b"!", pattern.join(&b'/').as_slice()].concat();
    IgnoreRules::from_patterns(&[b"**".to_vec(), exception])
        .map_err(|_| Diagnostic::error(format!("bad pattern `{}`", pattern.join(&b'/').escape_ascii())))
}
