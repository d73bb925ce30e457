//! Options that bound RUN steps: memory, processors, processes, time.

use std::time::Duration;

use clap::Args;

use super::{Failure, usage, values};
use crate::container::Limits;
use crate::dockerfile::duration;

#[derive(Debug, Args)]
pub struct LimitArguments {
    /// Memory of a RUN step; with none left its largest process is killed
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,

    /// Memory and swap of a RUN step together, or -1 for any [default: twice the memory]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,

    /// How many processors a RUN step may keep busy, as in 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,

    /// Share of the processors when others want them, too; 1024 is what everybody has
    #[arg(short, long, value_name = "NUMBER")]
    pub cpu_shares: Option<String>,

    /// Period of --cpu-quota in microseconds [default: 100000]
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<String>,

    /// CPU time that a RUN step has in each period, or -1 for any
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<String>,

    /// Processors that RUN steps may use, as in 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,

    /// Memory nodes that RUN steps may use, as in 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,

    /// How many processes and threads a RUN step may have, or -1 for any
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub pids_limit: Option<String>,

    /// Weight of a RUN step's block I/O, from 10 to 1000
    #[arg(long, value_name = "NUMBER")]
    pub blkio_weight: Option<String>,

    /// The same limits in one option: memory=BYTES,cpu-quota=MICROSECONDS,...
    #[arg(long = "resource", value_name = "NAME=VALUE,...")]
    pub resources: Vec<String>,

    /// Put the control groups of RUN steps below this one
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,

    /// Count what RUN steps use with a control group for each, which misses no process
    #[arg(long)]
    pub stats: bool,

    /// Kill a RUN step that takes longer, as in 90s or 1h30m
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<String>,
}

/// What the options ask for, and checks that need no kernel.
pub fn limits(arguments: &LimitArguments) -> Result<Limits, Failure> {
    let given = [
        ("memory", &arguments.memory),
        ("memory-swap", &arguments.memory_swap),
        ("cpus", &arguments.cpus),
        ("cpu-shares", &arguments.cpu_shares),
        ("cpu-period", &arguments.cpu_period),
        ("cpu-quota", &arguments.cpu_quota),
        ("cpuset-cpus", &arguments.cpuset_cpus),
        ("cpuset-mems", &arguments.cpuset_mems),
        ("pids-limit", &arguments.pids_limit),
        ("blkio-weight", &arguments.blkio_weight),
    ];
    let mut limits =
        Limits { parent: arguments.cgroup_parent.clone(), is_counted: arguments.stats, ..Limits::default() };
    let mut cpus = None;
    for (name, value) in given {
        if let Some(value) = value {
            set(&mut limits, &mut cpus, &format!("--{name}"), name, value)?;
        }
    }
    for text in &arguments.resources {
        for (name, value) in values::fields(text) {
            let option = format!("--resource {name}");
            let value = value.ok_or_else(|| usage(format!("`{option}`: write it as NAME=VALUE")))?;
            set(&mut limits, &mut cpus, &option, &name, &value)?;
        }
    }
    if let Some(hundredths) = cpus {
        if limits.cpu_period_us.is_some() || limits.cpu_quota_us.is_some() {
            return Err(usage("`--cpus` is a period and a quota in one: leave out `--cpu-period` and `--cpu-quota`"));
        }
        limits.cpu_period_us = Some(100_000);
        limits.cpu_quota_us = Some(hundredths * 1000);
    }
    match (limits.memory_bytes, limits.memory_swap_bytes) {
        (None, Some(bytes)) if bytes != u64::MAX => {
            Err(usage("`--memory-swap` is memory and swap together: give `--memory`, too"))
        }
        (Some(memory), Some(both)) if both < memory => {
            Err(usage("`--memory-swap` is memory and swap together: it cannot be less than `--memory`"))
        }
        _ => Ok(limits),
    }
}

pub fn timeout(text: &str) -> Result<Duration, Failure> {
    let wrong = |why: String| usage(format!("`--timeout {text}`: {why}"));
    match duration::parse_ns(text).map(u64::try_from) {
        Ok(Ok(ns @ 1..)) => Ok(Duration::from_nanos(ns)),
        Ok(_) => Err(wrong("it must be more than nothing".into())),
        Err(why) => Err(wrong(why)),
    }
}

/// Sets the limit `name`; `cpus` are hundredths of a processor.
fn set(limits: &mut Limits, cpus: &mut Option<u64>, option: &str, name: &str, value: &str) -> Result<(), Failure> {
    let is_new = match name {
        "memory" => set_once(&mut limits.memory_bytes, positive(option, values::size(option, value)?)?),
        "memory-swap" => match value {
            // As docker has it: nothing said.
            "0" => true,
            "-1" => set_once(&mut limits.memory_swap_bytes, u64::MAX),
            _ => set_once(&mut limits.memory_swap_bytes, values::size(option, value)?),
        },
        "cpus" => set_once(cpus, processors(option, value)?),
        "cpu-shares" => set_once(&mut limits.cpu_shares, between(option, value, 2, 262_144)?),
        "cpu-period" => set_once(&mut limits.cpu_period_us, between(option, value, 1_000, 1_000_000)?),
        "cpu-quota" if value == "-1" => set_once(&mut limits.cpu_quota_us, u64::MAX),
        "cpu-quota" => set_once(&mut limits.cpu_quota_us, between(option, value, 1_000, u64::MAX / 2)?),
        "cpuset-cpus" => set_once(&mut limits.cpuset_cpus, list(option, value)?),
        "cpuset-mems" => set_once(&mut limits.cpuset_mems, list(option, value)?),
        "pids-limit" if matches!(value, "-1" | "0") => set_once(&mut limits.pids, u64::MAX),
        "pids-limit" => set_once(&mut limits.pids, between(option, value, 1, 1 << 22)?),
        "blkio-weight" => set_once(&mut limits.io_weight, between(option, value, 10, 1000)?),
        _ => {
            const KNOWN: &str = "memory, memory-swap, cpus, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, \
                                 cpuset-mems, pids-limit, blkio-weight";
            return Err(usage(format!("there is no `{option}`; known are {KNOWN}")));
        }
    };
    if is_new { Ok(()) } else { Err(usage(format!("`{option}` says again what was said before"))) }
}

