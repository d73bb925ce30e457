//! Control groups: they bound what all processes of a step use together, and count it.
//!
//! ```text
//! <parent>/               an ancestor of the builder's group, or --cgroup-parent
//! └── wythe.0/            of one build, locked (flock) while its spawner lives
//!     ├── 1/              of one step
//!     └── 2/
//! ```
//!
//! With version 1 the same stands in each hierarchy that is needed. There is no group for a step that
//! has no limit and is not to be counted exactly. A limit that cannot be had is an error. A group whose
//! lock is free belongs to a build that was killed: the next one that runs a step removes it.

mod assignment;
mod directory;
mod group;
mod hierarchy;
mod home;
mod knob;
mod limits;
mod v1;
mod v2;

pub use group::{Group, Groups};
pub use limits::Limits;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::progress::units::binary_size as size;

/// Of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Processes of a step were killed for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfMemory {
    /// How many processes.
    pub kills: u64,
    /// `None` when the step had no limit of its own: then memory was short around it.
    pub limit_bytes: Option<u64>,
    pub peak_bytes: u64,
}

/// Which versions this host has, for people.
pub fn describe() -> &'static str {
    let found = hierarchy::Hierarchies::find().unwrap_or_default();
    match (found.v1.is_empty(), found.v2.is_some()) {
        (true, true) => "cgroups of version 2",
        (false, false) => "cgroups of version 1",
        (false, true) => "cgroups of versions 1 and 2",
        (true, false) => "nothing: no cgroups are mounted",
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = size(self.peak_bytes);
        match self.limit_bytes {
            Some(limit) => write!(f, "out of memory: the limit is {}, the peak was {peak}", size(limit)),
            None => write!(f, "out of memory, which was short outside of the step; the peak was {peak}"),
        }
    }
}
