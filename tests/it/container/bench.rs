//! A directory with a busybox layer in it and a spawner, and what tests do with them.
//!
//! `Spawner::fork` is called on the test's own thread: the spawner lives no longer than that thread,
//! and the C library's fork keeps it apart from the other tests' threads.

use std::fs;
use std::io::{BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;
use wythe::container::passwd::User;
use wythe::container::{Container, Dns, Exit, Limits, Spawner, Status};
use wythe::diag::Result;
use wythe::image::Platform;
use wythe::plan::{Network, Security};

/// What a test works with.
pub struct Bench {
    dir: TempDir,
    pub spawner: Spawner,
    drafts: std::sync::atomic::AtomicU32,
}

/// What a step left.
pub struct Ran {
    pub exit: Result<Exit>,
    pub output: String,
    /// On the host.
    pub upper: PathBuf,
}

impl Bench {
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn draft(&self) -> PathBuf {
        let number = self.drafts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let draft = self.path(&format!("draft.{number}"));
        for name in ["u", "w"] {
            fs::create_dir_all(draft.join(name)).unwrap();
        }
        draft
    }

    pub fn container(&self, argv: &[&str]) -> Container {
        Container {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PATH".to_owned(), "/usr/sbin:/bin".to_owned())],
            platform: Platform::host(),
            workdir: "/".to_owned(),
            user: User { home: "/root".to_owned(), ..User::default() },
            hostname: "buildkitsandbox".to_owned(),
            extra_hosts: Vec::new(),
            dns: Dns::default(),
            network: Network::Default,
            security: Security::Sandbox,
            lowers: vec![self.path("base")],
            draft: self.draft(),
            ground: wythe::container::Given::default(),
            mounts: Vec::new(),
            shm_size_bytes: 64 << 20,
            ulimits: Vec::new(),
            limits: Limits::default(),
            timeout: None,
            tells_when_mounted: false,
        }
    }

    pub fn script(&self, script: &str) -> Container {
        self.container(&["/bin/sh", "-c", script])
    }

    pub fn run(&self, container: &Container) -> Ran {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reading = std::thread::spawn(move || {
            let mut output = Vec::new();
            reader.read_to_end(&mut output).unwrap();
            String::from_utf8_lossy(&output).into_owned()
        });
        let exit = self.spawner.run(container, OwnedFd::from(writer));
        Ran { exit, output: reading.join().unwrap(), upper: container.draft.join("u") }
    }

    /// The same with a fresh draft.
    pub fn renewed(&self, container: Container) -> Container {
        Container { draft: self.draft(), ..container }
    }

    pub fn alice(&self) -> User {
        User { uid: 1000, gid: 1000, groups: vec![10], home: "/home/alice".to_owned() }
    }

    /// Runs a script that prints `ready` and does not end by itself (nor by becoming another program); calls `then` with the host's
    /// number of its first process once it has, and kills it.
    pub fn while_running(&self, script: &str, then: impl FnOnce(u32)) {
        self.while_running_in(self.script(script), then);
    }

    /// The same with a container of one's own.
    pub fn while_running_in(&self, mut container: Container, then: impl FnOnce(u32)) {
        let (reader, writer) = std::io::pipe().unwrap();
        let marker = format!("marker={}", self.dir.path().display());
        container.argv.push(marker.clone());
        std::thread::scope(|scope| {
            let running = scope.spawn(|| self.spawner.run(&container, OwnedFd::from(writer)));
            let mut line = String::new();
            std::io::BufReader::new(reader).read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "{running:?}");
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // Later ones are its children.
                then(processes_with(&marker)[0]);
            }));
            self.spawner.kill_all(Signal::KILL).unwrap();
            checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert_eq!(running.join().unwrap().unwrap().status, Status::Signaled(9));
            assert_eq!(processes_with(&marker), Vec::<u32>::new());
        });
    }

    /// What a script prints; it must succeed.
    pub fn output(&self, script: &str) -> String {
        self.succeed(&self.script(script)).output
    }

    pub fn succeed(&self, container: &Container) -> Ran {
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

/// All names below a directory, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

/// The host's numbers of processes with this word among their arguments, ascending.
pub fn processes_with(word: &str) -> Vec<u32> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let has_word = |pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    let mut pids: Vec<u32> = fs::read_dir("/proc").unwrap().flatten().filter_map(number).filter(has_word).collect();
    pids.sort_unstable();
    pids
}

/// The directories of the groups that a process of the host is in.
pub fn groups_of(pid: u32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let place = |line: &str| {
        let (_, rest) = line.split_once(':').unwrap();
        let (controllers, path) = rest.split_once(':').unwrap();
        let is_its = |mount: &&str| match controllers {
            "" => mount.contains(" - cgroup2 "),
            _ => {
                mount.contains(" - cgroup ")
                    && mount.split(' ').next_back().unwrap().split(',').any(|o| o == controllers)
            }
        };
        let mount = mounts.lines().find(is_its)?.split(' ').nth(4).unwrap();
        Some(PathBuf::from(format!("{mount}{path}")))
    };
    text.lines().filter_map(place).collect()
}

/// Whether it is the group of a step.
pub fn is_a_builds(group: &Path) -> bool {
    group.components().any(|name| name.as_os_str().to_string_lossy().starts_with("wythe."))
}
