//! What steps do to a root: by name where a test says it, at random where it must not matter.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use wythe::layer::Records;
use wythe::layer::record::{Device, make_marker};

use crate::tree;

/// Shorthands for steps that cannot fail.
pub struct Root<'a>(pub BorrowedFd<'a>);

impl Root<'_> {
    pub fn mkdir(&self, path: &str, mode: u32) {
        rustix::fs::mkdirat(self.0, path, Mode::RWXU).unwrap();
        self.chmod(path, mode);
    }

    pub fn file(&self, path: &str, content: &str) {
        write(self.0, path.as_bytes(), OFlags::CREATE | OFlags::TRUNC, content.as_bytes()).unwrap();
    }

    pub fn chmod(&self, path: &str, mode: u32) {
        rustix::fs::chmodat(self.0, path, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
    }

    pub fn symlink(&self, path: &str, target: &str) {
        rustix::fs::symlinkat(target, self.0, path).unwrap();
    }

    pub fn link(&self, from: &str, to: &str) {
        rustix::fs::linkat(self.0, from, self.0, to, AtFlags::empty()).unwrap();
    }

    pub fn rename(&self, from: &str, to: &str) {
        rustix::fs::renameat(self.0, from, self.0, to).unwrap();
    }

    pub fn delete(&self, path: &str) {
        delete(self.0, path.as_bytes()).unwrap();
    }

    pub fn own(&self, path: &str, uid: u32, gid: u32) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(self.0, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    pub fn xattr(&self, path: &str, name: &str, value: &[u8]) {
        let file = open_at(self.0, path.as_bytes(), OFlags::RDONLY).unwrap();
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).unwrap();
    }
}

/// xorshift64*: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

pub const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"a.b",
    b"sp ace",
    b"new\nline",
    b"\xff\xfe",
    "über".as_bytes(),
    b"x.wh.y",
    b".hidden",
    b"trail ",
    b"back\\slash",
    &[b'x'; 255],
    b"etc",
    b"proc",
];

