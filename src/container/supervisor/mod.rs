//! The process beside a step that answers the system calls its filter asks about.
//!
//! ```text
//! thread of the step ── call ──▶ kernel ── notification ──▶ supervisor
//!        ▲                                                     │ reads the arguments, acts as the thread
//!        └────────────────── result ◀──── answer ◀─────────────┘
//! ```
//!
//! The spawner forks one for a step at the first such call: most steps make none, and steps do not wait
//! for each other. A thread that ends while it waits is nobody's loss: the answer is refused, and what
//! was made for it is there as if the call had come just in time.
//!
//! Arguments in memory are read once, and what was read is what is done. Nothing is decided by them
//! that the thread could not do itself with another call.

mod attribute;
mod creation;
mod credentials;
mod identity;
mod look;
mod node;
mod owner;
mod status;
mod target;

pub use self::credentials::{Credentials, Table};
pub use self::target::Home;

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::creation::Made;
use self::target::{Object, Target};
use super::call::Call;
use super::seccomp;
use super::userns::Mapping;
use crate::layer::Records;
use crate::sys::{self, Answer, Notification};

/// What a supervisor works with.
pub struct Supervisor<'a> {
    pub listener: BorrowedFd<'a>,
    /// Readable when the step is over and all its processes are gone.
    pub step: BorrowedFd<'a>,
    /// A procfs of this process's pid namespace.
    pub proc: BorrowedFd<'a>,
    /// The step's.
    pub user_namespace: BorrowedFd<'a>,
    /// How this process knows the ids of the user namespace.
    pub mapping: &'a Mapping,
    /// The step's root, and what is recorded in the layer that comes of it.
    pub layer: BorrowedFd<'a>,
    pub records: Records,
    /// Who everybody is where owners are recorded.
    pub table: Table,
    pub home: Home,
}

/// Answers until the step is over.
pub fn run(supervisor: &Supervisor<'_>) {
    // Where this fails answers take the longer way.
    let _ = sys::answer_on_this_processor(supervisor.listener);
    while let Ok(true) = turn(supervisor) {}
}

/// Waits for a call and answers it; false when there will be none any more.
fn turn(supervisor: &Supervisor<'_>) -> Result<bool, Errno> {
    let mut polled = [
        PollFd::from_borrowed_fd(supervisor.listener, PollFlags::IN),
        PollFd::from_borrowed_fd(supervisor.step, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))?;
    let [asked, ended] = polled.map(|polled| polled.revents());
    if !asked.contains(PollFlags::IN) {
        return Ok(asked.is_empty() && ended.is_empty());
    }
    let notification = match sys::receive_notification(supervisor.listener) {
        Ok(notification) => notification,
        Err(error) => match Errno::from_io_error(&error) {
            // Its thread has ended.
            Some(Errno::NOENT | Errno::INTR) => return Ok(true),
            errno => return Err(errno.unwrap_or(Errno::IO)),
        },
    };
    let answer = answer(supervisor, &notification).unwrap_or_else(|errno| Answer::Fail(errno.raw_os_error()));
    // Nobody may wait any more.
    let _ = sys::answer_notification(supervisor.listener, notification.id, answer);
    Ok(true)
}

/// `AT_FDCWD`: calls that name no directory mean the current one.
const HERE: u64 = libc::AT_FDCWD as u32 as u64;

