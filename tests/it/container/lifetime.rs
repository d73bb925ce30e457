//! Beginnings, ends, and what is left after violent ones.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use wythe::container::{Container, Limits, Mount, MountKind, Spawner, Status};

use super::bench::{Bench, groups_of, is_a_builds, processes_with};

#[test]
fn who_is_left_ends_what_runs_and_begins_nothing() {
    let bench = Bench::new();
    bench.while_running("echo ready; while :; do sleep 1000; done", |_| bench.spawner.leave());
    let error = bench.run(&bench.script("true")).exit.unwrap_err();
    assert_eq!(error.message, "the spawner process is gone, and all containers with it");
}

#[test]
fn exit_statuses() {
    let bench = Bench::new();
    for status in [0, 1, 42, 126, 127, 255] {
        let ran = bench.run(&bench.script(&format!("exit {status}")));
        assert_eq!(ran.exit.unwrap().status, Status::Exited(status));
    }
    // An answer says what the step used.
    let ran = bench.succeed(&bench.script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"));
    let exit = ran.exit.unwrap();
    assert!(exit.usage.cpu() > Duration::from_millis(1) && exit.usage.cpu() < Duration::from_secs(60), "{exit:?}");
    assert!(exit.usage.memory_bytes > 100_000 && exit.usage.memory_bytes < 1 << 30, "{exit:?}");
}

#[test]
fn processes_left_over_end_with_the_first() {
    let bench = Bench::new();
    let marker = format!("marker={}", bench.path("").display());
    let script = format!("for i in 1 2 3; do (setsid sh -c 'sleep 1000; true' sh {marker} &) ; done; echo started");
    assert_eq!(bench.output(&script), "started\n");
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
}

#[test]
fn signals_reach_the_payload() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let container = bench.script("trap 'echo caught; exit 3' INT; echo ready; while :; do :; done");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.spawner.run(&container, writer.into()));
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        bench.spawner.kill_all(Signal::INT).unwrap();
        assert_eq!(running.join().unwrap().unwrap().status, Status::Exited(3));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "caught\n");
    });
    // With nothing running there is nothing to do.
    bench.spawner.kill_all(Signal::KILL).unwrap();
    assert_eq!(bench.output("echo next"), "next\n");
}

/// Two steps that each wait for what the other does.
#[test]
fn steps_run_at_the_same_time() {
    let bench = Bench::new();
    let meeting = bench.path("meeting");
    fs::create_dir(&meeting).unwrap();
    let step = |own: &str, other: &str| {
        let script = format!("touch /m/{own}; until [ -e /m/{other} ]; do :; done; echo met");
        let kind = MountKind::Bind { root: meeting.clone(), path: "/".to_owned(), is_readonly: false };
        Container { mounts: vec![Mount { target: "/m".to_owned(), kind }], ..bench.script(&script) }
    };
    let (one, two) = (step("one", "two"), step("two", "one"));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| bench.succeed(&two).output);
        assert_eq!(bench.succeed(&one).output, "met\n");
        assert_eq!(other.join().unwrap(), "met\n");
    });
}

#[test]
fn many_threads_share_a_spawner() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..5 {
                    let word = format!("{thread}.{round}");
                    let ran = bench.run(&bench.script(&format!("echo {word}; exit {thread}")));
                    assert_eq!(ran.output, format!("{word}\n"));
                    assert_eq!(ran.exit.unwrap().status, Status::Exited(thread));
                }
            });
        }
    });
}

#[test]
fn large_requests_and_outputs_pass() {
    let bench = Bench::new();
    let big = "x".repeat(1 << 20);
    let kind = MountKind::File { content: big.clone().into_bytes(), mode: 0o444, uid: 0, gid: 0 };
    let mut container = bench.script("wc -c < /big; cat /big /big /big /big; echo ${#V}");
    container.mounts = vec![Mount { target: "/big".to_owned(), kind }];
    container.env.push(("V".to_owned(), "y".repeat(100_000)));
    let output = bench.succeed(&container).output;
    assert!(output == format!("1048576\n{big}{big}{big}{big}100000\n"), "{} bytes", output.len());
}

