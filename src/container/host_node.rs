//! What a device of the machine brings into a container: nodes of its own, and files of the host.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mount::{self, NO_DEV, NO_EXEC, NO_SUID, READ_ONLY};
use super::template::Template;
use crate::diag::{Context, Diagnostic, Result};

/// A node for the device that is at `path` on the host, with this owner and mode inside. In a user namespace none
/// can be made: there it is the host's own, which the user may use as outside.
pub fn device(path: &Path, mode: Option<u32>, (uid, gid): (u32, u32), template: &Template) -> Result<OwnedFd> {
    let mapping = &template.realm.mapping;
    let doing = || format!("cannot give the device `{}` to a container", path.display());
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
    let stat = rustix::fs::fstat(&place).context(doing)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Err(Diagnostic::error(doing()).caused_by("it is no device"));
    }
    let mode = Mode::from_raw_mode(mode.unwrap_or(stat.st_mode) & 0o777);
    let tmpfs = mount::filesystem("tmpfs", &[("mode", "755"), ("size", "4096")], NO_SUID | NO_EXEC)?;
    let made = match mapping.is_shifted() {
        true => rustix::fs::mknodat(&tmpfs, "node", kind, mode, stat.st_rdev),
        false => Err(Errno::PERM),
    };
    let mount = match made {
        Err(Errno::PERM) => mount::copy_of(place.as_fd()).context(doing)?,
        made => {
            made.context(doing)?;
            if !template.copies_detached {
                mount::anchor(tmpfs.as_fd()).context(doing)?;
            }
            // The umask of this process does not count.
            rustix::fs::chmodat(&tmpfs, "node", mode, rustix::fs::AtFlags::empty()).context(doing)?;
            mapping.give_at(&tmpfs, "node", uid, gid).context(doing)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = rustix::fs::openat(&tmpfs, "node", flags, Mode::empty()).context(doing)?;
            mount::copy_of(node.as_fd()).context(doing)?
        }
    };
    mount::set(mount.as_fd(), NO_SUID | NO_EXEC).context(doing)?;
    Ok(mount)
}

/// A file or directory of the host, as it is there: root inside is nobody to it.
pub fn files(path: &Path, is_readonly: bool) -> Result<OwnedFd> {
    let doing = || format!("cannot mount `{}` of the host", path.display());
    let mount = mount::copy_of_path(path).context(doing)?;
    mount::set(mount.as_fd(), NO_SUID | NO_DEV | if is_readonly { READ_ONLY } else { 0 }).context(doing)?;
    Ok(mount)
}
