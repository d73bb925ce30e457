//! What steps read: the contexts, opened once; the rootfs of other stages and images; and the
//! listings that decide a copy.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::download::{Downloaded, Downloads};
use super::{Solver, Stack};
use crate::context::{Blame, Form, HashIndex, IgnoreRules, Listing, Request, Tree, lines, select};
use crate::diag::{Context as _, Diagnostic, Result, Source, Span};
use crate::digest::{Digest, Hasher};
use crate::host::NamedContext;
use crate::plan::{Copy, CopySource, Input, Located, Op, RunMount, RunMountKind};

/// A tree and, for a directory of the host, the hashes remembered of its files.
pub(super) struct Opened {
    pub tree: Tree,
    index: Option<(HashIndex, PathBuf)>,
}

impl Opened {
    fn index(&self) -> Option<&HashIndex> {
        self.index.as_ref().map(|(index, _)| index)
    }
}

/// The contexts of a build, each opened when first read.
#[derive(Default)]
pub(super) struct Inputs {
    contexts: Mutex<BTreeMap<PathBuf, Arc<Opened>>>,
    pub downloads: Downloads,
}

/// What a step was found to read, in the order of its sources and mounts.
#[derive(Default)]
pub(super) struct Reads {
    pub sources: Vec<Read>,
    /// By place in `Run::mounts`.
    pub mounts: BTreeMap<usize, Read>,
}

pub(super) enum Read {
    /// Files of a directory of the host, as they were when the key was made.
    Listed {
        opened: Arc<Opened>,
        listing: Arc<Listing>,
    },
    /// Files of a rootfs, which cannot change: listed again when they are copied.
    Immutable,
    Heredoc,
    Downloaded(Downloaded),
}

impl Reads {
    /// The lines of everything listed, for keeping and comparing.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        let listed = self.sources.iter().filter_map(|read| match read {
            Read::Listed { listing, .. } => Some(listing),
            Read::Immutable | Read::Heredoc | Read::Downloaded(_) => None,
        });
        listed.flat_map(|listing| lines::lines(listing)).collect()
    }
}

impl Inputs {
    /// Keeps what was learned of the contexts' files; a failure costs only time in the next build.
    pub fn save(&self) {
        for opened in self.contexts.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Some((index, path)) = &opened.index {
                let _ = index.save(path);
            }
        }
    }
}

/// Everything an op reads besides its parent.
pub(super) fn inputs(op: &Op) -> Vec<&Input> {
    match op {
        Op::Copy(copy) => vec![&copy.from],
        Op::Run(run) => run
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                RunMountKind::Bind { from, .. } | RunMountKind::Cache { from, .. } => Some(from),
                _ => None,
            })
            .collect(),
        Op::From(_) | Op::Workdir(_) | Op::Configure => Vec::new(),
    }
}

