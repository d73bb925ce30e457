//! The table of a layer tar: what it says of its members, without their bytes. Enough to know what a rootfs has where,
//! and what it looks like, without unpacking anything.
//!
//! ```text
//! zstd of:  version, a newline, then for each member
//!           type · path, as far as it differs from the one before · mode · owner · size · time · link
//!           · device numbers · attributes · the bytes of the few files that are kept
//! ```

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;
use tar::EntryType;

use super::archive::{Archive, Member};
use super::node::{self, Kind, Ladder, Node, link_target, names, open_directory, open_file, reopen};
use super::record::Records;
use super::{unpack, whiteout, xattr};

/// The members of a tar, in its order, each of some bytes that are taken apart when somebody looks at it: there may be many.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<u8>);

#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its attributes are those that a layer dir holds.
    pub member: Member,
    /// Of a file that says who is who.
    pub content: Option<Vec<u8>>,
}

/// What is written in another one is not read.
const VERSION: &[u8] = b"wythe table 1\n";
/// Who is who: asked for by `--chown` and USER.
const KEPT: [&[u8]; 2] = [b"etc/passwd", b"etc/group"];
const MAX_KEPT_BYTES: u64 = 256 << 10;
/// A table that would be larger is not made: its layer is unpacked.
const MAX_ROWS: usize = 200_000;
const MAX_BYTES: usize = 32 << 20;
const LEVEL: i32 = 3;

/// Reads `tar` to its end, whatever it holds: whoever hashes it needs all. `None` for what is no layer tar, or no table is
/// made of. Fails only where reading does.
pub fn read(tar: &mut dyn Read) -> io::Result<Option<Table>> {
    let mut tar = Heard { inner: tar, error: None };
    let table = read_members(&mut tar);
    match tar.error.take() {
        Some(error) => Err(error),
        None => io::copy(&mut tar, &mut io::sink()).map(|_| table.ok().flatten()),
    }
}

fn read_members(tar: &mut Heard<'_>) -> io::Result<Option<Table>> {
    let mut archive = Archive::new(tar);
    let mut table = Writer::default();
    while let Some(member) = archive.next_member()? {
        let content = match is_kept(&member) {
            true => archive.content(MAX_KEPT_BYTES)?,
            false => None,
        };
        let member = Member { xattrs: unpack::xattrs(&member), ..member };
        if !table.push(&Row { member, content }) {
            return Ok(None);
        }
    }
    Ok(Some(Table(table.plain)))
}

/// The same of a layer dir.
pub fn of_dir(dir: BorrowedFd<'_>) -> Result<Option<Table>, Errno> {
    let root = reopen(dir)?;
    let records = Records::of(root.as_fd())?;
    let mut levels = vec![names(root.as_fd())?.into_iter()];
    let mut ladder = Ladder::new(root);
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    let mut table = Writer::default();
    while let Some(level) = levels.last_mut() {
        let Some((name, _)) = level.next() else {
            levels.pop();
            paths.pop();
            ladder.pop()?;
            continue;
        };
        let parent = paths.last().map(Vec::as_slice).unwrap_or_default();
        let path = node::join(parent, name.to_bytes());
        let node = records.node_at(ladder.fd(), &name)?.ok_or(Errno::NOENT)?;
        let mut row = Row { member: member(path.clone(), &node), content: None };
        match node.kind {
            Kind::Whiteout => row.member.path = node::join(parent, &[whiteout::PREFIX, name.to_bytes()].concat()),
            Kind::Directory => {
                let child = open_directory(ladder.fd(), &name)?;
                row.member.xattrs = xattr::kept(&child)?;
                levels.push(names(child.as_fd())?.into_iter());
                ladder.push(child);
                paths.push(path);
            }
            Kind::File => {
                let file = open_file(ladder.fd(), &name)?;
                row.member.xattrs = xattr::kept(&file)?;
                if is_kept(&row.member) {
                    let mut content = Vec::new();
                    let read = std::fs::File::from(file).take(MAX_KEPT_BYTES).read_to_end(&mut content);
                    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                    row.content = Some(content);
                }
            }
            Kind::Symlink => row.member.link = link_target(ladder.fd(), &name)?,
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice | Kind::Socket => {}
        }
        if !table.push(&row) {
            return Ok(None);
        }
    }
    Ok(Some(Table(table.plain)))
}

