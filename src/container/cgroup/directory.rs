//! A control group as a directory of the host, held open.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The directory of a group.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    /// For messages.
    pub path: PathBuf,
}

impl Directory {
    /// The group at a path of the host.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// The group `name` below this one.
    pub fn child(&self, name: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(&self.fd, name, flags, Mode::empty())?, path: self.path.join(name) })
    }

    /// Makes the group `name` below this one; `EEXIST` where there is one.
    pub fn make(&self, name: &str) -> Result<Self, Errno> {
        rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755))?;
        self.child(name)
    }

    /// Removes the group `name`, which has neither processes nor groups.
    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    /// The names of the groups below this one.
    pub fn children(&self) -> Vec<String> {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.fd) else { return Vec::new() };
        let directory = |entry: rustix::fs::DirEntry| {
            let name = entry.file_name().to_str().ok()?;
            let is_child = entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != "..";
            is_child.then(|| name.to_owned())
        };
        entries.flatten().filter_map(directory).collect()
    }

    pub fn has(&self, file: &str) -> bool {
        rustix::fs::statat(&self.fd, file, AtFlags::empty()).is_ok()
    }

    /// The text of a small file; `None` where it is not there.
    pub fn read(&self, file: &str) -> Option<String> {
        let file = rustix::fs::openat(&self.fd, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        while let length @ 1.. = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut piece)).ok()? {
            text.extend_from_slice(&piece[..length]);
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    pub fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let file = self.writer(file)?;
        rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes())).map(drop)
    }

    pub fn writer(&self, file: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.fd, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Takes the lock that says that somebody lives here, until this is dropped; false if somebody
    /// else has it, or if the directory was removed meanwhile.
    pub fn lock(&self) -> Result<bool, Errno> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(false),
            locked => locked?,
        }
        let (held, there) = (rustix::fs::fstat(&self.fd)?, rustix::fs::stat(&self.path));
        Ok(there.is_ok_and(|there| there.st_ino == held.st_ino))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