impl Solver<'_> {
    /// The context or named context as a tree, with its ignore file.
    fn opened(&self, input: &Input) -> Result<Option<Arc<Opened>>> {
        let (path, ignore) = match input {
            Input::Context => match &self.host.context {
                Some(context) => (context.path.clone(), context.ignore.clone()),
                None => return Err(Diagnostic::error("this build has no context to copy from")),
            },
            Input::Directory(name) => match self.host.named_contexts.get(name) {
                Some(NamedContext::Directory(path)) => (path.clone(), None),
                _ => return Err(Diagnostic::error(format!("there is no build context `{name}`"))),
            },
            Input::Step(_) | Input::Image(_) | Input::Scratch => return Ok(None),
        };
        let mut contexts = self.inputs.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = contexts.get(&path) {
            return Ok(Some(Arc::clone(opened)));
        }
        let ignore = match ignore {
            Some(file) => Some(file),
            None => ignore_file(&path.join(".dockerignore"))?,
        };
        let rules = match &ignore {
            Some((name, text)) => Some(IgnoreRules::parse(name, text)?),
            None => None,
        };
        let tree = Tree::open(&path, rules)?;
        let index_path = self.host.store.context_index(&path)?;
        let index = HashIndex::load(&index_path, self.host.files_now);
        let opened = Arc::new(Opened { tree, index: Some((index, index_path)) });
        contexts.insert(path, Arc::clone(&opened));
        Ok(Some(opened))
    }

    /// The layers of an input that is a rootfs.
    pub(super) fn stack_of(&self, input: &Input) -> Option<Stack> {
        match input {
            Input::Step(id) => self.get(*id).map(|solved| solved.stack.clone()),
            Input::Image(key) => Some(self.base_stack(key)),
            Input::Scratch => Some(Stack::default()),
            Input::Context | Input::Directory(_) => None,
        }
    }

    /// A rootfs as a readable tree.
    pub(super) fn rootfs_tree(&self, input: &Input, stack: &Stack) -> Result<Tree> {
        let name = match input {
            Input::Step(id) => format!("stage `{}`", self.plan.step(*id).stage),
            Input::Image(key) => format!("image `{}`", key.name),
            _ => "an empty root".to_owned(),
        };
        Ok(Tree::of_root(self.rootfs(stack)?, name))
    }

    /// The merged view of a stack, read-only and detached.
    pub(super) fn rootfs(&self, stack: &Stack) -> Result<OwnedFd> {
        self.host.store.enter()?;
        crate::container::overlay_detached(&self.lowers(stack)?, None)
    }

    /// The digest of what a COPY or ADD reads, source by source; `None` while the stage it reads from
    /// is not solved, or for a URL of which nothing is known.
    pub(super) fn read_sources(&self, copy: &Copy, reads: &mut Reads) -> Result<Option<Digest>> {
        let mut hasher = Hasher::default();
        for source in &copy.sources {
            let (digest, read) = match source {
                CopySource::Path(path) => match self.read_path(copy, path)? {
                    Some(found) => found,
                    None => return Ok(None),
                },
                CopySource::Heredoc(file) => {
                    hasher.field(file.name.as_bytes());
                    (Digest::of(file.content.as_bytes()), Read::Heredoc)
                }
                CopySource::Url(url) => {
                    let Some(download) = self.download(copy, url)? else { return Ok(None) };
                    (download.digest(), Read::Downloaded(download))
                }
                CopySource::Git(url) => {
                    return Err(url
                        .error("ADD from a git repository is not supported yet")
                        .hint("clone it before the build and copy it from a `--build-context`"));
                }
            };
            hasher.field(digest.as_bytes());
            reads.sources.push(read);
        }
        Ok(Some(hasher.finish()))
    }

    fn read_path(&self, copy: &Copy, path: &Located) -> Result<Option<(Digest, Read)>> {
        if let Some(opened) = self.opened(&copy.from)? {
            let listing = Arc::new(self.listing(&opened.tree, copy, path, opened.index())?);
            return Ok(Some((listing.digest(), Read::Listed { opened, listing })));
        }
        let Some(stack) = self.stack_of(&copy.from) else { return Ok(None) };
        // A rootfs never changes, so what was found in it once is so for ever.
        let mut memo = Hasher::default();
        memo.field(stack.fact().as_bytes());
        memo.field(path.text.as_bytes());
        memo.field(&[u8::from(copy.has_parents)]);
        for pattern in &copy.exclude {
            memo.field(pattern.as_bytes());
        }
        let memo = memo.finish().hex();
        let known = self.host.store.read_record("files/rootfs", &memo)?;
        let known = known.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|hex| Digest::from_hex(&hex));
        let digest = match known {
            Some(digest) => digest,
            None => {
                let tree = self.rootfs_tree(&copy.from, &stack)?;
                let digest = self.listing(&tree, copy, path, None)?.digest();
                self.host.store.write_record("files/rootfs", &memo, digest.hex().as_bytes())?;
                digest
            }
        };
        Ok(Some((digest, Read::Immutable)))
    }

    /// What one source argument of a copy selects.
    pub(super) fn listing(
        &self,
        tree: &Tree,
        copy: &Copy,
        path: &Located,
        index: Option<&HashIndex>,
    ) -> Result<Listing> {
        let form = if copy.has_parents { Form::Parents } else { Form::Wildcard };
        self.select(tree, path, form, &copy.exclude, index)
    }

    /// What `path` selects, with errors that point at it.
    pub(super) fn select(
        &self,
        tree: &Tree,
        path: &Located,
        form: Form,
        excludes: &[String],
        index: Option<&HashIndex>,
    ) -> Result<Listing> {
        let threads = self.settings.hash_threads;
        let request = Request { sources: vec![&path.text], form, excludes, threads };
        select(tree, &request, index).map_err(|error| match error.blame {
            Blame::Source(_) | Blame::Exclude(_) => error.diagnostic.at(&path.source, path.span, ""),
            Blame::Tree => *error.diagnostic,
        })
    }

    /// The digest of what a bind mount shows.
    pub(super) fn read_mount(
        &self,
        place: usize,
        from: &Input,
        source: &str,
        mount: &RunMount,
        reads: &mut Reads,
    ) -> Result<String> {
        let at = Located { text: source.to_owned(), source: Arc::clone(&mount.source), span: mount.span };
        if let Some(opened) = self.opened(from)? {
            let listing = Arc::new(self.select(&opened.tree, &at, Form::Literal, &[], opened.index())?);
            let digest = listing.digest().to_string();
            reads.mounts.insert(place, Read::Listed { opened, listing });
            return Ok(digest);
        }
        reads.mounts.insert(place, Read::Immutable);
        let stack = self.stack_of(from);
        Ok(stack.map_or_else(|| super::facts::UNKNOWN.to_owned(), |stack| format!("{}:{source}", stack.fact())))
    }

    /// The digest of a whole named context.
    pub(super) fn read_all(&self, input: &Input, reads: &mut Reads) -> Result<Digest> {
        let Some(opened) = self.opened(input)? else { return Ok(Digest::of(b"")) };
        let everything =
            Located { text: "/".into(), source: Source::new(&opened.tree.name, ""), span: Span::default() };
        let listing = Arc::new(self.select(&opened.tree, &everything, Form::Literal, &[], opened.index())?);
        let digest = listing.digest();
        reads.sources.push(Read::Listed { opened, listing });
        Ok(digest)
    }
}

/// The ignore file at `path`, if there is one, with its name.
pub fn ignore_file(path: &Path) -> Result<Option<(String, Vec<u8>)>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some((path.display().to_string(), text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read `{}`", path.display())),
    }
}
