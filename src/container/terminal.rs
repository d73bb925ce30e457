//! A container that somebody sits at: its payload has a terminal of the container's own devpts, and the
//! builder has the other end of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;

use super::protocol::{self, TERMINAL};
use super::spawner::{self, Spawner};
use super::{Container, Exit};
use crate::diag::{Context, Diagnostic, Result};

/// A payload that runs in a terminal. Dropping it hangs the terminal up.
#[derive(Debug)]
pub struct Session {
    /// What is written here the payload reads, and the other way round.
    pub master: OwnedFd,
    reply: OwnedFd,
}

impl Spawner {
    /// Starts a container with a terminal. An error means that the payload does not run; that its
    /// program could not be started is told only by [`Session::finish`].
    pub fn open_terminal(&self, container: &Container) -> Result<Session> {
        let (socket, sent) = protocol::pair()?;
        let reply = self.start(TERMINAL, container, sent)?;
        let mut polled = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&reply, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
            .context(|| "cannot wait for a container")?;
        let received = protocol::receive_now(socket.as_fd()).ok().flatten();
        match received.and_then(|(_, fds)| fds.into_iter().next()) {
            Some(master) => Ok(Session { master, reply }),
            // It ended before it came to that, and the answer says why.
            None => match spawner::finish(&reply) {
                Err(failure) => Err(failure),
                Ok(_) => Err(Diagnostic::error("the container ended before it had a terminal")),
            },
        }
    }
}

impl Session {
    /// Readable when the payload is over.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.reply.as_fd()
    }

    /// Waits for the end.
    pub fn finish(self) -> Result<Exit> {
        spawner::finish(&self.reply)
    }
}

/// Makes a terminal in the devpts `pts`, for the host's user `uid`, and makes it this process's controlling
/// terminal and standard streams. The other end goes through `socket`. For the leader of a session
/// without a terminal.
pub fn open(pts: &OwnedFd, socket: BorrowedFd<'_>, uid: u32) -> Result<()> {
    let doing = || "cannot make a terminal for a container";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(pts, "ptmx", flags, Mode::empty()).context(doing)?;
    rustix::pty::unlockpt(&master).context(doing)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context(doing)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None).context(doing)?;
    rustix::process::ioctl_tiocsctty(&slave).context(doing)?;
    rustix::stdio::dup2_stdin(&slave).context(doing)?;
    rustix::stdio::dup2_stdout(&slave).context(doing)?;
    rustix::stdio::dup2_stderr(&slave).context(doing)?;
    protocol::send(socket, &[TERMINAL], &[master.as_fd()]).context(doing)
}
