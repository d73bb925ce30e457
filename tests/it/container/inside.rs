//! What a payload finds.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use wythe::container::passwd::User;
use wythe::container::{HostAddress, Status};
use wythe::plan::{Network, Security};

use super::bench::{Bench, entries};

const BASE: u32 = 1 << 31;

#[test]
fn root_inside_is_nobody_outside() {
    let bench = Bench::new();
    assert_eq!(bench.output("id -u; id -g; id -G"), "0\n0\n0\n");
    for map in ["uid_map", "gid_map"] {
        let words = bench.output(&format!("cat /proc/self/{map}"));
        assert_eq!(words.split_whitespace().collect::<Vec<_>>(), ["0", "2147483648", "2147483646"]);
    }
    // What the host's root alone may open, seen through a descriptor of the host.
    let ran = bench.succeed(&bench.script("touch /made; chown 65534:65533 /made; touch /own; chown 70000 /own"));
    let stat = fs::metadata(ran.upper.join("made")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (65534, 65533));
    assert_eq!(fs::metadata(ran.upper.join("own")).unwrap().uid(), 70000);
    // The pipe of the output stands for all that belongs to the host: its owner is the mapped root.
    assert_eq!(bench.output("stat -Lc %u /dev/stdout"), "0\n");
}

#[test]
fn the_host_knows_the_payload_by_an_unprivileged_id() {
    let bench = Bench::new();
    bench.while_running("echo ready; sleep 1000; true", |payload| {
        let status = fs::read_to_string(format!("/proc/{payload}/status")).unwrap();
        let field = |name: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(|number| number.parse().unwrap()).collect()
        };
        assert_eq!(field("Uid:"), [BASE; 4]);
        assert_eq!(field("Gid:"), [BASE; 4]);
        assert_eq!(*field("NSpid:").last().unwrap(), 1);
    });
}

#[test]
fn namespaces_are_its_own() {
    let bench = Bench::new();
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let inside = bench.output("cd /proc/self/ns && for ns in cgroup ipc mnt net pid user uts; do readlink $ns; done");
    let inside: Vec<&str> = inside.lines().collect();
    assert_eq!(inside.len(), kinds.len());
    for (kind, inside) in kinds.iter().zip(inside) {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(outside.to_str(), Some(inside), "{kind}");
    }
    assert_eq!(bench.output("echo $$; hostname; cat /proc/1/comm; :"), "1\nbuildkitsandbox\nsh\n");
}

#[test]
fn environment_is_as_given_and_home() {
    let bench = Bench::new();
    let mut container = bench.container(&["env"]);
    container.env.push(("A".to_owned(), "two words".to_owned()));
    assert_eq!(bench.succeed(&container).output, "PATH=/usr/sbin:/bin\nA=two words\nHOME=/root\n");
    container = bench.renewed(container);
    container.env.push(("HOME".to_owned(), "/elsewhere".to_owned()));
    assert!(bench.succeed(&container).output.ends_with("HOME=/elsewhere\n"));
}

#[test]
fn standard_streams_and_no_other_descriptors() {
    let bench = Bench::new();
    // The fourth is the directory that `ls` reads.
    assert_eq!(bench.output("exec ls /proc/self/fd"), "0\n1\n2\n3\n");
    assert_eq!(bench.output("readlink /proc/self/fd/0; cat; umask; grep -c . /proc/1/environ"), "/dev/null\n0022\n1\n");
    assert_eq!(bench.output("echo out; echo err >&2; echo both > /dev/stderr"), "out\nerr\nboth\n");
    // The pipe belongs to the step's user.
    let mut container = bench.script("echo mine > /dev/stdout; id -u");
    container.user = bench.alice();
    assert_eq!(bench.succeed(&container).output, "mine\n1000\n");
}

