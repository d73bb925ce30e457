//! Overlay mounts over layer dirs.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsOpenFlags, MountPropagationFlags, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsopen,
};

use super::mount;
use crate::diag::{Context, Diagnostic, Result};
use crate::ids;
use crate::sys;

/// The kernel stacks no more lower layers (OVL_MAX_STACK).
const MAX_LOWERS: usize = 500;

/// For stores on filesystems that take no upper dir.
const UNFIT: &str = "keep the store on ext4, xfs or btrfs, as a volume of a container is: `--root DIR`";

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
    let naming = naming(lowers).context(doing)?;
    let refused = |errno: Errno| {
        let error = std::io::Error::from(errno);
        let cause = mount::log(&context).map_or_else(|| error.to_string(), |log| format!("{log}: {error}"));
        Diagnostic::error(doing()).caused_by(cause)
    };
    fsconfig_set_string(&context, "source", "overlay").map_err(refused)?;
    for lower in lowers.iter().filter(|_| naming != Naming::List) {
        set_layer(&context, "lowerdir+", *lower, naming).map_err(refused)?;
    }
    if let Some(Upper { upper, work }) = upper {
        // An overlay, NFS and others cannot be written to by way of an overlay.
        set_layer(&context, "upperdir", *upper, naming).map_err(|errno| refused(errno).hint(UNFIT))?;
        set_layer(&context, "workdir", *work, naming).map_err(refused)?;
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
    let finish = || mount::finish(&context, mount::NO_DEV).map_err(|cause| Diagnostic::error(doing()).caused_by(cause));
    match naming {
        Naming::List => finish_with_list(&context, lowers, finish),
        _ => finish(),
    }
}

/// How layers are named to the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    Descriptors,
    /// Of descriptors, before Linux 6.13.
    Paths,
    /// All lowers in one option, before Linux 6.7.
    List,
}

/// Tries with `dir` what the kernel takes, so that processes forked from now on know it.
pub fn learn(dir: BorrowedFd<'_>) -> Result<()> {
    naming(&[dir]).map(|_| ()).context(|| "cannot mount an overlay")
}

