//! What a build leaves to be looked at: `wythe history` and `wythe logs`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use wythe::journal::{Build, Builds, End, Ending, Head, KEPT};
use wythe::store::Store;

use super::sandbox::{Ended, Sandbox};

/// `wythe history --format json`, newest first.
fn history(sandbox: &Sandbox) -> Vec<Value> {
    let ended = sandbox.wythe(&["history", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_slice(&ended.stdout).unwrap()
}

fn logs(sandbox: &Sandbox, args: &[&str]) -> Ended {
    sandbox.wythe(&[&["logs"][..], args].concat())
}

fn text(ended: &Ended) -> &str {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    std::str::from_utf8(&ended.stdout).unwrap()
}

fn hint(ended: &Ended) -> &str {
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    ended.stderr.lines().find_map(|line| line.trim().strip_prefix("help: ")).unwrap_or(&ended.stderr)
}

/// The bytes are those that the step wrote, whatever they are, also without a last line feed.
#[test]
fn output_is_kept_byte_for_byte() {
    let sandbox = Sandbox::new();
    sandbox.write("bytes", "");
    let bytes: Vec<u8> = (0..=255).chain(*b"\r50%\r100%\n\nend").collect();
    fs::write(sandbox.context.join("bytes"), &bytes).unwrap();
    sandbox.write("Dockerfile", "FROM busybox\nCOPY bytes /\nRUN cat /bytes; cat /bytes >&2\nRUN echo second\n");
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(0));
    let ended = logs(&sandbox, &["^", "3"]);
    assert_eq!((ended.code, &ended.stdout), (Some(0), &[&bytes[..], &bytes].concat()));
    assert_eq!(text(&logs(&sandbox, &["4"])), "second\n", "one short number is a step of the latest build");
    assert_eq!(text(&logs(&sandbox, &["^", "echo second"])), "second\n");
}

/// A line has the time of its first byte.
#[test]
fn lines_have_the_time_they_began() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN printf 'one\\ntw'; sleep 0.5; printf 'o\\n'; echo three\n");
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(0));
    let ended = logs(&sandbox, &["--timestamps", "2"]);
    let times: Vec<(f64, &str)> = text(&ended)
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(at, text)| (at.parse().unwrap(), text))
        .collect();
    let [(one, "one"), (two, "two"), (three, "three")] = times[..] else { panic!("{times:?}") };
    assert!(one <= two && three >= two + 0.1, "{times:?}");
}

/// What `history` says of a build that ran, one that was cached, and one that failed.
#[test]
fn a_record_says_how_each_step_ended() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox AS base\nRUN echo x > /x\nFROM base AS top\nRUN echo y > /y\n");
    let build = |args: &[&str]| {
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        sandbox.build("image.tar", &args).code
    };
    assert_eq!(build(&["-t", "app:1", "--target", "top"]), Some(0));
    // To the store alone: an archive is something written, and shown as such.
    let mut args = sandbox.build_args("none", &["-t".into(), "app:2".into()]);
    args.retain(|arg| arg != "-o" && !arg.starts_with("type=oci,"));
    assert_eq!(sandbox.wythe(&args).code, Some(0));
    sandbox.write("Dockerfile", "FROM busybox AS base\nRUN echo x > /x\nRUN echo why; exit 7\n");
    assert_eq!(build(&[]), Some(1));

    let history = history(&sandbox);
    let of = |build: &Value, key: &str| build[key].clone();
    assert_eq!(history.iter().map(|build| of(build, "outcome")).collect::<Vec<_>>(), ["failed", "done", "done"]);
    assert_eq!(history.iter().map(|build| of(build, "cachedSteps")).collect::<Vec<_>>(), [2, 3, 1]);
    let [failed, cached, ran] = &history[..] else { panic!() };
    assert_eq!((&ran["names"], &ran["target"]), (&serde_json::json!(["app:1"]), &"top".into()));
    assert_eq!(ran["images"], cached["images"]);
    let step = &ran["steps"][1];
    assert_eq!((&step["title"], &step["outcome"]), (&"[base 2/2] RUN echo x > /x".into(), &"done".into()));
    assert_eq!((&step["exitCode"], &step["addedBytes"]), (&0.into(), &2.into()));
    assert!(step["memoryBytes"].as_u64().unwrap() > 0 && step["cpuMs"].is_u64(), "{step}");
    let step = &failed["steps"][2];
    assert_eq!((&step["outcome"], &step["exitCode"]), (&"failed".into(), &7.into()));
    assert!(failed["errors"][0].as_str().unwrap().contains("exit code 7"), "{failed}");

    // The build that was cached whole is one small file.
    let name = |build: &Value| {
        let id = build["id"].as_str().unwrap().to_owned();
        let mut entries = fs::read_dir(sandbox.path("store/builds")).unwrap().map(|entry| entry.unwrap().path());
        entries.find(|path| path.to_str().unwrap().ends_with(&id)).unwrap()
    };
    assert!(name(cached).is_file() && name(ran).is_dir());
    assert!(name(cached).metadata().unwrap().len() < 4096);
    assert!(!name(ran).join("events").exists());

    let table = sandbox.wythe(&["history", "-n", "2"]);
    let rows: Vec<_> = text(&table).lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!((rows[1][3], rows[2][3], rows[2].last()), ("failed", "done", Some(&"app:2")));
}

