//! Where things land: directories beneath a root, reached one component at a time.
//!
//! A walk steps from one held directory fd to the next and never has the kernel follow a link: a
//! link is read, and its target walked like any other path with the base as its `/`. So nothing
//! outside the base is reached, whatever is renamed meanwhile. [`Root`] also remembers which
//! directories were changed and sets their times at the end.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Owner;
use super::node;
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::node::open_below;
use crate::layer::{self, Records};

/// As many as the kernel follows in one path.
const MAX_LINKS: u32 = 40;

/// An open directory and its path below the root: `/`-separated, without links, no leading slash,
/// empty for the root itself. The fd may be opened with `O_PATH`.
pub(super) struct Directory {
    pub fd: OwnedFd,
    pub path: Vec<u8>,
}

impl Directory {
    /// The path of something in this directory.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }

    fn duplicate(&self) -> Result<Self> {
        let fd = self.fd.try_clone().context(|| format!("cannot open `{}`", shown(&self.path)))?;
        Ok(Self { fd, path: self.path.clone() })
    }
}

/// What a walk came to.
pub(super) enum Spot {
    Directory(Directory),
    /// No directory: nothing at all (`is_free`) or something that is not one. The parent is there.
    Name {
        parent: Directory,
        name: Vec<u8>,
        is_free: bool,
    },
}

/// Whether a walk follows symbolic links, the last component included; one that is not followed is
/// no directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    Nothing,
    Links,
}

/// What missing directories are made as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Makes {
    pub mode: u32,
    /// Root, where nobody is named.
    pub owner: Option<Owner>,
    /// Below a directory with setgid a new one gets that bit and, where nobody is named, the group. The kernel does so,
    /// and BuildKit leaves it.
    pub inherits_group: bool,
}

/// The root everything lands beneath.
pub(super) struct Root<'a> {
    fd: BorrowedFd<'a>,
    /// What is recorded in it, as it cannot be done.
    pub records: Records,
    now: i64,
    has_made: bool,
    /// Modification times to set in the end, by path. The root itself is never among them: no
    /// layer lists it.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    last_touched: Option<Vec<u8>>,
}

impl<'a> Root<'a> {
    pub fn new(fd: BorrowedFd<'a>, now: i64) -> Result<Self> {
        let records = Records::of(fd).context(|| "cannot read the root")?;
        Ok(Self { fd, records, now, has_made: false, times: BTreeMap::new(), last_touched: None })
    }

    pub fn top(&self) -> Result<Directory> {
        let fd = open_below(self.fd, b"", OFlags::PATH | OFlags::DIRECTORY).context(|| "cannot open the root")?;
        Ok(Directory { fd, path: Vec::new() })
    }

    /// Opens the directory `path`, in which something was made before.
    pub fn open(&self, path: &[u8]) -> Result<OwnedFd> {
        open_below(self.fd, path, OFlags::PATH | OFlags::DIRECTORY).context(|| format!("cannot open `{}`", shown(path)))
    }

    /// Whether any directory was made.
    pub const fn has_made(&self) -> bool {
        self.has_made
    }

