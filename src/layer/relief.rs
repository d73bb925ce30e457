//! A rootfs in memory as the tables of its layers tell it: everything but what is in its files. What somebody is going to
//! meet of it is cut out as a small directory, over which an overlay is the same to him as over all layers.
//!
//! A table is applied as a tar is unpacked (`unpack`, `staging`), member by member, so that both come to the same whatever
//! a tar says. What could not be unpacked makes no relief.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::mem;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{self, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::archive::Member;
use super::canonical::normalize_root;
use super::merged::components;
use super::node::{join, open_below, open_directory};
use super::record::{Device, Records};
use super::staging::create_file;
use super::table::{Row, Table};
use super::unpack::split;
use super::whiteout::{Meaning, meaning};
use super::xattr::Xattrs;

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct Relief {
    root: Names,
}

type Names = BTreeMap<Box<[u8]>, Thing>;

/// What a name stands for.
#[derive(Clone, Debug)]
struct Thing {
    look: Look,
    body: Body,
}

#[derive(Clone, Debug)]
struct Look {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Xattrs,
}

impl Look {
    /// Of a directory that no member of a tar is.
    const IMPLIED: Self = Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() };
}

#[derive(Clone, Debug)]
enum Body {
    Directory(Names),
    File { size_bytes: u64, content: Option<Arc<[u8]>> },
    Symlink(Arc<[u8]>),
    Fifo,
    Device(Device),
}

/// A tar that would not be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// As the kernel.
const MAX_LINKS: usize = 40;
const MAX_NAME_BYTES: usize = 255;
const MAX_LINK_BYTES: usize = 4095;
/// Directories within each other. Deeper ones can be unpacked, but none that anybody means is.
const MAX_DEPTH: usize = 256;

impl Relief {
    /// Puts a layer on it.
    pub fn apply(&mut self, table: &Table) -> Result<(), Unfit> {
        let mut staging = Staging { below: &self.root, dirs: vec![Dir::default()], last: None };
        table.rows().try_for_each(|row| staging.member(&row.ok_or(Unfit)?))?;
        let mut dirs = staging.dirs;
        let top = mem::take(&mut dirs[TOP]);
        finish(&mut self.root, top.items, top.is_opaque, &mut dirs);
        Ok(())
    }

    /// Of all that is in it.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        let mut paths = Vec::new();
        let mut todo = vec![(Vec::new(), &self.root)];
        while let Some((above, names)) = todo.pop() {
            for (name, thing) in names {
                let path = join(&above, name);
                todo.extend(thing.names().map(|names| (path.clone(), names)));
                paths.push(path);
            }
        }
        paths
    }

    fn thing(&self, path: &[u8]) -> Option<&Thing> {
        thing(&self.root, names_of(path))
    }
}

fn names_of(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
}

fn thing<'n, 'a>(root: &'n Names, path: impl Iterator<Item = &'a [u8]>) -> Option<&'n Thing> {
    let (mut names, mut found) = (Some(root), None);
    for name in path {
        let thing = names?.get(name)?;
        names = thing.names();
        found = Some(thing);
    }
    found
}

impl Thing {
    fn names(&self) -> Option<&Names> {
        match &self.body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }
}

// ---- a layer in the making: the same as `staging`, without files

struct Staging<'r> {
    below: &'r Names,
    /// Those of the layer, also what was taken away again.
    dirs: Vec<Dir>,
    /// The last parent. It is kept for what it says and not for speed alone: a tar may change where its path leads.
    last: Option<(Vec<u8>, Rc<Place<'r>>)>,
}

/// Where the root is among them.
const TOP: usize = 0;

#[derive(Debug)]
struct Dir {
    look: Look,
    is_explicit: bool,
    is_opaque: bool,
    items: BTreeMap<Box<[u8]>, Item>,
}

impl Default for Dir {
    fn default() -> Self {
        Self { look: Look::IMPLIED, is_explicit: false, is_opaque: false, items: BTreeMap::new() }
    }
}

#[derive(Debug)]
enum Item {
    /// By its place among all.
    Dir(usize),
    /// Anything but a directory.
    Thing(Thing),
    Whiteout,
}

