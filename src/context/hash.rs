//! Reading files for their digests.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::facts::Facts;
use super::index::{FileKey, HashIndex, Remembered};
use super::xattr;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::Digest;
use crate::layer::node::open_below;
use crate::parallel::{self, Crew};

/// A file to be read.
pub struct Job<'a> {
    /// Where the result goes.
    pub slot: usize,
    pub directory: Arc<OwnedFd>,
    /// Its name there, or its path beneath.
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

    fn run(&self, buffer: &mut [u8]) -> Result<Hashed> {
        read(self, buffer)
    }
}

fn read(job: &Job<'_>, buffer: &mut [u8]) -> Result<Hashed> {
    let doing = || format!("cannot read `{}`", String::from_utf8_lossy(&job.path));
    // Not to be stopped by a fifo that has taken the file's place.
    let file = open_below(job.directory.as_fd(), &job.name, OFlags::RDONLY | OFlags::NONBLOCK);
    let file = File::from(file.map_err(|errno| super::walk::refused(doing(), errno))?);
    if let Some(digest) = job.digest {
        let xattrs = xattr::of_file(file.as_fd()).context(doing)?;
        return Ok(Hashed { slot: job.slot, size_bytes: job.key.size_bytes, digest, xattrs });
    }
    let facts = Facts::of_open(&file).context(doing)?;
    if facts.file_type != FileType::RegularFile {
        return Err(Diagnostic::error(doing()).caused_by("it was replaced while it was read"));
    }
    let (digest, size_bytes) = Digest::of_rest(&file, buffer).context(doing)?;
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
