//! Modes and times of what git has written, which depend on the umask and the clock: files become 0644 or
//! 0755, directories 0755, and everything gets one time.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

/// Does so with the directory and everything in it; no link is followed.
pub(super) fn tidy(root: BorrowedFd<'_>, time: i64) -> Result<(), Errno> {
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let reopened = open(root, c".")?;
    let listed = names(reopened.as_fd())?;
    let mut levels = vec![(reopened, listed)];
    while let Some((directory, names)) = levels.last_mut() {
        let Some(name) = names.pop() else {
            rustix::fs::fchmod(&*directory, Mode::from_raw_mode(0o755))?;
            rustix::fs::futimens(&*directory, &times)?;
            levels.pop();
            continue;
        };
        let stat = rustix::fs::statat(&*directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = open(directory.as_fd(), &name)?;
                let listed = self::names(child.as_fd())?;
                levels.push((child, listed));
                continue;
            }
            FileType::RegularFile => {
                let mode = if stat.st_mode & 0o100 == 0 { 0o644 } else { 0o755 };
                rustix::fs::chmodat(&*directory, &name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            }
            _ => {}
        }
        rustix::fs::utimensat(&*directory, &name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn open(parent: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn modes_and_times_are_the_same_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("a")).unwrap();
        for (name, mode) in [("a/plain", 0o600), ("a/program", 0o700)] {
            std::fs::write(path(name), "").unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/nowhere", path("link")).unwrap();
        tidy(rustix::fs::open(dir.path(), OFlags::RDONLY, Mode::empty()).unwrap().as_fd(), 1_000_000_000).unwrap();
        for (name, mode) in [("", 0o40755), ("a", 0o40755), ("a/plain", 0o100644), ("a/program", 0o100755)] {
            let metadata = std::fs::symlink_metadata(path(name)).unwrap();
            assert_eq!((metadata.mode(), metadata.mtime(), metadata.mtime_nsec()), (mode, 1_000_000_000, 0), "{name}");
        }
        assert_eq!(std::fs::symlink_metadata(path("link")).unwrap().mtime(), 1_000_000_000);
    }
}
