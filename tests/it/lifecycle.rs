//! How steps end that do not end by themselves, and what a build says that they used.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use super::builder::{Builder, Following};
use super::sandbox::Sandbox;

#[test]
fn one_interrupt_lets_a_step_clean_up_and_keeps_nothing_of_it() {
    Builder::each(|builder| {
        let script = "trap 'echo cleaned; exit 0' TERM; echo up; while :; do sleep 0.01; done";
        let before = "FROM busybox\nRUN echo kept > /kept\n";
        builder.sandbox().write("Dockerfile", &format!("{before}RUN {script}\n"));
        let mut build = builder.follow(&[]);
        build.until("up");
        build.signal(Signal::INT);
        let (code, rest) = build.end();
        assert_eq!(code, Some(130), "{rest:?}");
        assert!(rest.iter().any(|line| line.ends_with(" cleaned")), "{rest:?}");
        assert!(rest.iter().any(|line| line.ends_with("CANCELED")), "{rest:?}");
        assert_no_scratch(builder);
        // It ended well, but it was cut short; the one before was not.
        let records: Value = serde_json::from_slice(&builder.wythe(&["cache", "ls", "--json"]).stdout).unwrap();
        assert_eq!(records.as_array().unwrap().len(), 1, "{records}");
        builder.sandbox().write("Dockerfile", before);
        assert_eq!(builder.built(&[]).ran(), [""; 0]);
    });
}

