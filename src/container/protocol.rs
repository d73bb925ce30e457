//! What builder, spawner and step say to each other: packets over SOCK_SEQPACKET sockets.
//!
//! ```text
//! builder → spawner   [REQUEST] + fds: memfd of the Container as JSON, output, reply socket;
//!                     [REQUEST, ROOM or ROOT] + the same and that part of its ground, [REQUEST, TREE] without
//!                     [TERMINAL] + the same, with a socket in the place of the output
//!                     [EXPECT] + Expectation as JSON
//!                     [KILL, signal]
//!                     [LEAVE]
//! step    → spawner   Report as JSON + fds: overlay, skeleton, stub parents and stubs; then the
//!                     descriptor on which its filter asks (end of file: the payload runs)
//! step    → builder   [TERMINAL] + fd: the master of its terminal, on that socket
//! spawner → builder   Answer as JSON + fd: skeleton, on the request's own reply socket
//! ```
//!
//! Every request has its own reply socket, so that any number of builder threads can wait without
//! knowing of each other, and the spawner's death ends every wait.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::{Exit, OutOfMemory};
use crate::diag::{Context, Diagnostic, Result, Severity};
use crate::progress::Usage;

/// First byte of a request to run a container.
pub const REQUEST: u8 = b'R';
/// Second byte of a request: the last descriptor is such a [`super::Given`].
pub const ROOM: u8 = b'm';
pub const ROOT: u8 = b'r';
/// And so nothing comes, but what its draft is called is its root.
pub const TREE: u8 = b't';
/// First byte of a request to run a container with a terminal of its own.
pub const TERMINAL: u8 = b'T';
/// First byte of a packet that sends the signal of its second byte to every payload.
pub const KILL: u8 = b'K';
/// A packet that says that no step comes any more.
pub const LEAVE: u8 = b'L';
/// First byte of a packet that says that steps are to come.
pub const EXPECT: u8 = b'E';

/// A packet is at most this long; what may be longer goes through a memfd.
const PACKET_BYTES: usize = 64 * 1024;
/// The kernel passes no more descriptors at once (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// A diagnostic on its way between processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    message: String,
    hints: Vec<String>,
    cause: Option<String>,
}

impl From<Diagnostic> for Failure {
    /// Cut to what fits into a packet: a message may hold any word of a Dockerfile.
    fn from(diagnostic: Diagnostic) -> Self {
        const MAX_BYTES: usize = 4096;
        let cut = |mut text: String| {
            if text.len() > MAX_BYTES {
                let end = (0..=MAX_BYTES).rev().find(|at| text.is_char_boundary(*at));
                text.truncate(end.unwrap_or(0));
                text.push('…');
            }
            text
        };
        let hints = diagnostic.hints.into_iter().map(cut).collect();
        Self { message: cut(diagnostic.message), hints, cause: diagnostic.cause.map(cut) }
    }
}

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Self {
        Self { hints: failure.hints, cause: failure.cause, ..Self::error(failure.message) }
    }
}

/// From a step before its payload runs.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The root is mounted. With it come the overlay, the skeleton, and two descriptors for each
    /// stub, parent first.
    Mounted { stubs: Vec<super::mount_point::StubRecord> },
    /// With it comes the descriptor on which the filter asks.
    Filtered,
    /// With the machine that the program is for, if that is why.
    Failed { failure: Failure, machine: Option<Machine> },
}

/// What a request is answered. With an exit comes the step's skeleton.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Another answer follows.
    Mounted,
    Ended {
        status: i32,
        usage: Usage,
        out_of_memory: Option<OutOfMemory>,
        is_late: bool,
        /// What its user is to know of its network.
        warning: Option<Failure>,
        /// What was found out about the host's network.
        learned: Option<super::network::Memory>,
    },
    Failed(Failure),
}

