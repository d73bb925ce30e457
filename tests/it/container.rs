//! The container of a RUN, seen from inside and from the host. Needs root, and Debian's
//! `busybox-static` for a root file system.
//!
//! `Spawner::fork` is called on the test's own thread: the spawner lives no longer than that thread
//! and the C library's fork keeps it apart from the other tests' threads.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wythe::container::passwd::User;
use wythe::container::{Container, Exit, Mount, MountKind, Spawner, Status};
use wythe::diag::{Diagnostic, Result};
use wythe::plan::{Network, Security};

/// A directory for one test with a busybox layer in it, and the spawner to run steps with.
struct Bench {
    dir: TempDir,
    spawner: Spawner,
    drafts: std::sync::atomic::AtomicU32,
}

/// What a step left.
struct Ran {
    exit: Result<Exit>,
    output: String,
    upper: PathBuf,
}

impl Bench {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let spawner = Spawner::fork().unwrap();
        let dir = tempfile::Builder::new().prefix("wythe-container.").tempdir().unwrap();
        let bench = Self { dir, spawner, drafts: 0.into() };
        bench.write("base/etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n");
        bench.write("base/etc/group", "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n");
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| is_static(path));
        let busybox = busybox.expect("install busybox-static");
        for dir in ["bin", "tmp", "root", "home/alice"] {
            fs::create_dir_all(bench.path("base").join(dir)).unwrap();
        }
        fs::set_permissions(bench.path("base/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(busybox, bench.path("base/bin/busybox")).unwrap();
        let list = std::process::Command::new(busybox).arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
            symlink("busybox", bench.path("base/bin").join(applet)).unwrap();
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn draft(&self) -> PathBuf {
        let number = self.drafts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let draft = self.path(&format!("draft.{number}"));
        for name in ["u", "w"] {
            fs::create_dir_all(draft.join(name)).unwrap();
        }
        draft
    }

    fn container(&self, argv: &[&str]) -> Container {
        Container {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/usr/sbin:/bin".to_owned())],
            workdir: "/".to_owned(),
            user: User { home: "/root".to_owned(), ..User::default() },
            hostname: "buildkitsandbox".to_owned(),
            extra_hosts: Vec::new(),
            network: Network::Default,
            security: Security::Sandbox,
            lowers: vec![self.path("base")],
            draft: self.draft(),
            mounts: Vec::new(),
            shm_size_bytes: 64 << 20,
            ulimits: Vec::new(),
        }
    }

    fn script(&self, script: &str) -> Container {
        self.container(&["/bin/sh", "-c", script])
    }

    fn run(&self, container: &Container) -> Ran {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut output = Vec::new();
            reader.read_to_end(&mut output).unwrap();
            String::from_utf8_lossy(&output).into_owned()
        });
        let exit = self.spawner.run(container, OwnedFd::from(writer));
        Ran { exit, output: reading.join().unwrap(), upper: container.draft.join("u") }
    }

    /// What a script prints; it must succeed.
    fn output(&self, script: &str) -> String {
        self.succeed(&self.script(script)).output
    }

    fn succeed(&self, container: &Container) -> Ran {
        let ran = self.run(container);
        let status = ran.exit.as_ref().map(|exit| exit.status);
        assert_eq!(status, Ok(Status::Exited(0)), "{:?}: {}", container.argv, ran.output);
        ran
    }
}

fn is_static(path: &str) -> bool {
    // The name of the loader stands in a dynamic program.
    fs::read(path).is_ok_and(|bytes| !bytes.windows(8).any(|window| window == b"/ld-linu"))
}

#[test]
fn smoke() {
    let bench = Bench::new();
    let ran = bench.run(&bench.script("id; cat /proc/self/uid_map; hostname; echo $$; ls -la / /dev /proc/self/fd; cat /proc/mounts; grep -i cap /proc/self/status; env; pwd; cat /etc/hosts"));
    println!("{:?}\n{}", ran.exit, ran.output);
    panic!();
}

#[test]
fn cost() {
    let bench = Bench::new();
    let mut times = Vec::new();
    for _ in 0..200 {
        let container = bench.container(&["/bin/true"]);
        let start = std::time::Instant::now();
        bench.succeed(&container);
        times.push(start.elapsed().as_micros());
        fs::remove_dir_all(&container.draft).unwrap();
    }
    times.sort_unstable();
    println!("p10 {} p50 {} p90 {}", times[20], times[100], times[180]);
}
