//! The tar of a layer on its way out.
//!
//! ```text
//! pack ── buffer ──▶ observer (if there is one) ──▶ writer ─┐
//!   ▲                                                       │
//!   └─────────────── buffers, when they are empty ──────────┘
//! ```
//!
//! Hashing is most of the work of both, so from the second buffer on each has a thread.

use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::io::Errno;

use super::Content;
use super::header::{self, BLOCK, Member};
use super::observer::{Observer, Piece, describe};
use crate::diag::{Context, Diagnostic, Result};

/// What went wrong with an entry.
pub enum Fault {
    Read(io::Error),
    /// A file ended before its size.
    Short,
    /// And all is said.
    Told(Diagnostic),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Read(errno.into())
    }
}

impl From<Diagnostic> for Fault {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Told(diagnostic)
    }
}

/// Members gathered into large writes.
pub struct Stream<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    /// These two are with the line, once there is one.
    out: Option<&'env mut (dyn Write + Send)>,
    observer: Option<&'env mut dyn Observer>,
    has_observer: bool,
    shows_members: bool,
    line: Option<Line<'scope>>,
    buffer: Buffer,
    headers: Vec<u8>,
}

/// The threads behind the buffer.
struct Line<'scope> {
    full: Sender<Buffer>,
    empty: Receiver<Buffer>,
    writer: ScopedJoinHandle<'scope, io::Result<()>>,
}

struct Buffer {
    /// No more of it than was filled once: a page that nobody touches costs nothing, and most layers are small.
    bytes: Vec<u8>,
    length: usize,
    /// For the observer.
    pieces: Vec<Piece>,
}

const BUFFER_BYTES: usize = 512 << 10;
/// One for each thread, and one on its way.
const BUFFERS: usize = 4;

