//! What steps read: the contexts, opened once; the rootfs of other stages and images; and the
//! listings that decide a copy.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::download::{Downloaded, Downloads};
use super::{Solver, Stack};
use crate::context::{self, Blame, Form, HashIndex, IgnoreRules, Listing, Request, SelectError, Survey, Tree, lines};
use crate::diag::{Diagnostic, Result, Source, Span};
use crate::digest::{Digest, Hasher};
use crate::git::Commit;
use crate::host::Directory;
use crate::plan::{Copy, CopySource, GitSource, Input, Located, Op, RunMount, RunMountKind};
use crate::source;

/// A tree and, for a directory of the host, the hashes remembered of its files.
pub(super) struct Opened {
    pub tree: Tree,
    index: Option<(HashIndex, PathBuf)>,
}

impl Opened {
    pub fn of_rootfs(tree: Tree) -> Self {
        Self { tree, index: None }
    }

    pub fn index(&self) -> Option<&HashIndex> {
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

/// What is kept of what a step reads of a directory of the host, when its key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// Nothing, if no file has to be read: enough for a hit.
    Digests,
    Listings,
    /// And files of which nothing is known need not be read, if they are many.
    Surveys,
}

pub(super) enum Read {
    /// Files of a directory of the host, as they were when the key was made; or those of a rootfs, once they are
    /// copied.
    Listed {
        opened: Arc<Opened>,
        listing: Arc<Listing>,
    },
    /// Files of a directory of the host that need not be read for a key yet.
    Surveyed {
        opened: Arc<Opened>,
        survey: Survey,
    },
    /// Files of a directory of the host, of which nothing was kept.
    Digested,
    /// Files of a rootfs, which cannot change: listed again when they are copied.
    Immutable,
    Heredoc,
    Downloaded(Downloaded),
    /// What the name of a git repository stood for when the key was made.
    Git(Commit),
}

impl Reads {
    /// Whether something that was read for the key would have to be read again for the step.
    pub fn are_digested(&self) -> bool {
        self.sources.iter().chain(self.mounts.values()).any(|read| matches!(read, Read::Digested))
    }

    /// The lines of everything listed, for keeping and comparing.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        let listed = self.sources.iter().filter_map(|read| match read {
            Read::Listed { listing, .. } => Some(listing),
            Read::Surveyed { .. }
            | Read::Digested
            | Read::Immutable
            | Read::Heredoc
            | Read::Downloaded(_)
            | Read::Git(_) => None,
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
        let directory = match input {
            Input::Context => source::context(None, self.host)?,
            Input::Directory(name) => source::context(Some(name), self.host)?,
            Input::Step(_) | Input::Image(_) | Input::Scratch => return Ok(None),
        };
        let mut contexts = self.inputs.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = contexts.get(&directory.path) {
            return Ok(Some(Arc::clone(opened)));
        }
        let opened = Arc::new(self.open(&directory)?);
        contexts.insert(directory.path.clone(), Arc::clone(&opened));
        Ok(Some(opened))
    }

    fn open(&self, directory: &Directory) -> Result<Opened> {
        let rules = match &directory.ignore {
            Some((name, text)) => Some(IgnoreRules::parse(name, text)?),
            None => None,
        };
        let tree = Tree { name: directory.name.clone(), ..Tree::open(&directory.path, rules)? };
        let index = match directory.is_lasting {
            true => {
                let path = self.host.store.context_index(&directory.path)?;
                Some((HashIndex::load(&path, self.host.files_now), path))
            }
            false => None,
        };
        Ok(Opened { tree, index })
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
        self.layers.view(stack)
    }