/// A directory of the layer, without symbolic links on the way.
struct Place<'r> {
    path: Vec<Box<[u8]>>,
    dir: usize,
    is_opaque: bool,
    /// What the layers below show in it.
    below: Option<&'r Names>,
}

enum Step<'r> {
    Into(Place<'r>),
    Link(Arc<[u8]>),
    Blocked,
}

impl<'r> Staging<'r> {
    fn member(&mut self, Row { member, content }: &Row) -> Result<(), Unfit> {
        let Some((parent, name)) = split(&member.path).map_err(|_| Unfit)? else {
            return if member.entry_type == EntryType::Directory { Ok(()) } else { Err(Unfit) };
        };
        let of_aufs = |component: &[u8]| meaning(component) == Meaning::Aufs;
        if of_aufs(name) || parent.split(|byte| *byte == b'/').any(of_aufs) {
            return Ok(());
        }
        if parent.split(|byte| *byte == b'/').any(|component| meaning(component) != Meaning::Name) {
            return Err(Unfit);
        }
        let place = self.place(&parent)?;
        let meaning = meaning(name);
        let Some(place) = place else {
            return match meaning {
                Meaning::Whiteout(_) | Meaning::Opaque => Ok(()),
                _ => Err(Unfit),
            };
        };
        match meaning {
            Meaning::Opaque => {
                self.last = None;
                self.dirs[place.dir].is_opaque = true;
                Ok(())
            }
            Meaning::Whiteout(name) => self.whiteout(&place, name),
            Meaning::Name => self.add(member, content.as_deref(), &place, name),
            Meaning::Aufs => Ok(()),
            Meaning::Invalid => Err(Unfit),
        }
    }

