//! The rows: what is built, who plays, and what the target is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixture::{self, Fixture};
use crate::player::{self, Player};
use crate::{Result, Sample};

pub struct Row {
    pub name: &'static str,
    pub target: Target,
    pub players: &'static [Player],
    /// Takes a few seconds at most.
    pub is_cheap: bool,
    /// Measures once. Round 0 only warms up.
    pub once: fn(&Fixture, Player, usize) -> Result<Sample>,
}

#[derive(Clone, Copy)]
pub enum Target {
    /// Of wall time.
    Within(Duration),
    /// Of the floor's wall time.
    TimesFloor(f64),
}

use Player::{Buildah, Floor, Runc, User, Wythe};
use Target::{TimesFloor, Within};

const fn ms(count: u64) -> Target {
    Within(Duration::from_millis(count))
}

pub const ROWS: &[Row] = &[
    Row {
        name: "trivial build, to an OCI tar",
        target: ms(15),
        players: &[Wythe, Buildah],
        is_cheap: true,
        once: trivial,
    },
    Row { name: "20 cached steps", target: ms(5), players: &[Wythe, Buildah], is_cheap: true, once: cached },
    Row {
        name: "20 cached steps, to an OCI tar",
        target: ms(15),
        players: &[Wythe, Buildah],
        is_cheap: true,
        once: cached_to_tar,
    },
    Row {
        name: "a build with a RUN by a user, beyond root's",
        target: ms(10),
        players: &[User],
        is_cheap: true,
        once: |fixture, _, _| beyond_root(fixture, &trivial_context(fixture)?, &["--no-cache"]),
    },
    Row {
        name: "20 cached steps by a user, beyond root's",
        target: ms(1),
        players: &[User],
        is_cheap: true,
        once: |fixture, _, _| beyond_root(fixture, &twenty_steps(fixture)?, &[]),
    },
    Row {
        name: "a cached step, of 100",
        target: Within(Duration::from_micros(20)),
        players: &[Wythe],
        is_cheap: true,
        once: |fixture, _, _| cached_step(fixture, 100),
    },
    Row {
        name: "a cached step, of 300",
        target: Within(Duration::from_micros(20)),
        players: &[Wythe],
        is_cheap: true,
        once: |fixture, _, _| cached_step(fixture, 300),
    },
    Row {
        name: "cached COPY of 1,000 files",
        target: TimesFloor(1.3),
        players: &[Wythe, Buildah, Floor],
        is_cheap: false,
        once: |fixture, player, round| cached_copy(fixture, player, round, 1_000),
    },
    Row {
        name: "cached COPY of 10,000 files",
        target: TimesFloor(1.3),
        players: &[Wythe, Buildah, Floor],
        is_cheap: true,
        once: |fixture, player, round| cached_copy(fixture, player, round, 10_000),
    },
    Row {
        name: "cached COPY of 100,000 files",
        target: TimesFloor(1.3),
        players: &[Wythe, Floor],
        is_cheap: false,
        once: |fixture, player, round| cached_copy(fixture, player, round, 100_000),
    },
    Row {
        name: "a RUN that does nothing",
        target: Within(Duration::from_micros(2500)),
        players: &[Wythe, Runc, Buildah],
        is_cheap: true,
        once: |fixture, player, _| idle_run(fixture, player, "localhost/busybox"),
    },
    Row {
        name: "the same by a user",
        target: Within(Duration::from_micros(3000)),
        players: &[User],
        is_cheap: true,
        once: |fixture, player, _| idle_run(fixture, player, "localhost/busybox"),
    },
    Row {
        name: "the same over a base of 130 MB",
        target: Within(Duration::from_micros(2500)),
        players: &[Wythe],
        is_cheap: false,
        once: |fixture, player, _| idle_run(fixture, player, large_base(fixture, player)?),
    },
    Row {
        name: "COPY of 20,000 files, 500 MB, cold",
        target: TimesFloor(1.3),
        players: &[Wythe, Buildah, Floor],
        is_cheap: false,
        once: copy_cold,
    },
    Row {
        name: "the same, one file changed",
        // The tar of the layer is hashed, whatever changed in it.
        target: TimesFloor(1.3),
        players: &[Wythe, Buildah, Floor],
        is_cheap: false,
        once: copy_changed,
    },
    Row {
        name: "RUN writes 1 GiB, to a gzip OCI tar",
        // 1.8 times as fast as one core that does the same.
        target: TimesFloor(1.0 / 1.8),
        players: &[Wythe, Buildah, Floor],
        is_cheap: false,
        once: big_layer,
    },
    Row {
        name: "the layer of 50,000 files made by a RUN",
        target: TimesFloor(1.5),
        players: &[Wythe, Floor],
        is_cheap: false,
        once: many_files,
    },
    Row {
        name: "pull and unpack 200 MB",
        target: TimesFloor(1.3),
        players: &[Wythe, Buildah, Floor],
        is_cheap: false,
        once: pull,
    },
    Row { name: "4 stages of sleep 2", target: ms(2100), players: &[Wythe, Buildah], is_cheap: true, once: stages },
];