/// The best that the kernel has. To give up a trial takes as long as a mount: it is made once.
fn naming(lowers: &[BorrowedFd<'_>]) -> Result<Naming, Errno> {
    static LEARNED: OnceLock<Naming> = OnceLock::new();
    let Some(first) = lowers.first() else { return Ok(Naming::Descriptors) };
    match LEARNED.get() {
        Some(learned) => Ok(*learned),
        None => tried_naming(*first).map(|learned| *LEARNED.get_or_init(|| learned)),
    }
}

/// Found out with a layer, on a context of its own: a refused option stays in the log.
fn tried_naming(layer: BorrowedFd<'_>) -> Result<Naming, Errno> {
    let trial = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    match fsconfig_set_fd(&trial, "lowerdir+", layer) {
        Ok(()) => Ok(Naming::Descriptors),
        // A file system of the old kind takes any string, and nothing else.
        Err(Errno::OPNOTSUPP) => Ok(Naming::List),
        Err(Errno::INVAL) => match fsconfig_set_string(&trial, "lowerdir+", path_of(layer)) {
            Ok(()) => Ok(Naming::Paths),
            Err(Errno::INVAL) => Ok(Naming::List),
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
}

fn path_of(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

fn set_layer(context: &OwnedFd, key: &str, dir: BorrowedFd<'_>, naming: Naming) -> Result<(), Errno> {
    match naming {
        Naming::Descriptors => fsconfig_set_fd(context, key, dir),
        Naming::Paths | Naming::List => fsconfig_set_string(context, key, path_of(dir)),
    }
}

/// Names of one byte each, as an option has no more than 255: what is not one of these means something in
/// the list of layers, or in a path.
const NAMES: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\
    !\"#$%&'()*+-;<=>?@[]^_`{|}~\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x11\x12\x13\x14\x15\
    \x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f ";

/// Lists the lower layers by the names of links, in a directory that is the working directory while the
/// kernel looks them up.
fn finish_with_list(
    context: &OwnedFd,
    lowers: &[BorrowedFd<'_>],
    finish: impl FnOnce() -> Result<OwnedFd> + Send,
) -> Result<OwnedFd> {
    let doing = || "cannot mount an overlay of the layers";
    if lowers.len() > NAMES.len() {
        return Err(Diagnostic::error(format!("cannot stack {} layers", lowers.len()))
            .caused_by(format!("before Linux 6.7 an overlay takes {} of them by name", NAMES.len())));
    }
    let links = mount::filesystem("tmpfs", &[("size", "1m"), ("mode", "755")], mount::DATA_ONLY)?;
    let mut list = Vec::new();
    for (lower, name) in lowers.iter().zip(NAMES) {
        rustix::fs::symlinkat(path_of(*lower), &links, &[*name][..]).context(doing)?;
        if !list.is_empty() {
            list.push(b':');
        }
        list.push(*name);
    }
    // A thread of its own: other threads have their working directory from the shell.
    let listed = std::thread::scope(|scope| {
        let lists = scope.spawn(|| {
            sys::keep_own_working_directory().context(doing)?;
            rustix::process::fchdir(&links).context(doing)?;
            let named = fsconfig_set_string(context, "lowerdir", list.as_slice()).context(doing);
            let finished = named.and_then(|()| finish());
            // Lest a thread that was waited for takes the mount apart when it ends: it would be in the way meanwhile.
            rustix::process::chdir("/").context(doing)?;
            finished
        });
        lists.join()
    });
    listed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A merged view of `lowers` (layer dirs, topmost first), owners as on disk, mounted nowhere: lives
/// as long as the descriptor. With `draft` it is writable and writes go to `draft/u`; else it is to
/// be read only. For processes that are privileged over the layers.
pub fn overlay_detached(lowers: &[PathBuf], draft: Option<&Path>) -> Result<OwnedFd> {
    let dirs = open_all(lowers)?;
    let lowers: Vec<BorrowedFd<'_>> = dirs.iter().map(AsFd::as_fd).collect();
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
        (lowers, None) => mount(lowers, None, Span::OneFileSystem, attributes()),
        (lowers, Some(draft)) => writable(lowers, open(draft)?.as_fd(), Span::OneFileSystem),
    }
}

/// The same with writes going to `room`, which holds `u` and `w`, wherever that is. There must be a layer.
pub fn overlay_over(lowers: &[PathBuf], room: BorrowedFd<'_>) -> Result<OwnedFd> {
    let over = || {
        let dirs = open_all(lowers)?;
        let lowers: Vec<BorrowedFd<'_>> = dirs.iter().map(AsFd::as_fd).collect();
        writable(&lowers, room, Span::SeveralFileSystems)
    };
    if mount::copy_of_detached(room)?.is_some() {
        return over();
    }
    // An older kernel takes directories of mounts that are attached in the caller's namespace only: a thread has one
    // of its own for a moment.
    let doing = || "cannot attach what a step writes to";
    let there = std::thread::scope(|scope| {
        let attached = scope.spawn(|| {
            sys::enter_new_mount_namespace().context(doing)?;
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", flags).context(doing)?;
            mount::anchor(room).context(doing)?;
            over()
        });
        attached.join()
    });
    there.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn open_all(lowers: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    lowers.iter().map(|path| open(path)).collect()
}

fn open(path: &Path) -> Result<OwnedFd> {
    mount::host_directory(path).context(|| format!("cannot open the layer `{}`", path.display()))
}

fn writable(lowers: &[BorrowedFd<'_>], draft: BorrowedFd<'_>, span: Span) -> Result<OwnedFd> {
    let (upper, work) = upper_of(draft)?;
    let upper = Upper { upper: upper.as_fd(), work: work.as_fd() };
    mount(lowers, Some(&upper), span, attributes())
}

fn attributes() -> Attributes {
    if ids::are_the_hosts() { Attributes::Trusted } else { Attributes::User }
}

/// The upper and the work directory of a draft.
pub fn upper_of(draft: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(draft, name, flags, Mode::empty()).context(|| format!("cannot open `{name}` of a draft"))
    };
    Ok((open("u")?, open("w")?))
}
