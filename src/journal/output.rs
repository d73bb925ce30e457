//! What a step wrote, as bytes, and when: each line has the time of its first byte.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};

use crate::diag::Result;
use crate::store::BuildDir;

/// No step's output is kept beyond this: a step that never stops writing must not fill the disk.
const MAX_BYTES: u64 = 1 << 30;

/// The output of one step in the making.
pub struct Output {
    bytes: File,
    times: File,
    size_bytes: u64,
    /// The last byte was a line feed, or there is none.
    is_at_line_start: bool,
    last_ms: Option<u64>,
}

impl Output {
    pub fn create(dir: &BuildDir, number: usize) -> Result<Self> {
        let (bytes, times) = (dir.create(&format!("{number}.log"))?, dir.create(&format!("{number}.times"))?);
        Ok(Self { bytes, times, size_bytes: 0, is_at_line_start: true, last_ms: None })
    }

    /// Appends what came `at_ms` after the step began.
    pub fn write(&mut self, bytes: &[u8], at_ms: u64) -> io::Result<()> {
        let room = usize::try_from(MAX_BYTES - self.size_bytes).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        // All lines that begin here begin at one time: the first of them stands for all.
        let line_start = match self.is_at_line_start {
            true => Some(0),
            false => bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1),
        };
        if let Some(start) = line_start.filter(|start| *start < bytes.len())
            && self.last_ms != Some(at_ms)
        {
            self.last_ms = Some(at_ms);
            // Before the bytes: a time without its bytes says nothing, bytes without theirs something wrong.
            self.times.write_all(format!("{} {at_ms}\n", self.size_bytes + start as u64).as_bytes())?;
        }
        if let Some(last) = bytes.last() {
            self.is_at_line_start = *last == b'\n';
        }
        self.bytes.write_all(bytes)?;
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }
}

/// The output of one step as lines with their times.
pub struct Lines {
    bytes: BufReader<File>,
    times: io::Lines<BufReader<File>>,
    offset: u64,
    at_ms: u64,
    /// When the lines from an offset on began.
    next: Option<(u64, u64)>,
}

impl Lines {
    /// `None` when the step wrote nothing.
    pub fn open(dir: &BuildDir, number: usize) -> Result<Option<Self>> {
        let (Some(bytes), Some(times)) = (dir.open(&format!("{number}.log"))?, dir.open(&format!("{number}.times"))?)
        else {
            return Ok(None);
        };
        let mut times = BufReader::new(times).lines();
        let next = parse(times.next());
        Ok(Some(Self { bytes: BufReader::with_capacity(64 << 10, bytes), times, offset: 0, at_ms: 0, next }))
    }

    /// Appends the next line to `line`, with its line feed if it has one, and gives its time in
    /// milliseconds since the step began; `None` at the end.
    pub fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<u64>> {
        while let Some((offset, at_ms)) = self.next.filter(|(offset, _)| *offset <= self.offset) {
            self.at_ms = at_ms;
            self.next = parse(self.times.next()).filter(|(next, _)| *next > offset);
        }
        let count = self.bytes.read_until(b'\n', line)?;
        self.offset += count as u64;
        Ok((count > 0).then_some(self.at_ms))
    }
}

fn parse(line: Option<io::Result<String>>) -> Option<(u64, u64)> {
    let line = line?.ok()?;
    let (offset, at_ms) = line.split_once(' ')?;
    Some((offset.parse().ok()?, at_ms.parse().ok()?))
}
