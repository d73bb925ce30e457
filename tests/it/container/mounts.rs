//! `RUN --mount`, mount points, and what is left of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use wythe::container::passwd::User;
use wythe::container::{Container, Mount, MountKind, Status};

use super::bench::{Bench, Ran, entries};

fn at(target: &str, kind: MountKind) -> Mount {
    Mount { target: target.to_owned(), kind }
}

fn file(content: &str, mode: u32) -> MountKind {
    MountKind::File { content: content.as_bytes().to_owned(), mode, uid: 0, gid: 0 }
}

fn bind(root: &Path, path: &str) -> MountKind {
    MountKind::Bind { root: root.to_owned(), path: path.to_owned(), is_readonly: false }
}

fn context(root: &Path, path: &str, is_readonly: bool) -> MountKind {
    MountKind::Context { root: root.to_owned(), path: path.to_owned(), is_readonly }
}

fn with_mounts(bench: &Bench, script: &str, mounts: Vec<Mount>) -> Ran {
    bench.run(&Container { mounts, ..bench.script(script) })
}

/// A script that must succeed, its output, and that nothing is left but `left`.
fn check(bench: &Bench, script: &str, mounts: Vec<Mount>, output: &str, left: &[&str]) -> Ran {
    let ran = bench.succeed(&Container { mounts, ..bench.script(script) });
    assert_eq!(ran.output, output, "{script}");
    assert_eq!(entries(&ran.upper), left, "{script}");
    ran
}

#[test]
fn an_upper_holds_what_the_step_made_and_nothing_else() {
    let bench = Bench::new();
    let tools = || vec![at("/bin", bind(&bench.path("base/bin"), "/"))];
    let mut container = bench.script("mkdir /out; touch /out/f");
    container.lowers.clear();
    container.mounts = tools();
    let ran = bench.succeed(&container);
    assert_eq!(entries(&ran.upper), ["out", "out/f"]);
    let skeleton = entries_of_fd(&ran.exit.unwrap().skeleton);
    assert_eq!(skeleton, ["bin", "dev", "etc", "etc/hosts", "etc/resolv.conf", "proc", "sys"]);
    // The same over an image, and without own mounts.
    check(&bench, "mkdir /out; touch /out/f", vec![], "", &["out", "out/f"]);
}

fn entries_of_fd(fd: &std::os::fd::OwnedFd) -> Vec<String> {
    use std::os::fd::AsRawFd;
    entries(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())))
}

#[test]
fn a_secret_leaves_no_trace() {
    let bench = Bench::new();
    let kind = || MountKind::File { content: b"s3cret".to_vec(), mode: 0o440, uid: 5, gid: 6 };
    let script = "cat /run/secrets/tok; stat -c ' %a %u:%g' /run/secrets/tok; touch /made";
    check(&bench, script, vec![at("/run/secrets/tok", kind())], "s3cret 440 5:6\n", &["made"]);
    // Neither readable for others nor writable for root; the mount says what it may be used for.
    let mut container = bench.script("cat /run/secrets/tok; grep ' /run/secrets/tok ' /proc/mounts | cut -d' ' -f4");
    container.mounts = vec![at("/run/secrets/tok", kind())];
    container.user = User { uid: 7, gid: 7, ..User::default() };
    let output = bench.succeed(&container).output;
    assert!(
        output.starts_with("cat: can't open '/run/secrets/tok': Permission denied\nro,nosuid,nodev,noexec,"),
        "{output}"
    );
    let ran = with_mounts(&bench, "echo x > /run/secrets/tok", vec![at("/run/secrets/tok", kind())]);
    assert!(ran.output.contains("Read-only file system"), "{}", ran.output);
    // Over a file of the image, which stays.
    check(&bench, "cat /etc/group", vec![at("/etc/group", file("over", 0o444))], "over", &[]);
}

#[test]
fn scripts_can_be_executed() {
    let bench = Bench::new();
    let mounts = || vec![at("/dev/pipes/EOF", file("#!/bin/sh\necho script $0\n", 0o755))];
    check(&bench, "/dev/pipes/EOF", mounts(), "script /dev/pipes/EOF\n", &[]);
}

