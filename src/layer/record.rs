//! What a layer dir records because its maker could not do it.
//!
//! Who is not the host's root makes no devices, and with a single id gives files to nobody. What such a
//! file stands for is recorded in the file itself, so that the kernel takes the record along wherever
//! the file goes: into an upper dir, to another name, to a further one, and away.
//!
//! | of | where | as |
//! | --- | --- | --- |
//! | a device | a regular file with the attribute `user.wythe.node` | `c 1:3` |
//! | the owner of a file or directory | its attribute `user.wythe.owner` | `33:33` |
//! | the owner of a link or fifo | its access time | from the year 2242 on, see [`encode`] |
//!
//! Links and fifos take no `user.*` attributes. Their access time is in no layer, everybody may set
//! that of his own, and one that lies in the future stays: no lookup moves it back.
//!
//! What counts is written on the root of the layer dir (`user.wythe.records`); without it nothing does,
//! so that nobody in a step of root's can write on a file what root has not made it. Without a record of
//! its own an object is what it looks like.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::node::{self, Kind, Node};
use super::xattr;
use crate::diag::Diagnostic;

/// What begins so is ours: no layer holds it, and none comes in from outside.
pub const PREFIX: &[u8] = b"user.wythe.";
const FORM: &CStr = c"user.wythe.records";
const NODE: &CStr = c"user.wythe.node";
const OWNER: &CStr = c"user.wythe.owner";

/// What the records of a layer dir can say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Records {
    /// There are none: everything is what it looks like.
    #[default]
    None,
    /// Devices.
    Nodes,
    /// Devices and owners. All files belong to one id, which is taken for root.
    Owners,
}

impl Records {
    /// What counts in the layer dir, or the mounted stack of layer dirs, with this root.
    pub fn of(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        Ok(match value(root, c".", FORM)?.as_deref() {
            Some(b"nodes") => Self::Nodes,
            Some(b"owners") => Self::Owners,
            _ => Self::None,
        })
    }

    /// Makes these count in the layer dir with this root, which is empty so far.
    pub fn begin(self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Self::None => Ok(()),
            Self::Nodes => xattr::put(root, c".", FORM, b"nodes"),
            Self::Owners => xattr::put(root, c".", FORM, b"owners"),
        }
    }

    /// Adds to `failure` of [`Records::begin`] why.
    pub fn explain(failure: Diagnostic, errno: Errno) -> Diagnostic {
        match errno {
            Errno::OPNOTSUPP => failure
                .caused_by(
                    "its filesystem keeps no `user.*` attributes, which builds by an ordinary user take \
                     (a tmpfs keeps them since Linux 6.6)",
                )
                .hint("keep the store on ext4, xfs or btrfs: `--root DIR`"),
            _ => failure.caused_by(std::io::Error::from(errno)),
        }
    }

    /// What `name` in `dir` is or stands for; `None` if there is nothing. With an empty name, here and below, it
    /// is `dir` itself, which may be open as a place only and be no directory.
    pub fn node_at(self, dir: impl AsFd, name: &CStr) -> Result<Option<Node>, Errno> {
        let stat = match fs::statat(&dir, name, ITSELF) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let node = Node::of(&stat).or_whiteout(&dir, name)?;
        let owner = match node.kind {
            _ if self == Self::None => return Ok(Some(node)),
            Kind::File | Kind::Directory if self == Self::Owners => {
                value(&dir, name, OWNER)?.and_then(|owner| parse_owner(&owner))
            }
            Kind::Symlink | Kind::Fifo if self == Self::Owners => {
                decode((stat.st_atime as i64, stat.st_atime_nsec as u32))
            }
            _ => None,
        };
        let (uid, gid) = owner.unwrap_or((node.uid, node.gid));
        let node = Node { uid, gid, ..node };
        let device = match node.kind {
            Kind::File => value(&dir, name, NODE)?.and_then(|device| parse_device(&device)),
            _ => None,
        };
        Ok(Some(match device {
            Some((kind, rdev)) => Node { kind, rdev, size_bytes: 0, ..node },
            None => node,
        }))
    }

    /// Makes a device, or a file that stands for it; readable by its owner only. Fails with `EPERM` where
    /// neither is possible.
    pub fn make_device(self, dir: impl AsFd, name: &CStr, device: Device) -> Result<(), Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        // Who has one id is nobody's root.
        if self == Self::Owners {
            return make_marker(dir, name, device, mode);
        }
        match fs::mknodat(&dir, name, device.file_type(), mode, device.number()) {
            Err(Errno::PERM) if self == Self::Nodes => make_marker(dir, name, device, mode),
            made => made,
        }
    }

    /// Gives an open file or directory to someone.
    pub fn set_owner(self, fd: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
        match self {
            Self::None | Self::Nodes => fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            Self::Owners => match owner(uid, gid)? {
                Some(text) => fs::fsetxattr(fd, OWNER, text.as_bytes(), fs::XattrFlags::empty()),
                None => absent_is_fine(fs::fremovexattr(fd, OWNER)),
            },
        }
    }

    /// Gives `name` in `dir` to someone, itself and not what a link of that name points at.
    pub fn set_owner_at(self, dir: impl AsFd, name: &CStr, uid: u32, gid: u32) -> Result<(), Errno> {
        if self != Self::Owners {
            return node::set_owner(dir, name, uid, gid);
        }
        let text = owner(uid, gid)?;
        let stat = fs::statat(&dir, name, ITSELF)?;
        match (FileType::from_raw_mode(stat.st_mode), text) {
            (FileType::RegularFile | FileType::Directory, Some(text)) => xattr::put(dir, name, OWNER, text.as_bytes()),
            (FileType::RegularFile | FileType::Directory, None) => absent_is_fine(xattr::remove(dir, name, OWNER)),
            (_, Some(_)) => {
                // It was checked that they fit.
                let (seconds, nanoseconds) = encode(uid, gid).ok_or(Errno::INVAL)?;
                set_access_time(&dir, name, Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() })?;
                let set = fs::statat(&dir, name, ITSELF)?;
                // Old file systems end in 2038.
                if (set.st_atime as i64, set.st_atime_nsec as u32) == (seconds, nanoseconds) {
                    Ok(())
                } else {
                    Err(Errno::OVERFLOW)
                }
            }
            (_, None) if decode((stat.st_atime as i64, stat.st_atime_nsec as u32)).is_some() => {
                set_access_time(dir, name, Timespec { tv_sec: 0, tv_nsec: UTIME_NOW })
            }
            (_, None) => Ok(()),
        }
    }

    /// Sets the modification time of `name` in `dir`, without following it.
    pub fn set_mtime_at(self, dir: impl AsFd, name: &CStr, mtime: (i64, u32)) -> Result<(), Errno> {
        if self != Self::Owners {
            return node::set_mtime(dir, name, mtime);
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
        };
        fs::utimensat(dir, name, &times, ITSELF)
    }
}

