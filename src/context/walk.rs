//! All that is in a directory and visible: sorted by name, parents before what is in them.
//!
//! A directory that a rule hides is entered all the same while a later rule may show something in
//! it; it comes as the parent of what is shown, and not at all if nothing is.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;

use super::Tree;
use super::collect::{Collector, Place};
use super::ignore::{IgnoreRules, Verdict};
use super::resolve::{Directory, stat};
use crate::diag::{Context as _, Diagnostic, Result};

/// How many directories of the current path are kept open. A tree may be nested deeper than a
/// process may have files open: those further up are found again through `..`.
const OPEN_LEVELS: usize = 48;

/// What decides beside the tree's own ignore rules. Their paths are those relative to the source.
#[derive(Clone, Copy, Default)]
pub struct Filter<'a> {
    /// `--exclude`
    pub exclude: Option<&'a IgnoreRules>,
    /// All is hidden but the pattern of `--parents`.
    pub include: Option<&'a IgnoreRules>,
}

/// The verdicts of a [`Filter`] on one path.
#[derive(Clone, Copy, Default)]
pub struct Verdicts {
    exclude: Verdict,
    include: Verdict,
}

impl Filter<'_> {
    pub fn judge(&self, parent: Verdicts, path: &[u8]) -> Verdicts {
        Verdicts {
            exclude: self.exclude.map_or(parent.exclude, |rules| rules.judge(parent.exclude, path)),
            include: self.include.map_or(parent.include, |rules| rules.judge(parent.include, path)),
        }
    }

    pub fn selects(&self, verdicts: Verdicts) -> bool {
        !self.exclude.is_some_and(|rules| rules.hides(verdicts.exclude))
            && !self.include.is_some_and(|rules| rules.hides(verdicts.include))
    }

    pub fn may_prune(&self, verdicts: Verdicts, path: &[u8]) -> bool {
        self.exclude.is_some_and(|rules| rules.may_prune(verdicts.exclude, path))
            || self.include.is_some_and(|rules| rules.may_prune(verdicts.include, path))
    }
}

/// Where a walk begins.
pub struct Start<'a> {
    pub directory: &'a Directory,
    pub land: &'a [u8],
    /// On `land`.
    pub verdicts: Verdicts,
    /// It is wanted even if nothing in it is.
    pub is_selected: bool,
}

/// What came of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// There are entries: itself and what was selected in it.
    Selected,
    /// The filter has taken everything.
    Filtered,
    /// The ignore rules hide it and all that is in it.
    Hidden,
}

/// Name and kind, as far as the file system tells with the name.
pub type Child = (Vec<u8>, FileType);

/// A directory that is being walked.
struct Level {
    /// None while the walk is far below.
    fd: Option<Arc<OwnedFd>>,
    id: (u64, u64),
    /// What is still to be visited, the first one last.
    children: Vec<Child>,
    path_length: usize,
    land_length: usize,
    context: Verdict,
    verdicts: Verdicts,
    first_entry: usize,
    /// It, or something in it, is visible in the tree.
    is_visible: bool,
    /// It, or something in it, is selected.
    is_selected: bool,
}

/// Adds a directory and all that is selected in it to `out`.
pub fn walk(tree: &Tree, start: &Start<'_>, filter: Filter<'_>, out: &mut Collector<'_, '_, '_>) -> Result<Walked> {
    let mut walk = Walk {
        tree,
        filter,
        path: start.directory.path.clone(),
        land: start.land.to_vec(),
        levels: Vec::new(),
        buffer: Vec::with_capacity(32 << 10),
    };
    let fd = open(start.directory.fd.as_fd(), b".").context(|| walk.doing())?;
    let children = names(&fd, &mut walk.buffer).context(|| walk.doing())?;
    walk.enter((fd, children), start.directory.verdict, start.verdicts, out)?;
    if let Some(level) = walk.levels.last_mut() {
        level.is_selected = start.is_selected;
    }
    loop {
        if let Some(walked) = walk.step(out)? {
            return Ok(walked);
        }
    }
}

