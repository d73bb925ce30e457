//! One object of the file system: making it, and giving it its owner, mode, times and extended
//! attributes. Everything is named by a directory fd and one component, or is an open fd.
//!
//! The order matters: a change of owner clears setuid, setgid and `security.capability`, so the
//! owner comes first; the time comes last.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::Owner;
use super::place::shown;
use crate::diag::{self, Context as _};
use crate::layer;
use crate::layer::Records;
use crate::layer::node::times;
use crate::layer::record::Device;

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

    /// Dresses an open file or directory, its time included. `path` is for messages.
    pub fn dress(&self, fd: BorrowedFd<'_>, path: &[u8], records: Records) -> diag::Result<()> {
        let dressed = set_attributes(fd, self, records).and_then(|()| set_time(fd, self.mtime));
        dressed.context(|| self.refused(&shown(path)))
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

pub(super) fn make_fifo(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    rustix::fs::mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
}

/// Makes a device, or what stands for it in the root.
pub(super) fn make_device(parent: BorrowedFd<'_>, name: &[u8], device: Device, records: Records) -> Result<()> {
    records.make_device(parent, &c_string(name)?, device)
}

/// Dresses an open file or directory, all but its time.
pub(super) fn set_attributes(fd: BorrowedFd<'_>, attributes: &Attributes<'_>, records: Records) -> Result<()> {
    set_owner_and_mode(fd, attributes.owner, attributes.mode, records)?;
    attributes.xattrs.iter().try_for_each(|(name, value)| {
        match rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            // As far as the file system goes: one without extended attributes, or with too little
            // room for them, still takes the file.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::INVAL | Errno::TOOBIG) => Ok(()),
            other => other,
        }
    })
}

pub(super) fn set_owner_and_mode(fd: BorrowedFd<'_>, owner: Owner, mode: u32, records: Records) -> Result<()> {
    records.set_owner(fd, owner.uid, owner.gid)?;
    set_mode(fd, mode)
}

pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
}

/// Dresses what cannot be opened: a link, a fifo, a device. A link has no mode.
pub(super) fn set_attributes_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    attributes: &Attributes<'_>,
    records: Records,
) -> Result<()> {
    let name = c_string(name)?;
    records.set_owner_at(parent, &name, attributes.owner.uid, attributes.owner.gid)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, &name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Symlink {
        // There is no chmod of an O_PATH fd before Linux 6.6, and one by name could be led through
        // a link: the fd's own entry in /proc is the object, whatever has its name by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(attributes.mode))?;
    }
    records.set_mtime_at(parent, &name, attributes.mtime)
}

pub(super) fn set_time(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    rustix::fs::futimens(fd, &times(mtime))
}

/// Removes whatever is called `name`, a directory with all that is in it.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    layer::node::remove(parent, &c_string(name)?)
}

fn c_string(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}
