//! All that is in a directory and visible: sorted by name, parents before what is in them.
//!
//! A directory that a rule hides is entered all the same while a later rule may show something in
//! it; it comes as the parent of what is shown, and not at all if nothing is.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::vec::IntoIter;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Tree;
use super::ahead::{Ahead, Pending};
use super::collect::{Collector, Place};
use super::facts::Facts;
use super::ignore::Verdict;
use super::look::{self, Child, Children, Described, Filter, Inquiry, Look, Scene, Seen, Spot, Verdicts, go_down};
use super::resolve::Directory;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::Hasher;
use crate::layer::node::open_directory;

/// How many directories of the current path are kept open. A tree may be nested deeper than a
/// process may have files open: those further up are found again through `..`.
const OPEN_LEVELS: usize = 48;

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

/// A directory that is being walked.
struct Level<'a> {
    /// None while the walk is far below.
    fd: Option<Arc<OwnedFd>>,
    id: (u64, u64),
    children: Arc<Children>,
    /// The first of them that is still to be visited.
    next: usize,
    /// About the files that come next.
    facts: IntoIter<rustix::io::Result<Facts>>,
    /// About those after them.
    inquiries: VecDeque<Arc<Pending<Inquiry>>>,
    /// Into the directories that come next; there may be none.
    looks: VecDeque<Arc<Pending<Look<'a>>>>,
    path_length: usize,
    land_length: usize,
    first_entry: usize,
    /// It, or something in it, is visible in the tree.
    is_visible: bool,
    /// It, or something in it, is selected.
    is_selected: bool,
}

/// Adds a directory and all that is selected in it to `out`.
pub fn walk<'a>(
    tree: &'a Tree,
    start: &Start<'_>,
    filter: Filter<'a>,
    ahead: &Ahead<'a, '_>,
    out: &mut Collector<'_, '_, '_>,
) -> Result<Walked> {
    let spot = Spot {
        path: start.directory.path.clone(),
        land: start.land.to_vec(),
        context: start.directory.verdict,
        verdicts: start.verdicts,
    };
    let mut walk = Walk {
        scene: Scene { tree, filter, is_brief: out.is_brief() },
        ahead,
        path: Vec::new(),
        land: Vec::new(),
        levels: Vec::new(),
    };
    walk.path.clone_from(&spot.path);
    walk.land.clone_from(&spot.land);
    let seen = walk.scene.look(start.directory.fd.as_fd(), c".", &spot).context(|| walk.doing())?;
    walk.enter(seen, spot.context, spot.verdicts, out)?;
    if let Some(level) = walk.levels.last_mut() {
        level.is_selected = start.is_selected;
    }
    while !out.has_given_up() {
        if let Some(walked) = walk.step(out)? {
            return Ok(walked);
        }
    }
    Ok(Walked::Selected)
}

/// The error for what cannot be opened, with the way around what need not be read.
pub(super) fn refused(doing: String, errno: Errno) -> Diagnostic {
    let error = Diagnostic::error(doing).caused_by(std::io::Error::from(errno));
    match errno {
        Errno::ACCESS => error.hint("a line in `.dockerignore` leaves out what the build does not need"),
        _ => error,
    }
}

struct Walk<'w, 'a, 'env> {
    scene: Scene<'a>,
    ahead: &'w Ahead<'a, 'env>,
    /// Of what is being looked at.
    path: Vec<u8>,
    land: Vec<u8>,
    levels: Vec<Level<'a>>,
}

impl<'a> Walk<'_, 'a, '_> {
    fn doing(&self) -> String {
        format!("cannot read `{}` in {}", self.path.escape_ascii(), self.scene.tree.described())
    }