/// The error for what cannot be opened, with the way around what need not be read.
pub(super) fn refused(doing: String, errno: Errno) -> Diagnostic {
    let error = Diagnostic::error(doing).caused_by(std::io::Error::from(errno));
    match errno {
        Errno::ACCESS => error.hint("a line in `.dockerignore` leaves out what the build does not need"),
        _ => error,
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    filter: Filter<'a>,
    /// Of what is being looked at.
    path: Vec<u8>,
    land: Vec<u8>,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn doing(&self) -> String {
        format!("cannot read `{}` in {}", self.path.escape_ascii(), self.tree.described())
    }

    fn hides(&self, verdict: Verdict) -> bool {
        self.tree.ignore.as_ref().is_some_and(|rules| rules.hides(verdict))
    }

    /// Adds the directory `self.path`, whose rules have been asked, and makes it the current one.
    fn enter(
        &mut self,
        (fd, mut children): (OwnedFd, Vec<Child>),
        context: Verdict,
        verdicts: Verdicts,
        out: &mut Collector<'_, '_, '_>,
    ) -> Result<()> {
        let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        let stat = stat.context(|| self.doing())?;
        children.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        let fd = Arc::new(fd);
        let first_entry = out.len();
        let is_selected = self.filter.selects(verdicts);
        let is_passed = !is_selected && !self.land.is_empty();
        let (path, land) = (&self.path, &self.land);
        out.push(&Place { directory: &fd, name: b".", path, land, stat: &stat, is_passed })?;
        self.levels.push(Level {
            fd: Some(fd),
            id: id(&stat),
            children,
            path_length: self.path.len(),
            land_length: self.land.len(),
            context,
            verdicts,
            first_entry,
            is_visible: !self.hides(context),
            is_selected,
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[far].fd = None;
        }
        Ok(())
    }

    /// Visits the next child of the current directory, or leaves it; says what came of the first
    /// one when that is left.
    fn step(&mut self, out: &mut Collector<'_, '_, '_>) -> Result<Option<Walked>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(Some(Walked::Hidden));
        };
        self.path.truncate(level.path_length);
        self.land.truncate(level.land_length);
        let Some((name, file_type)) = level.children.pop() else {
            return self.leave(out);
        };
        let fd = match &level.fd {
            Some(fd) => Arc::clone(fd),
            None => return Err(Diagnostic::error(self.doing())), // `leave` has opened it again
        };
        let (context, verdicts) = (level.context, level.verdicts);
        push_component(&mut self.path, &name);
        push_component(&mut self.land, &name);
        let context = self.tree.ignore.as_ref().map_or(context, |rules| rules.judge(context, &self.path));
        let verdicts = self.filter.judge(verdicts, &self.land);
        let is_hidden = self.hides(context);

        let file_type = match file_type {
            FileType::Unknown => match stat(fd.as_fd(), &name) {
                Err(Errno::NOENT) => return Ok(None),
                stat => kind(&stat.context(|| self.doing())?),
            },
            known => known,
        };
        // What has vanished since the directory was read is as good as never there.
        if file_type != FileType::Directory {
            if is_hidden {
                return Ok(None);
            }
            let is_selected = self.filter.selects(verdicts);
            if is_selected {
                let stat = match stat(fd.as_fd(), &name) {
                    Err(Errno::NOENT) => return Ok(None),
                    stat => stat.context(|| self.doing())?,
                };
                if kind(&stat) == FileType::Directory {
                    return Err(Diagnostic::error(self.doing()).caused_by("it was replaced while it was read"));
                }
                let (path, land) = (&self.path, &self.land);
                out.push(&Place { directory: &fd, name: &name, path, land, stat: &stat, is_passed: false })?;
            }
            if let Some(level) = self.levels.last_mut() {
                level.is_visible = true;
                level.is_selected |= is_selected;
            }
            return Ok(None);
        }
        if self.tree.ignore.as_ref().is_some_and(|rules| rules.may_prune(context, &self.path)) {
            return Ok(None);
        }
        // A hidden directory must be walked even if the filter wants nothing of it: whether it is
        // there for the filter to see depends on what is in it.
        if !is_hidden && self.filter.may_prune(verdicts, &self.land) {
            if let Some(level) = self.levels.last_mut() {
                level.is_visible = true;
            }
            return Ok(None);
        }
        let child = match open(fd.as_fd(), &name) {
            Err(Errno::NOENT) => return Ok(None),
            child => child.map_err(|errno| refused(self.doing(), errno))?,
        };
        let children = match names(&child, &mut self.buffer) {
            Err(Errno::NOENT) => return Ok(None),
            children => children.context(|| self.doing())?,
        };
        self.enter((child, children), context, verdicts, out)?;
        Ok(None)
    }

    fn leave(&mut self, out: &mut Collector<'_, '_, '_>) -> Result<Option<Walked>> {
        let Some(done) = self.levels.pop() else {
            return Ok(Some(Walked::Hidden));
        };
        let is_kept = done.is_visible && done.is_selected;
        if !is_kept {
            out.truncate(done.first_entry);
        }
        let Some(parent) = self.levels.last_mut() else {
            return Ok(Some(match (is_kept, done.is_visible) {
                (true, _) => Walked::Selected,
                (false, true) => Walked::Filtered,
                (false, false) => Walked::Hidden,
            }));
        };
        parent.is_visible |= done.is_visible;
        parent.is_selected |= is_kept;
        if let (None, Some(below)) = (&parent.fd, &done.fd) {
            let id_before = parent.id;
            let fd = open(below.as_fd(), b"..").context(|| self.doing())?;
            let stat = rustix::fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
            if id(&stat.context(|| self.doing())?) != id_before {
                return Err(Diagnostic::error(self.doing()).caused_by("it was moved while it was read"));
            }
            if let Some(parent) = self.levels.last_mut() {
                parent.fd = Some(Arc::new(fd));
            }
        }
        Ok(None)
    }
}

/// Names and kinds of what is in an open directory, in no order.
pub fn names(fd: &OwnedFd, buffer: &mut Vec<u8>) -> rustix::io::Result<Vec<Child>> {
    buffer.clear();
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((name.to_vec(), entry.file_type()));
        }
    }
    Ok(names)
}

/// Opens a directory for reading.
pub fn open(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

fn push_component(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

fn id(stat: &Statx) -> (u64, u64) {
    (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)
}
