//! What was changed in a tree, where no overlay sees to it: the tree is looked at before and after, and
//! what differs is written as an upper dir.
//!
//! A change moves the ctime of what is changed, and nobody can set that. So it is enough to look at names and
//! metadata, once the clock of the filesystem is past the last ctime.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::merged::Found;
use super::node::{Kind, Ladder, Node, join, names, open_directory, reopen};
use super::record::Records;
use super::transfer::{Linked, Shift, finish_directory, make_directory};
use super::{staging, whiteout};

/// What tells an object from what it becomes when it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    ctime: (i64, u64),
    mtime: (i64, u64),
    mode: u32,
    owner: (u32, u32),
    size_bytes: u64,
}

impl Stamp {
    #[allow(clippy::unnecessary_cast)] // The fields' types differ between architectures.
    fn at(dir: BorrowedFd<'_>, name: &CString) -> Result<Option<Self>, Errno> {
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        Ok(Some(Self {
            inode: stat.st_ino as u64,
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            size_bytes: stat.st_size as u64,
        }))
    }

    fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::Directory
    }
}

/// How a tree looked, directory by directory.
pub struct Snapshot {
    directories: BTreeMap<Vec<u8>, BTreeMap<CString, Stamp>>,
}

/// Looks at a tree. Returns when what is changed from now on has another ctime: `beside` is a directory on the
/// same filesystem, to ask for its time.
pub fn snapshot(tree: BorrowedFd<'_>, beside: BorrowedFd<'_>) -> Result<Snapshot, Errno> {
    let mut directories = BTreeMap::new();
    let mut newest = (i64::MIN, 0);
    let mut look = |dir: BorrowedFd<'_>| -> Result<BTreeMap<CString, Stamp>, Errno> {
        let mut stamps = BTreeMap::new();
        for (name, _) in names(dir)? {
            if let Some(stamp) = Stamp::at(dir, &name)? {
                newest = newest.max(stamp.ctime);
                stamps.insert(name, stamp);
            }
        }
        Ok(stamps)
    };
    let top = reopen(tree)?;
    let stamps = look(top.as_fd())?;
    let inner = |stamps: &BTreeMap<CString, Stamp>| {
        let directories = stamps.iter().filter(|(_, stamp)| stamp.is_directory());
        directories.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let mut levels = vec![inner(&stamps)];
    directories.insert(Vec::new(), stamps);
    let mut ladder = Ladder::new(top);
    let mut path: Vec<CString> = Vec::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.pop() else {
            levels.pop();
            ladder.pop()?;
            path.pop();
            continue;
        };
        let child = open_directory(ladder.fd(), &name)?;
        let stamps = look(child.as_fd())?;
        ladder.push(child);
        path.push(name);
        levels.push(inner(&stamps));
        directories.insert(path.iter().fold(Vec::new(), |path, name| join(&path, name.to_bytes())), stamps);
    }
    wait_for_clock(beside, newest)?;
    Ok(Snapshot { directories })
}

