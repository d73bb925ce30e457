//! From what an overlay left in an upper dir to what a step changed.
//!
//! | the upper has | and below there is | it becomes |
//! | --- | --- | --- |
//! | a whiteout | nothing of that name | nothing |
//! | a socket | something | a whiteout |
//! | a socket | nothing | nothing |
//! | a file, link, … | the same in everything a layer holds | nothing |
//! | a directory, empty | the same but for its times | nothing |
//! | an opaque directory | a directory | a directory with a whiteout for each name no longer there |
//!
//! The same goes for what is below an opaque directory: the overlay marks only the topmost.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::vec;

use rustix::fs::{self, AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;

use super::merged::{Found, Merged};
use super::node::{
    HELD, Kind, Ladder, Node, join, link_target, names, node_at, node_of, open_directory, open_file, reopen, set_mtime,
    shown,
};
use super::record::{Device, Records};
use super::{Summary, whiteout, xattr};
use crate::diag::{Context, Diagnostic, Result};

/// See [`super::canonicalize`].
pub fn canonicalize(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    skeleton: Option<BorrowedFd<'_>>,
) -> Result<Summary> {
    let root = |fd| reopen(fd).context(|| "cannot open an upper dir");
    let mut walk = Walk {
        ladder: Ladder::new(root(upper)?),
        levels: Vec::new(),
        path: Vec::new(),
        lowers,
        records: Records::of(upper).context(|| "cannot read an upper dir")?,
        summary: Summary::default(),
        linked: BTreeSet::new(),
    };
    let top = Level {
        node: node_of(upper).context(|| "cannot read an upper dir")?,
        name: c".".to_owned(),
        names: Vec::new().into_iter(),
        below: Some(Rc::new(Merged::root(lowers).context(|| "cannot open the layers below")?)),
        skeleton: skeleton.map(root).transpose()?,
        is_opaque: false,
        is_kept: true,
        kept: 0,
        is_touched: false,
    };
    let doing = |walk: &Walk<'_>| format!("cannot make `/{}` canonical", shown(&walk.path));
    walk.begin(top).context(|| "cannot make an upper dir canonical")?;
    while !walk.levels.is_empty() {
        match walk.step() {
            Ok(Some(fault)) => return Err(fault),
            Ok(None) => {}
            Err(errno) => return Err(Diagnostic::error(doing(&walk)).caused_by(io::Error::from(errno))),
        }
    }
    Ok(walk.summary)
}

struct Walk<'a> {
    ladder: Ladder,
    levels: Vec<Level>,
    /// Of the directory the walk is in.
    path: Vec<u8>,
    lowers: &'a [BorrowedFd<'a>],
    /// Of the upper.
    records: Records,
    summary: Summary,
    /// Files with several names that were counted.
    linked: BTreeSet<(u64, u64)>,
}

/// A directory the walk is in.
struct Level {
    node: Node,
    name: CString,
    names: vec::IntoIter<CString>,
    /// What the layers below have at this path; closed while the walk is far below.
    below: Option<Rc<Merged>>,
    skeleton: Option<OwnedFd>,
    /// Nothing below shows through.
    is_opaque: bool,
    /// Whether it is a change even without children.
    is_kept: bool,
    kept: u64,
    /// Whether names were removed or added, which moves its modification time.
    is_touched: bool,
}

type Fault = Option<Diagnostic>;

