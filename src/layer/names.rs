//! The names of files in a layer dir.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::node::{Identity, Ladder, names, node_at, open_directory, reopen};

/// See [`super::files_by_name`].
pub fn files(dir: BorrowedFd<'_>) -> Result<Vec<Identity>, Errno> {
    let mut files = Vec::new();
    let top = reopen(dir)?;
    let mut levels = vec![directory(top.as_fd(), &mut files)?];
    let mut ladder = Ladder::new(top);
    while let Some(inner) = levels.last_mut() {
        let Some(name) = inner.pop() else {
            levels.pop();
            ladder.pop()?;
            continue;
        };
        let child = open_directory(ladder.fd(), &name)?;
        levels.push(directory(child.as_fd(), &mut files)?);
        ladder.push(child);
    }
    Ok(files)
}

/// Adds the files in one directory, and returns the directories in it.
fn directory(dir: BorrowedFd<'_>, files: &mut Vec<Identity>) -> Result<Vec<CString>, Errno> {
    let mut inner = Vec::new();
    for (name, _) in names(dir)? {
        match node_at(dir, &name)? {
            Some(node) if node.is_directory() => inner.push(name),
            Some(node) if !node.is_whiteout() => files.push(node.identity),
            _ => {}
        }
    }
    Ok(inner)
}
