//! Real overlay mounts for tests: detached, so that nothing is left behind.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use tempfile::TempDir;

/// Mounts `lowers` (topmost first) below `upper` and `work`, or read-only without, as the
/// container does. `lowers` must not be empty, and hold two without an upper.
pub fn mount(lowers: &[&Path], upper: Option<(&Path, &Path)>) -> Result<OwnedFd, Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, path: &Path| {
        fsconfig_set_string(&fs, key, CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?)
    };
    for lower in lowers {
        set("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
        fsconfig_set_flag(&fs, "volatile")?;
    }
    for (key, value) in [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off"), ("xino", "off")] {
        fsconfig_set_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    // What `fsmount` returns is an `O_PATH` descriptor.
    openat(mount, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A directory for layers: in memory where that can hold them, as thousands of small files made
/// and deleted are slow on disks.
pub fn scratch() -> TempDir {
    let in_memory = TempDir::new_in("/dev/shm").ok().filter(|dir| {
        // Since Linux 6.6.
        rustix::fs::setxattr(dir.path(), "user.probe", b"", XattrFlags::empty()).is_ok()
    });
    in_memory.unwrap_or_else(|| TempDir::new().expect("there is room for a temporary directory"))
}
