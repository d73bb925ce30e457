//! What the roots of steps stand on: on every footing a build gives the same layers, as root and as an ordinary
//! user; and where the store lies on an overlay the right one is found.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::ordinary::Ordinary;
use super::sandbox::{Ended, Sandbox};

/// All kinds of changes, at fixed times, in several layers.
fn write_context(context: &Path) {
    super::sandbox::copy(&super::testdata("footing"), context);
    let line = "touch -d @900 tool extra . && setfattr -n user.note -v kept tool";
    let status = Command::new("sh").args(["-euc", line]).current_dir(context).status().unwrap();
    assert!(status.success(), "{line}: needs `attr`: run `make deps`");
}

/// The diff IDs of the image in an OCI layout.
fn diff_ids(layout: &Path) -> Vec<String> {
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let blob =
        |digest: &Value| layout.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap());
    let manifest = read(&blob(&read(&layout.join("index.json"))["manifests"][0]["digest"]));
    let config = read(&blob(&manifest["config"]["digest"]));
    let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// What is said when a footing is taken.
const SAID: [(&str, &str); 3] = [
    ("memory", "warning: steps write to memory, "),
    ("fuse", "warning: steps write by way of `fuse-overlayfs`"),
    ("copy", "warning: every step works on a copy of its whole root"),
];

/// It must have been built and said so of this footing alone, once.
fn check_said(ended: &Ended, footing: &str) {
    assert_eq!(ended.code, Some(0), "{footing}: {}", ended.stderr);
    for (name, said) in SAID {
        let times = ended.stderr.matches(said).count();
        assert_eq!(times, usize::from(name == footing), "{footing}: `{said}`: {}", ended.stderr);
    }
}

/// No process, no mount, and no work in progress in the store; its trash is emptied when there is time.
fn check_nothing_left(store: &Path) {
    let left: Vec<_> = fs::read_dir(store.join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("fuse-overlayfs"), "{mounts}");
    let store = store.to_str().unwrap().as_bytes();
    for process in fs::read_dir("/proc").unwrap() {
        let path = process.unwrap().path();
        // It may have ended meanwhile.
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let is_ours = fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.as_os_str().as_encoded_bytes() == store);
        assert!(!(words.starts_with(b"fuse-overlayfs") && is_ours), "{}", path.display());
    }
}

/// What root asks for, the best first. Before Linux 6.3 no tmpfs shows its files through a map of ids: there root has
/// no footing in memory.
fn footings_of_root() -> &'static [&'static str] {
    match maps_ids_of_memory() {
        true => &["overlay", "memory", "fuse", "copy"],
        false => &["overlay", "fuse", "copy"],
    }
}

fn maps_ids_of_memory() -> bool {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = kernel.split(['.', '-']).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 3)
}