// ---- builds

fn build(fixture: &Fixture, player: Player, context: &Path, flags: &[&str]) -> Result<Sample> {
    fixture.know_base(player)?;
    let mut command = match player {
        Buildah => player::buildah_build(fixture),
        player => player::wythe_build(fixture, player),
    };
    let name = context.file_name().unwrap_or_default().to_string_lossy().into_owned();
    command.args(["-t", &format!("bench-{name}")]).args(flags).arg(context);
    Sample::of(&mut command)
}

/// A build whose image ends up in a fresh OCI tar.
fn build_to_tar(fixture: &Fixture, player: Player, context: &Path, flags: &[&str]) -> Result<Sample> {
    let tar = fixture.dir.join("stores/image.tar");
    let _ = fs::remove_file(&tar);
    let built = match player {
        Buildah => {
            let built = build(fixture, player, context, flags)?;
            let name = context.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut push = player::buildah(fixture);
            push.args(["push", "--quiet", &format!("bench-{name}"), &format!("oci-archive:{}", tar.display())]);
            let pushed = Sample::of(&mut push)?;
            Sample {
                wall: built.wall + pushed.wall,
                cpu: built.cpu + pushed.cpu,
                peak_bytes: built.peak_bytes.max(pushed.peak_bytes),
            }
        }
        _ => {
            let output = format!("type=oci,dest={}", tar.display());
            build(fixture, player, context, &[flags, &["-o", &output]].concat())?
        }
    };
    if fs::metadata(&tar).is_ok_and(|metadata| metadata.len() > 0) { Ok(built) } else { Err("there is no tar".into()) }
}

fn trivial_context(fixture: &Fixture) -> Result<PathBuf> {
    fixture.steps("trivial", "COPY file /file\nRUN cat /file > /made\nCMD [\"cat\", \"/made\"]\n")
}

fn trivial(fixture: &Fixture, player: Player, _: usize) -> Result<Sample> {
    build_to_tar(fixture, player, &trivial_context(fixture)?, &["--no-cache"])
}

/// What the same build takes longer when an ordinary user does it.
fn beyond_root(fixture: &Fixture, context: &Path, flags: &[&str]) -> Result<Sample> {
    let by_root = build(fixture, Wythe, context, flags)?;
    Ok(build(fixture, User, context, flags)?.beyond(by_root))
}

fn twenty_steps(fixture: &Fixture) -> Result<PathBuf> {
    let mut steps = String::new();
    for number in 0..5 {
        steps += &format!("COPY file /copied/{number}\nRUN echo {number} > /made-{number}\n");
        steps += &format!("ENV NAME{number}={number}\nRUN echo $NAME{number} > /made-too-{number}\n");
    }
    fixture.steps("cached", &steps)
}

fn cached(fixture: &Fixture, player: Player, _: usize) -> Result<Sample> {
    build(fixture, player, &twenty_steps(fixture)?, &[])
}

fn cached_to_tar(fixture: &Fixture, player: Player, _: usize) -> Result<Sample> {
    build_to_tar(fixture, player, &twenty_steps(fixture)?, &[])
}

fn cached_step(fixture: &Fixture, count: u32) -> Result<Sample> {
    const FEW: u32 = 10;
    let steps = |count: u32| (0..count).map(|number| format!("RUN : {number}\n")).collect::<String>();
    let few = build(fixture, Wythe, &fixture.steps("few", &steps(FEW))?, &[])?;
    let many = build(fixture, Wythe, &fixture.steps(&format!("steps-{count}"), &steps(count))?, &[])?;
    Ok(many.beyond(few).per(count - FEW))
}

/// A base of 8,000 files, in the player's store.
fn large_base(fixture: &Fixture, player: Player) -> Result<&'static str> {
    const NAME: &str = "localhost/large";
    let context = fixture.context("large-base", |dir| {
        fixture::write(&dir.join("Dockerfile"), b"FROM localhost/busybox\nCOPY tree /tree\n")?;
        fixture::make_dir(&dir.join("tree"))?;
        fixture::files(&dir.join("tree"), 8_000, 16 << 10)
    })?;
    build(fixture, player, &context, &["-t", NAME])?;
    Ok(NAME)
}

