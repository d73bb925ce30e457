//! From source arguments to a listing.
//!
//! ```text
//! "src/*.c" ── components, lexically beneath the root ── literal ones resolved, links followed
//!           ── wildcards matched against sorted names ── each match: itself, or all that is in it
//! ```
//!
//! What the tree's ignore rules hide does not exist here, but that an error says why.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::ahead::Ahead;
use super::collect::{Collector, Place, Purpose, fill};
use super::facts::Facts;
use super::hash::Hashers;
use super::ignore::IgnoreRules;
use super::look::{Filter, Verdicts};
use super::pattern::{Pattern, components, has_wildcard, unescape};
use super::resolve::{Directory, Found, Leaf, Missing, Resolver, join};
use super::summary::{self, Summary};
use super::survey::Survey;
use super::walk::{Start, Walked, walk};
use super::{HashIndex, Listing, Selection, Tree};
use crate::diag::{self, Context as _, Diagnostic};
use crate::digest::Digest;
use crate::layer::node::{self, open_directory};

/// What to select.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Source arguments as written, variables expanded.
    pub sources: Vec<&'a str>,
    pub form: Form,
    /// `--exclude` patterns, relative to each source directory (with `--parents`: to the part
    /// before `/./`). They never apply to a file that is named itself.
    pub excludes: &'a [String],
    /// How many threads may read files, this one included, and how many may walk; the result does not
    /// depend on it.
    pub threads: usize,
}

/// How a source argument is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// COPY and ADD: components may be wildcards.
    Wildcard,
    /// COPY `--parents`: `**` too, and the path from the root, or from `/./`, is kept.
    Parents,
    /// `source=` of a mount.
    Literal,
}

/// Whom an error is about, so that the caller can point at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Index into [`Request::sources`].
    Source(usize),
    /// Index into [`Request::excludes`].
    Exclude(usize),
    /// The tree cannot be read.
    Tree,
}

/// An error without a label yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectError {
    pub blame: Blame,
    pub diagnostic: Box<Diagnostic>,
}

/// Lists everything that a COPY, ADD or mount reads, with the digests of all files. A literal
/// source that does not exist is an error; a wildcard that matches nothing is not.
///
/// Digests are taken from `index` where the file has not changed, and remembered there.
pub fn select(tree: &Tree, request: &Request<'_>, index: Option<&HashIndex>) -> Result<Listing, SelectError> {
    Ok(list(tree, request, index, Purpose::Listing)?.listing)
}

/// The same, but only files whose digests are remembered have one.
pub fn survey(tree: &Tree, request: &Request<'_>, index: Option<&HashIndex>) -> Result<Survey, SelectError> {
    list(tree, request, index, Purpose::Survey)
}

/// The digest of the listing, if it is clear that no file has to be read for it.
pub fn digest(tree: &Tree, request: &Request<'_>, index: &HashIndex) -> Result<Option<Digest>, SelectError> {
    assert!(!tree.keeps_owners, "nothing is remembered of files whose owners count");
    let of_request = summary::of_request(tree, request);
    if index.has_summary(&of_request) {
        let found =
            find(tree, request, Some(index), Purpose::Fingerprint, |selector, _, _| Ok(selector.out.fingerprint()));
        // Where it is another one, there is a file to be read, most likely, and the walk below would be in vain. What
        // cannot be read that walk says, with a reason.
        if let Ok(Some(fingerprint)) = found {
            return Ok(index.recall(&of_request, &fingerprint));
        }
    }
    let found = find(tree, request, Some(index), Purpose::Digest, |selector, _, _| Ok(selector.out.digest()))?;
    Ok(found.map(|(digest, entries, fingerprint)| {
        index.summarize(Summary { request: of_request, fingerprint, digest, entries: entries as u64 });
        digest
    }))
}

fn list(
    tree: &Tree,
    request: &Request<'_>,
    index: Option<&HashIndex>,
    purpose: Purpose,
) -> Result<Survey, SelectError> {
    let found = find(tree, request, index, purpose, |selector, hashers, ends| {
        let (found, (mut entries, unread)) = (selector.found, selector.out.finish());
        let source = |slot| Blame::Source(ends.partition_point(|end| *end <= slot));
        let hashed = hashers.finish();
        fill(&mut entries, hashed.map_err(|(slot, diagnostic)| SelectError { blame: source(slot), diagnostic })?);
        Ok((found, entries, unread))
    });
    let (found, mut entries, unread) = found?;
    // From the last, so that the first, which mostly is the only one, stays where it is.
    let selections = found.into_iter().rev().map(|(name, count)| match entries.len().saturating_sub(count) {
        0 => Selection { name, entries: std::mem::take(&mut entries) },
        begin => Selection { name, entries: entries.split_off(begin) },
    });
    let mut selections: Vec<_> = selections.collect();
    selections.reverse();
    Ok(Survey { listing: Listing { selections }, unread })
}

