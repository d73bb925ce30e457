//! How many instructions the pure parts of a cached build take, counted by callgrind: the same on a busy machine as
//! on a quiet one, so that a limit can be a narrow one.
//!
//! ```text
//! cargo bench --bench counts                 every job, with its limit
//! ```
//!
//! Each job runs in a process of its own, once with few and once with many repetitions: the difference is what the
//! repetitions take, without what a process takes to start.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::{Command, ExitCode, Stdio};

use wythe::cache::Facts;
use wythe::diag::Source;
use wythe::dockerfile::{self, Dockerfile};
use wythe::image::{ImageConfig, Platform};
use wythe::plan::{self, Base, Network, Options};

type Result<T, E = String> = std::result::Result<T, E>;

struct Job {
    name: &'static str,
    /// Of one unit.
    limit: u64,
    /// How many units one repetition does.
    units: u64,
    run: fn() -> Result<()>,
}

const STEPS: u64 = 300;

const JOBS: &[Job] = &[
    Job { name: "parse, a line", limit: 20_000, units: STEPS, run: parse },
    Job { name: "parse and plan, a step", limit: 90_000, units: STEPS, run: parse_and_plan },
    Job { name: "key of a RUN", limit: 30_000, units: 1, run: key },
];

const FEW: u64 = 2;
const MANY: u64 = 22;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.as_slice() {
        [] => count_all(),
        [name, times] => repeat(name, times).map(|()| true),
        _ => Err("counts takes no arguments".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("counts: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every job is within its limit.
fn count_all() -> Result<bool> {
    println!("| instructions           |   count |   limit |\n| ---------------------- | ------: | ------: |");
    let mut is_within = true;
    for job in JOBS {
        let count = (instructions(job, MANY)? - instructions(job, FEW)?) / (MANY - FEW) / job.units;
        println!("| {:22} | {count:7} | {:7} |", job.name, job.limit);
        if count > job.limit {
            eprintln!("{}: {count} instructions are more than {}", job.name, job.limit);
            is_within = false;
        }
    }
    Ok(is_within)
}

/// What a process takes that does the job `times` times.
fn instructions(job: &Job, times: u64) -> Result<u64> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find itself: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args([job.name, &times.to_string()])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run valgrind ({error}): install it"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    match (output.status.success(), collected.and_then(|(_, count)| count.trim().parse().ok())) {
        (true, Some(count)) => Ok(count),
        _ => Err(format!("valgrind counted nothing for `{}`: {text}", job.name)),
    }
}

fn repeat(name: &str, times: &str) -> Result<()> {
    let job = JOBS.iter().find(|job| job.name == name).ok_or_else(|| format!("no job is named `{name}`"))?;
    let times: u64 = times.parse().map_err(|_| "a number of times is wanted".to_owned())?;
    (0..times).try_for_each(|_| (job.run)())
}

fn parsed() -> Result<Dockerfile> {
    let mut text = "FROM base\nARG NAME\nARG DIR=/src\n".to_owned();
    for number in 0..STEPS / 3 {
        text += &format!(
            "ENV NAME{number}=${{NAME:-value}}-{number}\nRUN make -C \"$DIR\" part-{number} && echo $NAME{number} > /made\n\
             COPY --chown=1:2 a-{number} b-{number} /srv/${{NAME{number}}}/\n"
        );
    }
    dockerfile::parse(Source::new("Dockerfile", text)).map_err(|faults| format!("{faults:?}"))
}

fn parse() -> Result<()> {
    black_box(parsed()?);
    Ok(())
}

fn parse_and_plan() -> Result<()> {
    let dockerfile = parsed()?;
    let platform: Platform = "linux/amd64".parse().map_err(|error| format!("{error:?}"))?;
    let options = Options {
        target: None,
        plans_every_stage: false,
        build_args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: platform.clone(),
        platform_is_explicit: false,
        shows_platform: false,
        build_platform: platform,
        named_contexts: BTreeSet::new(),
        network: Network::Default,
        allows_insecure: false,
        allows_host_network: false,
    };
    let wanted = plan::bases(&dockerfile, &options, &BTreeMap::new()).map_err(|faults| format!("{faults:?}"))?;
    let base = |wanted: plan::Wanted| (wanted.key, Base::Image(Box::<ImageConfig>::default()));
    let bases = wanted.into_iter().map(base).collect();
    black_box(plan::plan(&dockerfile, &options, &bases).map_err(|faults| format!("{faults:?}"))?);
    Ok(())
}

fn key() -> Result<()> {
    let parent = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let mut facts = Facts::new(black_box(parent), "RUN [\"/bin/sh\",\"-c\",\"make -j4 all install\"]");
    for (name, value) in [("env PATH", "/usr/local/sbin:/usr/local/bin"), ("arg VERSION", "1.2.3"), ("user", "")] {
        facts.add(name, value);
    }
    black_box(facts.key());
    Ok(())
}