/// Before Linux 6.6 no tmpfs keeps what builds by a user write on files: there a user has no footing in memory.
fn memory_keeps_attributes() -> bool {
    let line = "mount -t tmpfs tmpfs /mnt && : > /mnt/file && setfattr -n user.note -v kept /mnt/file";
    let output = Command::new("unshare").args(["--mount", "sh", "-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("not supported"), "{said}");
    output.status.success()
}

#[test]
fn every_footing_gives_root_the_same_layers() {
    let sandbox = Sandbox::new();
    write_context(&sandbox.context);
    let mut expected = None;
    for footing in ["overlay", "memory", "fuse", "copy"] {
        let store = sandbox.path(&format!("store-{footing}"));
        let output = format!("type=oci,tar=false,dest={}", sandbox.path(footing).display());
        let busybox = format!("busybox=oci-layout://{}", super::sandbox::busybox_layout().display());
        let arguments = ["build", "--progress", "plain", "--pull=never", "--build-context", &busybox, "-o", &output];
        let mut command =
            sandbox.command(&[&arguments[..], &["--build-arg", "SOURCE_DATE_EPOCH=4", "context"]].concat());
        let ended = command.env("WYTHE_FOOTING", footing).env("WYTHE_ROOT", &store).output().unwrap();
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        if !footings_of_root().contains(&footing) {
            assert_eq!(ended.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains("does not support id-mapped mounts"), "{stderr}");
            check_nothing_left(&store);
            continue;
        }
        check_said(&Ended { code: ended.status.code(), stdout: ended.stdout, stderr }, footing);
        let found = diff_ids(&sandbox.path(footing));
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{footing}");
        check_nothing_left(&store);
    }
}

/// The fuse device is every user's on most machines.
const FUSE_FOR_ALL: &str =
    "mknod /mnt/home/fuse c 10 229; chmod 666 /mnt/home/fuse; mount --bind /mnt/home/fuse /dev/fuse";

fn check_ordinary(new: impl Fn() -> Ordinary) {
    let mut expected = None;
    for footing in ["overlay", "memory", "fuse", "copy"] {
        let mut ordinary = new();
        ordinary.setup = FUSE_FOR_ALL.to_owned();
        write_context(&ordinary.sandbox.context);
        let variable = format!("WYTHE_FOOTING={footing}");
        let arguments = ["-o", "type=oci,tar=false,dest=/mnt/home/out", "--build-arg", "SOURCE_DATE_EPOCH=4"];
        let build = super::ordinary::build_args(&arguments);
        let ended = ordinary.run(&[&["env", &variable, "/mnt/bin/wythe"][..], &build].concat());
        if footing == "memory" && !memory_keeps_attributes() {
            assert_eq!(ended.code, Some(1), "{}", ended.stderr);
            for said in ["cannot keep a step's files in memory", "keeps no `user.*` attributes", "ext4, xfs or btrfs"] {
                assert!(ended.stderr.contains(said), "`{said}`: {}", ended.stderr);
            }
            check_nothing_left(&ordinary.store());
            continue;
        }
        check_said(&ended, footing);
        let found = diff_ids(&ordinary.sandbox.path("home/out"));
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{footing}");
        check_nothing_left(&ordinary.store());
    }
}

#[test]
fn every_footing_gives_a_user_the_same_layers() {
    check_ordinary(Ordinary::new);
}

#[test]
fn every_footing_gives_a_user_of_one_id_the_same_layers() {
    check_ordinary(|| Ordinary::with_ranges("", ""));
}

/// A store on an overlay, as in a container without a volume: neither upper dirs nor whiteouts nor maps of ids can
/// be had there.
#[test]
fn on_an_overlay_the_next_best_is_found() {
    let sandbox = Sandbox::new();
    write_context(&sandbox.context);
    let build = |name: &str, setup: &str| build_after(&sandbox, setup, name);
    check_said(&build("plain", "export WYTHE_ROOT=$PWD/store"), "overlay");
    let expected = diff_ids(&sandbox.path("plain"));
    let overlay =
        "mkdir l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m; export WYTHE_ROOT=$PWD/m/store";
    let ended = build("nested", overlay);
    let next = footings_of_root()[1];
    check_said(&ended, next);
    assert!(ended.stderr.contains("the store is on overlay"), "{}", ended.stderr);
    assert_eq!(diff_ids(&sandbox.path("nested")), expected);
    // And again from its cache, which knows it all; nothing is said then.
    let again = overlay.replace("mkdir l u w m; ", "");
    let ended = build("again", &again);
    assert_eq!(ended.ran(), Vec::<String>::new(), "{}", ended.stderr);
    check_said(&ended, "overlay");
    for footing in ["fuse", "copy"] {
        let fresh = format!("{} && rm -rf m/store && export WYTHE_FOOTING={footing}", again.replace(';', " &&"));
        check_said(&build(footing, &fresh), footing);
        assert_eq!(diff_ids(&sandbox.path(footing)), expected, "{footing}");
    }
}

/// Runs the program as root in a mount namespace of its own, after some shell lines.
fn build_after(sandbox: &Sandbox, setup: &str, name: &str) -> Ended {
    let output = format!("type=oci,tar=false,dest={}", sandbox.path(name).display());
    let busybox = format!("busybox=oci-layout://{}", super::sandbox::busybox_layout().display());
    let line = format!(
        "{setup}; \"$0\" build --progress plain --pull=never --build-context {busybox} -o {output} \
         --build-arg SOURCE_DATE_EPOCH=4 context"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &line, env!("CARGO_BIN_EXE_wythe")]).current_dir(sandbox.path("."));
    let ended = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    Ended { code: ended.status.code(), stdout: ended.stdout, stderr }
}

/// The kernel stacks no overlay on an overlay on an overlay: there even reading layers takes something else.
#[test]
fn where_there_are_no_overlays_at_all_builds_work() {
    let sandbox = Sandbox::new();
    write_context(&sandbox.context);
    check_said(&build_after(&sandbox, "export WYTHE_ROOT=$PWD/store", "plain"), "overlay");
    let expected = diff_ids(&sandbox.path("plain"));
    let nested = "mkdir -p l u w m v x n; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m; \
                  mount -t overlay -o lowerdir=m,upperdir=v,workdir=x overlay n; rm -rf n/store; export WYTHE_ROOT=$PWD/n/store";
    check_said(&build_after(&sandbox, nested, "with"), "fuse");
    assert_eq!(diff_ids(&sandbox.path("with")), expected);
    let without = format!("{nested}; export PATH=/nowhere");
    let ended = build_after(&sandbox, &without, "without");
    check_said(&ended, "copy");
    assert!(ended.stderr.contains("apt-get install fuse-overlayfs"), "{}", ended.stderr);
    assert_eq!(diff_ids(&sandbox.path("without")), expected);
}

/// Directories of old filesystems do not say what is in them. The kernel makes overlays of them that show what
/// was deleted.
#[test]
fn a_filesystem_without_types_in_directories_is_told_apart() {
    let sandbox = Sandbox::new();
    write_context(&sandbox.context);
    check_said(&build_after(&sandbox, "export WYTHE_ROOT=$PWD/store", "plain"), "overlay");
    let mount = "truncate -s 200m disk; mkfs.ext4 -q -O ^filetype disk; mkdir -p m; mount -o loop disk m || exit 77; \
                 export WYTHE_ROOT=$PWD/m/store";
    let ended = build_after(&sandbox, mount, "old");
    #[allow(clippy::print_stderr)] // Says its name.
    if ended.code == Some(77) {
        eprintln!("a_filesystem_without_types_in_directories_is_told_apart: no loop device: {}", ended.stderr);
        return;
    }
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("does not tell the types of files"), "{}", ended.stderr);
    assert_eq!(diff_ids(&sandbox.path("old")), diff_ids(&sandbox.path("plain")));
}