fn idle_run(fixture: &Fixture, player: Player, base: &str) -> Result<Sample> {
    const EXTRA: u32 = 50;
    if player == Runc {
        let bundle = fixture.dir.join("bundle");
        if !bundle.exists() {
            fixture::run(
                Command::new("umoci")
                    .args(["unpack", "--image", &format!("{}:latest", fixture.base().display())])
                    .arg(&bundle),
            )?;
            let config = bundle.join("config.json");
            let text = fs::read_to_string(&config).map_err(|error| format!("no bundle: {error}"))?;
            let mut spec: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            spec["process"]["args"] = serde_json::json!(["true"]);
            spec["process"]["terminal"] = false.into();
            // What takes CAP_SYS_RESOURCE, which not every root has.
            spec["process"]["rlimits"] = serde_json::json!([]);
            fixture::write(&config, spec.to_string().as_bytes())?;
        }
        let id = format!("wythe-bench-{}", std::process::id());
        return Sample::of(Command::new("runc").args(["run", "--bundle"]).arg(&bundle).arg(&id));
    }
    let runs = |name: &str, count: u32| {
        let steps = (0..count).map(|number| format!("RUN : {number}\n")).collect::<String>();
        let context = fixture.context(name, |_| Ok(()))?;
        fixture::write(&context.join("Dockerfile"), format!("FROM {base}\n{steps}").as_bytes())?;
        build(fixture, player, &context, &["--no-cache"])
    };
    Ok(runs("many", 1 + EXTRA)?.beyond(runs("one", 1)?).per(EXTRA))
}

fn stages(fixture: &Fixture, player: Player, round: usize) -> Result<Sample> {
    let context = fixture.context("stages", |_| Ok(()))?;
    let mut text = String::new();
    for number in 0..4 {
        text += &format!("FROM localhost/busybox AS stage{number}\nRUN sleep 2 && echo {round} > /made{number}\n");
    }
    text += "FROM scratch\n";
    for number in 0..4 {
        text += &format!("COPY --from=stage{number} /made{number} /\n");
    }
    fixture::write(&context.join("Dockerfile"), text.as_bytes())?;
    build(fixture, player, &context, &["--jobs", "4"])
}

// ---- COPY

/// A context of many small files that a COPY takes whole.
fn tree(fixture: &Fixture, name: &str, count: usize, bytes: usize) -> Result<PathBuf> {
    fixture.context(name, |dir| {
        fixture::write(&dir.join("Dockerfile"), b"FROM scratch\nCOPY tree /tree\n")?;
        fixture::make_dir(&dir.join("tree"))?;
        fixture::files(&dir.join("tree"), count, bytes)
    })
}

fn cached_copy(fixture: &Fixture, player: Player, round: usize, count: usize) -> Result<Sample> {
    let context = tree(fixture, &format!("tree-{count}"), count, 64)?;
    if round == 0 && player == Wythe {
        // A file that changed just now could change again without a sign of it: its digest is not kept.
        std::thread::sleep(Duration::from_secs(4));
    }
    match player {
        Floor => Sample::of(&mut player::floor("stat", &context.join("tree"))),
        _ => build(fixture, player, &context, &[]),
    }
}

fn large_tree(fixture: &Fixture) -> Result<PathBuf> {
    tree(fixture, "tree", 20_000, 25_000)
}

fn copy_cold(fixture: &Fixture, player: Player, _: usize) -> Result<Sample> {
    let context = large_tree(fixture)?;
    if player == Floor {
        return Sample::of(&mut player::floor("hash", &context.join("tree")));
    }
    fixture.renew_store(player)?;
    build(fixture, player, &context, &[])
}

fn copy_changed(fixture: &Fixture, player: Player, round: usize) -> Result<Sample> {
    let context = large_tree(fixture)?;
    if player == Floor {
        return Sample::of(&mut player::floor("hash", &context.join("tree")));
    }
    if round == 0 {
        build(fixture, player, &context, &[])?;
    }
    let changed = format!("of {} in round {round}\n", player.name());
    fixture::write(&context.join("tree/0000/000001"), changed.as_bytes())?;
    build(fixture, player, &context, &[])
}

// ---- large layers

fn big_layer(fixture: &Fixture, player: Player, round: usize) -> Result<Sample> {
    // Sixteen times a block, each far from the last for a window of 32 KiB.
    let context = fixture.context("big", |dir| fixture::half_noise(&dir.join("block"), 64 << 20))?;
    if player == Floor {
        return Sample::of(&mut player::floor("gzip", &context.join("block")));
    }
    let text = format!(
        "FROM localhost/busybox\nRUN --mount=type=bind,source=block,target=/block \
         for i in $(seq 16); do cat /block; done > /big; echo {} {round} > /round\n",
        player.name()
    );
    fixture::write(&context.join("Dockerfile"), text.as_bytes())?;
    build_to_tar(fixture, player, &context, &[])
}

