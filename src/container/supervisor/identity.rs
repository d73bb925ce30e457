//! Saying who a process is, and making it somebody else, where there is nobody but root.

use rustix::fs::{FileType, Mode, StatVfsMountFlags};
use rustix::io::Errno;

use super::Supervisor;
use super::credentials::{Change, Ids};
use super::target::{Object, Target};
use crate::container::call::{Call, Width};
use crate::layer::Records;
use crate::sys::Answer;

/// As the kernel's limit on the groups of a process.
const MAX_GROUPS: usize = 65536;
/// What a program of 16-bit ids is told of one that does not fit.
const OVERFLOW: u16 = 65534;

impl Width {
    fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    /// An id as an argument; all bits set are none.
    pub fn id(self, argument: u64) -> Option<u32> {
        match self {
            Self::Bits16 => Some(argument as u16).filter(|id| *id != u16::MAX).map(u32::from),
            Self::Bits32 => Some(argument as u32).filter(|id| *id != u32::MAX),
        }
    }

    /// An id as it is returned.
    fn returned(self, id: u32) -> u32 {
        match self {
            Self::Bits16 => u32::from(u16::try_from(id).unwrap_or(OVERFLOW)),
            Self::Bits32 => id,
        }
    }

    /// An id in memory.
    fn written(self, id: u32) -> Vec<u8> {
        match self {
            Self::Bits16 => u16::try_from(id).unwrap_or(OVERFLOW).to_ne_bytes().to_vec(),
            Self::Bits32 => id.to_ne_bytes().to_vec(),
        }
    }

    fn read(self, bytes: &[u8]) -> u32 {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }
}

/// Says who somebody is.
pub fn tell(
    supervisor: &Supervisor<'_>,
    target: &Target,
    call: Call,
    width: Width,
    arguments: [u64; 6],
) -> Result<Answer, Errno> {
    let credentials = supervisor.table.of(target.thread)?;
    let one = |id: u32| Ok(Answer::Return(width.returned(id).into()));
    let three = |ids: Ids| {
        for (address, id) in arguments.into_iter().zip([ids.real, ids.effective, ids.saved]) {
            target.write(address, &width.written(id))?;
        }
        Ok(Answer::Return(0))
    };
    match call {
        Call::Getuid => one(credentials.user.real),
        Call::Geteuid => one(credentials.user.effective),
        Call::Getgid => one(credentials.group.real),
        Call::Getegid => one(credentials.group.effective),
        Call::Getresuid => three(credentials.user),
        Call::Getresgid => three(credentials.group),
        _ => {
            let [room, address, ..] = arguments;
            let groups = &credentials.groups;
            match usize::try_from(room as u32 as i32) {
                Ok(0) => {}
                Ok(room) if room >= groups.len() => {
                    let bytes: Vec<u8> = groups.iter().flat_map(|group| width.written(*group)).collect();
                    target.write(address, &bytes)?;
                }
                _ => return Err(Errno::INVAL),
            }
            Ok(Answer::Return(groups.len() as i64))
        }
    }
}

/// Makes a process somebody else.
pub fn become_another(
    supervisor: &Supervisor<'_>,
    target: &Target,
    call: Call,
    width: Width,
    [first, second, third, ..]: [u64; 6],
) -> Result<Answer, Errno> {
    let (a, b, c) = (width.id(first), width.id(second), width.id(third));
    let before = supervisor.table.of(target.thread)?;
    let must = |id: Option<u32>| id.ok_or(Errno::INVAL);
    let change = match call {
        Call::Setuid => Change::User(must(a)?),
        Call::Setgid => Change::Group(must(a)?),
        Call::Setreuid => Change::TwoUsers(a, b),
        Call::Setregid => Change::TwoGroups(a, b),
        Call::Setresuid => Change::ThreeUsers([a, b, c]),
        Call::Setresgid => Change::ThreeGroups([a, b, c]),
        // None is a way to ask.
        Call::Setfsuid => Change::FileUser(a.unwrap_or(before.user.filesystem)),
        Call::Setfsgid => Change::FileGroup(a.unwrap_or(before.group.filesystem)),
        _ => {
            let count = usize::try_from(first as u32).ok().filter(|count| *count <= MAX_GROUPS).ok_or(Errno::INVAL)?;
            let bytes = target.bytes(second, count * width.bytes())?;
            Change::Groups(bytes.chunks(width.bytes()).map(|bytes| width.read(bytes)).collect())
        }
    };
    let after = before.change(change)?;
    let returned = match call {
        Call::Setfsuid => width.returned(before.user.filesystem).into(),
        Call::Setfsgid => width.returned(before.group.filesystem).into(),
        _ => 0,
    };
    if after != before {
        supervisor.table.put(target.thread, after)?;
    }
    Ok(Answer::Return(returned))
}

/// Notes whether a process keeps what root may do when it is root no more.
pub fn keep_capabilities(supervisor: &Supervisor<'_>, target: &Target, is_kept: bool) -> Result<Answer, Errno> {
    let after = supervisor.table.of(target.thread)?.change(Change::KeepCapabilities(is_kept))?;
    supervisor.table.put(target.thread, after)?;
    Ok(Answer::Continue)
}

/// Lets a process execute a program, as whom the program's file says.
pub fn execute(supervisor: &Supervisor<'_>, target: &Target, program: Result<Object, Errno>) -> Result<Answer, Errno> {
    let before = supervisor.table.of(target.thread)?;
    let file = {
        let _view = target.look(&supervisor.home)?;
        program.and_then(Object::open)
    };
    // What is wrong with the path the kernel says best.
    let Ok(file) = file else { return Ok(Answer::Continue) };
    let stat = rustix::fs::fstat(&file)?;
    let (mode, kind) = (Mode::from_raw_mode(stat.st_mode), FileType::from_raw_mode(stat.st_mode));
    let is_special = kind == FileType::RegularFile
        && mode.intersects(Mode::SUID | Mode::SGID)
        && mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH)
        && !rustix::fs::fstatvfs(&file)?.f_flag.contains(StatVfsMountFlags::NOSUID)
        && !is_script(&file);
    let node = if is_special { Records::Owners.node_at(&file, c"")? } else { None };
    let owner = node.filter(|_| mode.contains(Mode::SUID)).map(|node| node.uid);
    let group = node.filter(|_| mode.contains(Mode::SGID | Mode::XGRP)).map(|node| node.gid);
    let after = before.change(Change::Program(owner, group))?;
    if after != before {
        supervisor.table.put(target.thread, after)?;
    }
    Ok(Answer::Continue)
}

/// Whether it is executed by another program, as which it then runs.
fn is_script(file: &std::os::fd::OwnedFd) -> bool {
    let mut start = [0; 2];
    super::target::reopen(file).and_then(|file| rustix::io::read(file, &mut start)) == Ok(2) && start == *b"#!"
}