    fn add(&mut self, member: &Member, content: Option<&[u8]>, place: &Place<'r>, name: &[u8]) -> Result<(), Unfit> {
        fits(name)?;
        let owner = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Unfit);
        let (uid, gid) = (owner(member.uid)?, owner(member.gid)?);
        let is_dressed = matches!(member.entry_type, EntryType::Directory | EntryType::Regular);
        let xattrs = if is_dressed { member.xattrs.clone() } else { Vec::new() };
        let look = Look { mode: member.mode, uid, gid, mtime: member.mtime, xattrs };
        if member.entry_type == EntryType::Directory {
            return self.directory(place, name, look);
        }
        let source = match member.entry_type {
            EntryType::Link => match self.link_source(member)? {
                (from, from_name) if from.path == place.path && *from_name == *name => return Ok(()),
                source => Some(source),
            },
            EntryType::Char if member.major == 0 && member.minor == 0 => return self.whiteout(place, name),
            _ => None,
        };
        let body = match member.entry_type {
            EntryType::Regular => Body::File { size_bytes: member.size_bytes, content: content.map(Arc::from) },
            EntryType::Link => {
                let (from, from_name) = source.ok_or(Unfit)?;
                // It lies in what gives way to it.
                if from.path.starts_with(&place.path) && from.path.get(place.path.len()).is_some_and(|of| **of == *name)
                {
                    return Err(Unfit);
                }
                let Some(Item::Thing(thing)) = self.dirs[from.dir].items.get(&from_name) else { return Err(Unfit) };
                let thing = thing.clone();
                self.put(place, name, thing);
                return Ok(());
            }
            EntryType::Symlink if fits_link(&member.link) => Body::Symlink(member.link.as_slice().into()),
            EntryType::Fifo => Body::Fifo,
            EntryType::Char | EntryType::Block if member.major < 1 << 12 && member.minor < 1 << 20 => {
                let is_block = member.entry_type == EntryType::Block;
                Body::Device(Device { is_block, major: member.major, minor: member.minor })
            }
            _ => return Err(Unfit),
        };
        // Links have no mode of their own.
        let mode = if matches!(body, Body::Symlink(_)) { 0o777 } else { look.mode };
        self.put(place, name, Thing { look: Look { mode, ..look }, body });
        Ok(())
    }

    fn link_source(&mut self, member: &Member) -> Result<(Rc<Place<'r>>, Box<[u8]>), Unfit> {
        let (parent, name) = split(&member.link).ok().flatten().ok_or(Unfit)?;
        let place = self.place(&parent)?.ok_or(Unfit)?;
        match self.dirs[place.dir].items.get(name) {
            Some(Item::Thing(_)) => {}
            Some(Item::Dir(_) | Item::Whiteout) => return Err(Unfit),
            None => match place.below.and_then(|below| below.get(name)) {
                Some(thing) if thing.names().is_none() => {
                    // Nothing gives way to it.
                    self.put(&place, name, thing.clone());
                }
                _ => return Err(Unfit),
            },
        }
        Ok((place, name.into()))
    }

    fn directory(&mut self, place: &Place<'r>, name: &[u8], look: Look) -> Result<(), Unfit> {
        deep_enough(place.path.len() + 1)?;
        // One that comes in the place of anything else starts empty.
        let is_opaque = match self.dirs[place.dir].items.get(name) {
            Some(Item::Dir(dir)) => {
                let dir = *dir;
                (self.dirs[dir].look, self.dirs[dir].is_explicit) = (look, true);
                return Ok(());
            }
            existing => existing.is_some(),
        };
        if is_opaque {
            self.last = None;
        }
        self.make(place, name.into(), Dir { look, is_explicit: true, is_opaque, ..Dir::default() });
        Ok(())
    }

    fn whiteout(&mut self, place: &Place<'r>, name: &[u8]) -> Result<(), Unfit> {
        fits(name)?;
        let items = &mut self.dirs[place.dir].items;
        match items.get(name) {
            Some(Item::Dir(dir)) => {
                let dir = *dir;
                self.dirs[dir].is_opaque = true;
                self.last = None;
            }
            None if place.below.is_some_and(|below| below.contains_key(name)) => {
                items.insert(name.into(), Item::Whiteout);
            }
            _ => {}
        }
        Ok(())
    }

    /// What has the name gives way.
    fn put(&mut self, place: &Place<'r>, name: &[u8], thing: Thing) {
        if self.dirs[place.dir].items.insert(name.into(), Item::Thing(thing)).is_some() {
            self.last = None;
        }
    }

    /// The same, by a directory.
    fn make(&mut self, place: &Place<'r>, name: Box<[u8]>, dir: Dir) -> usize {
        let made = self.dirs.len();
        self.dirs.push(dir);
        self.dirs[place.dir].items.insert(name, Item::Dir(made));
        made
    }

    /// The directory at `path`; `None` if something on the way is no directory.
    fn place(&mut self, path: &[u8]) -> Result<Option<Rc<Place<'r>>>, Unfit> {
        let (mut at, rest) = match &self.last {
            Some((last, place)) if last == path => return Ok(Some(Rc::clone(place))),
            Some((last, place)) if path.starts_with(last) && path.get(last.len()) == Some(&b'/') => {
                (Rc::clone(place), &path[last.len()..])
            }
            _ => (Rc::new(self.root()), path),
        };
        let mut todo: Vec<Box<[u8]>> = components(rest).map(Box::from).collect();
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if *component == *b".." {
                let above = at.path.len().saturating_sub(1);
                at = Rc::new(self.reach(&at.path[..above])?);
                continue;
            }
            fits(&component)?;
            match self.step(&at, component)? {
                Step::Into(place) => at = Rc::new(place),
                Step::Blocked => return Ok(None),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Unfit);
                    }
                    if target.starts_with(b"/") {
                        at = Rc::new(self.root());
                    }
                    todo.extend(components(&target).map(Box::from));
                }
            }
        }
        self.last = Some((path.to_vec(), Rc::clone(&at)));
        Ok(Some(at))
    }

    fn root(&self) -> Place<'r> {
        let is_opaque = self.dirs[TOP].is_opaque;
        Place { path: Vec::new(), dir: TOP, is_opaque, below: (!is_opaque).then_some(self.below) }
    }

    /// The directory at a path that was reached before.
    fn reach(&self, path: &[Box<[u8]>]) -> Result<Place<'r>, Unfit> {
        path.iter().try_fold(self.root(), |place, name| match self.dirs[place.dir].items.get(name) {
            Some(Item::Dir(dir)) => Ok(self.within(&place, name.clone(), *dir)),
            _ => Err(Unfit),
        })
    }

    /// A directory of the layer in another one.
    fn within(&self, place: &Place<'r>, name: Box<[u8]>, dir: usize) -> Place<'r> {
        let is_opaque = place.is_opaque || self.dirs[dir].is_opaque;
        let below = place.below.filter(|_| !is_opaque).and_then(|below| below.get(&name)?.names());
        let mut path = Vec::with_capacity(place.path.len() + 1);
        path.extend_from_slice(&place.path);
        path.push(name);
        Place { path, dir, is_opaque, below }
    }

    fn step(&mut self, place: &Place<'r>, name: Box<[u8]>) -> Result<Step<'r>, Unfit> {
        let dir = match self.dirs[place.dir].items.get(&name) {
            Some(Item::Dir(dir)) => return Ok(Step::Into(self.within(place, name, *dir))),
            Some(Item::Thing(Thing { body: Body::Symlink(target), .. })) => return Ok(Step::Link(Arc::clone(target))),
            Some(Item::Thing(_)) => return Ok(Step::Blocked),
            Some(Item::Whiteout) => Dir { is_opaque: true, ..Dir::default() },
            None => match place.below.and_then(|below| below.get(&name)) {
                None => Dir::default(),
                Some(Thing { look, body: Body::Directory(_) }) => Dir { look: look.clone(), ..Dir::default() },
                Some(Thing { body: Body::Symlink(target), .. }) => return Ok(Step::Link(Arc::clone(target))),
                Some(_) => return Ok(Step::Blocked),
            },
        };
        deep_enough(place.path.len() + 1)?;
        let dir = self.make(place, name.clone(), dir);
        Ok(Step::Into(self.within(place, name, dir)))
    }
}

fn fits(name: &[u8]) -> Result<(), Unfit> {
    if name.len() > MAX_NAME_BYTES { Err(Unfit) } else { Ok(()) }
}

fn fits_link(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= MAX_LINK_BYTES && !target.contains(&0)
}

fn deep_enough(depth: usize) -> Result<(), Unfit> {
    if depth > MAX_DEPTH { Err(Unfit) } else { Ok(()) }
}

/// Lays a directory of a layer over what is below. Returns how many names the layer keeps in it, whiteouts too.
fn finish(below: &mut Names, items: BTreeMap<Box<[u8]>, Item>, is_opaque: bool, dirs: &mut [Dir]) -> u64 {
    let mut kept = 0;
    if is_opaque {
        let before = below.len();
        below.retain(|name, _| items.contains_key(name));
        kept += (before - below.len()) as u64;
    }
    for (name, item) in items {
        match item {
            Item::Whiteout => drop(below.remove(&name)),
            Item::Thing(thing) => drop(below.insert(name, thing)),
            Item::Dir(dir) => {
                let dir = mem::take(&mut dirs[dir]);
                let is_opaque = is_opaque || dir.is_opaque;
                match below.get_mut(&name) {
                    Some(Thing { look, body: Body::Directory(names) }) => {
                        // A directory that was only passed is none of the layer: where it keeps nothing, nothing changed.
                        if finish(names, dir.items, is_opaque, dirs) == 0 && !dir.is_explicit {
                            continue;
                        }
                        *look = dir.look;
                    }
                    _ => {
                        let mut names = Names::new();
                        if finish(&mut names, dir.items, is_opaque, dirs) == 0 && !dir.is_explicit {
                            continue;
                        }
                        below.insert(name, Thing { look: dir.look, body: Body::Directory(names) });
                    }
                }
            }
        }
        kept += 1;
    }
    kept
}

// ---- what is cut out

/// As much of a relief as somebody is going to meet.
pub struct Cutting<'r> {
    relief: &'r Relief,
    /// With all directories on the way.
    paths: BTreeSet<Vec<u8>>,
}

