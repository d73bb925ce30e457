//! The program run by an ordinary user, whom no test needs the machine to know: in a mount namespace of
//! its own, with an `/etc/passwd`, `/etc/subuid` and so on that only it sees. Needs `uidmap`.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sandbox::{Ended, Sandbox, busybox_layout};

/// The user and his group.
pub const UID: u32 = 4000;
/// The first of his subordinate ids; there are [`COUNT`].
pub const FIRST: u32 = 3_000_000;
pub const COUNT: u32 = 65_536;

/// A sandbox that belongs to an ordinary user. To the program it lies at `/mnt`: the way to its real
/// place may be closed to others.
pub struct Ordinary {
    pub sandbox: Sandbox,
    /// Shell lines that are run as root before the program, in the mount namespace.
    pub setup: String,
}

impl Ordinary {
    /// A user with subordinate ids.
    pub fn new() -> Self {
        let line = format!("ann:{FIRST}:{COUNT}\n");
        Self::with_ranges(&line, &line)
    }

    /// A user with these `/etc/subuid` and `/etc/subgid`.
    pub fn with_ranges(subuid: &str, subgid: &str) -> Self {
        assert!(Path::new("/usr/bin/newuidmap").exists(), "install uidmap: run `make deps`");
        let sandbox = Sandbox::new();
        for dir in ["bin", "etc", "home"] {
            fs::create_dir(sandbox.path(dir)).unwrap();
        }
        let passwd = format!("root:x:0:0::/root:/bin/sh\nann:x:{UID}:{UID}::/mnt/home:/bin/sh\n");
        for (file, content) in [("passwd", passwd.as_str()), ("subuid", subuid), ("subgid", subgid)] {
            fs::write(sandbox.path("etc").join(file), content).unwrap();
        }
        for dir in ["", "home", "context"] {
            chown(sandbox.path(dir), Some(UID), Some(UID)).unwrap();
        }
        Self { sandbox, setup: String::new() }
    }

    /// The program as the user; its process has the number that this command's has.
    pub fn command(&self, args: &[&str]) -> Command {
        // An exit instead of a failed mount: what is mounted over here would be the machine's own.
        const SCRIPT: &str = r#"
            mount --bind "$1" /mnt
            mkdir -p /mnt/bin/base && : > /mnt/bin/wythe
            mount --bind "$2" /mnt/bin/wythe
            mount --bind "$3" /mnt/bin/base
            for file in passwd subuid subgid; do mount --bind /mnt/etc/$file /etc/$file; done
            setup=$4; shift 4
            cd /mnt
            eval "$setup"
            exec setpriv --reuid 4000 --regid 4000 --clear-groups \
                env -i HOME=/mnt/home USER=ann PATH=/usr/local/bin:/usr/bin:/bin WYTHE_ROOT=/mnt/home/store "$@"
        "#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-euc", SCRIPT, "sh"])
            .args([self.sandbox.path("").as_path(), Path::new(env!("CARGO_BIN_EXE_wythe")), busybox_layout()])
            .arg(&self.setup)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs any command as the user.
    pub fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ended { code: output.status.code(), stdout: output.stdout, stderr }
    }

    pub fn wythe(&self, args: &[&str]) -> Ended {
        self.run(&[&["/mnt/bin/wythe"][..], args].concat())
    }

    /// Builds the context with plain progress; `busybox` is a known image.
    pub fn build(&self, args: &[&str]) -> Ended {
        self.wythe(&build_args(args))
    }

    /// The same; it must succeed.
    pub fn built(&self, args: &[&str]) -> Ended {
        let ended = self.build(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended
    }

    pub fn store(&self) -> PathBuf {
        self.sandbox.path("home/store")
    }
}

/// What builds the context with plain progress, or with that of JSON where `rawjson` is an argument.
pub fn build_args<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let progress = if args.contains(&"rawjson") { "rawjson" } else { "plain" };
    let fixed =
        ["build", "--progress", progress, "--pull=never", "--build-context", "busybox=oci-layout:///mnt/bin/base"];
    let args: Vec<_> = args.iter().copied().filter(|arg| *arg != "rawjson").collect();
    [&fixed[..], &args, &["context"]].concat()
}
