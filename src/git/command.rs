//! Running git: its environment, its output, its end.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

use super::{Client, Site};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::location::{GitLocation, Transport, redact};
use crate::progress::Meter;
use crate::sys;

/// The most that is read of what git prints: of a list of names, of a message.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Settings that must not be the user's or the repository's. What could run a program or read a file is
/// off; the rest makes the result the same everywhere.
const SETTINGS: [(&str, &str); 23] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.eol", "lf"),
    ("core.symlinks", "true"),
    ("core.fileMode", "true"),
    ("core.logAllRefUpdates", "false"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("fetch.unpackLimit", "1"),
    ("submodule.recurse", "false"),
    ("transfer.bundleURI", "false"),
    ("protocol.version", "2"),
    ("pack.threads", "1"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
    // A peer that is silent for a minute is gone.
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
];

/// One run of git.
pub(super) struct Git<'a> {
    client: &'a Client,
    command: Command,
    settings: Vec<(String, String)>,
    shown: String,
}

/// How git ended.
pub(super) struct Ended {
    pub is_success: bool,
    pub output: Vec<u8>,
    /// What it said on standard error, without passwords.
    pub message: String,
}

impl Client {
    /// Git on the repository `git_dir`; it reaches no other machine.
    pub(super) fn local(&self, git_dir: &Path, shown: &str) -> Git<'_> {
        let mut git = self.git(shown);
        git.command.env("GIT_DIR", git_dir).env("GIT_ALLOW_PROTOCOL", "");
        git
    }

    /// Git that may reach the repository's server and no other.
    pub(super) fn remote(&self, location: &GitLocation, site: &Site<'_>) -> Result<Git<'_>> {
        let mut git = self.git(&location.shown());
        git.command.env("GIT_ALLOW_PROTOCOL", location.transport.name());
        match location.transport {
            Transport::Http | Transport::Https => {
                let proxies = &self.options.proxies;
                for (name, value) in [("http_proxy", &proxies.http), ("https_proxy", &proxies.https)] {
                    if let Some(value) = value {
                        git.command.env(name, value);
                    }
                }
                git.command.env("no_proxy", proxies.except.join(","));
                if let Some(certificates) = &self.options.certificates {
                    git.command.env("GIT_SSL_CAINFO", certificates);
                }
                if let Some(header) = (site.keys.authorization)(location)? {
                    git.settings.push(("http.extraHeader".into(), format!("Authorization: {header}")));
                    // It is for this server, and git would send it along.
                    git.settings.push(("http.followRedirects".into(), "false".into()));
                }
            }
            Transport::Ssh => {
                git.command.env("GIT_SSH_COMMAND", self.ssh(site)?).env("GIT_SSH_VARIANT", "ssh");
                if let Some(agent) = site.keys.agent {
                    git.command.env("SSH_AUTH_SOCK", agent);
                }
            }
            Transport::Git => {}
        }
        Ok(git)
    }

    fn git(&self, shown: &str) -> Git<'_> {
        let mut command = Command::new("git");
        command
            .env_clear()
            .env("PATH", &self.options.search_path)
            .env("LC_ALL", "C")
            .env("HOME", "/")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_PROTOCOL_FROM_USER", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_SSH_COMMAND", "false")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        sys::die_with_parent(&mut command);
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Git { client: self, command, settings, shown: shown.to_owned() }
    }

    /// Only the agent's keys: those of the user's files were not given to the build.
    fn ssh(&self, site: &Site<'_>) -> Result<OsString> {
        let remembered = site.store.known_hosts()?;
        let files = std::iter::once(&remembered).chain(&self.options.known_hosts);
        let is_plain = |path: &&PathBuf| path.to_str().is_some_and(|path| !path.contains(['"', '\'', '\\', '%', '$']));
        let mut known_hosts = OsString::new();
        for path in files.filter(is_plain) {
            known_hosts.push(" \"");
            known_hosts.push(path);
            known_hosts.push("\"");
        }
        let mut command = OsString::from(
            "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o StrictHostKeyChecking=accept-new \
             -o HashKnownHosts=no -o ConnectTimeout=30 -o ServerAliveInterval=20 -o 'UserKnownHostsFile=",
        );
        command.push(known_hosts.as_encoded_bytes().get(1..).map_or("/dev/null".as_ref(), os_str));
        command.push("'");
        Ok(command)
    }
}

fn os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