/// Finds what is selected. `end` gets that, those who read, and how many entries there were after each source.
fn find<T>(
    tree: &Tree,
    request: &Request<'_>,
    index: Option<&HashIndex>,
    purpose: Purpose,
    end: impl FnOnce(Selector<'_, '_, '_>, &Hashers<'_, '_>, &[usize]) -> Result<T, SelectError>,
) -> Result<T, SelectError> {
    let excludes = IgnoreRules::from_patterns(request.excludes)
        .map_err(|(index, diagnostic)| SelectError { blame: Blame::Exclude(index), diagnostic })?;
    let mut ends = Vec::new();
    std::thread::scope(|scope| {
        let hashers = Hashers::new(scope, request.threads);
        let mut selector = Selector {
            tree,
            root: Resolver::new(tree).map_err(blame(Blame::Tree))?,
            exclude: (!excludes.is_empty()).then_some(&excludes),
            ahead: Ahead::new(scope, request.threads),
            out: Collector::new(tree, index, &hashers, purpose).map_err(blame(Blame::Tree))?,
            found: Vec::new(),
        };
        for (index, source) in request.sources.iter().enumerate() {
            let source = source.as_bytes();
            let result = match request.form {
                Form::Wildcard => selector.wildcard(source),
                Form::Literal => selector.literal(&components(source)),
                Form::Parents => selector.parents(source),
            };
            result.map_err(blame(Blame::Source(index)))?;
            ends.push(selector.out.len());
        }
        end(selector, &hashers, &ends)
    })
}

fn blame(blame: Blame) -> impl Fn(Diagnostic) -> SelectError {
    move |diagnostic| SelectError { blame, diagnostic: Box::new(diagnostic) }
}

pub(super) struct Selector<'c, 'scope, 'env> {
    pub(super) tree: &'scope Tree,
    pub(super) root: Resolver<'scope>,
    pub(super) exclude: Option<&'scope IgnoreRules>,
    pub(super) ahead: Ahead<'scope, 'env>,
    pub(super) out: Collector<'c, 'scope, 'env>,
    /// Name and number of entries of each selection.
    pub(super) found: Vec<(Vec<u8>, usize)>,
}

