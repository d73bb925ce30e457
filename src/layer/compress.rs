//! gzip and zstd on several threads, with bytes that depend on nothing but the input and the level.
//!
//! ```text
//! ┌ header: no time, no name, unknown system ┐           ┌ frame of 4 MiB, with its length and checksum ┐
//! ├ deflate of 1 MiB ─ empty stored block (sync) ┤       ├ frame of 4 MiB ┤
//! ├ …                 primed with the 32 KiB before      ├ …              ┤
//! ├ deflate of the rest ─ final block            ┤       └ frame of the rest ┘
//! └ CRC-32, length ┘
//! ```
//!
//! Two traps, both measured with zlib-rs: the bytes of one stream depend on the sizes of the
//! writes, so the blocks are of a fixed size whatever the reader returns; and a compressor that was
//! reset and given a dictionary remembers its past, so every block gets a new one.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

use flate2::{Compress, Crc, FlushCompress};
use zstd_safe::{CCtx, CParameter};

use super::Compression;
use crate::diag::{Context, Diagnostic, Result};

const GZIP_BLOCK_BYTES: usize = 1 << 20;
const DICTIONARY_BYTES: usize = 32 << 10;
/// Frames know nothing of each other: this size costs 1 % of what they compress to.
const ZSTD_BLOCK_BYTES: usize = 4 << 20;

/// Of a thread, on the scale of `nice`.
const LOWEST_PRIORITY: i32 = 19;

/// No flags, no time, no hint about the level, unknown operating system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Who compresses.
#[derive(Clone, Copy, Debug)]
pub struct Workers<'a> {
    threads: usize,
    wanted: Option<&'a AtomicBool>,
}

impl<'a> Workers<'a> {
    /// So many threads.
    pub fn new(threads: usize) -> Self {
        Self { threads, wanted: None }
    }

    /// The same, who leave the processors to everybody else until `wanted` is true.
    pub fn patient(threads: usize, wanted: &'a AtomicBool) -> Self {
        Self { threads: threads.max(1), wanted: Some(wanted) }
    }

    fn are_patient(&self) -> bool {
        self.wanted.is_some_and(|wanted| !wanted.load(Ordering::Relaxed))
    }
}

/// See [`super::compress`].
pub fn compress(
    input: &mut dyn Read,
    output: &mut (dyn Write + Send),
    compression: Compression,
    workers: Workers<'_>,
) -> Result<()> {
    let (name, highest, level) = match compression {
        Compression::None => return io::copy(input, output).map(drop).context(|| "cannot copy a layer"),
        Compression::Gzip { level } => ("gzip", Compression::MAX_GZIP_LEVEL, level),
        Compression::Zstd { level } => ("zstd", Compression::MAX_ZSTD_LEVEL, level),
    };
    if level > highest {
        return Err(Diagnostic::error(format!("there is no {name} level {level}: the highest is {highest}")));
    }
    let compressed = match compression {
        Compression::Zstd { .. } => zstd(input, output, level, workers),
        _ => gzip(input, output, level, workers),
    };
    compressed.context(|| "cannot compress a layer")
}

/// A piece of the input and all that its compressed form depends on.
struct Block {
    content: Vec<u8>,
    /// The end of the block before.
    dictionary: Vec<u8>,
    is_last: bool,
}

fn gzip(input: &mut dyn Read, output: &mut (dyn Write + Send), level: u32, workers: Workers<'_>) -> io::Result<()> {
    output.write_all(&HEADER)?;
    let mut blocks = Blocks::of(input, GZIP_BLOCK_BYTES, Some(Crc::new()));
    press(&mut blocks, output, workers, &|block| deflate(block, level))?;
    let checksum = blocks.checksum.unwrap_or_default();
    output.write_all(&checksum.sum().to_le_bytes())?;
    output.write_all(&checksum.amount().to_le_bytes())
}

fn zstd(input: &mut dyn Read, output: &mut (dyn Write + Send), level: u32, workers: Workers<'_>) -> io::Result<()> {
    press(&mut Blocks::of(input, ZSTD_BLOCK_BYTES, None), output, workers, &|block| frame(block, level))
}

/// Writes what `each` makes of the blocks, in their order.
fn press(
    blocks: &mut Blocks<'_>,
    output: &mut (dyn Write + Send),
    workers: Workers<'_>,
    each: &(dyn Fn(&Block) -> io::Result<Vec<u8>> + Sync),
) -> io::Result<()> {
    if workers.threads < 2 && !workers.are_patient() {
        while let Some(block) = blocks.next()? {
            output.write_all(&each(&block)?)?;
        }
        return Ok(());
    }
    press_in_parallel(blocks, output, workers, each)
}

