//! What a user may ask for, whatever version of control groups there is.

use serde::{Deserialize, Serialize};

/// Where a number is a limit, `u64::MAX` says that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Memory and swap together; at least `memory_bytes`. When only that is set, as much again.
    pub memory_swap_bytes: Option<u64>,
    /// 2 to 262144; 1024 is everybody's share.
    pub cpu_shares: Option<u64>,
    pub cpu_period_us: Option<u64>,
    /// Of all processors together, in each period.
    pub cpu_quota_us: Option<u64>,
    /// `0-3,8`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Of processes and threads.
    pub pids: Option<u64>,
    /// 10 to 1000; 500 is everybody's weight.
    pub io_weight: Option<u64>,
    /// The group to be below, from the root of the hierarchy.
    pub parent: Option<String>,
    /// What the step uses is counted even if nothing is limited.
    pub is_counted: bool,
}

/// What sets limits and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    /// Counts CPU time; only version 1 has it apart from `Cpu`.
    CpuAccounting,
    Cpuset,
    Pids,
    Io,
}

impl Limits {
    /// Whether a step needs a group at all.
    pub fn ask_for_a_group(&self) -> bool {
        *self != Self::default()
    }

    /// The controllers without which these limits cannot be had.
    pub fn needed(&self) -> Vec<Controller> {
        let asked = [
            (Controller::Memory, self.memory_bytes.or(self.memory_swap_bytes).is_some()),
            (Controller::Cpu, self.cpu_shares.or(self.cpu_period_us).or(self.cpu_quota_us).is_some()),
            (Controller::Cpuset, self.cpuset_cpus.is_some() || self.cpuset_mems.is_some()),
            (Controller::Pids, self.pids.is_some()),
            (Controller::Io, self.io_weight.is_some()),
        ];
        asked.into_iter().filter(|(_, is_asked)| *is_asked).map(|(controller, _)| controller).collect()
    }
}

impl Controller {
    pub const ALL: [Self; 6] = [Self::Memory, Self::Cpu, Self::CpuAccounting, Self::Cpuset, Self::Pids, Self::Io];

    /// Those that count what a step uses: where there is a group they are taken along if they can be
    /// had.
    pub const COUNTING: [Self; 3] = [Self::Memory, Self::CpuAccounting, Self::Io];

    /// As `/proc/self/cgroup` and mount options name it.
    pub fn name_in_v1(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::CpuAccounting => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
            Self::Io => "blkio",
        }
    }

    /// As `cgroup.controllers` names it; `None` for what every group of version 2 has.
    pub fn name_in_v2(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Cpu => Some("cpu"),
            Self::CpuAccounting => None,
            Self::Cpuset => Some("cpuset"),
            Self::Pids => Some("pids"),
            Self::Io => Some("io"),
        }
    }

    /// What it bounds, for people.
    pub fn subject(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu | Self::CpuAccounting => "CPU time",
            Self::Cpuset => "processors",
            Self::Pids => "the number of processes",
            Self::Io => "block I/O",
        }
    }
}
