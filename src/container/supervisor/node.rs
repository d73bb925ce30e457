//! Making device nodes for a step.
//!
//! The kernel makes them for the host's root alone. Where this process is that, it makes the node that
//! was asked for. Nothing can be done through a node that lies on a mount without devices, as the layers
//! do; on any other, only harmless ones are made.
//!
//! Where this process may not make any, the layer records them: a file stands for the node. Elsewhere a
//! harmless one is the host's, mounted on a file.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::target::{Path, Place, Target};
use super::{Supervisor, creation};
use crate::container::device::host_mount;
use crate::container::mount;
use crate::layer::Records;
use crate::layer::record::{self, Device};
use crate::sys;

/// What is to be made, as the call says it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    mode: u32,
    device: u32,
}

impl Wanted {
    /// The kernel looks at 16 bits of the mode and 32 of the device.
    pub fn new(mode: u64, device: u64) -> Self {
        Self { mode: mode as u32 & 0xffff, device: device as u32 }
    }

    pub fn file_type(self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    fn permissions(self) -> Mode {
        Mode::from_raw_mode(self.mode & 0o7777)
    }

    /// What is to be made, if it is a device.
    pub fn device(self) -> Option<Device> {
        let is_block = match self.file_type() {
            FileType::CharacterDevice => false,
            FileType::BlockDevice => true,
            _ => return None,
        };
        let device = u64::from(self.device);
        Some(Device { is_block, major: rustix::fs::major(device), minor: rustix::fs::minor(device) })
    }

    /// Makes it, as the kernel does for whoever this process acts as.
    pub fn make(self, place: &Place) -> Result<(), Errno> {
        rustix::fs::mknodat(&place.parent, &place.name, self.file_type(), self.permissions(), self.device.into())
    }

    /// Makes a file that stands for it.
    pub fn make_marker(self, place: &Place) -> Result<(), Errno> {
        let device = self.device().ok_or(Errno::INVAL)?;
        record::make_marker(&place.parent, &place.name, device, self.permissions())
    }
}

/// The devices that are nobody's: null, zero, full, random, urandom, and the caller's own terminal.
fn is_harmless(device: Device) -> bool {
    !device.is_block && matches!((device.major, device.minor), (1, 3 | 5 | 7 | 8 | 9) | (5, 0))
}

/// What holders of these may do to files of ids that the user namespace does not have: nothing.
const OVER_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// Makes a device node; the error is the one that the call ends with.
pub fn make(supervisor: &Supervisor<'_>, target: &Target, path: &Path, wanted: Wanted) -> Result<(), Errno> {
    let device = wanted.device().ok_or(Errno::INVAL)?;
    let view = target.look(&supervisor.home)?;
    let actor = target.act(&view)?;
    let place = path.place()?;
    let parent = place.parent.as_fd();
    let mut capabilities = target.status()?.capabilities;
    let is_entitled = capabilities.contains(CapabilitySet::MKNOD);
    if !supervisor.has(parent)? {
        capabilities -= OVER_FILES;
    }
    if !is_harmless(device) && has_devices(parent)? {
        capabilities -= CapabilitySet::MKNOD;
    }
    actor.limit(capabilities)?;
    // Without the capability this fails, and so do all other things that are wrong, in the kernel's order.
    match wanted.make(&place) {
        Err(Errno::PERM) if is_entitled && supervisor.records != Records::None => {}
        made => return made,
    }
    if supervisor.is_of_layer(parent)? {
        wanted.make_marker(&place)?;
        drop(actor);
        drop(view);
        return match supervisor.records {
            Records::Owners => creation::give(supervisor, target, &place),
            _ => Ok(()),
        };
    }
    if !is_harmless(device) {
        return Err(Errno::PERM);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, &place.name, flags, wanted.permissions())?;
    drop(actor);
    drop(view);
    let mounted = attach(target, device, file.as_fd());
    if mounted.is_err() {
        rustix::fs::unlinkat(parent, &place.name, AtFlags::empty())?;
    }
    mounted
}

/// Whether devices work on the mount that `dir` is on.
fn has_devices(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(!rustix::fs::fstatvfs(dir)?.f_flag.contains(StatVfsMountFlags::NODEV))
}

/// Mounts the host's device on `file`, which takes a process in the thread's mount namespace: there is no
/// way back from it.
fn attach(target: &Target, device: Device, file: BorrowedFd<'_>) -> Result<(), Errno> {
    let namespace = target.mount_namespace()?;
    // While the host's mounts are in sight: before Linux 6.15 no other is copied. Whatever is wrong with it, the device
    // cannot be had here.
    let mount = host_mount(device).and_then(|opened| opened.ok()).ok_or(Errno::PERM)?;
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    match sys::clone(0).map_err(errno)? {
        Some(child) => match sys::wait(child.pid).map_err(errno)?.status {
            0 => Ok(()),
            // Whatever it was: the device cannot be had here.
            _ => Err(Errno::PERM),
        },
        None => {
            let mounted = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
                .and_then(|()| mount::attach(mount.as_fd(), file));
            sys::exit(i32::from(mounted.is_err()))
        }
    }
}
