//! A socket that stands for an agent while a step runs.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::wire::{self, FAILURE, Fields, LIST, LISTED, SIGN, SIGNED};
use super::{Agent, Key};
use crate::diag::{Context as _, Result};

/// As many connections are served at once; ssh has one.
const MAX_CONNECTIONS: usize = 64;

/// Serves an agent at a socket; dropping it closes every connection and takes the socket away.
pub struct Forward {
    /// Of the socket.
    pub path: PathBuf,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Forward {
    /// Makes the socket `name` in `directory`, mode 0600, and serves it on threads of its own.
    pub fn new(agent: &Arc<Agent>, directory: &Path, name: &str) -> Result<Self> {
        let doing = || "cannot make a socket for an ssh agent";
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(directory, flags, Mode::empty()).context(doing)?;
        // The path of a socket has at most 107 bytes, and that of a store may be longer.
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", fd.as_raw_fd())).context(doing)?;
        rustix::fs::chmodat(&fd, name, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty()).context(doing)?;
        let (stopped, stop) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(doing)?;
        let agent = Arc::clone(agent);
        let builder = std::thread::Builder::new().name("ssh-agent".into());
        let thread = builder.spawn(move || listen(&agent, &listener, &stopped)).context(doing)?;
        Ok(Self { path: directory.join(name), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The connections that are open, to be closed in the end.
type Streams = Arc<Mutex<Vec<UnixStream>>>;

/// Takes connections until `stopped` is closed at its other end.
fn listen(agent: &Arc<Agent>, listener: &UnixListener, stopped: &OwnedFd) {
    let mut connections: Vec<(Streams, JoinHandle<()>)> = Vec::new();
    loop {
        let mut polled =
            [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).is_err() {
            break;
        }
        if !polled[1].revents().is_empty() {
            break;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        connections.retain(|(_, thread)| !thread.is_finished());
        if connections.len() == MAX_CONNECTIONS {
            continue;
        }
        let (agent, streams) = (Arc::clone(agent), Streams::default());
        let open = Arc::clone(&streams);
        // Without a thread to be had, the connection is closed.
        if let Ok(thread) = std::thread::Builder::new().spawn(move || {
            let _ = serve(&agent, stream, &open);
        }) {
            connections.push((streams, thread));
        }
    }
    for (streams, thread) in connections {
        for stream in &*streams.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = thread.join();
    }
}

/// Answers one connection to its end.
fn serve(agent: &Agent, mut stream: UnixStream, open: &Streams) -> io::Result<()> {
    let keep = |stream: &UnixStream| -> io::Result<()> {
        open.lock().unwrap_or_else(PoisonError::into_inner).push(stream.try_clone()?);
        Ok(())
    };
    keep(&stream)?;
    let mut upstream = match agent {
        Agent::Socket(path) => {
            let upstream = UnixStream::connect(path)?;
            keep(&upstream)?;
            Some(upstream)
        }
        Agent::Keys(_) => None,
    };
    while let Some(request) = wire::read(&mut stream)? {
        let answer = match (agent, &mut upstream) {
            _ if !is_allowed(&request) => vec![FAILURE],
            (Agent::Keys(keys), _) => answer(keys, &request),
            (_, Some(upstream)) => pass_on(upstream, &request)?,
            _ => vec![FAILURE],
        };
        wire::write(&mut stream, &answer)?;
    }
    Ok(())
}

/// To list keys and to sign: everything else would change the agent or is not the step's business.
fn is_allowed(request: &[u8]) -> bool {
    matches!(request, [LIST] | [SIGN, ..])
}

/// Only what answers the request comes back.
fn pass_on(upstream: &mut UnixStream, request: &[u8]) -> io::Result<Vec<u8>> {
    wire::write(upstream, request)?;
    let answer = wire::read(upstream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let is_answer =
        matches!((request.first(), answer.first()), (Some(&LIST), Some(&LISTED)) | (Some(&SIGN), Some(&SIGNED)));
    Ok(if is_answer { answer } else { vec![FAILURE] })
}

fn answer(keys: &[Key], request: &[u8]) -> Vec<u8> {
    if request == [LIST] {
        let mut answer = vec![LISTED];
        answer.extend_from_slice(&(keys.len() as u32).to_be_bytes());
        for key in keys {
            wire::put(&mut answer, &key.public);
            wire::put(&mut answer, key.comment.as_bytes());
        }
        return answer;
    }
    let mut fields = Fields(request.get(1..).unwrap_or_default());
    let signature = (|| {
        let (public, data, flags) = (fields.string()?, fields.string()?, fields.number()?);
        keys.iter().find(|key| key.public == public)?.sign(data, flags)
    })();
    match signature {
        Some(signature) => {
            let mut answer = vec![SIGNED];
            wire::put(&mut answer, &signature);
            answer
        }
        None => vec![FAILURE],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listing_and_signing_is_allowed() {
        assert!(is_allowed(&[LIST]));
        assert!(is_allowed(&[SIGN, 0, 0, 0, 0]));
        // Add, remove, remove all, lock, unlock, add constrained, extension; a list with something behind it.
        for request in [&[17][..], &[18], &[19], &[22], &[23], &[25], &[27, 0], &[1], &[LIST, 0], &[]] {
            assert!(!is_allowed(request), "{request:?}");
        }
    }

    #[test]
    fn requests_that_make_no_sense_fail() {
        for request in [&[SIGN][..], &[SIGN, 0, 0, 0, 9, 1], &[SIGN, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(answer(&[], request), [FAILURE]);
        }
        assert_eq!(answer(&[], &[LIST]), [LISTED, 0, 0, 0, 0]);
    }
}
