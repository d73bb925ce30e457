//! Reading the members of a tar: v7, ustar, pax and GNU, with long names and sparse files.
//!
//! ```text
//! [header of `x`, `L` or `K`] [records, a long name] … [header] [data, padded to 512] … [zeros]
//! ```
//!
//! The `tar` crate splits pax records at newlines, of which a binary extended attribute may be full,
//! and keeps a long name of any length in memory; both matter for an archive of a stranger.

use std::io::{self, Read};

const BLOCK: usize = 512;
/// What a pax header or a long name may take.
const MAX_SPECIAL_BYTES: u64 = 1 << 20;
/// How many pieces a sparse file may have.
const MAX_PIECES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// As in the archive; nothing is known about it.
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: i64,
    pub gid: i64,
    pub mtime: (i64, u32),
    /// All that a pax header gives, in its order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `pieces` are offset and length of what the archive holds of the file, ascending; the rest is
    /// zeros.
    File {
        size_bytes: u64,
        pieces: Vec<(u64, u64)>,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    Hardlink {
        target: Vec<u8>,
    },
    Fifo,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
}

/// The members of a tar in their order; their data is read from here too.
pub(super) struct Members<R> {
    input: R,
    /// What is left of the current member's data, and of the zeros behind it.
    data_bytes: u64,
    padding_bytes: u64,
}

/// What the headers before a member say about it.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    uid: Option<i64>,
    gid: Option<i64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// What GNU tar says about a sparse file in a pax header; three versions of it.
#[derive(Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size_bytes: Option<u64>,
    numbers: Vec<u64>,
    /// Version 1.0: the pieces stand before the data.
    is_in_data: bool,
}

impl<R: Read> Members<R> {
    pub fn new(input: R) -> Self {
        Self { input, data_bytes: 0, padding_bytes: 0 }
    }

    /// The next member; what was not read of the one before is skipped.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header[124..136]).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| damaged("a size"))?;
            match header[156] {
                b'x' | b'X' => extension.read_records(&self.special(size)?)?,
                b'L' => extension.name = Some(until_nul(&self.special(size)?).to_vec()),
                b'K' => extension.target = Some(until_nul(&self.special(size)?).to_vec()),
                // Records for all that follows, and the label of a volume.
                b'g' | b'V' => self.set_data(size)?,
                _ => return self.member(&header, size, extension).map(Some),
            }
        }
    }

    /// Reads from the data of the current member.
    pub fn data(&mut self) -> impl Read + '_ {
        Data(self)
    }

    fn member(&mut self, header: &[u8; BLOCK], size: u64, extension: Extension) -> io::Result<Member> {
        let name = extension.sparse.name.clone().or(extension.name);
        let name = name.unwrap_or_else(|| header_name(header));
        let target = extension.target.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let field = |range: std::ops::Range<usize>, what| number(&header[range]).ok_or_else(|| damaged(what));
        let device = || -> io::Result<(u32, u32)> {
            let part = |range| field(range, "a device").and_then(|n| u32::try_from(n).map_err(|_| damaged("a device")));
            Ok((part(329..337)?, part(337..345)?))
        };
        let stored = extension.size_bytes.unwrap_or(size);
        let kind = match header[156] {
            // Before there was a type for directories, a name said so.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => {
                self.set_data(stored)?;
                self.file(stored, extension.sparse)?
            }
            b'S' => self.old_sparse_file(header, stored)?,
            b'1' => Kind::Hardlink { target },
            b'2' => Kind::Symlink { target },
            b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
            b'5' => Kind::Directory,
            // A directory with the list of its names, as GNU tar makes them for increments.
            b'D' => {
                self.set_data(stored)?;
                Kind::Directory
            }
            b'6' => Kind::Fifo,
            other => return Err(damaged(&format!("a member of the unknown type {:?}", char::from(other)))),
        };
        Ok(Member {
            name,
            kind,
            mode: (field(100..108, "a mode")? & 0o7777) as u32,
            uid: extension.uid.map_or_else(|| field(108..116, "an owner"), Ok)?,
            gid: extension.gid.map_or_else(|| field(116..124, "a group"), Ok)?,
            mtime: extension.mtime.map_or_else(|| field(136..148, "a time").map(|seconds| (seconds, 0)), Ok)?,
            xattrs: extension.xattrs,
        })
    }

    /// A file whose data is next, unless a list of pieces stands before it.
    fn file(&mut self, stored: u64, sparse: Sparse) -> io::Result<Kind> {
        let Some(size_bytes) = sparse.size_bytes else {
            return Ok(Kind::File { size_bytes: stored, pieces: vec![(0, stored)] });
        };
        let numbers = if sparse.is_in_data { self.sparse_numbers()? } else { sparse.numbers };
        let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        self.sparse_file(size_bytes, pieces)
    }

    /// Version 1.0: decimal numbers, a line each, the first being the count of pairs that follow;
    /// padded to whole blocks.
    fn sparse_numbers(&mut self) -> io::Result<Vec<u64>> {
        let mut numbers: Vec<u64> = Vec::new();
        let (mut count, mut line): (Option<usize>, Vec<u8>) = (None, Vec::new());
        loop {
            let mut block = [0; BLOCK];
            self.data().read_exact(&mut block)?;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(damaged("a sparse file"));
                    }
                    continue;
                }
                let value = decimal(&line).ok_or_else(|| damaged("a sparse file"))?;
                line.clear();
                match count {
                    None => {
                        let pairs = usize::try_from(value).ok().filter(|&pairs| pairs <= MAX_PIECES);
                        count = Some(2 * pairs.ok_or_else(|| damaged("a sparse file"))?);
                    }
                    Some(_) => numbers.push(value),
                }
                if count == Some(numbers.len()) {
                    return Ok(numbers);
                }
            }
        }
    }

    /// The form before pax: four pieces in the header, more in blocks between it and the data.
    fn old_sparse_file(&mut self, header: &[u8; BLOCK], stored: u64) -> io::Result<Kind> {
        let size = number(&header[483..495]).and_then(|size| u64::try_from(size).ok());
        let size_bytes = size.ok_or_else(|| damaged("a sparse file"))?;
        let mut pieces = Vec::new();
        let mut add = |table: &[u8]| -> io::Result<()> {
            for pair in table.chunks_exact(24).filter(|pair| pair[0] != 0) {
                let part = |bytes| number(bytes).and_then(|n| u64::try_from(n).ok());
                let (offset, length) = (part(&pair[..12]), part(&pair[12..]));
                pieces.push(offset.zip(length).ok_or_else(|| damaged("a sparse file"))?);
            }
            if pieces.len() > MAX_PIECES { Err(damaged("a sparse file")) } else { Ok(()) }
        };
        add(&header[386..482])?;
        let mut is_extended = header[482] != 0;
        while is_extended {
            let mut block = [0; BLOCK];
            self.input.read_exact(&mut block)?;
            add(&block[..504])?;
            is_extended = block[504] != 0;
        }
        self.set_data(stored)?;
        self.sparse_file(size_bytes, pieces)
    }

    fn sparse_file(&self, size_bytes: u64, pieces: Vec<(u64, u64)>) -> io::Result<Kind> {
        let mut end = 0;
        let mut sum: u64 = 0;
        for &(offset, length) in &pieces {
            let piece_end = offset.checked_add(length).filter(|&piece_end| offset >= end && piece_end <= size_bytes);
            end = piece_end.ok_or_else(|| damaged("a sparse file"))?;
            sum += length;
        }
        if sum == self.data_bytes { Ok(Kind::File { size_bytes, pieces }) } else { Err(damaged("a sparse file")) }
    }

    /// The next header with a good checksum; `None` at the end of the archive.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                // Some writers leave out the zeros at the end.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let with_blank = |i: usize| if (148..156).contains(&i) { b' ' } else { block[i] };
        let unsigned: i64 = (0..BLOCK).map(|i| i64::from(with_blank(i))).sum();
        // Old Sun tars summed signed characters.
        let signed: i64 = (0..BLOCK).map(|i| i64::from(with_blank(i).cast_signed())).sum();
        match number(&block[148..156]) {
            Some(sum) if sum == unsigned || sum == signed => Ok(Some(block)),
            _ => Err(damaged("a header")),
        }
    }

    fn set_data(&mut self, size_bytes: u64) -> io::Result<()> {
        if size_bytes > i64::MAX as u64 {
            return Err(damaged("a size"));
        }
        self.data_bytes = size_bytes;
        self.padding_bytes = size_bytes.next_multiple_of(BLOCK as u64) - size_bytes;
        Ok(())
    }

    fn special(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_SPECIAL_BYTES {
            return Err(damaged("an extended header of more than 1 MiB"));
        }
        self.set_data(size)?;
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self) -> io::Result<()> {
        io::copy(&mut self.data(), &mut io::sink())?;
        let padding = io::copy(&mut (&mut self.input).take(self.padding_bytes), &mut io::sink())?;
        if padding < self.padding_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.padding_bytes = 0;
        Ok(())
    }
}

