//! Version 2: one hierarchy for all controllers, and the files of its groups.

use super::OutOfMemory;
use super::knob::Knob;
use super::limits::{Controller, Limits};
use crate::progress::Usage;

/// As all files of version 2 write "no limit".
fn bounded(limit: u64) -> String {
    if limit == u64::MAX { "max".to_owned() } else { limit.to_string() }
}

/// What to write for `controller`, in this order.
pub fn knobs(controller: Controller, limits: &Limits) -> Vec<Knob> {
    let mut knobs = Vec::new();
    match controller {
        Controller::Memory => {
            knobs.extend(limits.memory_bytes.map(|bytes| Knob::new("memory.max", bounded(bytes))));
            // Here swap is counted by itself.
            let file = "memory.swap.max";
            match (limits.memory_bytes, limits.memory_swap_bytes) {
                (_, Some(u64::MAX)) => knobs.push(Knob::implied(file, "max")),
                (memory, Some(both)) => {
                    knobs.push(Knob::new(file, both.saturating_sub(memory.unwrap_or(0))));
                }
                (Some(memory), None) if memory != u64::MAX => knobs.push(Knob::implied(file, memory)),
                _ => {}
            }
        }
        Controller::Cpu => {
            knobs.extend(limits.cpu_shares.map(|shares| Knob::new("cpu.weight", weight_of_shares(shares))));
            if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
                let quota = bounded(limits.cpu_quota_us.unwrap_or(u64::MAX));
                let period = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US);
                knobs.push(Knob::new("cpu.max", format!("{quota} {period}")));
            }
        }
        Controller::Cpuset => {
            knobs.extend(limits.cpuset_cpus.as_ref().map(|cpus| Knob::new("cpuset.cpus", cpus)));
            knobs.extend(limits.cpuset_mems.as_ref().map(|mems| Knob::new("cpuset.mems", mems)));
        }
        Controller::Pids => knobs.extend(limits.pids.map(|pids| Knob::new("pids.max", bounded(pids)))),
        Controller::Io => knobs.extend(limits.io_weight.map(|weight| {
            // The scheduler's file, where there is one, takes the weight as it is.
            Knob::new("io.bfq.weight", weight).or("io.weight", 1 + weight.saturating_sub(10) * 9999 / 990)
        })),
        Controller::CpuAccounting => {}
    }
    knobs
}

const DEFAULT_PERIOD_US: u64 = 100_000;

/// Version 2 counts from 1 to 10000 with 100 in the middle where version 1 counts from 2 to 262144
/// with 1024: the curve through these three points that runtimes agreed on.
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Between 1 and 10000.
    10f64.powf(exponent).ceil() as u64
}

/// What the files of a group say was used. `read` gives a file's text where it is there.
pub fn usage(read: impl Fn(&str) -> Option<String>) -> Usage {
    let served = read("io.stat").unwrap_or_default();
    let cpu_us = read("cpu.stat").and_then(|text| field(&text, "usage_usec")).unwrap_or(0);
    // Linux 5.19 has it.
    let memory_bytes = read("memory.peak").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Usage {
        cpu_us,
        memory_bytes,
        read_bytes: served_bytes(&served, "rbytes="),
        written_bytes: served_bytes(&served, "wbytes="),
    }
}

/// The number after a name on a line of its own.
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0 rbytes=4096 wbytes=0 …`, a line for each device.
fn served_bytes(text: &str, key: &str) -> u64 {
    text.split([' ', '\n']).filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

pub fn out_of_memory(read: impl Fn(&str) -> Option<String>, limits: &Limits) -> Option<OutOfMemory> {
    let kills = field(&read("memory.events")?, "oom_kill")?;
    let peak_bytes = usage(read).memory_bytes;
    (kills > 0).then_some(OutOfMemory { kills, limit_bytes: limits.memory_bytes, peak_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_counted_apart() {
        let limits = Limits { memory_bytes: Some(100), memory_swap_bytes: Some(150), ..Limits::default() };
        let expected = [Knob::new("memory.max", 100), Knob::new("memory.swap.max", 50)];
        assert_eq!(knobs(Controller::Memory, &limits), expected);
        let limits = Limits { memory_swap_bytes: None, ..limits };
        let expected = [Knob::new("memory.max", 100), Knob::implied("memory.swap.max", 100)];
        assert_eq!(knobs(Controller::Memory, &limits), expected);
    }

    #[test]
    fn quota_and_period_are_one_file() {
        let limits = |quota, period| Limits { cpu_quota_us: quota, cpu_period_us: period, ..Limits::default() };
        for (quota, period, expected) in [
            (Some(50_000), None, "50000 100000"),
            (Some(u64::MAX), Some(50_000), "max 50000"),
            (None, Some(20_000), "max 20000"),
        ] {
            assert_eq!(knobs(Controller::Cpu, &limits(quota, period)), [Knob::new("cpu.max", expected)]);
        }
    }

    #[test]
    fn the_usual_share_is_the_usual_weight() {
        let weights = [0, 2, 512, 1024, 262_144, u64::MAX].map(weight_of_shares);
        assert_eq!(weights, [1, 1, 59, 100, 10_000, 10_000]);
    }

    #[test]
    fn counters_are_read() {
        let read = |file: &str| {
            let text = match file {
                "cpu.stat" => "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\n",
                "memory.peak" => "4096\n",
                "io.stat" => "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n7:0 rbytes=1 wbytes=0\n",
                "memory.events" => "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        assert_eq!(usage(read), Usage { cpu_us: 1234, memory_bytes: 4096, read_bytes: 11, written_bytes: 20 });
        let expected = OutOfMemory { kills: 1, limit_bytes: None, peak_bytes: 4096 };
        assert_eq!(out_of_memory(read, &Limits::default()), Some(expected));
    }
}
