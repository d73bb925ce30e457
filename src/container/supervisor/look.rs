//! What `stat` says of files that are recorded to be somebody's, or a device.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Supervisor;
use super::target::{Object, Target};
use crate::layer::Records;
use crate::layer::node::Kind;
use crate::sys::{self, Answer, Said};

/// How the answer is written.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Stat,
    /// With the flags and the mask of the call.
    Statx(u32, u32),
}

/// Describes a file, if that takes more than the kernel.
pub fn describe(
    supervisor: &Supervisor<'_>,
    target: &Target,
    object: Result<Object, Errno>,
    form: Form,
    address: u64,
) -> Result<Answer, Errno> {
    let file: Result<OwnedFd, Errno> = {
        let _view = target.look(&supervisor.home)?;
        object.and_then(Object::open)
    };
    // What is wrong with the path the kernel says best.
    let Ok(file) = file else { return Ok(Answer::Continue) };
    let Some(node) = Records::Owners.node_at(&file, c"")? else { return Ok(Answer::Continue) };
    let device = match node.kind {
        Kind::CharDevice => Some((FileType::CharacterDevice.as_raw_mode(), node.rdev)),
        Kind::BlockDevice => Some((FileType::BlockDevice.as_raw_mode(), node.rdev)),
        _ => None,
    };
    if (node.uid, node.gid) == (0, 0) && device.is_none() {
        return Ok(Answer::Continue);
    }
    let said = Said { uid: node.uid, gid: node.gid, device };
    let bytes = match form {
        Form::Stat => sys::stat_bytes(file.as_fd(), said),
        Form::Statx(flags, mask) => sys::statx_bytes(file.as_fd(), flags, mask, said),
    };
    let bytes = bytes.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    target.write(address, &bytes)?;
    Ok(Answer::Return(0))
}
