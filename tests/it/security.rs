//! What a Dockerfile, a context or an image could try against the machine that builds it, by whoever builds:
//! each finds nothing but its own root.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::process::Signal;

use super::builder::Builder;
use super::image::Image;
use super::sandbox::{Ended, holds};

/// What lies beside the context and the store, where nothing may be made.
fn beside(builder: &Builder) -> BTreeSet<String> {
    let entries = fs::read_dir(builder.sandbox().path("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !["store", "image.tar"].contains(&name.as_str())).collect()
}

/// What the steps of a build have said, in order.
fn said(ended: &Ended) -> Vec<&str> {
    let of_step = |line: &'_ str| -> Option<usize> {
        let (number, rest) = line.strip_prefix('#')?.split_once(' ')?;
        let (time, _) = rest.split_once(' ')?;
        (number.parse::<u32>().is_ok() && time.parse::<f64>().is_ok()).then_some(number.len() + time.len() + 3)
    };
    ended.stderr.lines().filter_map(|line| Some(&line[of_step(line)?..])).collect()
}

/// CVE-2024-9675: an `id` is a name and no path.
#[test]
fn ids_of_caches_lead_nowhere() {
    Builder::each(|builder| {
        let long = "x".repeat(5000);
        let ids = ["../../etc", "../../../../etc", "/etc", "..", ".", "/", "a/../../b", "a/b", "\\n", "%2e%2e", &long];
        let mounts: String =
            ids.iter().enumerate().map(|(n, id)| format!("--mount=type=cache,id={id},target=/c/{n} \\\n")).collect();
        let run = |script: &str| format!("RUN {mounts} for n in $(seq 0 {}); do {script}; done\n", ids.len() - 1);
        let write = run("ls -A /c/$n; echo cache $n > /c/$n/own");
        let read = run("cat /c/$n/own");
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{write}{read}"));
        let before = beside(builder);
        let ended = builder.built(&[]);
        let own: Vec<String> = (0..ids.len()).map(|n| format!("cache {n}")).collect();
        assert_eq!(said(&ended), own);
        assert_eq!(beside(builder), before);
        let folders = fs::read_dir(builder.store().join("mounts")).unwrap();
        let folders: Vec<_> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(folders.len(), ids.len());
        assert!(folders.iter().all(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())));
    });
}

/// CVE-2024-1753, CVE-2024-9675: links of an image and of a context are followed in their root.
#[test]
fn sources_and_targets_of_mounts_stay_inside() {
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        let canary = sandbox.path("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "the host's\n").unwrap();
        let canary = canary.display();
        for (name, target) in [("root", "/"), ("up", "../../../../../../.."), ("out", &*canary.to_string())] {
            symlink(target, sandbox.context.join(name)).unwrap();
        }
        sandbox.write("inside", "");
        let evil = format!(
            "FROM busybox AS evil\nRUN touch /inside; ln -s / /root.link; ln -s ../../../../.. /up; ln -s {canary} /out\n\
             FROM busybox\nRUN ln -s / /root.link; ln -s ../../../../.. /up; ln -s {canary} /out; mkdir /d\n"
        );
        let before = beside(builder);
        let sources = [
            ("bind", "", "root"),
            ("bind,rw", "", "up"),
            ("bind", ",from=evil", "root.link"),
            ("bind,rw", ",from=evil", "up"),
            ("cache", ",from=evil", "root.link"),
            ("cache", ",from=evil", "up"),
        ];
        let mut mounts = String::new();
        for (number, (kind, from, link)) in sources.iter().enumerate() {
            mounts += &format!("--mount=type={kind}{from},source={link},target=/m/{number}.0 ");
            mounts += &format!("--mount=type={kind}{from},source=../{link}/{link}/../../.,target=/m/{number}.1 ");
        }
        let script = "for m in /m/*; do test -e $m/inside && ! test -e $m/canary || exit; done; ls /m | wc -l";
        sandbox.write("Dockerfile", &format!("{evil}RUN {mounts} {script}\n"));
        assert_eq!(said(&builder.built(&[])), ["12"]);
        // What lies outside is not there.
        for (kind, from, _) in sources {
            let kind = if kind == "cache" { "cache,id=another" } else { kind };
            let run = format!("RUN --mount=type={kind}{from},source=out/file,target=/m cat /m");
            sandbox.write("Dockerfile", &format!("{evil}{run}\n"));
            let ended = builder.build(&[]);
            assert_eq!(ended.code, Some(1), "{run}: {}", ended.stderr);
            assert!(said(&ended).is_empty(), "{run}: {}", ended.stderr);
        }
        // What is made for a target is made inside, and taken away again.
        let mut run = "RUN".to_owned();
        let targets = ["/root.link/d/m", "/up/d/n", "/d/../../../d/o", "/out/p", "/root.link/../out/deep/q"];
        for (target, kind) in
            targets.iter().zip(["bind,source=inside", "tmpfs", "cache", "tmpfs", "bind,source=inside"])
        {
            run += &format!(" --mount=type={kind},target={target}");
        }
        run += &format!(" for m in {}; do test -e $m || exit; done", targets.join(" "));
        sandbox.write("Dockerfile", &format!("{evil}{run}\nRUN ls /d\n"));
        assert!(said(&builder.built(&[])).is_empty());
        assert_eq!(beside(builder), before);
        assert_eq!(fs::read_dir(sandbox.path("canary")).unwrap().count(), 1);
    });
}