/// Nothing in the making, and nothing to be deleted that cannot be. Pruning waits for the trash, which a build
/// leaves to who comes next.
pub fn assert_no_scratch(builder: &Builder) {
    assert_eq!(builder.wythe(&["cache", "prune", "--older-than", "99w"]).code, Some(0));
    for name in ["tmp", "trash"] {
        let entries = fs::read_dir(builder.store().join(name)).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(entries.collect::<Vec<_>>(), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn a_command_of_a_shell_is_asked_where_the_shell_does_not_listen() {
    Builder::each(|builder| {
        builder.sandbox().write("inner", "trap 'echo cleaned; exit 3' TERM; echo up; while :; do sleep 0.01; done\n");
        let dockerfile = "FROM busybox\nCOPY inner /\nRUN sh /inner; echo went on; sleep 1000\n";
        builder.sandbox().write("Dockerfile", dockerfile);
        let mut build = builder.follow(&[]);
        build.until("up");
        build.signal(Signal::TERM);
        let (code, rest) = build.end();
        assert_eq!(code, Some(143), "{rest:?}");
        assert!(rest.iter().any(|line| line.ends_with(" cleaned")), "{rest:?}");
    });
}

#[test]
fn a_step_that_does_not_listen_ends_at_the_first_interrupt() {
    Builder::each(|builder| {
        let dockerfile = "FROM busybox\nRUN trap '' TERM; echo up; sleep 1000; echo 'went on'\n";
        builder.sandbox().write("Dockerfile", dockerfile);
        let mut build = builder.follow(&[]);
        build.until("up");
        build.signal(Signal::INT);
        let (code, rest) = build.end();
        assert_eq!(code, Some(130), "{rest:?}");
        assert!(!rest.iter().any(|line| line.ends_with(" went on")), "{rest:?}");
    });
}

#[test]
fn a_second_interrupt_ends_at_once() {
    Builder::each(|builder| {
        let script = "trap 'echo asked' TERM; echo up; while :; do sleep 0.01; done";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\nRUN {script}\n"));
        let mut build = builder.follow(&[]);
        build.until("up");
        build.signal(Signal::INT);
        build.until("asked");
        build.signal(Signal::INT);
        assert_ended_at_once(builder, build);
    });
}

/// That it is over, and that what there was no time to delete goes with the next build.
fn assert_ended_at_once(builder: &Builder, build: Following) {
    let (code, rest) = build.end();
    assert_eq!(code, Some(130), "{rest:?}");
    builder.sandbox().write("Dockerfile", "FROM busybox\n");
    builder.built(&[]);
    assert_no_scratch(builder);
}

/// Who holds the keys down.
#[test]
fn many_interrupts_at_once_are_as_good_as_two() {
    Builder::each(|builder| {
        let script = "trap '' INT TERM HUP QUIT; echo up; while :; do sleep 0.01; done";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\nRUN {script}\n"));
        let mut build = builder.follow(&[]);
        build.until("up");
        for _ in 0..5 {
            build.signal(Signal::INT);
        }
        assert_ended_at_once(builder, build);
    });
}

#[test]
fn a_step_that_takes_too_long_is_killed() {
    Builder::each(|builder| {
        let run = "RUN trap 'echo asked' TERM; (sleep 1000 &); sleep 1000; true";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{run}\n"));
        let ended = builder.build(&["--timeout", "100ms"]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains("did not complete: it took longer than 0.1s and was killed"), "{}", ended.stderr);
        assert!(ended.stderr.contains("Dockerfile:2:1"), "{}", ended.stderr);
        assert!(!ended.stderr.contains(" asked\n"), "{}", ended.stderr);
        assert_no_scratch(builder);
    });
}

#[test]
fn a_step_out_of_memory_says_so() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=64M count=1\n");
    let ended = sandbox.build("image.tar", &["--memory".into(), "32m".into()]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = "out of memory: the limit is 32 MiB, the peak was ";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    assert!(ended.stderr.contains("`--memory`"), "{}", ended.stderr);

    // Limits are no part of a key.
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo > /file\n");
    assert_eq!(sandbox.build("image.tar", &["--memory".into(), "32m".into()]).ran().len(), 1);
    let ended = sandbox.build("image.tar", &["--memory".into(), "64m".into(), "--pids-limit".into(), "100".into()]);
    assert_eq!((ended.code, ended.ran().len()), (Some(0), 0), "{}", ended.stderr);
}

/// The steps in the order they began and ended, as in `+[a 2/2] RUN a`.
pub fn turns(stderr: &str) -> Vec<String> {
    let mut titles = std::collections::BTreeMap::new();
    let mut turns = Vec::new();
    for line in stderr.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).unwrap();
        let number = event["number"].as_u64();
        match event["event"].as_str().unwrap() {
            "started" if event["title"].as_str().unwrap().contains("RUN") => {
                titles.insert(number, event["title"].as_str().unwrap().to_owned());
                turns.push(format!("+{}", titles[&number]));
            }
            "finished" => turns.extend(titles.get(&number).map(|title| format!("-{title}"))),
            _ => {}
        }
    }
    turns
}

#[test]
fn jobs_bound_the_steps_that_run_at_once() {
    let sandbox = Sandbox::new();
    // Each waits for the other.
    let meet = |own: &str, other: &str| {
        format!(
            "FROM busybox AS {own}\n\
             RUN --mount=type=cache,target=/m touch /m/{own}; until [ -e /m/{other} ]; do sleep 0.01; done\n"
        )
    };
    let all = "FROM scratch\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n";
    sandbox.write("Dockerfile", &format!("{}{}{all}", meet("a", "b"), meet("b", "a")));
    let ended = sandbox.build("image.tar", &["--jobs".into(), "2".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let alone = |own: &str| format!("FROM busybox AS {own}\nRUN echo {own}; true\nRUN echo {own} again\n");
    sandbox.write("Dockerfile", &format!("{}{}{all}", alone("a"), alone("b")));
    let args = sandbox.build_args("image.tar", &["rawjson".into(), "--jobs".into(), "1".into()]);
    let ended = sandbox.wythe(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let turns = turns(&ended.stderr);
    assert_eq!(turns.len(), 8, "{turns:?}");
    for pair in turns.chunks(2) {
        assert_eq!(pair[0].strip_prefix('+'), pair[1].strip_prefix('-'), "{turns:?}");
    }

    let ended = sandbox.build("image.tar", &["--jobs".into(), "0".into()]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[test]
fn what_a_step_used_is_shown_and_kept() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo > /file\n");
    let ended = sandbox.build("image.tar", &["--stats".into()]);
    let done = ended.stderr.lines().find(|line| line.contains(" (cpu ")).unwrap_or_else(|| panic!("{}", ended.stderr));
    assert!(done.contains("DONE ") && done.contains(" MiB"), "{done}");
    assert!(ended.stderr.contains("  CPU  "), "{}", ended.stderr);
    let records: Value = serde_json::from_slice(&sandbox.wythe(&["cache", "ls", "--json"]).stdout).unwrap();
    assert!(records[0]["cpuMs"].as_u64().unwrap() > 1, "{records}");
    assert!(records[0]["memoryBytes"].as_u64().unwrap() > 100_000, "{records}");
    // What was not executed used nothing.
    let ended = sandbox.build("image.tar", &[]);
    assert!(!ended.stderr.contains("cpu"), "{}", ended.stderr);
}