/// No link is followed, and an empty name is none.
const ITSELF: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::EMPTY_PATH);

/// A device node, but for its look. 0:0 with `c` is a deletion and none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub is_block: bool,
    pub major: u32,
    pub minor: u32,
}

impl Device {
    /// The device a node stands for, if it does.
    pub fn of(node: &Node) -> Option<Self> {
        let is_block = match node.kind {
            Kind::CharDevice => false,
            Kind::BlockDevice => true,
            _ => return None,
        };
        Some(Self { is_block, major: fs::major(node.rdev), minor: fs::minor(node.rdev) })
    }

    fn file_type(self) -> FileType {
        if self.is_block { FileType::BlockDevice } else { FileType::CharacterDevice }
    }

    fn number(self) -> u64 {
        fs::makedev(self.major, self.minor)
    }

    fn letter(self) -> char {
        if self.is_block { 'b' } else { 'c' }
    }
}

/// Makes a file that stands for a device, with what the creation mask leaves of `mode`.
pub fn make_marker(dir: impl AsFd, name: &CStr, device: Device, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(&dir, name, flags, mode)?;
    let text = format!("{} {}:{}", device.letter(), device.major, device.minor);
    let recorded = fs::fsetxattr(&file, NODE, text.as_bytes(), fs::XattrFlags::empty());
    if recorded.is_err() {
        fs::unlinkat(&dir, name, AtFlags::empty())?;
    }
    recorded
}

fn parse_device(text: &[u8]) -> Option<(Kind, u64)> {
    let (letter, numbers) = str::from_utf8(text).ok()?.split_once(' ')?;
    let (major, minor) = numbers.split_once(':')?;
    let kind = match letter {
        "c" => Kind::CharDevice,
        "b" => Kind::BlockDevice,
        _ => return None,
    };
    let rdev = fs::makedev(number(major)?, number(minor)?);
    (kind == Kind::BlockDevice || rdev != 0).then_some((kind, rdev))
}

