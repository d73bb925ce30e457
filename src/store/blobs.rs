//! Blobs: files named by the digest of their bytes. They are hashed while they are written and
//! appear by rename; small ones are hashed again when they are read.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::workspace::Bench;
use super::{Inner, Store};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{Digest, HashingReader, HashingWriter};

const BUFFER_SIZE_BYTES: usize = 128 << 10;

/// A blob open for reading, held with a shared lock: it cannot be pruned while this lives. Its bytes
/// are not checked again; who copies them to somewhere else hashes them on the way.
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    file: File,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Blob {
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It carries the lock.
    pub(super) fn into_file(self) -> File {
        self.file
    }
}

/// A blob in the making; appears under its digest by rename, or not at all.
pub struct BlobWriter {
    inner: Arc<Inner>,
    bench: Arc<Bench>,
    name: String,
    /// Gone once the blob is committed.
    out: Option<HashingWriter<BufWriter<File>>>,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Some(out) => out.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl BlobWriter {
    /// Publishes what was written.
    pub fn commit(mut self) -> Result<(Digest, u64)> {
        let (digest, size_bytes, file) = self.finish()?;
        self.publish(&digest, &file)?;
        Ok((digest, size_bytes))
    }

    /// Publishes what was written after it is on disk: for what should outlive a power cut.
    pub fn commit_synced(mut self) -> Result<(Digest, u64)> {
        let (digest, size_bytes, file) = self.finish()?;
        file.sync_data().map_err(|error| self.inner.error("write a blob", error))?;
        self.publish(&digest, &file)?;
        Ok((digest, size_bytes))
    }

    /// Publishes what was written only if it is what was expected.
    pub fn commit_expecting(self, expected: &Digest, expected_size_bytes: u64) -> Result<()> {
        self.verified(expected, expected_size_bytes)?.publish()
    }

    /// What was written, if it is what was expected; not published yet.
    pub(super) fn verified(mut self, expected: &Digest, expected_size_bytes: u64) -> Result<VerifiedBlob> {
        let (digest, size_bytes, file) = self.finish()?;
        if size_bytes != expected_size_bytes {
            return Err(Diagnostic::error(format!(
                "blob `{expected}` is {size_bytes} bytes long instead of {expected_size_bytes}"
            )));
        }
        if digest != *expected {
            return Err(Diagnostic::error(format!("blob `{expected}` is damaged: its bytes hash to `{digest}`")));
        }
        Ok(VerifiedBlob { writer: self, digest, file })
    }

    fn finish(&mut self) -> Result<(Digest, u64, File)> {
        // `out` leaves only here, and every caller consumes the writer.
        #[allow(clippy::unwrap_used)]
        let (out, digest, size_bytes) = self.out.take().unwrap().finish();
        let file = out.into_inner().map_err(|error| self.inner.error("write a blob", error.into_error()))?;
        Ok((digest, size_bytes, file))
    }

    fn publish(&self, digest: &Digest, file: &File) -> Result<()> {
        let _ = rustix::fs::fchmod(file, Mode::from_raw_mode(0o400));
        let size_bytes = file.metadata().map_or(0, |metadata| metadata.len());
        self.inner.added_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        // An earlier one is replaced: should it be damaged, it is whole again.
        rustix::fs::renameat(self.bench.fd(), &self.name, &self.inner.blobs, digest.hex())
            .map_err(|errno| self.inner.error(format_args!("write blob `{digest}`"), errno))
    }
}

/// Passes reads on and writes what was read to a blob.
pub(super) struct Tee<R> {
    pub input: R,
    pub blob: BlobWriter,
    /// Why the blob could not be written; the reader is told only that.
    pub error: Option<io::Error>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if let Err(error) = self.blob.write_all(&buffer[..count]) {
            self.error = Some(error);
            return Err(io::Error::other("the blob cannot be written"));
        }
        Ok(count)
    }
}

impl<R> Tee<R> {
    /// The blob with all of the input, or what went wrong: in the store, or with the input.
    pub(super) fn finish(self, read: io::Result<()>, digest: &Digest) -> Result<BlobWriter> {
        if let Some(error) = self.error {
            return Err(self.blob.inner.error(format_args!("write blob `{digest}`"), error));
        }
        read.context(|| format!("cannot read blob `{digest}`"))?;
        Ok(self.blob)
    }
}

/// All of a blob, beside the others.
pub(super) struct VerifiedBlob {
    writer: BlobWriter,
    digest: Digest,
    file: File,
}

