//! Reads tars member by member: ustar, V7, GNU (long names, sparse files) and pax, whose sparse
//! files come in three versions.
//!
//! The `tar` crate's own reader splits pax records at newlines, so that an attribute's binary value
//! or a file name hides the records after it, `size` included: one archive, two readings. It also
//! reads extension headers of any length into memory. Hence only its header type is used here.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::io::{self, BufReader, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::header::BLOCK;

/// What a member says about itself, long names and pax records taken in.
#[derive(Clone, Debug)]
pub struct Member {
    pub entry_type: EntryType,
    /// As written: may be absolute, hold `..`, or end with slashes.
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Of the file it becomes; more than what is stored if it is sparse.
    pub size_bytes: u64,
    pub mtime: (i64, u32),
    pub major: u32,
    pub minor: u32,
    /// All `SCHILY.xattr.` records.
    pub xattrs: Vec<(CString, Vec<u8>)>,
}

/// A piece of a member's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// So many bytes were put at the start of the buffer.
    Data(usize),
    /// So many zeros that are not stored.
    Hole(u64),
}

/// Extension headers longer than this are refused, as other readers do.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

pub struct Archive<R> {
    input: BufReader<R>,
    /// Bytes stored for the current member, not yet read, without padding.
    stored: u64,
    padding: u64,
    /// Where stored bytes go in the file, in order.
    segments: VecDeque<(u64, u64)>,
    position: u64,
    size_bytes: u64,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Self {
        let input = BufReader::with_capacity(128 << 10, input);
        Self { input, stored: 0, padding: 0, segments: VecDeque::new(), position: 0, size_bytes: 0 }
    }

