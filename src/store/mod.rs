//! The store on disk: blobs, unpacked layers, images, records. Plain files that appear by rename;
//! several builders share it. Anything torn or corrupt in it is a miss, never a wrong image.
//!
//! ```text
//! <root>/                         mode 0700
//!   version                       format number; whose the files are, if not those of the host's ids
//!   usage                         how much it is thought to hold
//!   blobs/sha256/<hex>            manifests, configs, compressed layers
//!   partial/<hex>                 blobs on their way
//!   layers/<chain id hex>/{fs/, layer.json}
//!   forms/<diff id hex>           blobs known to hold this layer (verified here)
//!   images/<percent-encoded reference>
//!   cache/ files/                 records: <2 hex>/<name>
//!   builds/<start>-<id>/          what builds left: records and output
//!   mounts/                       RUN --mount=type=cache
//!   git/                          what was fetched from git repositories
//!   locks/                        held while in use, removed after
//!   tmp/<builder>/                work in progress of one process, beside its <builder>.lock
//!   trash/                        what is being deleted
//! ```
//!
//! Everything is on one filesystem, so a rename always publishes. A user of a layer or blob holds a
//! shared flock on it (`Layer`, `Blob`); prune takes only what it can lock exclusively. Small files
//! carry their own digest (`sealed`). Nothing is synced on the way: what another boot
//! wrote and never synced is hashed again before its first use.

mod access;
mod ahead;
mod arrival;
mod blobs;
mod builds;
mod checksum;
mod forms;
mod gc;
mod images;
mod import;
mod layers;
mod locks;
mod mounts;
mod packing;
mod records;
mod repositories;
mod scratch;
mod sealed;
mod tables;
mod tally;
mod trash;
mod workspace;

use std::fs::{self, DirBuilder};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::diag::{Context, Diagnostic, Result};
use crate::layer;
use access::Owners;

pub use access::{Access, Enter};
pub use ahead::Ahead;
pub use arrival::{Arrival, Follower};
pub use blobs::{Blob, BlobWriter};
pub use builds::BuildDir;
pub use forms::Form;
pub use gc::{Action, Keep, Pruned, StoredBlob, StoredLayer, Total, Usage};
pub use images::{ImageLayer, ImageLookup, ImageRecord};
pub use layers::{Draft, Layer, LayerMeta};
pub use locks::KeyLock;
pub use mounts::{CacheMount, MountLock, MountMeta, StoredMount};
pub use packing::Packing;
pub use repositories::{Repository, StoredRepository};
pub use scratch::Scratch;
pub use tally::Tally;

/// The number in `version`. It changes when an older program could misread what a newer one wrote.
const FORMAT: u32 = 1;

/// The directory of [`Repository`].
const REPOSITORIES: &str = "git";
/// A user may have several hundred runs of ids.
const MAX_VERSION_BYTES: u64 = 64 << 10;

/// A handle on a store; clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    root: OwnedFd,
    blobs: OwnedFd,
    layers: OwnedFd,
    partial: OwnedFd,
    forms: OwnedFd,
    images: OwnedFd,
    locks: OwnedFd,
    workspace: workspace::Workspace,
    trash: trash::Trash,
    /// For the next draft.
    blank: Mutex<Option<layers::Blank>>,
    /// Empty when the kernel does not tell; then every boot is a foreign one.
    boot_id: String,
    /// What layer dirs are to record.
    records: layer::Records,
    /// What was put in since that was last asked.
    added_bytes: AtomicU64,
    enter: Option<Enter>,
}

impl Store {
    /// Opens or makes the store (mode 0700), checks its version, and sweeps what killed builders
    /// left in `tmp/`. What is in the trash is deleted in the background.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, Access::of_this_process()?)
    }

    /// The same for a process that has yet to [`Store::enter`] before it can handle files of layers.
    pub fn open_with(root: &Path, access: Access) -> Result<Self> {
        let path = std::path::absolute(root).context(|| format!("cannot open the store `{}`", root.display()))?;
        let root = open_root(&path)?;
        check_version(&root, &path, &access.owners)?;
        let dir = |name: &str| {
            open_or_make(root.as_fd(), name)
                .context(|| format!("cannot open `{name}` in the store `{}`", path.display()))
        };
        let trash = trash::Trash::new(dir("trash")?, access.enter.is_none());
        let workspace = workspace::Workspace::new(dir("tmp")?, path.join("tmp"), access.owners == Owners::Host);
        let blobs = dir("blobs")?;
        let inner = Inner {
            blobs: open_or_make(blobs.as_fd(), "sha256")
                .context(|| format!("cannot open `blobs/sha256` in the store `{}`", path.display()))?,
            layers: dir("layers")?,
            partial: dir("partial")?,
            forms: dir("forms")?,
            images: dir("images")?,
            locks: dir("locks")?,
            workspace,
            trash,
            blank: Mutex::new(None),
            boot_id: boot_id(),
            records: access.owners.records(),
            added_bytes: AtomicU64::new(0),
            enter: access.enter,
            root,
            path,
        };
        inner.workspace.sweep(&inner.trash);
        locks::sweep(inner.locks.as_fd());
        inner.trash.wake();
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes sure that this process may handle files of every id, mount, and make namespaces. As an
    /// ordinary user's it does not come back: the program begins anew in a user namespace. So it is
    /// called before anything is done that should not be done twice.
    pub fn enter(&self) -> Result<()> {
        match &self.inner.enter {
            Some(enter) => enter(),
            None => Ok(()),
        }
    }

    /// Absolute.
    pub fn root(&self) -> &Path {
        &self.inner.path
    }

    /// Whether next to nothing can be written any more.
    pub fn is_full(&self) -> bool {
        const LITTLE_BYTES: u64 = 1 << 20;
        rustix::fs::fstatvfs(&self.inner.root).is_ok_and(|stat| {
            stat.f_bavail.saturating_mul(stat.f_frsize) < LITTLE_BYTES || stat.f_favail == 0 && stat.f_files > 0
        })
    }

    /// Waits until everything in the trash that can be deleted is deleted.
    pub fn empty_trash(&self) {
        self.inner.trash.wake();
        self.inner.trash.finish();
    }
}