/// CVE-2024-23651, CVE-2024-23652, CVE-2024-11218: another build changes a cache while mounts are made in it and
/// what was made for them is taken away.
#[test]
fn a_cache_that_changes_leads_no_mount_out() {
    const SECRET: &str = "a s3cret for nobody else";
    Builder::each(|builder| {
        let sandbox = builder.sandbox();
        let canary = sandbox.path("canary");
        fs::create_dir_all(canary.join("deep")).unwrap();
        fs::write(canary.join("deep/x"), "the host's\n").unwrap();
        fs::write(sandbox.path("secret"), SECRET).unwrap();
        let link = canary.display();
        let dockerfile = format!(
            "FROM busybox AS swap\nRUN --mount=type=cache,id=c,target=/c mkdir -p /c/a/deep; ln -s {link} /c/b; echo up; \\\n\
             until [ -e /c/enough ]; do mv /c/a /c/sub; mv /c/sub /c/a; mv /c/b /c/sub; mv /c/sub /c/b; done\n\
             FROM busybox AS use\nRUN --mount=type=cache,id=c,target=/c --mount=type=secret,id=s,target=/c/sub/deep/x true\n\
             FROM busybox AS stop\nRUN --mount=type=cache,id=c,target=/c touch /c/enough\n"
        );
        sandbox.write("Dockerfile", &dockerfile);
        let mut swapping = builder.follow(&["--target", "swap"]);
        swapping.until("up");
        for _ in 0..12 {
            let ended = builder.build(&["--target", "use", "--no-cache", "--secret", "id=s,src=secret"]);
            // What is not there may be missed, and no more.
            assert!([Some(0), Some(1)].contains(&ended.code), "{}", ended.stderr);
            assert_eq!(fs::read_to_string(canary.join("deep/x")).unwrap(), "the host's\n");
            assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
        }
        builder.built(&["--target", "stop"]);
        let (code, rest) = swapping.end();
        assert_eq!(code, Some(0), "{rest:?}");
        assert!(!holds(&builder.store(), SECRET), "the store has a secret");
    });
}

/// Names that could be taken for paths are refused, and nothing is made of them.
#[test]
fn names_are_no_paths() {
    Builder::each(|builder| {
        builder.sandbox().write("file", "");
        let before = beside(builder);
        let build = |dockerfile: &str, args: &[&str]| {
            builder.sandbox().write("Dockerfile", dockerfile);
            let ended = builder.build(args);
            assert!(
                [Some(1), Some(2)].contains(&ended.code),
                "{dockerfile} {args:?}: {:?} {}",
                ended.code,
                ended.stderr
            );
            assert!(ended.stderr.contains("error: "), "{dockerfile} {args:?}: {}", ended.stderr);
            assert_eq!(beside(builder), before, "{dockerfile} {args:?}");
        };
        for name in ["../../x", "/x", "..", ".", "a/../../x", "~/x", "%2e%2e/x"] {
            build(&format!("FROM busybox AS {name}\n"), &[]);
            build(&format!("FROM {name}\n"), &[]);
            build(&format!("FROM busybox\nCOPY --from={name} / /x\n"), &[]);
            build(&format!("FROM busybox\nRUN --mount=from={name},target=/x true\n"), &[]);
            build("FROM busybox AS last\n", &["--target", name]);
            build("FROM busybox\n", &["-t", name]);
            build(&format!("FROM --platform={name} busybox\n"), &[]);
            build(&format!("FROM --platform=linux/amd64/{name} busybox\n"), &[]);
            build("FROM busybox\n", &["--platform", name]);
            build("FROM busybox\n", &["--secret", &format!("id={name},src=/nonexistent")]);
            build(&format!("FROM busybox\nRUN --mount=type=secret,required,id={name} true\n"), &[]);
        }
    });
}

