//! The builder's handle on the spawner process.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use super::protocol::{self, Answer};
use super::{Container, Exit, Expectation, Given, Moment, serve};
use crate::diag::{Context, Diagnostic, Result};
use crate::ids;
use crate::sys::{self, Child};

/// The handle on the spawner; safe to share between threads. Dropping it ends the spawner and
/// every container.
#[derive(Debug)]
pub struct Spawner {
    process: Result<Process>,
}

#[derive(Debug)]
struct Process {
    /// Taken only by `drop`.
    requests: Option<OwnedFd>,
    child: Child,
}

/// Ends the forked process in every case, so that it never returns into the builder's code.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        sys::exit(1)
    }
}

impl Spawner {
    /// Forks the spawner. To be called first thing: it keeps a copy of the builder's memory, and
    /// lives no longer than the calling thread, which in a user namespace is to be the only one. Cheap, and inert until the first step: who may not
    /// make namespaces learns it from [`Spawner::run`], as not every build needs a container.
    pub fn fork() -> Result<Self> {
        let (requests, served) = protocol::pair()?;
        let forked = match ids::are_the_hosts() {
            true => sys::fork_into_new_pid_namespace(),
            // From a user namespace there is no way back into the pid namespace that one is in.
            false => sys::clone(libc::CLONE_NEWPID),
        };
        match forked {
            Ok(Some(child)) => Ok(Self { process: Ok(Process { requests: Some(requests), child }) }),
            Ok(None) => {
                let _exit = ExitOnDrop;
                // Not dropped but closed by `settle`: dropping would close a number twice.
                std::mem::forget(requests);
                serve::serve(&served);
                sys::exit(0)
            }
            Err(error) => {
                let unable = Diagnostic::error("cannot make containers without being root");
                Ok(Self { process: Err(unable.caused_by(error)) })
            }
        }
    }

    /// Runs one step to its end. What the payload writes to stdout and stderr goes to the pipe or file
    /// `output`. Returns when the container is gone and its upper is quiescent. An error means that
    /// the payload did not run at all.
    pub fn run(&self, container: &Container, output: OwnedFd) -> Result<Exit> {
        finish(&self.start(protocol::REQUEST, container, output)?)
    }

    /// The same, with what the payload writes going to `sink` piece by piece, on this thread. What
    /// `sink` does not take is lost. `told` is called at each moment once.
    pub fn run_into(&self, container: &Container, sink: &mut dyn Write, told: &dyn Fn(Moment)) -> Result<Exit> {
        let doing = || "cannot make a pipe for the output of a step";
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing)?;
        rustix::fs::fcntl_setfl(&reader, OFlags::NONBLOCK).context(doing)?;
        let reply = self.start(protocol::REQUEST, container, writer)?;
        told(Moment::Asked);
        let mut buffer = vec![0; 16 << 10];
        let mut is_open = true;
        loop {
            let mut polled = vec![PollFd::new(&reply, PollFlags::IN)];
            if is_open {
                polled.push(PollFd::new(&reader, PollFlags::IN));
            }
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None))
                .context(|| "cannot wait for a container")?;
            // Looked at before the pipe is emptied: after the answer nobody writes any more.
            let mut exit = None;
            if !polled[0].revents().is_empty() {
                exit = receive(&reply)?;
                if exit.is_none() {
                    told(Moment::Mounted);
                }
            }
            while is_open {
                match rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut *buffer)) {
                    Ok(0) => is_open = false,
                    Ok(count) => {
                        let _ = sink.write_all(&buffer[..count]);
                    }
                    Err(Errno::AGAIN) => break,
                    Err(_) => is_open = false,
                }
            }
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    /// Says that steps are to come, so that what they need is made meanwhile.
    pub fn expect(&self, expectation: &Expectation) -> Result<()> {
        let packet = [vec![protocol::EXPECT], protocol::encode(expectation)].concat();
        protocol::send(self.requests()?, &packet, &[]).context(|| "cannot announce a step")
    }

    /// Asks for a step; the answer comes to the socket.
    pub(super) fn start(&self, kind: u8, container: &Container, output: OwnedFd) -> Result<OwnedFd> {
        let description = protocol::encode_to_memory(container)?;
        let (reply, replying) = protocol::pair()?;
        let (packet, given) = match &container.ground {
            Given::Nothing => (vec![kind], None),
            Given::Room(room) => (vec![kind, protocol::ROOM], Some(room.as_fd())),
            Given::Tree => (vec![kind, protocol::TREE], None),
            Given::Root(root) => (vec![kind, protocol::ROOT], Some(root.as_fd())),
        };
        let fds: Vec<_> = [description.as_fd(), output.as_fd(), replying.as_fd()].into_iter().chain(given).collect();
        protocol::send(self.requests()?, &packet, &fds)
            .map_err(|errno| gone().caused_by(std::io::Error::from(errno)))?;
        // Our copies of the others end here: they would keep the reader of `output` and the wait for
        // the answer from ending.
        Ok(reply)
    }

    /// Says that no step comes any more, so that what they needed is undone meanwhile: some milliseconds, for which
    /// dropping it waits.
    pub fn leave(&self) {
        // One that cannot be told has ended.
        let _ = self.requests().map(|requests| protocol::send(requests, &[protocol::LEAVE], &[]));
    }

    /// Sends a signal to the first process of every container that runs. As PID 1 it sees only the
    /// signals it has handlers for; `SIGKILL` ends the whole container.
    pub fn kill_all(&self, signal: Signal) -> Result<()> {
        let number = u8::try_from(signal.as_raw()).unwrap_or(0);
        protocol::send(self.requests()?, &[protocol::KILL, number], &[]).context(|| "cannot signal the containers")
    }

    fn requests(&self) -> Result<BorrowedFd<'_>> {
        let process = self.process.as_ref().map_err(Clone::clone)?;
        process.requests.as_ref().map(AsFd::as_fd).ok_or_else(|| Diagnostic::error("the spawner has ended"))
    }
}

fn gone() -> Diagnostic {
    Diagnostic::error("the spawner process is gone, and all containers with it")
}

/// Waits for the answer.
pub(super) fn finish(reply: &OwnedFd) -> Result<Exit> {
    loop {
        if let Some(exit) = receive(reply)? {
            return Ok(exit);
        }
    }
}

/// The end of a step; `None` where it is told that its layers are mounted.
fn receive(reply: &OwnedFd) -> Result<Option<Exit>> {
    let (packet, fds) =
        protocol::receive(reply.as_fd()).context(|| "cannot receive an answer of the spawner")?.ok_or_else(gone)?;
    protocol::decode::<Answer>(&packet)?.into_result(fds)
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = sys::wait(self.child.pid);
    }
}