    /// The digest of what a COPY or ADD reads, source by source; `None` while the stage it reads from
    /// is not solved or an image's layers would have to be fetched first, for a URL of which nothing is known, or if the
    /// files of its one source are left unread.
    pub(super) fn read_sources(&self, copy: &Copy, keeps: Keeps, reads: &mut Reads) -> Result<Option<Digest>> {
        let mut hasher = Hasher::default();
        for source in &copy.sources {
            let (digest, read) = match source {
                CopySource::Path(path) if keeps == Keeps::Surveys => match self.survey_path(copy, path)? {
                    Some(Read::Listed { opened, listing }) => (listing.digest(), Read::Listed { opened, listing }),
                    surveyed => {
                        reads.sources.extend(surveyed);
                        return Ok(None);
                    }
                },
                CopySource::Path(path) => match self.read_path(copy, path, keeps)? {
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
                CopySource::Git(git) => {
                    let commit = source::commit(&git.location, self.host)
                        .map_err(|error| error.at(&git.at.source, git.at.span, ""))?;
                    let Some(commit) = commit else { return Ok(None) };
                    (Digest::of(source::git_facts(&git.location, &commit).as_bytes()), Read::Git(commit))
                }
            };
            hasher.field(digest.as_bytes());
            reads.sources.push(read);
        }
        Ok(Some(hasher.finish()))
    }

    /// What a copy reads of a directory of the host; its files are read only if they are few.
    fn survey_path(&self, copy: &Copy, path: &Located) -> Result<Option<Read>> {
        let Some(opened) = self.opened(&copy.from)? else { return Ok(None) };
        let mut survey = self.survey(&opened.tree, copy, path, opened.index())?;
        if is_much(&survey.listing) {
            return Ok(Some(Read::Surveyed { opened, survey }));
        }
        self.read_left(&mut survey, &opened, None)?;
        let listing = Arc::new(survey.listing);
        Ok(Some(Read::Listed { opened, listing }))
    }

    fn read_path(&self, copy: &Copy, path: &Located, keeps: Keeps) -> Result<Option<(Digest, Read)>> {
        if let Some(opened) = self.opened(&copy.from)? {
            return self.read_host(opened, path, form_of(copy), &copy.exclude, keeps).map(Some);
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
            None if !self.may_fetch.load(Ordering::Relaxed) && !self.layers.are_here(&stack)? => return Ok(None),
            None => {
                let tree = self.rootfs_tree(&copy.from, &stack)?;
                let digest = self.listing(&tree, copy, path, None)?.digest();
                self.host.store.write_record("files/rootfs", &memo, digest.hex().as_bytes())?;
                digest
            }
        };
        Ok(Some((digest, Read::Immutable)))
    }

    /// The digest of what `path` selects in a directory of the host.
    fn read_host(
        &self,
        opened: Arc<Opened>,
        path: &Located,
        form: Form,
        excludes: &[String],
        keeps: Keeps,
    ) -> Result<(Digest, Read)> {
        if keeps == Keeps::Digests
            && let Some(index) = opened.index()
        {
            let request = self.request(path, form, excludes);
            if let Some(digest) =
                context::digest(&opened.tree, &request, index).map_err(|error| located(error, path))?
            {
                return Ok((digest, Read::Digested));
            }
        }
        let listing = Arc::new(self.select(&opened.tree, path, form, excludes, opened.index())?);
        Ok((listing.digest(), Read::Listed { opened, listing }))
    }

    fn request<'p>(&self, path: &'p Located, form: Form, excludes: &'p [String]) -> Request<'p> {
        Request { sources: vec![&path.text], form, excludes, threads: self.settings.hash_threads }
    }

    /// What one source argument of a copy selects.
    pub(super) fn listing(
        &self,
        tree: &Tree,
        copy: &Copy,
        path: &Located,
        index: Option<&HashIndex>,
    ) -> Result<Listing> {
        self.select(tree, path, form_of(copy), &copy.exclude, index)
    }

    /// The same, but files are not read.
    fn survey(&self, tree: &Tree, copy: &Copy, path: &Located, index: Option<&HashIndex>) -> Result<Survey> {
        let request = self.request(path, form_of(copy), &copy.exclude);
        context::survey(tree, &request, index).map_err(|error| located(error, path))
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
        let request = self.request(path, form, excludes);
        context::select(tree, &request, index).map_err(|error| located(error, path))
    }

    /// The files of a git repository, as a copy lists them.
    pub(super) fn list_git(
        &self,
        copy: &Copy,
        git: &GitSource,
        commit: &Commit,
    ) -> Result<(Arc<Directory>, Opened, Listing)> {
        let directory = Arc::new(source::git_tree(&git.location, commit, self.host)?);
        let opened = self.open(&directory)?;
        let all = Located { text: "/".into(), ..git.at.clone() };
        let listing = self.select(&opened.tree, &all, Form::Literal, &copy.exclude, opened.index())?;
        Ok((directory, opened, listing))
    }

    /// The digest of what a bind mount shows.
    pub(super) fn read_mount(
        &self,
        place: usize,
        from: &Input,
        source: &str,
        mount: &RunMount,
        keeps: Keeps,
        reads: &mut Reads,
    ) -> Result<String> {
        let at = Located { text: source.to_owned(), source: Arc::clone(&mount.source), span: mount.span };
        if let Some(opened) = self.opened(from)? {
            let (digest, read) = self.read_host(opened, &at, Form::Literal, &[], keeps)?;
            reads.mounts.insert(place, read);
            return Ok(digest.to_string());
        }
        reads.mounts.insert(place, Read::Immutable);
        let stack = self.stack_of(from);
        Ok(stack.map_or_else(|| super::facts::UNKNOWN.to_owned(), |stack| format!("{}:{source}", stack.fact())))
    }

    /// The digest of a whole named context.
    pub(super) fn read_all(&self, input: &Input, keeps: Keeps, reads: &mut Reads) -> Result<Digest> {
        let Some(opened) = self.opened(input)? else { return Ok(Digest::of(b"")) };
        let everything =
            Located { text: "/".into(), source: Source::new(&opened.tree.name, ""), span: Span::default() };
        let (digest, read) = self.read_host(opened, &everything, Form::Literal, &[], keeps)?;
        reads.sources.push(read);
        Ok(digest)
    }
}

/// The fact that a copy of one path is known by.
pub(super) fn files_fact(listing: &Digest) -> Digest {
    let mut hasher = Hasher::default();
    hasher.field(listing.as_bytes());
    hasher.finish()
}

/// Whether it pays to look at what was copied before, or to leave files where they are.
pub(super) fn is_much(listing: &Listing) -> bool {
    const ENTRIES: usize = 16;
    const BYTES: u64 = 1 << 20;
    let mut entries = listing.selections.iter().flat_map(|selection| &selection.entries);
    entries.nth(ENTRIES).is_some() || listing.size_bytes() >= BYTES
}

fn form_of(copy: &Copy) -> Form {
    if copy.has_parents { Form::Parents } else { Form::Wildcard }
}

/// With the place that it is about.
fn located(error: SelectError, path: &Located) -> Diagnostic {
    match error.blame {
        Blame::Source(_) | Blame::Exclude(_) => error.diagnostic.at(&path.source, path.span, ""),
        Blame::Tree => *error.diagnostic,
    }
}
