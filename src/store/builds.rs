//! What builds left to be looked at later. What the files say is their writer's business.
//!
//! ```text
//! builds/<name>         sealed: the record of a build of which there is no more to tell
//! builds/<name>/        of any other; names sort by the start of their builds
//!   record              sealed, when the build is over
//!   events              while it runs, flocked by its builder; stays behind when that is killed
//!   <n>.log <n>.times   written as it comes
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Inner, Store, sealed};
use crate::diag::Result;

const DIRECTORY: &str = "builds";
const RECORD: &str = "record";
const EVENTS: &str = "events";

/// What is kept of one build.
pub struct BuildDir {
    pub name: String,
    inner: Arc<Inner>,
    /// The directory, or the one that the file is in.
    dir: OwnedFd,
    is_file: bool,
}

impl Store {
    /// The names of all builds, the oldest first.
    pub fn builds(&self) -> Result<Vec<String>> {
        self.builds_dir()
            .and_then(|dir| super::names(dir.as_fd()))
            .map_err(|errno| self.inner.error("list builds", errno))
    }

    pub fn build(&self, name: &str) -> Result<Option<BuildDir>> {
        let open = |builds: OwnedFd| match super::open_dir(builds.as_fd(), name) {
            Err(Errno::NOTDIR) => Ok((builds, true)),
            opened => Ok((opened?, false)),
        };
        match self.builds_dir().and_then(open) {
            Ok((dir, is_file)) => Ok(Some(self.build_dir(name, dir, is_file))),
            Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(errno) => Err(self.inner.error(format_args!("open the build `{name}`"), errno)),
        }
    }

    fn build_dir(&self, name: &str, dir: OwnedFd, is_file: bool) -> BuildDir {
        BuildDir { name: name.to_owned(), inner: Arc::clone(&self.inner), dir, is_file }
    }

    /// Makes the directory of a build that runs, and the file of its events, which says that it runs as
    /// long as it is open.
    pub fn begin_build(&self, name: &str) -> Result<(BuildDir, File)> {
        let make = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let builds = self.builds_dir()?;
            rustix::fs::mkdirat(&builds, name, Mode::RWXU)?;
            let dir = super::open_dir(builds.as_fd(), name)?;
            let events = create(dir.as_fd(), EVENTS)?;
            super::flock(events.as_fd(), FlockOperation::LockExclusive)?;
            Ok((dir, events))
        };
        let (dir, events) = make().map_err(|errno| self.inner.error("keep a record of the build", errno))?;
        Ok((self.build_dir(name, dir, false), File::from(events)))
    }

    /// Keeps of a build that is over nothing but its record.
    pub fn put_build(&self, name: &str, record: &[u8]) -> Result<()> {
        let builds = self.builds_dir().map_err(|errno| self.inner.error("keep a record of the build", errno))?;
        sealed::write(&self.inner, builds.as_fd(), name, record)
    }

    /// Moves it to the trash, unless its builder lives.
    pub fn remove_build(&self, name: &str) -> Result<bool> {
        match self.build(name)? {
            Some(build) if build.is_running() => Ok(false),
            _ => {
                let taken = self.builds_dir().and_then(|builds| self.inner.trash.take(builds.as_fd(), name));
                taken.map_err(|errno| self.inner.error(format_args!("remove the build `{name}`"), errno))?;
                Ok(true)
            }
        }
    }

    fn builds_dir(&self) -> rustix::io::Result<OwnedFd> {
        super::open_or_make(self.inner.root.as_fd(), DIRECTORY)
    }
}

impl BuildDir {
    /// The record of a build that is over; none if it is not there or not whole.
    pub fn record(&self) -> Result<Option<Vec<u8>>> {
        let name = if self.is_file { &self.name } else { RECORD };
        sealed::read(self.dir.as_fd(), name).map_err(|error| self.cannot_read(error))
    }

    /// What a build without a record wrote so far.
    pub fn events(&self) -> Result<Option<File>> {
        self.open(EVENTS)
    }

    /// Seals the record; the events say nothing more than it.
    pub fn end(&self, record: &[u8]) -> Result<()> {
        sealed::write(&self.inner, self.dir.as_fd(), RECORD, record)?;
        let _ = rustix::fs::unlinkat(&self.dir, EVENTS, AtFlags::empty());
        Ok(())
    }

    /// Whether its builder lives and is not done.
    pub fn is_running(&self) -> bool {
        match self.open(EVENTS) {
            Ok(Some(events)) => {
                rustix::fs::flock(&events, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
            }
            _ => false,
        }
    }

    /// A file to be written from its beginning.
    pub fn create(&self, name: &str) -> Result<File> {
        create(self.dir.as_fd(), name)
            .map(File::from)
            .map_err(|errno| self.inner.error(format_args!("write `{name}` of a build"), errno))
    }

    pub fn open(&self, name: &str) -> Result<Option<File>> {
        if self.is_file {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.cannot_read(errno.into())),
        }
    }

    /// Bytes of all its files.
    pub fn size_bytes(&self) -> u64 {
        let names = match self.is_file {
            true => vec![self.name.clone()],
            false => super::names(self.dir.as_fd()).unwrap_or_default(),
        };
        let size = |name: &String| {
            let stat = rustix::fs::statat(&self.dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
        };
        names.iter().map(size).sum()
    }

    fn cannot_read(&self, error: io::Error) -> crate::diag::Diagnostic {
        self.inner.error(format_args!("read the build `{}`", self.name), error)
    }
}

fn create(dir: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
}
