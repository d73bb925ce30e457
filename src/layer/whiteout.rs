//! Deleted names: character devices 0:0 in a layer dir, `.wh.` names in a layer tar.
//!
//! A filesystem that is an overlay itself makes no such devices. There it is an empty file of mode 0 with an
//! attribute that overlays look for since Linux 6.7, in a directory that says that there are some. An older kernel
//! takes these attributes of root's for an overlay's own affair: then they are ours, and to no kernel's overlay
//! such a file is a whiteout.

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
        Err(Errno::PERM) => create_file(dir.as_fd(), name, marks()),
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

/// `statfs` of an overlay (linux/magic.h).
const OVERLAY_MAGIC: u32 = 0x794c_7630;

/// Notes on the directory `above` if no overlay of the kernel's will know the whiteouts that the host's root makes in
/// `dir`, which is on an overlay then.
pub fn note_if_ours(dir: BorrowedFd<'_>, above: BorrowedFd<'_>) -> Result<(), Errno> {
    // To try it takes a new file: most need not.
    if fs::fstatfs(dir)?.f_type as u32 != OVERLAY_MAGIC || are_devices(dir)? {
        return Ok(());
    }
    match xattr::put(dir, c".", KERNELS.directory, b"x") {
        Err(Errno::OPNOTSUPP) => xattr::put(above, c".", OURS.directory, b"x"),
        Ok(()) => xattr::remove(dir, c".", KERNELS.directory),
        // Who may set none makes none.
        Err(_) => Ok(()),
    }
}

/// Whether that was noted, by an older kernel maybe.
pub fn are_noted_as_ours(above: BorrowedFd<'_>) -> Result<bool, Errno> {
    has(above, c".", &[OURS], |marks| marks.directory, b"x")
}

/// The same as a file.
fn create_file(dir: BorrowedFd<'_>, name: &CStr, marks: &[Marks]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(dir, name, flags, Mode::empty())?;
    let marked = first_taken(marks, |marks| {
        fs::fsetxattr(&file, marks.file, b"y", XattrFlags::empty())?;
        xattr::put(dir, c".", marks.directory, b"x")
    });
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
    has(dir, name, marks(), |marks| marks.file, b"y")
}

/// Whether there may be such files in a directory.
pub fn may_be_files(dir: impl AsFd) -> Result<bool, Errno> {
    has(dir, c".", marks(), |marks| marks.directory, b"x")
}

/// Says that there may be: overlays look no further where nobody does.
pub fn announce_files(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    first_taken(marks(), |marks| xattr::put(dir, c".", marks.directory, b"x"))
}

struct Marks {
    file: &'static CStr,
    directory: &'static CStr,
}

const KERNELS: Marks = Marks { file: c"trusted.overlay.whiteout", directory: c"trusted.overlay.opaque" };
const OURS: Marks = Marks { file: c"trusted.wythe.whiteout", directory: c"trusted.wythe.whiteouts" };
/// An older kernel lets an overlay have them, as they mean nothing to it.
const USERS: Marks = Marks { file: c"user.overlay.whiteout", directory: c"user.overlay.opaque" };

/// What the overlays of this process look for, and what stands for it. Of the host's root's no step can set any.
fn marks() -> &'static [Marks] {
    match ids::are_the_hosts() {
        true => &[KERNELS, OURS],
        false => &[USERS],
    }
}

/// Sets the first that the filesystem takes.
fn first_taken(marks: &[Marks], mut set: impl FnMut(&Marks) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut taken = Err(Errno::OPNOTSUPP);
    for marks in marks {
        taken = set(marks);
        if taken != Err(Errno::OPNOTSUPP) {
            break;
        }
    }
    taken
}

fn has(
    dir: impl AsFd,
    name: &CStr,
    marks: &[Marks],
    of: impl Fn(&Marks) -> &'static CStr,
    expected: &[u8],
) -> Result<bool, Errno> {
    for marks in marks {
        match xattr::get(&dir, name, of(marks)) {
            Ok(value) if value == expected => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
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
        for marks in marks() {
            create_file(dir.as_fd(), c"gone", std::slice::from_ref(marks)).unwrap();
            assert_eq!(kind(c"gone"), Kind::Whiteout);
            assert!(may_be_files(&dir).unwrap());
            xattr::remove(&dir, c".", marks.directory).unwrap();
            assert!(!may_be_files(&dir).unwrap());
            fs::unlinkat(&dir, c"gone", AtFlags::empty()).unwrap();
        }
        create_file(dir.as_fd(), c"gone", marks()).unwrap();
        let merged = super::super::merged::Merged::root(&[dir.as_fd()]).unwrap();
        assert_eq!(merged.children().unwrap(), [c"empty".to_owned()]);
        assert!(merged.find(c"gone").unwrap().is_none());
    }
}
