//! Overlay mounts over layer dirs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsopen};

use super::mount;
use crate::diag::{Context, Diagnostic, Result};
use crate::ids;

/// The kernel stacks no more lower layers (OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// Where writes go: two directories of one mount.
pub struct Upper<'a> {
    pub upper: BorrowedFd<'a>,
    pub work: BorrowedFd<'a>,
}

/// Whether all layers lie on one file system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Span {
    OneFileSystem,
    /// Files then report a device number that is not their directory's, and `tar
    /// --one-file-system` leaves them all out; `xino` gives them the overlay's.
    SeveralFileSystems,
}

/// Where an overlay writes down what it has to know about a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// `trusted.overlay.*`, which only the host's root may set.
    Trusted,
    /// `user.overlay.*`.
    User,
}

/// Mounts an overlay nowhere. `lowers` are directories, topmost first; there must be two at least
/// if there is no upper.
pub fn mount(
    lowers: &[BorrowedFd<'_>],
    upper: Option<&Upper<'_>>,
    span: Span,
    attributes: Attributes,
) -> Result<OwnedFd> {
    let doing = || "cannot mount an overlay of the layers";
    if lowers.len() > MAX_LOWERS {
        return Err(Diagnostic::error(format!(
            "cannot stack {} layers: the kernel's overlay takes at most {MAX_LOWERS}",
            lowers.len()
        )));
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(doing)?;
    let refused = |errno: Errno| {
        let error = std::io::Error::from(errno);
        let cause = mount::log(&context).map_or_else(|| error.to_string(), |log| format!("{log}: {error}"));
        Diagnostic::error(doing()).caused_by(cause)
    };
    fsconfig_set_string(&context, "source", "overlay").map_err(refused)?;
    for lower in lowers {
        set_layer(&context, "lowerdir+", *lower).map_err(refused)?;
    }
    if let Some(Upper { upper, work }) = upper {
        set_layer(&context, "upperdir", *upper).map_err(refused)?;
        set_layer(&context, "workdir", *work).map_err(refused)?;
        // No fsync reaches the disk: what is lost in a crash is found out by the boot id.
        fsconfig_set_flag(&context, "volatile").map_err(refused)?;
    }
    // Distributions differ in their defaults. Each of these would put into an upper dir what is
    // no part of a layer: redirects, files without data, an index.
    for option in ["index", "metacopy"] {
        fsconfig_set_string(&context, option, "off").map_err(refused)?;
    }
    match attributes {
        Attributes::Trusted => fsconfig_set_string(&context, "redirect_dir", "off").map_err(refused)?,
        // Implies that redirects are neither made nor followed, and takes no other word on it.
        Attributes::User => fsconfig_set_flag(&context, "userxattr").map_err(refused)?,
    }
    let xino = if span == Span::SeveralFileSystems { "on" } else { "off" };
    fsconfig_set_string(&context, "xino", xino).map_err(refused)?;
    // An image may ship device nodes; only our own /dev has working ones.
    mount::finish(&context, mount::NO_DEV).map_err(|cause| Diagnostic::error(doing()).caused_by(cause))
}

fn set_layer(context: &OwnedFd, key: &str, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    match fsconfig_set_fd(context, key, dir) {
        // Before Linux 6.13 layers are strings only.
        Err(Errno::INVAL) => fsconfig_set_string(context, key, format!("/proc/self/fd/{}", dir.as_raw_fd())),
        result => result,
    }
}

/// A merged view of `lowers` (layer dirs, topmost first), owners as on disk, mounted nowhere: lives
/// as long as the descriptor. With `draft` it is writable and writes go to `draft/u`; else it is to
/// be read only. For processes that are privileged over the layers.
pub fn overlay_detached(lowers: &[PathBuf], draft: Option<&Path>) -> Result<OwnedFd> {
    let open =
        |path: &Path| mount::host_directory(path).context(|| format!("cannot open the layer `{}`", path.display()));
    let dirs: Vec<OwnedFd> = lowers.iter().map(|path| open(path)).collect::<Result<_>>()?;
    let lowers: Vec<BorrowedFd<'_>> = dirs.iter().map(AsFd::as_fd).collect();
    let attributes = if ids::are_the_hosts() { Attributes::Trusted } else { Attributes::User };
    match (lowers.as_slice(), draft) {
        ([], None) => mount::filesystem("tmpfs", &[("size", "4096"), ("mode", "755")], mount::READ_ONLY),
        // On nothing, an upper dir alone is the merged view.
        ([], Some(draft)) => open(&draft.join("u")),
        ([lower], None) => {
            let readonly = mount::copy_of(*lower).and_then(|copy| {
                mount::set(copy.as_fd(), mount::READ_ONLY | mount::NO_DEV)?;
                Ok(copy)
            });
            readonly.context(|| "cannot mount a layer")
        }
        (lowers, None) => mount(lowers, None, Span::OneFileSystem, attributes),
        (lowers, Some(draft)) => {
            let draft = open(draft)?;
            let (upper, work) = upper_of(draft.as_fd())?;
            let upper = Upper { upper: upper.as_fd(), work: work.as_fd() };
            mount(lowers, Some(&upper), Span::OneFileSystem, attributes)
        }
    }
}

/// The upper and the work directory of a draft.
pub fn upper_of(draft: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(draft, name, flags, Mode::empty()).context(|| format!("cannot open `{name}` of a draft"))
    };
    Ok((open("u")?, open("w")?))
}
