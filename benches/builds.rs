//! How long builds take, also by buildah where it is installed. `make bench` prints a table and
//! writes it to `target/bench/table.md`. Nothing fails for being slow: the table says what the
//! limits are.
//!
//! What is measured, each time with a whole process from start to end:
//!
//! - *a RUN that does nothing*: a build of 51 distinct `RUN :` without the cache, less one of a
//!   single `RUN :`, divided by 50.
//! - *a cached build of 20 steps*: COPY, RUN and metadata, everything in the cache.
//!
//! Builders take turns in every round, so that a busy moment of the machine meets all of them.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;
const EXTRA_RUNS: u32 = 50;

/// A name, its limit, and how to measure it once.
struct Measure {
    name: &'static str,
    limit: Duration,
    once: fn(&Builder, &Bench) -> Result<Duration, String>,
}

const MEASURES: [Measure; 2] = [
    Measure { name: "a RUN that does nothing", limit: Duration::from_millis(3), once: idle_run },
    Measure { name: "a cached build of 20 steps", limit: Duration::from_millis(10), once: cached_build },
];

fn idle_run(builder: &Builder, bench: &Bench) -> Result<Duration, String> {
    let one = builder.build(bench, "one", Cache::Off)?;
    let many = builder.build(bench, "many", Cache::Off)?;
    Ok(many.saturating_sub(one) / EXTRA_RUNS)
}

fn cached_build(builder: &Builder, bench: &Bench) -> Result<Duration, String> {
    builder.build(bench, "cached", Cache::On)
}

#[derive(Clone, Copy, PartialEq)]
enum Cache {
    On,
    Off,
}

/// The directory where everything is: contexts, the base image, the stores of the builders.
struct Bench {
    dir: PathBuf,
}

enum Kind {
    Wythe,
    Buildah,
}

struct Builder {
    name: String,
    kind: Kind,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let bench = Bench::prepare()?;
    let wythe = Builder { name: "wythe".into(), kind: Kind::Wythe };
    let mut builders = vec![wythe];
    builders.extend(buildah());

    let mut notes = Vec::new();
    builders.retain(|builder| match builder.warm_up(&bench) {
        Ok(()) => true,
        Err(why) => {
            notes.push(format!("{} cannot build here: {why}", builder.name));
            false
        }
    });
    if !builders.iter().any(|builder| matches!(builder.kind, Kind::Wythe)) {
        return Err(notes.join("\n"));
    }

    // [measure][builder][round]
    let mut times = vec![vec![Vec::new(); builders.len()]; MEASURES.len()];
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for (measure, times) in MEASURES.iter().zip(&mut times) {
            for (builder, times) in builders.iter().zip(times) {
                times.push((measure.once)(builder, &bench)?);
            }
        }
    }
    let table = table(&builders, &times, &notes);
    print!("{table}");
    let path = bench.dir.join("table.md");
    fs::write(&path, table).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    bench.clean();
    Ok(())
}