impl Answer {
    /// `None`: it has not ended yet.
    pub fn into_result(self, fds: Vec<OwnedFd>) -> Result<Option<Exit>> {
        match self {
            Self::Mounted => Ok(None),
            Self::Failed(failure) => Err(failure.into()),
            Self::Ended { status, usage, out_of_memory, is_late, warning, learned } => {
                let skeleton =
                    fds.into_iter().next().ok_or_else(|| Diagnostic::error("an answer lacks its skeleton"))?;
                let status = if libc::WIFSIGNALED(status) {
                    super::Status::Signaled(libc::WTERMSIG(status))
                } else {
                    super::Status::Exited(libc::WEXITSTATUS(status))
                };
                let warning = warning.map(|warning| Diagnostic { severity: Severity::Warning, ..warning.into() });
                let learned = learned.as_ref().map(encode);
                Ok(Some(Exit { status, usage, out_of_memory, is_late, skeleton, warning, learned }))
            }
        }
    }
}

/// Bytes and the descriptors that came with them.
pub type Packet = (Vec<u8>, Vec<OwnedFd>);

/// Two connected sockets that keep packets apart.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context(|| "cannot make a socket pair")
}

/// Sends one packet, whole or not at all.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    if bytes.len() > PACKET_BYTES || fds.len() > MAX_FDS {
        return Err(Errno::MSGSIZE);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet; `None` when the other side is closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Packet>, Errno> {
    receive_with(socket, RecvFlags::empty())
}

/// Receives one packet if one is there; `EAGAIN` if not.
pub fn receive_now(socket: BorrowedFd<'_>) -> Result<Option<Packet>, Errno> {
    receive_with(socket, RecvFlags::DONTWAIT)
}

fn receive_with(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Option<Packet>, Errno> {
    // Its length first: most packets are small, and the largest buffer is many pages to be cleared.
    let length = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut [0_u8; 0], flags | RecvFlags::PEEK | RecvFlags::TRUNC)
    });
    let (_, length) = match length {
        Err(Errno::CONNRESET) => return Ok(None),
        length => length?,
    };
    let mut bytes = vec![0; length.min(PACKET_BYTES)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    });
    let received = match received {
        Err(Errno::CONNRESET) => return Ok(None),
        received => received?,
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Some((bytes, fds)))
}

/// JSON of our own types.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    // Our types have string keys only and no fallible serializer.
    serde_json::to_vec(value).expect("our own types are JSON")
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Diagnostic::error("cannot read a message of the spawner").caused_by(error))
}

/// A value of any size in memory, as a descriptor.
pub fn encode_to_memory(value: &impl Serialize) -> Result<OwnedFd> {
    let bytes = encode(value);
    let doing = || "cannot pass a container's description on";
    let memory =
        rustix::fs::memfd_create("container", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).context(doing)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(&memory, &bytes[written..], written as u64).context(doing)?;
    }
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW).context(doing)?;
    Ok(memory)
}

pub fn decode_from_memory<T: DeserializeOwned>(memory: &OwnedFd) -> Result<T> {
    let doing = || "cannot read a container's description";
    let size = rustix::fs::fstat(memory.as_fd()).context(doing)?.st_size;
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(memory, &mut bytes[read..], read as u64).context(doing)? {
            0 => break,
            count => read += count,
        }
    }
    decode(&bytes)
}

/// Paths as bytes: they need not be UTF-8.
pub mod path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(OsString::from_vec(Vec::deserialize(deserializer)?).into())
    }
}

pub mod paths {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| path.as_os_str().as_bytes()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        let paths = Vec::<Vec<u8>>::deserialize(deserializer)?;
        Ok(paths.into_iter().map(|path| OsString::from_vec(path).into()).collect())
    }
}

/// `Network` and `Security` belong to the plan; these say how they are written here.
#[derive(Serialize, Deserialize)]
#[serde(remote = "crate::plan::Network")]
pub enum NetworkDef {
    Default,
    None,
    Host,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "crate::plan::Security")]
pub enum SecurityDef {
    Sandbox,
    Insecure,
}
