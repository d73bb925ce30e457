//! The container of a RUN: spawner, namespaces, mounts, seccomp, capabilities.
//!
//! ```text
//! builder ──SEQPACKET──▶ spawner (PID 1 of an outer pid namespace, single thread)
//!                          └─ payload (PID 1 of its own pid namespace, in the build's user namespace)
//! ```
//!
//! When the builder dies the spawner dies, and with it every process of every step.

pub mod passwd;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::diag::Result;
use crate::plan::{Network, Security};

/// Everything one RUN needs, resolved: no name is left to look up but `argv[0]` in PATH.
#[derive(Clone, Debug)]
pub struct Container {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Absolute; made (0755, the user's) if missing.
    pub workdir: String,
    pub user: passwd::User,
    pub hostname: String,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    pub network: Network,
    pub security: Security,
    /// Layer dirs, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Holds `u` and `w` (see [`crate::store::Draft`]).
    pub draft: PathBuf,
    pub mounts: Vec<Mount>,
    pub shm_size_bytes: u64,
    /// `(resource name as in --ulimit, soft, hard)`.
    pub ulimits: Vec<(String, u64, u64)>,
}

/// A mount at `target`, made after the fixed ones, in order.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Absolute, resolved beneath the container's root; made on the way where missing, without a
    /// trace in the layer.
    pub target: String,
    pub kind: MountKind,
}

#[derive(Clone, Debug)]
pub enum MountKind {
    /// A file or directory of the host (a context, a cache), `path` resolved beneath `root`.
    Bind {
        root: PathBuf,
        path: String,
        is_readonly: bool,
    },
    /// A stack of layers as a merged tree, `path` resolved beneath it. Writes are discarded.
    Layers {
        lowers: Vec<PathBuf>,
        path: String,
        is_readonly: bool,
    },
    Tmpfs {
        size_bytes: Option<u64>,
    },
    /// A file on a tmpfs: a secret, a heredoc script. Read-only, nosuid, nodev.
    File {
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
}

#[derive(Clone, Copy, Debug)]
pub struct Exit {
    pub status: Status,
    /// User and system CPU time of the processes that were waited for.
    pub cpu: std::time::Duration,
    /// Peak resident set of the largest process.
    pub peak_bytes: u64,
}

/// The handle on the spawner; safe to share between threads.
pub struct Spawner {
    _todo: (),
}

impl Spawner {
    /// Forks the spawner. To be called before any thread is started; cheap, and inert until the
    /// first step.
    pub fn fork() -> Result<Self> {
        todo!()
    }

    /// Runs one step to its end. What the payload writes to stdout and stderr arrives on the read
    /// end of the pipe whose write end is `output`. Returns when the container is gone and its
    /// upper is quiescent.
    pub fn run(&self, container: &Container, output: OwnedFd) -> Result<Exit> {
        let _ = (container, output);
        todo!()
    }
}
