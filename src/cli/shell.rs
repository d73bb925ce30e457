//! `--on-failure shell`: a shell in the container of the step that failed, at the user's terminal.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::{Failure, usage};
use crate::container::{Container, Session, Spawner};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::sys;

const SHELL: &str = "/bin/sh";

/// What to run, and the terminal to run it at.
pub struct Shell {
    argv: Vec<String>,
    input: OwnedFd,
    output: OwnedFd,
    /// Readable when the terminal's size changed.
    resized: OwnedFd,
}

impl Shell {
    /// From the value of `--on-failure`. To be made before any thread is: they all must leave the signal
    /// of a new size to it.
    pub fn new(value: &str) -> std::result::Result<Self, Failure> {
        let command = match value.split_once('=') {
            None if value == "shell" => SHELL,
            Some(("shell", command)) if !command.trim().is_empty() => command,
            _ => return Err(usage(format!("`--on-failure {value}`: write `shell` or `shell=COMMAND`"))),
        };
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let output = match (stdin.is_terminal(), stdout.is_terminal(), stderr.is_terminal()) {
            (true, true, _) => stdout.as_fd().try_clone_to_owned(),
            (true, false, true) => stderr.as_fd().try_clone_to_owned(),
            (false, ..) => return Err(usage("`--on-failure shell` needs a terminal, and standard input is none")),
            (true, ..) => return Err(usage("`--on-failure shell` needs a terminal, and standard output is none")),
        };
        let doing = || "cannot use the terminal";
        Ok(Self {
            argv: command.split_whitespace().map(str::to_owned).collect(),
            input: stdin.as_fd().try_clone_to_owned().context(doing)?,
            output: output.context(doing)?,
            resized: sys::signal_fd(&[libc::SIGWINCH]).context(doing)?,
        })
    }

    pub fn command(&self) -> String {
        self.argv.join(" ")
    }

    /// Runs it in the container until it ends. The terminal is as it was when this returns.
    pub fn run(&self, spawner: &Spawner, container: &Container) -> Result<()> {
        let mut env = container.env.clone();
        if let Ok(term) = std::env::var("TERM")
            && !env.iter().any(|(name, _)| name == "TERM")
        {
            env.push(("TERM".into(), term));
        }
        let container = Container { argv: self.argv.clone(), env, ..container.clone() };
        let session = spawner.open_terminal(&container)?;
        let raw = Raw::set(self.input.as_fd()).context(|| "cannot use the terminal")?;
        let relayed = self.relay(&session, spawner);
        drop(raw);
        let ended = session
            .finish()
            .map(|_| ())
            .map_err(|error| error.hint("name a program of the image: `--on-failure shell=COMMAND`"));
        relayed.context(|| "cannot use the terminal").and(ended)
    }

    /// Carries bytes both ways until the payload is over and all it wrote is shown.
    fn relay(&self, session: &Session, spawner: &Spawner) -> std::io::Result<()> {
        let master = File::from(session.master.try_clone()?);
        rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let mut output = File::from(self.output.try_clone()?);
        let mut input = File::from(self.input.try_clone()?);
        // Typed and not yet taken by the payload.
        let mut typed: Vec<u8> = Vec::new();
        let mut is_input_open = true;
        let mut buffer = vec![0; 16 << 10];
        self.resize(&master);
        loop {
            let wanted = if typed.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut polled = [
                PollFd::from_borrowed_fd(session.ended(), PollFlags::IN),
                PollFd::new(&master, wanted),
                PollFd::new(&self.resized, PollFlags::IN),
                // What cannot be taken yet waits in the terminal.
                PollFd::new(&input, if is_input_open && typed.is_empty() { PollFlags::IN } else { PollFlags::empty() }),
            ];
            rustix::io::retry_on_intr(|| poll(&mut polled, None))?;
            let happened = polled.map(|fd| fd.revents());
            if !happened[2].is_empty() {
                sys::read_signal(self.resized.as_fd())?;
                self.resize(&master);
            }
            let is_open = drain(&master, &mut output, &mut buffer)?;
            // Looked at before: whoever wrote last did so before its end was told.
            if !happened[0].is_empty() {
                return Ok(());
            }
            if !is_open {
                // The payload has let go of its terminal and is about to end.
                let mut end = [PollFd::from_borrowed_fd(session.ended(), PollFlags::IN)];
                rustix::io::retry_on_intr(|| poll(&mut end, None))?;
                return Ok(());
            }
            if !(happened[3] & (PollFlags::IN | PollFlags::HUP | PollFlags::ERR)).is_empty() {
                match input.read(&mut buffer) {
                    // Nobody is there any more.
                    Ok(0) | Err(_) => {
                        is_input_open = false;
                        let _ = spawner.kill_all(rustix::process::Signal::KILL);
                    }
                    Ok(count) => typed.extend_from_slice(&buffer[..count]),
                }
            }
            match rustix::io::write(&master, &typed) {
                _ if typed.is_empty() => {}
                Ok(count) => drop(typed.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR | Errno::IO) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn resize(&self, master: &File) {
        // One that has no size says nothing, and neither do we.
        if let Ok(size) = tcgetwinsize(&self.output) {
            let _ = tcsetwinsize(master, size);
        }
    }
}

/// Shows what there is; whether the payload still has its terminal open.
fn drain(master: &File, output: &mut File, buffer: &mut [u8]) -> std::io::Result<bool> {
    loop {
        match rustix::io::read(master, &mut *buffer) {
            Ok(0) | Err(Errno::IO) => return Ok(false),
            Ok(count) => output.write_all(&buffer[..count])?,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A terminal that hands on every key as it is; as it was before when this is dropped.
struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn set(terminal: BorrowedFd<'a>) -> rustix::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// What to say before the shell is there.
pub fn notice(shell: &Shell) -> String {
    format!("`{}` in the failed step, with the files as it left them; `exit` ends the build\n", shell.command())
}

/// Says why there is no shell.
pub fn refusal(shell: &Shell, error: &Diagnostic) -> Diagnostic {
    let mut refusal = Diagnostic::error(format!("cannot open `{}` in the failed step", shell.command()));
    refusal.cause = Some(match &error.cause {
        Some(cause) => format!("{}: {cause}", error.message),
        None => error.message.clone(),
    });
    refusal.hints.clone_from(&error.hints);
    refusal
}
