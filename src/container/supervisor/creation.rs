//! Making files where there is nobody but root: one that belongs to somebody else is made here, and says
//! whose it is.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Supervisor;
use super::node;
use super::target::{Path, Place, Target};
use crate::layer::Records;
use crate::sys::Answer;

/// What is to be made.
pub enum Made {
    /// A file, opened with these flags.
    File(OFlags, Mode),
    Directory(Mode),
    /// A link with this target.
    Link(CString),
    Node(node::Wanted),
}

/// Makes a file, if it is to belong to anybody but root.
pub fn make(supervisor: &Supervisor<'_>, target: &Target, path: &Path, made: Made) -> Result<Answer, Errno> {
    let credentials = supervisor.table.of(target.thread)?;
    let place = {
        let _view = target.look(&supervisor.home)?;
        match made {
            // Made in a directory that has no name for it.
            Made::File(flags, _) if flags.contains(OFlags::TMPFILE) => path.directory(),
            _ => path.place(),
        }
    };
    // What is wrong with the path the kernel says best.
    let Ok(place) = place else { return Ok(Answer::Continue) };
    let owner = credentials.user.filesystem;
    let group = match group_of(&place)? {
        Some(group) => group,
        None => credentials.group.filesystem,
    };
    if (owner, group) == (0, 0) {
        return Ok(Answer::Continue);
    }
    let Some(created) = create(supervisor, target, &place, &made)? else { return Ok(Answer::Continue) };
    let recorded = match &created {
        Created::Open(file, _) => Records::Owners.set_owner(file, owner, group),
        Created::Named => Records::Owners.set_owner_at(&place.parent, &place.name, owner, group),
    };
    match recorded {
        // Not every file system has room for it; those that have not are no layer's.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    Ok(match created {
        Created::Open(file, is_closed_on_exec) => Answer::Open { file, is_closed_on_exec },
        Created::Named => Answer::Return(0),
    })
}

/// The group that files made in this directory get, if that is not their maker's.
fn group_of(place: &Place) -> Result<Option<u32>, Errno> {
    let stat = rustix::fs::fstat(&place.parent)?;
    if !Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID) {
        return Ok(None);
    }
    Ok(Records::Owners.node_at(&place.parent, c"")?.map(|node| node.gid))
}

enum Created {
    Open(std::os::fd::OwnedFd, bool),
    Named,
}

/// Makes it as the thread; `None` where there is something already.
fn create(supervisor: &Supervisor<'_>, target: &Target, place: &Place, made: &Made) -> Result<Option<Created>, Errno> {
    let _actor = target.act(&supervisor.home)?;
    let name = place.name.as_c_str();
    let created = match made {
        Made::File(flags, mode) => {
            let is_closed_on_exec = flags.contains(OFlags::CLOEXEC);
            // An existing one is opened by the thread itself: that may take long.
            let exclusive = if flags.contains(OFlags::TMPFILE) { OFlags::empty() } else { OFlags::EXCL };
            let flags = *flags | exclusive | OFlags::CLOEXEC;
            rustix::fs::openat(&place.parent, name, flags, *mode).map(|file| Created::Open(file, is_closed_on_exec))
        }
        Made::Directory(mode) => rustix::fs::mkdirat(&place.parent, name, *mode).map(|()| Created::Named),
        Made::Link(content) => rustix::fs::symlinkat(content, &place.parent, name).map(|()| Created::Named),
        Made::Node(wanted) => wanted.make(place).map(|()| Created::Named),
    };
    match created {
        Err(Errno::EXIST | Errno::ISDIR) => Ok(None),
        created => created.map(Some),
    }
}

/// Gives what was made by another way to its maker.
pub fn give(supervisor: &Supervisor<'_>, target: &Target, place: &Place) -> Result<(), Errno> {
    let credentials = supervisor.table.of(target.thread)?;
    let group = group_of(place)?.unwrap_or(credentials.group.filesystem);
    match Records::Owners.set_owner_at(place.parent.as_fd(), &place.name, credentials.user.filesystem, group) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        given => given,
    }
}