/// What is met at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    Nothing,
    Directory,
    File {
        size_bytes: u64,
        mtime: (i64, u32),
        /// Whether it will be in the directory with its bytes.
        has_content: bool,
    },
    Other,
}

impl<'r> Cutting<'r> {
    pub fn of(relief: &'r Relief) -> Self {
        Self { relief, paths: BTreeSet::new() }
    }

    /// Goes along `path` as one who follows links and makes what is missing. Returns where it ends, without links; `None`
    /// if something on the way is no directory.
    pub fn walk(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        let mut trail: Vec<Vec<u8>> = Vec::new();
        let mut todo: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                trail.pop();
                continue;
            }
            trail.push(name);
            let here = trail.join(&b'/');
            let Some(thing) = self.relief.thing(&here) else { continue };
            self.paths.insert(here);
            match &thing.body {
                Body::Directory(_) => {}
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    trail.pop();
                    if target.starts_with(b"/") {
                        trail.clear();
                    }
                    todo.extend(components(target).map(<[u8]>::to_vec));
                }
                _ if todo.is_empty() => {}
                _ => return None,
            }
        }
        Some(trail.join(&b'/'))
    }

    /// Goes from the directory `base` along `below`, a path that no link is followed on.
    pub fn meet(&mut self, base: &[u8], below: &[u8]) -> Met {
        let path = if base.is_empty() { below.to_vec() } else { join(base, below) };
        let mut names = Some(&self.relief.root);
        let (mut end, mut met) = (0, Met::Directory);
        for name in names_of(&path) {
            // Paths that come from elsewhere have one slash between two names.
            end += name.len() + usize::from(end > 0);
            let Some(thing) = names.and_then(|names| names.get(name)) else { return Met::Nothing };
            if !self.paths.contains(&path[..end]) {
                self.paths.insert(path[..end].to_vec());
            }
            names = thing.names();
            met = match &thing.body {
                Body::Directory(_) => Met::Directory,
                Body::File { size_bytes, content } => {
                    Met::File { size_bytes: *size_bytes, mtime: thing.look.mtime, has_content: content.is_some() }
                }
                _ => Met::Other,
            };
        }
        met
    }

    /// How many there are to be made.
    pub fn names(&self) -> usize {
        self.paths.len()
    }

    /// Fills the empty directory `into`. A file whose bytes nobody knows is as large as it is, and of zeros.
    pub fn make(&self, into: BorrowedFd<'_>) -> Result<(), Errno> {
        let records = Records::of(into)?;
        for (path, thing) in self.things() {
            let (parent, name) =
                path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
            let parent =
                open_below(into, parent.strip_suffix(b"/").unwrap_or(parent), OFlags::RDONLY | OFlags::DIRECTORY)?;
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            let Look { mode, uid, gid, mtime, xattrs } = &thing.look;
            let mode = Mode::from_raw_mode(*mode);
            let opened = match &thing.body {
                Body::Directory(_) => {
                    fs::mkdirat(&parent, &name, Mode::RWXU)?;
                    open_directory(&parent, &name)?
                }
                Body::File { size_bytes, content } => {
                    let mut file = File::from(create_file(&parent, &name)?);
                    match content {
                        Some(content) => file.write_all(content).map_err(|_| Errno::IO)?,
                        None => fs::ftruncate(&file, *size_bytes)?,
                    }
                    file.into()
                }
                body => {
                    match body {
                        Body::Symlink(target) => fs::symlinkat(&**target, &parent, &name)?,
                        Body::Device(device) => records.make_device(&parent, &name, *device)?,
                        _ => fs::mknodat(&parent, &name, FileType::Fifo, Mode::empty(), 0)?,
                    }
                    records.set_owner_at(&parent, &name, *uid, *gid)?;
                    if !matches!(body, Body::Symlink(_)) {
                        fs::chmodat(&parent, &name, mode, fs::AtFlags::empty())?;
                    }
                    records.set_mtime_at(&parent, &name, *mtime)?;
                    continue;
                }
            };
            records.set_owner(&opened, *uid, *gid)?;
            fs::fchmod(&opened, mode)?;
            // Not as leniently as for a layer: what is not there would be taken for a change.
            for (name, value) in xattrs {
                fs::fsetxattr(&opened, name, value, XattrFlags::empty())?;
            }
            fs::futimens(&opened, &super::node::times(*mtime))?;
        }
        // What was made in a directory has moved its time.
        for (path, thing) in self.things().filter(|(_, thing)| thing.names().is_some()) {
            let directory = open_below(into, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            fs::futimens(&directory, &super::node::times(thing.look.mtime))?;
        }
        normalize_root(into)
    }

    /// Parents first.
    fn things(&self) -> impl Iterator<Item = (&Vec<u8>, &Thing)> {
        self.paths.iter().filter_map(|path| Some((path, self.relief.thing(path)?)))
    }
}