/// The error says how to see everything, and that works; so does each way to name a build or step.
#[test]
fn the_output_of_a_failure_is_found() {
    let sandbox = Sandbox::new();
    let lines = "seq 100 | sed 's/^/line /'";
    sandbox.write("Dockerfile", &format!("FROM busybox AS first\nRUN {lines}; exit 3\nFROM first AS last\n"));
    let ended = sandbox.build("image.tar", &["-t".into(), "app".into()]);
    assert_eq!(ended.code, Some(1));
    let command = ended.stderr.split('`').find(|piece| piece.starts_with("wythe logs ")).unwrap();
    let printed = sandbox.wythe(&command.split(' ').skip(1).collect::<Vec<_>>());
    let all: String = (1..=100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(text(&printed), all);

    let id = history(&sandbox)[0]["id"].as_str().unwrap().to_owned();
    for args in [
        &["--failed"][..],
        &[&id[..5], "2"],
        &["^0", "#2"],
        &["app", "2/2"],
        &["app:latest", "exit 3"],
        &[&id, "first", "--failed"],
    ] {
        assert_eq!(text(&logs(&sandbox, args)), all, "{args:?}");
    }
    let whole = logs(&sandbox, &[]);
    let whole = text(&whole);
    assert!(whole.starts_with("#1 [first 1/2] FROM busybox\n#1 CACHED\n\n#2 [first 2/2] RUN seq 100"), "{whole}");
    assert!(whole.contains("\nline 100\n#2 ERROR: "), "{whole}");

    assert_eq!(hint(&logs(&sandbox, &["ap"])), "did you mean `app`?");
    assert_eq!(hint(&logs(&sandbox, &[&id, "frist"])), "did you mean `first`?");
    assert_eq!(hint(&logs(&sandbox, &["^1"])), "`wythe history` lists what is there");
    let mut typo = id.clone().into_bytes();
    typo.swap(10, 11);
    typo[9] = b'x';
    assert_eq!(hint(&logs(&sandbox, &[std::str::from_utf8(&typo).unwrap()])), format!("did you mean `{id}`?"));
    assert_eq!(sandbox.build("image.tar", &["--target".into(), "first".into()]).code, Some(1));
    let several = logs(&sandbox, &[""]);
    assert_eq!(several.code, Some(1), "an empty name is no build's: {}", several.stderr);
}

/// What a killed build wrote is there, and what it is: while it runs, and after.
#[test]
fn a_killed_build_leaves_what_was_written() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo up > /file\nRUN echo started; sleep 30; echo finished\n");
    let mut child = sandbox.command(&sandbox.build_args("image.tar", &[])).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = stderr.by_ref().map(Result::unwrap).find(|line| line.starts_with("#3 ") && line.ends_with(" started"));
    assert!(said.is_some(), "the build ended before it was killed: {:?}", child.wait());
    // What is shown is written at once after.
    while !sandbox.wythe(&["logs", "3"]).stdout.ends_with(b"started\n") {
        std::thread::yield_now();
    }
    assert_eq!(history(&sandbox)[0]["outcome"], "running");
    child.kill().unwrap();
    child.wait().unwrap();
    let build = &history(&sandbox)[0];
    assert_eq!((&build["outcome"], &build["elapsedMs"]), (&"interrupted".into(), &Value::Null));
    assert_eq!(build["steps"][1]["outcome"], "done");
    assert_eq!((&build["steps"][2]["outcome"], &build["steps"][2]["exitCode"]), (&Value::Null, &Value::Null));
    assert_eq!(text(&logs(&sandbox, &["3"])), "started\n");
    assert!(text(&logs(&sandbox, &[])).ends_with("\nstarted\n#3 unfinished\n"));
}

