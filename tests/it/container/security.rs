//! What is swapped under the builder's hands, and what a step could find of the builder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags};
use wythe::container::{Container, Mount, MountKind};
use wythe::plan::Network;

use super::bench::Bench;
use crate::ordinary::Ordinary;

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
        // By default an ordinary user's may be the host's, where there is no other way out.
        let step = Container { network: Network::None, ..bench.script(&format!("readlink /proc/self/ns/{kind}")) };
        let output = bench.succeed(&step).output;
        assert_ne!(output.trim(), own.display().to_string(), "{kind}");
        assert!(output.starts_with(kind), "{output}");
    }
    let mut container = bench.script("hostname; cat /proc/sys/kernel/domainname; wc -l < /proc/sysvipc/shm; echo $$");
    container.hostname = "of-the-build".to_owned();
    assert_eq!(bench.succeed(&container).output, "of-the-build\n(none)\n1\n1\n");
}

/// CVE-2023-27561, CVE-2025-31133: where the kernel's files are to be mounted changes while they are. Either
/// the step is refused or it has all masks.
#[test]
fn masks_are_where_the_kernels_files_are() {
    let bench = Bench::new();
    for place in ["proc", "sys", "dev"] {
        fs::create_dir(bench.path("base").join(place)).unwrap();
        fs::create_dir_all(bench.path("base/elsewhere")).unwrap();
        symlink("elsewhere", bench.path("base/link")).unwrap();
        while_swapping(&bench.path("base"), place, "link", || {
            for _ in 0..20 {
                let script = "stat -f -c %T /proc /sys /dev; test -c /dev/null && echo null; cat /proc/timer_list; \
                              ls -A /sys/firmware; { echo 1 > /proc/sys/vm/drop_caches; } 2>&1 | grep -c Read-only; \
                              ls -A /elsewhere";
                let ran = bench.run(&bench.script(script));
                match ran.exit {
                    Ok(_) => assert_eq!(ran.output, "proc\nsysfs\ntmpfs\nnull\n1\n", "{place}"),
                    Err(error) => {
                        assert!(error.message.starts_with(&format!("cannot mount on `/{place}")), "{error:?}")
                    }
                }
            }
        });
        fs::remove_file(bench.path("base/link")).or_else(|_| fs::remove_dir(bench.path("base/link"))).unwrap();
        fs::remove_dir(bench.path("base").join(place))
            .or_else(|_| fs::remove_file(bench.path("base").join(place)))
            .unwrap();
    }
}

/// The same for an ordinary user's builds, whose user namespace is the only wall: with ids of his own, and with one.
#[test]
fn users_are_as_safe() {
    for (name, user, map) in
        [("ranges", Ordinary::new(), "--map-auto"), ("one id", Ordinary::with_ranges("", ""), "--map-root-user")]
    {
        let program = std::env::current_exe().unwrap();
        let setup = format!(": > /mnt/bin/it; mount --bind '{}' /mnt/bin/it", program.display());
        let user = Ordinary { setup, ..user };
        let ended = user.run(&[
            "unshare",
            "--user",
            "--map-root-user",
            map,
            "--mount",
            "/mnt/bin/it",
            "container::security::",
            "--skip",
            "users_are_as_safe",
        ]);
        let stdout = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(ended.code, Some(0), "{name}: {stdout}{}", ended.stderr);
        assert!(stdout.contains("test result: ok. 5 passed"), "{name}: {stdout}");
    }
}
