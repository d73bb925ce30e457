//! The extended attributes that are part of a file's content: `user.*` and `security.capability`.

use std::os::fd::BorrowedFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::layer::xattr::is_kept;

/// Those of an open file or directory, sorted by name; none where there is no such thing.
pub fn of_file(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match grow(|buffer| rustix::fs::flistxattr(file, spare_capacity(buffer)).map(drop)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in names.split(|byte| *byte == 0) {
        // What steers an overlay of a user, or ourselves, must not come in from outside and do so here.
        if !is_kept(name) {
            continue;
        }
        match grow(|buffer| rustix::fs::fgetxattr(file, name, spare_capacity(buffer)).map(drop)) {
            Ok(value) => xattrs.push((name.to_vec(), value)),
            // Removed since it was listed; or a capability that root of another user namespace
            // has given, which means nothing in this one.
            Err(Errno::NODATA | Errno::OVERFLOW) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// Calls with a larger buffer until what is asked for fits; the kernel's own limit is 64 KiB.
fn grow(mut call: impl FnMut(&mut Vec<u8>) -> rustix::io::Result<()>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(256);
    loop {
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.capacity() < 1 << 20 => buffer.reserve(buffer.capacity() * 4),
            Err(errno) => return Err(errno),
            Ok(()) => return Ok(buffer),
        }
    }
}
