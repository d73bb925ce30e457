//! A tree made once more in another place: on another filesystem, with other owners, or with every name a
//! file of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::merged::Found;
use super::node::{Identity, Kind, Ladder, Node, join, names, open_directory, reopen};
use super::record::Records;
use super::{staging, whiteout, xattr};

/// What becomes of files with several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links<'a> {
    /// They stay such.
    Kept,
    /// Each name becomes a file of its own, as an overlay makes it when the file is written to.
    Broken,
    /// So it is with these. What other names stand for is not copied, but gets a further name; to be used without a
    /// shift, on one filesystem.
    BrokenOf(&'a BTreeSet<Identity>),
}

/// How owners move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shift {
    #[default]
    None,
    /// By so much.
    Up(u32),
    /// Back.
    Down(u32),
}

impl Shift {
    /// What undoes it.
    pub fn back(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Up(by) => Self::Down(by),
            Self::Down(by) => Self::Up(by),
        }
    }

    pub fn id(self, id: u32) -> Result<u32, Errno> {
        let moved = match self {
            Self::None => Some(id),
            Self::Up(by) => id.checked_add(by),
            Self::Down(by) => id.checked_sub(by),
        };
        moved.filter(|id| *id != u32::MAX).ok_or(Errno::OVERFLOW)
    }

    pub(super) fn node(self, node: Node) -> Result<Node, Errno> {
        Ok(Node { uid: self.id(node.uid)?, gid: self.id(node.gid)?, ..node })
    }
}

struct Level {
    names: std::vec::IntoIter<CString>,
    /// What it becomes when all is in it, and its name in the one above.
    ends_as: Option<(CString, Node)>,
}

/// Fills the empty directory `into` with what is in `from`, whiteouts too; what no layer holds (sockets) is left
/// out. The root gets its owner and mode as well.
pub fn transfer(from: BorrowedFd<'_>, into: BorrowedFd<'_>, links: Links<'_>, shift: Shift) -> Result<(), Errno> {
    let records = Records::of(from)?;
    records.begin(into)?;
    let (source, target) = (reopen(from)?, reopen(into)?);
    let top = shift.node(super::node::node_of(&source)?)?;
    records.set_owner(&target, top.uid, top.gid)?;
    fs::fchmod(&target, Mode::from_raw_mode(top.mode))?;
    let mut levels = vec![Level { names: list(source.as_fd())?, ends_as: None }];
    let (mut source, mut target) = (Ladder::new(source), Ladder::new(target));
    let mut linked = Linked::new(into);
    let mut path = Vec::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            let ends_as = level.ends_as.take();
            levels.pop();
            if let Some((name, node)) = ends_as {
                source.pop()?;
                target.pop()?;
                path.truncate(path.len() - name.to_bytes().len());
                path.pop();
                finish_directory(records, target.fd(), &name, &node)?;
            }
            continue;
        };
        let Some(node) = records.node_at(source.fd(), &name)? else { continue };
        let node = match node.kind {
            Kind::Whiteout => {
                whiteout::create(target.fd(), &name)?;
                continue;
            }
            _ => shift.node(node)?,
        };
        if node.is_directory() {
            let inside = open_directory(source.fd(), &name)?;
            let made = make_directory(records, target.fd(), &name, &node, &inside)?;
            levels.push(Level { names: list(inside.as_fd())?, ends_as: Some((name.clone(), node)) });
            path = join(&path, name.to_bytes());
            source.push(inside);
            target.push(made);
            continue;
        }
        let found = Found { node, dir: source.fd() };
        match links {
            Links::BrokenOf(files) if !files.contains(&node.identity) => {
                staging::link(records, &found, target.fd(), &name)?;
            }
            Links::Kept if node.links > 1 => {
                linked.duplicate(records, &found, target.fd(), &name, &path)?;
            }
            _ => {
                staging::duplicate(records, &found, target.fd(), &name)?;
            }
        }
    }
    Ok(())
}

fn list(dir: BorrowedFd<'_>) -> Result<std::vec::IntoIter<CString>, Errno> {
    Ok(names(dir)?.into_iter().map(|(name, _)| name).collect::<Vec<_>>().into_iter())
}

/// Makes a directory for its builder alone, until [`finish_directory`]; attributes are those of `like`.
pub(super) fn make_directory(
    records: Records,
    into: BorrowedFd<'_>,
    name: &CStr,
    node: &Node,
    like: &OwnedFd,
) -> Result<OwnedFd, Errno> {
    fs::mkdirat(into, name, Mode::RWXU)?;
    let made = open_directory(into, name)?;
    records.set_owner(&made, node.uid, node.gid)?;
    xattr::set(&made, &xattr::kept(like)?)?;
    Ok(made)
}

pub(super) fn finish_directory(records: Records, into: BorrowedFd<'_>, name: &CStr, node: &Node) -> Result<(), Errno> {
    fs::chmodat(into, name, Mode::from_raw_mode(node.mode), AtFlags::empty())?;
    records.set_mtime_at(into, name, node.mtime)
}

/// Files with several names that were copied, and where to.
pub(super) struct Linked<'a> {
    root: BorrowedFd<'a>,
    places: BTreeMap<Identity, (Vec<u8>, CString)>,
}

impl<'a> Linked<'a> {
    pub(super) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, places: BTreeMap::new() }
    }

    /// Copies the first name of a file and links the others to it. `path` is that of the directory `into`.
    pub(super) fn duplicate(
        &mut self,
        records: Records,
        found: &Found<'_>,
        into: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<bool, Errno> {
        if let Some((first, first_name)) = self.places.get(&found.node.identity) {
            // By single names: a path may be longer than the kernel takes.
            let mut dir = reopen(self.root)?;
            for component in first.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                let component = CString::new(component).map_err(|_| Errno::INVAL)?;
                dir = open_directory(&dir, &component)?;
            }
            match fs::linkat(&dir, first_name, into, name, AtFlags::empty()) {
                Err(Errno::MLINK) => {}
                linked => return linked.map(|()| true),
            }
        }
        let is_made = staging::duplicate(records, found, into, name)?;
        if is_made {
            self.places.insert(found.node.identity, (path.to_vec(), name.to_owned()));
        }
        Ok(is_made)
    }
}