#[test]
fn a_build_that_was_stopped_says_so() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo started; sleep 30\n");
    let mut child = sandbox.command(&sandbox.build_args("image.tar", &[])).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(stderr.by_ref().map(Result::unwrap).any(|line| line.ends_with(" started")));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert_eq!(stderr.map(Result::unwrap).filter(|line| line.contains("stopped by SIGINT")).count(), 1);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(history(&sandbox)[0]["outcome"], "stopped");
}

/// A Dockerfile that cannot be read as one is a build that failed.
#[test]
fn a_build_without_steps_is_recorded() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUM x\n");
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(1));
    assert_eq!(history(&sandbox)[0]["outcome"], "failed");
    assert!(text(&logs(&sandbox, &[])).contains("RUM"));
    assert_eq!(hint(&logs(&sandbox, &["--failed"])).split(' ').next(), Some("`wythe"));
}

/// Nothing of a record can fail a build.
#[test]
fn where_no_record_can_be_written_a_build_succeeds() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo x\n");
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(0));
    fs::remove_dir_all(sandbox.path("store/builds")).unwrap();
    fs::write(sandbox.path("store/builds"), "no directory").unwrap();
    assert_eq!(sandbox.build("image.tar", &["--no-cache".into()]).code, Some(0));
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(0));
}

/// A cap in number and one in age; what is newer stays.
#[test]
fn old_builds_go() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let put = |started_ms: i64| {
        let end = End { outcome: Ending::Done, elapsed_ms: 1, images: Vec::new(), errors: Vec::new() };
        let build = Build { head: Head { started_ms, ..Head::default() }, end: Some(end), ..Build::default() };
        store.put_build(&format!("{started_ms:013}-{started_ms:012x}"), &serde_json::to_vec(&build).unwrap()).unwrap();
    };
    let left = || {
        let newest = Builds::of(&store).newest(usize::MAX).unwrap();
        newest.iter().map(|found| found.build.head.started_ms).collect::<Vec<_>>()
    };
    let day = 24 * 3_600_000;
    let builds = Builds::of(&store);
    for place in 0..i64::try_from(KEPT).unwrap() + 200 {
        put(40 * day + place);
    }
    put(5 * day);
    builds.expire(41 * day).unwrap();
    let kept = left();
    assert_eq!((kept.len(), kept.first(), kept.last()), (KEPT, Some(&(40 * day + 299)), Some(&(40 * day + 200))));
    put(60 * day);
    builds.expire(71 * day).unwrap();
    assert_eq!(left(), [60 * day]);
    builds.expire(91 * day).unwrap();
    assert_eq!(left(), [0; 0]);
}
