//! The program run by itself, with a store and a context of its own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use wythe::digest::Digest;

/// A store, a context and a place for results, gone with it.
pub struct Sandbox {
    dir: TempDir,
    pub context: PathBuf,
}

/// How the program ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ended {
    /// The titles of the steps that were executed, from plain progress. A base is looked at each
    /// time, and what is exported is no step of the Dockerfile.
    pub fn ran(&self) -> Vec<String> {
        let mut titles = BTreeMap::new();
        let mut ran = Vec::new();
        for line in self.stderr.lines() {
            let Some((number, rest)) = line.split_once(' ').filter(|(number, _)| number.starts_with('#')) else {
                continue;
            };
            if rest.starts_with('[') {
                titles.insert(number, rest);
            } else if rest.starts_with("DONE ") {
                let is_step = |title: &&&str| !title.contains("] FROM") && !title.starts_with("[export]");
                ran.extend(titles.get(number).filter(is_step).map(ToString::to_string));
            }
        }
        ran
    }
}

impl Sandbox {
    pub fn new() -> Self {
        // Beside the other results of the build, not in a /tmp that may be an overlay or small.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let context = dir.path().join("context");
        fs::create_dir(&context).unwrap();
        Self { dir, context }
    }

    /// A path beside the context.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the context.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.context.join(name), content).unwrap();
    }

    /// The program with this sandbox's store, in its directory, without the environment of the
    /// test.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wythe"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.path())
            .env("WYTHE_ROOT", self.path("store"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn wythe<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        let output = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ended { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// Builds the context with plain progress, or with that of JSON where `rawjson` is an argument, into the OCI tar `name`; `busybox` is a known image.
    pub fn build(&self, name: &str, args: &[String]) -> Ended {
        self.wythe(&self.build_args(name, args))
    }

    pub fn build_args(&self, name: &str, args: &[String]) -> Vec<String> {
        let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
        let output = format!("type=oci,dest={}", self.path(name).display());
        // No test asks a registry that it did not start.
        let progress = if args.iter().any(|arg| arg == "rawjson") { "rawjson" } else { "plain" };
        let fixed = ["build", "--progress", progress, "--pull=never", "--build-context", &busybox, "-o", &output];
        let args = args.iter().filter(|arg| *arg != "rawjson");
        fixed.into_iter().map(String::from).chain(args.cloned()).chain(["context".into()]).collect()
    }

    /// Runs a shell line in the context.
    pub fn shell(&self, line: &str) {
        let status = Command::new("sh").args(["-euc", line]).current_dir(&self.context).status().unwrap();
        assert!(status.success(), "`{line}`: {status}");
    }
}

/// Copies a folder of the repository; modes are those that git knows, whatever the umask was when
/// it was checked out.
pub fn copy(from: &Path, to: &Path) {
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&source, &target);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else {
            fs::copy(&source, &target).unwrap();
            let is_executable = source.metadata().unwrap().permissions().mode() & 0o100 != 0;
            fs::set_permissions(&target, fs::Permissions::from_mode(if is_executable { 0o755 } else { 0o644 }))
                .unwrap();
        }
    }
}

/// Whether any file below `path` holds `text`.
pub fn holds(path: &Path, text: &str) -> bool {
    walkdir::WalkDir::new(path).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file()).any(
        |entry| {
            let bytes = fs::read(entry.path()).unwrap();
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        },
    )
}

/// The base image, made once: named by what it is made of, so that it is made anew when that
/// changes.
pub fn busybox_layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/base.sh");
        let busybox = fs::read("/bin/busybox").expect("the tests need busybox-static: run `make deps`");
        let name = Digest::of(&[fs::read(&script).unwrap(), busybox].concat()).hex();
        let layout = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busybox-{}", &name[..16]));
        if !layout.exists() {
            let status = Command::new("sh").arg(script).arg(&layout).status().unwrap();
            assert!(status.success(), "demo/base.sh: {status}");
        }
        layout
    })
}

#[test]
fn steps_that_ran_are_found() {
    let stderr = "#1 [1/3] FROM busybox\n#1 DONE 0.1s\n\n#2 [2/3] RUN a\n#2 0.1 DONE 1s\n#2 CACHED\n\n#3 [3/3] RUN b\n#3 DONE 0.1s\n";
    let ended = Ended { code: Some(0), stdout: Vec::new(), stderr: stderr.into() };
    assert_eq!(ended.ran(), ["[3/3] RUN b"]);
}