impl Walk<'_> {
    /// Enters the directory that the ladder stands in.
    fn begin(&mut self, mut level: Level) -> Result<(), Errno> {
        let dir = self.ladder.fd();
        let attributes = xattr::list(dir, c".")?;
        level.is_opaque |= is_marked_opaque(dir, &attributes)?;
        let may_be_files = whiteout::may_be_files(dir)?;
        strip(dir, c".", &attributes)?;
        if may_be_files {
            whiteout::announce_files(dir)?;
        }
        let mut present: Vec<CString> = names(dir)?.into_iter().map(|(name, _)| name).collect();
        if level.is_opaque {
            for name in level.below.as_ref().map_or_else(|| Ok(Vec::new()), |below| below.children())? {
                if present.binary_search(&name).is_err() {
                    whiteout::create(dir, &name)?;
                    level.is_touched = true;
                    present.push(name);
                    present.sort_unstable();
                }
            }
        }
        level.names = present.into_iter();
        // Directories far up are reached again by their path, should the walk come back to them.
        if let Some(above) = self.levels.len().checked_sub(HELD) {
            self.levels[above].below = None;
        }
        self.levels.push(level);
        Ok(())
    }

    /// Decides about one name, or leaves a directory.
    fn step(&mut self) -> Result<Fault, Errno> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let Some(name) = level.names.next() else { return self.leave().map(|()| None) };
        let dir = self.ladder.fd();
        let Some(node) = self.records.node_at(dir, &name)? else { return Ok(None) };
        let merged = level.below.clone().unwrap_or_default();
        let below = merged.find(&name)?;
        match node.kind {
            Kind::Whiteout => {
                if below.is_none() {
                    fs::unlinkat(dir, &name, AtFlags::empty())?;
                    level.is_touched = true;
                    return Ok(None);
                }
                level.kept += 1;
                self.summary.entries += 1;
                return Ok(None);
            }
            // No tar can hold one; but what it replaced is gone.
            Kind::Socket => {
                fs::unlinkat(dir, &name, AtFlags::empty())?;
                level.is_touched = true;
                if below.is_some() {
                    whiteout::create(dir, &name)?;
                    level.kept += 1;
                    self.summary.entries += 1;
                }
                return Ok(None);
            }
            _ => {}
        }
        let attributes = xattr::list(dir, &name)?;
        if let Some(fault) = unsupported(&join(&self.path, name.to_bytes()), &name, &attributes) {
            return Ok(Some(fault));
        }
        // What only the skeleton has was never in the image, but being a copy of it is no change.
        let compared = match (&below, &level.skeleton) {
            (None, Some(skeleton)) => node_at(skeleton, &name)?.map(|node| Found { node, dir: skeleton.as_fd() }),
            _ => below,
        };
        let is_same = match &compared {
            Some(found) => is_same(dir, &name, &node, &attributes, found)?,
            None => false,
        };
        if node.is_directory() {
            let child = open_directory(dir, &name)?;
            let below = Some(Rc::new(merged.enter(&name)?));
            let skeleton = level.skeleton.as_ref().and_then(|skeleton| open_directory(skeleton, &name).ok());
            let is_opaque = level.is_opaque;
            self.path = join(&self.path, name.to_bytes());
            self.ladder.push(child);
            let names = Vec::new().into_iter();
            let is_kept = !is_same;
            self.begin(Level { node, name, names, below, skeleton, is_opaque, is_kept, kept: 0, is_touched: false })?;
            return Ok(None);
        }
        if is_same {
            fs::unlinkat(dir, &name, AtFlags::empty())?;
            level.is_touched = true;
            return Ok(None);
        }
        strip(dir, &name, &attributes)?;
        level.kept += 1;
        self.summary.entries += 1;
        if node.links == 1 || self.linked.insert(node.identity) {
            self.summary.size_bytes += node.size_bytes;
        }
        self.summary.newest = self.summary.newest.max(node.mtime.0);
        Ok(None)
    }

    /// Makes sure that the lowest level knows what is below it. One way down from the root serves
    /// many levels, so that a deep tree does not cost its depth squared.
    fn reopen_below(&mut self) -> Result<(), Errno> {
        let Some(Level { below: None, .. }) = self.levels.last() else { return Ok(()) };
        let first = self.levels.len().saturating_sub(HELD);
        let mut merged = Rc::new(Merged::root(self.lowers)?);
        for (depth, level) in self.levels.iter_mut().enumerate() {
            if depth > 0 {
                merged = Rc::new(merged.enter(&level.name)?);
            }
            if depth >= first {
                level.below = Some(Rc::clone(&merged));
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Errno> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if self.levels.is_empty() {
            return normalize_root(self.ladder.fd());
        }
        if level.is_touched {
            set_mtime(self.ladder.fd(), c".", level.node.mtime)?;
        }
        self.path.truncate(self.path.len().saturating_sub(level.name.to_bytes().len()));
        if self.path.last() == Some(&b'/') {
            self.path.pop();
        }
        self.ladder.pop()?;
        self.reopen_below()?;
        let Some(parent) = self.levels.last_mut() else { return Ok(()) };
        if level.is_kept || level.kept > 0 {
            parent.kept += 1;
            self.summary.entries += 1;
        } else {
            fs::unlinkat(self.ladder.fd(), &level.name, AtFlags::REMOVEDIR)?;
            parent.is_touched = true;
        }
        Ok(())
    }
}

/// Whether nothing that a layer holds tells `name` in the upper from what was found below. Content
/// is always compared: equal times prove nothing where a build pins them, and a file that is the
/// same in all else is rare.
fn is_same(
    dir: BorrowedFd<'_>,
    name: &CStr,
    node: &Node,
    attributes: &[CString],
    found: &Found<'_>,
) -> Result<bool, Errno> {
    let below = &found.node;
    let metadata = |node: &Node| (node.kind, node.mode, node.uid, node.gid, node.rdev, node.size_bytes);
    if metadata(node) != metadata(below) {
        return Ok(false);
    }
    // A copy-up breaks links, so a second name was made by the step: the two belong together.
    if !node.is_directory() && (node.links > 1 || node.mtime != below.mtime) {
        return Ok(false);
    }
    // A device has none, whatever the file has that stands for it.
    if Device::of(node).is_none() {
        let attributes_below = xattr::list(found.dir, name)?;
        if xattr::kept_of(dir, name, attributes)? != xattr::kept_of(found.dir, name, &attributes_below)? {
            return Ok(false);
        }
    }
    match node.kind {
        Kind::Symlink => Ok(link_target(dir, name)? == link_target(found.dir, name)?),
        Kind::File if node.size_bytes > 0 => has_same_content(open_file(dir, name)?, open_file(found.dir, name)?),
        _ => Ok(true),
    }
}

fn has_same_content(a: OwnedFd, b: OwnedFd) -> Result<bool, Errno> {
    let same = |mut a: std::fs::File, mut b: std::fs::File| -> io::Result<bool> {
        let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        loop {
            let count = a.read(&mut left)?;
            if count == 0 {
                return Ok(b.read(&mut right)? == 0);
            }
            match b.read_exact(&mut right[..count]) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            if left[..count] != right[..count] {
                return Ok(false);
            }
        }
    };
    same(a.into(), b.into()).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// `y` is an opaque directory; `x` only says that whiteouts may be files with an attribute.
fn is_marked_opaque(dir: BorrowedFd<'_>, attributes: &[CString]) -> Result<bool, Errno> {
    for marker in [c"trusted.overlay.opaque", c"user.overlay.opaque"] {
        if attributes.iter().any(|name| name.as_c_str() == marker) && xattr::get(dir, c".", marker)? == b"y" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn strip(dir: BorrowedFd<'_>, name: &CStr, attributes: &[CString]) -> Result<(), Errno> {
    attributes
        .iter()
        .filter(|attribute| xattr::is_foreign(attribute.to_bytes()))
        .try_for_each(|attribute| xattr::remove(dir, name, attribute))
}

/// What a layer cannot say.
fn unsupported(path: &[u8], name: &CStr, attributes: &[CString]) -> Option<Diagnostic> {
    let path = shown(path);
    if name.to_bytes().starts_with(whiteout::PREFIX) {
        let message = format!("a layer cannot hold `/{path}`: a name starting with `.wh.` means a deleted file");
        return Some(Diagnostic::error(message));
    }
    for attribute in attributes {
        let attribute = attribute.to_bytes();
        // The options that make these are always off: the data or the subtree is not in the upper.
        if attribute.ends_with(b".overlay.redirect") || attribute.ends_with(b".overlay.metacopy") {
            let message = format!("cannot read `/{path}` in an upper dir: the overlay was mounted with redirects");
            return Some(Diagnostic::error(message));
        }
        if xattr::is_kept(attribute) && attribute.contains(&b'=') {
            let attribute = shown(attribute);
            let message = format!("a layer cannot hold the attribute `{attribute}` of `/{path}`: its name has a `=`");
            return Some(Diagnostic::error(message));
        }
    }
    None
}

/// The root is no entry of a layer, so it is the same in all.
pub fn normalize_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    for attribute in xattr::list(root, c".")? {
        if xattr::is_kept(attribute.to_bytes()) || xattr::is_foreign(attribute.to_bytes()) {
            xattr::remove(root, c".", &attribute)?;
        }
    }
    fs::fchown(root, Some(Uid::ROOT), Some(Gid::ROOT))?;
    fs::fchmod(root, Mode::from_raw_mode(0o755))?;
    set_mtime(root, c".", (0, 0))
}
