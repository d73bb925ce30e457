//! Records: small files below `cache/` and `files/`, spread over directories named by
//! their first two characters. What they say is their writers' business.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::{Store, sealed};
use crate::diag::Result;

/// When a record was last used is known no better than this: most uses then write nothing.
const TOUCH_PERIOD_SECONDS: i64 = 3_600;

impl Store {
    /// The record, or nothing if it is not there or not whole. `dir` is a path in the store such as
    /// `cache` or `cache/op`; `name` is a key in hex, or another name of `[A-Za-z0-9._-]` that begins with
    /// two lower-case hex digits.
    ///
    /// # Panics
    /// When `dir` or `name` is not of that form: they come from this program, never from a user.
    pub fn read_record(&self, dir: &str, name: &str) -> Result<Option<Vec<u8>>> {
        self.read_record_file(dir, name, |_| {})
    }

    /// The same, and notes that it was used now: its mtime is when, to within the hour. In a store that
    /// cannot be written to it looks older than it is.
    pub fn use_record(&self, dir: &str, name: &str) -> Result<Option<Vec<u8>>> {
        self.read_record_file(dir, name, |file| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec;
            // One from the future would look unused for as long.
            let is_fresh =
                rustix::fs::fstat(file).is_ok_and(|stat| (now - TOUCH_PERIOD_SECONDS..=now).contains(&stat.st_mtime));
            if !is_fresh {
                let _ = rustix::fs::futimens(file, &super::NOW);
            }
        })
    }

    fn read_record_file(&self, dir: &str, name: &str, found: impl FnOnce(&File)) -> Result<Option<Vec<u8>>> {
        let path = path(dir, name);
        sealed::read_file(self.inner.root.as_fd(), &path, found)
            .map_err(|error| self.inner.error(format_args!("read `{path}`"), error))
    }

    /// Writes the record beside and renames it into place; the last writer wins. Not synced.
    pub fn write_record(&self, dir: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let shard = shard(dir, name);
        let fd = self.make_dirs(&shard).map_err(|errno| self.inner.error(format_args!("make `{shard}`"), errno))?;
        sealed::write(&self.inner, fd.as_fd(), name, bytes)
    }

    /// When the record was last written or used, in seconds since the epoch; `None` if it is not
    /// there.
    pub fn record_time(&self, dir: &str, name: &str) -> Result<Option<i64>> {
        let shard = shard(dir, name);
        let stat = super::open_dir(self.inner.root.as_fd(), &shard)
            .and_then(|fd| rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(stat.st_mtime)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.inner.error(format_args!("read `{shard}/{name}`"), errno)),
        }
    }

    /// Bytes of the record's file.
    pub fn record_size(&self, dir: &str, name: &str) -> Option<u64> {
        let fd = super::open_dir(self.inner.root.as_fd(), &shard(dir, name)).ok()?;
        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_size).ok()
    }

    /// The file that remembers the hashes of the files of the context `path`; its directory is made.
    pub fn context_index(&self, path: &std::path::Path) -> Result<std::path::PathBuf> {
        use std::os::unix::ffi::OsStrExt as _;
        self.make_dirs("files/index").map_err(|errno| self.inner.error("make `files/index`", errno))?;
        let name = crate::digest::Digest::of(path.as_os_str().as_bytes()).hex();
        Ok(self.inner.path.join("files/index").join(name))
    }

    /// The file of the keys of ssh servers that were met; its directory is made.
    pub fn known_hosts(&self) -> Result<std::path::PathBuf> {
        self.make_dirs("files").map_err(|errno| self.inner.error("make `files`", errno))?;
        Ok(self.inner.path.join("files/known_hosts"))
    }

    /// Removes the record if it is there.
    pub fn remove_record(&self, dir: &str, name: &str) -> Result<()> {
        let shard = shard(dir, name);
        let Ok(fd) = super::open_dir(self.inner.root.as_fd(), &shard) else { return Ok(()) };
        match rustix::fs::unlinkat(&fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.inner.error(format_args!("remove `{shard}/{name}`"), errno)),
        }
    }

    /// The names of all records of `dir`, sorted; of those in deeper record directories, none.
    pub fn records(&self, dir: &str) -> Result<Vec<String>> {
        check(dir, "00");
        let cannot_list = |errno| self.inner.error(format_args!("list `{dir}`"), errno);
        let root = match super::open_dir(self.inner.root.as_fd(), dir) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(cannot_list(errno)),
        };
        let mut records = Vec::new();
        for shard in super::names(root.as_fd()).map_err(cannot_list)? {
            if !is_shard(&shard) {
                continue;
            }
            match super::open_dir(root.as_fd(), &shard) {
                Ok(fd) => records.extend(super::names(fd.as_fd()).map_err(cannot_list)?),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => return Err(cannot_list(errno)),
            }
        }
        Ok(records)
    }

    fn make_dirs(&self, path: &str) -> rustix::io::Result<std::os::fd::OwnedFd> {
        let root = self.inner.root.as_fd();
        match super::open_dir(root, path) {
            Err(Errno::NOENT) => {}
            result => return result,
        }
        for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
            match rustix::fs::mkdirat(root, &path[..end], Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        super::open_dir(root, path)
    }
}

fn shard(dir: &str, name: &str) -> String {
    check(dir, name);
    format!("{dir}/{}", &name[..2])
}

/// Of the record's file, in the store.
fn path(dir: &str, name: &str) -> String {
    check(dir, name);
    format!("{dir}/{}/{name}", &name[..2])
}

/// Two hex digits. `cache/op`, a record directory below another one, is none.
fn is_shard(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check(dir: &str, name: &str) {
    let is_name = |name: &str| {
        !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let is_dir = |part: &str| !part.is_empty() && is_name(part) && !is_shard(part);
    assert!(dir.split('/').all(is_dir), "`{dir}` is no record directory");
    assert!((2..=200).contains(&name.len()) && is_name(name) && is_shard(&name[..2]), "`{name}` is no record name");
}
