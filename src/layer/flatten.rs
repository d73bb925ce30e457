//! Many layers as one: a directory that shows what all of them together show. Files are links to those
//! of the layers, so that it takes little room and no time for their content.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::merged::Merged;
use super::node::{Ladder, Node, open_directory, reopen};
use super::{Records, staging, xattr};

/// A directory that is being filled.
struct Level {
    below: Merged,
    names: std::vec::IntoIter<CString>,
    /// What it becomes when all is in it, and its name in the one above.
    ends_as: Option<(CString, Node)>,
}

/// Fills the empty directory `into`, on the filesystem of `layers` (topmost first).
pub fn flatten(layers: &[BorrowedFd<'_>], into: BorrowedFd<'_>) -> Result<(), Errno> {
    let records = layers.first().map_or_else(|| Records::of(into), |top| Records::of(*top))?;
    records.begin(into)?;
    let mut ladder = Ladder::new(reopen(into)?);
    let mut levels = vec![Level::of(Merged::root(layers)?, None)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            let ends_as = level.ends_as.take();
            levels.pop();
            if let Some((name, node)) = ends_as {
                ladder.pop()?;
                rustix::fs::chmodat(ladder.fd(), &name, Mode::from_raw_mode(node.mode), AtFlags::empty())?;
                records.set_mtime_at(ladder.fd(), &name, node.mtime)?;
            }
            continue;
        };
        let Some(found) = level.below.find(&name)? else { continue };
        if found.node.is_directory() {
            let made = make_directory(records, ladder.fd(), found.dir, &name, &found.node)?;
            let next = Level::of(level.below.enter(&name)?, Some((name, found.node)))?;
            ladder.push(made);
            levels.push(next);
            continue;
        }
        staging::link(records, &found, ladder.fd(), &name)?;
    }
    Ok(())
}

impl Level {
    fn of(below: Merged, ends_as: Option<(CString, Node)>) -> Result<Self, Errno> {
        Ok(Self { names: below.children()?.into_iter(), below, ends_as })
    }
}

fn make_directory(
    records: Records,
    into: BorrowedFd<'_>,
    from: BorrowedFd<'_>,
    name: &CStr,
    node: &Node,
) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(into, name, Mode::RWXU)?;
    let made = open_directory(into, name)?;
    records.set_owner(&made, node.uid, node.gid)?;
    xattr::set(&made, &xattr::kept(open_directory(from, name)?)?)?;
    Ok(made)
}
