//! What `statx` says of a file, as far as it counts here.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io;
use rustix::path::Arg;

use super::index::FileKey;

#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub link_count: u32,
    pub uid: u32,
    pub gid: u32,
    /// Major and minor number, of a device.
    pub device: (u32, u32),
    pub key: FileKey,
}

impl Facts {
    /// About `name` itself, not about what a link leads to.
    pub fn of(directory: BorrowedFd<'_>, name: impl Arg) -> io::Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).map(|stat| Self::from(&stat))
    }

    /// About an open file.
    pub fn of_open(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        stat.map(|stat| Self::from(&stat))
    }
}

impl From<&Statx> for Facts {
    fn from(stat: &Statx) -> Self {
        Self {
            file_type: FileType::from_raw_mode(u32::from(stat.stx_mode)),
            mode: u32::from(stat.stx_mode) & 0o7777,
            link_count: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            device: (stat.stx_rdev_major, stat.stx_rdev_minor),
            key: FileKey {
                device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
                size_bytes: stat.stx_size,
                mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
                ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            },
        }
    }
}
