//! From a path in a tree to the real file: symbolic links followed as if the tree's root were `/`.
//!
//! Every component is opened beneath the one before, without following; a link's target is walked
//! in the same way, `..` by going back to a directory already held. So nothing that changes
//! meanwhile can lead outside, and the real path, which the ignore rules are about, is known.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Tree;
use super::facts::Facts;
use super::ignore::Verdict;
use crate::diag::{Context as _, Result};

/// As many as Docker follows; the kernel stops at 40.
const MAX_LINKS: usize = 255;

/// A directory of the tree.
#[derive(Clone)]
pub struct Directory {
    /// Opened with `O_PATH`.
    pub fd: Arc<OwnedFd>,
    /// The real path below the root.
    pub path: Vec<u8>,
    /// What the tree's ignore rules say.
    pub verdict: Verdict,
}

/// Something that is not a directory.
pub struct Leaf {
    pub directory: Directory,
    pub name: Vec<u8>,
    pub path: Vec<u8>,
    pub facts: Facts,
}

pub enum Found {
    /// The position of the resolver.
    Directory,
    Leaf(Box<Leaf>),
    Missing(Missing),
}

/// Why there is nothing; paths are real paths.
pub enum Missing {
    /// `name` is not in the directory the resolver stands in.
    Absent { name: Vec<u8> },
    /// It exists, but the ignore rules hide it.
    Hidden { path: Vec<u8> },
    /// More components follow, but this is no directory.
    NotDirectory { path: Vec<u8> },
    /// Links lead to links without end.
    Loop { path: Vec<u8> },
}

/// A position in a tree.
#[derive(Clone)]
pub struct Resolver<'a> {
    tree: &'a Tree,
    /// From the root to the directory it stands in.
    stack: Vec<Directory>,
    /// The last symbolic link followed, and its target.
    pub link: Option<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Resolver<'a> {
    /// Stands in the root.
    pub fn new(tree: &'a Tree) -> Result<Self> {
        let fd = open_path(tree.root(), b".").context(|| format!("cannot open {}", tree.described()))?;
        let root = Directory { fd: Arc::new(fd), path: Vec::new(), verdict: Verdict::default() };
        Ok(Self { tree, stack: vec![root], link: None })
    }

    /// The directory it stands in.
    pub fn directory(&self) -> &Directory {
        self.stack.last().expect("the root is never popped")
    }

    /// Goes on from where it stands. A link in the last component is followed only if asked to;
    /// otherwise it is a leaf. After a leaf it stands in the leaf's directory.
    pub fn go(&mut self, components: &[&[u8]], follows_last: bool) -> Result<Found> {
        let mut remaining: Vec<Vec<u8>> = components.iter().rev().map(|component| component.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = remaining.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    self.stack.truncate((self.stack.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let here = self.directory();
            let path = join(&here.path, &name);
            let doing = || format!("cannot look up `{}` in {}", path.escape_ascii(), self.tree.described());
            let facts = match Facts::of(here.fd.as_fd(), &name) {
                Ok(facts) => facts,
                Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(Found::Missing(Missing::Absent { name })),
                Err(errno) => return Err(errno).context(doing),
            };
            let verdict = match &self.tree.ignore {
                Some(rules) => rules.judge(here.verdict, &path),
                None => Verdict::default(),
            };
            let is_hidden = self.tree.ignore.as_ref().is_some_and(|rules| rules.hides(verdict));
            match facts.file_type {
                FileType::Directory => {
                    if self.tree.ignore.as_ref().is_some_and(|rules| rules.may_prune(verdict, &path)) {
                        return Ok(Found::Missing(Missing::Hidden { path }));
                    }
                    let fd = open_path(here.fd.as_fd(), &name).context(doing)?;
                    self.stack.push(Directory { fd: Arc::new(fd), path, verdict });
                }
                _ if is_hidden => return Ok(Found::Missing(Missing::Hidden { path })),
                FileType::Symlink if follows_last || !remaining.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(Found::Missing(Missing::Loop { path }));
                    }
                    let target = rustix::fs::readlinkat(&here.fd, name.as_slice(), Vec::new()).context(doing)?;
                    let target = target.into_bytes();
                    if target.starts_with(b"/") {
                        self.stack.truncate(1);
                    }
                    remaining.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    self.link = Some((path, target));
                }
                _ if remaining.iter().all(|component| component.is_empty()) => {
                    let directory = here.clone();
                    return Ok(Found::Leaf(Box::new(Leaf { directory, name, path, facts })));
                }
                _ => return Ok(Found::Missing(Missing::NotDirectory { path })),
            }
        }
        Ok(Found::Directory)
    }
}

pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn open_path(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}