impl VerifiedBlob {
    pub(super) fn publish(self) -> Result<()> {
        self.writer.publish(&self.digest, &self.file)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After a commit there is no such name.
        let _ = rustix::fs::unlinkat(self.bench.fd(), &self.name, AtFlags::empty());
    }
}

impl Store {
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        let cannot_make = |errno| self.inner.error("make a blob", errno);
        let (bench, name) = self.inner.workspace.fresh().map_err(cannot_make)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(bench.fd(), &name, flags, Mode::from_raw_mode(0o600)).map_err(cannot_make)?;
        let out = HashingWriter::new(BufWriter::with_capacity(BUFFER_SIZE_BYTES, File::from(file)));
        Ok(BlobWriter { inner: Arc::clone(&self.inner), bench, name, out: Some(out) })
    }

    /// Stores a small blob, unless it is there already.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.touch_blob(&digest, bytes.len() as u64)? && self.read_blob(&digest, bytes.len() as u64)?.is_some() {
            return Ok(digest);
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).map_err(|error| self.inner.error(format_args!("write blob `{digest}`"), error))?;
        writer.commit()?;
        Ok(digest)
    }

    /// Copies a blob of known digest and size into the store. No more than its size is read, and
    /// nothing appears if the bytes are others.
    pub fn import_blob(&self, input: &mut dyn Read, expected: &Digest, size_bytes: u64) -> Result<()> {
        let mut tee = Tee { input: input.take(size_bytes.saturating_add(1)), blob: self.blob_writer()?, error: None };
        let read = io::copy(&mut tee, &mut io::sink());
        tee.finish(read.map(|_| ()), expected)?.commit_expecting(expected, size_bytes)
    }

    /// Whether there is a blob of this name; its bytes are not looked at.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        rustix::fs::statat(&self.inner.blobs, digest.hex(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }

    /// Notes that the blob is about to be used, which keeps prune from taking it while this builder
    /// lives. Whether it is there, with this size.
    pub(super) fn touch_blob(&self, digest: &Digest, size_bytes: u64) -> Result<bool> {
        self.inner.workspace.announce();
        let Some(blob) = self.open_blob(digest)? else { return Ok(false) };
        // Locked meanwhile, so prune sees either the new time or the lock.
        let _ = rustix::fs::futimens(&blob.file, &super::NOW);
        Ok(blob.size_bytes == size_bytes)
    }

    /// The blob, locked against pruning.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        let cannot_open = |errno| self.inner.error(format_args!("open blob `{digest}`"), errno);
        let hex = digest.hex();
        loop {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(&self.inner.blobs, &hex, flags, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(cannot_open(errno)),
            };
            super::flock(file.as_fd(), FlockOperation::LockShared).map_err(cannot_open)?;
            // Pruned, or replaced by the same bytes, before it was locked: look again.
            if !super::is_still_at(self.inner.blobs.as_fd(), &hex, file.as_fd()) {
                continue;
            }
            let stat = rustix::fs::fstat(&file).map_err(cannot_open)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Ok(None);
            }
            return Ok(Some(Blob { digest: *digest, size_bytes: stat.st_size as u64, file: File::from(file) }));
        }
    }

    /// The bytes of a small blob (manifest, config), verified. One that is longer than `max_size_bytes`
    /// is not read; one that is damaged is removed. Both are as good as absent.
    pub fn read_blob(&self, digest: &Digest, max_size_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.open_blob(digest)? else { return Ok(None) };
        if blob.size_bytes > max_size_bytes {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(blob.size_bytes as usize);
        blob.take(max_size_bytes)
            .read_to_end(&mut bytes)
            .map_err(|error| self.inner.error(format_args!("read blob `{digest}`"), error))?;
        if Digest::of(&bytes) != *digest {
            self.discard_blob(digest);
            return Ok(None);
        }
        Ok(Some(bytes))
    }

    /// Hashes a blob of any size; a damaged one is removed. Whether it is there and whole.
    pub fn verify_blob(&self, digest: &Digest) -> Result<bool> {
        let Some(blob) = self.open_blob(digest)? else { return Ok(false) };
        let mut reader = HashingReader::new(blob);
        io::copy(&mut reader, &mut io::sink())
            .map_err(|error| self.inner.error(format_args!("read blob `{digest}`"), error))?;
        let (_, actual, _) = reader.finish();
        if actual != *digest {
            self.discard_blob(digest);
        }
        Ok(actual == *digest)
    }

    /// Takes a damaged blob away, whoever has it open.
    pub(super) fn discard_blob(&self, digest: &Digest) {
        let _ = self.inner.trash.take(self.inner.blobs.as_fd(), &digest.hex());
        self.inner.trash.wake();
    }
}
