//! Version 1: one hierarchy a controller, and the files of each.

use super::OutOfMemory;
use super::knob::Knob;
use super::limits::{Controller, Limits};
use crate::progress::Usage;

/// As all files of version 1 write "no limit".
fn bounded(limit: u64) -> String {
    if limit == u64::MAX { "-1".to_owned() } else { limit.to_string() }
}

/// What to write for `controller`, in this order.
pub fn knobs(controller: Controller, limits: &Limits) -> Vec<Knob> {
    let mut knobs = Vec::new();
    match controller {
        Controller::Memory => {
            // First: swap counts on top of it and may not be below.
            knobs.extend(limits.memory_bytes.map(|bytes| Knob::new("memory.limit_in_bytes", bounded(bytes))));
            let file = "memory.memsw.limit_in_bytes";
            match (limits.memory_bytes, limits.memory_swap_bytes) {
                (_, Some(u64::MAX)) => knobs.push(Knob::implied(file, -1)),
                (_, Some(both)) => knobs.push(Knob::new(file, both)),
                (Some(memory), None) if memory != u64::MAX => {
                    knobs.push(Knob::implied(file, memory.saturating_mul(2)));
                }
                _ => {}
            }
        }
        Controller::Cpu => {
            knobs.extend(limits.cpu_shares.map(|shares| Knob::new("cpu.shares", shares)));
            // First: a quota is judged by the period that is set.
            knobs.extend(limits.cpu_period_us.map(|period| Knob::new("cpu.cfs_period_us", period)));
            knobs.extend(limits.cpu_quota_us.map(|quota| Knob::new("cpu.cfs_quota_us", bounded(quota))));
        }
        Controller::Cpuset => {
            knobs.extend(limits.cpuset_cpus.as_ref().map(|cpus| Knob::new("cpuset.cpus", cpus)));
            knobs.extend(limits.cpuset_mems.as_ref().map(|mems| Knob::new("cpuset.mems", mems)));
        }
        Controller::Pids => {
            let shown = |pids: u64| if pids == u64::MAX { "max".to_owned() } else { pids.to_string() };
            knobs.extend(limits.pids.map(|pids| Knob::new("pids.max", shown(pids))));
        }
        Controller::Io => knobs
            .extend(limits.io_weight.map(|weight| Knob::new("blkio.weight", weight).or("blkio.bfq.weight", weight))),
        Controller::CpuAccounting => {}
    }
    knobs
}

/// What a hierarchy's files say was used. `read` gives a file's text where it is there.
pub fn usage(read: impl Fn(&str) -> Option<String>) -> Usage {
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let served = read("blkio.throttle.io_service_bytes_recursive").unwrap_or_default();
    Usage {
        cpu_us: number("cpuacct.usage").unwrap_or(0) / 1000,
        memory_bytes: number("memory.max_usage_in_bytes").unwrap_or(0),
        read_bytes: served_bytes(&served, "Read"),
        written_bytes: served_bytes(&served, "Write"),
    }
}

/// `8:0 Read 4096`, a line for each device and direction.
fn served_bytes(text: &str, direction: &str) -> u64 {
    let of_device = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, word, number] if word == direction => number.parse::<u64>().ok(),
        _ => None,
    };
    text.lines().filter_map(of_device).sum()
}

pub fn out_of_memory(read: impl Fn(&str) -> Option<String>, limits: &Limits) -> Option<OutOfMemory> {
    let control = read("memory.oom_control")?;
    let kills = control.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())?;
    let peak_bytes = usage(read).memory_bytes;
    (kills > 0).then_some(OutOfMemory { kills, limit_bytes: limits.memory_bytes, peak_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_set_after_memory_and_twice_as_large() {
        let limits = Limits { memory_bytes: Some(100), ..Limits::default() };
        let expected = [Knob::new("memory.limit_in_bytes", 100), Knob::implied("memory.memsw.limit_in_bytes", 200)];
        assert_eq!(knobs(Controller::Memory, &limits), expected);
        let limits = Limits { memory_swap_bytes: Some(150), ..limits };
        let expected = [Knob::new("memory.limit_in_bytes", 100), Knob::new("memory.memsw.limit_in_bytes", 150)];
        assert_eq!(knobs(Controller::Memory, &limits), expected);
        let limits = Limits { memory_swap_bytes: Some(u64::MAX), ..limits };
        let expected = [Knob::new("memory.limit_in_bytes", 100), Knob::implied("memory.memsw.limit_in_bytes", -1)];
        assert_eq!(knobs(Controller::Memory, &limits), expected);
    }

    #[test]
    fn counters_are_read() {
        let read = |file: &str| {
            let text = match file {
                "cpuacct.usage" => "1234567\n",
                "memory.max_usage_in_bytes" => "4096\n",
                "blkio.throttle.io_service_bytes_recursive" => {
                    "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n7:1 Read 1\nTotal 31\n"
                }
                "memory.oom_control" => "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(usage(read), Usage { cpu_us: 1234, memory_bytes: 4096, read_bytes: 11, written_bytes: 20 });
        let limits = Limits { memory_bytes: Some(4096), ..Limits::default() };
        let expected = OutOfMemory { kills: 2, limit_bytes: Some(4096), peak_bytes: 4096 };
        assert_eq!(out_of_memory(read, &limits), Some(expected));
        assert_eq!(usage(|_| None), Usage::default());
        assert_eq!(out_of_memory(|_| None, &limits), None);
    }
}