/// What is recorded of an owner; nothing of root.
fn owner(uid: u32, gid: u32) -> Result<Option<String>, Errno> {
    // As the kernel says of an id that is none.
    encode(uid, gid).ok_or(Errno::INVAL)?;
    Ok(((uid, gid) != (0, 0)).then(|| format!("{uid}:{gid}")))
}

fn parse_owner(text: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = str::from_utf8(text).ok()?.split_once(':')?;
    number(uid).zip(number(gid))
}

/// Digits only: a number has one spelling.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The second that stands for user 0 and group 0: 2242-03-16. What lies later is an owner; no file
/// system with 64 bits for a time ends before the last one.
const FIRST: i64 = 1 << 33;
const SECOND: u64 = 1_000_000_000;
/// Of a user or group id, as many as root's steps have.
const ID_BITS: u32 = 31;

/// The time that stands for an owner, in seconds and nanoseconds: so many nanoseconds after `FIRST` as
/// user and group together make a number. `None` for ids that do not fit.
pub fn encode(uid: u32, gid: u32) -> Option<(i64, u32)> {
    let number = u64::from(uid) << ID_BITS | u64::from(gid);
    let fits = uid >> ID_BITS == 0 && gid >> ID_BITS == 0;
    // Both are small enough: the number has 62 bits.
    fits.then_some((FIRST + (number / SECOND) as i64, (number % SECOND) as u32))
}

/// The owner that a time stands for.
pub fn decode((seconds, nanoseconds): (i64, u32)) -> Option<(u32, u32)> {
    let since = u64::try_from(seconds.checked_sub(FIRST)?).ok()?;
    let number = since.checked_mul(SECOND)?.checked_add(u64::from(nanoseconds))?;
    let id = |number: u64| u32::try_from(number).ok().filter(|id| id >> ID_BITS == 0);
    id(number >> ID_BITS).zip(id(number & ((1 << ID_BITS) - 1)))
}

fn set_access_time(dir: impl AsFd, name: &CStr, time: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: time, last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT } };
    fs::utimensat(dir, name, &times, ITSELF)
}

fn value(dir: impl AsFd, name: &CStr, attribute: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    match xattr::get(dir, name, attribute) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn absent_is_fine(removed: Result<(), Errno>) -> Result<(), Errno> {
    match removed {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_owner_has_a_time_of_its_own() {
        let last = (1 << 31) - 1;
        let ids = [0, 1, 33, 1000, 65534, 999_999_999, 1_000_650_000, last];
        for uid in ids {
            for gid in ids {
                let time = encode(uid, gid).unwrap();
                assert_eq!(decode(time), Some((uid, gid)));
                // ext4 ends on 2446-05-10.
                assert!(time.0 >= FIRST && time.0 < (1 << 34) - (1 << 31) && time.1 < 1_000_000_000, "{time:?}");
            }
        }
        for beyond in [last + 1, u32::MAX] {
            assert_eq!(encode(beyond, 0), None);
            assert_eq!(encode(0, beyond), None);
        }
        let (seconds, nanoseconds) = encode(last, last).unwrap();
        for time in [(0, 0), (FIRST - 1, 999_999_999), (seconds, nanoseconds + 1), (i64::MAX, 0), (i64::MIN, 0)] {
            assert_eq!(decode(time), None, "{time:?}");
        }
    }

    #[test]
    fn records_have_one_spelling() {
        for (text, expected) in [
            (&b"c 1:3"[..], Some((Kind::CharDevice, fs::makedev(1, 3)))),
            (b"b 259:1048575", Some((Kind::BlockDevice, fs::makedev(259, 1_048_575)))),
            (b"b 0:0", Some((Kind::BlockDevice, 0))),
            (b"c 0:0", None),
            (b"c +1:3", None),
            (b"c 1:", None),
            (b"c1:3", None),
            (b"p 1:3", None),
            (b"c 1:4294967296", None),
            (b"", None),
            (b"\xff 1:3", None),
        ] {
            assert_eq!(parse_device(text), expected, "{}", text.escape_ascii());
        }
        assert_eq!(parse_owner(b"33:100"), Some((33, 100)));
        for wrong in [&b"33"[..], b"33:", b":", b" 1:1", b"-1:1", b"1:1:1"] {
            assert_eq!(parse_owner(wrong), None, "{}", wrong.escape_ascii());
        }
        assert_eq!(owner(0, 0), Ok(None));
        assert_eq!(owner(0, 5).unwrap().unwrap(), "0:5");
        assert_eq!(owner(u32::MAX, 5), Err(Errno::INVAL));
    }
}