    /// The next member; what was not read of the last one is skipped. `None` at the end of the
    /// archive, be it marked by zero blocks or by nothing; inside a member the end is an error.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        self.segments.clear();
        self.skip(self.stored + self.padding)?;
        let mut long_path = None;
        let mut long_link = None;
        let mut records = Records::default();
        loop {
            let Some(header) = self.header()? else {
                return match (long_path, long_link, records.is_empty()) {
                    (None, None, true) => Ok(None),
                    _ => Err(invalid("an extension header is followed by no member")),
                };
            };
            let size = unsigned(&header.as_old().size)?;
            match header.entry_type() {
                EntryType::GNULongName => long_path = Some(until_nul(&self.extension(size)?).to_vec()),
                EntryType::GNULongLink => long_link = Some(until_nul(&self.extension(size)?).to_vec()),
                EntryType::XHeader => records.parse(&self.extension(size)?)?,
                // Defaults for all members, as `git archive` writes its commit; nobody applies them.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                _ => return self.member(&header, long_path, long_link, records).map(Some),
            }
        }
    }

    /// The next piece of the current member's content; `None` at its end.
    pub fn next_chunk(&mut self, buffer: &mut [u8]) -> io::Result<Option<Chunk>> {
        while self.segments.front().is_some_and(|(_, length)| *length == 0) {
            self.segments.pop_front();
        }
        let Some((offset, length)) = self.segments.front_mut() else {
            let hole = self.size_bytes - self.position;
            self.position = self.size_bytes;
            return Ok((hole > 0).then_some(Chunk::Hole(hole)));
        };
        if *offset > self.position {
            let hole = *offset - self.position;
            self.position = *offset;
            return Ok(Some(Chunk::Hole(hole)));
        }
        let room = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
        let count = self.input.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(truncated());
        }
        *offset += count as u64;
        *length -= count as u64;
        self.position += count as u64;
        self.stored -= count as u64;
        Ok(Some(Chunk::Data(count)))
    }

    /// The whole content of the current member, of which nothing was read yet, if it is no longer than this and has no
    /// holes.
    pub fn content(&mut self, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let is_whole = match &*self.segments.make_contiguous() {
            [] => self.size_bytes == 0,
            [(0, length)] => *length == self.size_bytes,
            _ => false,
        };
        if !is_whole || self.size_bytes > most_bytes {
            return Ok(None);
        }
        let mut content = vec![0; usize::try_from(self.size_bytes).map_err(|_| truncated())?];
        let mut filled = 0;
        while let Some(chunk) = self.next_chunk(&mut content[filled..])? {
            if let Chunk::Data(count) = chunk {
                filled += count;
            }
        }
        Ok(Some(content))
    }

    /// Reads what is left of the input, past the end of the archive: whoever hashes it needs all.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop)
    }

    fn member(
        &mut self,
        header: &Header,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        records: Records,
    ) -> io::Result<Member> {
        let old = header.as_old();
        let mut member_path = records.path.clone().or(long_path).unwrap_or_else(|| path(header));
        let entry_type = match header.entry_type() {
            // Before POSIX a directory was a file whose name ends with a slash.
            EntryType::Regular if member_path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            other => other,
        };
        // Some writers give the size of what a link points at, with nothing stored.
        let has_content = !matches!(
            entry_type,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo
        );
        let stored = if has_content { records.size.map_or_else(|| unsigned(&old.size), Ok)? } else { 0 };
        self.stored = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        stored.checked_add(self.padding).ok_or_else(|| invalid("a member is larger than can be"))?;
        self.position = 0;
        self.size_bytes = stored;
        self.segments = VecDeque::from([(0, stored)]);
        if entry_type == EntryType::GNUSparse {
            self.gnu_sparse(header)?;
        } else if entry_type == EntryType::Regular && records.is_sparse() {
            self.pax_sparse(&records)?;
            member_path = records.sparse_name.unwrap_or(member_path);
        }
        let ustar = header.as_ustar();
        let device = |ustar: Option<&[u8; 8]>, gnu: Option<&[u8; 8]>| match ustar.or(gnu) {
            Some(field) if matches!(entry_type, EntryType::Char | EntryType::Block) => {
                unsigned(field)?.try_into().map_err(|_| invalid("a device number is too large"))
            }
            _ => Ok(0),
        };
        let gnu = header.as_gnu();
        Ok(Member {
            entry_type: if entry_type == EntryType::GNUSparse { EntryType::Regular } else { entry_type },
            path: member_path,
            link: records.linkpath.or(long_link).unwrap_or_else(|| until_nul(&old.linkname).to_vec()),
            mode: (unsigned(&old.mode)? & 0o7777) as u32,
            uid: records.uid.map_or_else(|| unsigned(&old.uid), Ok)?,
            gid: records.gid.map_or_else(|| unsigned(&old.gid), Ok)?,
            size_bytes: self.size_bytes,
            mtime: records.mtime.map_or_else(|| number(&old.mtime).map(|seconds| (seconds, 0)), Ok)?,
            major: device(ustar.map(|ustar| &ustar.dev_major), gnu.map(|gnu| &gnu.dev_major))?,
            minor: device(ustar.map(|ustar| &ustar.dev_minor), gnu.map(|gnu| &gnu.dev_minor))?,
            xattrs: records.xattrs.into_iter().collect(),
        })
    }

    /// The next header that is not the end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let field = 148..156;
        let counted = || bytes.iter().enumerate().map(|(at, byte)| if field.contains(&at) { b' ' } else { *byte });
        let expected = number(&bytes[field.clone()])?;
        // Some old writers summed signed characters.
        let unsigned: i64 = counted().map(i64::from).sum();
        let signed: i64 = counted().map(|byte| i64::from(byte.cast_signed())).sum();
        if expected != unsigned && expected != signed {
            return Err(invalid("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(invalid("an extension header is larger than 1 MiB"));
        }
        let mut data = vec![0; size as usize];
        self.input.read_exact(&mut data).map_err(end_is_truncation)?;
        self.skip(size.wrapping_neg() % BLOCK as u64)?;
        Ok(data)
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        self.stored = 0;
        self.padding = 0;
        if skipped == count { Ok(()) } else { Err(truncated()) }
    }

    /// The map of GNU's own format: four segments in the header, 21 in each block that follows.
    fn gnu_sparse(&mut self, header: &Header) -> io::Result<()> {
        let Some(gnu) = header.as_gnu() else { return Err(invalid("a sparse member has no GNU header")) };
        let mut map = Vec::new();
        let mut add = |segments: &[GnuSparseHeader]| -> io::Result<()> {
            for segment in segments.iter().filter(|segment| segment.numbytes[0] != 0) {
                map.push((unsigned(&segment.offset)?, unsigned(&segment.numbytes)?));
            }
            if map.len() > MAX_EXTENSION_BYTES as usize {
                Err(invalid("a sparse member has too many holes"))
            } else {
                Ok(())
            }
        };
        add(&gnu.sparse)?;
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let mut extension = GnuExtSparseHeader::new();
            self.input.read_exact(extension.as_mut_bytes()).map_err(end_is_truncation)?;
            add(extension.sparse())?;
            is_extended = extension.is_extended();
        }
        self.set_map(map, unsigned(&gnu.realsize)?)
    }

    /// Versions 0.0 and 0.1 have the map in records, 1.0 before the content.
    fn pax_sparse(&mut self, records: &Records) -> io::Result<()> {
        let size = records.sparse_size.ok_or_else(|| invalid("a sparse member does not say its size"))?;
        let numbers = if records.sparse_major == Some(1) {
            // Whole blocks are read: what is left of the last one is padding.
            let mut block = [0; BLOCK];
            let mut text = Vec::new();
            let (mut lines, mut wanted) = (0, 1);
            while lines < wanted {
                if text.len() as u64 > MAX_EXTENSION_BYTES || self.stored < BLOCK as u64 {
                    return Err(invalid("the map of a sparse member does not end"));
                }
                self.input.read_exact(&mut block).map_err(end_is_truncation)?;
                self.stored -= BLOCK as u64;
                text.extend_from_slice(&block);
                lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
                if wanted == 1 && lines > 0 {
                    let count = decimal(text.split(|byte| *byte == b'\n').next().unwrap_or_default())?;
                    let count = count.checked_mul(2).and_then(|count| count.checked_add(1));
                    wanted = count.ok_or_else(|| invalid("a sparse member has too many holes"))?;
                }
            }
            let lines = text.split(|byte| *byte == b'\n');
            lines.skip(1).take(wanted as usize - 1).map(decimal).collect::<io::Result<Vec<_>>>()?
        } else {
            records.sparse_map.clone()
        };
        if numbers.len() % 2 != 0 {
            return Err(invalid("the map of a sparse member is odd"));
        }
        self.set_map(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(), size)
    }

    fn set_map(&mut self, map: Vec<(u64, u64)>, size_bytes: u64) -> io::Result<()> {
        let mut end = 0;
        let mut stored = 0_u64;
        for (offset, length) in &map {
            if *offset < end {
                return Err(invalid("the segments of a sparse member overlap"));
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= size_bytes)
                .ok_or_else(|| invalid("a segment of a sparse member is outside the file"))?;
            stored += length;
        }
        if stored != self.stored {
            return Err(invalid("the segments of a sparse member are not what is stored"));
        }
        self.segments = map.into();
        self.size_bytes = size_bytes;
        Ok(())
    }
}

