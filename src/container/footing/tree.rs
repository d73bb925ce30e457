//! A copy of all that a step sees, and how it looked before the step.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::diag::{Context, Diagnostic, Result};
use crate::layer::{self, Links, Records, Shift, Snapshot};
use crate::store::{Scratch, Store};

pub struct Tree {
    /// Its root.
    pub dir: OwnedFd,
    pub path: PathBuf,
    before: Snapshot,
    shift: Shift,
    _scratch: Scratch,
}

impl Tree {
    pub fn make(lowers: &[PathBuf], records: Records, shift: Shift, store: &Store) -> Result<Self> {
        let doing = || "cannot make a copy of a root";
        let scratch = store.scratch()?;
        let path = scratch.path.join("root");
        rustix::fs::mkdir(&path, Mode::RWXU).context(doing)?;
        let open = |path: &PathBuf| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).context(doing)
        };
        let (dir, beside) = (open(&path)?, open(&scratch.path)?);
        match lowers {
            [] => {
                // An empty layer dir, as it is on disk.
                let empty = scratch.path.join("empty");
                rustix::fs::mkdir(&empty, Mode::RWXU).context(doing)?;
                let empty = open(&empty)?;
                rustix::fs::fchmod(&empty, Mode::from_raw_mode(0o755)).context(doing)?;
                records.begin(empty.as_fd()).context(doing)?;
                layer::transfer(empty.as_fd(), dir.as_fd(), Links::Broken, shift)?;
            }
            // As an overlay does when a file is written to, it gives each name a file of its own.
            [lower] => layer::transfer(open(lower)?.as_fd(), dir.as_fd(), Links::Broken, shift)?,
            _ => return Err(Diagnostic::error(doing()).caused_by("its layers are not one directory")),
        }
        let before = layer::snapshot(dir.as_fd(), beside.as_fd())?;
        Ok(Self { dir, path, before, shift, _scratch: scratch })
    }

    /// Writes what was changed.
    pub fn difference(self, into: BorrowedFd<'_>) -> Result<()> {
        layer::difference(self.dir.as_fd(), self.before, into, self.shift.back())
    }
}
