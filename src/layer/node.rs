//! One object of a directory tree as the kernel describes it, and the few ways trees are walked:
//! by directory fd and one name at a time, never by a path, so that neither `PATH_MAX` nor a
//! symbolic link in the middle is ever in play.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::whiteout;
use crate::ids;
use crate::sys;

/// What a name in a layer dir stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    CharDevice,
    BlockDevice,
    Socket,
    /// The character device 0:0, or what [`super::whiteout`] takes for it: the name is gone from the layers
    /// below.
    Whiteout,
}

/// Device and inode: equal for two names of one file.
pub type Identity = (u64, u64);

/// The metadata of one object; symbolic links are never followed to get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device, else 0.
    pub rdev: u64,
    /// Of a regular file, else 0.
    pub size_bytes: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    pub identity: Identity,
    pub links: u64,
}

impl Node {
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    pub fn is_file(&self) -> bool {
        self.kind == Kind::File
    }

    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Whiteout
    }

    /// What the object `name` in `dir` that looks so stands for.
    pub(super) fn or_whiteout(self, dir: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        match whiteout::is_file(dir, name, &self)? {
            true => Ok(Self { kind: Kind::Whiteout, ..self }),
            false => Ok(self),
        }
    }

    #[allow(clippy::unnecessary_cast)] // The fields' types differ between architectures.
    pub(super) fn of(stat: &Stat) -> Self {
        let rdev = stat.st_rdev as u64;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice if rdev == 0 => Kind::Whiteout,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Socket => Kind::Socket,
            FileType::RegularFile | FileType::Unknown => Kind::File,
        };
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: if is_device { rdev } else { 0 },
            size_bytes: if kind == Kind::File { stat.st_size as u64 } else { 0 },
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            identity: (stat.st_dev as u64, stat.st_ino as u64),
            links: stat.st_nlink as u64,
        }
    }
}

/// The object called `name` in `dir`; `None` if there is none.
pub fn node_at(dir: impl AsFd, name: &CStr) -> Result<Option<Node>, Errno> {
    match fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Node::of(&stat).or_whiteout(dir, name).map(Some),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub fn node_of(fd: impl AsFd) -> Result<Node, Errno> {
    fs::fstat(fd).map(|stat| Node::of(&stat))
}

/// Opens `path` beneath `directory` through no link at all, the last component included; an empty
/// path is the directory itself. Longer paths than the kernel takes at once are walked in pieces.
pub fn open_below(directory: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    const PIECE: usize = 4000;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |from: BorrowedFd<'_>, path: &[u8], flags: OFlags| {
        sys::open_beneath(from, path, flags | OFlags::NOFOLLOW, resolve)
    };
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    while rest.len() > PIECE {
        let cut = rest[..PIECE].iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = held.as_ref().map_or(directory, AsFd::as_fd);
        held = Some(open(from, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY)?);
        rest = &rest[cut + 1..];
    }
    let from = held.as_ref().map_or(directory, AsFd::as_fd);
    open(from, if rest.is_empty() { b"." } else { rest }, flags)
}

/// Opens the directory `name` in `dir`, itself and not what a link of that name points at:
/// anything else is `NOTDIR`.
pub fn open_directory(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// A second, readable descriptor of a directory that the caller may have opened with `O_PATH`.
pub fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_directory(dir, c".")
}

/// Opens the regular file `name` in `dir` for reading. Does not hang should it be a fifo after all.
pub fn open_file(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// The names in a directory with their types (`Unknown` where the filesystem does not tell), sorted by bytes. One
/// piece of memory for all of them: threads that look into directories have one allocator between them.
#[derive(Debug, Default)]
pub struct Names {
    /// With the NUL after each.
    bytes: Vec<u8>,
    list: Vec<Name>,
}

#[derive(Debug)]
struct Name {
    /// Its first bytes as a number: nearly always they decide which of two comes first.
    prefix: u64,
    /// Where it begins.
    start: usize,
    file_type: FileType,
}

impl Names {
    /// Of what is in `dir`.
    pub fn read(dir: BorrowedFd<'_>) -> Result<Self, Errno> {
        // A second reading of the same descriptor would start at the end.
        fs::seek(dir, fs::SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(dir, &mut buffer);
        let (mut bytes, mut list) = (Vec::with_capacity(1 << 10), Vec::with_capacity(1 << 7));
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let start = bytes.len();
                bytes.extend_from_slice(name.to_bytes_with_nul());
                let prefix = u64::from_be_bytes(first_word(name.to_bytes()));
                list.push(Name { prefix, start, file_type: entry.file_type() });
            }
        }
        // NUL comes before every byte of a name.
        list.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| bytes[a.start..].cmp(&bytes[b.start..])));
        Ok(Self { bytes, list })
    }

    /// Their numbers, in order.
    pub fn indices(&self) -> Range<usize> {
        0..self.list.len()
    }

    pub fn name(&self, index: usize) -> &CStr {
        // The NUL is where it was put.
        CStr::from_bytes_until_nul(&self.bytes[self.list[index].start..]).unwrap_or_default()
    }

    pub fn file_type(&self, index: usize) -> FileType {
        self.list[index].file_type
    }
}

