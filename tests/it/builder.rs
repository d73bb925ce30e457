//! Who builds: whoever runs the tests, and, where that is root, an ordinary user too. What a user is
//! promised both must get.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::ordinary::{self, Ordinary};
use super::sandbox::{Ended, Sandbox};

pub enum Builder {
    Oneself(Sandbox),
    User(Ordinary),
}

impl Builder {
    /// Checks with each. A failure tells who it was by the name of its thread.
    pub fn each(check: impl Fn(&Self) + Sync) {
        let run = |name: &str, builder: Self| {
            thread::scope(|scope| {
                let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, || check(&builder));
                thread.unwrap().join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        };
        run("whoever runs the tests", Self::Oneself(Sandbox::new()));
        if rustix::process::geteuid().is_root() {
            run("an ordinary user", Self::User(Ordinary::new()));
        }
    }

    pub fn sandbox(&self) -> &Sandbox {
        match self {
            Self::Oneself(sandbox) => sandbox,
            Self::User(user) => &user.sandbox,
        }
    }

    pub fn store(&self) -> PathBuf {
        match self {
            Self::Oneself(sandbox) => sandbox.path("store"),
            Self::User(user) => user.store(),
        }
    }

    /// The program, in the directory of the sandbox; its process has the number that this command's has.
    pub fn command(&self, args: &[&str]) -> Command {
        match self {
            Self::Oneself(sandbox) => sandbox.command(args),
            Self::User(user) => user.command(&[&["/mnt/bin/wythe"][..], args].concat()),
        }
    }

    pub fn wythe(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ended { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// What builds the context with plain progress into the OCI tar `image.tar`; `busybox` is a known image.
    pub fn build_command(&self, args: &[&str]) -> Command {
        match self {
            Self::Oneself(sandbox) => {
                let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
                sandbox.command(&sandbox.build_args("image.tar", &args))
            }
            Self::User(_) => {
                let args = [&["-o", "type=oci,dest=image.tar"], args].concat();
                self.command(&ordinary::build_args(&args))
            }
        }
    }

    pub fn build(&self, args: &[&str]) -> Ended {
        let output = self.build_command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ended { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// The same; it must succeed.
    pub fn built(&self, args: &[&str]) -> Ended {
        let ended = self.build(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended
    }

    /// A build that is followed line by line.
    pub fn follow(&self, args: &[&str]) -> Following {
        Following::of(&mut self.build_command(args))
    }
}

pub struct Following {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Drop for Following {
    /// A test that has failed leaves nothing that runs.
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

impl Following {
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Reads on until a step says this.
    pub fn until(&mut self, said: &str) {
        let mut before = Vec::new();
        let found = self.lines.by_ref().map(Result::unwrap).find(|line| {
            before.push(line.clone());
            line.ends_with(&format!(" {said}"))
        });
        assert!(found.is_some(), "`{said}` was never said: {:?}: {before:#?}", self.child.wait());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code, none when a signal ended it, and what was said since.
    pub fn end(mut self) -> (Option<i32>, Vec<String>) {
        let rest = self.lines.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), rest)
    }
}