struct Data<'a, R>(&'a mut Members<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.0.data_bytes).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let count = self.0.input.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.data_bytes -= count as u64;
        Ok(count)
    }
}

impl Extension {
    /// `LENGTH KEY=VALUE\n` each, the length being that of the whole record; values may hold
    /// anything.
    fn read_records(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !until_nul(bytes).is_empty() {
            let record = || -> Option<(&[u8], &[u8], &[u8])> {
                let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
                let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
                let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|&byte| byte == b'=')?;
                Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
            };
            let (key, value, rest) = record().ok_or_else(|| damaged("a pax header"))?;
            self.set(key, value).ok_or_else(|| damaged("a pax header"))?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        // An empty value takes back what an earlier header said.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let signed = || std::str::from_utf8(value).ok()?.parse::<i64>().ok();
        match key {
            b"path" => self.name = text,
            b"linkpath" => self.target = text,
            b"size" => self.size_bytes = Some(decimal(value)?),
            b"uid" => self.uid = Some(signed()?),
            b"gid" => self.gid = Some(signed()?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.major" => self.sparse.is_in_data = value == b"1",
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size_bytes = Some(decimal(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(decimal(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').map(decimal);
                self.sparse.numbers = numbers.collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// The name in a header: ustar splits a long one in two.
fn header_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

/// A number field: octal digits among blanks and NULs, or, with the first bit set, big-endian two's
/// complement. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let first = if field[0] & 0x40 != 0 { i128::from(field[0]) - 256 } else { i128::from(field[0] & 0x7f) };
        let value = field[1..].iter().fold(first, |value, &byte| value << 8 | i128::from(byte));
        return i64::try_from(value).ok();
    }
    let digits = until_nul(field).trim_ascii();
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.is_empty() { Some(0) } else { i64::from_str_radix(digits, 8).ok() }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    if is_digits { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Seconds with a fraction, both sides of the epoch: `-1.25` is 0.75 after -2.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{:0<9.9}", fraction).parse::<u32>().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive has {what} that cannot be read"))
}