impl<'scope> Selector<'_, 'scope, '_> {
    fn filter(&self) -> Filter<'scope> {
        Filter { exclude: self.exclude, include: None }
    }

    fn wildcard(&mut self, source: &[u8]) -> diag::Result<()> {
        let components = components(source);
        if !components.iter().any(|component| has_wildcard(component)) {
            return self.literal(&components);
        }
        for (mut resolver, name) in self.matches(&components)? {
            let path = join(&resolver.directory().path, &name);
            match self.take(&mut resolver, &name)? {
                None => {}
                // A directory in which nothing is visible is not there to be matched.
                Some(Missing::Hidden { path: hidden }) if hidden == path => {}
                Some(missing) => return Err(self.missing(&resolver, &missing, &path)),
            }
        }
        Ok(())
    }

    /// Selects what is at a literal path.
    fn literal(&mut self, components: &[&[u8]]) -> diag::Result<()> {
        let mut resolver = self.root.clone();
        let mut missing = self.literal_from(&mut resolver, components)?;
        if matches!(missing, Some(Missing::Absent { .. })) && components.iter().any(|name| name.contains(&b'\\')) {
            // Docker takes a backslash as it is in a path without wildcards. Someone who escapes
            // a `*` means what it means in a path with them.
            let unescaped: Vec<Vec<u8>> = components.iter().map(|component| unescape(component)).collect();
            let unescaped: Vec<&[u8]> = unescaped.iter().map(Vec::as_slice).collect();
            let mut resolver = self.root.clone();
            if self.literal_from(&mut resolver, &unescaped)?.is_none() {
                missing = None;
            }
        }
        match missing {
            None => Ok(()),
            Some(missing) => Err(self.missing(&resolver, &missing, &components.join(&b'/'))),
        }
    }

    fn literal_from(&mut self, resolver: &mut Resolver<'_>, components: &[&[u8]]) -> diag::Result<Option<Missing>> {
        let Some((name, parents)) = components.split_last() else {
            let root = self.root.directory().clone();
            return self.take_directory(&root, b"");
        };
        match resolver.go(parents, true)? {
            Found::Directory => self.take(resolver, name),
            Found::Leaf(leaf) => Ok(Some(Missing::NotDirectory { path: leaf.path })),
            Found::Missing(missing) => Ok(Some(missing)),
        }
    }

    /// Selects `name` in the directory where the resolver stands, or what it leads to.
    fn take(&mut self, resolver: &mut Resolver<'_>, name: &[u8]) -> diag::Result<Option<Missing>> {
        match resolver.go(&[name], true)? {
            Found::Directory => {
                let directory = resolver.directory().clone();
                self.take_directory(&directory, name)
            }
            Found::Leaf(leaf) => {
                self.out.begin(name);
                self.push_leaf(&leaf, b"")?;
                self.found.push((name.to_vec(), 1));
                Ok(None)
            }
            Found::Missing(missing) => Ok(Some(missing)),
        }
    }

    pub(super) fn take_directory(&mut self, directory: &Directory, name: &[u8]) -> diag::Result<Option<Missing>> {
        let first = self.out.len();
        self.out.begin(name);
        let start = Start { directory, land: b"", verdicts: Verdicts::default(), is_selected: true };
        // The root is there even if all that is in it is hidden.
        if walk(self.tree, &start, self.filter(), &self.ahead, &mut self.out)? == Walked::Hidden {
            return Ok(Some(Missing::Hidden { path: directory.path.clone() }));
        }
        self.found.push((name.to_vec(), self.out.len() - first));
        Ok(None)
    }

    /// The directory and the name of everything that a path with wildcards matches, in order. Only
    /// links before the first wildcard are followed, as nothing but a real path is matched.
    pub(super) fn matches(&self, components: &[&[u8]]) -> diag::Result<Vec<(Resolver<'scope>, Vec<u8>)>> {
        let literal = components.iter().take_while(|component| !has_wildcard(component)).count();
        let mut resolver = self.root.clone();
        match resolver.go(&components[..literal], true)? {
            Found::Directory => {}
            Found::Leaf(_) => return Ok(Vec::new()),
            Found::Missing(missing) => {
                return Err(self.missing(&resolver, &missing, &components.join(&b'/')));
            }
        }
        let mut matches = vec![(resolver, Vec::new())];
        for component in &components[literal..] {
            let mut next = Vec::new();
            for (mut resolver, name) in matches {
                let is_directory = name.is_empty() || matches!(resolver.go(&[&name], false)?, Found::Directory);
                if is_directory {
                    let names = self.names(&resolver, component)?;
                    next.extend(names.into_iter().map(|name| (resolver.clone(), name)));
                }
            }
            matches = next;
        }
        Ok(matches)
    }

    /// The visible names in a directory that one component of a path with wildcards matches.
    fn names(&self, resolver: &Resolver<'_>, component: &[u8]) -> diag::Result<Vec<Vec<u8>>> {
        let pattern = Pattern::parse(component)
            .map_err(|_| Diagnostic::error(format!("bad pattern `{}`", component.escape_ascii())))?;
        let directory = resolver.directory();
        let candidates = if has_wildcard(component) {
            let mut names = children(self.tree, directory)?;
            names.retain(|name| pattern.matches(name));
            names
        } else {
            vec![unescape(component)]
        };
        let mut names = Vec::new();
        for name in candidates {
            if !matches!(resolver.clone().go(&[&name], false)?, Found::Missing(_)) {
                names.push(name);
            }
        }
        Ok(names)
    }

    pub(super) fn push_leaf(&mut self, leaf: &Leaf, land: &[u8]) -> diag::Result<()> {
        let directory = &leaf.directory.fd;
        let (name, path, facts) = (&leaf.name, &leaf.path, &leaf.facts);
        self.out.push(&Place { directory, name, path, land, facts, is_passed: false })
    }

    /// A directory on the way to what is selected; with an empty `land` the one where the ways begin.
    pub(super) fn push_directory(&mut self, directory: &Directory, land: &[u8]) -> diag::Result<()> {
        let doing = || format!("cannot read `{}` in {}", directory.path.escape_ascii(), self.tree.described());
        let fd = open_directory(&directory.fd, c".").context(doing)?;
        let facts = Facts::of_open(&fd).context(doing)?;
        let (directory, path) = (&Arc::new(fd), &directory.path);
        self.out.push(&Place { directory, name: b".", path, land, facts: &facts, is_passed: !land.is_empty() })
    }
}

/// The names in a directory, sorted.
pub(super) fn children(tree: &Tree, directory: &Directory) -> diag::Result<Vec<Vec<u8>>> {
    let doing = || format!("cannot read `{}` in {}", directory.path.escape_ascii(), tree.described());
    let fd = open_directory(&directory.fd, c".").context(doing)?;
    let names = node::names(fd.as_fd()).context(doing)?;
    Ok(names.into_iter().map(|(name, _)| name.into_bytes()).collect())
}