/// Several names of a file below, of which one is written to: an overlay parts them. `fuse-overlayfs` is given them
/// apart, as to it they would stay one file.
#[test]
fn names_of_one_file_part_as_on_an_overlay() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox\nRUN echo a > /a && for name in b c e f g h; do ln /a /$name; done && touch -hd @1 /a\n\
         RUN cat /h /g /f /e /c /b /a && echo more >> /a && ln /b /d && chown 5:5 /c && rm /f && mv /g /i \\\n\
         && touch -hd @2 /a /b /c /i\n\
         RUN test \"$(cat /a /b /c /d /e /h /i)\" = \"$(printf 'a\\nmore\\na\\na\\na\\na\\na\\na')\" && test ! -e /f\n\
         RUN echo more >> /h && touch -hd @3 /h\nRUN test \"$(cat /h /e)\" = \"$(printf 'a\\nmore\\na')\"\n",
    );
    let mut expected = None;
    for footing in footings_of_root() {
        let setup = format!("export WYTHE_ROOT=$PWD/{footing}-store WYTHE_FOOTING={footing}");
        check_said(&build_after(&sandbox, &setup, footing), footing);
        let found = diff_ids(&sandbox.path(footing));
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{footing}");
    }
}

/// A fifo of a layer that is moved stays one; `fuse-overlayfs` makes a file of it.
#[test]
fn a_moved_fifo_stays_one() {
    let sandbox = Sandbox::new();
    let step = "RUN mv /fifo /moved && touch -hd @2 /moved\nRUN test -p /moved\n";
    sandbox.write("Dockerfile", &format!("FROM busybox\nRUN mkfifo /fifo && touch -hd @1 /fifo\n{step}"));
    let mut expected = None;
    for footing in footings_of_root().iter().filter(|footing| **footing != "fuse") {
        let setup = format!("export WYTHE_ROOT=$PWD/{footing}-store WYTHE_FOOTING={footing}");
        check_said(&build_after(&sandbox, &setup, footing), footing);
        let found = diff_ids(&sandbox.path(footing));
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{footing}");
    }
}

