//! Making room: what goes, in which order and why, and that no build is hurt by it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::image::Image;
use super::sandbox::{Ended, Sandbox};

fn text(ended: &Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    String::from_utf8(ended.stdout.clone()).unwrap()
}

/// Builds `FROM scratch` with a file of `bytes` of its own, under the name of the file.
fn build_with(sandbox: &Sandbox, name: &str, bytes: usize, args: &[&str]) {
    sandbox.write(name, &name.repeat(bytes / name.len()));
    sandbox.write("Dockerfile", &format!("FROM scratch\nCOPY {name} /\n"));
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let ended = sandbox.build("image.tar", &args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// Lets everything in the store have been used last at noon of this day; the store lies beside the
/// context.
fn used_on(sandbox: &Sandbox, day: &str) {
    sandbox.shell(&format!("find ../store -exec touch -h -d '{day} 12:00 UTC' {{}} +"));
}

fn steps(sandbox: &Sandbox) -> Vec<String> {
    let listed: Vec<Value> = serde_json::from_str(&text(&sandbox.wythe(&["cache", "ls", "--json"]))).unwrap();
    let mut steps: Vec<_> = listed.iter().map(|step| step["step"].as_str().unwrap().to_owned()).collect();
    steps.sort();
    steps
}

fn du(sandbox: &Sandbox, args: &[&str]) -> Value {
    let args = [&["cache", "du", "--format", "json"], args].concat();
    serde_json::from_str(&text(&sandbox.wythe(&args))).unwrap()
}

/// What goes is what was not used for so long, and the dry run says the same without doing it.
#[test]
fn what_is_old_goes() {
    let sandbox = Sandbox::new();
    build_with(&sandbox, "old", 3_000, &[]);
    used_on(&sandbox, "2020-05-05");
    build_with(&sandbox, "new", 3_000, &[]);
    let told = text(&sandbox.wythe(&["cache", "prune", "--older-than", "52w", "--dry-run"]));
    let lines: Vec<_> = told.lines().filter(|line| line.contains("COPY")).collect();
    assert_eq!(lines.len(), 1, "{told}");
    assert!(lines[0].contains("COPY old /") && lines[0].contains("unused for 52w"), "{told}");
    assert_eq!(steps(&sandbox), ["COPY new /", "COPY old /"]);

    let done = text(&sandbox.wythe(&["cache", "prune", "--older-than", "52w"]));
    // What is left is known to a few bytes only, which may be the last digit's.
    let goes = |line: &str| line.rsplit_once(", ").unwrap().0.replace("removed", "would go");
    assert_eq!(goes(&done), goes(told.lines().last().unwrap()));
    assert_eq!(steps(&sandbox), ["COPY new /"]);
    // Beside its step there is the image's config.
    assert_eq!(du(&sandbox, &["--filter", "type!=build.record"])["items"].as_array().unwrap().len(), 2);
}

/// The longest unused first, and no more than is needed.
#[test]
fn a_limit_takes_the_longest_unused_only() {
    let sandbox = Sandbox::new();
    for (name, day) in [("third", "2020-03-03"), ("second", "2020-02-02"), ("first", "2020-01-01")] {
        build_with(&sandbox, name, 100_000, &[]);
        sandbox.shell(&format!("find ../store -newermt 2021-01-01 -exec touch -h -d '{day} 12:00 UTC' {{}} +"));
    }
    let told = text(&sandbox.wythe(&["cache", "prune", "--max-used-space", "250kB", "-v"]));
    assert!(told.contains("COPY first /") && told.contains("store too large by"), "{told}");
    assert_eq!(steps(&sandbox), ["COPY second /", "COPY third /"]);
    // What is reserved stays, whatever the limit is.
    text(&sandbox.wythe(&["cache", "prune", "--max-used-space", "1kB", "--reserved-space", "150kB"]));
    assert_eq!(steps(&sandbox), ["COPY third /"]);
    text(&sandbox.wythe(&["cache", "prune", "--min-free-space", "1B"]));
    assert_eq!(steps(&sandbox), ["COPY third /"]);
    text(&sandbox.wythe(&["cache", "prune", "--min-free-space", "1000TB"]));
    assert!(steps(&sandbox).is_empty());
}

/// A cache mount goes by its kind and nothing else with it; `du` says what each kind takes.
#[test]
fn kinds_are_told_apart() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c head -c 50000 /dev/zero > /c/f\n");
    let ended = sandbox.build("image.tar", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mounts = du(&sandbox, &["--filter", "type=exec.cachemount"]);
    assert_eq!(mounts["items"].as_array().unwrap().len(), 1);
    assert_eq!(mounts["items"][0]["sizeBytes"], 50_000);
    let told = text(&sandbox.wythe(&["cache", "prune", "--filter", "type=exec.cachemount", "-v"]));
    assert!(told.contains("cache mount /c") && told.contains("1 cache mount removed: 50.0 kB"), "{told}");
    assert_eq!(steps(&sandbox).len(), 1);
    assert!(du(&sandbox, &["--filter", "type=exec.cachemount"])["items"].as_array().unwrap().is_empty());
    // The build finds it gone and makes it anew.
    let ended = sandbox.build("image.tar", &["--no-cache".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(du(&sandbox, &["--filter", "mutable"])["items"][0]["sizeBytes"], 50_000);
}

/// What `du` adds up is what lies on the disk, and what it says could go goes.
#[test]
fn usage_is_what_is_there() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox\nRUN head -c 70000 /dev/zero > /f\nRUN --mount=type=cache,target=/c head -c 5000 /dev/zero > /c/f\n",
    );
    let ended = sandbox.build("image.tar", &["-t".into(), "kept".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    build_with(&sandbox, "alone", 20_000, &[]);
    let usage = du(&sandbox, &[]);
    let items = usage["items"].as_array().unwrap();
    let sum = |field: &str| items.iter().map(|item| item[field].as_u64().unwrap()).sum::<u64>();
    let total = usage["totalBytes"].as_u64().unwrap();
    assert_eq!(
        sum("sizeBytes") + usage["imagesBytes"].as_u64().unwrap() + usage["otherBytes"].as_u64().unwrap(),
        total
    );
    let on_disk: u64 = walkdir::WalkDir::new(sandbox.path("store"))
        .into_iter()
        .map(|entry| entry.unwrap().metadata().unwrap())
        .filter(|metadata| metadata.is_file())
        .map(|metadata| metadata.len())
        .sum();
    // Locks, descriptions of layers, `version` and `usage` are not counted.
    assert!(total <= on_disk && on_disk < total + 4_000, "{total} of {on_disk}");
    let (could_go, told) = (sum("reclaimableBytes"), text(&sandbox.wythe(&["cache", "prune", "--all"])));
    assert!((20_000 + 5_000..30_000).contains(&could_go), "{could_go}");
    assert!(told.contains(&format!("{:.1} kB", could_go as f64 / 1000.0)), "{could_go}: {told}");
    let left = du(&sandbox, &[]);
    assert!(left["items"].as_array().unwrap().is_empty(), "{left}");
    assert!(left["totalBytes"].as_u64().unwrap() <= total - could_go, "{left}");
}

/// A build that makes the store too large has room made behind it; nothing is counted where nothing was
/// added.
#[test]
fn a_build_keeps_the_store_below_its_cap() {
    let sandbox = Sandbox::new();
    let capped = |name: &str| {
        sandbox.write(name, &name.repeat(100_000 / name.len()));
        sandbox.write("Dockerfile", &format!("FROM scratch\nCOPY {name} /\n"));
        let args = sandbox.build_args("image.tar", &[]);
        let output = sandbox.command(&args).env("WYTHE_STORE_CAP", "150kB").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // Waits for the lock of who collects.
    let wait = || text(&sandbox.wythe(&["cache", "gc", "--cap", "none"]));
    capped("first");
    wait();
    assert_eq!(steps(&sandbox), ["COPY first /"]);
    used_on(&sandbox, "2020-01-01");
    capped("second");
    wait();
    assert_eq!(steps(&sandbox), ["COPY second /"]);
    let before = fs::metadata(sandbox.path("store/usage")).unwrap().modified().unwrap();
    capped("second");
    assert_eq!(fs::metadata(sandbox.path("store/usage")).unwrap().modified().unwrap(), before);
    for (cap, wrong) in [("12parsecs", "12parsecs"), ("0%", "0%"), ("101%", "101%")] {
        let args = sandbox.build_args("image.tar", &[]);
        let output = sandbox.command(&args).env("WYTHE_STORE_CAP", cap).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(wrong));
    }
}

/// Builds go on beside prunes of everything, and make what they make alone.
#[test]
fn builds_live_beside_prunes() {
    const ROUNDS: usize = 6;
    let sandbox = Sandbox::new();
    sandbox.write("f", "f");
    sandbox.write(
        "Dockerfile",
        "FROM busybox AS one\nRUN --mount=type=cache,target=/c date >> /c/f; echo 1 > /one\nRUN test -e /one && touch -d @1 /two\n\
         FROM busybox\nCOPY f /f\nCOPY --from=one /one /two /\nRUN cat /one /two /f > /all\n",
    );
    let build = |name: String| {
        let ended = sandbox.build(&name, &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        Image::read(&fs::read(sandbox.path(&name)).unwrap()).files
    };
    let alone = build("alone.tar".into());
    let contents =
        |files: &std::collections::BTreeMap<String, String>| ["one", "two", "f", "all"].map(|name| files[name].clone());
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..2)
            .map(|builder| {
                scope
                    .spawn(move || (0..ROUNDS).map(|round| build(format!("{builder}.{round}.tar"))).collect::<Vec<_>>())
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                text(&sandbox.wythe(&["cache", "prune", "--all"]));
            }
        });
        let made: Vec<_> = builders.into_iter().map(|builder| builder.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        for files in made.into_iter().flat_map(Result::unwrap) {
            assert_eq!(contents(&files), contents(&alone));
        }
    });
    text(&sandbox.wythe(&["cache", "prune", "--all"]));
    let left: BTreeSet<_> =
        fs::read_dir(sandbox.path("store/layers")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}