#[test]
fn the_death_of_the_spawner_ends_every_wait() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let marker = format!("marker={}", bench.path("").display());
    let mut container = bench.script("echo ready; sleep 1000; true");
    container.argv.push(marker.clone());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.spawner.run(&container, writer.into()));
        let mut reader = BufReader::new(reader);
        reader.read_line(&mut String::new()).unwrap();
        kill_process(parent(processes_with(&marker)[0]), Signal::KILL).unwrap();
        let error = running.join().unwrap().unwrap_err();
        assert_eq!(error.message, "the spawner process is gone, and all containers with it");
        // All writers are gone too.
        reader.read_to_end(&mut Vec::new()).unwrap();
    });
    let error = bench.run(&bench.script("true")).exit.unwrap_err();
    assert_eq!(error.message, "the spawner process is gone, and all containers with it");
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
}

/// Lines of the host's mount table that a step could have made.
fn mounts_of_ours(root: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Other builders may be at work on this machine, which mount their overlays at `merged`.
    let is_volatile = |line: &str| line.contains("volatile") && !line.contains("/merged ");
    let is_ours = |line: &&str| is_volatile(line) || line.contains(root.to_str().unwrap());
    mounts.lines().filter(is_ours).map(str::to_owned).collect()
}

fn parent(pid: u32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(line.trim().parse().unwrap()).unwrap()
}

#[test]
fn a_killed_builder_leaves_neither_processes_nor_mounts_nor_groups() {
    let bench = Bench::new();
    let root = bench.path("");
    let before = mounts_of_ours(&root);
    let marker = format!("marker={}", root.display());
    let mut builder = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "container::lifetime::builder_to_be_killed", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let request = serde_json::to_string(&Container {
        argv: ["/bin/sh", "-c", "echo; echo ready; sleep 1000; true", &marker].map(str::to_owned).to_vec(),
        limits: Limits { pids: Some(50), ..Limits::default() },
        ..bench.script("")
    });
    builder.stdin.take().unwrap().write_all(request.unwrap().as_bytes()).unwrap();
    // The runner prints lines of its own before.
    let mut lines = BufReader::new(builder.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap() == "ready"), "{:?}", builder.wait());
    // Later ones are its children.
    let payload = processes_with(&marker)[0];
    let spawner = parent(payload);
    let payload = Pid::from_raw(payload as i32).unwrap();
    let groups = groups_of(payload.as_raw_nonzero().get() as u32);
    assert!(groups.iter().any(|group| is_a_builds(group)), "{groups:?}");
    let handles = [payload, spawner].map(|pid| pidfd_open(pid, PidfdFlags::empty()).unwrap());
    let id = builder.id() as i32;
    kill_process(Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();
    builder.wait().unwrap();
    for handle in &handles {
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        let mut polled = [PollFd::new(handle, PollFlags::IN)];
        assert_eq!(poll(&mut polled, Some(&limit)), Ok(1), "a process outlives its builder");
    }
    assert_eq!(processes_with(&marker), Vec::<u32>::new());
    assert_eq!(mounts_of_ours(&root), before);
    // Its groups are empty, and gone when another build has run a step.
    bench.succeed(&bench.script("true"));
    drop(bench);
    for group in groups.iter().filter(|group| is_a_builds(group)) {
        assert!(!group.exists(), "{} is left", group.display());
    }
}

/// Not a test: the builder of the one above, in a process of its own. The container comes on
/// standard input.
#[test]
#[ignore = "a_killed_builder_leaves_neither_processes_nor_mounts_nor_groups runs it"]
fn builder_to_be_killed() {
    let spawner = Spawner::fork().unwrap();
    let mut request = String::new();
    std::io::stdin().read_to_string(&mut request).unwrap();
    let container: Container = serde_json::from_str(&request).expect("a container as JSON on standard input");
    let output: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    spawner.run(&container, output).unwrap();
}
