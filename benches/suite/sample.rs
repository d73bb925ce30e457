//! What is measured of a process: from its start to its end, with the processes it waited for.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub wall: Duration,
    /// User and system time.
    pub cpu: Duration,
    /// Peak resident set of the largest process.
    pub peak_bytes: u64,
}

impl Sample {
    /// Runs a command to its end. What it complains of is the error if it fails.
    pub fn of(command: &mut Command) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let mut complaints = tempfile::tempfile().map_err(|error| format!("cannot make a file: {error}"))?;
        let stderr = complaints.try_clone().map_err(|error| format!("cannot make a file: {error}"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let begun = Instant::now();
        let child = command.spawn().map_err(|error| format!("cannot run {name}: {error}"))?;
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).ok_or("no process id")?;
        let waited = wythe::sys::wait(pid).map_err(|error| format!("cannot wait for {name}: {error}"))?;
        let sample = Self { wall: begun.elapsed(), cpu: waited.cpu, peak_bytes: waited.peak_bytes };
        if waited.status == 0 {
            return Ok(sample);
        }
        use std::io::{Read, Seek};
        let mut text = String::new();
        let _ = complaints.rewind().and_then(|()| complaints.read_to_string(&mut text));
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n");
        Err(format!("{name} ended with status {:#x}: {last}", waited.status))
    }

    /// What this took more than the other.
    pub fn beyond(self, other: Self) -> Self {
        Self {
            wall: self.wall.saturating_sub(other.wall),
            cpu: self.cpu.saturating_sub(other.cpu),
            peak_bytes: self.peak_bytes,
        }
    }

    /// One of `count` equal parts.
    pub fn per(self, count: u32) -> Self {
        Self { wall: self.wall / count, cpu: self.cpu / count, peak_bytes: self.peak_bytes }
    }

    /// The medians of each figure.
    pub fn median(samples: &[Self]) -> Option<Self> {
        fn middle<T: Ord + Copy>(samples: &[Sample], figure: fn(&Sample) -> T) -> Option<T> {
            let mut figures: Vec<T> = samples.iter().map(figure).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied()
        }
        Some(Self {
            wall: middle(samples, |sample| sample.wall)?,
            cpu: middle(samples, |sample| sample.cpu)?,
            peak_bytes: middle(samples, |sample| sample.peak_bytes)?,
        })
    }
}