fn table(builders: &[Builder], times: &[Vec<Vec<Duration>>], notes: &[String]) -> String {
    let mut rows = vec![vec!["measure".to_owned(), "wythe".into(), "range".into(), "limit".into()]];
    for builder in &builders[1..] {
        rows[0].extend([builder.name.clone(), "ratio".into()]);
    }
    for (measure, times) in MEASURES.iter().zip(times) {
        let own = median(&times[0]);
        let (least, most) = (times[0].iter().min(), times[0].iter().max());
        let range = format!("{} to {}", show(*least.unwrap_or(&own)), show(*most.unwrap_or(&own)));
        let mut row = vec![measure.name.to_owned(), show(own), range, show(measure.limit)];
        for times in &times[1..] {
            let other = median(times);
            row.extend([show(other), format!("{:.1}", other.as_secs_f64() / own.as_secs_f64().max(1e-9))]);
        }
        rows.push(row);
    }
    let widths: Vec<_> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                text.push_str(&format!("| {} ", "-".repeat(*width)));
            }
            text.push_str("|\n");
        }
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.push_str(&format!("\nmedians of {ROUNDS} rounds, {processors} processors, Linux {}\n", kernel.trim()));
    for note in notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn show(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

fn buildah() -> Option<Builder> {
    let output = Command::new("buildah").arg("--version").output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(2).unwrap_or("").to_owned();
    Some(Builder { name: format!("buildah {version}").trim().into(), kind: Kind::Buildah })
}

impl Bench {
    /// Makes the base image and the contexts, with empty stores.
    fn prepare() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let bench = Self { dir: root.join("target/bench") };
        bench.clean();
        fs::create_dir_all(&bench.dir).map_err(|error| format!("cannot make {}: {error}", bench.dir.display()))?;
        run_to_end(Command::new("sh").arg(root.join("demo/base.sh")).arg(bench.dir.join("base")))?;

        let runs = |count: u32| (0..count).map(|number| format!("RUN : {number}\n")).collect::<String>();
        bench.context("one", &runs(1))?;
        bench.context("many", &runs(1 + EXTRA_RUNS))?;
        let mut cached = String::new();
        for number in 0..5 {
            cached += &format!("COPY file /copied/{number}\nRUN echo {number} > /made-{number}\n");
            cached += &format!("ENV NAME{number}={number}\nRUN echo $NAME{number} > /made-too-{number}\n");
        }
        bench.context("cached", &cached)?;
        Ok(bench)
    }

    fn context(&self, name: &str, steps: &str) -> Result<(), String> {
        let dir = self.dir.join(name);
        let written = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("Dockerfile"), format!("FROM localhost/busybox\n{steps}")))
            .and_then(|()| fs::write(dir.join("file"), "content\n"));
        written.map_err(|error| format!("cannot write {}: {error}", dir.display()))
    }

    fn store(&self, builder: &str) -> String {
        self.dir.join(builder).display().to_string()
    }

    /// Removes everything but the table.
    fn clean(&self) {
        // buildah mounts its own store over itself, as root, and leaves that.
        let mount = self.dir.join("buildah/root/overlay");
        while Command::new("umount").arg(&mount).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {}
        for name in ["base", "one", "many", "cached", "wythe", "buildah"] {
            let dir = self.dir.join(name);
            if dir.exists()
                && let Err(error) = fs::remove_dir_all(&dir)
            {
                eprintln!("cannot remove {}: {error}", dir.display());
            }
        }
    }
}

impl Builder {
    /// Makes the base known and fills the cache.
    fn warm_up(&self, bench: &Bench) -> Result<(), String> {
        if let Kind::Buildah = self.kind {
            let image = run_to_end(self.buildah(bench).arg("pull").arg(format!("oci:{}:latest", bench.store("base"))))?;
            let image = image.lines().last().unwrap_or_default().to_owned();
            run_to_end(self.buildah(bench).args(["tag", &image, "localhost/busybox"]))?;
        }
        for context in ["one", "cached"] {
            self.build(bench, context, Cache::On)?;
        }
        Ok(())
    }

    /// One build by a process of its own, and its time.
    fn build(&self, bench: &Bench, context: &str, cache: Cache) -> Result<Duration, String> {
        let mut command = match self.kind {
            Kind::Wythe => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_wythe"));
                let base = format!("localhost/busybox=oci-layout://{}", bench.store("base"));
                command.args(["--root", &bench.store("wythe"), "build", "--progress", "quiet"]);
                command.args(["--build-context", &base]);
                command
            }
            Kind::Buildah => {
                let mut command = self.buildah(bench);
                command.args(["build", "--layers", "--quiet"]);
                command
            }
        };
        command.args(["-t", &format!("bench-{context}")]);
        if cache == Cache::Off {
            command.arg("--no-cache");
        }
        command.arg(bench.dir.join(context));
        let start = Instant::now();
        run_to_end(&mut command)?;
        Ok(start.elapsed())
    }

    /// With a store of its own.
    fn buildah(&self, bench: &Bench) -> Command {
        let mut command = Command::new("buildah");
        let store = bench.store("buildah");
        command.args(["--root", &format!("{store}/root"), "--runroot", &format!("{store}/run")]);
        command
    }
}

/// What the command prints; if it fails, the end of what it complained of.
fn run_to_end(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<_> = stderr.lines().rev().take(3).collect();
    let last = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(format!("{} ended with {}: {last}", command.get_program().display(), output.status))
}