fn answer(supervisor: &Supervisor<'_>, notification: &Notification) -> Result<Answer, Errno> {
    let (call, width) = seccomp::call(notification.machine, notification.number).ok_or(Errno::NOSYS)?;
    let is_narrow = seccomp::is_narrow(notification.machine);
    let target = &Target::find(supervisor.proc, supervisor.listener, notification)?;
    let arguments = notification.arguments;
    let [first, second, third, fourth, fifth, _] = arguments;
    let named = |directory, address, is_followed| {
        Ok::<_, Errno>(Object::Named { path: target.path(directory, address)?, is_followed })
    };
    let mode = |argument: u64| Mode::from_raw_mode(argument as u32 & 0o7777);
    let opening = |argument: u64| OFlags::from_bits_retain(argument as u32);
    match call {
        Call::Mknod | Call::Mknodat => {
            let (path, wanted) = match call {
                Call::Mknod => (target.path(HERE, first)?, node::Wanted::new(second, third)),
                _ => (target.path(first, second)?, node::Wanted::new(third, fourth)),
            };
            if wanted.device().is_none() {
                return creation::make(supervisor, target, &path, Made::Node(wanted));
            }
            // Root of a user namespace that the step made is nobody here.
            if !target.is_of(supervisor.user_namespace)? {
                return Err(Errno::PERM);
            }
            node::make(supervisor, target, &path, wanted).map(|()| Answer::Return(0))
        }
        Call::Setxattr | Call::Lsetxattr | Call::Fsetxattr => {
            let object = match call {
                Call::Fsetxattr => Object::Open(target.open_file(first)?),
                _ => named(HERE, first, call == Call::Setxattr)?,
            };
            let name = target.string(second)?;
            attribute::set(supervisor, target, attribute::Wanted { object, name, value: (third, fourth), flags: fifth })
        }
        // C libraries do without it still.
        Call::Setxattrat => Err(Errno::NOSYS),
        Call::Chown | Call::Lchown => {
            let object = named(HERE, first, call == Call::Chown)?;
            owner::give(supervisor, target, object, owner::Wanted::new(width, second, third))
        }
        Call::Fchown => {
            let object = Object::Open(target.open_file(first)?);
            owner::give(supervisor, target, object, owner::Wanted::new(width, second, third))
        }
        Call::Fchownat => {
            let object = target.object(first, second, fifth)?;
            owner::give(supervisor, target, object, owner::Wanted::new(width, third, fourth))
        }
        // Then it is `futimens`, of which the directory is the file.
        Call::Utimensat | Call::UtimensatTime64 if second == 0 => Ok(Answer::Continue),
        Call::Utimensat | Call::UtimensatTime64 => {
            let object = target.object(first, second, fourth)?;
            let has_narrow_fields = call == Call::Utimensat && is_narrow;
            owner::set_times(supervisor, target, object, owner::Times { address: third, has_narrow_fields })
        }
        Call::Open | Call::Creat => {
            let path = target.path(HERE, first)?;
            let made = match call {
                Call::Open => Made::File(opening(second), mode(third)),
                _ => Made::File(OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC, mode(second)),
            };
            creation::make(supervisor, target, &path, made)
        }
        Call::Openat => {
            creation::make(supervisor, target, &target.path(first, second)?, Made::File(opening(third), mode(fourth)))
        }
        // It restricts how paths are looked up; C libraries do without it still.
        Call::Openat2 => Ok(Answer::Continue),
        Call::Mkdir => creation::make(supervisor, target, &target.path(HERE, first)?, Made::Directory(mode(second))),
        Call::Mkdirat => creation::make(supervisor, target, &target.path(first, second)?, Made::Directory(mode(third))),
        Call::Symlink | Call::Symlinkat => {
            let path = if call == Call::Symlink { target.path(HERE, second)? } else { target.path(second, third)? };
            creation::make(supervisor, target, &path, Made::Link(target.string(first)?))
        }
        // Its structures are others there.
        Call::Stat | Call::Lstat | Call::Fstat if is_narrow => Ok(Answer::Continue),
        Call::Stat | Call::Lstat => {
            let object = named(HERE, first, call == Call::Stat);
            look::describe(supervisor, target, object, look::Form::Stat, second)
        }
        Call::Fstat => {
            let object = target.open_file(first).map(Object::Open);
            look::describe(supervisor, target, object, look::Form::Stat, second)
        }
        Call::Newfstatat => {
            look::describe(supervisor, target, target.object(first, second, fourth), look::Form::Stat, third)
        }
        Call::Statx => {
            let form = look::Form::Statx(third as u32, fourth as u32);
            look::describe(supervisor, target, target.object(first, second, third), form, fifth)
        }
        Call::Execve => identity::execute(supervisor, target, named(HERE, first, true)),
        Call::Execveat => identity::execute(supervisor, target, target.object(first, second, fifth)),
        Call::Getuid
        | Call::Geteuid
        | Call::Getresuid
        | Call::Getgid
        | Call::Getegid
        | Call::Getresgid
        | Call::Getgroups => identity::tell(supervisor, target, call, width, arguments),
        Call::Setuid
        | Call::Setreuid
        | Call::Setresuid
        | Call::Setfsuid
        | Call::Setgid
        | Call::Setregid
        | Call::Setresgid
        | Call::Setfsgid
        | Call::Setgroups => identity::become_another(supervisor, target, call, width, arguments),
        Call::Prctl => identity::keep_capabilities(supervisor, target, second != 0),
        // The one limit that is asked about is ours.
        Call::Setrlimit => Ok(Answer::Return(0)),
        Call::Prlimit64 => target.write_if(fourth, &[0xff; 16]),
        Call::Getrlimit | Call::Ugetrlimit => target.write_if(second, if is_narrow { &[0xff; 8] } else { &[0xff; 16] }),
        // The filter answers.
        Call::Capset => Ok(Answer::Return(0)),
    }
}

impl Supervisor<'_> {
    /// Whether the owner and group of a file are ids of the step's.
    fn has(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let stat = rustix::fs::fstat(file)?;
        Ok(self.mapping.is_inside(stat.st_uid, stat.st_gid))
    }

    /// Whether what is made in the directory `dir` is made in the layer.
    fn is_of_layer(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        // Directories have the device number of their overlay.
        Ok(rustix::fs::fstat(dir)?.st_dev == rustix::fs::fstat(self.layer)?.st_dev)
    }
}
