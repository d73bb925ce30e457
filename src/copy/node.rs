//! One object of the file system: making it, and giving it its owner, mode, times and extended
//! attributes. Everything is named by a directory fd and one component, or is an open fd.
//!
//! The order matters: a change of owner clears setuid, setgid and `security.capability`, so the
//! owner comes first; the time comes last.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::Owner;
use crate::layer;
use crate::layer::node::times;

/// What an object looks like besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a> {
    pub owner: Owner,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub mtime: (i64, u32),
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl Attributes<'_> {
    /// What to say where they cannot be set. An owner that the user namespace does not map is
    /// `EINVAL`, so the owner is named.
    pub fn refused(&self, path: &str) -> String {
        format!("cannot give `{path}` the owner {}:{} and mode {:04o}", self.owner.uid, self.owner.gid, self.mode)
    }
}

/// Makes an empty directory, closed to everyone else until its owner and mode are set.
pub(super) fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    open_directory(parent, name)
}

/// Opens a directory to read or change it; a link is `ELOOP` or `ENOTDIR`.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Makes an empty file, to be written and read; `EEXIST` if anything has the name.
pub(super) fn make_file(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Makes a fifo or a device; `device` is major and minor.
pub(super) fn make_special(parent: BorrowedFd<'_>, name: &[u8], kind: FileType, device: (u32, u32)) -> Result<()> {
    let number = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, number)
}

/// Dresses an open file or directory, all but its time.
pub(super) fn set_attributes(fd: BorrowedFd<'_>, attributes: &Attributes<'_>) -> Result<()> {
    set_owner_and_mode(fd, attributes.owner, attributes.mode)?;
    attributes.xattrs.iter().try_for_each(|(name, value)| {
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            // As far as the file system goes: one without extended attributes, or with too little
            // room for them, still takes the file.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::INVAL | Errno::TOOBIG) => Ok(()),
            other => other,
        }
    })
}

pub(super) fn set_owner_and_mode(fd: BorrowedFd<'_>, owner: Owner, mode: u32) -> Result<()> {
    layer::node::set_owner_of(fd, owner.uid, owner.gid)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
}

/// Dresses what cannot be opened: a link, a fifo, a device. A link has no mode.
pub(super) fn set_attributes_at(parent: BorrowedFd<'_>, name: &[u8], attributes: &Attributes<'_>) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    layer::node::set_owner(&fd, c"", attributes.owner.uid, attributes.owner.gid)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Symlink {
        // There is no chmod of an O_PATH fd before Linux 6.6, and one by name could be led through
        // a link: the fd's own entry in /proc is the object, whatever has its name by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(attributes.mode))?;
    }
    rustix::fs::utimensat(parent, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)
}

pub(super) fn set_time(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    rustix::fs::futimens(fd, &times(mtime))
}

/// Removes whatever is called `name`, a directory with all that is in it.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    layer::node::remove(parent, &CString::new(name).map_err(|_| Errno::INVAL)?)
}
