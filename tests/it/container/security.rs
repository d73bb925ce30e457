//! What is swapped under the builder's hands, and what a step could find of the builder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};
use wythe::container::{Container, Mount, MountKind};

use super::bench::Bench;

/// Lets two names of `dir` change places as often as it can while `act` runs.
fn while_swapping<T>(dir: &Path, one: &str, two: &str, act: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, dir.join(one), CWD, dir.join(two), RenameFlags::EXCHANGE).unwrap();
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        is_over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// CVE-2024-23651: another build changes a cache while its path is looked up.
#[test]
fn a_source_that_becomes_a_link_stays_in_its_root() {
    let bench = Bench::new();
    let canary = tempfile::Builder::new().prefix("wythe-canary.").tempdir_in("/tmp").unwrap();
    fs::create_dir(canary.path().join("deep")).unwrap();
    fs::write(canary.path().join("deep/file"), "the host's\n").unwrap();
    bench.write("cache/sub/deep/file", "inside\n");
    symlink(canary.path(), bench.path("cache/link")).unwrap();
    while_swapping(&bench.path("cache"), "sub", "link", || {
        for _ in 0..40 {
            let kind = MountKind::Bind { root: bench.path("cache"), path: "sub/deep".to_owned(), is_readonly: false };
            let mounts = vec![Mount { target: "/m".to_owned(), kind }];
            let ran = bench.run(&Container { mounts, ..bench.script("cat /m/file; echo changed > /m/new") });
            match ran.exit {
                Ok(_) => assert_eq!(ran.output, "inside\n"),
                // The link leads to nothing inside.
                Err(error) => assert!(error.message.starts_with("cannot mount `sub/deep`"), "{}", error.message),
            }
        }
    });
    assert_eq!(fs::read_dir(canary.path().join("deep")).unwrap().count(), 1);
}

/// CVE-2019-16884, CVE-2025-31133: what is at a target changes while it is made. The files of a draft can
/// be changed only through a step, so this is worse than what a step can do.
#[test]
fn a_target_that_becomes_a_link_stays_in_the_root() {
    let bench = Bench::new();
    let canary = tempfile::Builder::new().prefix("wythe-canary.").tempdir_in("/tmp").unwrap();
    bench.write("base/a/keep", "");
    symlink(canary.path(), bench.path("base/b")).unwrap();
    while_swapping(&bench.path("base"), "a", "b", || {
        for _ in 0..40 {
            let kind = MountKind::File { content: b"secret".to_vec(), mode: 0o444, uid: 0, gid: 0 };
            let mounts = vec![Mount { target: "/a/x/y".to_owned(), kind }];
            // A lower that changes under an overlay may make it fail, and no more.
            drop(bench.run(&Container { mounts, ..bench.script("cat /a/x/y") }));
            assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 0);
        }
    });
}

/// CVE-2021-3602: what the builder's processes know is nowhere to be read.
#[test]
fn there_is_no_process_but_the_steps_own() {
    let bench = Bench::new();
    let script = "tr '\\0' '\\n' < /proc/1/environ; cd /proc; for pid in [0-9]*; do cat $pid/comm; done";
    let output = bench.output(script);
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines[..2], ["PATH=/usr/sbin:/bin", "HOME=/root"]);
    assert!(lines[2..].iter().all(|name| ["sh", "cat"].contains(name)), "{output}");
}

/// Each namespace is another than the builder's, and nothing that a step does in it reaches the builder's.
#[test]
fn every_namespace_is_another() {
    let bench = Bench::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        let output = bench.output(&format!("readlink /proc/self/ns/{kind}"));
        assert_ne!(output.trim(), own.display().to_string(), "{kind}");
        assert!(output.starts_with(kind), "{output}");
    }
    let mut container = bench.script("hostname; cat /proc/sys/kernel/domainname; wc -l < /proc/sysvipc/shm; echo $$");
    container.hostname = "of-the-build".to_owned();
    assert_eq!(bench.succeed(&container).output, "of-the-build\n(none)\n1\n1\n");
}