#[test]
fn signals_have_their_default_actions() {
    let bench = Bench::new();
    // A shell has its own mind about some.
    let status = bench.succeed(&bench.container(&["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]));
    assert_eq!(status.output, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n");
    // A pipeline that loses its reader ends by SIGPIPE.
    assert_eq!(bench.output("yes | head -n 1"), "y\n");
}

#[test]
fn capabilities_are_dockers() {
    let bench = Bench::new();
    let script = "grep -E '^Cap' /proc/self/status | tr '\\n\\t' '  '";
    assert_eq!(
        bench.output(script),
        "CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb \
         CapBnd: 00000000a80425fb CapAmb: 0000000000000000 "
    );
    let mut container = bench.script(script);
    container.user = bench.alice();
    assert_eq!(
        bench.succeed(&container).output,
        "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 \
         CapBnd: 00000000a80425fb CapAmb: 0000000000000000 "
    );
    assert_eq!(bench.output("grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status"), "NoNewPrivs:\t0\nSeccomp:\t2\n");
}

#[test]
fn another_user_has_its_groups() {
    let bench = Bench::new();
    let mut container = bench.script("id -u; id -g; id -G; echo $HOME; cat /secret || echo denied");
    bench.write("base/secret", "root's alone");
    fs::set_permissions(bench.path("base/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    container.user = bench.alice();
    let output = bench.succeed(&container).output;
    assert_eq!(output, "1000\n1000\n1000 10\n/home/alice\ncat: can't open '/secret': Permission denied\ndenied\n");
}

#[test]
fn set_user_id_programs_work() {
    let bench = Bench::new();
    bench.write("base/etc/passwd", "root::0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n");
    fs::set_permissions(bench.path("base/bin/busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
    // `su` from the layer, and from a copy that a step made.
    let mut container = bench.script("id -u; su -c 'id -u; cat /proc/self/status | grep CapEff'");
    container.user = bench.alice();
    assert_eq!(bench.succeed(&container).output, "1000\n0\nCapEff:\t00000000a80425fb\n");
    let made = bench.succeed(&bench.script("mkdir /opt; cp /bin/busybox /opt/su; chmod 4711 /opt/su"));
    let mut container = bench.script("exec /opt/su -c 'id -u'");
    container.lowers.insert(0, made.upper);
    container.user = bench.alice();
    assert_eq!(bench.succeed(&container).output, "0\n");
}

#[test]
fn file_capabilities_land_as_the_image_format_has_them() {
    let bench = Bench::new();
    let mut container =
        bench.script("cp /bin/busybox /tool && /sbin/setcap cap_net_raw+ep /tool && /sbin/getcap /tool");
    // The host's own /usr below: `setcap` and its libraries.
    assert!(PathBuf::from("/usr/sbin/setcap").exists(), "install libcap2-bin");
    container.lowers.push("/usr".into());
    container.workdir = "/".to_owned();
    let ran = bench.succeed(&container);
    assert_eq!(ran.output, "/tool cap_net_raw=ep\n");
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(ran.upper.join("tool"), "security.capability", &mut value).unwrap();
    // Version 2, effective, CAP_NET_RAW: no id of a user namespace in it.
    let expected = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(value[..length], expected);
}

#[test]
fn devices_are_the_harmless_ones() {
    let bench = Bench::new();
    let names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(bench.output("echo $(ls /dev)"), format!("{names}\n"));
    assert_eq!(
        bench.output("head -c 3 /dev/zero | od -An -tx1; head -c 4 /dev/urandom | wc -c; echo x > /dev/null"),
        " 00 00 00\n4\n"
    );
    let full = bench.run(&bench.script("echo x > /dev/full"));
    assert!(full.output.contains("No space left on device"), "{}", full.output);
    let owners = "stat -c '%u:%g %a %n' /dev /dev/null /dev/fd /dev/pts /dev/ptmx /dev/shm /dev/mqueue /dev/pts/ptmx";
    for line in bench.output(owners).lines() {
        assert!(line.starts_with("0:0 "), "{line}");
    }
    // A terminal is of the group `tty`, as the C library expects.
    assert_eq!(bench.output("exec 3<>/dev/ptmx; stat -c '%u:%g %a %t' /dev/pts/0"), "0:5 620 88\n");
    // A pipe is no device.
    assert_eq!(bench.output("mknod /pipe p; stat -c %F /pipe"), "fifo\n");
}

#[test]
fn devices_of_the_image_are_dead() {
    let bench = Bench::new();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let null = rustix::fs::makedev(1, 3);
    let path = bench.path("base/device");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::CharacterDevice, mode, null).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let ran = bench.run(&bench.script("stat -c %F /device; cat /device"));
    assert_eq!(ran.output, "character special file\ncat: can't open '/device': Permission denied\n");
}

#[test]
fn kernel_files_are_masked_or_read_only() {
    let bench = Bench::new();
    for hidden in ["/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kcore"] {
        let script = format!("test ! -e {hidden} || head -c 9 {hidden} | wc -c");
        assert!(["0\n", ""].contains(&bench.output(&script).as_str()), "{hidden}");
    }
    for empty in ["/sys/firmware", "/proc/acpi", "/proc/scsi"] {
        assert_eq!(bench.output(&format!("test ! -e {empty} || ls -A {empty}")), "", "{empty}");
    }
    for frozen in ["/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/irq/default_smp_affinity"] {
        let ran = bench.run(&bench.script(&format!("cat {frozen} > /tmp/old; echo 1 > {frozen}")));
        assert!(ran.output.contains("Read-only file system"), "{frozen}: {}", ran.output);
    }
    for attempt in ["mkdir /sys/x", "mkdir /sys/firmware/x", "echo h > /proc/sysrq-trigger"] {
        let ran = bench.run(&bench.script(attempt));
        // Not every kernel has the last one, and nothing is made there.
        let is_refused =
            ["Read-only file system", "nonexistent directory"].iter().any(|said| ran.output.contains(said));
        assert!(is_refused, "{attempt}: {}", ran.output);
        assert_ne!(ran.exit.unwrap().status, Status::Exited(0));
    }
}

#[test]
fn the_filter_denies_what_docker_denies() {
    let bench = Bench::new();
    for command in ["mount -t tmpfs x /mnt", "unshare -U true", "umount /proc/keys", "hostname other", "chroot /tmp x"]
    {
        let ran = bench.run(&bench.script(&format!("mkdir -p /mnt; {command}")));
        assert_ne!(ran.exit.unwrap().status, Status::Exited(0), "{command}");
        let expected = if command.starts_with("chroot") { "No such file" } else { "ermi" };
        assert!(ran.output.contains(expected), "{command}: {}", ran.output);
    }
}

#[test]
fn insecure_steps_have_every_capability_and_may_mount() {
    let bench = Bench::new();
    let script =
        "mkdir /mnt; mount -t tmpfs x /mnt && touch /mnt/f && ls /mnt; grep -E '^(Seccomp|CapEff):' /proc/self/status";
    let mut container = bench.script(script);
    container.security = Security::Insecure;
    let output = bench.succeed(&container).output;
    let full = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let full = (1u64 << (full.trim().parse::<u32>().unwrap() + 1)) - 1;
    assert_eq!(output, format!("f\nCapEff:\t{full:016x}\nSeccomp:\t2\n"));
    // Still nobody outside.
    container = bench.renewed(container);
    container.argv[2] = "cat /proc/self/uid_map | tr -s ' '".to_owned();
    assert_eq!(bench.succeed(&container).output, " 0 2147483648 2147483646\n");
}

#[test]
fn without_network_there_is_loopback_only() {
    let bench = Bench::new();
    let mut container = bench.script("ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 | grep -c 'bytes from'");
    container.network = Network::None;
    assert_eq!(bench.succeed(&container).output, "lo\n1\n");
    // Ports below 1024 are root's in a network of its own. Not `echo hello | nc -l`: that ends with what it hears, which
    // may be before it says anything.
    let mut container = bench.script("nc -l -p 80 -e echo hello & while ! nc 127.0.0.1 80 2>/dev/null; do :; done");
    container.network = Network::None;
    assert_eq!(bench.succeed(&container).output, "hello\n");
}

#[test]
fn names_of_hosts() {
    let bench = Bench::new();
    let mut container = bench.script("cat /etc/hosts");
    container.hostname = "other".to_owned();
    container.extra_hosts = vec![("db".to_owned(), HostAddress::Ip([10, 1, 2, 3].into()))];
    let expected = "127.0.0.1\tlocalhost other\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n";
    assert_eq!(bench.succeed(&container).output, expected);
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut container = bench.script("cat /etc/resolv.conf");
    container.network = Network::Host;
    assert_eq!(bench.succeed(&container).output, host);
    let ran = bench.succeed(&bench.script("echo x >> /etc/hosts || stat -c '%u:%g %a' /etc/hosts"));
    assert!(ran.output.ends_with("0:0 644\n"), "{}", ran.output);
    assert_eq!(entries(&ran.upper), Vec::<String>::new());
}

#[test]
fn limits_and_shared_memory() {
    let bench = Bench::new();
    let mut container = bench.script("ulimit -n; ulimit -Hn; df -k /dev/shm | tail -n 1 | awk '{print $2}'");
    container.ulimits = vec![("nofile".to_owned(), 100, 200)];
    container.shm_size_bytes = 1 << 20;
    assert_eq!(bench.succeed(&container).output, "100\n200\n1024\n");
    container = bench.renewed(container);
    container.ulimits = vec![("nofiles".to_owned(), 1, 1)];
    let error = bench.run(&container).exit.unwrap_err();
    assert_eq!(error.message, "unknown resource `nofiles` in --ulimit");
    assert_eq!(error.hints, ["did you mean `nofile`?"]);
}

#[test]
fn the_working_directory_is_made_for_the_user() {
    let bench = Bench::new();
    let mut container = bench.script("pwd; touch here");
    container.user = bench.alice();
    container.workdir = "/some/where".to_owned();
    let ran = bench.succeed(&container);
    assert_eq!(ran.output, "/some/where\n");
    assert_eq!(entries(&ran.upper), ["some", "some/where", "some/where/here"]);
    for made in ["some", "some/where"] {
        let stat = fs::metadata(ran.upper.join(made)).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (1000, 1000, 0o755), "{made}");
    }
    let stat = fs::metadata(ran.upper.join("some/where/here")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (1000, 1000));
}

#[test]
fn working_directories_stay_inside() {
    let bench = Bench::new();
    let canary = tempfile::Builder::new().prefix("wythe-canary.").tempdir_in("/tmp").unwrap();
    symlink("/", bench.path("base/w")).unwrap();
    symlink("../../../..", bench.path("base/up")).unwrap();
    symlink(canary.path(), bench.path("base/out")).unwrap();
    let check = |workdir: &str, expected: &str| {
        let mut container = bench.script("pwd");
        container.workdir = workdir.to_owned();
        assert_eq!(bench.succeed(&container).output, format!("{expected}\n"), "{workdir}");
    };
    check("/w/../../tmp/x", "/tmp/x");
    check("/up/tmp/y/../z", "/tmp/z");
    // A link to nothing is made into something, inside.
    check("/out/deep", &format!("{}/deep", canary.path().display()));
    assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 0);
}

#[test]
fn working_directories_of_procfs_are_refused() {
    let bench = Bench::new();
    for number in (0..24).chain([63]) {
        for workdir in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../../..")] {
            let mut container = bench.script("pwd");
            container.workdir = workdir.clone();
            let error = bench.run(&container).exit.expect_err(&workdir);
            assert_eq!(error.message, format!("cannot enter the working directory `{workdir}`"));
        }
    }
    let mut container = bench.script("pwd");
    container.workdir = "/etc/passwd".to_owned();
    let error = bench.run(&container).exit.unwrap_err();
    assert_eq!(error.cause.unwrap(), "Not a directory (os error 20)");
}

#[test]
fn exec_errors_are_precise() {
    let bench = Bench::new();
    let executable = |name: &str, content: &[u8]| {
        fs::write(bench.path("base").join(name), content).unwrap();
        fs::set_permissions(bench.path("base").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    executable("script", b"#!/no/such/shell -e\necho\n");
    executable("carriage", b"#!/bin/sh\r\necho\n");
    executable("text", b"echo\n");
    executable("empty", b"");
    let mut foreign = fs::read("/bin/busybox").unwrap();
    foreign[18..20].copy_from_slice(&[0x34, 0x12]);
    executable("foreign", &foreign);
    executable("dynamic", &fs::read("/usr/bin/env").unwrap());
    fs::write(bench.path("base/bin/plain"), "#!/bin/sh\n").unwrap();
    let check = |argv: &[&str], expected: &str| {
        let error = bench.run(&bench.container(argv)).exit.expect_err(expected);
        assert_eq!(error.message, format!("cannot execute {expected}"));
    };
    check(&["no-such-binary"], "`no-such-binary`: not found in PATH");
    check(&["/no/such"], "`/no/such`: no such file in the image");
    check(&["./etc/passwd/x"], "`./etc/passwd/x`: no such file in the image");
    check(&["/etc/passwd"], "`/etc/passwd`: permission denied for `/etc/passwd`");
    check(&["/etc"], "`/etc`: `/etc` is a directory");
    check(&["plain"], "`plain`: permission denied for `/bin/plain`");
    check(&["/script"], "`/script`: its interpreter `/no/such/shell` is not in the image");
    check(&["/carriage"], "`/carriage`: its interpreter `/bin/sh\\r` is not in the image");
    check(&["/text"], "`/text`: `/text` is neither a program nor a script that begins with `#!`");
    check(&["/empty"], "`/empty`: `/empty` is an empty file");
    check(&["/foreign"], "`/foreign`: it is a program for machine 4660, which does not run here");
    let loader =
        if cfg!(target_arch = "x86_64") { "/lib64/ld-linux-x86-64.so.2" } else { "/lib/ld-linux-aarch64.so.1" };
    check(&["/dynamic"], &format!("`/dynamic`: its interpreter `{loader}` is not in the image"));
    let long = format!("/{}", "x".repeat(100_000));
    let error = bench.run(&bench.container(&[&long])).exit.unwrap_err();
    assert!(error.message.len() < 5000 && error.message.ends_with('…'), "{}", error.message);
    check(&[], "an empty command");
    check(&[""], "an empty command");
    // Found in the second directory of PATH, and beside the working directory.
    assert_eq!(bench.succeed(&bench.container(&["echo", "hi"])).output, "hi\n");
    assert_eq!(bench.succeed(&bench.container(&["bin/echo", "hi"])).output, "hi\n");
}

#[test]
fn ids_that_cannot_be_are_refused() {
    let bench = Bench::new();
    let mut container = bench.script("true");
    container.user = User { uid: u32::MAX, ..User::default() };
    let error = bench.run(&container).exit.unwrap_err();
    assert_eq!(error.message, "cannot run as user 4294967295 and group 0: there are no such ids here");
    let mut container = bench.script("id -u; touch /f");
    container.user = User { uid: 2147483645, gid: 5, ..User::default() };
    container.workdir = "/tmp".to_owned();
    assert_eq!(bench.run(&container).output, "2147483645\ntouch: /f: Permission denied\n");
}

#[test]
fn files_and_directories_are_on_one_device() {
    let bench = Bench::new();
    // `tar --one-file-system` leaves out what is not.
    let devices = bench.output("touch /new; stat -c %d / /etc /etc/passwd /bin/busybox /new /tmp");
    let devices: Vec<&str> = devices.lines().collect();
    assert!(devices.len() == 6 && devices.iter().all(|device| *device == devices[0]), "{devices:?}");
}
