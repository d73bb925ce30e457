//! Making device nodes for a step.
//!
//! The kernel makes them for the host's root alone. Where this process is that, it makes the node that
//! was asked for: as the thread that asked, but for the one capability. Nothing can be done through a
//! node that lies on a mount without devices, as the layers do; on any other, only harmless ones are made.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::Supervisor;
use super::target::{Path, Target};

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

    fn numbers(self) -> (u32, u32) {
        let device = u64::from(self.device);
        (rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Null, zero, full, random, urandom, and the caller's own terminal.
    fn is_harmless(self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::CharacterDevice
            && matches!(self.numbers(), (1, 3 | 5 | 7 | 8 | 9) | (5, 0))
    }
}

/// What holders of these may do to files of ids that the user namespace does not have: nothing.
const OVER_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// Makes the node; the error is the one that the call ends with.
pub fn make(supervisor: &Supervisor<'_>, target: &Target, path: &Path, wanted: Wanted) -> Result<(), Errno> {
    let actor = target.act()?;
    let place = path.place()?;
    let parent = place.parent.as_fd();
    if !supervisor.has(parent)? {
        actor.limit(target.status.capabilities - OVER_FILES)?;
    }
    // Without the capability this fails, and so do all other things that are wrong, in the kernel's order.
    if target.status.capabilities.contains(CapabilitySet::MKNOD) && !wanted.is_harmless() && has_devices(parent)? {
        actor.limit(target.status.capabilities - OVER_FILES - CapabilitySet::MKNOD)?;
    }
    let (file_type, mode) = (FileType::from_raw_mode(wanted.mode), Mode::from_raw_mode(wanted.mode & 0o7777));
    rustix::fs::mknodat(parent, &place.name, file_type, mode, u64::from(wanted.device))
}

/// Whether devices work on the mount that `dir` is on.
fn has_devices(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(!rustix::fs::fstatvfs(dir)?.f_flag.contains(StatVfsMountFlags::NODEV))
}
