//! `--on-failure shell`: somebody at a terminal looks at what a failed step left.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

use super::sandbox::Sandbox;

/// A terminal with the program at its other end.
struct Terminal {
    master: File,
    slave: OwnedFd,
    child: Child,
    /// All that was shown.
    screen: String,
    /// How much of it was looked at.
    seen: usize,
}

impl Terminal {
    fn start(sandbox: &Sandbox, args: &[String]) -> Self {
        Self::of(&sandbox.command(args))
    }

    fn of(program: &Command) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty()).unwrap();
        // In a session of its own whose terminal this is.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("TERM", "vt100").env("NO_COLOR", "1").current_dir(program.get_current_dir().unwrap());
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let terminal = Self { master: File::from(master), slave, child, screen: String::new(), seen: 0 };
        terminal.resize(40, 100);
        terminal
    }

    fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    }

    fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.slave).unwrap())
    }

    /// Waits for `text` behind what was waited for before; gives what stands before it.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.screen[self.seen..].find(text) {
                let before = self.screen[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return before;
            }
            assert!(self.child.try_wait().unwrap().is_none(), "ended before `{text}`\n{}", self.screen);
            // A test that waits for what never comes says what did come.
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(ready, 1, "no `{text}`\n{}", self.screen);
            let count = self.master.read(&mut buffer).unwrap();
            self.screen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Types a command at the shell's prompt and gives what it wrote.
    #[track_caller]
    fn run(&mut self, command: &str) -> String {
        self.write(&format!("{command}; echo en''d\r"));
        // What was typed is shown, too.
        self.expect("en''d\r\n");
        let output = self.expect("end\r\n");
        self.expect("# ");
        output.replace("\r\n", "\n")
    }

    /// The exit code of the program, and everything that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.screen)
    }
}

fn build_args(sandbox: &Sandbox, args: &[&str]) -> Vec<String> {
    let args: Vec<_> = args.iter().map(ToString::to_string).collect();
    sandbox.build_args("image.tar", &args)
}

/// Nothing that was made for the build is left but what is meant to be.
fn is_clean(sandbox: &Sandbox) -> bool {
    let is_empty = |name: &str| fs::read_dir(sandbox.path("store").join(name)).unwrap().next().is_none();
    let has_no_work = is_empty("tmp");
    // What a build does not get to delete the next program does.
    sandbox.wythe(&["cache", "prune", "--older-than", "9999d"]);
    has_no_work && is_empty("trash")
}

/// The container as it was: files, environment, user, directory, mounts.
#[test]
fn the_failed_step_can_be_looked_at() {
    let sandbox = Sandbox::new();
    sandbox.write("file", "of the context");
    sandbox.write("secret", "hush");
    sandbox.write(
        "Dockerfile",
        "FROM busybox\n\
         RUN echo 'app:x:7:8::/home/app:/bin/sh' >> /etc/passwd; mkdir -m 777 /work /cache; touch /work/base\n\
         USER app\nENV COLOR=green\nWORKDIR /work\n\
         RUN --mount=type=bind,target=/context --mount=type=secret,id=s,uid=7 --mount=type=cache,target=/cache,uid=7 \
             --mount=type=tmpfs,target=/scratch \
             rm base; echo made > made; echo kept > /cache/kept; echo gone > /scratch/gone; echo why; exit 3\n",
    );
    let args = build_args(&sandbox, &["--on-failure", "shell", "--secret", "id=s,src=context/secret"]);
    let mut terminal = Terminal::start(&sandbox, &args);
    let before = terminal.settings();
    let shown = terminal.expect("`exit` ends the build");
    for text in
        ["did not complete: exit code 3", "--> context/Dockerfile:6:1", "why", "--failed` prints all of its output"]
    {
        assert!(shown.contains(text), "no `{text}` in {shown}");
    }
    terminal.expect("$ ");
    // The prompt of one who is not root; the others wait for root's.
    terminal.write("PS1='# '\r");
    terminal.expect("\n# ");
    assert_ne!(terminal.settings(), before, "keys are handed on as they are");
    assert_eq!(terminal.run("ls; cat made"), "made\nmade\n");
    assert_eq!(terminal.run("pwd; id -u; id -g; echo $COLOR $HOME $TERM"), "/work\n7\n8\ngreen /home/app vt100\n");
    assert_eq!(terminal.run("cat /context/file /run/secrets/s; echo"), "of the contexthush\n");
    assert_eq!(terminal.run("cat /cache/kept; ls /scratch"), "kept\n");
    assert_eq!(terminal.run("tty; ls -ln /dev/pts/0 | cut -c1-10; stty size"), "/dev/pts/0\ncrw--w----\n40 100\n");

    // Ctrl-C is for the program in the container, and the shell goes on.
    // What Ctrl-C meets is the program, never the shell between two.
    terminal.write("(echo up; exec sleep 1000)\r");
    terminal.expect("\nup\r\n");
    terminal.write("\x03");
    terminal.expect("# ");
    assert_eq!(terminal.run("echo still here"), "still here\n");

    terminal.resize(45, 90);
    while terminal.run("stty size") != "45 90\n" {}

    terminal.write("exit 9\r");
    terminal.expect("exit 9\r\n");
    while terminal.child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    assert_eq!(terminal.settings(), before, "the terminal is as it was");
    let (code, screen) = terminal.end();
    assert_eq!(code, Some(1), "{screen}");
    assert!(!sandbox.path("image.tar").exists());
    assert!(is_clean(&sandbox));
    let history = sandbox.wythe(&["history", "--json"]);
    let history: serde_json::Value = serde_json::from_slice(&history.stdout).unwrap();
    assert_eq!((&history[0]["outcome"], history.as_array().unwrap().len()), (&"failed".into(), 1));
    // Nothing that was done there is a result.
    let again = sandbox.build("image.tar", &["--secret".into(), "id=s,src=context/secret".into()]);
    assert_eq!((again.code, again.ran().len()), (Some(1), 0), "{}", again.stderr);
}

