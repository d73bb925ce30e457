//! Files of a copy: who lands them makes them, in order, and a crew gives them their content, or looks at what an
//! earlier layer has of them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::content;
use super::node::Attributes;
use super::place::shown;
use crate::context::Entry;
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{Digest, Hasher};
use crate::layer::Records;
use crate::layer::node::open_below;
use crate::parallel::{Crew, Job};

/// Where files come from.
pub(super) struct Source<'a> {
    root: BorrowedFd<'a>,
    /// Until the file systems say no.
    can_clone: AtomicBool,
}

/// What the crew has to do for a file.
pub(super) enum Task<'a> {
    Fill(Filling<'a>),
    Check(Checking<'a>),
}

/// A file of an earlier layer that is to be taken if it has this content.
pub(super) struct Checking<'a> {
    pub slot: usize,
    pub file: File,
    pub size_bytes: u64,
    pub digest: &'a Digest,
}

/// A file to be filled.
pub(super) struct Filling<'a> {
    pub slot: usize,
    pub source: &'a Source<'a>,
    pub entry: &'a Entry,
    pub size_bytes: u64,
    pub digest: &'a Digest,
    /// New and empty.
    pub out: File,
    /// For messages.
    pub path: Vec<u8>,
    pub attributes: Attributes<'a>,
    pub records: Records,
}

pub(super) type Fillers<'scope, 'env> = Crew<'scope, 'env, Task<'scope>>;

impl Job for Task<'_> {
    /// The slot of a file that is to be copied after all: what an earlier layer has of it is damaged.
    type Output = Option<usize>;

    fn slot(&self) -> usize {
        match self {
            Self::Fill(filling) => filling.slot,
            Self::Check(checking) => checking.slot,
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Fill(filling) => filling.size_bytes,
            Self::Check(checking) => checking.size_bytes,
        }
    }

    fn run(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match self {
            Self::Fill(filling) => filling.fill(buffer).map(|()| None),
            Self::Check(checking) => {
                let read = Digest::of_rest(&checking.file, buffer);
                let is_whole = read.is_ok_and(|(digest, _)| digest == *checking.digest);
                Ok((!is_whole).then_some(checking.slot))
            }
        }
    }
}

impl Filling<'_> {
    pub fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        if self.copy(buffer)? != *self.digest {
            return Err(changed(&self.entry.path));
        }
        self.attributes.dress(self.out.as_fd(), &self.path, self.records)
    }

    /// Copies the content of the entry and returns the digest of what was copied.
    fn copy(&self, buffer: &mut [u8]) -> Result<Digest> {
        let mut input = self.source.open(&self.entry.path, self.size_bytes)?;
        let can_clone = &self.source.can_clone;
        if self.size_bytes > 0 && can_clone.load(Ordering::Relaxed) {
            // It fails on most file systems and always between two of them (EXDEV); then every
            // further file would only cost the call.
            let is_cloned = rustix::fs::ioctl_ficlone(&self.out, &input).is_ok();
            can_clone.store(is_cloned, Ordering::Relaxed);
            if is_cloned {
                // The clone is what lands, so it is what is hashed.
                let read = Digest::of_rest(&self.out, buffer);
                return Ok(read.context(|| format!("cannot read `{}`", shown(&self.path)))?.0);
            }
        }
        let mut hasher = Hasher::default();
        let copied = content::fill(&self.out, &mut input, self.size_bytes, buffer, Some(&mut hasher))
            .context(|| format!("cannot copy `{}` to `{}`", source_name(&self.entry.path), shown(&self.path)));
        copied.map(|_| hasher.finish())
    }
}

impl<'a> Source<'a> {
    /// Paths of entries are those below `root`.
    pub fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, can_clone: AtomicBool::new(true) }
    }

    /// Opens a file as it was listed: a file, of that size, and no link.
    pub fn open(&self, path: &[u8], size_bytes: u64) -> Result<File> {
        let fd = match open_below(self.root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Err(changed(path)),
            other => other.context(|| cannot_read(path))?,
        };
        let stat = rustix::fs::fstat(&fd).context(|| cannot_read(path))?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_file && u64::try_from(stat.st_size) == Ok(size_bytes) { Ok(fd.into()) } else { Err(changed(path)) }
    }
}

/// The file at a path of the tree is not what was listed.
pub(super) fn changed(path: &[u8]) -> Diagnostic {
    Diagnostic::error(format!("`{}` changed during the build", source_name(path)))
}

pub(super) fn cannot_read(path: &[u8]) -> String {
    format!("cannot read `{}`", source_name(path))
}

pub(super) fn source_name(path: &[u8]) -> String {
    crate::layer::node::shown(path)
}
