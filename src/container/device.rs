//! A container's /dev: a tmpfs of its own with the six harmless devices.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};

use super::mount::{self, NO_EXEC, NO_SUID};
use super::userns::BASE;
use crate::diag::{Context, Result};

const DEVICES: [(&str, u32, u32); 6] =
    [("full", 1, 7), ("null", 1, 3), ("random", 1, 8), ("tty", 5, 0), ("urandom", 1, 9), ("zero", 1, 5)];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];
const DIRECTORIES: [&str; 3] = ["mqueue", "pts", "shm"];
/// Docker's bound on what a RUN may write to /dev itself.
const SIZE_BYTES: &str = "64m";
/// The group `tty`, as every distribution numbers it.
const TTY_GID: u32 = 5;

/// The file systems of a /dev, but for the message queues: those come with an ipc namespace.
pub struct Devices {
    pub dev: OwnedFd,
    pub pts: OwnedFd,
    pub shm: OwnedFd,
    pub shm_size_bytes: u64,
}

impl Devices {
    pub fn new(shm_size_bytes: u64) -> Result<Self> {
        let (base, size) = (BASE.to_string(), shm_size_bytes.to_string());
        let options = [("mode", "1777"), ("size", &size), ("uid", &base), ("gid", &base)];
        let shm = mount::filesystem("tmpfs", &options, mount::DATA_ONLY)?;
        Ok(Self { dev: devices()?, pts: terminals()?, shm, shm_size_bytes })
    }
}

/// The message queues of this process's ipc namespace.
pub fn message_queues() -> Result<OwnedFd> {
    let queues = mount::filesystem("mqueue", &[], mount::DATA_ONLY)?;
    give_to_root(&queues, "")?;
    Ok(queues)
}

fn devices() -> Result<OwnedFd> {
    let base = BASE.to_string();
    let options = [("mode", "755"), ("size", SIZE_BYTES), ("uid", &base), ("gid", &base)];
    let dev = mount::filesystem("tmpfs", &options, NO_SUID | NO_EXEC)?;
    let doing = || "cannot make the devices of a container";
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor)).context(doing)?;
        give_to_root(&dev, name)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).context(doing)?;
        give_to_root(&dev, name)?;
    }
    for name in DIRECTORIES {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).context(doing)?;
        give_to_root(&dev, name)?;
    }
    Ok(dev)
}

fn terminals() -> Result<OwnedFd> {
    let tty_gid = (BASE + TTY_GID).to_string();
    let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", tty_gid.as_str())];
    let pts = mount::filesystem("devpts", &options, NO_SUID | NO_EXEC)?;
    give_to_root(&pts, "")?;
    give_to_root(&pts, "ptmx")?;
    Ok(pts)
}

/// For what was made as the host's root, which is nobody inside.
fn give_to_root(mount: &OwnedFd, name: &str) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(BASE), Gid::from_raw(BASE));
    rustix::fs::chownat(mount, name, Some(uid), Some(gid), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
        .context(|| "cannot make the devices of a container")
}