fn member(path: Vec<u8>, node: &Node) -> Member {
    let entry_type = match node.kind {
        // What deletes is told by its name.
        Kind::File | Kind::Whiteout => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink => EntryType::Symlink,
        Kind::Fifo => EntryType::Fifo,
        Kind::CharDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
        // No layer dir has one, and none is made of it.
        Kind::Socket => EntryType::new(b's'),
    };
    Member {
        entry_type,
        path,
        link: Vec::new(),
        mode: node.mode,
        uid: node.uid.into(),
        gid: node.gid.into(),
        size_bytes: node.size_bytes,
        mtime: node.mtime,
        major: rustix::fs::major(node.rdev),
        minor: rustix::fs::minor(node.rdev),
        xattrs: Vec::new(),
    }
}

fn is_kept(member: &Member) -> bool {
    let is_it = || match unpack::split(&member.path) {
        Ok(Some((parent, name))) => KEPT.contains(&node::join(&parent, name).as_slice()),
        _ => false,
    };
    member.entry_type == EntryType::Regular && member.size_bytes <= MAX_KEPT_BYTES && is_it()
}

/// A reader of which is known whether it failed.
struct Heard<'a> {
    inner: &'a mut dyn Read,
    error: Option<io::Error>,
}

impl Read for Heard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.error = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }
}

// ---- as it is kept

impl Table {
    /// As it is kept. That there is none for a layer is kept as well.
    pub fn to_bytes(table: Option<&Self>) -> io::Result<Vec<u8>> {
        let mut out = VERSION.to_vec();
        let Some(Self(plain)) = table else { return Ok(out) };
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
        zstd_safe::compress(&mut packed, plain, LEVEL)
            .map_err(|code| io::Error::other(zstd_safe::get_error_name(code)))?;
        out.extend_from_slice(&(plain.len() as u64).to_le_bytes());
        out.extend_from_slice(&packed);
        Ok(out)
    }

    /// What [`Table::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Option<Self>> {
        let bytes = bytes.strip_prefix(VERSION)?;
        if bytes.is_empty() {
            return Some(None);
        }
        let (size, packed) = bytes.split_first_chunk()?;
        let size = usize::try_from(u64::from_le_bytes(*size)).ok().filter(|size| *size <= MAX_BYTES)?;
        let mut plain = Vec::with_capacity(size);
        zstd_safe::decompress(&mut plain, packed).ok().filter(|length| *length == size)?;
        Some(Some(Self(plain)))
    }

    /// Ends with nothing in the place of a row where it is no table.
    pub(super) fn rows(&self) -> impl Iterator<Item = Option<Row>> {
        let mut rest = self.0.as_slice();
        let mut before = Vec::new();
        std::iter::from_fn(move || {
            let (entry_type, after) = rest.split_first()?;
            rest = after;
            let row = row(EntryType::new(*entry_type), &before, &mut rest);
            match &row {
                Some(row) => before.clone_from(&row.member.path),
                None => rest = &[],
            }
            Some(row)
        })
    }
}

/// A table in the making.
#[derive(Default)]
struct Writer {
    plain: Vec<u8>,
    /// The path of the last row.
    before: Vec<u8>,
    rows: usize,
}

impl Writer {
    /// Adds a row; says whether it is still small enough to be one.
    fn push(&mut self, Row { member, content }: &Row) -> bool {
        let plain = &mut self.plain;
        let same = member.path.iter().zip(&self.before).take_while(|(a, b)| a == b).count();
        plain.push(member.entry_type.as_byte());
        put_number(same as u64, plain);
        put_bytes(&member.path[same..], plain);
        self.before.clone_from(&member.path);
        let (seconds, nanoseconds) = member.mtime;
        // So that a small negative one is short.
        let seconds = (seconds << 1 ^ seconds >> 63).cast_unsigned();
        let numbers = [member.mode.into(), member.uid, member.gid, member.size_bytes, seconds, nanoseconds.into()];
        numbers.into_iter().for_each(|number| put_number(number, plain));
        put_bytes(&member.link, plain);
        put_number(member.major.into(), plain);
        put_number(member.minor.into(), plain);
        put_number(member.xattrs.len() as u64, plain);
        for (name, value) in &member.xattrs {
            put_bytes(name.as_bytes(), plain);
            put_bytes(value, plain);
        }
        put_number(content.is_some().into(), plain);
        put_bytes(content.as_deref().unwrap_or_default(), plain);
        self.rows += 1;
        self.rows <= MAX_ROWS && self.plain.len() <= MAX_BYTES
    }
}

