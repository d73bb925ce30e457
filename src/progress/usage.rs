//! What a step used: processor time, memory, disk.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::units::{binary_size, seconds, size};

/// Counted by the kernel, over all processes of a step where they had a control group of their own.
/// Else over those that were waited for, which leaves out what was running still when the first
/// process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time of all processors.
    pub cpu_us: u64,
    /// At the peak: of the group, with the files that it keeps in memory; without a group, resident
    /// in the largest process.
    pub memory_bytes: u64,
    /// From block devices; what memory held is not counted.
    pub read_bytes: u64,
    /// To block devices, at once or later.
    pub written_bytes: u64,
}

impl Usage {
    pub fn cpu(&self) -> Duration {
        Duration::from_micros(self.cpu_us)
    }

    /// The greater of each number: what two ways to count found of the same step.
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_us: self.cpu_us.max(other.cpu_us),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            read_bytes: self.read_bytes.max(other.read_bytes),
            written_bytes: self.written_bytes.max(other.written_bytes),
        }
    }

    /// `cpu 1.2s, memory 45 MiB, read 3.0 MB, wrote 1.2 kB`; without what is zero.
    pub fn line(&self) -> String {
        let mut line = format!("cpu {}, memory {}", seconds(self.cpu()), binary_size(self.memory_bytes));
        for (verb, bytes) in [("read", self.read_bytes), ("wrote", self.written_bytes)] {
            if bytes > 0 {
                line.push_str(&format!(", {verb} {}", size(bytes)));
            }
        }
        line
    }
}