#[test]
fn a_cache_keeps_owners_and_content() {
    let bench = Bench::new();
    let cache = bench.path("cache");
    fs::create_dir(&cache).unwrap();
    chown(&cache, Some(7), Some(8)).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    let script = "stat -c '%a %u %g' /c; echo v > /c/x; chown 9 /c/x";
    check(&bench, script, vec![at("/c", bind(&cache, "/"))], "700 7 8\n", &[]);
    assert_eq!(fs::metadata(cache.join("x")).unwrap().uid(), 9);
    check(&bench, "cat /d/x", vec![at("/d", bind(&cache, "/"))], "v\n", &[]);
    let readonly = MountKind::Bind { root: cache.clone(), path: "/".to_owned(), is_readonly: true };
    let ran = with_mounts(&bench, "touch /c/y", vec![at("/c", readonly)]);
    assert!(ran.output.contains("Read-only file system"), "{}", ran.output);
    // A mount point inside it is taken away again.
    check(&bench, "cat /c/secret", vec![at("/c", bind(&cache, "/")), at("/c/secret", file("s", 0o400))], "s", &[]);
    assert_eq!(entries(&cache), ["x"]);
}

#[test]
fn a_context_is_roots_and_read_only() {
    let bench = Bench::new();
    bench.write("context/a.txt", "alpha\n");
    bench.write("context/dir/one", "1\n");
    let context_dir = bench.path("context");
    for path in [context_dir.clone(), context_dir.join("a.txt"), context_dir.join("dir")] {
        chown(path, Some(1000), Some(1001)).unwrap();
    }
    fs::set_permissions(context_dir.join("a.txt"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "cd /in; stat -c '%u:%g %n' . a.txt dir dir/one; cat a.txt; touch x";
    let ran = with_mounts(&bench, script, vec![at("/in", context(&context_dir, "/", true))]);
    // What belonged to the host's root is the one that is someone else's.
    let expected = "0:0 .\n0:0 a.txt\n0:0 dir\n1000:1001 dir/one\nalpha\ntouch: x: Read-only file system\n";
    assert_eq!(ran.output, expected, "{:?}", ran.exit.err());
    check(&bench, "cat /in.txt", vec![at("/in.txt", context(&context_dir, "a.txt", true))], "alpha\n", &[]);
    check(&bench, "ls /in", vec![at("/in", context(&context_dir, "/dir", true))], "one\n", &[]);
    // A file system that maps no ids shows everything as nobody's.
    let kernel = context(Path::new("/sys/kernel"), "/", true);
    check(&bench, "stat -c %u /in; test -d /in/mm", vec![at("/in", kernel)], "65534\n", &[]);
}

#[test]
fn writes_to_a_context_are_discarded() {
    let bench = Bench::new();
    bench.write("context/a.txt", "alpha\n");
    bench.write("context/dir/one", "1\n");
    let root = bench.path("context");
    let script = "echo changed > /in/a.txt; rm -r /in/dir; mkdir /in/new; cat /in/a.txt; ls /in";
    check(&bench, script, vec![at("/in", context(&root, "/", false))], "changed\na.txt\nnew\n", &[]);
    let script = "echo changed > /one; cat /one";
    check(&bench, script, vec![at("/one", context(&root, "dir/one", false))], "changed\n", &[]);
    assert_eq!(entries(&root), ["a.txt", "dir", "dir/one"]);
    assert_eq!(fs::read_to_string(root.join("a.txt")).unwrap(), "alpha\n");
    assert_eq!(fs::read_to_string(root.join("dir/one")).unwrap(), "1\n");
}

#[test]
fn layers_are_merged_and_changes_discarded() {
    let bench = Bench::new();
    bench.write("one/a", "a1\n");
    bench.write("one/dir/b", "b1\n");
    bench.write("two/a", "a2\n");
    let mode = rustix::fs::Mode::empty();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fs::create_dir(bench.path("two/dir")).map(|()| bench.path("two/dir/b")).unwrap(),
        rustix::fs::FileType::CharacterDevice,
        mode,
        0,
    )
    .unwrap();
    let layers = |names: &[&str], path: &str, is_readonly: bool| MountKind::Layers {
        lowers: names.iter().map(|name| bench.path(name)).collect(),
        path: path.to_owned(),
        is_readonly,
    };
    check(&bench, "cat /m/a; ls /m/dir", vec![at("/m", layers(&["two", "one"], "/", true))], "a2\n", &[]);
    check(&bench, "cat /m/a; ls /m/dir", vec![at("/m", layers(&["one"], "/", true))], "a1\nb\n", &[]);
    check(
        &bench,
        "cat /f; ls /m",
        vec![at("/f", layers(&["two", "one"], "a", true)), at("/m", layers(&["one"], "/dir", true))],
        "a2\nb\n",
        &[],
    );
    check(&bench, "ls /m", vec![at("/m", layers(&[], "/", true))], "", &[]);
    let ran = with_mounts(
        &bench,
        "touch /m/x; touch /n/x",
        vec![at("/m", layers(&["two", "one"], "/", true)), at("/n", layers(&["one"], "/", true))],
    );
    assert_eq!(ran.output.matches("Read-only file system").count(), 2, "{}", ran.output);
    let script = "echo n > /m/a; rm /m/dir/b; cat /m/a; ls /m/dir; stat -c '%u:%g %a' /m";
    check(&bench, script, vec![at("/m", layers(&["one"], "/", false))], "n\n0:0 755\n", &[]);
    assert_eq!(fs::read_to_string(bench.path("one/a")).unwrap(), "a1\n");
}

#[test]
fn sources_stay_in_their_roots() {
    let bench = Bench::new();
    let canary = tempfile::Builder::new().prefix("wythe-canary.").tempdir_in("/tmp").unwrap();
    fs::write(canary.path().join("host"), "the host's\n").unwrap();
    bench.write("evil/inside", "inside\n");
    symlink("/", bench.path("evil/root")).unwrap();
    symlink(canary.path(), bench.path("evil/out")).unwrap();
    symlink("../../../../../../../..", bench.path("evil/up")).unwrap();
    let kinds = |path: &str| {
        let path = path.to_owned();
        let root = bench.path("evil");
        [
            MountKind::Bind { root: root.clone(), path: path.clone(), is_readonly: true },
            MountKind::Context { root: root.clone(), path: path.clone(), is_readonly: true },
            MountKind::Context { root: root.clone(), path: path.clone(), is_readonly: false },
            MountKind::Layers { lowers: vec![root.clone()], path: path.clone(), is_readonly: true },
            MountKind::Layers { lowers: vec![root], path, is_readonly: false },
        ]
    };
    for path in ["/root", "up", "../..", "/root/up/root"] {
        for kind in kinds(path) {
            check(&bench, "cat /m/inside", vec![at("/m", kind)], "inside\n", &[]);
        }
    }
    for path in ["/out", "/nope", "out/host"] {
        for kind in kinds(path) {
            let error = with_mounts(&bench, "true", vec![at("/m", kind.clone())]).exit.unwrap_err();
            assert_eq!(
                error.message,
                format!("cannot mount `{path}`: No such file or directory (os error 2)"),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_tmpfs_is_empty_and_bounded() {
    let bench = Bench::new();
    bench.write("base/t/below", "");
    let tmpfs = |size_bytes: Option<u64>| vec![at("/t", MountKind::Tmpfs { size_bytes })];
    let script = "ls /t; stat -c '%a %u' /t; grep ' /t ' /proc/mounts | cut -d' ' -f1-3; echo x > /t/x";
    check(&bench, script, tmpfs(None), "1777 0\ntmpfs /t tmpfs\n", &[]);
    let script = "dd if=/dev/zero of=/t/x bs=1024 count=3000 2>/dev/null && echo fits || echo full";
    check(&bench, script, tmpfs(Some(1 << 20)), "full\n", &[]);
    check(&bench, script, tmpfs(Some(4 << 20)), "fits\n", &[]);
}

/// Names of the skeleton that the image hides, in every way it can.
#[test]
fn mount_points_that_the_image_hides_leave_no_trace() {
    let bench = Bench::new();
    let whiteout = |name: &str| {
        let path = bench.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::CharacterDevice, mode, 0).unwrap();
    };
    // A link to nothing, whiteouts of files and of directories, and a linked parent.
    symlink("../run/systemd/stub-resolv.conf", bench.path("base/etc/resolv.conf")).unwrap();
    symlink("/run", bench.path("base/var-run")).unwrap();
    whiteout("top/etc/hosts");
    whiteout("top/sys");
    whiteout("top/src");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let mut container = bench.script("cat /etc/hosts | head -n 1; ls -d /sys/kernel; cat /var-run/s/t /src/deep/u; test -e /run/systemd/stub-resolv.conf && touch /made");
    container.lowers.insert(0, bench.path("top"));
    container.mounts = vec![at("/var-run/s/t", file("t\n", 0o444)), at("/src/deep/u", file("u\n", 0o444))];
    for dir in ["base/etc", "top/etc", "base", "top"] {
        fs::File::open(bench.path(dir)).unwrap().set_modified(old).unwrap();
    }
    let ran = bench.succeed(&container);
    assert_eq!(ran.output, "127.0.0.1\tlocalhost buildkitsandbox\n/sys/kernel\nt\nu\n");
    // What was copied up on the way is as it was.
    assert_eq!(entries(&ran.upper), ["etc", "made"]);
    assert_eq!(fs::metadata(ran.upper.join("etc")).unwrap().modified().unwrap(), old);
}

#[test]
fn mount_points_that_are_used_stay() {
    let bench = Bench::new();
    symlink("/real", bench.path("base/linked")).unwrap();
    // Beside the mount the step makes a file of its own.
    let mounts = vec![at("/linked/a/secret", file("s", 0o400))];
    check(&bench, "touch /real/a/own", mounts, "", &["real", "real/a", "real/a/own"]);
}

/// The directory of a stub becomes a link to a directory of the same shape elsewhere.
#[test]
fn cleaning_up_follows_no_links() {
    let bench = Bench::new();
    symlink("/real", bench.path("base/linked")).unwrap();
    bench.write("base/other/a/secret", "");
    let script = "mkdir /b; mv /real/a /b/ 2>/dev/null; cp -r /other /fake; mv /real /kept; ln -s /fake /real; ls -d /real/a/secret";
    let mut container = bench.script(script);
    container.mounts = vec![at("/linked/a/secret", file("s", 0o400))];
    let ran = bench.run(&container);
    assert_eq!(ran.exit.unwrap().status, Status::Exited(0), "{}", ran.output);
    assert!(entries(&ran.upper).contains(&"fake/a/secret".to_owned()), "{:?}", entries(&ran.upper));
}

#[test]
fn links_where_masks_are_needed_are_refused() {
    for name in ["proc", "sys", "dev"] {
        let bench = Bench::new();
        symlink("/tmp", bench.path("base").join(name)).unwrap();
        let error = bench.run(&bench.script("true")).exit.unwrap_err();
        assert_eq!(error.message, format!("cannot mount on `/{name}`: in the image it is not a directory"));
        fs::remove_file(bench.path("base").join(name)).unwrap();
        bench.write(&format!("base/{name}"), "a file");
        let error = bench.run(&bench.script("true")).exit.unwrap_err();
        assert_eq!(error.message, format!("cannot mount on `/{name}`: in the image it is not a directory"));
    }
}

#[test]
fn targets_of_the_wrong_kind_are_refused() {
    let bench = Bench::new();
    let check = |mount: Mount, cause: &str| {
        let target = mount.target.clone();
        let error = with_mounts(&bench, "true", vec![mount]).exit.unwrap_err();
        assert_eq!(error.message, format!("cannot make a mount point at `{target}`"));
        assert_eq!(error.cause.as_deref(), Some(cause));
    };
    check(at("/etc", file("", 0o444)), "a file is to be mounted, and the target is a directory");
    check(
        at("/etc/passwd", MountKind::Tmpfs { size_bytes: None }),
        "a directory is to be mounted, and the target is a file",
    );
    check(at("/etc/passwd/x", file("", 0o444)), "Not a directory (os error 20)");
    for target in ["/", "//.", ""] {
        let error = with_mounts(&bench, "true", vec![at(target, MountKind::Tmpfs { size_bytes: None })]).exit;
        assert_eq!(error.unwrap_err().message, "cannot mount on `/`");
    }
    check(at("/proc/self/fd/0/x", file("", 0o444)), "Too many levels of symbolic links (os error 40)");
}

/// A file of the host's root is out of reach even where a mount leads to it.
#[test]
fn host_files_are_not_opened_by_root_inside() {
    let bench = Bench::new();
    bench.write("host/secret", "the host's\n");
    fs::set_permissions(bench.path("host/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    // A descriptor of the host's own mount, not id-mapped, is what a leak would be; the pipe's end
    // of the output is passed by file here.
    let file = fs::OpenOptions::new().append(true).open(bench.path("host/secret")).unwrap();
    let exit = bench.spawner.run(&bench.script("echo written; cat /dev/stdout; echo again > /dev/stdout"), file.into());
    assert_ne!(exit.unwrap().status, Status::Exited(0));
    // Written through the descriptor that was given, never opened again.
    let content = fs::read_to_string(bench.path("host/secret")).unwrap();
    assert!(content.starts_with("the host's\nwritten\n") && !content.contains("again\n"), "{content}");
    assert_eq!(fs::metadata(bench.path("host/secret")).unwrap().uid(), 0);
}