/// The first eight bytes; zeros for those that are not there.
pub fn first_word(bytes: &[u8]) -> [u8; 8] {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    bytes.first_chunk().copied().unwrap_or_else(|| number(bytes).to_le_bytes())
}

/// The same, each by itself.
pub fn names(dir: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    let names = Names::read(dir)?;
    Ok(names.indices().map(|index| (names.name(index).to_owned(), names.file_type(index))).collect())
}

pub fn link_target(dir: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    fs::readlinkat(dir, name, Vec::new()).map(CString::into_bytes)
}

/// Removes `name` from `dir`, whatever it is, with all that is below it.
pub fn remove(dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
    match fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let top = open_directory(&dir, name)?;
    let mut levels = vec![names(top.as_fd())?];
    let mut ladder = Ladder::new(top);
    let mut path: Vec<CString> = Vec::new();
    while let Some(level) = levels.last_mut() {
        match level.pop() {
            Some((child, _)) => match fs::unlinkat(ladder.fd(), &child, AtFlags::empty()) {
                Err(Errno::ISDIR) => {
                    let fd = open_directory(ladder.fd(), &child)?;
                    levels.push(names(fd.as_fd())?);
                    ladder.push(fd);
                    path.push(child);
                }
                other => other?,
            },
            None => {
                levels.pop();
                if let Some(child) = path.pop() {
                    ladder.pop()?;
                    fs::unlinkat(ladder.fd(), &child, AtFlags::REMOVEDIR)?;
                }
            }
        }
    }
    fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
}

/// Gives `name` in `dir` an owner, without following it. With an empty name it is `dir` itself, which may
/// be open as a place only. Who has one id only leaves it to that.
pub fn set_owner(dir: impl AsFd, name: &CStr, uid: u32, gid: u32) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    or_root(fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags))
}

/// The same for an open file.
pub fn set_owner_of(fd: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    or_root(fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

fn or_root(given: Result<(), Errno>) -> Result<(), Errno> {
    match given {
        // The kernel knows no such id in this user namespace.
        Err(Errno::INVAL) if ids::there_is_but_one() => Ok(()),
        given => given,
    }
}

/// Sets the modification time of `name` in `dir`, without following it.
pub fn set_mtime(dir: impl AsFd, name: &CStr, mtime: (i64, u32)) -> Result<(), Errno> {
    fs::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
}

/// The access time is set to the same: it is in no layer, so it may as well be reproducible.
pub fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// The directories from the root of a walk down to where it is. Only the lowest are held open: a
/// tree may be deeper than there are descriptors, so the others are reached again by `..`, which
/// is safe because nobody else changes a layer dir while it is walked.
pub struct Ladder {
    rungs: Vec<Option<OwnedFd>>,
}

/// How many directories of a walk are held open.
pub const HELD: usize = 64;

impl Ladder {
    pub fn new(root: OwnedFd) -> Self {
        Self { rungs: vec![Some(root)] }
    }

    /// The lowest directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self.rungs.last() {
            Some(Some(fd)) => fd.as_fd(),
            // `push` only closes what is HELD above the last, and `pop` opens it again.
            _ => unreachable!("the lowest rung is open"),
        }
    }

    pub fn push(&mut self, fd: OwnedFd) {
        self.rungs.push(Some(fd));
        if let Some(above) = self.rungs.len().checked_sub(HELD + 1) {
            self.rungs[above] = None;
        }
    }

    /// Goes up one directory; the root stays.
    pub fn pop(&mut self) -> Result<(), Errno> {
        if self.rungs.len() < 2 {
            return Ok(());
        }
        let below = self.rungs.pop().flatten();
        if let (Some(rung @ None), Some(below)) = (self.rungs.last_mut(), below) {
            *rung = Some(open_directory(below, c"..")?);
        }
        Ok(())
    }
}

/// A path of a layer as messages show it: control characters and what is no UTF-8 are escaped.
pub fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// `parent/name`, or `name` below the root.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}
