//! A blob on its way out. To check it takes as long as to write it: one thread reads and checks, another writes.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// More does not stay in the processor's cache between reading, hashing and writing.
const PIECE_BYTES: usize = 128 << 10;
/// One with each thread, and one on its way.
const PIECES: usize = 3;

/// A buffer, and how much of it is filled.
type Piece = (Vec<u8>, usize);

/// Copies all of `from`, of which there are `size_bytes`, to `to`. The first error of either ends it; what was read
/// until then has been written.
pub fn pass(mut from: impl Read + Send, size_bytes: u64, to: &mut dyn Write) -> io::Result<()> {
    if size_bytes <= PIECE_BYTES as u64 {
        // To begin a thread takes longer.
        return io::copy(&mut from, to).map(drop);
    }
    let (give, taken) = channel();
    let (give_back, empty) = channel();
    for _ in 0..PIECES {
        // Both ends are here.
        let _ = give_back.send(vec![0; PIECE_BYTES]);
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_all(&mut from, &give, &empty));
        let written = write_all(to, taken, &give_back);
        // Without this a reader whose writer has failed would wait for a buffer.
        drop(give_back);
        let has_read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(has_read)
    })
}

fn read_all(from: &mut dyn Read, give: &Sender<Piece>, empty: &Receiver<Vec<u8>>) -> io::Result<()> {
    // They end before this does only when nothing can be written.
    while let Ok(mut piece) = empty.recv() {
        let count = read(from, &mut piece)?;
        if count == 0 || give.send((piece, count)).is_err() {
            break;
        }
    }
    Ok(())
}

fn write_all(to: &mut dyn Write, taken: Receiver<Piece>, give_back: &Sender<Vec<u8>>) -> io::Result<()> {
    for (piece, count) in taken {
        to.write_all(&piece[..count])?;
        // A reader at its end takes none.
        let _ = give_back.send(piece);
    }
    Ok(())
}

fn read(from: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(usize);

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("full"))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_is_written_or_the_error_is_told() {
        for length in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 9 * PIECE_BYTES + 7] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut out = Vec::new();
            pass(&bytes[..], length as u64, &mut out).unwrap();
            assert!(out == bytes, "{length}");
            if length > 0 {
                let torn = bytes.chain(Torn);
                let error = pass(torn, length as u64, &mut io::sink()).unwrap_err();
                assert_eq!(error.to_string(), "torn", "{length}");
                let error = pass(&bytes[..], length as u64, &mut Failing(length - 1)).unwrap_err();
                assert_eq!(error.to_string(), "full", "{length}");
            }
        }
    }

    struct Torn;

    impl Read for Torn {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("torn"))
        }
    }
}