    /// Goes from `base` along `path`, making missing directories on the way but for the last
    /// component. `..` and absolute links end at the base.
    pub fn walk(&mut self, base: &Directory, path: &[u8], follows: Follows, makes: Makes) -> Result<Spot> {
        let mut here = base.duplicate()?;
        let mut trail: Vec<Vec<u8>> = Vec::new();
        let mut ahead: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == b".." {
                if trail.pop().is_some() {
                    here = reopen(base, &trail)?;
                }
                continue;
            }
            let is_last = ahead.is_empty();
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(&here.fd, name.as_slice(), flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if is_last => return Ok(Spot::Name { parent: here, name, is_free: true }),
                Err(Errno::NOENT) => {
                    here = self.make_directory(&here, &name, makes)?;
                    trail.push(name);
                    continue;
                }
                Err(errno) => return Err(errno).context(|| format!("cannot open `{}`", shown(&here.join(&name)))),
            };
            let stat = rustix::fs::fstat(&fd).context(|| format!("cannot read `{}`", shown(&here.join(&name))))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    here = Directory { fd, path: here.join(&name) };
                    trail.push(name);
                }
                FileType::Symlink if follows == Follows::Links => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Diagnostic::error(format!(
                            "too many symbolic links on the way to `{}`",
                            shown(&join(&base.path, &clamped(path)))
                        )));
                    }
                    let target = rustix::fs::readlinkat(&fd, c"", Vec::new())
                        .context(|| format!("cannot read the link `{}`", shown(&here.join(&name))))?
                        .into_bytes();
                    if target.starts_with(b"/") {
                        trail.clear();
                        here = base.duplicate()?;
                    }
                    ahead.extend(components(&target).rev().map(<[u8]>::to_vec));
                }
                _ if is_last => return Ok(Spot::Name { parent: here, name, is_free: false }),
                _ => return Err(not_a_directory(&here.join(&name))),
            }
        }
        Ok(Spot::Directory(here))
    }

    /// The directory at `path`, made if there is nothing.
    pub fn directory(&mut self, base: &Directory, path: &[u8], follows: Follows, makes: Makes) -> Result<Directory> {
        match self.walk(base, path, follows, makes)? {
            Spot::Directory(directory) => Ok(directory),
            Spot::Name { parent, name, is_free: true } => self.make_directory(&parent, &name, makes),
            Spot::Name { parent, name, is_free: false } => Err(not_a_directory(&parent.join(&name))),
        }
    }

    pub fn make_directory(&mut self, parent: &Directory, name: &[u8], makes: Makes) -> Result<Directory> {
        let path = parent.join(name);
        check_name(name, &path)?;
        let fd = node::make_directory(parent.fd.as_fd(), name)
            .and_then(|fd| {
                let (owner, mode) = match makes.inherits_group {
                    true => self.inherited(parent, makes)?,
                    false => (makes.owner.unwrap_or(Owner::ROOT), makes.mode),
                };
                node::set_owner_and_mode(fd.as_fd(), owner, mode, self.records)?;
                Ok(fd)
            })
            .context(|| format!("cannot make the directory `{}`", shown(&path)))?;
        self.touch(&parent.path);
        self.set_time(path.clone(), (self.now, 0));
        self.has_made = true;
        Ok(Directory { fd, path })
    }

    /// What a directory made in `parent` is, the group of one with setgid taken over.
    fn inherited(&self, parent: &Directory, makes: Makes) -> rustix::io::Result<(Owner, u32)> {
        let above = self.records.node_at(&parent.fd, c"")?.ok_or(Errno::NOENT)?;
        let setgid = above.mode & Mode::SGID.as_raw_mode();
        let group = if setgid == 0 { 0 } else { above.gid };
        Ok((makes.owner.unwrap_or(Owner { uid: 0, gid: group }), makes.mode | setgid))
    }

    /// Something was made or removed in the directory `path`: the kernel stamped it with the clock.
    pub fn touch(&mut self, path: &[u8]) {
        if self.last_touched.as_deref() != Some(path) {
            self.set_time(path.to_vec(), (self.now, 0));
            self.last_touched = Some(path.to_vec());
        }
    }

    /// What the modification time of the directory `path` is to be in the end; the last call counts.
    pub fn set_time(&mut self, path: Vec<u8>, mtime: (i64, u32)) {
        self.last_touched = None;
        if !path.is_empty() {
            self.times.insert(path, mtime);
        }
    }

    /// What the modification time of the directory `path` is to be in the end, as far as is known.
    pub fn time(&self, path: &[u8]) -> Option<(i64, u32)> {
        self.times.get(path).copied()
    }

    /// Sets the times; nothing may be made afterwards.
    pub fn finish(self) -> Result<()> {
        for (path, mtime) in &self.times {
            match open_below(self.fd, path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(fd) => node::set_time(fd.as_fd(), *mtime)
                    .context(|| format!("cannot set the modification time of `{}`", shown(path)))?,
                // A later member of an archive took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno).context(|| format!("cannot open `{}`", shown(path))),
            }
        }
        Ok(())
    }
}

fn reopen(base: &Directory, trail: &[Vec<u8>]) -> Result<Directory> {
    let below = trail.join(&b'/');
    let path = join(&base.path, &below);
    let fd = open_below(base.fd.as_fd(), &below, OFlags::PATH | OFlags::DIRECTORY)
        .context(|| format!("cannot open `{}`", shown(&path)))?;
    Ok(Directory { fd, path })
}

/// Whether there is a directory, something else, or nothing called `name`; links are not followed.
pub(super) fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The OCI image format writes a deletion as a file called `.wh.NAME`: nothing else can have such a
/// name in a layer.
pub(super) fn check_name(name: &[u8], path: &[u8]) -> Result<()> {
    if name.starts_with(layer::whiteout::PREFIX) {
        let path = shown(path);
        return Err(Diagnostic::error(format!("cannot make `{path}`: in a layer, a name with `.wh.` is a deletion")));
    }
    Ok(())
}

/// Overlays mark a deletion by such a device.
pub(super) fn no_whiteout(path: &[u8]) -> Diagnostic {
    Diagnostic::error(format!("cannot copy `{}`: a character device 0:0 is a deletion", shown(path)))
}

pub(super) fn not_a_directory(path: &[u8]) -> Diagnostic {
    Diagnostic::error(format!("`{}` is not a directory", shown(path)))
}

/// The components of a path that lead somewhere: neither empty nor `.`.
pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// A path as text below the directory it is relative to: `..` does not leave that.
pub fn clamped(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for component in components(path) {
        match component {
            b".." => drop(kept.pop()),
            component => kept.push(component),
        }
    }
    kept.join(&b'/')
}

/// `path/name`; either may be empty.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if name.is_empty() { path.to_vec() } else { layer::node::join(path, name) }
}

/// A path below the root as a message shows it.
pub(super) fn shown(path: &[u8]) -> String {
    format!("/{}", layer::node::shown(path))
}
