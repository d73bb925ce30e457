//! The tar of a layer on its way out.
//!
//! ```text
//! pack ── buffer ──▶ tree digest (where it is asked for) ──▶ writer ─┐
//!   ▲                                                                │
//!   └──────────────────── buffers, when they are empty ──────────────┘
//! ```
//!
//! Hashing is most of the work, so from the second buffer on each of the three has a thread.

use std::io::{self, Write};
use std::mem;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::io::Errno;

use super::header::{self, BLOCK, Member};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::Hasher;

/// What went wrong with an entry.
pub enum Fault {
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

/// Members gathered into large writes, and the tree digest made of the same members without their times.
pub struct Stream<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    /// These two are with the line, once there is one.
    out: Option<&'env mut (dyn Write + Send)>,
    tree: Option<Hasher>,
    has_tree: bool,
    line: Option<Line<'scope>>,
    buffer: Buffer,
    headers: Vec<u8>,
}

/// The threads behind the buffer.
struct Line<'scope> {
    full: Sender<Buffer>,
    empty: Receiver<Buffer>,
    writer: ScopedJoinHandle<'scope, io::Result<()>>,
    hasher: Option<ScopedJoinHandle<'scope, Hasher>>,
}

struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    /// What the tree digest is to be fed, in order.
    pieces: Vec<Piece>,
}

enum Piece {
    Description(Vec<u8>),
    Content(Range<usize>),
}

const BUFFER_BYTES: usize = 512 << 10;
/// One for each thread, and one on its way.
const BUFFERS: usize = 4;

impl<'scope, 'env> Stream<'scope, 'env> {
    /// Its threads are of `scope`. The tree digest is made with `tree`, if there is one.
    pub fn new(scope: &'scope Scope<'scope, 'env>, out: &'env mut (dyn Write + Send), tree: Option<Hasher>) -> Self {
        let has_tree = tree.is_some();
        Self { scope, out: Some(out), tree, has_tree, line: None, buffer: Buffer::new(), headers: Vec::new() }
    }

    pub fn member(&mut self, member: &Member<'_>) -> Result<()> {
        let mut headers = mem::take(&mut self.headers);
        headers.clear();
        header::write(member, &mut headers);
        let written = self.put(&headers);
        self.headers = headers;
        if self.has_tree {
            self.buffer.pieces.push(Piece::Description(describe(member)));
        }
        written
    }

