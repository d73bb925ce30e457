//! The extended attributes that belong to a layer: `user.*` and `security.capability`. What the
//! overlay filesystem keeps for itself, what belongs to the host (SELinux labels), what no layer
//! tar can say portably (ACLs) and our own records do not.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use super::record;
use crate::sys;

/// Name and value, sorted by name.
pub type Xattrs = Vec<(CString, Vec<u8>)>;

pub const CAPABILITY: &CStr = c"security.capability";

/// Whether a layer carries the attribute.
pub fn is_kept(name: &[u8]) -> bool {
    let is_reserved = name.starts_with(b"user.overlay.") || name.starts_with(record::PREFIX);
    name == CAPABILITY.to_bytes() || (name.starts_with(b"user.") && !is_reserved)
}

/// Whether the attribute must not be found in a layer dir. What is neither this nor kept is the
/// host's business.
pub fn is_foreign(name: &[u8]) -> bool {
    name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") || name.starts_with(b"system.posix_acl_")
}

/// Names of the attributes of `name` in `dir`, the object itself even if it is a link.
pub fn list(dir: impl AsFd, name: &CStr) -> Result<Vec<CString>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match list_into(dir.as_fd(), name, &mut buffer) {
            Ok(length) => return Ok(split(&buffer[..length])),
            Err(Errno::RANGE) => buffer.resize(64 << 10, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
}

fn list_into(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    if !IS_MISSING.load(Ordering::Relaxed) {
        let listed = sys::list_attributes_at(dir, name, buffer);
        match listed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
            // What a filter of an older container says of a call that it does not know.
            Err(Errno::NOSYS | Errno::PERM) => IS_MISSING.store(true, Ordering::Relaxed),
            listed => return listed,
        }
    }
    fs::llistxattr(path(dir, name).as_c_str(), buffer)
}

/// The value of an attribute of `name` in `dir`, itself even if it is a link. With an empty name, here and
/// below, it is `dir` itself, which may be open as a place only and be no directory.
pub fn get(dir: impl AsFd, name: &CStr, attribute: &CStr) -> Result<Vec<u8>, Errno> {
    let is_itself = name.is_empty();
    let path = path(dir, name);
    sized(|buffer| match is_itself {
        // The last name is then the kernel's for an open file, which does not end at links.
        true => fs::getxattr(path.as_c_str(), attribute, buffer),
        false => fs::lgetxattr(path.as_c_str(), attribute, buffer),
    })
}

pub fn put(dir: impl AsFd, name: &CStr, attribute: &CStr, value: &[u8]) -> Result<(), Errno> {
    let is_itself = name.is_empty();
    let path = path(dir, name);
    match is_itself {
        true => fs::setxattr(path.as_c_str(), attribute, value, XattrFlags::empty()),
        false => fs::lsetxattr(path.as_c_str(), attribute, value, XattrFlags::empty()),
    }
}

pub fn remove(dir: impl AsFd, name: &CStr, attribute: &CStr) -> Result<(), Errno> {
    let is_itself = name.is_empty();
    let path = path(dir, name);
    match is_itself {
        true => fs::removexattr(path.as_c_str(), attribute),
        false => fs::lremovexattr(path.as_c_str(), attribute),
    }
}

/// The attributes of an open file that a layer carries, as it carries them.
pub fn kept(fd: impl AsFd) -> Result<Xattrs, Errno> {
    let mut buffer = [0; 512];
    let names = match fs::flistxattr(&fd, &mut buffer) {
        // By far the most common.
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => split(&buffer[..length]),
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; 64 << 10];
            let length = fs::flistxattr(&fd, &mut buffer[..])?;
            split(&buffer[..length])
        }
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in names.into_iter().filter(|name| is_kept(name.to_bytes())) {
        let value = sized(|buffer| fs::fgetxattr(&fd, &name, buffer))?;
        let value = if name.as_c_str() == CAPABILITY { portable_capability(value) } else { value };
        xattrs.push((name, value));
    }
    Ok(xattrs)
}

/// As [`kept`], of the object `name` in `dir`, given the names that [`list`] found.
pub fn kept_of(dir: impl AsFd, name: &CStr, names: &[CString]) -> Result<Xattrs, Errno> {
    let mut xattrs = Vec::new();
    for attribute in names.iter().filter(|attribute| is_kept(attribute.to_bytes())) {
        let value = get(&dir, name, attribute)?;
        let value = if attribute.as_c_str() == CAPABILITY { portable_capability(value) } else { value };
        xattrs.push((attribute.clone(), value));
    }
    Ok(xattrs)
}

/// Makes the kept attributes of an open file be exactly `xattrs`.
pub fn replace(fd: impl AsFd, xattrs: &[(CString, Vec<u8>)]) -> Result<(), Errno> {
    for (name, _) in kept(&fd)? {
        if !xattrs.iter().any(|(kept, _)| *kept == name) {
            fs::fremovexattr(&fd, &name)?;
        }
    }
    set(fd, xattrs)
}

/// A filesystem without `user.*` attributes takes the file without them, as every other unpacker
/// does; a capability it cannot hold is an error.
pub fn set(fd: impl AsFd, xattrs: &[(CString, Vec<u8>)]) -> Result<(), Errno> {
    for (name, value) in xattrs {
        match fs::fsetxattr(&fd, name, value, XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP) if name.as_c_str() != CAPABILITY => {}
            other => other?,
        }
    }
    Ok(())
}

/// A file capability as a layer holds it. The kernel writes revision 3, which names the user
/// namespace that set it, for whoever is not root of the host; that means nothing on another
/// machine, so it becomes revision 2, which is the same without the last four bytes.
pub fn portable_capability(value: Vec<u8>) -> Vec<u8> {
    match value.first_chunk::<4>().map(|word| u32::from_le_bytes(*word)) {
        Some(magic) if magic >> 24 == 3 && value.len() == 24 => {
            let magic = 2 << 24 | magic & 0x00ff_ffff;
            [&magic.to_le_bytes(), &value[4..20]].concat()
        }
        _ => value,
    }
}

/// The kernel has none of these calls relative to a descriptor before 6.13; this path is the same.
fn path(dir: impl AsFd, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name.to_bytes());
    }
    // `name` is a C string: there is no NUL in it.
    CString::new(path).unwrap_or_default()
}

fn split(list: &[u8]) -> Vec<CString> {
    let mut names: Vec<CString> = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| CString::new(name).ok())
        .collect();
    names.sort_unstable();
    names
}

/// Calls `read` with a small buffer, then with one as large as a value can be.
fn sized(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_loses_its_namespace() {
        let body = [1_u8; 16];
        let third = [&0x0300_0001_u32.to_le_bytes()[..], &body, &1001_u32.to_le_bytes()].concat();
        let second = [&0x0200_0001_u32.to_le_bytes()[..], &body].concat();
        assert_eq!(portable_capability(third), second);
        assert_eq!(portable_capability(second.clone()), second);
        assert_eq!(portable_capability(vec![3]), [3]);
    }
}