/// What the step wrote is there, whatever its root was made of.
#[test]
fn a_failed_step_can_be_looked_at_whose_layers_have_moved() {
    let sandbox = Sandbox::new();
    // Hashed while the next step runs.
    sandbox.write("Dockerfile", "FROM busybox\nRUN truncate -s 64M /large\nRUN echo left > /left; false\n");
    let mut terminal = Terminal::start(&sandbox, &build_args(&sandbox, &["--on-failure", "shell"]));
    terminal.expect("`exit` ends the build");
    terminal.expect("# ");
    assert_eq!(terminal.run("wc -c < /large; cat /left"), "67108864\nleft\n");
    terminal.write("exit\r");
    assert_eq!(terminal.end().0, Some(1));
}

#[test]
fn the_failed_step_can_be_looked_at_on_every_footing() {
    for footing in ["memory", "fuse", "copy"] {
        let sandbox = Sandbox::new();
        sandbox.write("Dockerfile", "FROM busybox\nRUN echo left > /left; rm /etc/group; false\n");
        let mut program = sandbox.command(&build_args(&sandbox, &["--on-failure", "shell"]));
        program.env("WYTHE_FOOTING", footing);
        let mut terminal = Terminal::of(&program);
        terminal.expect("`exit` ends the build");
        terminal.expect("# ");
        assert_eq!(
            terminal.run("cat /left; ls /etc/group"),
            "left\nls: /etc/group: No such file or directory\n",
            "{footing}"
        );
        terminal.write("exit\r");
        assert_eq!(terminal.end().0, Some(1), "{footing}");
        assert!(is_clean(&sandbox), "{footing}");
    }
}

/// Another shell, and one that is not there.
#[test]
fn the_shell_is_the_users_choice() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN mkdir /x && cp /bin/busybox /x/ash && rm /bin/sh && false\n");
    let args = build_args(&sandbox, &["--on-failure", "shell=/x/ash -x"]);
    let mut terminal = Terminal::start(&sandbox, &args);
    terminal.expect("`/x/ash -x` in the failed step");
    terminal.expect("# ");
    terminal.write("echo $-\r");
    terminal.expect("+ echo ");
    terminal.write("exit\r");
    terminal.expect("+ exit");
    assert_eq!(terminal.end().0, Some(1));

    let mut terminal = Terminal::start(&sandbox, &build_args(&sandbox, &["--on-failure", "shell"]));
    terminal.expect("error: cannot open `/bin/sh` in the failed step");
    terminal.expect("no such file in the image");
    terminal.expect("`--on-failure shell=COMMAND`");
    assert_eq!(terminal.end().0, Some(1));
    assert!(is_clean(&sandbox));
}

/// Stages that run beside the failed one are over before the shell is there.
#[test]
fn nothing_else_runs_meanwhile() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox AS other\nRUN --mount=type=cache,target=/c touch /c/up; sleep 1000\n\
         FROM busybox\nRUN --mount=type=cache,target=/c while [ ! -e /c/up ]; do :; done; exit 4\nCOPY --from=other / /\n",
    );
    let mut terminal = Terminal::start(&sandbox, &build_args(&sandbox, &["--on-failure=shell"]));
    let shown = terminal.expect("`exit` ends the build");
    assert!(shown.contains("CANCELED") && shown.contains("exit code 4"), "{shown}");
    terminal.expect("# ");
    assert_eq!(terminal.run("ls /c"), "up\n");
    terminal.write("exit\r");
    terminal.expect("exit\r\n");
    assert_eq!(terminal.end().0, Some(1));
}

/// Closing the window ends the build and leaves nothing.
#[test]
fn a_terminal_that_goes_away_ends_the_shell() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN false\n");
    let mut terminal = Terminal::start(&sandbox, &build_args(&sandbox, &["--on-failure=shell"]));
    terminal.expect("# ");
    let Terminal { master, slave, mut child, .. } = terminal;
    drop((master, slave));
    assert_ne!(child.wait().unwrap().code(), Some(0));
    assert!(is_clean(&sandbox));
}

/// Told before anything is built.
#[test]
fn without_a_terminal_it_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN false\n");
    for value in ["shell", "shell=/bin/ash", "frob", "shell="] {
        let ended = sandbox.build("image.tar", &["--on-failure".into(), value.into()]);
        assert_eq!(ended.code, Some(2), "{value}: {}", ended.stderr);
        let expected = if value.starts_with("shell") && value != "shell=" { "terminal" } else { "shell=COMMAND" };
        assert!(ended.stderr.contains(expected), "{value}: {}", ended.stderr);
    }
    assert!(!sandbox.path("store").exists());
}