/// This thread reads and writes; at most two blocks a worker are under way, or one more than there are workers where they
/// are large.
fn press_in_parallel(
    blocks: &mut Blocks<'_>,
    output: &mut (dyn Write + Send),
    workers: Workers<'_>,
    each: &(dyn Fn(&Block) -> io::Result<Vec<u8>> + Sync),
) -> io::Result<()> {
    let in_reserve = if blocks.block_bytes > GZIP_BLOCK_BYTES { 1 } else { workers.threads as u64 };
    let (to_workers, work) = mpsc::channel::<(u64, Block)>();
    let (from_workers, results) = mpsc::channel();
    let work = Mutex::new(work);
    thread::scope(|scope| {
        // Owned here, so that an early return ends the workers' loops.
        let to_workers = to_workers;
        let start = |from_workers: mpsc::Sender<_>, is_patient: bool| {
            let work = &work;
            scope.spawn(move || {
                if is_patient {
                    // Of this thread, for as long as it lives: not everybody may take it back.
                    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
                }
                // A poisoned lock is another worker's panic, which the scope reports.
                while let Ok((number, block)) = work.lock().map_or(Err(mpsc::RecvError), |work| work.recv()) {
                    let pressed = each(&block);
                    // Others take its place. It is decided before what is sent makes this thread look: afterwards
                    // it might have looked already, and wait for one that is gone.
                    let leaves = is_patient && !workers.are_patient();
                    if from_workers.send((number, pressed, block.content)).is_err() || leaves {
                        break;
                    }
                }
            });
        };
        let is_patient = workers.are_patient();
        (0..workers.threads).for_each(|_| start(from_workers.clone(), is_patient));
        // For those who come when somebody waits.
        let mut later = is_patient.then_some(from_workers);
        let mut done: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (mut sent, mut written) = (0, 0);
        let mut is_reading = true;
        while is_reading || written < sent {
            if let Some(from_workers) = later.take_if(|_| !workers.are_patient()) {
                (0..workers.threads).for_each(|_| start(from_workers.clone(), false));
            }
            if is_reading && sent - written < workers.threads as u64 + in_reserve {
                match blocks.next()? {
                    Some(block) => {
                        to_workers.send((sent, block)).map_err(io::Error::other)?;
                        sent += 1;
                    }
                    None => is_reading = false,
                }
                continue;
            }
            let (number, compressed, content) = results.recv().map_err(io::Error::other)?;
            blocks.spare.push(content);
            done.insert(number, compressed?);
            while let Some(compressed) = done.remove(&written) {
                output.write_all(&compressed)?;
                written += 1;
            }
        }
        Ok(())
    })
}

/// Cuts the input into blocks.
struct Blocks<'r> {
    input: &'r mut dyn Read,
    block_bytes: usize,
    /// Read ahead, to know which block is the last.
    next: Option<Vec<u8>>,
    dictionary: Vec<u8>,
    /// Of blocks that are done: memory that one thread takes and another gives back is not soon used again.
    spare: Vec<Vec<u8>>,
    /// Of all that was read, where it is wanted.
    checksum: Option<Crc>,
}

impl<'r> Blocks<'r> {
    fn of(input: &'r mut dyn Read, block_bytes: usize, checksum: Option<Crc>) -> Self {
        Self { input, block_bytes, next: None, dictionary: Vec::new(), spare: Vec::new(), checksum }
    }

    /// At least one block, be it empty; then nothing after the last.
    fn next(&mut self) -> io::Result<Option<Block>> {
        let content = match self.next.take() {
            Some(content) if content.is_empty() => {
                self.next = Some(content);
                return Ok(None);
            }
            Some(content) => content,
            None => self.read()?,
        };
        let after = if content.len() == self.block_bytes { self.read()? } else { Vec::new() };
        let is_last = after.is_empty();
        self.next = Some(after);
        let dictionary = content[content.len().saturating_sub(DICTIONARY_BYTES)..].to_vec();
        let dictionary = std::mem::replace(&mut self.dictionary, dictionary);
        Ok(Some(Block { content, dictionary, is_last }))
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut content = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.block_bytes));
        content.clear();
        Read::take(&mut self.input, self.block_bytes as u64).read_to_end(&mut content)?;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&content);
        }
        Ok(content)
    }
}

fn deflate(block: &Block, level: u32) -> io::Result<Vec<u8>> {
    let mut compress = Compress::new(flate2::Compression::new(level), false);
    if !block.dictionary.is_empty() {
        compress.set_dictionary(&block.dictionary)?;
    }
    let flush = if block.is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    // More than deflate ever needs, so that one call does all: a second one for want of room would
    // flush twice.
    let mut out = Vec::with_capacity(block.content.len() + block.content.len() / 4 + 1024);
    compress.compress_vec(&block.content, &mut out, flush)?;
    assert!(
        compress.total_in() == block.content.len() as u64 && out.len() < out.capacity(),
        "deflate takes the whole block at once"
    );
    Ok(out)
}

/// A frame of its own, by a compressor of its own.
fn frame(block: &Block, level: u32) -> io::Result<Vec<u8>> {
    let wrong = |code| io::Error::other(zstd_safe::get_error_name(code));
    let mut compressor = CCtx::create();
    // Level 0 is zstd's word for its default, and BuildKit's for its fastest.
    let level = i32::try_from(level.max(1)).map_err(io::Error::other)?;
    compressor.set_parameter(CParameter::CompressionLevel(level)).map_err(wrong)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(wrong)?;
    let mut out = Vec::with_capacity(zstd_safe::compress_bound(block.content.len()));
    compressor.compress2(&mut out, &block.content).map_err(wrong)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::hint;

    use super::*;

    #[test]
    fn patience_may_end_at_any_moment() {
        let content: Vec<u8> = (0..64u8).flat_map(|byte| [byte; 64]).collect();
        for turn in 0..2_000 {
            let wanted = AtomicBool::new(false);
            let mut out = Vec::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    (0..turn * 20).for_each(|_| hint::spin_loop());
                    wanted.store(true, Ordering::Relaxed);
                });
                let mut input = content.as_slice();
                let mut blocks = Blocks::of(&mut input, 64, None);
                let each = |block: &Block| Ok(block.content.clone());
                press(&mut blocks, &mut out, Workers::patient(1, &wanted), &each).unwrap();
            });
            assert_eq!(out, content);
        }
    }
}
