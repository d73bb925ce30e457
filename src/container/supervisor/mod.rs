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

pub mod node;
mod status;
pub mod target;

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use self::target::Target;
use super::call::Call;
use super::seccomp;
use super::userns::Mapping;
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
}

/// Answers until the step is over.
pub fn run(supervisor: &Supervisor<'_>) {
    // Where this fails answers take the longer way, and later ones fail by themselves.
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
    let answer = match answer(supervisor, &notification) {
        Ok(answer) => answer,
        Err(errno) => Answer::Fail(errno.raw_os_error()),
    };
    // Nobody may wait any more.
    let _ = sys::answer_notification(supervisor.listener, notification.id, answer);
    Ok(true)
}

fn answer(supervisor: &Supervisor<'_>, notification: &Notification) -> Result<Answer, Errno> {
    let target = Target::find(supervisor.proc, supervisor.listener, notification)?;
    let [first, second, third, fourth, ..] = notification.arguments;
    let current = u64::from(libc::AT_FDCWD.cast_unsigned());
    let (call, _) = seccomp::call(notification.machine, notification.number).ok_or(Errno::NOSYS)?;
    let (path, wanted) = match call {
        Call::Mknod => (target.path(current, first)?, node::Wanted::new(second, third)),
        Call::Mknodat => (target.path(first, second)?, node::Wanted::new(third, fourth)),
        _ => return Ok(Answer::Continue),
    };
    // Root of a user namespace that the step made is nobody here.
    if !target.is_of(supervisor.user_namespace)? {
        return Err(Errno::PERM);
    }
    node::make(supervisor, &target, &path, wanted).map(|()| Answer::Return(0))
}

impl Supervisor<'_> {
    /// Whether the owner and group of a file are ids of the step's.
    fn has(&self, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        let stat = rustix::fs::fstat(file)?;
        Ok(self.mapping.is_inside(stat.st_uid, stat.st_gid))
    }
}