/// From the end of the command on: the last file it makes says when that was. CPU time and memory are of the whole build.
fn many_files(fixture: &Fixture, player: Player, round: usize) -> Result<Sample> {
    if player == Floor {
        let context = fixture.context("made", |dir| fixture::files(dir, 50_000, 4096))?;
        return Sample::of(&mut player::floor("hash", &context));
    }
    // All in the shell itself, without a process for each file.
    let script = "cd /out; for d in $(seq 1000); do mkdir $d; \
                  for f in $(seq 50); do printf %4096d $f > $d/$f; done; done";
    let context = fixture.context("made-by-run", |_| Ok(()))?;
    let text = format!("FROM localhost/busybox\nRUN mkdir /out; echo {round}; {script}; echo {round} > /ended\n");
    fixture::write(&context.join("Dockerfile"), text.as_bytes())?;
    let built = build(fixture, player, &context, &[])?;
    let now = std::time::SystemTime::now();
    let layers = fs::read_dir(player.store(fixture).join("layers")).map_err(|error| error.to_string())?;
    let ended = layers.flatten().filter_map(|layer| fs::metadata(layer.path().join("fs/ended")).ok()?.modified().ok());
    let ended = ended.max().ok_or("the layer has no file `ended`")?;
    let wall = now.duration_since(ended).map_err(|_| "the layer is of another time")?;
    Ok(Sample { wall, ..built })
}

// ---- registry

fn is_gzip(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 2];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == [0x1f, 0x8b]
}

/// The floor is the slowest of what has to be done: to download, to hash, to decompress, to unpack.
fn pull(fixture: &Fixture, player: Player, round: usize) -> Result<Sample> {
    let address = fixture.registry()?.to_owned();
    let work = fixture.dir.join("work");
    if !work.exists() {
        fixture::make_dir(&work.join("unpacked"))?;
        let context = fixture.context("image", |dir| {
            fixture::write(&dir.join("Dockerfile"), b"FROM scratch\nCOPY tree /tree\n")?;
            for part in 0..4 {
                let parts = dir.join(format!("tree/{part}"));
                fixture::make_dir(&parts)?;
                for number in 0..400 {
                    fixture::half_noise(&parts.join(number.to_string()), 128 << 10)?;
                }
            }
            Ok(())
        })?;
        let mut command = player::wythe_build(fixture, Wythe);
        command.args(["-t", &format!("{address}/image"), "--push"]).arg(&context);
        fixture::run(&mut command)?;
        let blobs = Wythe.store(fixture).join("blobs/sha256");
        let largest = fs::read_dir(&blobs)
            .map_err(|error| format!("no blobs: {error}"))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            // The layer is there as it was made, too.
            .filter(|path| is_gzip(path))
            .max_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()))
            .ok_or("no blobs")?;
        fs::copy(&largest, work.join("layer.tar.gz")).map_err(|error| error.to_string())?;
        let tar = fixture::run(
            Command::new("sh")
                .args(["-c", "gunzip -c < \"$0\" > \"$1\""])
                .args([work.join("layer.tar.gz"), work.join("layer.tar")]),
        );
        tar?;
    }
    match player {
        Floor => {
            let blob = work.join("layer.tar.gz");
            let mut unpack = Command::new("tar");
            let into = work.join("unpacked").join(round.to_string());
            fixture::make_dir(&into)?;
            unpack.arg("-xf").arg(work.join("layer.tar")).arg("-C").arg(into);
            let parts = [
                Sample::of(&mut player::floor("sha256", &blob))?,
                Sample::of(&mut player::floor("gunzip", &blob))?,
                Sample::of(&mut unpack)?,
            ];
            parts.into_iter().max_by_key(|part| part.wall).ok_or_else(|| "no parts".into())
        }
        Buildah => {
            fixture.renew_store(player)?;
            let mut command = player::buildah(fixture);
            command.args(["pull", "--quiet", "--tls-verify=false", &format!("{address}/image")]);
            Sample::of(&mut command)
        }
        _ => {
            fixture.renew_store(player)?;
            // A step that needs its files.
            let context = fixture.context("on-image", |_| Ok(()))?;
            let text = format!("FROM {address}/image\nWORKDIR /made-{round}\n");
            fixture::write(&context.join("Dockerfile"), text.as_bytes())?;
            build(fixture, player, &context, &[])
        }
    }
}
