//! Device nodes that a step makes.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::makedev;
use rustix::process::{Pid, Signal, kill_process};
use wythe::container::Status;

use super::bench::{Bench, entries, processes_with};

#[test]
fn nodes_are_made_in_the_layer() {
    let bench = Bench::new();
    let ran = bench.succeed(&bench.script(
        "umask 027; mknod /null c 1 3; mknod -m 640 /disk b 259 7; cd /tmp; mknod zero c 1 5; chown 5:6 zero; \
         mkdir d; ln -s d l; mknod l/full c 1 7; mknod pipe p; stat -c '%F %t:%T %a %n' /null /disk",
    ));
    assert_eq!(ran.output, "character special file 1:3 640 /null\nblock special file 103:7 640 /disk\n");
    assert_eq!(entries(&ran.upper), ["disk", "null", "tmp", "tmp/d", "tmp/d/full", "tmp/l", "tmp/pipe", "tmp/zero"]);
    let node = |name: &str| {
        let meta = fs::symlink_metadata(ran.upper.join(name)).unwrap();
        (meta.file_type().is_block_device(), meta.rdev(), meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    assert_eq!(node("null"), (false, makedev(1, 3), 0o640, 0, 0));
    assert_eq!(node("disk"), (true, makedev(259, 7), 0o640, 0, 0));
    assert_eq!(node("tmp/zero"), (false, makedev(1, 5), 0o640, 5, 6));
    assert_eq!(node("tmp/d/full").1, makedev(1, 7));
}

#[test]
fn no_node_is_a_way_to_a_device_of_the_host() {
    let bench = Bench::new();
    // Where devices work, only those that are nobody's are made.
    let script = "for node in 'c 1 3' 'c 1 1' 'b 8 0' 'c 10 200'; do mknod /dev/x $node && echo $node; rm -f /dev/x; done; \
                  mknod /mem c 1 1 && cat /mem; mknod /dev/z c 1 5 && head -c 2 /dev/z | od -An -tx1";
    let output = bench.output(script);
    let (made, refused): (Vec<_>, Vec<_>) = output.lines().partition(|line| !line.contains(": "));
    assert_eq!(made, ["c 1 3", " 00 00"], "{output}");
    assert_eq!(refused.len(), 4, "{output}");
}

#[test]
fn nodes_are_made_by_who_may() {
    let bench = Bench::new();
    let mut container = bench.script("mknod /tmp/x c 1 3; echo $?; mknod /tmp/p p; ls /tmp");
    container.user = bench.alice();
    let ran = bench.succeed(&container);
    assert_eq!(ran.output, "mknod: /tmp/x: Operation not permitted\n1\np\n");
    // What is wrong is said as the kernel says it.
    let ran = bench.succeed(&bench.script(
        "mknod /bin c 1 3; mknod /none/x c 1 3; mknod /etc/passwd/x c 1 3; mknod / c 1 3; mknod /white c 0 0; true",
    ));
    assert_eq!(
        ran.output,
        "mknod: /bin: File exists\nmknod: /none/x: No such file or directory\n\
         mknod: /etc/passwd/x: Not a directory\nmknod: /: File exists\nmknod: /white: Operation not permitted\n"
    );
}

/// The other child of the spawner, whose child `payload` is, that holds the questions of a seccomp filter.
fn supervisor_beside(payload: u32) -> u32 {
    let parent = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let answers = |pid: u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        targets.any(|target| target.to_string_lossy().contains("seccomp notify"))
    };
    let spawner = parent(payload).unwrap();
    let mut pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| parent(*pid) == Some(spawner) && answers(*pid)).expect("a supervisor")
}

#[test]
fn a_step_outlives_who_answers_it() {
    let bench = Bench::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut container = bench.script("mknod /x c 1 3; echo ready; while mknod /y c 1 3; do rm /y; done; exit 7");
    let marker = format!("marker={}", bench.path("").display());
    container.argv.push(marker.clone());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.spawner.run(&container, writer.into()));
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        assert_eq!(lines.next().as_deref(), Some("ready"));
        // Later ones are its children.
        let supervisor = supervisor_beside(processes_with(&marker)[0]);
        kill_process(Pid::from_raw(supervisor as i32).unwrap(), Signal::KILL).unwrap();
        assert_eq!(lines.collect::<Vec<_>>(), ["mknod: /y: Function not implemented"]);
        assert_eq!(running.join().unwrap().unwrap().status, Status::Exited(7));
    });
}
