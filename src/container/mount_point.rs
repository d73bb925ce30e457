//! Places that something is mounted on, and the working directory: found beneath a root, made where
//! missing, and taken away again where they were only made to be mounted on.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::mount::{self, BENEATH};
use super::userns::Mapping;
use crate::diag::{Context, Diagnostic, Result};
use crate::sys;

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// What is mounted: a directory goes on a directory, anything else on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Directory,
    File,
}

impl Shape {
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let is_directory = file_type(&rustix::fs::fstat(fd)?) == FileType::Directory;
        Ok(if is_directory { Self::Directory } else { Self::File })
    }
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// An entry that was made to be mounted on, to be removed when the step is over.
pub struct Stub {
    pub parent: OwnedFd,
    /// Keeps the inode, so that its number tells the entry from one put in its place.
    pub entry: OwnedFd,
    pub record: StubRecord,
}

/// What [`Stub`] knows besides descriptors. Times are seconds and nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StubRecord {
    name: Vec<u8>,
    parent_before: (i64, i64),
    parent_after: (i64, i64),
    entry_made: (i64, i64),
}

fn mtime(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec as i64)
}

impl Stub {
    /// Removes the entry if nothing was done to it, and gives its parent the time it had before, or that of
    /// what else was done there. To be called in the reverse order of making. What cannot be removed
    /// stays: then it is no stub any more.
    pub fn remove(self) {
        let name = OsStr::from_bytes(&self.record.name);
        let _ = (|| {
            let now = rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let own = rustix::fs::fstat(&self.entry)?;
            let is_same = (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino);
            let is_directory = file_type(&own) == FileType::Directory;
            // A directory that is not empty refuses to go; its own time changes when an inner stub
            // is removed, so it says nothing.
            let is_untouched = is_directory || (own.st_size == 0 && mtime(&own) == self.record.entry_made);
            if !is_same || !is_untouched {
                return Ok(());
            }
            let parent = rustix::fs::fstat(&self.parent)?;
            let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&self.parent, name, flags)?;
            let is_quiet = mtime(&parent) == self.record.parent_after;
            let (tv_sec, tv_nsec) = if is_quiet { self.record.parent_before } else { mtime(&parent) };
            let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
            let times = Timestamps { last_access, last_modification: Timespec { tv_sec, tv_nsec } };
            rustix::fs::utimensat(&self.parent, "", &times, AtFlags::EMPTY_PATH)
        })();
    }
}

/// Opens the place `target` beneath `root` for a mount of `shape`; makes what is missing, which is
/// added to `stubs`.
pub fn find_or_make(root: BorrowedFd<'_>, target: &str, shape: Shape, stubs: &mut Vec<Stub>) -> Result<OwnedFd> {
    let doing = || format!("cannot make a mount point at `{target}`");
    let place = match mount::place(root, target, OFlags::empty(), BENEATH) {
        Err(Errno::NOENT) => walk(root, target, |parent, name, is_last| {
            let before = mtime(&rustix::fs::fstat(parent)?);
            let is_file = is_last && shape == Shape::File;
            if is_file {
                rustix::fs::mknodat(parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
            } else {
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            }
            let entry = open_entry(parent, name)?;
            let record = StubRecord {
                name: name.as_bytes().to_owned(),
                parent_before: before,
                parent_after: mtime(&rustix::fs::fstat(parent)?),
                entry_made: mtime(&rustix::fs::fstat(&entry)?),
            };
            let owned = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|_| Errno::MFILE);
            stubs.push(Stub { parent: owned(parent)?, entry: owned(entry.as_fd())?, record });
            Ok(entry)
        }),
        found => found,
    };
    let place = place.context(doing)?;
    match (shape, Shape::of(place.as_fd()).context(doing)?) {
        (Shape::Directory, Shape::File) => {
            Err(Diagnostic::error(doing()).caused_by("a directory is to be mounted, and the target is a file"))
        }
        (Shape::File, Shape::Directory) => {
            Err(Diagnostic::error(doing()).caused_by("a file is to be mounted, and the target is a directory"))
        }
        _ => Ok(place),
    }
}

/// Opens the directory `path` beneath `root`; each missing one on the way is made, mode 0755, for
/// this owner.
pub fn make_directories(
    root: BorrowedFd<'_>,
    path: &str,
    (uid, gid): (u32, u32),
    mapping: &Mapping,
) -> Result<OwnedFd, Errno> {
    match mount::place(root, path, OFlags::DIRECTORY, BENEATH) {
        Err(Errno::NOENT) => walk(root, path, |parent, name, _| {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            let entry = open_entry(parent, name)?;
            mapping.give(&entry, uid, gid)?;
            Ok(entry)
        }),
        found => found,
    }
}

fn open_entry(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    sys::open_beneath(dir, name, OFlags::PATH | OFlags::NOFOLLOW, resolve)
}

/// Follows `path` beneath `root` name by name, as the kernel would with `root` as `/`; `make` is
/// called with the parent, the name, and whether it is the last, for each that is missing.
fn walk(
    root: BorrowedFd<'_>,
    path: &str,
    mut make: impl FnMut(BorrowedFd<'_>, &OsStr, bool) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .map(<[u8]>::to_vec)
            .rev()
            .collect()
    };
    let mut pending = names(path.as_bytes());
    // The way down from the root, so that `..` needs no lookup and cannot leave it.
    let mut way: Vec<OwnedFd> = vec![root.try_clone_to_owned().map_err(|_| Errno::MFILE)?];
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        // `way` always holds the root.
        let dir = way[way.len() - 1].as_fd();
        let entry = match open_entry(dir, OsStr::from_bytes(&name)) {
            Err(Errno::NOENT) => make(dir, OsStr::from_bytes(&name), pending.is_empty())?,
            opened => opened?,
        };
        match file_type(&rustix::fs::fstat(&entry)?) {
            FileType::Symlink => {
                links += 1;
                // A link of procfs may lead anywhere, whatever it reads as; nothing is made below it.
                let is_magic = rustix::fs::fstatfs(dir)?.f_type == rustix::fs::PROC_SUPER_MAGIC;
                if links > MAX_LINKS || is_magic {
                    return Err(Errno::LOOP);
                }
                let link = rustix::fs::readlinkat(&entry, "", Vec::new())?.into_bytes();
                if link.starts_with(b"/") {
                    way.truncate(1);
                }
                pending.extend(names(&link));
            }
            FileType::Directory => way.push(entry),
            _ if pending.is_empty() => return Ok(entry),
            _ => return Err(Errno::NOTDIR),
        }
    }
    way.pop().ok_or(Errno::NOENT)
}
