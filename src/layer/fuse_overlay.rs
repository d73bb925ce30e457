//! What `fuse-overlayfs` leaves in an upper dir, in the kernel's words.
//!
//! | it leaves | which is |
//! | --- | --- |
//! | a device 0:0, or a file `.wh.NAME` where it can make none | a whiteout of `NAME` |
//! | a file `.wh..wh..opq`, `user.fuseoverlayfs.opaque`, `trusted.overlay.opaque` | an opaque directory |
//! | other attributes `user.fuseoverlayfs.*` | its own notes |
//!
//! A directory that it copies up has the present time and loses its setgid bit. Where the same names are in it as
//! below, the time is that from below; and nearly nobody takes that bit away.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::merged::Merged;
use super::node::{Ladder, Node, names, node_at, node_of, open_directory, reopen};
use super::{whiteout, xattr};

const NOTES: &[u8] = b"user.fuseoverlayfs.";
const OPAQUE_NOTE: &CStr = c"user.fuseoverlayfs.opaque";
/// A mark that [`super::canonicalize`] reads, and that anybody may set.
const OPAQUE: &CStr = c"user.overlay.opaque";

struct Level {
    below: Merged,
    inner: Vec<CString>,
}

/// See [`super::translate_fuse_overlay`].
pub fn translate(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], since: (i64, u32)) -> Result<(), Errno> {
    let top = reopen(upper)?;
    let below = Merged::root(lowers)?;
    let inner = directory(top.as_fd(), &below, None, since)?;
    let mut levels = vec![Level { below, inner }];
    let mut ladder = Ladder::new(top);
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.inner.pop() else {
            levels.pop();
            ladder.pop()?;
            continue;
        };
        let child = open_directory(ladder.fd(), &name)?;
        let was = level.below.find(&name)?.map(|found| found.node).filter(Node::is_directory);
        let below = level.below.enter(&name)?;
        let inner = directory(child.as_fd(), &below, was, since)?;
        levels.push(Level { below, inner });
        ladder.push(child);
    }
    Ok(())
}

/// Does one directory, which `was` below, and returns those in it. What was copied up, was so after `since`.
fn directory(dir: BorrowedFd<'_>, below: &Merged, was: Option<Node>, since: (i64, u32)) -> Result<Vec<CString>, Errno> {
    let own = node_of(dir)?;
    let mut mtime = own.mtime;
    let mut is_opaque = xattr::list(dir, c".")?.iter().any(|name| name.as_c_str() == OPAQUE_NOTE)
        && xattr::get(dir, c".", OPAQUE_NOTE)? == b"y";
    let mut inner = Vec::new();
    let mut has_same_names = true;
    for (name, _) in names(dir)? {
        let Some(node) = node_at(dir, &name)? else { continue };
        let hidden = name.to_bytes().strip_prefix(whiteout::PREFIX);
        match hidden {
            // It makes both, the second as the whiteout of the first's name.
            Some(b".wh..opq" | b".opq") => {
                is_opaque = true;
                fs::unlinkat(dir, &name, AtFlags::empty())?;
            }
            Some(hidden) if node.is_file() && !hidden.is_empty() => {
                let hidden = CString::new(hidden).map_err(|_| Errno::INVAL)?;
                fs::unlinkat(dir, &name, AtFlags::empty())?;
                if node_at(dir, &hidden)?.is_none() {
                    whiteout::create(dir, &hidden)?;
                }
                has_same_names = false;
            }
            _ => {
                strip(dir, &name)?;
                has_same_names &= below.find(&name)?.is_some_and(|was| was.node.kind == node.kind);
                if node.is_directory() {
                    inner.push(name);
                }
            }
        }
    }
    strip(dir, c".")?;
    if is_opaque {
        xattr::put(dir, c".", OPAQUE, b"y")?;
    }
    if let Some(was) = was.filter(|_| !is_opaque) {
        if has_same_names && mtime >= since {
            mtime = was.mtime;
        }
        if own.mode | SET_GROUP == was.mode {
            fs::fchmod(dir, Mode::from_raw_mode(was.mode))?;
        }
    }
    super::node::set_mtime(dir, c".", mtime)?;
    Ok(inner)
}

const SET_GROUP: u32 = 0o2000;

fn strip(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let attributes = xattr::list(dir, name)?;
    attributes
        .iter()
        .filter(|attribute| attribute.to_bytes().starts_with(NOTES))
        .try_for_each(|attribute| xattr::remove(dir, name, attribute))
}
