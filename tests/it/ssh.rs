//! `RUN --mount=type=ssh` with OpenSSH's own programs: inside of steps as clients, outside as the user's agent and as
//! the judge of signatures.

use std::fs;
use std::process::{Command, Stdio};

use super::sandbox::{Ended, Sandbox, holds};

/// `ssh-agent`, ended when dropped.
struct Agent {
    process: std::process::Child,
    socket: std::path::PathBuf,
}

impl Agent {
    fn start(sandbox: &Sandbox) -> Self {
        // A socket's path is short, and that of the sandbox need not be.
        let directory = tempfile::Builder::new().prefix("agent").tempdir_in("/tmp").unwrap().keep();
        let socket = directory.join("s");
        let mut command = Command::new("ssh-agent");
        command.args(["-D", "-a"]).arg(&socket).stdout(Stdio::piped()).current_dir(sandbox.path(""));
        let mut process = command.spawn().unwrap();
        // It says where it is as soon as it can be asked.
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert!(line.contains("SSH_AUTH_SOCK"), "{line}");
        Self { process, socket }
    }

    fn add(&self, args: &[&str]) -> String {
        let output = Command::new("ssh-add").args(args).env("SSH_AUTH_SOCK", &self.socket).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(self.socket.parent().unwrap());
    }
}

