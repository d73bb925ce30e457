//! A layer dir in the making on top of other layers: finds the directory a member belongs into,
//! and makes it if the tar does not mention it.
//!
//! A path leads through what this layer has so far and, where it has nothing, through the layers
//! below: `var/run/x` lands in `/run` if `var/run` is a link to it in either. Every step opens one
//! name in one directory and follows no link; links are followed here, inside the tree. So nothing
//! that a tar says reaches a file outside.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::vec;

use rustix::fs::{self, AtFlags, Mode};
use rustix::io::Errno;

use super::canonical::normalize_root;
use super::merged::{Found, Merged, components};
use super::node::{
    self, Kind, Ladder, join, link_target, names, node_at, open_directory, open_file, reopen, set_mtime,
};
use super::record::{Device, Records};
use super::{Summary, whiteout, xattr};

pub struct Staging<'a> {
    root: OwnedFd,
    /// What the layer may record.
    pub records: Records,
    lowers: &'a [BorrowedFd<'a>],
    dirs: BTreeMap<Vec<u8>, DirState>,
    /// The last parent: members come in the order of directories.
    last: Option<(Vec<u8>, Rc<Place>)>,
    below: RefCell<Option<(Vec<u8>, Rc<Merged>)>>,
}

/// A directory of the layer.
pub struct Place {
    pub fd: OwnedFd,
    /// Without symbolic links; empty for the root.
    pub path: Vec<u8>,
    /// Nothing below shows through.
    pub is_opaque: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct DirState {
    /// Set at the end: what is made in a directory moves it.
    mtime: (i64, u32),
    /// A member of the tar, and so kept even if nothing is in it.
    is_explicit: bool,
    /// Nothing of the layers below shows through it.
    is_opaque: bool,
}

enum Step {
    Into(Place),
    Link(Vec<u8>),
    /// The name is there and no directory.
    Blocked,
}

/// As the kernel.
const MAX_LINKS: usize = 40;

impl<'a> Staging<'a> {
    pub fn new(into: BorrowedFd<'_>, lowers: &'a [BorrowedFd<'a>]) -> Result<Self, Errno> {
        let below = RefCell::new(None);
        Ok(Self { root: reopen(into)?, records: Records::of(into)?, lowers, dirs: BTreeMap::new(), last: None, below })
    }

    /// The directory at `path`, a path as a tar writes it. Directories on the way that this layer
    /// does not have are made as they are below, else with mode 0755. `None` if something on the
    /// way is no directory.
    pub fn place(&mut self, path: &[u8]) -> Result<Option<Rc<Place>>, Errno> {
        let (mut at, rest) = match &self.last {
            Some((last, place)) if last == path => return Ok(Some(Rc::clone(place))),
            Some((last, place)) if path.starts_with(last) && path.get(last.len()) == Some(&b'/') => {
                (Rc::clone(place), &path[last.len()..])
            }
            _ => (Rc::new(self.top()?), path),
        };
        let mut todo: Vec<Vec<u8>> = components(rest).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if component == b".." {
                let parent = at.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                at = Rc::new(self.reach(&at.path[..parent])?);
                continue;
            }
            let name = CString::new(component).map_err(|_| Errno::INVAL)?;
            match self.step(&at, &name)? {
                Step::Into(place) => at = Rc::new(place),
                Step::Blocked => return Ok(None),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        at = Rc::new(self.top()?);
                    }
                    todo.extend(components(&target).map(<[u8]>::to_vec));
                }
            }
        }
        self.last = Some((path.to_vec(), Rc::clone(&at)));
        Ok(Some(at))
    }

    /// What the layers below show at a name of the layer.
    pub fn find_below<T>(
        &self,
        place: &Place,
        name: &CStr,
        take: impl FnOnce(Option<Found<'_>>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if place.is_opaque {
            return take(None);
        }
        let below = self.below(&place.path)?;
        take(below.find(name)?)
    }

    /// Takes away what the layer has at a name, so that something else can be put there. What the
    /// tar said about it before counts for nothing; but a directory that comes in the place of
    /// anything else starts empty.
    pub fn clear(&mut self, place: &Place, name: &CStr) -> Result<(), Errno> {
        self.last = None;
        let path = join(&place.path, name.to_bytes());
        if self.dirs.remove(&path).is_some() {
            let prefix = [&path[..], b"/"].concat();
            let below =
                self.dirs.range(prefix.clone()..).map(|(dir, _)| dir).take_while(|dir| dir.starts_with(&prefix));
            for dir in below.cloned().collect::<Vec<_>>() {
                self.dirs.remove(&dir);
            }
        }
        node::remove(&place.fd, name)
    }

    /// Makes an explicit directory, or takes the one that is there.
    pub fn directory(&mut self, place: &Place, name: &CStr, mtime: (i64, u32)) -> Result<OwnedFd, Errno> {
        let path = join(&place.path, name.to_bytes());
        let mut is_opaque = false;
        match node_at(&place.fd, name)? {
            Some(node) if node.is_directory() => {}
            existing => {
                if existing.is_some() {
                    self.clear(place, name)?;
                    is_opaque = true;
                }
                fs::mkdirat(&place.fd, name, Mode::RWXU)?;
            }
        }
        let state = self.dirs.entry(path).or_default();
        *state = DirState { mtime, is_explicit: true, is_opaque: state.is_opaque || is_opaque };
        open_directory(&place.fd, name)
    }

    /// Hides a name of the layers below; what this layer puts there itself, before or after, stays.
    pub fn whiteout(&mut self, place: &Place, name: &CStr) -> Result<(), Errno> {
        match node_at(&place.fd, name)? {
            Some(node) if node.is_directory() => self.mark_opaque(&join(&place.path, name.to_bytes())),
            Some(_) => Ok(()),
            None if self.find_below(place, name, |found| Ok(found.is_some()))? => whiteout::create(&place.fd, name),
            None => Ok(()),
        }
    }

    /// Hides all that the layers below have in a directory.
    pub fn opaque(&mut self, place: &Place) -> Result<(), Errno> {
        self.mark_opaque(&place.path)
    }

    fn mark_opaque(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.last = None;
        self.dirs.entry(path.to_vec()).or_default().is_opaque = true;
        Ok(())
    }

    fn top(&self) -> Result<Place, Errno> {
        let is_opaque = self.dirs.get(&b""[..]).is_some_and(|state| state.is_opaque);
        Ok(Place { fd: reopen(self.root.as_fd())?, path: Vec::new(), is_opaque })
    }

    /// The directory at a path that was reached before.
    fn reach(&self, path: &[u8]) -> Result<Place, Errno> {
        let mut place = self.top()?;
        let names: Vec<_> = components(path).collect();
        for name in names.into_iter().rev() {
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            let fd = open_directory(&place.fd, &name)?;
            place = self.child(&place, &name, fd);
        }
        Ok(place)
    }

    fn child(&self, place: &Place, name: &CStr, fd: OwnedFd) -> Place {
        let path = join(&place.path, name.to_bytes());
        let is_opaque = place.is_opaque || self.dirs.get(&path).is_some_and(|state| state.is_opaque);
        Place { fd, path, is_opaque }
    }

    fn step(&mut self, place: &Place, name: &CStr) -> Result<Step, Errno> {
        match open_directory(&place.fd, name) {
            Ok(fd) => return Ok(Step::Into(self.child(place, name, fd))),
            Err(Errno::NOENT) => return self.imply(place, name),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        match node_at(&place.fd, name)?.map(|node| node.kind) {
            Some(Kind::Symlink) => Ok(Step::Link(link_target(&place.fd, name)?)),
            Some(Kind::Whiteout) => {
                fs::unlinkat(&place.fd, name, AtFlags::empty())?;
                self.make(place, name, None, true)
            }
            _ => Ok(Step::Blocked),
        }
    }

    /// A name on the way that this layer does not have.
    fn imply(&mut self, place: &Place, name: &CStr) -> Result<Step, Errno> {
        let below = if place.is_opaque { Rc::default() } else { self.below(&place.path)? };
        match below.find(name)? {
            None => self.make(place, name, None, false),
            Some(found) => match found.node.kind {
                Kind::Directory => self.make(place, name, Some(&found), false),
                Kind::Symlink => Ok(Step::Link(link_target(found.dir, name)?)),
                _ => Ok(Step::Blocked),
            },
        }
    }

    fn make(&mut self, place: &Place, name: &CStr, like: Option<&Found<'_>>, is_opaque: bool) -> Result<Step, Errno> {
        fs::mkdirat(&place.fd, name, Mode::RWXU)?;
        let fd = open_directory(&place.fd, name)?;
        let mut state = DirState { is_opaque, ..DirState::default() };
        let (uid, gid, mode) = like.map_or((0, 0, 0o755), |found| (found.node.uid, found.node.gid, found.node.mode));
        self.records.set_owner(&fd, uid, gid)?;
        fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        if let Some(found) = like {
            state.mtime = found.node.mtime;
            xattr::set(&fd, &xattr::kept(open_directory(found.dir, name)?)?)?;
        }
        self.dirs.insert(join(&place.path, name.to_bytes()), state);
        Ok(Step::Into(self.child(place, name, fd)))
    }

    /// The directory of the layers below at a path without links.
    fn below(&self, path: &[u8]) -> Result<Rc<Merged>, Errno> {
        if let Some((last, merged)) = &*self.below.borrow()
            && last == path
        {
            return Ok(Rc::clone(merged));
        }
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let names = names.map(|name| CString::new(name).map_err(|_| Errno::INVAL)).collect::<Result<Vec<_>, _>>()?;
        let merged = Rc::new(Merged::root(self.lowers)?.enter_all(names.iter().map(CString::as_c_str))?);
        *self.below.borrow_mut() = Some((path.to_vec(), Rc::clone(&merged)));
        Ok(merged)
    }

    /// Copies an object that only the layers below have into the layer, to be linked to.
    /// `false` if there is none that can be.
    pub fn copy_up(&self, place: &Place, name: &CStr) -> Result<bool, Errno> {
        self.find_below(place, name, |found| {
            let Some(found) = found else { return Ok(false) };
            duplicate(self.records, &found, place.fd.as_fd(), name)
        })
    }

    /// Turns the layer into a proper layer dir: whiteouts where something below must not show
    /// through, no directory that was only passed, directory times last.
    pub fn finish(self) -> Result<Summary, Errno> {
        let root = reopen(self.root.as_fd())?;
        let mut walk = Finish { ladder: Ladder::new(root), levels: Vec::new(), dirs: self.dirs };
        let state = walk.dirs.get(&b""[..]).copied().unwrap_or_default();
        let below = if state.is_opaque { Some(Merged::root(self.lowers)?) } else { None };
        walk.begin(Vec::new(), c".".to_owned(), state, below)?;
        let mut summary = Summary::default();
        let mut linked = BTreeSet::new();
        while let Some(level) = walk.levels.last_mut() {
            let Some(name) = level.names.next() else {
                walk.leave(&mut summary)?;
                continue;
            };
            let Some(node) = node_at(walk.ladder.fd(), &name)? else { continue };
            if node.is_directory() {
                let path = join(&level.path, name.to_bytes());
                let state = walk.dirs.get(&path).copied().unwrap_or_default();
                let below = match &level.below {
                    Some(below) => Some(below.enter(&name)?),
                    None if state.is_opaque => {
                        let names = path.split(|byte| *byte == b'/').filter_map(|name| CString::new(name).ok());
                        let names: Vec<_> = names.collect();
                        Some(Merged::root(self.lowers)?.enter_all(names.iter().map(CString::as_c_str))?)
                    }
                    None => None,
                };
                let child = open_directory(walk.ladder.fd(), &name)?;
                walk.ladder.push(child);
                walk.begin(path, name, state, below)?;
                continue;
            }
            level.kept += 1;
            summary.entries += 1;
            if node.links == 1 || node.is_whiteout() || linked.insert(node.identity) {
                summary.size_bytes += node.size_bytes;
            }
            if !node.is_whiteout() {
                summary.newest = summary.newest.max(node.mtime.0);
            }
        }
        normalize_root(self.root.as_fd())?;
        Ok(summary)
    }
}

