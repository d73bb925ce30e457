//! What the root of a step is made of, from the best that there is to what works nearly everywhere.
//!
//! ```text
//! overlay   the kernel's, with its upper dir in the store
//! memory    the kernel's, with its upper dir on a tmpfs: the store's filesystem takes none
//! fuse      fuse-overlayfs, with its upper dir in the store
//! copy      a copy of all layers, looked at before and after the step
//! ```
//!
//! Whatever it is, what a step wrote is an upper dir in its draft once the ground is settled.

mod fuse;
mod room;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};

use super::{mount, overlay, userns};
use crate::diag::{Context, Diagnostic, Result};
use crate::ids;
use crate::layer::{self, Links, Records, Shift, node, whiteout};
use crate::store::{Draft, Store};

pub use room::size_bytes as room_size_bytes;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    #[default]
    Overlay,
    Memory,
    Fuse,
    Copy,
}

impl Rung {
    pub const ALL: [Self; 4] = [Self::Overlay, Self::Memory, Self::Fuse, Self::Copy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Memory => "memory",
            Self::Fuse => "fuse",
            Self::Copy => "copy",
        }
    }

    /// Whether layers have to be one directory for it.
    pub fn takes_one_layer(self, store: &Store) -> Result<bool> {
        match self {
            Self::Overlay | Self::Memory => store.has_our_whiteouts(),
            // `fuse-overlayfs` does not know whiteouts that are files.
            Self::Fuse => {
                let scratch = store.scratch()?;
                let dir = mount::host_directory(&scratch.path).context(|| "cannot open a directory of the store")?;
                let are_devices = whiteout::are_devices(&dir).context(|| "cannot try to make a whiteout")?;
                Ok(!are_devices || store.has_our_whiteouts()?)
            }
            Self::Copy => Ok(true),
        }
    }
}

/// What all steps of a build stand on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Footing {
    pub rung: Rung,
    /// The host's root mounts layers through a map of ids. Where the store's filesystem has none, steps get
    /// copies that belong to whom they are mapped to.
    pub has_shifted_layers: bool,
}

/// Where the ids of steps lie among those of layers.
pub fn shift_of_steps() -> Shift {
    match ids::are_the_hosts() {
        true => Shift::Up(userns::BASE),
        false => Shift::None,
    }
}

/// Who works on a ground.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worker {
    /// This process, which sees owners as they are on disk.
    Builder,
    /// A container.
    Step,
}

/// Where one step writes to, over layers.
pub struct Ground(Kind);

enum Kind {
    Draft,
    Room(Arc<OwnedFd>),
    Fuse(fuse::Session),
    Tree(tree::Tree),
}

/// The part of a ground that a container takes.
#[derive(Clone, Debug, Default)]
pub enum Given {
    /// There is none: its overlay has the draft.
    #[default]
    Nothing,
    /// A filesystem that holds `u` and `w` in the place of the draft.
    Room(Arc<OwnedFd>),
    /// The root, mounted nowhere, which shows all layers.
    Root(Arc<OwnedFd>),
    /// The root is the directory in the place of the draft's.
    Tree,
}

impl Ground {
    /// `lowers` are layer dirs of the store, topmost first; one at most where the rung takes no more.
    pub fn new(rung: Rung, worker: Worker, lowers: &[PathBuf], draft: &Draft, store: &Store) -> Result<Self> {
        let shift = if worker == Worker::Step { shift_of_steps() } else { Shift::None };
        // On nothing, an upper dir alone is the merged view.
        if worker == Worker::Builder && lowers.is_empty() {
            return Ok(Self(Kind::Draft));
        }
        let records = || Records::of(draft.upper()).context(|| "cannot read a draft");
        Ok(Self(match rung {
            Rung::Overlay => {
                check_types(draft)?;
                Kind::Draft
            }
            Rung::Memory => Kind::Room(Arc::new(room::make(records()?, store)?)),
            Rung::Fuse => Kind::Fuse(fuse::Session::begin(lowers, draft, shift, store)?),
            Rung::Copy => Kind::Tree(tree::Tree::make(lowers, records()?, shift, store)?),
        }))
    }

