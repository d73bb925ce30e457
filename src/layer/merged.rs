//! A stack of layer dirs read as one tree, without mounting it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::node::{Kind, Node, link_target, names, node_at, open_directory, open_file, reopen};
use super::record::Records;
use super::whiteout;
use crate::diag::{Context, Diagnostic, Result};

/// A directory of the merged tree: the directories of the layers that make it up, topmost first.
/// Without any, it is a directory that is not there.
#[derive(Debug, Default)]
pub struct Merged {
    dirs: Vec<(OwnedFd, Records)>,
}

/// An object of the merged tree and the layer's directory that holds it.
#[derive(Debug)]
pub struct Found<'a> {
    pub node: Node,
    pub dir: BorrowedFd<'a>,
}

impl Merged {
    /// The root of `layers`, topmost first.
    pub fn root(layers: &[BorrowedFd<'_>]) -> Result<Self, Errno> {
        let open = |layer: &BorrowedFd<'_>| Ok((reopen(*layer)?, Records::of(*layer)?));
        layers.iter().map(open).collect::<Result<_, _>>().map(|dirs| Self { dirs })
    }

    pub fn is_nothing(&self) -> bool {
        self.dirs.is_empty()
    }

    /// The child called `name`.
    pub fn find(&self, name: &CStr) -> Result<Option<Found<'_>>, Errno> {
        for (dir, records) in &self.dirs {
            if let Some(node) = records.node_at(dir, name)? {
                return Ok((!node.is_whiteout()).then_some(Found { node, dir: dir.as_fd() }));
            }
        }
        Ok(None)
    }

    /// The child directory called `name`; nothing if there is none. Whatever else a layer has of
    /// that name, a whiteout included, hides the directories below it.
    pub fn enter(&self, name: &CStr) -> Result<Self, Errno> {
        let mut dirs = Vec::new();
        for (dir, records) in &self.dirs {
            match open_directory(dir, name) {
                Ok(child) => dirs.push((child, *records)),
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(Self { dirs })
    }

    /// The directory at a path without symbolic links.
    pub fn enter_all<'n>(self, path: impl IntoIterator<Item = &'n CStr>) -> Result<Self, Errno> {
        path.into_iter().try_fold(self, |dir, name| if dir.is_nothing() { Ok(dir) } else { dir.enter(name) })
    }

    /// The names of all children, sorted by bytes.
    pub fn children(&self) -> Result<Vec<CString>, Errno> {
        let mut seen: BTreeMap<CString, bool> = BTreeMap::new();
        for (dir, _) in &self.dirs {
            let may_be_files = whiteout::may_be_files(dir)?;
            for (name, file_type) in names(dir.as_fd())? {
                if seen.contains_key(&name) {
                    continue;
                }
                let is_there = match file_type {
                    FileType::RegularFile if may_be_files => {
                        node_at(dir, &name)?.is_some_and(|node| !node.is_whiteout())
                    }
                    FileType::CharacterDevice | FileType::Unknown => {
                        node_at(dir, &name)?.is_some_and(|node| !node.is_whiteout())
                    }
                    _ => true,
                };
                seen.insert(name, is_there);
            }
        }
        Ok(seen.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect())
    }
}

/// Where a path led in the merged tree.
#[derive(Debug)]
pub struct Location {
    pub node: Node,
    /// The layer's directory that holds the object; for the root, the root of the topmost layer.
    pub dir: OwnedFd,
    /// Its name there; `.` for the root.
    pub name: CString,
}

/// Follows `path` through the merged tree of `layers` (topmost first), symbolic links included,
/// the last too; links and `..` stay inside. `None` if it leads nowhere.
pub fn lookup(layers: &[BorrowedFd<'_>], path: &[u8]) -> Result<Option<Location>> {
    locate(layers, path).context(|| format!("cannot look up `{}` in the layers", super::node::shown(path)))
}

/// As the kernel.
const MAX_LINKS: usize = 40;

fn locate(layers: &[BorrowedFd<'_>], path: &[u8]) -> Result<Option<Location>, Errno> {
    let root = |location: Option<Location>| -> Result<Option<Location>, Errno> {
        match (location, layers.first()) {
            (Some(location), _) => Ok(Some(location)),
            (None, Some(layer)) => {
                let dir = reopen(*layer)?;
                let node = super::node::node_of(&dir)?;
                Ok(Some(Location { node, dir, name: c".".to_owned() }))
            }
            (None, None) => Ok(None),
        }
    };
    let mut todo: Vec<Cow<'_, [u8]>> = components(path).map(Cow::Borrowed).collect();
    let mut stack = vec![Merged::root(layers)?];
    let mut locations: Vec<Location> = Vec::new();
    let mut links = 0;
    while let Some(component) = todo.pop() {
        if &*component == b".." {
            locations.pop();
            stack.truncate(locations.len() + 1);
            continue;
        }
        let Ok(name) = CString::new(component.into_owned()) else { return Ok(None) };
        // The root is never popped.
        let Some(dir) = stack.get(locations.len()) else { return Ok(None) };
        let Some(found) = dir.find(&name)? else { return Ok(None) };
        match found.node.kind {
            Kind::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = link_target(found.dir, &name)?;
                if target.starts_with(b"/") {
                    locations.clear();
                    stack.truncate(1);
                }
                todo.extend(components(&target).map(|component| Cow::Owned(component.to_vec())));
            }
            kind => {
                let location = Location { node: found.node, dir: reopen(found.dir)?, name };
                if kind == Kind::Directory {
                    let child = dir.enter(&location.name)?;
                    stack.push(child);
                } else if !todo.is_empty() {
                    return Ok(None);
                }
                locations.push(location);
            }
        }
    }
    root(locations.pop())
}

/// The components of a path, last first, to be taken from the end of a stack.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').rev().filter(|component| !component.is_empty() && *component != b".")
}

/// Reads a regular file of the merged tree, as `/etc/passwd` is read for names. `None` if the path
/// leads to no regular file; more than `limit_bytes` is an error.
pub fn read_file(layers: &[BorrowedFd<'_>], path: &[u8], limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let Some(location) = lookup(layers, path)?.filter(|location| location.node.kind == Kind::File) else {
        return Ok(None);
    };
    let doing = || format!("cannot read `{}` of the layers", super::node::shown(path));
    if location.node.size_bytes > limit_bytes {
        return Err(Diagnostic::error(doing()).caused_by(format!("it is larger than {limit_bytes} bytes")));
    }
    let file = open_file(&location.dir, &location.name).context(doing)?;
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), limit_bytes), &mut content)
        .context(doing)?;
    Ok(Some(content))
}
