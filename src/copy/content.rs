//! The bytes of a file on their way into a new file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::digest::Hasher;

/// Room for one piece on its way.
pub(super) const BUFFER_BYTES: usize = 128 * 1024;

/// Copies up to `length` bytes of `input` into the new file `out` and hashes them. Returns how many
/// there were, which is the length of the file then.
pub(super) fn fill(
    out: &File,
    input: &mut dyn Read,
    length: u64,
    buffer: &mut [u8],
    mut hasher: Option<&mut Hasher>,
) -> io::Result<u64> {
    let mut done = 0;
    let mut ends_in_hole = false;
    while done < length {
        let room = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        let count = match input.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let piece = &buffer[..count];
        if let Some(hasher) = hasher.as_deref_mut() {
            hasher.update(piece);
        }
        ends_in_hole = !write(out, done, piece)?;
        done += count as u64;
    }
    if ends_in_hole {
        out.set_len(done)?;
    }
    Ok(done)
}

/// Writes to where nothing was written yet. A piece that is all zeros is left as a hole instead, and
/// the length of the file as it was: then it returns false.
pub(super) fn write(out: &File, offset: u64, piece: &[u8]) -> io::Result<bool> {
    const HOLE_BYTES: usize = 4096;
    let is_written = piece.len() < HOLE_BYTES || piece.iter().any(|&byte| byte != 0);
    if is_written {
        out.write_all_at(piece, offset)?;
    }
    Ok(is_written)
}