/// CVE-2026-15792: a word that is not known is an error and never a default.
#[test]
fn unknown_words_fail_closed() {
    Builder::each(|builder| {
        let build = |run: &str, args: &[&str]| {
            builder.sandbox().write("Dockerfile", &format!("FROM busybox\n{run} echo it ran\n"));
            let ended = builder.build(args);
            assert!([Some(1), Some(2)].contains(&ended.code), "{run} {args:?}: {:?} {}", ended.code, ended.stderr);
            assert!(said(&ended).is_empty(), "{run} {args:?}: {}", ended.stderr);
            ended
        };
        for value in ["", "none", "Insecure", "insecure,sandbox", "unconfined", "privileged", "$X"] {
            build(&format!("RUN --security={value}"), &[]);
            build(&format!("RUN --security={value}"), &["--allow", "security.insecure"]);
        }
        for value in ["", "bridge", "Host", "container:x", "None", "$X"] {
            build(&format!("RUN --network={value}"), &["--allow", "network.host"]);
        }
        for options in [
            "type=,target=/m",
            "type=volume,target=/m",
            "type=bindd,target=/m",
            "type=cache,sharing=,target=/m",
            "type=cache,sharing=exclusive,target=/m",
            "type=cache,mode=,target=/m",
            "type=cache,mode=99999,target=/m",
            "type=cache,uid=-1,target=/m",
            "type=cache,uid=4294967296,target=/m",
            "type=bind,ro=maybe,target=/m",
            "type=bind,bind-propagation=rshared,target=/m",
            "type=bind,target=/m,from=,z",
            "type=tmpfs,size=-1,target=/m",
            "type=tmpfs,size=1,mode=suid,target=/m",
            "type=secret,required=perhaps,target=/m",
        ] {
            build(&format!("RUN --mount={options}"), &[]);
        }
        for args in [
            ["--network", "bridge"],
            ["--network", ""],
            ["--allow", "security"],
            ["--allow", "security.everything"],
            ["--allow", "network"],
            ["--allow", ""],
            ["--ulimit", "nofile"],
            ["--pids-limit", "-2"],
            ["--memory", "much"],
        ] {
            build("RUN", &args);
        }
        // Before anything runs, the step before it too.
        let ended = build("RUN echo first\nRUN --security=insecure", &[]);
        assert!(ended.stderr.contains("--allow security.insecure"), "{}", ended.stderr);
        let ended = build("RUN echo first\nRUN --network=host", &[]);
        assert!(ended.stderr.contains("--allow network.host"), "{}", ended.stderr);
    });
}

/// CVE-2024-23653: with leave only, and then no more than a user namespace gives.
#[test]
fn an_insecure_step_is_root_of_its_user_namespace_alone() {
    Builder::each(|builder| {
        let build = |script: &str| {
            builder.sandbox().write("Dockerfile", &format!("FROM busybox\nRUN --security=insecure {script}\n"));
            builder.build(&["--allow", "security.insecure"])
        };
        let ended = build(
            "mkdir /m /b; mount -t tmpfs t /m && touch /m/in && mount --bind /m /b && ls /b && umount /b && umount /m; \
             mknod /null c 1 3; mknod /dev/zero2 c 1 5 && head -c 2 /dev/zero2 | wc -c; rm -r /m /b",
        );
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(said(&ended), ["in", "2"]);
        let image = Image::read(&fs::read(builder.sandbox().path("image.tar")).unwrap());
        assert!(image.files["null"].starts_with("device 0644 0:0 1 3"), "{:?}", image.files["null"]);
        for attempt in [
            "mknod /dev/sda b 8 0 && head -c 1 /dev/sda",
            "mkdir /p && mount -t proc p /p",
            "echo 1 > /proc/sys/vm/drop_caches",
            "echo h > /proc/sysrq-trigger",
        ] {
            let ended = build(attempt);
            assert_eq!(ended.code, Some(1), "{attempt}: {}", ended.stderr);
            let hint = "an insecure step is root of a user namespace and not of this machine";
            assert!(ended.stderr.contains(hint), "{attempt}: {}", ended.stderr);
        }
    });
}

/// A build through a shell line, which ends with `exec "$@"`.
fn built_through(builder: &Builder, line: &str) -> Ended {
    let through = |program: &str, args: &[&str]| -> Vec<String> {
        let words = ["sh", "-c", line, "sh", program].into_iter().chain(args.iter().copied());
        words.map(str::to_owned).collect()
    };
    let output = match builder {
        Builder::Oneself(sandbox) => {
            let args = sandbox.build_args("image.tar", &[]);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let words = through(env!("CARGO_BIN_EXE_wythe"), &args);
            let plain = sandbox.command::<&str>(&[]);
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).env_clear().current_dir(plain.get_current_dir().unwrap());
            command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command.output().unwrap()
        }
        Builder::User(user) => {
            let args = super::ordinary::build_args(&["-o", "type=oci,dest=image.tar"]);
            let words = through("/mnt/bin/wythe", &args);
            user.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
        }
    };
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

