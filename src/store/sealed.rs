//! Small files that tell whether they are whole: the content, then a line with its digest.
//!
//! ```text
//! {"some":"json"}
//! sha256:<hex of the line above, without its newline>
//! ```
//!
//! They are renamed into place but not synced, so after a power cut one may be there with half its
//! bytes, or with zeros. Such a file is taken as absent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Inner;
use crate::diag::Result;
use crate::digest::Digest;

const MAX_SIZE_BYTES: u64 = 64 << 20;
const USUAL_SIZE_BYTES: usize = 2048;
/// `sha256:` and 64 digits between two newlines.
const SEAL_SIZE_BYTES: usize = 73;

/// The content of `name` in `dir`, or nothing if it is not there or not whole.
pub(super) fn read(dir: BorrowedFd<'_>, name: &str) -> std::io::Result<Option<Vec<u8>>> {
    read_file(dir, name, |_| {})
}

/// The same; `found` gets the file when there is one.
pub(super) fn read_file(
    dir: BorrowedFd<'_>,
    name: &str,
    found: impl FnOnce(&File),
) -> std::io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    found(&file);
    match read_bytes(&mut file) {
        Ok(bytes) => Ok(unseal(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

/// Most are a few hundred bytes: one read. One that fills less than there is room for was the last; were it
/// not, the seal would tell.
fn read_bytes(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; USUAL_SIZE_BYTES];
    let count = loop {
        match file.read(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => break result?,
        }
    };
    bytes.truncate(count);
    if count == USUAL_SIZE_BYTES {
        file.take(MAX_SIZE_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

pub(super) fn read_json<T: DeserializeOwned>(dir: BorrowedFd<'_>, name: &str) -> std::io::Result<Option<T>> {
    Ok(read(dir, name)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // What the store writes is structs of strings, numbers and string-keyed maps: it serialises.
    #[allow(clippy::unwrap_used)]
    serde_json::to_vec(value).unwrap()
}

/// Puts `bytes` at `name` in `dir`, replacing what was there.
pub(super) fn write(inner: &Inner, dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> Result<()> {
    let cannot_write = |errno| inner.error(format_args!("write `{name}`"), errno);
    let (bench, beside) = inner.workspace.fresh().map_err(cannot_write)?;
    create(bench.fd(), &beside, bytes)
        .and_then(|()| publish(inner, bench.fd(), &beside, dir, name).map_err(Into::into))
        .map_err(|error| {
            let _ = rustix::fs::unlinkat(bench.fd(), &beside, AtFlags::empty());
            inner.error(format_args!("write `{name}`"), error)
        })
}

/// Renames `beside` to `name`, in place of what is there. Not by a plain rename over it: to that ext4
/// (`auto_da_alloc`) adds a write to the disk, which costs more than all else here, and of which a file
/// that tells whether it is whole has no use.
fn publish(
    inner: &Inner,
    from: BorrowedFd<'_>,
    beside: &str,
    dir: BorrowedFd<'_>,
    name: &str,
) -> rustix::io::Result<()> {
    loop {
        match rustix::fs::renameat_with(from, beside, dir, name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            // A filesystem without these flags.
            Err(Errno::INVAL) => return rustix::fs::renameat(from, beside, dir, name),
            result => return result,
        }
        match rustix::fs::renameat_with(from, beside, dir, name, RenameFlags::EXCHANGE) {
            Ok(()) => return inner.trash.discard(from, beside),
            // Gone in between.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Makes the file in place, for a directory that is itself renamed into place later.
pub(super) fn create(dir: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    let mut sealed = Vec::with_capacity(bytes.len() + SEAL_SIZE_BYTES);
    sealed.extend_from_slice(bytes);
    sealed.extend_from_slice(format!("\n{}\n", Digest::of(bytes)).as_bytes());
    File::from(file).write_all(&sealed)
}

fn unseal(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let content_size = bytes.len().checked_sub(SEAL_SIZE_BYTES)?;
    let (content, seal) = bytes.split_at(content_size);
    if seal != format!("\n{}\n", Digest::of(content)).as_bytes() {
        return None;
    }
    bytes.truncate(content_size);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_or_missing_byte_is_seen() {
        let content = br#"{"a":1}"#;
        let mut sealed = content.to_vec();
        sealed.extend_from_slice(format!("\n{}\n", Digest::of(content)).as_bytes());
        assert_eq!(unseal(sealed.clone()).as_deref(), Some(&content[..]));
        for length in 0..sealed.len() {
            assert_eq!(unseal(sealed[..length].to_vec()), None, "cut to {length} bytes");
            let mut flipped = sealed.clone();
            flipped[length] ^= 1;
            assert_eq!(unseal(flipped), None, "byte {length} flipped");
        }
        assert_eq!(unseal(vec![0; 200]), None);
    }
}