    /// For the container that works on it.
    pub fn given(&self) -> Given {
        match &self.0 {
            Kind::Draft => Given::Nothing,
            Kind::Room(room) => Given::Room(Arc::clone(room)),
            Kind::Fuse(session) => Given::Root(Arc::clone(&session.mount)),
            Kind::Tree(_) => Given::Tree,
        }
    }

    /// What the container is told of as its draft.
    pub fn path(&self, draft: &Draft) -> PathBuf {
        match &self.0 {
            Kind::Tree(tree) => tree.path.clone(),
            _ => draft.path.clone(),
        }
    }

    /// The root for a builder that works on it.
    pub fn root(&self, lowers: &[PathBuf], draft: &Draft) -> Result<OwnedFd> {
        let doing = || "cannot open a root";
        match &self.0 {
            Kind::Draft => overlay::overlay_detached(lowers, Some(&draft.path)),
            Kind::Room(room) => overlay::overlay_over(lowers, room.as_fd()),
            Kind::Fuse(session) => session.mount.try_clone().context(doing),
            Kind::Tree(tree) => tree.dir.try_clone().context(doing),
        }
    }

    /// Makes it fit for another container over what one has written.
    pub fn renew(&self, draft: &Draft) -> Result<()> {
        match &self.0 {
            Kind::Draft => draft.renew_work_dir(),
            Kind::Room(room) => room::renew(room.as_fd()),
            Kind::Fuse(_) | Kind::Tree(_) => Ok(()),
        }
    }

    /// Whether there is no room for a step to write any more, where that is not the store's.
    pub fn is_full(&self) -> bool {
        matches!(&self.0, Kind::Room(room) if room::is_full(room.as_fd()))
    }

    /// Brings what was written into the draft's upper dir. Nobody works on it any more. `lowers` and `skeleton` are
    /// as for [`layer::canonicalize`].
    pub fn settle(self, draft: &Draft, lowers: &[BorrowedFd<'_>], skeleton: Option<BorrowedFd<'_>>) -> Result<()> {
        match self.0 {
            Kind::Draft => Ok(()),
            Kind::Room(room) => {
                let (upper, _) = overlay::upper_of(room.as_fd())?;
                layer::canonicalize(upper.as_fd(), lowers, skeleton)?;
                layer::transfer(upper.as_fd(), draft.upper(), Links::Kept, Shift::None)
            }
            Kind::Fuse(session) => {
                let since = session.end()?;
                layer::translate_fuse_overlay(draft.upper(), lowers, since)
            }
            Kind::Tree(tree) => tree.difference(draft.upper()),
        }
    }
}

/// A root over layers whose upper dir is in memory: for a copy that leaves the bytes of its files where they are.
pub struct Sketch(OwnedFd);

impl Sketch {
    /// For what would else go to the draft.
    pub fn new(draft: &Draft, store: &Store) -> Result<Self> {
        let records = Records::of(draft.upper()).context(|| "cannot read a draft")?;
        room::make(records, store).map(Self)
    }

    /// The root over `lowers`, layer dirs of the store, topmost first.
    pub fn root(&self, lowers: &[PathBuf]) -> Result<OwnedFd> {
        match lowers.is_empty() {
            true => self.upper(),
            false => overlay::overlay_over(lowers, self.0.as_fd()),
        }
    }

    pub fn upper(&self) -> Result<OwnedFd> {
        overlay::upper_of(self.0.as_fd()).map(|(upper, _)| upper)
    }
}

/// The kernel makes an overlay on a filesystem whose directories do not say what is in them, warns in its log, and
/// then shows what was deleted.
fn check_types(draft: &Draft) -> Result<()> {
    let doing = || "cannot read a draft";
    let dir = rustix::fs::open(&draft.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(doing)?;
    let names = node::names(dir.as_fd()).context(doing)?;
    match names.iter().any(|(_, kind)| *kind == FileType::Unknown) {
        true => Err(Diagnostic::error("cannot mount an overlay of the layers")
            .caused_by("the store's filesystem does not tell the types of files in directories")),
        false => Ok(()),
    }
}

/// Attributes of the mount of a root: no device of an image is one.
const ROOT_ATTRIBUTES: u64 = mount::NO_DEV;