fn row(entry_type: EntryType, before: &[u8], rest: &mut &[u8]) -> Option<Row> {
    let same = usize::try_from(number(rest)?).ok()?;
    let mut path = before.get(..same)?.to_vec();
    path.extend_from_slice(bytes(rest)?);
    let mode = u32::try_from(number(rest)?).ok()?;
    let (uid, gid, size_bytes) = (number(rest)?, number(rest)?, number(rest)?);
    let seconds = number(rest)?;
    let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
    let mtime = (seconds, u32::try_from(number(rest)?).ok()?);
    let link = bytes(rest)?.to_vec();
    let (major, minor) = (u32::try_from(number(rest)?).ok()?, u32::try_from(number(rest)?).ok()?);
    let mut xattrs = Vec::new();
    for _ in 0..number(rest)? {
        xattrs.push((CString::new(bytes(rest)?).ok()?, bytes(rest)?.to_vec()));
    }
    let is_kept = number(rest)? == 1;
    let content = bytes(rest)?;
    let member = Member { entry_type, path, link, mode, uid, gid, size_bytes, mtime, major, minor, xattrs };
    Some(Row { member, content: is_kept.then(|| content.to_vec()) })
}

/// Seven bits a byte, the lowest first.
fn put_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let member = |path: &str, mtime| Member {
            entry_type: EntryType::Regular,
            path: path.as_bytes().to_vec(),
            link: b"to".to_vec(),
            mode: 0o4755,
            uid: u64::MAX,
            gid: 0,
            size_bytes: 1 << 40,
            mtime,
            major: 4095,
            minor: 0,
            xattrs: vec![(c"user.a".to_owned(), vec![0, 255])],
        };
        vec![
            Row { member: member("etc/", (i64::MIN, 0)), content: None },
            Row { member: member("etc/passwd", (-1, 999_999_999)), content: Some(Vec::new()) },
            Row { member: member("a", (i64::MAX, 0)), content: Some(b"root".to_vec()) },
        ]
    }

    fn table() -> Table {
        let mut table = Writer::default();
        rows().iter().for_each(|row| assert!(table.push(row)));
        Table(table.plain)
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let bytes = Table::to_bytes(Some(&table())).unwrap();
        let read = Table::from_bytes(&bytes).unwrap().unwrap();
        let read: Vec<Row> = read.rows().map(Option::unwrap).collect();
        assert_eq!(format!("{read:?}"), format!("{:?}", rows()));
        assert!(Table::from_bytes(&Table::to_bytes(None).unwrap()).unwrap().is_none());
    }

    #[test]
    fn what_is_no_table_is_none() {
        let bytes = Table::to_bytes(Some(&table())).unwrap();
        for length in 0..bytes.len() {
            // Cut behind the version it says that there is no table.
            assert!(Table::from_bytes(&bytes[..length]).flatten().is_none(), "{length}");
        }
        assert!(Table::from_bytes(b"wythe table 0\n").is_none());
        let cut = Table(table().0[..20].to_vec());
        assert_eq!(cut.rows().map(|row| row.is_some()).collect::<Vec<_>>(), [false]);
        let mut rest = &[0xff; 11][..];
        assert_eq!(number(&mut rest), None);
    }

    #[test]
    fn what_cannot_be_read_is_told_from_what_is_no_tar() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("broken"))?;
                buffer.fill(b'x');
                Ok(buffer.len())
            }
        }
        assert!(read(&mut Broken(1)).is_err());
        let mut garbage = &[b'x'; 1 << 20][..];
        assert!(read(&mut garbage).unwrap().is_none());
        assert!(garbage.is_empty());
        assert!(read(&mut &[][..]).unwrap().unwrap().0.is_empty());
    }
}