impl<'scope, 'env> Stream<'scope, 'env> {
    /// Its threads are of `scope`, at whose end the observer has seen all.
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        out: &'env mut (dyn Write + Send),
        observer: Option<&'env mut dyn Observer>,
    ) -> Self {
        Self {
            scope,
            out: Some(out),
            has_observer: observer.is_some(),
            shows_members: observer.as_ref().is_some_and(|observer| observer.sees_members()),
            observer,
            line: None,
            buffer: Buffer::new(),
            headers: Vec::new(),
        }
    }

    pub fn member(&mut self, member: &Member<'_>) -> Result<()> {
        let mut headers = mem::take(&mut self.headers);
        headers.clear();
        header::write(member, &mut headers);
        let written = self.put(&headers);
        self.headers = headers;
        if self.shows_members {
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
                match rustix::io::read(file, self.buffer.room(room)) {
                    Err(Errno::INTR) => {}
                    other => break other?,
                }
            };
            if count == 0 {
                return Err(Fault::Short);
            }
            self.buffer.length += count;
            if self.has_observer {
                self.buffer.pieces.push(Piece::Content(at..at + count));
            }
            left -= count as u64;
        }
        let padding = (BLOCK - (size_bytes % BLOCK as u64) as usize) % BLOCK;
        self.put(&[0; BLOCK][..padding])?;
        Ok(())
    }

    /// The same of a file that comes from elsewhere and lands at `path`.
    pub fn content_from(
        &mut self,
        Content { file, expected }: Content,
        size_bytes: u64,
        path: &[u8],
    ) -> Result<(), Fault> {
        self.buffer.pieces.push(Piece::Begin);
        self.content(file.as_fd(), size_bytes)?;
        self.buffer.pieces.push(Piece::End { path: path.to_vec(), expected });
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.is_full() {
                self.flush()?;
            }
            let count = bytes.len().min(BUFFER_BYTES - self.buffer.length);
            self.buffer.room(count).copy_from_slice(&bytes[..count]);
            self.buffer.length += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Passes the full buffer on and takes another.
    fn flush(&mut self) -> Result<()> {
        if self.line.is_none()
            && let Some(out) = self.out.take()
        {
            self.line = Some(Line::new(self.scope, out, self.observer.take()));
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

    /// Ends the tar and waits until it is written.
    pub fn finish(mut self) -> Result<()> {
        self.put(&[0; 2 * BLOCK])?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let written = match self.line.take() {
            Some(line) => {
                let _ = line.full.send(mem::replace(&mut self.buffer, Buffer::new()));
                line.end()
            }
            None => {
                if let Some(observer) = self.observer.take() {
                    self.buffer.show(observer);
                }
                self.out.take().map_or(Ok(()), |out| {
                    out.write_all(&self.buffer.bytes[..self.buffer.length])?;
                    out.flush()
                })
            }
        };
        written.context(|| "cannot write a layer tar")
    }
}

impl<'scope> Line<'scope> {
    fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        out: &'env mut (dyn Write + Send),
        observer: Option<&'env mut dyn Observer>,
    ) -> Self {
        let (full, mut filled) = channel::<Buffer>();
        let (back, empty) = channel();
        (1..BUFFERS).try_for_each(|_| back.send(Buffer::new())).expect("the other end is here");
        if let Some(observer) = observer {
            let (shown, to_write) = channel();
            let to_show = mem::replace(&mut filled, to_write);
            scope.spawn(move || {
                for mut buffer in to_show {
                    buffer.show(observer);
                    if shown.send(buffer).is_err() {
                        break;
                    }
                }
            });
        }
        let writer = scope.spawn(move || {
            for mut buffer in filled {
                out.write_all(&buffer.bytes[..buffer.length])?;
                buffer.length = 0;
                // Nobody takes the last ones.
                let _ = back.send(buffer);
            }
            out.flush()
        });
        Self { full, empty, writer }
    }

    fn end(self) -> io::Result<()> {
        drop(self.full);
        self.writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(BUFFER_BYTES), length: 0, pieces: Vec::new() }
    }

    /// What follows the filled part, which is left as it is.
    fn room(&mut self, size_bytes: usize) -> &mut [u8] {
        let end = self.length + size_bytes;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.length..end]
    }

    fn is_full(&self) -> bool {
        self.length == BUFFER_BYTES
    }

    fn show(&mut self, observer: &mut dyn Observer) {
        self.pieces.drain(..).for_each(|piece| observer.see(piece, &self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Expected;
    use super::super::observer::Check;
    use super::*;
    use crate::digest::Digest;

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

    /// Streams a file of zeros. What was found of its content, and whether it was seen to be another than expected.
    fn stream(
        size_bytes: u64,
        out: &mut (dyn Write + Send),
        expected: Option<Expected>,
    ) -> Result<(Vec<(usize, Digest)>, bool)> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        let mut check = Check::default();
        std::thread::scope(|scope| {
            let observer = expected.is_some().then_some(&mut check as &mut dyn Observer);
            let mut stream = Stream::new(scope, out, observer);
            let streamed = match expected {
                Some(expected) => stream.content_from(Content { file, expected }, size_bytes, b"path"),
                None => stream.content(file.as_fd(), size_bytes),
            };
            match streamed {
                Ok(()) => stream.finish(),
                Err(Fault::Told(error)) => Err(error),
                Err(Fault::Read(_) | Fault::Short) => panic!("the file can be read"),
            }
        })?;
        Ok(match check.finish() {
            Ok(found) => (found, false),
            Err(path) => {
                assert_eq!(path, b"path");
                (Vec::new(), true)
            }
        })
    }

    #[test]
    fn all_is_written_or_it_is_said() {
        for buffers in [0, 1, 2, 20] {
            for beside in [-1, 0, 1] {
                let Some(size_bytes) = (buffers * BUFFER_BYTES as u64).checked_add_signed(beside) else { continue };
                let right = Digest::of(&vec![0; size_bytes as usize]);
                for (expected, found, is_another) in [
                    (None, vec![], false),
                    (Some(Expected::Digest(right)), vec![], false),
                    (Some(Expected::Digest(Digest::of(b"1"))), vec![], true),
                    (Some(Expected::Anything(7)), vec![(7, right)], false),
                ] {
                    let mut out = Vec::new();
                    assert_eq!(stream(size_bytes, &mut out, expected), Ok((found, is_another)));
                    let padded = size_bytes.next_multiple_of(BLOCK as u64) as usize + 2 * BLOCK;
                    assert_eq!(out.len(), padded);
                    for room in [0, padded / 2, padded - 1] {
                        let error = stream(size_bytes, &mut Narrow(room), expected).unwrap_err();
                        assert_eq!(error.cause.as_deref(), Some("there is no more room"));
                    }
                }
            }
        }
    }
}
