//! The container of a RUN: spawner, namespaces, mounts, seccomp, capabilities.
//!
//! ```text
//! builder ──SEQPACKET──▶ spawner (PID 1 of an outer pid namespace, single thread)
//!                          └─ payload (PID 1 of its own pid namespace, in the build's user namespace)
//! ```
//!
//! When the builder dies the spawner dies, and with it every process of every step. All mounts live
//! in the mount namespaces of these processes or are detached: the host's mount table is never
//! touched, and nothing is written to its disk but a step's upper dir.

mod binfmt;
mod call;
mod caps;
mod cgroup;
mod device;
pub mod entry;
mod exec;
mod footing;
mod holder;
mod host_node;
mod hosts;
mod limit;
mod machine;
mod mask;
mod mount;
mod mount_point;
mod network;
mod overlay;
pub mod passwd;
mod protocol;
mod realm;
mod root;
mod running;
mod seccomp;
#[rustfmt::skip] // Made by a program.
mod seccomp_table;
mod serve;
pub mod signal;
mod skeleton;
mod source;
mod spawner;
mod step;
mod stop;
mod supervisor;
mod template;
mod terminal;
mod userns;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::diag::Diagnostic;
use crate::image::Platform;
use crate::plan::{Network, Security};
use crate::progress::Usage;

pub use cgroup::{Limits, OutOfMemory, describe as describe_cgroups};
pub use footing::{Footing, Given, Ground, Rung, Sketch, Worker, room_size_bytes, shift_of_steps};
pub use hosts::{Dns, HostAddress};
pub use limit::{raise_open_files, restore_open_files};
pub use network::host as network_of_host;
pub use overlay::overlay_detached;
pub use spawner::Spawner;
pub use terminal::Session;

/// Everything one RUN needs, resolved: no name is left to look up but `argv[0]` in PATH.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    pub argv: Vec<String>,
    /// Given to the payload as it is; only HOME is added where it is missing.
    pub env: Vec<(String, String)>,
    /// What its programs are made for.
    pub platform: Platform,
    /// Absolute; made (0755, the user's) if missing.
    pub workdir: String,
    pub user: passwd::User,
    pub hostname: String,
    /// `--add-host`.
    pub extra_hosts: Vec<(String, HostAddress)>,
    pub dns: Dns,
    #[serde(with = "protocol::NetworkDef")]
    pub network: Network,
    #[serde(with = "protocol::SecurityDef")]
    pub security: Security,
    /// Layer dirs, topmost first.
    #[serde(with = "protocol::paths")]
    pub lowers: Vec<PathBuf>,
    /// Holds `u` and `w` (see [`crate::store::Draft`]).
    #[serde(with = "protocol::path")]
    pub draft: PathBuf,
    /// What it gets besides or in the place of these.
    #[serde(skip)]
    pub ground: Given,
    pub mounts: Vec<Mount>,
    pub shm_size_bytes: u64,
    /// `(resource name as in --ulimit, soft, hard)`; `u64::MAX` is unlimited.
    pub ulimits: Vec<(String, u64, u64)>,
    pub limits: Limits,
    /// How long the payload may run before everything of the step is killed.
    pub timeout: Option<Duration>,
    /// Whether somebody waits for [`Moment::Mounted`].
    pub tells_when_mounted: bool,
}

/// What is told of a step before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It was asked for.
    Asked,
    /// Its layers are mounted: wherever they are moved to now, it does not notice.
    Mounted,
}

/// A mount at `target`, made after the fixed ones, in order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute, resolved beneath the container's root; made on the way where missing, without a
    /// trace in the layer.
    pub target: String,
    pub kind: MountKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the store (a cache), `path` resolved beneath `root`. Owners are as on
    /// disk; writes go through.
    Bind {
        #[serde(with = "protocol::path")]
        root: PathBuf,
        path: String,
        is_readonly: bool,
    },
    /// A file or directory of the user's (a context), `path` resolved beneath `root`. What belongs
    /// to the owner of `root` is root's inside; writes are discarded.
    Context {
        #[serde(with = "protocol::path")]
        root: PathBuf,
        path: String,
        is_readonly: bool,
    },
    /// A stack of layers as a merged tree, `path` resolved beneath it. Writes are discarded.
    Layers {
        #[serde(with = "protocol::paths")]
        lowers: Vec<PathBuf>,
        path: String,
        is_readonly: bool,
    },
    Tmpfs {
        size_bytes: Option<u64>,
    },
    /// A node for a device of the host.
    Device {
        #[serde(with = "protocol::path")]
        path: PathBuf,
        /// That of the host's node where none is given.
        mode: Option<u32>,
        uid: u32,
        gid: u32,
    },
    /// A file or directory of the host, as it is there.
    Host {
        #[serde(with = "protocol::path")]
        path: PathBuf,
        is_readonly: bool,
    },
    /// A file on a tmpfs: a secret, a heredoc script. Read-only, nosuid, nodev; noexec without an
    /// execute bit.
    File {
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
    /// A socket of the store that somebody listens at, given to this owner. Nosuid, nodev, noexec.
    Socket {
        #[serde(with = "protocol::path")]
        path: PathBuf,
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

#[derive(Debug)]
pub struct Exit {
    pub status: Status,
    pub usage: Usage,
    /// Known only of a step that has a control group.
    pub out_of_memory: Option<OutOfMemory>,
    /// It was killed because its time was over.
    pub is_late: bool,
    /// The directory that stood below all layers to offer mount points, for
    /// [`crate::layer::canonicalize`].
    pub skeleton: OwnedFd,
    /// What the user is to know of the step's network: that it was the host's, above all.
    pub warning: Option<Diagnostic>,
    /// What was found out about the host's network; for [`Expectation::memory`] of another build.
    pub learned: Option<Vec<u8>>,
}

/// What is about to be run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Expectation {
    /// How many steps at once will have a network of their own.
    pub lanes: usize,
    pub dns: Dns,
    /// Of /dev/shm.
    pub shm_size_bytes: u64,
    /// What a build learned that was on the same [`network_of_host`].
    pub memory: Option<Vec<u8>>,
}