/// Waits until the filesystem's clock, which moves in ticks of some milliseconds, is past `time`.
#[allow(clippy::unnecessary_cast)] // As above.
fn wait_for_clock(beside: BorrowedFd<'_>, time: (i64, u64)) -> Result<(), Errno> {
    const PROBE: &std::ffi::CStr = c"clock";
    // A clock that was set back would be waited for too long: then metadata has to do without it.
    const MOST: u32 = 100;
    for _ in 0..MOST {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(beside, PROBE, flags, Mode::RUSR)?;
        fs::unlinkat(beside, PROBE, AtFlags::empty())?;
        let stat = fs::fstat(file)?;
        if (stat.st_ctime as i64, stat.st_ctime_nsec as u64) > time {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A directory that is compared.
struct Level {
    /// Those there are and those there were.
    names: std::vec::IntoIter<CString>,
    before: BTreeMap<CString, Stamp>,
    /// As it is in the tree, and its name in the one above.
    is: Option<(CString, Node)>,
    /// The directory in the upper, once there is something to put into it.
    upper: Option<OwnedFd>,
}

/// Writes into the empty upper dir `into` what makes `tree` of what it was `before`. Owners move by `shift`. What
/// looks changed and is the same after all is written too.
pub fn difference(tree: BorrowedFd<'_>, before: Snapshot, into: BorrowedFd<'_>, shift: Shift) -> Result<(), Errno> {
    let records = Records::of(tree)?;
    let mut before = before.directories;
    let top = reopen(tree)?;
    let first = Level::new(top.as_fd(), before.remove(&b""[..]).unwrap_or_default(), None, Some(reopen(into)?))?;
    let mut walk = Walk { records, tree: Ladder::new(top), levels: vec![first], path: Vec::new() };
    let mut linked = Linked::new(into);
    while let Some(level) = walk.levels.last_mut() {
        let Some(name) = level.names.next() else {
            walk.leave()?;
            continue;
        };
        let was = level.before.get(&name).copied();
        let Some(is) = Stamp::at(walk.tree.fd(), &name)? else {
            walk.make_upper()?;
            whiteout::create(walk.upper()?, &name)?;
            continue;
        };
        // What it stands for; it was there just now, and nobody else works on it.
        let Some(node) = records.node_at(walk.tree.fd(), &name)? else { continue };
        if is.is_directory() {
            let path = join(&walk.path, name.to_bytes());
            let was = was.filter(Stamp::is_directory);
            let inside = if was.is_some() { before.remove(&path).unwrap_or_default() } else { BTreeMap::new() };
            let child = open_directory(walk.tree.fd(), &name)?;
            let level = Level::new(child.as_fd(), inside, Some((name, shift.node(node)?)), None)?;
            walk.tree.push(child);
            walk.levels.push(level);
            walk.path = path;
            if was != Some(is) {
                walk.make_upper()?;
            }
            continue;
        }
        if was == Some(is) {
            continue;
        }
        walk.make_upper()?;
        let upper = walk.upper()?;
        let is_made = match node.kind {
            Kind::Whiteout => false,
            _ => {
                let found = Found { node: shift.node(node)?, dir: walk.tree.fd() };
                match node.links > 1 {
                    true => linked.duplicate(records, &found, upper, &name, &walk.path)?,
                    false => staging::duplicate(records, &found, upper, &name)?,
                }
            }
        };
        // No layer holds what is there now, but what was there is gone.
        if !is_made && was.is_some() {
            whiteout::create(upper, &name)?;
        }
    }
    Ok(())
}

struct Walk {
    records: Records,
    tree: Ladder,
    levels: Vec<Level>,
    /// Of the directory the walk is in.
    path: Vec<u8>,
}

impl Level {
    fn new(
        dir: BorrowedFd<'_>,
        before: BTreeMap<CString, Stamp>,
        is: Option<(CString, Node)>,
        upper: Option<OwnedFd>,
    ) -> Result<Self, Errno> {
        let there: BTreeSet<CString> = names(dir)?.into_iter().map(|(name, _)| name).collect();
        let all: Vec<CString> =
            there.into_iter().chain(before.keys().cloned()).collect::<BTreeSet<_>>().into_iter().collect();
        Ok(Self { names: all.into_iter(), before, is, upper })
    }
}

impl Walk {
    /// The upper's directory at the place of the walk, which was made.
    fn upper(&self) -> Result<BorrowedFd<'_>, Errno> {
        let upper = self.levels.last().and_then(|level| level.upper.as_ref());
        upper.map(AsFd::as_fd).ok_or(Errno::NOENT)
    }

    /// Makes it, with all on the way to it.
    fn make_upper(&mut self) -> Result<(), Errno> {
        let made = self.levels.iter().rposition(|level| level.upper.is_some()).unwrap_or(0);
        if made + 1 < self.levels.len() {
            // From the tree's directories only the lowest are open: found again from the top.
            let mut like = reopen(self.tree.fd())?;
            let mut likes = Vec::new();
            for _ in made + 1..self.levels.len() {
                let above = open_directory(&like, c"..")?;
                likes.push(std::mem::replace(&mut like, above));
            }
            for at in made + 1..self.levels.len() {
                // There is one for each level.
                let Some(like) = likes.pop() else { break };
                let (above, below) = self.levels.split_at_mut(at);
                if let (Some(Level { upper: Some(above), .. }), Some(level)) = (above.last(), below.first_mut())
                    && let Some((name, node)) = &level.is
                {
                    level.upper = Some(make_directory(self.records, above.as_fd(), name, node, &like)?);
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Errno> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        let Some((name, node)) = level.is else { return Ok(()) };
        self.tree.pop()?;
        self.path.truncate(self.path.len() - name.to_bytes().len());
        self.path.pop();
        if level.upper.is_some()
            && let Some(above) = self.levels.last().and_then(|level| level.upper.as_ref())
        {
            finish_directory(self.records, above.as_fd(), &name, &node)?;
        }
        Ok(())
    }
}