/// CVE-2021-3602: what the builder's environment has is the builder's.
#[test]
fn a_step_has_no_environment_of_the_builders() {
    Builder::each(|builder| {
        let dockerfile = "FROM busybox\nENV OWN=1\nARG HTTP_PROXY\nARG TOKEN\n\
                          RUN env | sort; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | grep -q 'leake[d]' || echo none\n";
        builder.sandbox().write("Dockerfile", dockerfile);
        let variables =
            ["HTTP_PROXY", "https_proxy", "NO_PROXY", "TOKEN", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD_X", "OWN"];
        let exports: String = variables.iter().map(|name| format!("export {name}=http://leaked; ")).collect();
        let ended = built_through(builder, &format!("{exports} exec \"$@\""));
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(said(&ended), ["HOME=/root", "OWN=1", path, "PWD=/", "SHLVL=1", "none"], "{}", ended.stderr);
        assert!(!holds(&builder.store(), "http://leaked"));
        let image = fs::read(builder.sandbox().path("image.tar")).unwrap();
        assert!(!Image::read(&image).config.to_string().contains("leaked"));
    });
}

/// CVE-2024-21626: a descriptor that the builder has is not a step's, and no working directory.
#[test]
fn a_step_has_no_descriptors_of_the_builders() {
    Builder::each(|builder| {
        builder.sandbox().write("Dockerfile", "FROM busybox\nRUN exec ls /proc/self/fd\n");
        let ended = built_through(builder, "exec 3</ 4</etc 5</etc/passwd 9</; exec \"$@\"");
        // The fourth is the directory that `ls` reads.
        assert_eq!(said(&ended), ["0", "1", "2", "3"], "{}", ended.stderr);
        for workdir in ["/proc/self/fd/3", "/proc/self/fd/9/etc", "/proc/self/cwd", "/proc/1/root", "/dev/fd/3"] {
            builder.sandbox().write("Dockerfile", &format!("FROM busybox\nWORKDIR {workdir}\nRUN pwd; ls\n"));
            let ended = builder.build(&[]);
            let is_own = said(&ended).iter().all(|line| !["canary", "context", "store", "vmlinuz"].contains(line));
            assert!(ended.code != Some(0) && is_own, "{workdir}: {:?} {}", ended.code, ended.stderr);
        }
    });
}

/// CVE-2023-25173, CVE-2022-2990: a step has the groups of its user, and none of the builder's.
#[test]
fn a_step_has_the_groups_of_its_user() {
    Builder::each(|builder| {
        let files = "echo app:x:1234:1234::/:/bin/sh >> /etc/passwd; \
                     printf 'app:x:1234:\\nmail:x:8:app\\nstaff:x:50:app,root\\n' >> /etc/group";
        let groups = "RUN grep ^Groups: /proc/self/status | tr '\\t' ' '; id -g\n";
        let users = ["root", "app", "app:mail", "1234", "1234:77", "4321", "app:0"];
        let steps: String = users.iter().map(|user| format!("USER {user}\n{groups}")).collect();
        let dockerfile = format!("FROM busybox\nRUN mkdir -p /etc; {files}\n{steps}");
        builder.sandbox().write("Dockerfile", &dockerfile);
        let line = match rustix::process::geteuid().is_root() && matches!(builder, Builder::Oneself(_)) {
            true => "exec setpriv --groups 4,27,1000 \"$@\"",
            false => "exec \"$@\"",
        };
        let ended = built_through(builder, line);
        let said: Vec<_> = said(&ended).chunks(2).map(|pair| format!("{} {}", pair[0].trim(), pair[1])).collect();
        assert_eq!(
            said,
            [
                "Groups: 0 10 50 0",
                "Groups: 8 50 1234 1234",
                "Groups: 8 8",
                "Groups: 8 50 1234 1234",
                "Groups: 77 77",
                "Groups: 0 0",
                "Groups: 0 0"
            ],
            "{}",
            ended.stderr
        );
    });
}

/// Nobody but the builder ends its build.
#[test]
fn a_step_cannot_signal_the_builder() {
    Builder::each(|builder| {
        let script = "kill -9 -1; kill -9 $PPID 2> /dev/null; kill -9 1; echo still here";
        builder.sandbox().write("Dockerfile", &format!("FROM busybox\nRUN {script}\n"));
        let mut build = builder.follow(&[]);
        build.until("still here");
        build.signal(Signal::CONT);
        assert_eq!(build.end().0, Some(0));
    });
}