/// Does something random below `root`. What the kernel refuses is not done. Devices and owners are
/// recorded where the root says so.
pub fn act(root: BorrowedFd<'_>, random: &mut Random) -> Result<(), Errno> {
    let records = Records::of(root)?;
    let seen = tree::read(root);
    let directories: Vec<Vec<u8>> =
        [Vec::new()].into_iter().chain(seen.iter().filter(|o| o.1.is_directory()).map(|o| o.0.clone())).collect();
    let paths: Vec<Vec<u8>> = seen.keys().cloned().collect();
    let of_kind = |kind: char| -> Vec<Vec<u8>> {
        seen.iter().filter(|(_, object)| object.kind == kind).map(|(path, _)| path.clone()).collect()
    };
    let fresh = |random: &mut Random| -> Vec<u8> {
        let parent = random.pick(&directories).clone();
        let name = *random.pick(NAMES);
        if parent.is_empty() { name.to_vec() } else { [&parent[..], b"/", name].concat() }
    };
    let choose = |random: &mut Random, of: &[Vec<u8>]| -> Result<Vec<u8>, Errno> {
        if of.is_empty() { Err(Errno::NOENT) } else { Ok(random.pick(of).clone()) }
    };
    let files = of_kind('f');
    match random.below(38) {
        0..4 => write(root, &fresh(random), OFlags::CREATE, &content(random))?,
        4..8 => drop(rustix::fs::mkdirat(root, fresh(random), Mode::from_raw_mode(0o755))),
        8 => write(root, &choose(random, &files)?, OFlags::TRUNC, &content(random))?,
        9 => write(root, &choose(random, &files)?, OFlags::APPEND, &content(random))?,
        10 => {
            // Other bytes in the same number.
            let path = choose(random, &files)?;
            let flipped: Vec<u8> = seen[&path].content.iter().map(|byte| byte ^ 1).collect();
            write(root, &path, OFlags::TRUNC, &flipped)?;
            // Sometimes at the same time too.
            if random.below(2) == 0 {
                set_mtime(root, &path, seen[&path].mtime)?;
            }
        }
        11 => write(root, &choose(random, &files)?, OFlags::APPEND, b"")?,
        12 => {
            // Written anew, but the same.
            let path = choose(random, &files)?;
            write(root, &path, OFlags::TRUNC, &seen[&path].content)?;
            set_mtime(root, &path, seen[&path].mtime)?;
        }
        13..16 => delete(root, &choose(random, &paths)?)?,
        16 | 17 => {
            // A directory made again, with some of what was in it.
            let path = choose(random, &of_kind('d'))?;
            delete(root, &path)?;
            rustix::fs::mkdirat(root, &path, Mode::from_raw_mode(0o755))?;
            let prefix = [&path[..], b"/"].concat();
            for (child, object) in seen.range(prefix.clone()..).take_while(|(child, _)| child.starts_with(&prefix)) {
                if random.below(2) == 0 {
                    continue;
                }
                match object.kind {
                    'f' => write(root, child, OFlags::CREATE, &object.content).unwrap_or(()),
                    'd' => rustix::fs::mkdirat(root, child, Mode::from_raw_mode(object.mode)).unwrap_or(()),
                    _ => {}
                }
                let _ = set_mtime(root, child, object.mtime);
            }
        }
        18 | 19 => {
            let (from, to) = (choose(random, &paths)?, fresh(random));
            rustix::fs::renameat(root, &from, root, &to)?;
            if random.below(3) == 0 {
                rustix::fs::renameat(root, &to, root, &from)?;
            }
        }
        20 | 21 => {
            let from = choose(random, &paths)?;
            rustix::fs::linkat(root, from, root, fresh(random), AtFlags::empty())?;
        }
        22 => {
            let path = choose(random, &paths)?;
            let mode = *random.pick(&[0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o600]);
            rustix::fs::chmodat(root, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        23 => {
            // There and back again.
            let path = choose(random, &paths)?;
            let mode = seen[&path].mode;
            rustix::fs::chmodat(root, &path, Mode::from_raw_mode(mode ^ 0o100), AtFlags::empty())?;
            rustix::fs::chmodat(root, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        24 => {
            let id = *random.pick(&[0, 1000, 70000, 3_000_000]);
            let path = choose(random, &paths)?;
            if records == Records::None {
                let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id / 2)));
                rustix::fs::chownat(root, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            } else {
                // With it goes what goes with a change of owner.
                rustix::fs::chownat(root, &path, Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::SYMLINK_NOFOLLOW)?;
                records.set_owner_at(root, &CString::new(path).unwrap(), id, id / 2)?;
            }
        }
        25 => {
            let capability = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12]].concat();
            let file = open_at(root, &choose(random, &files)?, OFlags::RDONLY)?;
            rustix::fs::fsetxattr(file, "security.capability", &capability, XattrFlags::empty())?;
        }
        26 | 27 => {
            let path = choose(random, &paths)?;
            let file = match seen[&path].kind {
                'f' => open_at(root, &path, OFlags::RDONLY)?,
                'd' => open_at(root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?,
                _ => return Ok(()),
            };
            let name = *random.pick(&["user.a", "user.b"]);
            match random.below(3) {
                0 => rustix::fs::fremovexattr(file, name)?,
                1 => rustix::fs::fsetxattr(file, name, b"", XattrFlags::empty())?,
                _ => rustix::fs::fsetxattr(file, name, b"\n1=\0\xff", XattrFlags::empty())?,
            }
        }
        28 => {
            let target = if random.below(2) == 0 { fresh(random) } else { vec![b't'; 300] };
            rustix::fs::symlinkat(target, root, fresh(random))?;
        }
        29 => rustix::fs::mknodat(root, fresh(random), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?,
        30 => {
            let (major, minor) = (random.below(200) as u32, 1 + random.below(70000) as u32);
            let file_type = *random.pick(&[FileType::CharacterDevice, FileType::BlockDevice]);
            let (path, mode) = (fresh(random), Mode::from_raw_mode(0o660));
            if records == Records::None {
                rustix::fs::mknodat(root, path, file_type, mode, rustix::fs::makedev(major, minor))?;
            } else {
                let device = Device { is_block: file_type == FileType::BlockDevice, major, minor };
                make_marker(root, &CString::new(path).unwrap(), device, mode)?;
            }
        }
        31 => rustix::fs::mknodat(root, fresh(random), FileType::Socket, Mode::from_raw_mode(0o755), 0)?,
        32 => {
            // Whatever it is becomes something else.
            let path = choose(random, &paths)?;
            delete(root, &path)?;
            match random.below(4) {
                0 => write(root, &path, OFlags::CREATE, &content(random))?,
                1 => rustix::fs::mkdirat(root, &path, Mode::from_raw_mode(0o750))?,
                2 => rustix::fs::symlinkat("elsewhere", root, &path)?,
                _ => rustix::fs::mknodat(root, &path, FileType::Socket, Mode::from_raw_mode(0o755), 0)?,
            }
        }
        33 => {
            let mtime = *random.pick(&[(1_700_000_000, 0), (1, 5), (-315_619_200, 0), (-1, 7), (9_000_000_000, 0)]);
            set_mtime(root, &choose(random, &paths)?, mtime)?;
        }
        34 => set_mtime(root, &choose(random, &of_kind('d'))?, (1_700_000_000 + random.below(9) as i64, 3))?,
        35 => {
            // Something comes and goes.
            let path = fresh(random);
            if !seen.contains_key(&path) {
                write(root, &path, OFlags::CREATE, b"x")?;
                delete(root, &path)?;
            }
        }
        36 => {
            // A file replaces another.
            let (from, to) = (choose(random, &files)?, choose(random, &files)?);
            rustix::fs::renameat(root, &from, root, &to)?;
        }
        _ => {
            // A file deleted and made again as a copy of itself.
            let path = choose(random, &files)?;
            delete(root, &path)?;
            write(root, &path, OFlags::CREATE, &seen[&path].content)?;
            set_mtime(root, &path, seen[&path].mtime)?;
        }
    }
    Ok(())
}

pub fn content(random: &mut Random) -> Vec<u8> {
    let length = *random.pick(&[0, 1, 3, 511, 512, 513, 5000]);
    let seed = random.below(256);
    (0..length).map(|at| (at * 7 + seed) as u8).collect()
}

pub fn open_at(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

pub fn write(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, content: &[u8]) -> Result<(), Errno> {
    let mut file = File::from(open_at(root, path, flags | OFlags::WRONLY | OFlags::NONBLOCK)?);
    file.write_all(content).map_err(|error| Errno::from_io_error(&error).unwrap())
}

/// As the kernel or whoever answers in its place does it: a recorded owner stays.
pub fn set_mtime(root: BorrowedFd<'_>, path: &[u8], mtime: (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let is_recorded = Records::of(root)? != Records::None;
    let times = Timestamps { last_access: if is_recorded { unchanged } else { time }, last_modification: time };
    rustix::fs::utimensat(root, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

pub fn delete(root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(root, path, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let dir = open_at(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for (child, _) in tree::read(dir.as_fd()).iter().rev() {
        rustix::fs::unlinkat(&dir, child, AtFlags::empty())
            .or_else(|_| rustix::fs::unlinkat(&dir, child, AtFlags::REMOVEDIR))?;
    }
    rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR)
}