/// What pax records say about the next member.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<CString, Vec<u8>>,
    sparse_major: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Vec<u64>,
    count: usize,
}

impl Records {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn is_sparse(&self) -> bool {
        self.sparse_major == Some(1) || !self.sparse_map.is_empty()
    }

    /// `<length> <key>=<value>\n`, one after the other. Values are bytes: only the length says
    /// where one ends.
    fn parse(&mut self, mut data: &[u8]) -> io::Result<()> {
        let malformed = || invalid("a pax record is malformed");
        while !data.is_empty() {
            let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
            let length = usize::try_from(decimal(&data[..space])?).map_err(|_| malformed())?;
            let record = data.get(space + 1..length).ok_or_else(malformed)?;
            let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.count += 1;
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            let name = CString::new(name).map_err(|_| invalid("an attribute's name holds a NUL"))?;
            self.xattrs.insert(name, value.to_vec());
            return Ok(());
        }
        // An empty value takes an earlier record back.
        let text = (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Ok(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.linkpath = text,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.name" => self.sparse_name = text,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(decimal(value)?),
            b"GNU.sparse.map" => {
                self.sparse_map = value.split(|byte| *byte == b',').map(decimal).collect::<io::Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Seconds with an optional fraction, which counts upwards from the second below.
fn time(value: &[u8]) -> io::Result<(i64, u32)> {
    let (is_negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let seconds = decimal(parts.next().unwrap_or_default())?;
    let seconds = i64::try_from(seconds).map_err(|_| invalid("a time is too large"))?;
    let mut nanoseconds = 0;
    let fraction = parts.next().unwrap_or_default();
    for place in 0..9 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(invalid("a time is no number"));
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    Ok(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn decimal(digits: &[u8]) -> io::Result<u64> {
    let text = str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| invalid("a pax record holds no number"))
}

/// A header's number: octal digits, or base 256 in two's complement if the top bit is set.
fn number(field: &[u8]) -> io::Result<i64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let is_negative = field[0] & 0x40 != 0;
        let mut value: i128 = if is_negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !is_negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
        }
        return value.try_into().map_err(|_| invalid("a number in a header is too large"));
    }
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(invalid("a header holds no number where one must be")),
    })
}

fn unsigned(field: &[u8]) -> io::Result<u64> {
    number(field)?.try_into().map_err(|_| invalid("a number in a header is negative"))
}

/// The path in the header: only POSIX has a prefix, GNU keeps times in its place.
fn path(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.as_old().name);
    match header.as_ustar().map(|ustar| until_nul(&ustar.prefix)) {
        Some(prefix) if !prefix.is_empty() => [prefix, b"/", name].concat(),
        _ => name.to_vec(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends inside a member")
}

fn end_is_truncation(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { truncated() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::header;

    #[test]
    fn what_fields_cannot_hold_comes_back() {
        let path = b"d/".repeat(200);
        let xattrs = [(c"user.a".to_owned(), b"1\n9 size=7\n".to_vec())];
        let member = header::Member {
            path: &path,
            entry_type: EntryType::Regular,
            mode: 0o4755,
            uid: u32::MAX - 1,
            gid: 0o7_777_777,
            size_bytes: 9 << 30,
            mtime: -1,
            link: b"",
            major: 0,
            minor: 0,
            xattrs: &xattrs,
        };
        let mut tar = Vec::new();
        header::write(&header::Member { path: b"d/f", ..member }, &mut tar);
        let read = Archive::new(&tar[..]).next_member().unwrap().unwrap();
        assert_eq!(
            (read.uid, read.gid, read.size_bytes, read.mtime),
            (u64::from(u32::MAX) - 1, 0o7_777_777, 9 << 30, (-1, 0))
        );
        assert_eq!((read.mode, &read.xattrs[..]), (0o4755, &xattrs[..]));
        let mut tar = Vec::new();
        let largest = header::Member { size_bytes: 0o77_777_777_777, mtime: 0o77_777_777_777, xattrs: &[], ..member };
        header::write(&header::Member { uid: 0, path: b"f", ..largest }, &mut tar);
        assert_eq!(tar.len(), BLOCK, "what fits needs no record");
        header::write(&header::Member { entry_type: EntryType::Directory, ..largest }, &mut tar);
        let directory = Archive::new(&tar[BLOCK..]).next_member().unwrap().unwrap();
        assert_eq!(directory.path, path);
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"9", None),
            (b"-1", None),
        ] {
            assert_eq!(number(field).ok(), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn times_have_fractions() {
        for (text, expected) in [
            (&b"0"[..], Some((0, 0))),
            (b"1.5", Some((1, 500_000_000))),
            (b"1.1234567899", Some((1, 123_456_789))),
            (b"-1", Some((-1, 0))),
            (b"-0.25", Some((-1, 750_000_000))),
            (b"1.x", None),
            (b"", None),
            (b"+1", None),
        ] {
            assert_eq!(time(text).ok(), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn malformed_records_are_errors() {
        for records in [
            &b"5 a=b"[..],
            b"x a=b\n",
            b"6 a=b",
            b"99 a=b\n",
            b"6 a b\n",
            b"2 \n",
            b"0 a=b\n",
            b"18446744073709551616 a=b\n",
            b"10 size=-1\n",
        ] {
            assert!(Records::default().parse(records).is_err(), "{}", records.escape_ascii());
        }
    }
}
