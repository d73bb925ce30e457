//! Deleted names: character devices 0:0 in a layer dir, `.wh.` names in a layer tar.
//!
//! A filesystem that is an overlay itself makes no such devices. There it is an empty file of mode 0 with an
//! attribute that overlays look for since Linux 6.7, in a directory that says that there are some.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::node::{Kind, Node};
use super::xattr;
use crate::ids;

/// Before the name of a file that is gone.
pub const PREFIX: &[u8] = b".wh.";

/// What the name of a tar member says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An ordinary name.
    Name,
    /// This name is gone from the layers below.
    Whiteout(&'a [u8]),
    /// Everything in the directory is gone from the layers below.
    Opaque,
    /// Bookkeeping of the AUFS filesystem; no part of the tree.
    Aufs,
    /// Deletes nothing that could be there: `.wh.`, `.wh..`, `.wh...`.
    Invalid,
}

/// The meaning of the last component of a member's path.
pub fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(PREFIX) {
        None => Meaning::Name,
        Some(b".wh..opq") => Meaning::Opaque,
        Some(b"" | b"." | b"..") => Meaning::Invalid,
        Some(rest) if rest.starts_with(PREFIX) => Meaning::Aufs,
        Some(rest) => Meaning::Whiteout(rest),
    }
}

/// Puts a whiteout in a layer dir. Permitted to everyone, unlike other devices.
pub fn create(dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
    match fs::mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::PERM) => create_file(dir.as_fd(), name),
        made => made,
    }
}

/// Whether whiteouts in this directory are devices.
pub fn are_devices(dir: impl AsFd) -> Result<bool, Errno> {
    const NAME: &CStr = c"whiteout";
    match fs::mknodat(&dir, NAME, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::PERM) => Ok(false),
        made => made.and_then(|()| fs::unlinkat(dir, NAME, AtFlags::empty())).map(|()| true),
    }
}

/// The same as a file.
fn create_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(dir, name, flags, Mode::empty())?;
    let marked = fs::fsetxattr(&file, marks().file, b"y", XattrFlags::empty()).and_then(|()| announce_files(dir));
    if marked.is_err() {
        fs::unlinkat(dir, name, AtFlags::empty())?;
    }
    marked
}

/// Whether `name` in `dir`, which looks as `node` says, is a file that stands for a whiteout. Of nearly all
/// files its look is enough to tell.
pub fn is_file(dir: impl AsFd, name: &CStr, node: &Node) -> Result<bool, Errno> {
    if node.kind != Kind::File || node.mode != 0 || node.size_bytes != 0 {
        return Ok(false);
    }
    has(dir, name, marks().file, b"y")
}

/// Whether there may be such files in a directory.
pub fn may_be_files(dir: impl AsFd) -> Result<bool, Errno> {
    has(dir, c".", marks().directory, b"x")
}

/// Says that there may be: overlays look no further where nobody does.
pub fn announce_files(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    xattr::put(dir, c".", marks().directory, b"x")
}

struct Marks {
    file: &'static CStr,
    directory: &'static CStr,
}

/// What the overlays of this process look for. Of the host's root's no step can set any.
fn marks() -> Marks {
    match ids::are_the_hosts() {
        true => Marks { file: c"trusted.overlay.whiteout", directory: c"trusted.overlay.opaque" },
        false => Marks { file: c"user.overlay.whiteout", directory: c"user.overlay.opaque" },
    }
}

fn has(dir: impl AsFd, name: &CStr, attribute: &CStr, expected: &[u8]) -> Result<bool, Errno> {
    match xattr::get(dir, name, attribute) {
        Ok(value) => Ok(value == expected),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_what_they_say() {
        for (name, expected) in [
            (&b"plain"[..], Meaning::Name),
            (b".wh", Meaning::Name),
            (b"x.wh.y", Meaning::Name),
            (b".wh.x", Meaning::Whiteout(b"x")),
            (b".wh...x", Meaning::Whiteout(b"..x")),
            (b".wh..wh..opq", Meaning::Opaque),
            (b".wh..wh.plnk", Meaning::Aufs),
            (b".wh.", Meaning::Invalid),
            (b".wh..", Meaning::Invalid),
            (b".wh...", Meaning::Invalid),
        ] {
            assert_eq!(meaning(name), expected, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_file_can_stand_for_one() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = fs::open(scratch.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let kind = |name: &CStr| super::super::node::node_at(&dir, name).unwrap().unwrap().kind;
        let flags = OFlags::WRONLY | OFlags::CREATE;
        fs::openat(&dir, c"empty", flags, Mode::empty()).unwrap();
        assert_eq!(kind(c"empty"), Kind::File);
        assert!(!may_be_files(&dir).unwrap());
        create_file(dir.as_fd(), c"gone").unwrap();
        assert_eq!(kind(c"gone"), Kind::Whiteout);
        assert!(may_be_files(&dir).unwrap());
        let merged = super::super::merged::Merged::root(&[dir.as_fd()]).unwrap();
        assert_eq!(merged.children().unwrap(), [c"empty".to_owned()]);
        assert!(merged.find(c"gone").unwrap().is_none());
    }
}
