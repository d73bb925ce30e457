//! Detached mounts: made, cloned and id-mapped without a place in any mount table, then attached.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::holder::{self, Making};
use crate::diag::{Context, Diagnostic, Result};
use crate::sys::{self, MountAttributes};

pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
pub const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
/// For file systems that hold no programs.
pub const DATA_ONLY: u64 = NO_SUID | NO_DEV | NO_EXEC;

/// A new file system of a kind, mounted nowhere. An option with an empty value is a flag.
pub fn filesystem(kind: &str, options: &[(&str, &str)], attributes: u64) -> Result<OwnedFd> {
    let doing = || format!("cannot mount a {kind} file system");
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context(doing)?;
    fsconfig_set_string(&context, "source", kind).context(doing)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, *key).context(doing)?;
        } else {
            fsconfig_set_string(&context, *key, *value).context(doing)?;
        }
    }
    finish(&context, attributes).map_err(|cause| Diagnostic::error(doing()).caused_by(cause))
}

/// Creates what `context` describes and mounts it nowhere; the error is what the kernel logged, or
/// else its number in words.
pub fn finish(context: &OwnedFd, attributes: u64) -> Result<OwnedFd, String> {
    let made = fsconfig_create(context).and_then(|()| {
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(attributes as u32))
    });
    made.map_err(|errno| {
        let error = std::io::Error::from(errno);
        log(context).map_or_else(|| error.to_string(), |log| format!("{log}: {error}"))
    })
}

/// What the kernel said about a file system that it would not make.
pub fn log(context: &OwnedFd) -> Option<String> {
    let mut lines = Vec::new();
    let mut line = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        // A line begins with its level: `e `, `w ` or `i `.
        let text = String::from_utf8_lossy(&line[..length]);
        lines.push(text.get(2..).unwrap_or_default().trim_end().to_owned());
    }
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// A copy of the mount that `fd` (opened with `O_PATH` or a mount) stands in, from there on down.
pub fn copy_of(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    copy_at(fd, "")
}

/// The same with everything that is mounted below.
pub fn copy_of_all(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(fd, "", flags | OpenTreeFlags::AT_RECURSIVE)
}

/// A copy of the mount at the host path `path`, from there on down, without what is mounted below.
pub fn copy_of_path(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    copy_at(CWD, path)
}

fn copy_at(dir: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(dir, path, flags)
}

/// A copy of a mount that is attached nowhere; `None` if this kernel makes none (before Linux 6.15).
pub fn copy_of_detached(mount: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    match copy_of(mount) {
        Err(Errno::INVAL) => Ok(None),
        copied => copied.map(Some).context(|| "cannot copy a mount"),
    }
}

/// Attaches a mount where nobody sees it, in a mount namespace of this process's own: over its root, which
/// stays what it was for who has it open. An older kernel then copies it, and finds it by its
/// descriptor's name.
pub fn anchor(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Takes away what is over this process's root: a program that changes its root unmounts the old one, and cannot
/// while something is over that. For a copy of the namespace in which it was anchored.
pub fn lift_anchors() -> Result<(), Errno> {
    let id = |path| {
        statx(CWD, path, AtFlags::empty(), StatxFlags::from_bits_retain(libc::STATX_MNT_ID)).map(|stat| stat.stx_mnt_id)
    };
    // `/` is the root itself, `/..` what is on top of it, which is also what is unmounted by the name of `/`.
    while id("/")? != id("/..")? {
        unmount("/", UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Adds `MOUNT_ATTR_*` bits to a mount.
pub fn set(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), Errno> {
    let attributes = MountAttributes { set: attributes, id_map: None };
    sys::mount_setattr(mount, false, attributes).map_err(errno)
}

/// The same, for all mounts below it too.
pub fn set_all(mount: BorrowedFd<'_>, attributes: u64) -> Result<(), Errno> {
    let attributes = MountAttributes { set: attributes, id_map: None };
    sys::mount_setattr(mount, true, attributes).map_err(errno)
}

/// Shows a mount that is attached nowhere through the id map of a user namespace.
pub fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = MountAttributes { set: 0, id_map: Some(user_namespace) };
    sys::mount_setattr(mount, false, attributes).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Moves a detached mount onto `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Begins to make a mount namespace in which there is an empty directory and no more; see
/// [`holder::begin`]. A copy of it is quickly made and given up, while the host's may have
/// hundreds of mounts.
pub fn bare_namespace() -> Result<Making> {
    let empty = filesystem("tmpfs", &[("mode", "755"), ("size", "4096")], DATA_ONLY)?;
    let furnish = || Ok(make_root(empty.as_fd())?);
    holder::begin("mnt", libc::CLONE_NEWNS, furnish)
}

/// Makes a mount that is attached nowhere the only root of this process's mount namespace, and the
/// current directory.
pub fn make_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    // Over `/`: it exists everywhere, and what is over it is out of sight.
    move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies over the new one.
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// How names of an image, a context or a cache are resolved: never out of the root, never through
/// the magic links of procfs.
pub const BENEATH: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` beneath `root` as a place only.
pub fn place(root: BorrowedFd<'_>, path: &str, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    sys::open_beneath(root, path, OFlags::PATH | flags, resolve)
}

/// A directory of the host as a place only.
pub fn host_directory(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