    /// Adds the directory `self.path`, on which there are these verdicts, and makes it the current one.
    fn enter(
        &mut self,
        mut seen: Seen,
        context: Verdict,
        verdicts: Verdicts,
        out: &mut Collector<'_, '_, '_>,
    ) -> Result<()> {
        let first_entry = out.len();
        let is_selected = self.scene.filter.selects(verdicts);
        let (path, land, facts) = (&self.path, &self.land, &seen.facts);
        let is_passed = !is_selected && !land.is_empty();
        out.push(&Place { directory: &seen.fd, name: b".", path, land, facts, is_passed })?;
        let (mut inquiries, mut looks) = (VecDeque::new(), VecDeque::new());
        // Questions keep directories open, too.
        if self.ahead.is_of_use() && self.levels.len() < OPEN_LEVELS {
            looks = self.ahead.expect(self.looks(&seen));
            if !self.scene.is_brief {
                inquiries = self.ahead.expect(look::inquiries(&seen));
            }
        }
        let described = std::mem::replace(&mut seen.described, Ok(Described::default()));
        let described = described.map_err(|errno| refused(self.doing(), errno))?;
        out.enter(self.describe(&seen, described)?);
        self.levels.push(Level {
            id: id(&seen.facts),
            fd: Some(seen.fd),
            children: seen.children,
            next: 0,
            facts: seen.first.into_iter(),
            inquiries,
            looks,
            path_length: self.path.len(),
            land_length: self.land.len(),
            first_entry,
            is_visible: !self.scene.hides(context),
            is_selected,
        });
        if let Some(far) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[far].fd = None;
        }
        Ok(())
    }

    /// Adds what a look has not described; at most all of its files.
    fn describe(&self, seen: &Seen, described: Described) -> Result<Hasher> {
        let mut hasher = described.hasher;
        if self.scene.is_brief {
            for description in self.ahead.expect(look::descriptions(seen, described.count)) {
                let words = self.ahead.take(&*description).map_err(|errno| refused(self.doing(), errno))?;
                hasher.update(words.as_flattened());
            }
        }
        Ok(hasher)
    }

    /// Those into the directories in one that are wanted.
    fn looks(&self, seen: &Seen) -> Vec<Look<'a>> {
        let wanted = seen.children.iter().filter(|(_, child)| child.is_wanted_directory());
        let look = |(name, child): (&CStr, &Child)| {
            let (mut path, mut land) = (self.path.clone(), self.land.clone());
            go_down(&mut path, self.path.len(), name.to_bytes());
            go_down(&mut land, self.land.len(), name.to_bytes());
            Look {
                scene: self.scene.clone(),
                parent: Arc::clone(&seen.fd),
                name: name.to_owned(),
                spot: Spot { path, land, context: child.context, verdicts: child.verdicts },
            }
        };
        wanted.map(look).collect()
    }

    /// Visits the next child of the current directory, or leaves it; says what came of the first
    /// one when that is left.
    fn step(&mut self, out: &mut Collector<'_, '_, '_>) -> Result<Option<Walked>> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(Some(Walked::Hidden));
        };
        let children = Arc::clone(&level.children);
        if self.scene.is_brief {
            let next = children.after_files(level.next);
            if next > level.next {
                (level.is_visible, level.is_selected, level.next) = (true, true, next);
            }
        }
        let Some((name, child)) = children.get(level.next) else {
            self.path.truncate(level.path_length);
            self.land.truncate(level.land_length);
            return self.leave(out);
        };
        level.next += 1;
        go_down(&mut self.path, level.path_length, name.to_bytes());
        go_down(&mut self.land, level.land_length, name.to_bytes());
        let fd = match &level.fd {
            Some(fd) => Arc::clone(fd),
            None => return Err(Diagnostic::error(self.doing())), // `leave` has opened it again
        };
        let file_type = match child.file_type {
            FileType::Unknown => match Facts::of(fd.as_fd(), name) {
                // What has vanished since the directory was read is as good as never there.
                Err(Errno::NOENT) => return Ok(None),
                facts => facts.context(|| self.doing())?.file_type,
            },
            known => known,
        };
        if file_type == FileType::Directory {
            return self.visit_directory(name, child, &fd, out);
        }
        if child.is_hidden {
            return Ok(None);
        }
        if child.is_selected {
            let found = if child.is_wanted_file() { self.next_facts() } else { None };
            let facts = match found.unwrap_or_else(|| Facts::of(fd.as_fd(), name)) {
                Err(Errno::NOENT) => return Ok(None),
                facts => facts.context(|| self.doing())?,
            };
            if facts.file_type == FileType::Directory {
                return Err(Diagnostic::error(self.doing()).caused_by("it was replaced while it was read"));
            }
            let (path, land, facts) = (&self.path, &self.land, &facts);
            out.push(&Place { directory: &fd, name: name.to_bytes(), path, land, facts, is_passed: false })?;
        }
        if let Some(level) = self.levels.last_mut() {
            level.is_visible = true;
            level.is_selected |= child.is_selected;
        }
        Ok(None)
    }

    /// What was asked about the next file of the current directory that is wanted.
    fn next_facts(&mut self) -> Option<rustix::io::Result<Facts>> {
        let level = self.levels.last_mut()?;
        loop {
            if let Some(facts) = level.facts.next() {
                return Some(facts);
            }
            level.facts = self.ahead.take(&*level.inquiries.pop_front()?).into_iter();
        }
    }

    fn visit_directory(
        &mut self,
        name: &CStr,
        child: &Child,
        parent: &Arc<OwnedFd>,
        out: &mut Collector<'_, '_, '_>,
    ) -> Result<Option<Walked>> {
        if child.is_pruned {
            return Ok(None);
        }
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if !child.is_hidden && child.is_unwanted {
            level.is_visible = true;
            return Ok(None);
        }
        let (context, verdicts) = (child.context, child.verdicts);
        let look = if child.is_wanted_directory() { level.looks.pop_front() } else { None };
        let seen = match look {
            Some(look) => self.ahead.take(&*look),
            None => {
                let spot = Spot { path: self.path.clone(), land: self.land.clone(), context, verdicts };
                self.scene.look(parent.as_fd(), name, &spot)
            }
        };
        match seen {
            Err(Errno::NOENT) => {}
            seen => self.enter(seen.map_err(|errno| refused(self.doing(), errno))?, context, verdicts, out)?,
        }
        Ok(None)
    }

    fn leave(&mut self, out: &mut Collector<'_, '_, '_>) -> Result<Option<Walked>> {
        let Some(done) = self.levels.pop() else {
            return Ok(Some(Walked::Hidden));
        };
        let is_kept = done.is_visible && done.is_selected;
        out.leave(done.is_visible, done.is_selected);
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
            let fd = open_directory(below, c"..").context(|| self.doing())?;
            let facts = Facts::of_open(&fd);
            if id(&facts.context(|| self.doing())?) != id_before {
                return Err(Diagnostic::error(self.doing()).caused_by("it was moved while it was read"));
            }
            if let Some(parent) = self.levels.last_mut() {
                parent.fd = Some(Arc::new(fd));
            }
        }
        Ok(None)
    }
}

/// Device and inode.
fn id(facts: &Facts) -> (u64, u64) {
    (facts.key.device, facts.key.inode)
}
