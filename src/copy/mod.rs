//! COPY and ADD: lands the entries of a listing in a root, as BuildKit does.
//!
//! ```text
//! land ── a selection ──▶ walk to the destination (place)   links resolved in the root, parents made
//!                         ├─ a directory: its entries merge (land)
//!                         ├─ an archive: its members (archive)
//!                         └─ anything else: one entry (land, node); files are filled by a crew (file)
//!      └─ last: modification times of directories, when nothing is made in them any more
//! ```
//!
//! What always holds: nothing is opened or made but from a directory fd beneath the root, one
//! component at a time and never through a link the kernel follows; what lands is what the listing
//! says, so a file whose bytes differ from its digest is an error; the clock does not show, as every
//! directory something was made in gets the time the caller gave.

mod archive;
pub mod chmod;
mod content;
mod earlier;
mod file;
mod land;
mod node;
mod outline;
mod place;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::os::fd::BorrowedFd;

pub use self::earlier::Kept;
use self::file::{Fillers, Source};
use self::land::Lander;
pub use self::outline::Outline;
pub use self::place::clamped;
use crate::context::{Listing, Tree, Unread};
use crate::diag::Result;
use crate::parallel;

/// Who owns what lands, where `--chown` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// How to land.
#[derive(Clone, Debug)]
pub struct Landing<'a> {
    /// Absolute; a trailing slash says "a directory".
    pub destination: &'a str,
    pub owner: Option<Owner>,
    pub chmod: Option<&'a str>,
    /// The destination's symbolic links are not followed (`--link`).
    pub is_link: bool,
    pub has_parents: bool,
    /// Archives among the sources are unpacked.
    pub unpacks: bool,
    /// Modification time, in seconds since the epoch, of directories made on the way.
    pub now: i64,
}

/// Copies every selection of `listing` from `tree` beneath `root` (a writable overlay or a plain
/// directory). A file whose content differs from the listing's digest is an error: the context
/// changed during the build. On failure `root` holds a part of the copy and is to be thrown away.
///
/// Where the kernel does not let us make devices, and neither may they be recorded in `root`, members of an
/// unpacked archive that are devices are left out; a device named by the listing is an error there.
pub fn land(tree: &Tree, listing: &Listing, root: BorrowedFd<'_>, landing: &Landing<'_>) -> Result<()> {
    land_beside(tree, listing, root, landing, None).map(drop)
}

/// The same, but files that are as they are to be in `earlier`, the dir of a layer that a copy to the same place
/// made, do not land: the caller links what is returned. Directories are all there, with their times. Nothing is
/// taken from there for a listing of several selections, where one file may take the place of another.
pub fn land_beside(
    tree: &Tree,
    listing: &Listing,
    root: BorrowedFd<'_>,
    landing: &Landing<'_>,
    earlier: Option<BorrowedFd<'_>>,
) -> Result<Kept> {
    let source = Source::new(tree.root());
    std::thread::scope(|scope| {
        let fillers = Fillers::new(scope, parallel::processors());
        let mut lander = Lander::new(&source, &fillers, root, landing)?;
        if let (Some(earlier), [_]) = (earlier, listing.selections.as_slice()) {
            lander.may_keep(earlier);
        }
        let landed = land_all(&mut lander, listing);
        // What failed first counts: a file that was begun before.
        let damaged = fillers.finish().map_err(|(_, error)| *error)?;
        landed?;
        damaged.into_iter().flatten().try_for_each(|file| lander.copy_kept(file))?;
        lander.finish()
    })
}

fn land_all<'scope>(lander: &mut Lander<'_, 'scope, '_>, listing: &'scope Listing) -> Result<()> {
    listing.selections.iter().enumerate().try_for_each(|(number, selection)| lander.selection(selection, number))
}

/// What came of an outline.
pub enum Outlining<'a> {
    Done(Outline<'a>),
    /// Files with these numbers have to be read before.
    Unread(Vec<usize>),
}