/// A capability of a file outlives a change of the file's mode, on every footing.
#[test]
fn capabilities_of_files_are_kept() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox\nCOPY tool /tool\nRUN chmod 711 /tool && touch -d @7 /tool\nRUN rm /etc/group\n",
    );
    fs::copy("/bin/busybox", sandbox.context.join("tool")).unwrap();
    let line = "PATH=$PATH:/sbin:/usr/sbin; setcap cap_net_raw,cap_chown+ep tool; touch -d @6 tool .";
    sandbox.shell(line);
    let mut expected = None;
    for footing in footings_of_root() {
        let setup = format!("export WYTHE_ROOT=$PWD/{footing}-store WYTHE_FOOTING={footing}");
        let ended = build_after(&sandbox, &setup, footing);
        check_said(&ended, footing);
        let found = diff_ids(&sandbox.path(footing));
        // The last step's directory has the present time.
        let found = found[..3].to_vec();
        assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{footing}");
        let out = build_after(
            &sandbox,
            &format!(
                "{setup}; \"$0\" build -q --build-context busybox=oci-layout://{} -o type=tar,dest={footing}.tar context",
                super::sandbox::busybox_layout().display()
            ),
            "again",
        );
        assert_eq!(out.code, Some(0), "{}", out.stderr);
        let tar = fs::read(sandbox.path(&format!("{footing}.tar"))).unwrap();
        let capability = b"SCHILY.xattr.security.capability=";
        assert!(tar.windows(capability.len()).any(|window| window == capability), "{footing}");
    }
}

/// What does not fit into memory says so.
#[test]
fn a_step_that_outgrows_memory_is_told_of_it() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=90\n");
    let setup =
        "mkdir small; mount -t tmpfs -o size=70m tmpfs small; export WYTHE_ROOT=$PWD/small/store WYTHE_FOOTING=memory";
    let ended = build_after(&sandbox, setup, "out");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = match maps_ids_of_memory() {
        true => "what it wrote did not fit into memory",
        false => "does not support id-mapped mounts",
    };
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
}

/// The same for a user, whose overlays lie in a user namespace.
#[test]
fn on_an_overlay_the_next_best_is_found_for_a_user() {
    let mut ordinary = Ordinary::new();
    write_context(&ordinary.sandbox.context);
    ordinary.setup = format!(
        "mkdir -p l u/store w /mnt/home/m; chown 4000:4000 u u/store /mnt/home/m; \
         mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay /mnt/home/m; {FUSE_FOR_ALL}"
    );
    let arguments = ["-o", "type=oci,tar=false,dest=/mnt/home/out", "--build-arg", "SOURCE_DATE_EPOCH=4"];
    let build = super::ordinary::build_args(&arguments);
    let ended = ordinary.run(&[&["/mnt/bin/wythe", "--root", "/mnt/home/m/store"][..], &build].concat());
    check_said(&ended, if memory_keeps_attributes() { "memory" } else { "fuse" });
    let expected = {
        let plain = Ordinary::new();
        write_context(&plain.sandbox.context);
        plain.built(&arguments);
        diff_ids(&plain.sandbox.path("home/out"))
    };
    assert_eq!(diff_ids(&ordinary.sandbox.path("home/out")), expected);
}

/// A footing that cannot be had says why, and what would help.
#[test]
fn without_the_program_there_is_no_fuse() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN : > /made\n");
    let arguments = sandbox.build_args("out.tar", &[]);
    let ended = sandbox.command(&arguments).env("WYTHE_FOOTING", "fuse").env("PATH", "/nowhere").output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("it is not installed") && stderr.contains("apt-get install fuse-overlayfs"), "{stderr}");
}
