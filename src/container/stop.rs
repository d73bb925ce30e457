//! Ending a step gently: its processes are asked, and given time only as long as one of them listens.
//!
//! The first process of a pid namespace gets no signal that it has no handler for, and a shell has
//! none: asking it alone would be no more than waiting. Where it has one it is in charge of the rest;
//! else everybody else is asked.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};

/// A process as `/proc/PID/status` has it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    parent: i32,
    /// Bit n-1 for signal n.
    caught: u64,
}

/// Sends `signal` to those of a step that it concerns, and gives handles of those that have something
/// to do before they end. When the last of these has ended nobody is worth waiting for, whatever
/// others do. Where nobody has, nobody is asked: a script whose command is ended would go on with the
/// next. `proc` is a procfs of this process's pid namespace, `first` the step's first process.
pub fn ask(proc: BorrowedFd<'_>, first: Pid, signal: Signal) -> Vec<OwnedFd> {
    let processes = processes(proc);
    let mut listeners = Vec::new();
    let concerned = concerned(&processes, first.as_raw_nonzero().get(), signal);
    if !concerned.iter().any(|pid| processes[pid].listens(signal)) {
        return listeners;
    }
    for pid in concerned {
        let Some(id) = Pid::from_raw(pid) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else { continue };
        let sent = rustix::process::pidfd_send_signal(&handle, signal);
        if sent.is_ok() && processes[&pid].listens(signal) {
            listeners.push(handle);
        }
    }
    listeners
}

impl Process {
    fn listens(&self, signal: Signal) -> bool {
        self.caught & 1 << (signal.as_raw() - 1) != 0
    }
}

/// The first process if it listens, else all that it began.
fn concerned(processes: &BTreeMap<i32, Process>, first: i32, signal: Signal) -> Vec<i32> {
    if processes.get(&first).is_some_and(|process| process.listens(signal)) {
        return vec![first];
    }
    let is_begun_by_first = |pid: i32| {
        let parents = std::iter::successors(Some(pid), |pid| Some(processes.get(pid)?.parent));
        // What is read is not of one moment: nothing says that there is no loop.
        parents.skip(1).take(processes.len()).any(|parent| parent == first)
    };
    processes.keys().copied().filter(|pid| is_begun_by_first(*pid)).collect()
}

fn processes(proc: BorrowedFd<'_>) -> BTreeMap<i32, Process> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = rustix::fs::openat(proc, ".", flags, Mode::empty()).and_then(rustix::fs::Dir::new);
    let Ok(entries) = entries else { return BTreeMap::new() };
    let process = |entry: rustix::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str().ok()?.parse().ok()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(proc, format!("{pid}/status"), flags, Mode::empty()).ok()?;
        let mut text = [0; 4096];
        let length = rustix::io::read(&file, &mut text).ok()?;
        Some((pid, parse(&String::from_utf8_lossy(&text[..length]))?))
    };
    entries.flatten().filter_map(process).collect()
}

fn parse(status: &str) -> Option<Process> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let caught = u64::from_str_radix(field("SigCgt:")?, 16).ok()?;
    Some(Process { parent: field("PPid:")?.parse().ok()?, caught })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tsh\nState:\tS (sleeping)\nPid:\t7\nPPid:\t5\nSigIgn:\t0\nSigCgt:\t0000000000014002\n";
        let process = parse(status).unwrap();
        assert_eq!(process, Process { parent: 5, caught: 0x14002 });
        assert!(process.listens(Signal::INT) && process.listens(Signal::TERM) && !process.listens(Signal::HUP));
        assert_eq!(parse("Name:\tsh\n"), None);
    }

    #[test]
    fn the_first_is_in_charge_if_it_listens() {
        let term = 1 << (Signal::TERM.as_raw() - 1);
        let tree = |first_catches: u64| {
            [
                (1, 0, 0),
                (5, 1, first_catches),
                (6, 5, 0),
                (7, 6, term),
                (8, 1, term),
                (9, 8, 0),
                (10, 11, 0),
                (11, 10, 0),
            ]
            .into_iter()
            .map(|(pid, parent, caught)| (pid, Process { parent, caught }))
            .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(concerned(&tree(term), 5, Signal::TERM), [5]);
        assert_eq!(concerned(&tree(0), 5, Signal::TERM), [6, 7]);
        assert_eq!(concerned(&tree(term), 5, Signal::INT), [6, 7]);
    }
}
