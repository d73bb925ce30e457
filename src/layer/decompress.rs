//! Plain content from whatever compression its first bytes show.
//!
//! Everything streams: memory is bounded whatever the input claims to become, and who reads it
//! decides when it is too much. Content that is cut short is an error, never an early end.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use bzip2::read::MultiBzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::diag::{Context, Result};

/// See [`super::decompress`].
pub fn decompress<'a>(mut input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).context(|| "cannot read compressed content")?;
    let format = Format::of(&head);
    let input = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(input));
    Ok(match format {
        Format::Gzip => Box::new(Gzip { member: Some(GzDecoder::new(input)) }),
        Format::Bzip2 => Box::new(MultiBzDecoder::new(input)),
        Format::Xz => Box::new(XzReader::new_mem_limit(input, true, MAX_XZ_KIB)),
        Format::Zstd => Box::new(Zstd::new(input)?),
        Format::Plain => Box::new(input),
    })
}

/// The most that a compression's first bytes are.
const HEAD_BYTES: usize = 10;
/// Of decoder memory: eight times what `xz -9` asks for.
const MAX_XZ_KIB: u32 = 512 << 10;
/// What `zstd --ultra -22` asks for, and what `zstd -d` gives without being asked: 128 MiB.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

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
    decoder: DCtx<'static>,
    is_in_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(input: Input<R>) -> Result<Self> {
        let mut decoder = DCtx::create();
        decoder
            .set_parameter(DParameter::WindowLogMax(MAX_ZSTD_WINDOW_LOG))
            .map_err(|code| io::Error::other(get_error_name(code)))
            .context(|| "cannot decompress zstd")?;
        Ok(Self { input, decoder, is_in_frame: false })
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let available = self.input.fill_buf()?;
            if available.is_empty() && !self.is_in_frame {
                return Ok(0);
            }
            let is_over = available.is_empty();
            let mut input = InBuffer::around(available);
            let mut output = OutBuffer::around(&mut *buffer);
            let wanted = self
                .decoder
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| io::Error::new(io::ErrorKind::InvalidData, get_error_name(code)))?;
            let (consumed, count) = (input.pos(), output.pos());
            self.input.consume(consumed);
            // Zero where a frame ends, be it one that is skipped.
            self.is_in_frame = wanted != 0;
            if count > 0 {
                return Ok(count);
            }
            if is_over && self.is_in_frame {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