struct Finish {
    ladder: Ladder,
    levels: Vec<FinishLevel>,
    dirs: BTreeMap<Vec<u8>, DirState>,
}

struct FinishLevel {
    path: Vec<u8>,
    name: CString,
    names: vec::IntoIter<CString>,
    state: DirState,
    /// What must not show through, in and below an opaque directory.
    below: Option<Merged>,
    kept: u64,
}

impl Finish {
    fn begin(&mut self, path: Vec<u8>, name: CString, state: DirState, below: Option<Merged>) -> Result<(), Errno> {
        let dir = self.ladder.fd();
        let mut present: Vec<CString> = names(dir)?.into_iter().map(|(name, _)| name).collect();
        if let Some(below) = &below {
            let hidden: Vec<_> =
                below.children()?.into_iter().filter(|name| present.binary_search(name).is_err()).collect();
            for name in hidden {
                whiteout::create(dir, &name)?;
                present.push(name);
            }
        }
        self.levels.push(FinishLevel { path, name, names: present.into_iter(), state, below, kept: 0 });
        Ok(())
    }

    fn leave(&mut self, summary: &mut Summary) -> Result<(), Errno> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        let Some(parent) = self.levels.last_mut() else { return Ok(()) };
        let is_kept = level.state.is_explicit || level.kept > 0;
        if is_kept {
            set_mtime(self.ladder.fd(), c".", level.state.mtime)?;
            parent.kept += 1;
            summary.entries += 1;
        }
        self.ladder.pop()?;
        if !is_kept {
            fs::unlinkat(self.ladder.fd(), &level.name, AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }
}

/// Copies what is no directory, with all its metadata; `records` are those that count where it goes. `false` for
/// what no layer holds as such.
pub fn duplicate(records: Records, found: &Found<'_>, into: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    let node = found.node;
    match node.kind {
        Kind::Directory | Kind::Whiteout | Kind::Socket => return Ok(false),
        Kind::Symlink => fs::symlinkat(link_target(found.dir, name)?, into, name)?,
        Kind::File => {
            let from = open_file(found.dir, name)?;
            let to = create_file(into, name)?;
            let xattrs = xattr::kept(&from)?;
            let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
            std::io::copy(&mut from, &mut to).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            records.set_owner(&to, node.uid, node.gid)?;
            xattr::set(&to, &xattrs)?;
        }
        Kind::Fifo => fs::mknodat(into, name, fs::FileType::Fifo, Mode::empty(), 0)?,
        Kind::CharDevice | Kind::BlockDevice => {
            let Some(device) = Device::of(&node) else { return Ok(false) };
            records.make_device(into, name, device)?;
        }
    }
    if node.kind != Kind::File {
        records.set_owner_at(into, name, node.uid, node.gid)?;
    }
    if node.kind != Kind::Symlink {
        fs::chmodat(into, name, Mode::from_raw_mode(node.mode), AtFlags::empty())?;
    }
    records.set_mtime_at(into, name, node.mtime)?;
    Ok(true)
}

/// Gives a file of a finished layer dir a further name in another one. It is the same file as long as it can have as
/// many names.
pub fn link(records: Records, found: &Found<'_>, into: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match fs::linkat(found.dir, name, into, name, AtFlags::empty()) {
        Err(Errno::MLINK) => duplicate(records, found, into, name).map(drop),
        linked => linked,
    }
}

/// A new file that only its owner can read, until its content and owner are right.
pub fn create_file(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    use rustix::fs::OFlags;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
}
