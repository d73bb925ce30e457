//! From a layer dir to its tar: a walk in the order of bytes, parents before children.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use rustix::io::Errno;
use tar::EntryType;

use super::header::{self, BLOCK, Member};
use super::node::{Kind, Ladder, Node, link_target, names, open_directory, open_file, reopen, shown};
use super::record::Records;
use super::xattr::{self, Xattrs};
use super::{Packed, whiteout};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{Hasher, TreeDigest};

/// See [`super::pack`].
pub fn pack(dir: BorrowedFd<'_>, out: &mut dyn Write) -> Result<Packed> {
    let root = reopen(dir).context(|| "cannot open a layer dir")?;
    let records = Records::of(root.as_fd()).context(|| "cannot read a layer dir")?;
    let mut levels = vec![names(root.as_fd()).context(|| "cannot read a layer dir")?.into_iter()];
    let mut ladder = Ladder::new(root);
    let mut stream = Stream::new(out);
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
        match entry((ladder.fd(), &name), records, &mut path, &mut linked, &mut stream) {
            Ok(Next::Enter(child)) => {
                levels.push(names(child.as_fd()).context(|| format!("cannot pack `/{}`", shown(&path)))?.into_iter());
                ladder.push(child);
            }
            Ok(Next::Sibling) => path.truncate(parent),
            Err(Fault::Write(diagnostic)) => return Err(diagnostic),
            Err(Fault::Read(error)) => {
                return Err(Diagnostic::error(format!("cannot pack `/{}`", shown(&path))).caused_by(error));
            }
        }
    }
    stream.finish()
}

enum Next {
    Sibling,
    /// The entry was this directory; the path ends with its slash.
    Enter(rustix::fd::OwnedFd),
}

enum Fault {
    Read(io::Error),
    Write(Diagnostic),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Read(errno.into())
    }
}

impl From<Diagnostic> for Fault {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Write(diagnostic)
    }
}

/// Writes what `name` in `dir` is; `path` is its path.
fn entry(
    (dir, name): (BorrowedFd<'_>, &CStr),
    records: Records,
    path: &mut Vec<u8>,
    linked: &mut BTreeMap<(u64, u64), Vec<u8>>,
    stream: &mut Stream<'_>,
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

/// The tar on its way out, gathered into large writes, and the tree digest made of the same
/// members without their times.
struct Stream<'w> {
    out: &'w mut dyn Write,
    buffer: Vec<u8>,
    length: usize,
    headers: Vec<u8>,
    tree: Hasher,
    /// What the tree digest is still to be fed from the buffer, in order.
    pieces: Vec<Piece>,
    entries: u64,
}

enum Piece {
    Description(Vec<u8>),
    Content(Range<usize>),
}

const BUFFER: usize = 1 << 20;

impl<'w> Stream<'w> {
    fn new(out: &'w mut dyn Write) -> Self {
        Self {
            out,
            buffer: vec![0; BUFFER],
            length: 0,
            headers: Vec::new(),
            tree: Hasher::default(),
            pieces: Vec::new(),
            entries: 0,
        }
    }

    fn member(&mut self, member: &Member<'_>) -> Result<()> {
        let mut headers = mem::take(&mut self.headers);
        headers.clear();
        header::write(member, &mut headers);
        let written = self.put(&headers);
        self.headers = headers;
        self.pieces.push(Piece::Description(describe(member)));
        self.entries += 1;
        written
    }

    /// Copies exactly `size_bytes` of `file`, and pads them.
    fn content(&mut self, file: BorrowedFd<'_>, size_bytes: u64) -> Result<(), Fault> {
        let mut left = size_bytes;
        while left > 0 {
            if self.length == BUFFER {
                self.flush()?;
            }
            let room = (BUFFER - self.length).min(usize::try_from(left).unwrap_or(BUFFER));
            let at = self.length;
            let count = loop {
                match rustix::io::read(file, &mut self.buffer[at..at + room]) {
                    Err(Errno::INTR) => {}
                    other => break other?,
                }
            };
            if count == 0 {
                return Err(Fault::Read(io::Error::other("it became shorter while it was read")));
            }
            self.length += count;
            self.pieces.push(Piece::Content(at..at + count));
            left -= count as u64;
        }
        let padding = (BLOCK - (size_bytes % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..padding])?;
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.length == BUFFER {
                self.flush()?;
            }
            let count = bytes.len().min(BUFFER - self.length);
            self.buffer[self.length..self.length + count].copy_from_slice(&bytes[..count]);
            self.length += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Passes the buffer on; the tree digest reads it meanwhile, as hashing is most of the work.
    fn flush(&mut self) -> Result<()> {
        let Self { out, buffer, length, tree, pieces, .. } = self;
        let buffer = &buffer[..*length];
        let mut digest = || {
            for piece in pieces.drain(..) {
                match piece {
                    Piece::Description(description) => tree.update(&description),
                    Piece::Content(range) => tree.update(&buffer[range]),
                }
            }
        };
        let written = if buffer.len() == BUFFER {
            thread::scope(|scope| {
                scope.spawn(digest);
                out.write_all(buffer)
            })
        } else {
            digest();
            out.write_all(buffer)
        };
        *length = 0;
        written.context(|| "cannot write a layer tar")
    }

    fn finish(mut self) -> Result<Packed> {
        self.put(&[0; 2 * BLOCK])?;
        self.flush()?;
        self.out.flush().context(|| "cannot write a layer tar")?;
        Ok(Packed { tree: TreeDigest::new(self.tree.finish()), entries: self.entries })
    }
}

/// A member as the tree digest sees it: everything but the times.
fn describe(member: &Member<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(member.path.len() + member.link.len() + 64);
    let mut field = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    field(member.path);
    field(&[member.entry_type.as_byte()]);
    for number in [member.mode, member.uid, member.gid, member.major, member.minor] {
        field(&number.to_le_bytes());
    }
    field(&member.size_bytes.to_le_bytes());
    field(member.link);
    field(&(member.xattrs.len() as u64).to_le_bytes());
    for (name, value) in member.xattrs {
        field(name.to_bytes());
        field(value);
    }
    out
}