    /// Copies exactly `size_bytes` of `file`, and pads them.
    pub fn content(&mut self, file: BorrowedFd<'_>, size_bytes: u64) -> Result<(), Fault> {
        let mut left = size_bytes;
        while left > 0 {
            if self.buffer.is_full() {
                self.flush()?;
            }
            let at = self.buffer.length;
            let room = (BUFFER_BYTES - at).min(usize::try_from(left).unwrap_or(BUFFER_BYTES));
            let count = loop {
                match rustix::io::read(file, &mut self.buffer.bytes[at..at + room]) {
                    Err(Errno::INTR) => {}
                    other => break other?,
                }
            };
            if count == 0 {
                return Err(Fault::Read(io::Error::other("it became shorter while it was read")));
            }
            self.buffer.length += count;
            if self.has_tree {
                self.buffer.pieces.push(Piece::Content(at..at + count));
            }
            left -= count as u64;
        }
        let padding = (BLOCK - (size_bytes % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..padding])?;
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.is_full() {
                self.flush()?;
            }
            let Buffer { bytes: into, length, .. } = &mut self.buffer;
            let count = bytes.len().min(BUFFER_BYTES - *length);
            into[*length..*length + count].copy_from_slice(&bytes[..count]);
            *length += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Passes the full buffer on and takes another.
    fn flush(&mut self) -> Result<()> {
        if self.line.is_none()
            && let Some(out) = self.out.take()
        {
            self.line = Some(Line::new(self.scope, out, self.tree.take()));
        }
        if let Some(line) = &self.line {
            let next = line.empty.recv();
            // They end before they are told only when nothing can be written.
            if let Ok(next) = next
                && line.full.send(mem::replace(&mut self.buffer, next)).is_ok()
            {
                return Ok(());
            }
        }
        self.end()?;
        Err(Diagnostic::error("cannot write a layer tar"))
    }

    /// Ends the tar and waits until it is written. Returns what the tree digest was made with.
    pub fn finish(mut self) -> Result<Option<Hasher>> {
        self.put(&[0; 2 * BLOCK])?;
        self.end()
    }

    fn end(&mut self) -> Result<Option<Hasher>> {
        let (written, tree) = match self.line.take() {
            Some(line) => {
                let _ = line.full.send(mem::replace(&mut self.buffer, Buffer::new()));
                line.end()
            }
            None => {
                let mut tree = self.tree.take();
                if let Some(tree) = &mut tree {
                    self.buffer.feed(tree);
                }
                let written = self.out.take().map_or(Ok(()), |out| {
                    out.write_all(&self.buffer.bytes[..self.buffer.length])?;
                    out.flush()
                });
                (written, tree)
            }
        };
        written.context(|| "cannot write a layer tar")?;
        Ok(tree)
    }
}

impl<'scope> Line<'scope> {
    fn new<'env>(scope: &'scope Scope<'scope, 'env>, out: &'env mut (dyn Write + Send), tree: Option<Hasher>) -> Self {
        let (full, filled) = channel::<Buffer>();
        let (back, empty) = channel();
        (1..BUFFERS).try_for_each(|_| back.send(Buffer::new())).expect("the other end is here");
        let (filled, hasher) = match tree {
            None => (filled, None),
            Some(mut tree) => {
                let (hashed, to_write) = channel();
                let hasher = scope.spawn(move || {
                    for mut buffer in filled {
                        buffer.feed(&mut tree);
                        if hashed.send(buffer).is_err() {
                            break;
                        }
                    }
                    tree
                });
                (to_write, Some(hasher))
            }
        };
        let writer = scope.spawn(move || {
            for mut buffer in filled {
                out.write_all(&buffer.bytes[..buffer.length])?;
                buffer.length = 0;
                // Nobody takes the last ones.
                let _ = back.send(buffer);
            }
            out.flush()
        });
        Self { full, empty, writer, hasher }
    }

    fn end(self) -> (io::Result<()>, Option<Hasher>) {
        let Self { full, empty, writer, hasher } = self;
        drop(full);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        drop(empty);
        let tree = hasher.map(|hasher| hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        (written, tree)
    }
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER_BYTES], length: 0, pieces: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.length == BUFFER_BYTES
    }

    fn feed(&mut self, tree: &mut Hasher) {
        for piece in self.pieces.drain(..) {
            match piece {
                Piece::Description(description) => tree.update(&description),
                Piece::Content(range) => tree.update(&self.bytes[range]),
            }
        }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    /// Takes so many bytes and no more.
    struct Narrow(usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            if count > 0 { Ok(count) } else { Err(io::Error::other("there is no more room")) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn stream(size_bytes: u64, out: &mut (dyn Write + Send), has_tree: bool) -> Result<bool> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        std::thread::scope(|scope| {
            let mut stream = Stream::new(scope, out, has_tree.then(Hasher::default));
            match stream.content(file.as_fd(), size_bytes) {
                Ok(()) => stream.finish().map(|tree| tree.is_some()),
                Err(Fault::Write(error)) => Err(error),
                Err(Fault::Read(error)) => panic!("{error}"),
            }
        })
    }

    #[test]
    fn all_is_written_or_it_is_said() {
        for has_tree in [false, true] {
            for buffers in [0, 1, 2, 20] {
                for beside in [-1, 0, 1] {
                    let Some(size_bytes) = (buffers * BUFFER_BYTES as u64).checked_add_signed(beside) else { continue };
                    let mut out = Vec::new();
                    assert_eq!(stream(size_bytes, &mut out, has_tree), Ok(has_tree));
                    let padded = size_bytes.next_multiple_of(BLOCK as u64) as usize + 2 * BLOCK;
                    assert_eq!(out.len(), padded);
                    for room in [0, padded / 2, padded - 1] {
                        let error = stream(size_bytes, &mut Narrow(room), has_tree).unwrap_err();
                        assert_eq!(error.cause.as_deref(), Some("there is no more room"));
                    }
                }
            }
        }
    }
}
