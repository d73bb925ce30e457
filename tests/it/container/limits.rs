//! What bounds a step and what counts it. These need control groups that the tests may make, of
//! either version.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use wythe::container::{Container, Limits, Status};

use super::bench::{Bench, groups_of, is_a_builds};

fn limited(bench: &Bench, script: &str, limits: Limits) -> Container {
    Container { limits, ..bench.script(script) }
}

/// The text of the first of these files that one of the groups has.
fn setting(groups: &[PathBuf], files: &[&str]) -> String {
    let all = files.iter().flat_map(|file| groups.iter().map(move |group| group.join(file)));
    let found = all.map(fs::read_to_string).find_map(Result::ok);
    found.unwrap_or_else(|| panic!("none of {files:?} in {groups:?}")).trim().to_owned()
}

#[test]
fn limits_are_set_and_the_group_goes_with_the_build() {
    let bench = Bench::new();
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        memory_swap_bytes: Some(64 << 20),
        cpu_shares: Some(512),
        cpu_period_us: Some(50_000),
        cpu_quota_us: Some(25_000),
        cpuset_cpus: Some("0".into()),
        cpuset_mems: Some("0".into()),
        pids: Some(30),
        ..Limits::default()
    };
    let mut groups = Vec::new();
    bench.while_running_in(
        limited(&bench, "cat /proc/self/cgroup | grep -v :/$; echo ready; sleep 1000; true", limits),
        |payload| {
            groups = groups_of(payload);
            let get = |files: &[&str]| setting(&groups, files);
            assert_eq!(get(&["memory.max", "memory.limit_in_bytes"]), (64 << 20).to_string());
            assert_eq!(get(&["cpuset.cpus"]), "0");
            assert_eq!(get(&["cpuset.mems"]), "0");
            assert_eq!(get(&["pids.max"]), "30");
            assert!(["512", "59"].contains(&&*get(&["cpu.shares", "cpu.weight"])));
            assert!(["25000 50000", "25000"].contains(&&*get(&["cpu.max", "cpu.cfs_quota_us"])));
            assert!(["25000 50000", "50000"].contains(&&*get(&["cpu.max", "cpu.cfs_period_us"])));
        },
    );
    groups.retain(|group| is_a_builds(group));
    assert!(!groups.is_empty());
    // What follows has no part in it.
    assert_eq!(bench.succeed(&bench.script("true")).output, "");
    drop(bench);
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
        assert!(!group.parent().unwrap().exists(), "{} is left", group.display());
    }
}

#[test]
fn a_step_knows_no_groups_but_its_own() {
    let bench = Bench::new();
    let limits = Limits { pids: Some(20), ..Limits::default() };
    for container in [bench.script("cat /proc/self/cgroup"), limited(&bench, "cat /proc/self/cgroup", limits)] {
        let seen = bench.succeed(&container).output;
        assert!(seen.lines().all(|line| line.ends_with(":/")), "{seen}");
    }
}

#[test]
fn too_much_memory_is_said_with_limit_and_peak() {
    let bench = Bench::new();
    let limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    let mut container = bench.container(&["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    container.limits = limits.clone();
    let exit = bench.run(&container).exit.unwrap();
    assert_eq!(exit.status, Status::Signaled(9));
    let memory = exit.out_of_memory.unwrap();
    assert_eq!((memory.kills, memory.limit_bytes), (1, Some(32 << 20)));
    assert!(memory.peak_bytes > 24 << 20 && memory.peak_bytes <= 32 << 20, "{memory:?}");

    // Also when it is a child that is killed, and when the step goes on.
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?";
    let ran = bench.succeed(&limited(&bench, script, limits.clone()));
    assert!(ran.output.ends_with("137\n"), "{}", ran.output);
    assert_eq!(ran.exit.unwrap().out_of_memory.unwrap().kills, 1);
    // The next step has a group of its own.
    let ran = bench.succeed(&limited(&bench, "true", limits));
    assert_eq!(ran.exit.unwrap().out_of_memory, None);
}

#[test]
fn processes_are_bounded() {
    let bench = Bench::new();
    let limits = Limits { pids: Some(10), ..Limits::default() };
    let script = "i=0; while [ $i -lt 20 ]; do sleep 1000 & i=$((i+1)); done; echo all";
    let ran = bench.run(&limited(&bench, script, limits));
    assert!(ran.output.contains("can't fork"), "{}", ran.output);
    assert!(!ran.output.contains("all"), "{}", ran.output);
}

#[test]
fn a_group_counts_what_was_not_waited_for() {
    let bench = Bench::new();
    let burn = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
    // The first process ends without waiting for the other.
    let script = format!("mkfifo /done; (trap '' HUP; {burn}; echo > /done; sleep 1000) & cat /done");
    let counted = limited(&bench, &script, Limits { is_counted: true, ..Limits::default() });
    let counted = bench.succeed(&counted).exit.unwrap().usage;
    let estimated = bench.succeed(&bench.script(&script)).exit.unwrap().usage;
    assert!(counted.cpu_us > estimated.cpu_us * 2, "{counted:?} {estimated:?}");
    assert!(counted.memory_bytes > 0);
}

#[test]
fn a_group_can_be_below_another() {
    let bench = Bench::new();
    let name = format!("wythe-test-{}", std::process::id());
    let limits = Limits { parent: Some(format!("/{name}/inner")), pids: Some(50), ..Limits::default() };
    let mut groups = Vec::new();
    bench.while_running_in(limited(&bench, "echo ready; sleep 1000; true", limits), |payload| {
        groups = groups_of(payload);
        groups.retain(|group| group.to_str().unwrap().contains(&format!("/{name}/inner/wythe.")));
        assert!(!groups.is_empty());
    });
    drop(bench);
    for group in groups {
        let ours = group.ancestors().find(|path| path.ends_with(&name)).unwrap();
        assert!(!ours.exists(), "{} is left", ours.display());
    }
}

#[test]
fn a_limit_that_cannot_be_had_is_an_error() {
    let bench = Bench::new();
    let failure = |limits: Limits| bench.run(&limited(&bench, "true", limits)).exit.unwrap_err();
    let error = failure(Limits { cpuset_cpus: Some("4000".into()), ..Limits::default() });
    assert_eq!(error.message, "cannot limit processors of a step: `4000` to `cpuset.cpus`");
    assert!(error.cause.unwrap().starts_with("this builder may use 0"));
    let error = failure(Limits { parent: Some("../x".into()), ..Limits::default() });
    assert_eq!(error.message, "`../x` names no cgroup");
    // Neither has left anything that would stop the next.
    bench.succeed(&limited(&bench, "true", Limits { pids: Some(20), ..Limits::default() }));
}

#[test]
fn time_is_bounded() {
    let bench = Bench::new();
    let limit = |script: &str, ms| Container { timeout: Some(Duration::from_millis(ms)), ..bench.script(script) };
    let exit = bench.run(&limit("trap '' TERM INT; sleep 1000; true", 2_000)).exit.unwrap();
    assert_eq!((exit.status, exit.is_late), (Status::Signaled(9), true));
    let exit = bench.run(&limit("true", 600_000)).exit.unwrap();
    assert_eq!((exit.status, exit.is_late), (Status::Exited(0), false));
    // Longer than can be waited for.
    let exit = bench.run(&limit("true", u64::MAX)).exit.unwrap();
    assert_eq!((exit.status, exit.is_late), (Status::Exited(0), false));
}
