//! What is left of a step's processes after it, and of a builder that was killed: nothing runs, nothing is
//! mounted, and in the store is nothing that the next build does not clear away.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::builder::Builder;
use super::container::bench::processes_with;
use super::image::Image;
use super::lifecycle::assert_no_scratch;
use super::sandbox::holds;

/// The numbers of all processes that a process has begotten.
fn descendants(of: u32) -> Vec<u32> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = Vec::new();
    let mut pending = vec![of];
    while let Some(pid) = pending.pop() {
        let of_it = children.remove(&pid).unwrap_or_default();
        pending.extend(&of_it);
        found.extend(of_it);
    }
    found
}

fn handle(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()).unwrap()
}

fn await_end(process: &OwnedFd) {
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)), Ok(1), "a process outlives its builder");
}

/// Who is in a namespace, among those whom one may look at, and where it is mounted.
fn users_of(namespace: &Path) -> Vec<PathBuf> {
    let name = namespace.to_str().unwrap();
    let kind = name.split(':').next().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is_in = |process: &PathBuf| {
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        fs::read_link(process.join("ns").join(kind)).is_ok_and(|its| its == namespace) || mounts.contains(name)
    };
    processes.filter(is_in).collect()
}

/// Lines of a process's mount table that name a place.
fn mounts_at(place: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(place.to_str().unwrap())).map(str::to_owned).collect()
}

#[test]
fn a_killed_build_leaves_nothing() {
    const SECRET: &str = "s3cret of the killed";
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        let marker = format!("marker={}", sandbox.path("").display());
        let kept = "FROM busybox\nRUN echo kept > /kept\n";
        let sleeper = format!("sh -c 'trap \"\" TERM HUP; sleep 1000; true' sh {marker}");
        sandbox.write(
            "Dockerfile",
            &format!(
                "{kept}RUN --mount=type=secret,id=s --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --mount=target=/context,rw \\\n\
                 cp /run/secrets/s /t/s; cp /run/secrets/s /context/s; dd if=/dev/zero of=/big bs=1k count=1000 2> /dev/null; \\\n\
                 (setsid {sleeper} &); {sleeper} & \\\n\
                 echo up; wait\n"
            ),
        );
        fs::write(sandbox.path("secret"), SECRET).unwrap();
        let mounts = mounts_at(&sandbox.path(""));
        let mut build = builder.follow(&["--secret", "id=s,src=secret", "--network", "none"]);
        build.until("up");
        // They begin beside what says so.
        while processes_with(&marker).len() < 2 {
            assert!(build.is_running(), "the step has ended");
        }
        let sleepers = processes_with(&marker);
        let processes = descendants(build.pid());
        // A spawner, the step and what it has left behind, at the least.
        assert!(processes.len() >= 4, "{processes:?}");
        assert!(sleepers.iter().all(|pid| processes.contains(pid)), "{sleepers:?}, {processes:?}");
        // Held open: the number of one that is gone is soon another's.
        let namespaces = ["net", "mnt", "pid", "user"].map(|kind| {
            let path = format!("/proc/{}/ns/{kind}", sleepers[0]);
            (fs::read_link(&path).unwrap(), fs::File::open(path).unwrap())
        });
        let handles: Vec<_> = processes.iter().map(|pid| handle(*pid)).collect();

        build.signal(Signal::KILL);
        assert_eq!(build.end().0, None);
        handles.iter().for_each(await_end);
        assert_eq!(processes_with(&marker), [0; 0]);
        for (namespace, _held) in namespaces {
            assert_eq!(users_of(&namespace), [""; 0].map(PathBuf::from), "{}", namespace.display());
        }
        assert_eq!(mounts_at(&sandbox.path("")), mounts);
        assert!(!holds(&builder.store(), SECRET), "the store has a secret");
        assert!(!sandbox.context.join("s").exists() && !sandbox.path("image.tar").exists());

        // The next build clears it all away.
        sandbox.write("Dockerfile", kept);
        builder.built(&[]);
        assert_no_scratch(builder);
    });
}

#[test]
fn what_a_step_leaves_running_writes_nothing_into_the_layer() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        let marker = format!("marker={}", sandbox.path("").display());
        let writer = format!("sh -c 'trap \"\" TERM HUP; while :; do echo x >> /file; done' sh {marker}");
        let dockerfile = format!(
            "FROM busybox\nRUN (setsid {writer} &); (nohup {writer} > /dev/null &); until [ -s /file ]; do :; done\n\
             RUN wc -c < /file > /size\n"
        );
        sandbox.write("Dockerfile", &dockerfile);
        builder.built(&[]);
        assert_eq!(processes_with(&marker), [0; 0]);
        let image = fs::read(sandbox.path("image.tar")).unwrap();
        let files = Image::read(&image).files;
        let size: u64 = files["file"].split(' ').nth(3).unwrap().parse().unwrap();
        assert!(size > 0 && files["size"].starts_with("file 0644 0:0 "), "{files:?}");
        // What the step after it saw is what the layer has, then and now.
        sandbox.write("Dockerfile", &format!("{dockerfile}RUN test $(cat /size) = {size}\n"));
        builder.built(&[]);
        sandbox.write("Dockerfile", &dockerfile);
        assert_eq!(builder.built(&[]).ran(), [""; 0]);
        assert_eq!(fs::read(sandbox.path("image.tar")).unwrap(), image);
    });
}

#[test]
fn steps_at_once_listen_on_the_same_port_and_may_ping() {
    Builder::each(|builder| {
        // Each listens while the other does.
        let stage = |own: &str, other: &str| {
            format!(
                "FROM busybox AS {own}\n\
                 RUN --mount=type=cache,target=/m ping -c 1 127.0.0.1 > /dev/null || exit; \\\n\
                 nc -l -p 80 -e echo {own} & touch /m/{own}; until [ -e /m/{other} ]; do sleep 0.01; done; \\\n\
                 until nc 127.0.0.1 80 > /heard 2> /dev/null; do kill -0 $! || exit; done; \\\n\
                 touch /m/{own}.heard; until [ -e /m/{other}.heard ]; do sleep 0.01; done; test $(cat /heard) = {own}\n"
            )
        };
        let all = "FROM scratch\nCOPY --from=a /heard /a\nCOPY --from=b /heard /b\n";
        builder.sandbox().write("Dockerfile", &format!("{}{}{all}", stage("a", "b"), stage("b", "a")));
        builder.built(&["--jobs", "2", "--network", "none"]);
    });
}
