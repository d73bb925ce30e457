//! From a layer dir to its tar: a walk in the order of bytes, parents before children.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use tar::EntryType;

use super::header::Member;
use super::node::{Kind, Ladder, Node, link_target, names, open_directory, open_file, reopen, shown};
use super::record::Records;
use super::stream::{Fault, Stream};
use super::xattr::{self, Xattrs};
use super::{Contents, whiteout};
use crate::diag::{Context, Diagnostic, Result};

/// Writes the entries of a layer dir.
pub fn pack(dir: BorrowedFd<'_>, contents: Option<&dyn Contents>, stream: &mut Stream<'_, '_>) -> Result<()> {
    let root = reopen(dir).context(|| "cannot open a layer dir")?;
    let records = Records::of(root.as_fd()).context(|| "cannot read a layer dir")?;
    let mut levels = vec![names(root.as_fd()).context(|| "cannot read a layer dir")?.into_iter()];
    let mut ladder = Ladder::new(root);
    let mut linked = BTreeMap::new();
    // Ends with a slash, unless it is empty.
    let mut path = Vec::new();
    while let Some(level) = levels.last_mut() {
        let Some((name, _)) = level.next() else {
            levels.pop();
            ladder.pop().context(|| format!("cannot pack `/{}`", shown(&path)))?;
            path.truncate(path.len().saturating_sub(1));
            path.truncate(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
            continue;
        };
        let parent = path.len();
        path.extend_from_slice(name.to_bytes());
        let packed = match instead(contents, &path, stream) {
            Ok(false) => entry((ladder.fd(), &name), records, &mut path, &mut linked, stream),
            Ok(true) => Ok(Next::Sibling),
            Err(fault) => Err(fault),
        };
        match packed {
            Ok(Next::Enter(child)) => {
                levels.push(names(child.as_fd()).context(|| format!("cannot pack `/{}`", shown(&path)))?.into_iter());
                ladder.push(child);
            }
            Ok(Next::Sibling) => path.truncate(parent),
            Err(fault) => return Err(told(fault, &path)),
        }
    }
    Ok(())
}

/// Writes what the file at `path` stands for, if it does.
fn instead(contents: Option<&dyn Contents>, path: &[u8], stream: &mut Stream<'_, '_>) -> Result<bool, Fault> {
    let Some(contents) = contents else { return Ok(false) };
    let is_written = contents.instead(path, &mut |member, content| {
        stream.member(member)?;
        let Some(content) = content else { return Ok(()) };
        stream.content_from(content, member.size_bytes, member.path).map_err(|fault| match fault {
            Fault::Short => contents.is_another(member.path),
            fault => told(fault, member.path),
        })
    });
    Ok(is_written?)
}

fn told(fault: Fault, path: &[u8]) -> Diagnostic {
    let path = shown(path);
    match fault {
        Fault::Told(diagnostic) => diagnostic,
        Fault::Short => Diagnostic::error(format!("cannot pack `/{path}`: it became shorter while it was read")),
        Fault::Read(error) => Diagnostic::error(format!("cannot pack `/{path}`")).caused_by(error),
    }
}

enum Next {
    Sibling,
    /// The entry was this directory; the path ends with its slash.
    Enter(rustix::fd::OwnedFd),
}

/// Writes what `name` in `dir` is; `path` is its path.
fn entry(
    (dir, name): (BorrowedFd<'_>, &CStr),
    records: Records,
    path: &mut Vec<u8>,
    linked: &mut BTreeMap<(u64, u64), Vec<u8>>,
    stream: &mut Stream<'_, '_>,
) -> Result<Next, Fault> {
    let Some(node) = records.node_at(dir, name)? else { return Err(Errno::NOENT.into()) };
    // Whiteouts are links of each other; that says nothing.
    if node.is_whiteout() {
        let at = path.len() - name.to_bytes().len();
        path.splice(at..at, whiteout::PREFIX.iter().copied());
        stream.member(&Member { mode: 0, uid: 0, gid: 0, mtime: 0, ..member(path, EntryType::Regular, &node, &[]) })?;
        return Ok(Next::Sibling);
    }
    if node.is_directory() {
        path.push(b'/');
        let child = open_directory(dir, name)?;
        let xattrs = xattr::kept(&child)?;
        stream.member(&member(path, EntryType::Directory, &node, &xattrs))?;
        return Ok(Next::Enter(child));
    }
    let file = if node.kind == Kind::File { Some(open_file(dir, name)?) } else { None };
    let xattrs = file.as_ref().map_or_else(|| Ok(Xattrs::new()), xattr::kept)?;
    if node.links > 1 {
        if let Some(first) = linked.get(&node.identity) {
            // Unpackers set owner, mode and attributes again on the link, and a change of owner
            // takes a capability away: so the link has to say all of it once more.
            stream.member(&Member { size_bytes: 0, link: first, ..member(path, EntryType::Link, &node, &xattrs) })?;
            return Ok(Next::Sibling);
        }
        linked.insert(node.identity, path.clone());
    }
    match node.kind {
        Kind::File => {
            stream.member(&member(path, EntryType::Regular, &node, &xattrs))?;
            if let Some(file) = file {
                stream.content(file.as_fd(), node.size_bytes)?;
            }
        }
        Kind::Symlink => {
            let target = link_target(dir, name)?;
            stream.member(&Member { link: &target, ..member(path, EntryType::Symlink, &node, &[]) })?;
        }
        Kind::Fifo => stream.member(&member(path, EntryType::Fifo, &node, &[]))?,
        Kind::CharDevice => stream.member(&member(path, EntryType::Char, &node, &[]))?,
        Kind::BlockDevice => stream.member(&member(path, EntryType::Block, &node, &[]))?,
        Kind::Socket => return Err(Fault::Read(io::Error::other("a layer cannot hold a socket"))),
        Kind::Directory | Kind::Whiteout => unreachable!("handled above"),
    }
    Ok(Next::Sibling)
}

fn member<'a>(path: &'a [u8], entry_type: EntryType, node: &Node, xattrs: &'a [(CString, Vec<u8>)]) -> Member<'a> {
    Member {
        path,
        entry_type,
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        size_bytes: node.size_bytes,
        mtime: node.mtime.0,
        link: &[],
        major: rustix::fs::major(node.rdev),
        minor: rustix::fs::minor(node.rdev),
        xattrs,
    }
}