/// The same for a layer that is packed at once: files stay where they are, and what is returned tells what stands for
/// them in `root`. Those that take the place of others are copied; it fails also where these are more than memory is
/// meant for. Archives are unpacked. Files of the listing may be `unread`, as a [survey](crate::context::survey) leaves
/// them.
pub fn outline<'a>(
    tree: &'a Tree,
    listing: &'a Listing,
    unread: &'a [Unread],
    root: BorrowedFd<'_>,
    landing: &Landing<'_>,
) -> Result<Outlining<'a>> {
    let source = Source::new(tree.root());
    let outlined = std::thread::scope(|scope| {
        let fillers = Fillers::new(scope, parallel::processors());
        let mut lander = Lander::new(&source, &fillers, root, landing)?;
        lander.outline(listing.selections.len() == 1);
        land_all(&mut lander, listing)?;
        fillers.finish().map_err(|(_, error)| *error)?;
        let outlined = lander.outlined();
        lander.finish().map(|_| outlined)
    })?;
    Ok(match outlined {
        Ok((stand_ins, looks)) => Outlining::Done(Outline::new(tree.root(), listing, unread, looks, stand_ins)),
        Err(unread) => Outlining::Unread(unread),
    })
}

/// A file that is no file of a tree: a heredoc or a download.
pub struct Blob<'a> {
    /// What it is called in a destination directory.
    pub name: &'a str,
    pub content: &'a [u8],
    pub mode: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
}

/// Lands a blob as a file owned by root or `--chown`, or its members if it is an archive and
/// `unpacks` is set. On failure `root` holds a part of it and is to be thrown away.
pub fn land_blob(blob: &Blob<'_>, root: BorrowedFd<'_>, landing: &Landing<'_>) -> Result<()> {
    // There is no tree: a blob is all in memory.
    let source = Source::new(root);
    std::thread::scope(|scope| {
        let fillers = Fillers::new(scope, 1);
        let mut lander = Lander::new(&source, &fillers, root, landing)?;
        lander.blob(blob)?;
        lander.finish().map(drop)
    })
}

/// Whether this is a tar with at least one member, compressed or not.
pub fn is_archive(input: impl Read + Send) -> bool {
    archive::is_archive(input)
}

/// Unpacks a tar of `packed_bytes` bytes, compressed or not, beneath the empty directory `root`; everything
/// belongs to `owner`. Directories that are not in the archive get the modification time 0. `name` is for
/// messages.
pub fn unpack(
    input: impl Read + Send,
    packed_bytes: u64,
    name: &str,
    root: BorrowedFd<'_>,
    owner: Owner,
) -> Result<()> {
    let mut root = place::Root::new(root, 0)?;
    let top = root.top()?;
    archive::unpack(input, name, &top, &mut root, Some(owner), archive::Limits::of(packed_bytes))?;
    root.finish()
}

/// Makes the working directory `path` (absolute) and what is missing above it: mode 0755, the
/// given owner (without one root, and the group of a directory with setgid above), modification time
/// `now`. Symbolic links are resolved in the root, to where they point if nothing is there yet.
/// Returns whether anything was made; an existing directory is left as it is.
pub fn make_workdir(root: BorrowedFd<'_>, path: &str, owner: Option<Owner>, now: i64) -> Result<bool> {
    let mut root = place::Root::new(root, now)?;
    let top = root.top()?;
    let makes = place::Makes { mode: 0o755, owner, inherits_group: true };
    let made = match root.walk(&top, path.as_bytes(), place::Follows::Links, makes)? {
        place::Spot::Directory(_) => root.has_made(),
        place::Spot::Name { parent, name, is_free: true } => {
            root.make_directory(&parent, &name, makes)?;
            true
        }
        place::Spot::Name { parent, name, is_free: false } => return Err(place::not_a_directory(&parent.join(&name))),
    };
    root.finish()?;
    Ok(made)
}
