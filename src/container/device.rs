//! A container's /dev: a tmpfs of its own with the six harmless devices. In a user namespace no device
//! can be made: there they are the host's, each mounted on a file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev};

use super::holder;
use super::mount::{self, NO_EXEC, NO_SUID};
use super::userns::Mapping;
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::record::Device;

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

/// The file systems of a /dev, but for the message queues, which come with an ipc namespace; and what hides a
/// directory.
pub struct Devices {
    pub dev: OwnedFd,
    pub pts: OwnedFd,
    pub shm: OwnedFd,
    pub shm_size_bytes: u64,
    /// A directory with nothing in it, read-only.
    pub empty: OwnedFd,
}

impl Devices {
    pub fn new(shm_size_bytes: u64, mapping: &Mapping, namespaces: Namespaces<'_>) -> Result<Self> {
        let (root, size) = (mapping.root().to_string(), shm_size_bytes.to_string());
        let options = [("mode", "1777"), ("size", &size), ("uid", &root), ("gid", &root)];
        let shm = mount::filesystem("tmpfs", &options, mount::DATA_ONLY)?;
        let options = [("mode", "555"), ("size", "4096"), ("uid", &root), ("gid", &root)];
        let empty = mount::filesystem("tmpfs", &options, mount::READ_ONLY | mount::DATA_ONLY)?;
        Ok(Self { dev: devices(mapping)?, pts: terminals(mapping, namespaces)?, shm, shm_size_bytes, empty })
    }
}

/// Where a step's are made that cannot be made outside.
#[derive(Clone, Copy)]
pub struct Namespaces<'a> {
    pub user: BorrowedFd<'a>,
    pub mount: BorrowedFd<'a>,
}

/// The message queues of this process's ipc namespace.
pub fn message_queues(mapping: &Mapping) -> Result<OwnedFd> {
    let queues = mount::filesystem("mqueue", &[], mount::DATA_ONLY)?;
    give_to_root(&queues, "", mapping)?;
    Ok(queues)
}

/// A device of the host's, to be mounted on the file of its name in a container's /dev.
pub struct HostDevice {
    pub name: &'static str,
    pub mount: OwnedFd,
}

/// The host's devices; none where a container has its own.
pub fn of_host(mapping: &Mapping) -> Result<Vec<HostDevice>> {
    let devices = DEVICES.iter().filter(|_| !mapping.is_shifted());
    devices.map(|(name, major, minor)| Ok(HostDevice { name, mount: open_host(name, (*major, *minor))? })).collect()
}

/// The host's device of this number, to be mounted on a file; `None` if it is none that containers have.
pub fn host_mount(device: Device) -> Option<Result<OwnedFd>> {
    let number = (device.major, device.minor);
    let known = DEVICES.iter().find(|(_, major, minor)| !device.is_block && (*major, *minor) == number);
    known.map(|(name, ..)| open_host(name, number))
}

/// What is at `/dev/NAME`, if it is the device of that name.
fn open_host(name: &str, number: (u32, u32)) -> Result<OwnedFd> {
    let doing = || format!("cannot use the host's `/dev/{name}`");
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, format!("/dev/{name}"), flags, Mode::empty()).context(doing)?;
    let stat = rustix::fs::fstat(&place).context(doing)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if !is_device || stat.st_rdev != makedev(number.0, number.1) {
        return Err(Diagnostic::error(doing()).caused_by("it is another file"));
    }
    let mount = mount::copy_of(place.as_fd()).context(doing)?;
    mount::set(mount.as_fd(), NO_SUID | NO_EXEC).context(doing)?;
    Ok(mount)
}

fn devices(mapping: &Mapping) -> Result<OwnedFd> {
    let root = mapping.root().to_string();
    let options = [("mode", "755"), ("size", SIZE_BYTES), ("uid", &root), ("gid", &root)];
    let dev = mount::filesystem("tmpfs", &options, NO_SUID | NO_EXEC)?;
    let doing = || "cannot make the devices of a container";
    for (name, major, minor) in DEVICES {
        let (kind, device) = match mapping.is_shifted() {
            true => (FileType::CharacterDevice, makedev(major, minor)),
            false => (FileType::RegularFile, 0),
        };
        rustix::fs::mknodat(&dev, name, kind, Mode::from_raw_mode(0o666), device).context(doing)?;
        give_to_root(&dev, name, mapping)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).context(doing)?;
        give_to_root(&dev, name, mapping)?;
    }
    for name in DIRECTORIES {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).context(doing)?;
        give_to_root(&dev, name, mapping)?;
    }
    Ok(dev)
}

fn terminals(mapping: &Mapping, namespaces: Namespaces<'_>) -> Result<OwnedFd> {
    let make = |gid: u32| {
        let gid = gid.to_string();
        let options = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", gid.as_str())];
        mount::filesystem("devpts", &options, NO_SUID | NO_EXEC)
    };
    // Where there is one group only it is root's.
    let (_, gid) = mapping.outside(0, TTY_GID).unwrap_or((0, mapping.root()));
    let pts = match make(gid) {
        // Numbers of a group end at 2³¹ here until Linux 6.16.
        Err(_) if gid > i32::MAX as u32 => holder::made_within(namespaces.user, namespaces.mount, || make(TTY_GID))?,
        made => made?,
    };
    give_to_root(&pts, "", mapping)?;
    give_to_root(&pts, "ptmx", mapping)?;
    Ok(pts)
}

/// For what was made as the builder's root, which is nobody inside.
fn give_to_root(mount: &OwnedFd, name: &str, mapping: &Mapping) -> Result<()> {
    mapping.give_at(mount, name, 0, 0).context(|| "cannot make the devices of a container")
}
