//! Giving files to others where there is nobody but root: the owner is recorded in the file.
//!
//! The kernel is asked to give the file to root, whose it is already, as the thread: so what a change of
//! owner takes along is gone (setuid bits, capabilities), a file of a layer below is copied up, and what must
//! not be fails.

use rustix::fs::{AtFlags, Gid, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::Supervisor;
use super::credentials::Credentials;
use super::target::{Object, Target};
use crate::container::call::Width;
use crate::layer::Records;
use crate::layer::node::Kind;
use crate::sys::Answer;

/// A user and a group as a call says them; `None` is not to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Wanted {
    pub fn new(width: Width, uid: u64, gid: u64) -> Self {
        Self { uid: width.id(uid), gid: width.id(gid) }
    }

    /// Whether who is not root may do this to a file that belongs to `owner`.
    fn is_allowed(self, credentials: &Credentials, owner: (u32, u32)) -> bool {
        let (uid, gid) = owner;
        credentials.user.filesystem == uid
            && self.uid.is_none_or(|wanted| wanted == uid)
            && self.gid.is_none_or(|wanted| wanted == gid || credentials.is_in(wanted))
    }
}

/// Gives a file to someone.
pub fn give(supervisor: &Supervisor<'_>, target: &Target, object: Object, wanted: Wanted) -> Result<Answer, Errno> {
    let credentials = supervisor.table.of(target.thread)?;
    let file = {
        let _view = target.look(&supervisor.home)?;
        object.open()?
    };
    let current = Records::Owners.node_at(&file, c"")?.ok_or(Errno::NOENT)?;
    if !credentials.is_privileged() && !wanted.is_allowed(&credentials, (current.uid, current.gid)) {
        return Err(Errno::PERM);
    }
    {
        let _actor = target.act(&supervisor.home)?;
        let (uid, gid) = (wanted.uid.map(|_| Uid::ROOT), wanted.gid.map(|_| Gid::ROOT));
        match rustix::fs::chownat(&file, c"", uid, gid, AtFlags::EMPTY_PATH) {
            // Files that belong to the host: they are in no layer.
            Err(Errno::PERM | Errno::OVERFLOW) => return Ok(Answer::Return(0)),
            given => given?,
        }
    }
    let (uid, gid) = (wanted.uid.unwrap_or(current.uid), wanted.gid.unwrap_or(current.gid));
    match Records::Owners.set_owner_at(&file, c"", uid, gid) {
        // Sockets and pipes have nowhere to write on, and no more has everything in /proc and /dev.
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(Answer::Return(0)),
        recorded => recorded.map(|()| Answer::Return(0)),
    }
}

/// Two `timespec` as a call gives them; no address stands for now.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub address: u64,
    /// As the oldest call of 32-bit machines writes them.
    pub has_narrow_fields: bool,
}

impl Times {
    /// The second, which is the modification.
    fn modification(self, target: &Target) -> Result<Timespec, Errno> {
        if self.address == 0 {
            return Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW });
        }
        let size = if self.has_narrow_fields { 4 } else { 8 };
        let bytes = target.bytes(self.address, 4 * size)?;
        let field = |at: usize| {
            let bytes = &bytes[at * size..][..size];
            let number = bytes.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
            if self.has_narrow_fields { i64::from(number as u32 as i32) } else { number as i64 }
        };
        // Of the nanoseconds 32-bit machines fill the lower half.
        Ok(Timespec { tv_sec: field(2), tv_nsec: field(3) as u32 as _ })
    }
}

/// Sets the times of a file that is not followed; where one of them says whose the file is, the other only.
pub fn set_times(supervisor: &Supervisor<'_>, target: &Target, object: Object, times: Times) -> Result<Answer, Errno> {
    let last_modification = times.modification(target)?;
    let file = {
        let view = target.look(&supervisor.home)?;
        let _actor = target.act(&view)?;
        object.open()?
    };
    let node = Records::Owners.node_at(&file, c"")?.ok_or(Errno::NOENT)?;
    if !matches!(node.kind, Kind::Symlink | Kind::Fifo) || (node.uid, node.gid) == (0, 0) {
        return Ok(Answer::Continue);
    }
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let _actor = target.act(&supervisor.home)?;
    rustix::fs::utimensat(&file, c"", &Timestamps { last_access, last_modification }, AtFlags::EMPTY_PATH)?;
    Ok(Answer::Return(0))
}
