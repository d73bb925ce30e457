//! `wythe doctor`: what it finds is what builds meet.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::sandbox::{Ended, Sandbox};

/// What was found, by subject: verdicts, and all texts.
fn found(ended: &Ended, subject: &str) -> Vec<(String, String)> {
    let findings: Vec<Value> = serde_json::from_slice(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    let of_subject = findings.iter().filter(|finding| finding["subject"] == subject);
    of_subject
        .map(|finding| {
            let cures = finding["cures"].as_array().unwrap().iter().map(|cure| cure.as_str().unwrap());
            let texts: Vec<_> = [finding["what"].as_str().unwrap()].into_iter().chain(cures).collect();
            (finding["verdict"].as_str().unwrap().to_owned(), texts.join("\n"))
        })
        .collect()
}

fn doctor(sandbox: &Sandbox) -> Ended {
    sandbox.wythe(&["doctor", "--format", "json"])
}

/// Runs a shell line whose `$0` is the program, with a store in its directory.
fn with_shell(sandbox: &Sandbox, line: &str) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-euc", line, env!("CARGO_BIN_EXE_wythe")]).current_dir(sandbox.path("."));
    let output = command.env("WYTHE_ROOT", sandbox.path("inner")).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

#[test]
fn where_builds_work_it_says_so() {
    let sandbox = Sandbox::new();
    let ended = doctor(&sandbox);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for subject in ["ids", "layers", "containers"] {
        let found = found(&ended, subject);
        assert!(!found.is_empty() && found.iter().all(|(verdict, _)| verdict == "ok"), "{subject}: {found:?}");
    }
    assert!(found(&ended, "network").iter().all(|(verdict, _)| matches!(&**verdict, "ok" | "note")), "{ended:?}");
    for subject in ["kernel", "store", "network", "seccomp", "limits", "platforms", "reflinks"] {
        assert!(!found(&ended, subject).is_empty(), "{subject}: {ended:?}");
    }
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert!(found(&ended, "platforms")[0].1.contains(own));
    let text = sandbox.wythe(&["doctor"]);
    assert!(String::from_utf8_lossy(&text.stdout).ends_with("\nall builds work here\n"), "{text:?}");
    // It leaves nothing.
    let left: Vec<_> = fs::read_dir(sandbox.path("store/layers")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_store_that_cannot_be_is_fatal() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("store"), "a file").unwrap();
    let ended = doctor(&sandbox);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(found(&ended, "store")[0].0, "fatal");
}

/// One who is root in a user namespace, but whose mounts are the host's, has mounts made.
#[test]
fn a_bare_user_namespace_will_do() {
    let sandbox = Sandbox::new();
    let ended = with_shell(&sandbox, "exec unshare -r \"$0\" doctor --format json");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(found(&ended, "layers")[0].0, "ok", "{ended:?}");
    let (verdict, why) = &found(&ended, "ids")[0];
    assert_eq!(verdict, "note");
    assert!(why.contains("one user"), "{why}");
}

/// Where the settings keep a user from namespaces, they are named with the cure.
#[test]
fn what_forbids_namespaces_is_named() {
    let sandbox = Sandbox::new();
    let line = "exec unshare -r sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all \
                --inh-caps=-all \"$0\" doctor --format json' \"$0\"";
    let ended = with_shell(&sandbox, line);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let (verdict, why) = &found(&ended, "ids")[0];
    assert_eq!(verdict, "fatal");
    assert!(why.contains("`user.max_user_namespaces` is 0\n`sudo sysctl -w user.max_user_namespaces="), "{why}");
}

/// On an overlay, as in a container without a volume, steps stand on something less: doctor and build say the same,
/// with what would be better.
#[test]
fn a_store_on_an_overlay_is_second_best() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /a\nCOPY Dockerfile /b\n");
    let line = "mkdir -p l u w m && exec unshare -m sh -euc 'mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay m; \
                export WYTHE_ROOT=$PWD/m/store; \"$0\" build --progress plain context >&2; exec \"$0\" doctor --format json' \"$0\"";
    let ended = with_shell(&sandbox, line);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (verdict, why) = &found(&ended, "layers")[0];
    assert_eq!(verdict, "note", "{why}");
    for text in [why, &ended.stderr] {
        assert!(text.contains("steps write to memory") && text.contains("`--root DIR`"), "{text}");
    }
    assert_eq!(found(&ended, "containers")[0].0, "ok", "{ended:?}");
}
