//! Extended attributes, where one of them stands for a device: only who may make devices may set it.

use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::Supervisor;
use super::target::{Object, Target};
use crate::layer::record;
use crate::sys::Answer;

/// What is to be set, as the call says it.
pub struct Wanted {
    pub object: Object,
    pub name: CString,
    /// Where in the thread's memory it is, and its size.
    pub value: (u64, u64),
    pub flags: u64,
}

/// As the kernel's limit.
const MAX_VALUE_BYTES: u64 = 64 << 10;

/// Sets an attribute, as the thread. It is not left to do it itself: what was read here could be another
/// name by then.
pub fn set(supervisor: &Supervisor<'_>, target: &Target, wanted: Wanted) -> Result<Answer, Errno> {
    let is_entitled = target.status()?.capabilities.contains(CapabilitySet::MKNOD);
    if is_entitled && target.is_of(supervisor.user_namespace)? {
        return Ok(Answer::Continue);
    }
    if wanted.name.to_bytes().starts_with(record::PREFIX) {
        return Err(Errno::PERM);
    }
    let (address, size) = wanted.value;
    if size > MAX_VALUE_BYTES {
        return Err(Errno::TOOBIG);
    }
    let value = target.bytes(address, size as usize)?;
    let flags = XattrFlags::from_bits_retain(wanted.flags as u32);
    let file = {
        let view = target.look(&supervisor.home)?;
        let _actor = target.act(&view)?;
        wanted.object.open()?
    };
    let _actor = target.act(&supervisor.home)?;
    // The one name by which a place that is open can be reached: itself, even if it is a link.
    rustix::fs::setxattr(format!("/proc/self/fd/{}", file.as_raw_fd()), &wanted.name, &value, flags)?;
    Ok(Answer::Return(0))
}
