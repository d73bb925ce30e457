//! Namespaces without processes. One is made by a process, lives on as a descriptor, and the process
//! is ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use crate::diag::{Context, Diagnostic, Result};
use crate::sys;

/// Makes a namespace and opens it as `kind` (`user`, `net`, `mnt`).
///
/// A process is born into the new namespaces `flags` and furnishes them from inside with `furnish`;
/// then `arrange` is called outside with its number in `proc`, a procfs of the caller's pid
/// namespace. The caller has one thread.
pub fn namespace(
    proc: BorrowedFd<'_>,
    kind: &str,
    flags: i32,
    furnish: impl FnOnce() -> io::Result<()>,
    arrange: impl FnOnce(i32) -> Result<(), rustix::io::Errno>,
) -> Result<OwnedFd> {
    let doing = || format!("cannot make a {kind} namespace");
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing)?;
    let Some(child) = sys::clone(flags).context(doing)? else {
        let errno = furnish().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let _ = rustix::io::write(&write, &errno.to_le_bytes());
        // Only to be there until the descriptor is open; ends with a signal.
        loop {
            rustix::event::pause();
        }
    };
    drop(write);
    let opened = (|| {
        let mut errno = [0; 4];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut errno)).context(doing)?;
        match i32::from_le_bytes(errno) {
            0 if length == errno.len() => {}
            errno => return Err(Diagnostic::error(doing()).caused_by(io::Error::from_raw_os_error(errno))),
        }
        let pid = child.pid.as_raw_nonzero().get();
        arrange(pid).context(doing)?;
        rustix::fs::openat(proc, format!("{pid}/ns/{kind}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context(doing)
    })();
    rustix::process::pidfd_send_signal(child.pidfd.as_fd(), Signal::KILL).context(doing)?;
    sys::wait(child.pid).context(doing)?;
    opened
}
