//! The build context: which files a COPY, ADD or bind mount reads, and what they are.
//!
//! ```text
//! Tree (directory fd + ignore rules) ── select ──▶ Listing (entries with content digests)
//! ```
//!
//! A [`Listing`] is everything a copy is decided by: its digest goes into the cache key, and the
//! copy itself works through its entries and checks each file against the digest in it.

mod ahead;
mod collect;
mod facts;
mod glob;
mod hash;
pub mod ignore;
pub mod index;
pub mod lines;
mod look;
mod missing;
mod parents;
pub mod pattern;
mod resolve;
pub mod select;
mod summary;
mod survey;
mod walk;
mod xattr;
#[cfg(test)]
mod tests;

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::diag::{Context as _, Result};
use crate::digest::{Digest, Hasher};

pub use ignore::IgnoreRules;
pub use index::HashIndex;
pub use lines::{Change, diff};
pub use select::{Blame, Form, Request, SelectError, digest, select, survey};
pub use survey::{Read, Survey, Unread};

/// A readable tree: the build context, a named context, or a stage's merged root.
pub struct Tree {
    /// The root; everything is opened beneath it with `openat2(RESOLVE_IN_ROOT)`.
    pub root: OwnedFd,
    /// For messages: the path of a context, `stage build`.
    pub name: String,
    /// What `.dockerignore` hides; no rules for a stage or an image.
    pub ignore: Option<IgnoreRules>,
    /// Files from a context land as 0:0; those of a stage or image keep their owner.
    pub keeps_owners: bool,
}

impl Tree {
    /// Opens a local directory as a context, with its ignore file already parsed.
    pub fn open(path: &std::path::Path, ignore: Option<IgnoreRules>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .context(|| format!("cannot open build context `{}`", path.display()))?;
        Ok(Self { root, name: path.display().to_string(), ignore, keeps_owners: false })
    }

    /// A stage's or image's merged root; `name` is `stage build`, for messages.
    pub fn of_root(root: OwnedFd, name: impl Into<String>) -> Self {
        Self { root, name: name.into(), ignore: None, keeps_owners: true }
    }

    /// As it is called in messages: "stage build", "the context `dir`".
    pub fn described(&self) -> String {
        if self.keeps_owners { self.name.clone() } else { format!("the context `{}`", self.name) }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.root)
    }
}

/// What one source argument turned into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The last element of the path as matched (after wildcards, before following a symbolic
    /// link): a file lands under this name in a destination directory. Empty for the root itself.
    pub name: Vec<u8>,
    /// The first entry is the source itself (`land` is empty); for a directory the others are
    /// what is in it. With `--parents` the first is the directory that kept paths begin in (the
    /// root, or what is before `/./`), and `land` is the kept path. Sorted by name in each
    /// directory, a directory before what is in it.
    pub entries: Vec<Entry>,
}

/// One file, directory or other object as it will land.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Real path below the tree's root, symbolic links of parent components already resolved; no
    /// leading slash; to be opened with `RESOLVE_IN_ROOT` and without following the last element.
    pub path: Vec<u8>,
    /// Path below the place where the source lands, `/`-separated; empty for the source itself.
    pub land: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Already 0 where the tree does not keep owners.
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds; not part of the digest.
    pub mtime: (i64, u32),
    /// `user.*` and `security.capability`, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Device and inode of a file with several links, so that the copies can be linked too; not
    /// part of the digest.
    pub link_group: Option<(u64, u64)>,
    /// A directory that comes for what is in it alone: neither was it named, nor does a pattern select it.
    pub is_passed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File {
        size_bytes: u64,
        digest: Digest,
    },
    /// A file that nobody has read yet, its xattrs included: in a [`Survey`] only.
    Unread {
        size_bytes: u64,
        number: usize,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    Fifo,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Socket,
}

/// All that a COPY, ADD or bind mount reads, source by source. A source with a wildcard may
/// contribute several selections or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub selections: Vec<Selection>,
}

impl Listing {
    /// The `files` fact of the cache key: names, kinds, modes, owners as they land, link targets,
    /// xattrs and bytes; never modification times.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        lines::each(self, |line| hasher.field(line));
        hasher.finish()
    }

    /// Of all its files.
    pub fn size_bytes(&self) -> u64 {
        let entries = self.selections.iter().flat_map(|selection| &selection.entries);
        let sizes = entries.map(|entry| match entry.kind {
            EntryKind::File { size_bytes, .. } | EntryKind::Unread { size_bytes, .. } => size_bytes,
            _ => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }

    /// One line an entry, as `cache explain` compares them: the key of the line is the path.
    pub fn lines(&self) -> Vec<Vec<u8>> {
        lines::lines(self)
    }
}