/// False if there is a value already.
fn set_once<T>(place: &mut Option<T>, value: T) -> bool {
    let is_new = place.is_none();
    *place = Some(value);
    is_new
}

fn positive(option: &str, bytes: u64) -> Result<u64, Failure> {
    if bytes == 0 { Err(usage(format!("`{option} 0` leaves nothing"))) } else { Ok(bytes) }
}

fn between(option: &str, text: &str, least: u64, most: u64) -> Result<u64, Failure> {
    let number = text.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| match most {
        _ if most > 1 << 40 => usage(format!("`{option} {text}`: it must be a number, {least} at least")),
        _ => usage(format!("`{option} {text}`: it must be a number from {least} to {most}")),
    })
}

/// `1.5` as hundredths.
fn processors(option: &str, text: &str) -> Result<u64, Failure> {
    let hundredths = text.parse::<f64>().map(|number| (number * 100.0).round());
    match hundredths {
        Ok(hundredths) if (1.0..=1e7).contains(&hundredths) => Ok(hundredths as u64),
        _ => Err(usage(format!("`{option} {text}`: it must be a number, 0.01 at least"))),
    }
}

/// `0-3,8`; which there are the kernel knows.
fn list(option: &str, text: &str) -> Result<String, Failure> {
    let number = |text: &str| text.parse::<u32>().is_ok();
    let is_range = |part: &str| part.split_once('-').map_or(number(part), |(from, to)| number(from) && number(to));
    if text.split(',').all(is_range) {
        return Ok(text.to_owned());
    }
    Err(usage(format!("`{option} {text}`: write it as a list of numbers and ranges, as in 0-2,4")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArguments,
    }

    fn parsed(words: &str) -> Result<Limits, String> {
        let line = Line::try_parse_from(std::iter::once("x").chain(words.split_whitespace()));
        let line = line.map_err(|error| error.to_string())?;
        limits(&line.limits).map_err(|failure| match failure {
            Failure::Usage(diagnostic) => diagnostic.message,
            Failure::Failed(_) => panic!("not the user's system"),
        })
    }

    #[test]
    fn both_spellings_are_the_same() {
        let flags = parsed(
            "-m 64m --memory-swap -1 -c 512 --cpu-period 50000 --cpu-quota 25000 --cpuset-cpus 0-1 --cpuset-mems 0",
        );
        let resource = parsed(
            "--resource memory=64m,memory-swap=-1,cpu-shares=512 \
             --resource cpu-period=50000,cpu-quota=25000,\"cpuset-cpus=0-1\",cpuset-mems=0",
        );
        assert_eq!(flags, resource);
        let expected = Limits {
            memory_bytes: Some(64 << 20),
            memory_swap_bytes: Some(u64::MAX),
            cpu_shares: Some(512),
            cpu_period_us: Some(50_000),
            cpu_quota_us: Some(25_000),
            cpuset_cpus: Some("0-1".into()),
            cpuset_mems: Some("0".into()),
            ..Limits::default()
        };
        assert_eq!(flags.unwrap(), expected);
    }

    #[test]
    fn nothing_asked_is_nothing_limited() {
        assert!(!parsed("").unwrap().ask_for_a_group());
        assert!(!parsed("--timeout 1s").unwrap().ask_for_a_group());
        assert!(parsed("--stats").unwrap().ask_for_a_group());
        assert!(parsed("--cgroup-parent /x").unwrap().ask_for_a_group());
    }

    #[test]
    fn processors_are_a_quota() {
        let limits = parsed("--cpus 1.5").unwrap();
        assert_eq!((limits.cpu_period_us, limits.cpu_quota_us), (Some(100_000), Some(150_000)));
        assert!(parsed("--cpus 1 --cpu-quota 5000").is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (words, part) in [
            ("--memory 0", "leaves nothing"),
            ("--memory much", "is not a size"),
            ("--memory-swap 1g", "give `--memory`, too"),
            ("--memory 2g --memory-swap 1g", "cannot be less"),
            ("--cpus 0", "0.01 at least"),
            ("--cpu-shares 1", "from 2 to 262144"),
            ("--cpu-quota 10", "1000 at least"),
            ("--cpuset-cpus 0;1", "as in 0-2,4"),
            ("--pids-limit many", "from 1 to"),
            ("--blkio-weight 5", "from 10 to 1000"),
            ("--resource memory", "NAME=VALUE"),
            ("--resource disk=1", "there is no `--resource disk`"),
            ("--memory 1g --resource memory=2g", "said before"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(part), "{words}: {error}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(timeout("90s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(timeout("1m30s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(timeout("250ms").ok(), Some(Duration::from_millis(250)));
        for wrong in ["", "0", "-1s", "5", "soon"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }
}