impl Inner {
    /// "cannot … in the store `…`", with the reason people meet most said plainly.
    fn error(&self, doing: impl std::fmt::Display, errno: impl Into<std::io::Error>) -> Diagnostic {
        let error: std::io::Error = errno.into();
        let mut message = format!("cannot {doing} in the store `{}`", self.path.display());
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC) => message.push_str(": its filesystem is full"),
            Some(Errno::DQUOT) => message.push_str(": the disk quota is used up"),
            Some(Errno::ROFS) => message.push_str(": its filesystem is read-only"),
            _ => {}
        }
        Diagnostic::error(message).caused_by(error)
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    let cannot_open = || format!("cannot open the store `{}`", path.display());
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let cannot_make = || format!("cannot make the store `{}`", path.display());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).context(cannot_make)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).context(cannot_make);
                }
                _ => {}
            }
        }
        Err(error) => return Err(error).context(cannot_open),
    }
    let root = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(cannot_open)?;
    let metadata = fs::metadata(path).context(cannot_open)?;
    // Image files keep their owners and setuid bits below: nobody else may reach them.
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .context(|| format!("cannot make the store `{}` private", path.display()))?;
    }
    Ok(root)
}

/// Reads `version`, or writes it into a directory that is empty or was being made a store.
fn check_version(root: &OwnedFd, path: &Path, owners: &Owners) -> Result<()> {
    const NAMES: [&str; 15] = [
        "version", "usage", "blobs", "partial", "layers", "forms", "images", "cache", "files", "mounts", "git",
        "builds", "locks", "tmp", "trash",
    ];
    let file = match rustix::fs::openat(root, "version", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => Some(fs::File::from(file)),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno).context(|| format!("cannot open the store `{}`", path.display())),
    };
    if let Some(file) = file {
        let text = std::io::read_to_string(std::io::Read::take(file, MAX_VERSION_BYTES))
            .context(|| format!("cannot read the version of the store `{}`", path.display()))?;
        let (number, rest) = text.split_once('\n').unwrap_or((&text, ""));
        return match (number.trim().parse::<u32>(), Owners::parse(rest)) {
            (Ok(FORMAT), Some(others)) if owners.covers(&others) => Ok(()),
            (Ok(FORMAT), Some(others)) => Err(Diagnostic::error(format!(
                "the files of the store `{}` belong to {}, and are now to belong to {}",
                path.display(),
                others.describe(),
                owners.describe()
            ))
            .hint("choose another directory with `--root`")),
            (Ok(other), _) if other != FORMAT => Err(Diagnostic::error(format!(
                "the store `{}` has format {other}; this program reads and writes format {FORMAT}",
                path.display()
            ))
            .hint("choose another directory with `--root`")),
            _ => Err(Diagnostic::error(format!("the version of the store `{}` cannot be read", path.display()))),
        };
    }
    for entry in fs::read_dir(path).context(|| format!("cannot open the store `{}`", path.display()))? {
        let name = entry.context(|| format!("cannot open the store `{}`", path.display()))?.file_name();
        let is_ours = name.to_str().is_some_and(|name| NAMES.contains(&name) || name.starts_with(".version-"));
        if !is_ours {
            return Err(Diagnostic::error(format!(
                "`{}` is not a store, and not empty: it holds `{}`",
                path.display(),
                name.display()
            ))
            .hint("choose another directory with `--root`"));
        }
    }
    let cannot_write = || format!("cannot write to the store `{}`", path.display());
    let beside = format!(".version-{}", std::process::id());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, &beside, flags, Mode::from_raw_mode(0o600)).context(cannot_write)?;
    std::io::Write::write_all(&mut fs::File::from(file), format!("{FORMAT}\n{owners}").as_bytes())
        .context(cannot_write)?;
    rustix::fs::renameat(root, &beside, root, "version").context(cannot_write)
}

fn open_or_make(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    match open_dir(parent, name) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let dir = open_dir(parent, name)?;
    if matches!(name, "layers" | "tmp") {
        spread_subdirectories(dir.as_fd());
    }
    Ok(dir)
}

/// A directory of the store, readable, not through a link.
fn open_dir(parent: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Asks ext4 to put each subdirectory into another block group. Without a journal it looks for
/// recently deleted inodes on each creation, which makes files some 15 times slower to create in a
/// group where a layer was just deleted. Other filesystems refuse the flag, and need not have it.
fn spread_subdirectories(dir: BorrowedFd<'_>) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(dir) {
        let _ = rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR);
    }
}

/// For "last used".
const NOW: rustix::fs::Timestamps = {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::Timestamps { last_access: now, last_modification: now }
};

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Takes a lock, waiting for it; signals do not end the wait.
fn flock(fd: BorrowedFd<'_>, operation: rustix::fs::FlockOperation) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(fd, operation))
}

/// Whether `name` in `dir` still is the file that `fd` was opened as.
fn is_still_at(dir: BorrowedFd<'_>, name: &str, fd: BorrowedFd<'_>) -> bool {
    let (Ok(there), Ok(here)) =
        (rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW), rustix::fs::fstat(fd))
    else {
        return false;
    };
    (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
}

/// The names in a directory, sorted, without `.` and `..`; names that are not UTF-8 are none of ours.
fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        if let Ok(name) = entry?.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