/// A sandbox whose context has `ssh-add` and `ssh-keygen` with what they need, and keys beside it; `None`, said on
/// standard error, where they are not installed.
#[allow(clippy::print_stderr)]
fn sandbox() -> Option<Sandbox> {
    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        eprintln!("not tested with ssh-agent, which is not installed");
        return None;
    }
    let sandbox = Sandbox::new();
    sandbox.shell(
        "mkdir -p root/usr/bin
         for program in ssh-add ssh-keygen; do
             cp $(command -v $program) root/usr/bin/
             for library in $(ldd root/usr/bin/$program | grep -o '/[^ ]*'); do
                 mkdir -p root/$(dirname $library)
                 cp -L $library root/$library
             done
         done
         for kind in ed25519 rsa ecdsa; do ssh-keygen -q -t $kind -N '' -C the-$kind-key -f ../$kind; done
         ssh-keygen -q -t ecdsa -b 384 -N '' -C the-p384-key -f ../p384
         ssh-keygen -q -t ed25519 -N secret -C locked -f ../locked
         ssh-keygen -q -t rsa -m PKCS8 -N '' -f ../pkcs8
         ssh-keygen -q -t rsa -m PEM -N '' -f ../pem
         cat ../*.pub > root/keys.pub; for key in ../*.pub; do cp $key root/; done; chmod 600 root/*.pub",
    );
    Some(sandbox)
}

fn dockerfile(sandbox: &Sandbox, lines: &str) {
    sandbox.write("Dockerfile", &format!("FROM busybox\nCOPY root /\n{lines}\n"));
}

fn build(sandbox: &Sandbox, options: &[&str], agent: Option<&Agent>) -> Ended {
    let options: Vec<_> = options.iter().map(ToString::to_string).collect();
    let mut command = sandbox.command(&sandbox.build_args("image.tar", &options));
    if let Some(agent) = agent {
        command.env("SSH_AUTH_SOCK", &agent.socket);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

#[test]
fn an_agent_is_lent_to_a_step_and_to_no_other() {
    let Some(sandbox) = sandbox() else { return };
    let agent = Agent::start(&sandbox);
    agent.add(&[sandbox.path("ed25519").to_str().unwrap()]);
    dockerfile(
        &sandbox,
        "RUN --mount=type=ssh,required echo 1; env | grep SSH_; ls -ln $SSH_AUTH_SOCK; ssh-add -l; ssh-add -D; ssh-add -x </dev/null; ls -la /run /run/buildkit; true\n\
         RUN --mount=type=ssh,id=other,target=/deep/er/socket,mode=0666,uid=5,gid=6 echo 2; env | grep SSH_; ls -ln /deep/er; ssh-add -l; true\n\
         RUN echo 3; env | grep SSH_; ls -A /run /deep 2>/dev/null; true\n\
         USER 1234:5678\n\
         RUN --mount=type=ssh ssh-add -l; true\n\
         RUN --mount=type=ssh,uid=1234 ssh-add -l; true",
    );
    let ended = build(&sandbox, &["--ssh", "default"], Some(&agent));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said = |step: usize| -> String {
        let title = format!(" [{step}/7] ");
        let mark = ended.stderr.lines().find_map(|line| line.split_once(&title)).unwrap().0.to_owned() + " ";
        let lines = ended.stderr.lines().filter_map(|line| line.strip_prefix(&mark)?.split_once(' '));
        lines.filter(|(time, _)| time.contains('.')).map(|(_, line)| format!("{line}\n")).collect()
    };
    let one = said(3);
    for text in [
        "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0",
        "srw-------    1 0        0",
        "the-ed25519-key",
        "Failed to remove all",
    ] {
        assert!(one.contains(text), "{text} is not in\n{one}");
    }
    // What was not given is not there.
    assert!(!said(4).contains("SSH_") && said(4).contains("2\n"), "{}", said(4));
    assert!(!said(5).contains("SSH_") && !said(5).contains("buildkit") && !said(5).contains("deep"), "{}", said(5));
    assert!(said(6).contains("Error connecting to agent: Permission denied"), "{}", said(6));
    assert!(said(7).contains("the-ed25519-key"), "{}", said(7));
    assert!(agent.add(&["-l"]).contains("the-ed25519-key"), "the agent was changed");
    // Not a word of the user's agent.
    let socket = agent.socket.to_str().unwrap();
    assert!(!ended.stderr.contains(socket));
    assert!(!holds(&sandbox.path("store"), socket) && !holds(&sandbox.path("image.tar"), socket));
    assert!(!holds(&sandbox.path("image.tar"), "ssh_agent.0"), "a mount point is left");
    // It is no part of the key.
    let again = build(&sandbox, &["--ssh", "default"], Some(&agent));
    assert!(again.ran().is_empty(), "{}", again.stderr);
    let without = build(&sandbox, &[], None);
    assert!(without.ran().is_empty(), "{}", without.stderr);
}

#[test]
fn keys_of_files_sign_and_stay_where_they_are() {
    let Some(sandbox) = sandbox() else { return };
    let names = ["ed25519", "rsa", "ecdsa", "p384", "pkcs8", "pem"];
    let signing = names
        .map(|name| format!("echo {name} > /{name}.msg; ssh-keygen -q -Y sign -f /{name}.pub -n test /{name}.msg;"));
    dockerfile(
        &sandbox,
        &format!(
            "RUN --mount=type=ssh,id=keys,required ssh-add -l && {} ls -l /run/buildkit\nRUN --mount=type=ssh ssh-add -l; true",
            signing.join(" ")
        ),
    );
    let keys = format!("keys={}", names.join(","));
    let ended = build(&sandbox, &["--ssh", &keys, "-o", "type=local,dest=out"], None);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for name in names {
        let mut judge = Command::new("ssh-keygen");
        judge.args(["-Y", "check-novalidate", "-n", "test", "-s"]).arg(sandbox.path(&format!("out/{name}.msg.sig")));
        let message = fs::File::open(sandbox.path(&format!("out/{name}.msg"))).unwrap();
        let output = judge.stdin(message).output().unwrap();
        assert!(output.status.success(), "{name}: {}\n{}", String::from_utf8_lossy(&output.stderr), ended.stderr);
        // Not a line of the key, of its private part.
        let key = fs::read_to_string(sandbox.path(name)).unwrap();
        let line = key.lines().nth_back(2).unwrap();
        assert!(!holds(&sandbox.path("store"), line) && !holds(&sandbox.path("out"), line), "{name} is kept");
    }
    assert!(ended.stderr.contains("the-rsa-key"), "{}", ended.stderr);
}

#[test]
fn what_cannot_be_lent_is_told() {
    let Some(sandbox) = sandbox() else { return };
    dockerfile(&sandbox, "RUN --mount=type=ssh,required,id=x true");
    fs::write(sandbox.path("text"), "no key\n").unwrap();
    for (options, fault) in [
        (&[][..], "the ssh agent `x` was not given to this build"),
        (&["--ssh", "default=ed25519"], "add `--ssh x`"),
        (&["--ssh", "x"], "SSH_AUTH_SOCK is not set"),
        (&["--ssh", "x=nowhere"], "cannot open `nowhere`"),
        (&["--ssh", "x=text"], "it is neither the socket of an agent nor a private key"),
        (&["--ssh", "x=ed25519.pub"], "it is neither the socket of an agent nor a private key"),
        (&["--ssh", "x=locked"], "it has a passphrase"),
        (&["--ssh", "x=context"], "is neither a socket nor a file with a key"),
        (&["--ssh", "x=ed25519", "--ssh", "x=rsa"], "`x` is there twice"),
    ] {
        let ended = build(&sandbox, options, None);
        assert!(matches!(ended.code, Some(1 | 2)), "{options:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(fault), "{options:?}: `{fault}` is not in\n{}", ended.stderr);
    }
    // An agent that went away.
    let agent = Agent::start(&sandbox);
    let socket = format!("x={}", agent.socket.display());
    dockerfile(&sandbox, "RUN --mount=type=ssh,required,id=x ssh-add -l; true");
    assert!(build(&sandbox, &["--ssh", &socket], None).stderr.contains("The agent has no identities"));
}
