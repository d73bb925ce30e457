//! Plain content from whatever compression its first bytes show.
//!
//! Everything streams: memory is bounded whatever the input claims to become, and who reads it
//! decides when it is too much. Content that is cut short is an error, never an early end.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use bzip2::read::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::diag::{Context, Result};

/// See [`super::decompress`].
pub fn decompress<'a>(mut input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).context(|| "cannot read compressed content")?;
    let format = Format::of(&head);
    let input = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(input));
    Ok(match format {
        Format::Gzip => Box::new(Whole(Gzip { member: Some(GzDecoder::new(input)) })),
        Format::Bzip2 => Box::new(Whole(MultiBzDecoder::new(input))),
        Format::Xz => Box::new(Whole(XzReader::new_mem_limit(input, true, MAX_XZ_KIB))),
        Format::Zstd => Box::new(Whole(Zstd { input, decoder: FrameDecoder::new(), is_in_frame: false })),
        Format::Plain => Box::new(input),
    })
}

/// The most that a compression's first bytes are.
const HEAD_BYTES: usize = 10;
/// Of decoder memory: eight times what `xz -9` asks for.
const MAX_XZ_KIB: u32 = 512 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Format {
    /// The format of content that starts with these bytes.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            // The digit is the block size; then comes the first block, or the end if it is empty. A
            // tar could start with a file called `BZh9`.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => Self::Bzip2,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame to be skipped, as parallel compressors put first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Says plainly that the input is cut short, which each decoder words in its own way.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early"),
            _ => error,
        })
    }
}

/// The input with the bytes that showed its format put back.
type Input<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// The members of a gzip file, one after the other; zeros may follow the last, as tapes and some
/// registries' tools pad.
struct Gzip<R: Read> {
    member: Option<GzDecoder<Input<R>>>,
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(member) = self.member.take() else { break };
            let mut input = member.into_inner();
            match input.fill_buf()?.first() {
                None => {}
                Some(0x1f) => self.member = Some(GzDecoder::new(input)),
                Some(_) => only_zeros(input)?,
            }
        }
        Ok(0)
    }
}

fn only_zeros(mut input: impl BufRead) -> io::Result<()> {
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the compressed content"));
        }
        let count = bytes.len();
        input.consume(count);
    }
}

/// The frames of a zstd file; those that are to be skipped are.
struct Zstd<R: Read> {
    input: Input<R>,
    decoder: FrameDecoder,
    is_in_frame: bool,
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.is_in_frame || self.begin_frame()? {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder.decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1)).map_err(|error| {
                    match self.input.fill_buf() {
                        Ok([]) => io::ErrorKind::UnexpectedEof.into(),
                        _ => io::Error::new(io::ErrorKind::InvalidData, error),
                    }
                })?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.is_in_frame = false;
            let stored = self.decoder.get_checksum_from_data();
            if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a zstd frame is wrong"));
            }
        }
        Ok(0)
    }
}

impl<R: Read> Zstd<R> {
    /// Enters the next frame; `false` at the end of the input.
    fn begin_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            self.input.read_exact(&mut magic)?;
            if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                let mut length = [0; 4];
                self.input.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut self.input.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            self.decoder
                .reset(magic.as_slice().chain(&mut self.input))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.is_in_frame = true;
            return Ok(true);
        }
    }
}
