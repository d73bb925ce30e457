//! Namespaces without processes, and mounts made inside of them. A process makes one; it lives on as a
//! descriptor, and the process is ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::protocol::{self, Failure};
use crate::diag::{Context, Diagnostic, Result};
use crate::sys::{self, Child};

/// Makes a namespace and opens it as `kind` (`user`, `net`, `mnt`).
///
/// A process is born into the new namespaces `flags` and furnishes them from inside with `furnish`;
/// then `arrange` is called outside with its number in `proc`, a procfs of the caller's pid
/// namespace. The caller has one thread.
pub fn namespace(
    proc: BorrowedFd<'_>,
    kind: &'static str,
    flags: i32,
    furnish: impl FnOnce() -> io::Result<()>,
    arrange: impl FnOnce(i32) -> Result<(), rustix::io::Errno>,
) -> Result<OwnedFd> {
    begin(kind, flags, furnish)?.finish(proc, arrange)
}

/// A namespace that a process of its own is furnishing. Dropping it ends that process.
pub struct Making {
    kind: &'static str,
    child: Child,
    /// How it went.
    outcome: OwnedFd,
}

/// The first half of [`namespace`]: returns while the namespace is being furnished.
pub fn begin(kind: &'static str, flags: i32, furnish: impl FnOnce() -> io::Result<()>) -> Result<Making> {
    let doing = || format!("cannot make a {kind} namespace");
    let (outcome, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing)?;
    let Some(child) = sys::clone(flags).context(doing)? else {
        let errno = furnish().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = rustix::io::write(&write, &errno.to_le_bytes());
        // Only to be there until the descriptor is open; ends with a signal.
        loop {
            rustix::event::pause();
        }
    };
    Ok(Making { kind, child, outcome })
}

impl Making {
    /// The second half: waits until it is furnished.
    pub fn finish(
        self,
        proc: BorrowedFd<'_>,
        arrange: impl FnOnce(i32) -> Result<(), rustix::io::Errno>,
    ) -> Result<OwnedFd> {
        let doing = || format!("cannot make a {} namespace", self.kind);
        let mut errno = [0; 4];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.outcome, &mut errno)).context(doing)?;
        match i32::from_le_bytes(errno) {
            0 if length == errno.len() => {}
            errno => return Err(Diagnostic::error(doing()).caused_by(io::Error::from_raw_os_error(errno))),
        }
        let pid = self.child.pid.as_raw_nonzero().get();
        arrange(pid).context(doing)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(proc, format!("{pid}/ns/{}", self.kind), flags, Mode::empty()).context(doing)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // It waits for nothing else; and if it could not be ended, nobody could do more.
        let _ = rustix::process::pidfd_send_signal(self.child.pidfd.as_fd(), Signal::KILL);
        let _ = sys::wait(self.child.pid);
    }
}

/// What `make` makes as root of a user namespace, where ids in options are those inside. It is called in a
/// process of its own, with a copy of `mounts` for its mount namespace. The caller has one thread.
pub fn made_within(
    user_namespace: BorrowedFd<'_>,
    mounts: BorrowedFd<'_>,
    make: impl FnOnce() -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    let doing = || "cannot make a mount in a user namespace";
    let (answers, answering) = protocol::pair()?;
    let Some(child) = sys::clone(0).context(doing)? else {
        let enter = || {
            // The host's would be copied with all that is mounted in them.
            move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))?;
            move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
            sys::enter_new_mount_namespace()
        };
        // Who waits sees the socket close if it cannot be said.
        let _ = match enter().context(doing).and_then(|()| make()) {
            Ok(mount) => protocol::send(answering.as_fd(), &protocol::encode(&None::<Failure>), &[mount.as_fd()]),
            Err(failure) => protocol::send(answering.as_fd(), &protocol::encode(&Some(Failure::from(failure))), &[]),
        };
        sys::exit(0)
    };
    drop(answering);
    let received = protocol::receive(answers.as_fd()).context(doing);
    sys::wait(child.pid).context(doing)?;
    let (answer, fds) = received?.ok_or_else(|| Diagnostic::error(doing()))?;
    match protocol::decode::<Option<Failure>>(&answer)? {
        Some(failure) => Err(failure.into()),
        None => fds.into_iter().next().ok_or_else(|| Diagnostic::error(doing())),
    }
}
