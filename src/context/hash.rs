//! Reading files for their digests.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::facts::Facts;
use super::index::{FileKey, HashIndex, Remembered};
use super::xattr;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::{Digest, Hasher};
use crate::parallel::{self, Crew};

/// A file to be read.
pub struct Job<'a> {
    /// Where the result goes.
    pub slot: usize,
    pub directory: Arc<OwnedFd>,
    pub name: Vec<u8>,
    /// For messages.
    pub path: Vec<u8>,
    pub key: FileKey,
    /// The digest is known, only the extended attributes are to be read.
    pub digest: Option<Digest>,
    /// Where it is remembered; not set where its file system's files may not be.
    pub index: Option<&'a HashIndex>,
}

pub struct Hashed {
    pub slot: usize,
    pub size_bytes: u64,
    pub digest: Digest,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const BUFFER_BYTES: usize = 128 << 10;

/// Those who read. The walk brings them files as it meets them.
pub type Hashers<'scope, 'env> = Crew<'scope, 'env, Job<'scope>>;

impl parallel::Job for Job<'_> {
    type Output = Hashed;

    fn slot(&self) -> usize {
        self.slot
    }

    fn size_bytes(&self) -> u64 {
        self.key.size_bytes
    }

    fn run(&self, buffer: &mut Vec<u8>) -> Result<Hashed> {
        read(self, buffer)
    }
}

fn read(job: &Job<'_>, buffer: &mut Vec<u8>) -> Result<Hashed> {
    let doing = || format!("cannot read `{}`", String::from_utf8_lossy(&job.path));
    // Not to be stopped by a fifo that has taken the file's place.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&job.directory, job.name.as_slice(), flags, Mode::empty());
    let file = file.map_err(|errno| super::walk::refused(doing(), errno))?;
    if let Some(digest) = job.digest {
        let xattrs = xattr::of_file(file.as_fd()).context(doing)?;
        return Ok(Hashed { slot: job.slot, size_bytes: job.key.size_bytes, digest, xattrs });
    }
    let facts = Facts::of_open(&file).context(doing)?;
    if facts.file_type != FileType::RegularFile {
        return Err(Diagnostic::error(doing()).caused_by("it was replaced while it was read"));
    }
    let (digest, size_bytes) = digest(file.as_fd(), buffer).context(doing)?;
    let xattrs = xattr::of_file(file.as_fd()).context(doing)?;
    let key = facts.key;
    if let Some(index) = job.index
        && key == job.key
        && key.size_bytes == size_bytes
    {
        index.insert(key, Remembered { digest, has_xattrs: !xattrs.is_empty() });
    }
    Ok(Hashed { slot: job.slot, size_bytes, digest, xattrs })
}

/// Digest and size of what is in a file.
fn digest(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> rustix::io::Result<(Digest, u64)> {
    buffer.resize(BUFFER_BYTES, 0);
    let mut hasher = Hasher::default();
    let mut size_bytes = 0;
    loop {
        match rustix::io::read(file, &mut buffer[..]) {
            Ok(0) => return Ok((hasher.finish(), size_bytes)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size_bytes += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
