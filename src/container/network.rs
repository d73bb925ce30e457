//! Network namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::diag::{Context, Diagnostic, Result};
use crate::sys;

/// Makes a network namespace that has nothing but a loopback interface and belongs to
/// `user_namespace`; it lives as long as the descriptor. `proc` is a procfs of the caller's pid
/// namespace, whose only thread the caller is.
///
/// It takes a process: a namespace belongs to the user namespace its maker is in, and the way into
/// that one is of no return.
pub fn loopback_only(proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let doing = || "cannot make a network namespace";
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(doing)?;
    let Some(child) = sys::clone(0).context(doing)? else {
        let made = move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))
            .map_err(std::io::Error::from)
            .and_then(|()| sys::enter_new_network_namespace())
            .and_then(|()| sys::bring_loopback_up());
        let errno = made.err().and_then(|error| error.raw_os_error()).unwrap_or(0);
        let _ = rustix::io::write(&write, &errno.to_le_bytes());
        // Only a place to hold the namespace until its descriptor is open; ends with a signal.
        loop {
            rustix::event::pause();
        }
    };
    drop(write);
    let opened = (|| {
        let mut errno = [0; 4];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut errno)).context(doing)?;
        match i32::from_le_bytes(errno) {
            0 => {
                let path = format!("{}/ns/net", child.pid.as_raw_nonzero());
                rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(doing)
            }
            errno => Err(Diagnostic::error(doing()).caused_by(std::io::Error::from_raw_os_error(errno))),
        }
    })();
    rustix::process::pidfd_send_signal(child.pidfd.as_fd(), Signal::KILL).context(doing)?;
    sys::wait(child.pid).context(doing)?;
    opened
}