impl Git<'_> {
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, arguments: &[S]) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What it prints; a failure is told as `doing`.
    pub fn output(self, doing: &str) -> Result<Vec<u8>> {
        let shown = self.shown.clone();
        let ended = self.run(None)?;
        if ended.is_success { Ok(ended.output) } else { Err(failed(&format!("cannot {doing} `{shown}`"), &ended)) }
    }

    /// Runs it to its end, whatever that is; what it says of its progress is told to `meter`.
    pub fn run(mut self, meter: Option<&Meter<'_>>) -> Result<Ended> {
        self.command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (name, value)) in self.settings.iter().enumerate() {
            self.command.env(format!("GIT_CONFIG_KEY_{index}"), name).env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Diagnostic::error(format!("`git` is needed for `{}`, and is not installed", self.shown))
                    .hint("install it, as with `apt-get install git`"));
            }
            Err(error) => return Err(error).context(|| "cannot run `git`"),
        };
        let streams = self.follow(&mut child, meter);
        if streams.is_err() || self.client.is_canceled() {
            kill(&child);
        }
        let status = child.wait().context(|| "cannot wait for `git`")?;
        let (output, message) = streams.context(|| "cannot read what `git` prints")?;
        if self.client.is_canceled() {
            return Err(Diagnostic::error("the transfer was canceled"));
        }
        let message = redact(&String::from_utf8_lossy(&message)).into_owned();
        Ok(Ended { is_success: status.success(), output, message })
    }

    /// Reads both streams to their ends, or until the build is canceled.
    fn follow(&self, child: &mut Child, meter: Option<&Meter<'_>>) -> io::Result<(Vec<u8>, Vec<u8>)> {
        const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let (mut output, mut message) = (Vec::new(), Vec::new());
        let (mut is_open, mut is_telling) = (true, true);
        let mut telling = Telling { meter, line: Vec::new(), told_bytes: 0 };
        let mut buffer = vec![0; 64 << 10];
        while (is_open || is_telling) && !self.client.is_canceled() {
            let interest = |is_open: bool| if is_open { PollFlags::IN } else { PollFlags::empty() };
            let mut polled = [
                PollFd::from_borrowed_fd(stdout.as_fd(), interest(is_open)),
                PollFd::from_borrowed_fd(stderr.as_fd(), interest(is_telling)),
            ];
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&NAP)))?;
            let ready = [is_open && !polled[0].revents().is_empty(), is_telling && !polled[1].revents().is_empty()];
            if ready[0] {
                let count = stdout.read(&mut buffer)?;
                is_open = count > 0;
                if output.len() + count > MAX_OUTPUT_BYTES {
                    return Err(io::Error::other("it prints more than is reasonable"));
                }
                output.extend_from_slice(&buffer[..count]);
            }
            if ready[1] {
                let count = stderr.read(&mut buffer)?;
                is_telling = count > 0;
                telling.take(&buffer[..count], &mut message);
                // The end of a long story says what went wrong.
                let excess = message.len().saturating_sub(MAX_MESSAGE_BYTES);
                message.drain(..excess);
            }
        }
        Ok((output, message))
    }
}

/// Ends git and what it has started.
fn kill(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Standard error, line by line: progress is shown and dropped, the rest is kept.
struct Telling<'a> {
    meter: Option<&'a Meter<'a>>,
    line: Vec<u8>,
    told_bytes: u64,
}

impl Telling<'_> {
    fn take(&mut self, bytes: &[u8], message: &mut Vec<u8>) {
        for byte in bytes {
            if !matches!(byte, b'\r' | b'\n') {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let text = String::from_utf8_lossy(&line);
            if let Some(received) = received_bytes(&text) {
                if let Some(meter) = self.meter {
                    meter.add(received.saturating_sub(self.told_bytes));
                }
                self.told_bytes = received;
            } else if !is_progress(&text) && !text.trim().is_empty() {
                message.extend_from_slice(&line);
                message.push(b'\n');
            }
        }
        if bytes.is_empty() {
            message.append(&mut self.line);
        }
    }
}

/// Whether a line tells how far a transfer is, be it ours or the server's.
fn is_progress(line: &str) -> bool {
    line.contains("% (") || line.starts_with("remote: Enumerating objects") || line.starts_with("remote: Total ")
}

/// `Receiving objects:  45% (9/20), 1.20 MiB | 2.00 MiB/s`: how much has come so far.
fn received_bytes(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("Receiving objects:").or_else(|| line.strip_prefix("Unpacking objects:"))?;
    let size = rest.split(", ").nth(1)?.split(" | ").next()?;
    let (number, unit) = size.trim().split_once(' ')?;
    let factor = match unit.trim_end_matches(',') {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * factor) as u64)
}

/// The error of a run that failed, with what may help.
pub(super) fn failed(doing: &str, ended: &Ended) -> Diagnostic {
    let message = ended.message.trim();
    let lines: Vec<_> = message.lines().map(|line| line.trim_start_matches("fatal: ")).collect();
    let said = |text: &str| message.contains(text);
    let error = Diagnostic::error(doing);
    let error = match lines.is_empty() {
        true => error.caused_by("git says nothing"),
        false => error.caused_by(lines.join("\n")),
    };
    if said("could not read Username") || said("Authentication failed") || said("error: 403") || said("error: 401") {
        return error.hint("a token for it can be given with `--secret id=GIT_AUTH_TOKEN,env=VARIABLE`");
    }
    if said("Permission denied (") {
        return error.hint("`--ssh default` lets git use the keys of your ssh agent");
    }
    if said("cannot run ssh") || said("ssh: not found") {
        return error.hint("install ssh, as with `apt-get install openssh-client`");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        for (line, expected) in [
            ("Receiving objects:  45% (9/20), 1.50 MiB | 2.00 MiB/s", Some(1_572_864)),
            ("Receiving objects: 100% (20/20), 12.00 KiB | 2.00 MiB/s, done.", Some(12_288)),
            ("Unpacking objects: 100% (3/3), 231 bytes | 231.00 KiB/s, done.", Some(231)),
            ("Receiving objects: 100% (3/3), done.", None),
            ("Resolving deltas: 100% (3/3), done.", None),
        ] {
            assert_eq!(received_bytes(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_progress_is_kept() {
        let mut telling = Telling { meter: None, line: Vec::new(), told_bytes: 0 };
        let mut message = Vec::new();
        telling.take(
            b"remote: Total 3 (delta 0)\nReceiving objects:  4% (1/2)\rremote: gone\nfatal: no\nlast",
            &mut message,
        );
        telling.take(b"", &mut message);
        assert_eq!(String::from_utf8_lossy(&message), "remote: gone\nfatal: no\nlast");
    }
}
