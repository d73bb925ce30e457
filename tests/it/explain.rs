//! Why a step runs: `wythe build --explain`, and `wythe cache explain`, which only asks.

use serde_json::Value;

use super::sandbox::{Ended, Sandbox, busybox_layout};
use super::server::{Reply, Server};

/// The reasons of a build with plain progress, each behind the title of its step.
fn reasons(ended: &Ended) -> Vec<(String, String)> {
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut reasons = Vec::new();
    let mut title = String::new();
    for line in ended.stderr.lines().filter_map(|line| line.strip_prefix('#')?.split_once(' ')).map(|(_, line)| line) {
        if line.starts_with('[') {
            title = line.to_owned();
        }
        if let Some(reason) = line.strip_prefix("runs: ") {
            reasons.push((title.clone(), reason.to_owned()));
        }
    }
    reasons
}

#[test]
fn a_build_says_what_changed() {
    let sandbox = Sandbox::new();
    let dockerfile = "FROM busybox\nARG V=1\nENV W=1\nCOPY d /d\nRUN cat /d/f > /out\nRUN cat /out > /copy\n";
    sandbox.write("Dockerfile", dockerfile);
    sandbox.shell("mkdir d; echo 1 > d/f; echo 2 > d/g");
    let build = |args: &[&str]| {
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        sandbox.build("image.tar", &[&["--explain".to_owned()][..], &args].concat())
    };
    let of = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(title, reason)| ((*title).to_owned(), (*reason).to_owned())).collect()
    };
    let (copy, cat, again) = ("[2/4] COPY d /d", "[3/4] RUN cat /d/f > /out", "[4/4] RUN cat /out > /copy");
    let never = "nothing like it was built here before";
    assert_eq!(reasons(&build(&[])), of(&[(copy, never), (cat, never), (again, never)]));
    assert_eq!(reasons(&build(&[])), of(&[]));

    // Both see the variable; what they stand on is as it was.
    let changed = "ARG V changed: was `1`, is `2`";
    assert_eq!(reasons(&build(&["--build-arg", "V=2"])), of(&[(cat, changed), (again, changed)]));
    // A file that the RUN does not read: its result is as it was, but not what it stands on.
    sandbox.shell("echo changed > d/g; touch d/new");
    let told = reasons(&build(&["--build-arg", "V=2"]));
    assert_eq!(told[..2], of(&[(copy, "`d/g`: content changed (2 → 8 bytes)"), (copy, "`d/new`: added")]));
    assert_eq!((told[2].0.as_str(), told.len()), (cat, 4));
    assert!(told[2].1.starts_with("the result of `[2/4] COPY d /d` changed: was `"), "{told:?}");
    assert!(told[3].1.starts_with("the result of `[3/4] RUN cat"), "{told:?}");
    sandbox.write("Dockerfile", &dockerfile.replace("W=1", "X=1"));
    assert_eq!(
        reasons(&build(&["--build-arg", "V=2"])),
        of(&[
            (cat, "ENV X is new: `1`"),
            (cat, "ENV W is gone: was `1`"),
            (again, "ENV X is new: `1`"),
            (again, "ENV W is gone: was `1`")
        ])
    );
    assert_eq!(reasons(&build(&["--no-cache"]))[0].1, "the cache is not asked (`--no-cache`)");

    // Nothing of it without being asked.
    sandbox.write("Dockerfile", &dockerfile.replace("W=1", "W=3"));
    assert_eq!(reasons(&sandbox.build("image.tar", &[])), of(&[]));
}

/// Programs and later readers learn the same.
#[test]
fn reasons_are_in_json_and_in_the_record() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nARG V\nRUN echo $V\n");
    let build = |value: &str| {
        let mut args = sandbox.build_args("image.tar", &["--explain".into(), format!("--build-arg=V={value}")]);
        args.iter_mut().filter(|arg| *arg == "plain").for_each(|arg| *arg = "rawjson".into());
        sandbox.wythe(&args)
    };
    build("1");
    let ended = build("2");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let events = ended.stderr.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let missed: Vec<_> = events.filter(|event| event["event"] == "missed").collect();
    let expected = serde_json::json!(["ARG V changed: was `1`, is `2`"]);
    assert_eq!((missed.len(), &missed[0]["reasons"]), (1, &expected));
    let history = sandbox.wythe(&["history", "--json"]);
    let history: Value = serde_json::from_slice(&history.stdout).unwrap();
    assert_eq!(history[0]["steps"][1]["reasons"], expected);
}

/// A question asks no server: not for a base, not for a file.
#[test]
fn explaining_asks_no_server() {
    let server = Server::start(|asked, _| match asked.path.as_str() {
        "/file" => Reply::new(200, "content"),
        _ => Reply::new(404, ""),
    });
    let sandbox = Sandbox::new();
    let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
    let explain = |pull: &str| sandbox.wythe(&["cache", "explain", pull, "--build-context", &busybox, "context"]);
    let text = |ended: Ended| {
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        String::from_utf8(ended.stdout).unwrap()
    };

    let base = format!("{}/base:1", server.host());
    sandbox.write("Dockerfile", &format!("FROM {base}\nRUN true\n"));
    for pull in ["--pull=missing", "--pull=always"] {
        let ended = explain(pull);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains(&format!("there is no image `{base}` in the local store")), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("`wythe pull {base}` fetches it")), "{}", ended.stderr);
    }

    sandbox.write("Dockerfile", &format!("FROM busybox\nADD http://{}/file /\nRUN true\n", server.host()));
    let told = text(explain("--pull=missing"));
    assert!(told.contains("        nothing like it was built here before\n"), "{told}");
    assert!(server.seen().is_empty(), "{:?}", server.seen());
    assert_eq!(sandbox.build("image.tar", &[]).code, Some(0));
    let asked = server.seen().len();
    assert!(asked > 0);
    let told = text(explain("--pull=missing"));
    assert!(told.ends_with("0 of 3 steps would run\n"), "{told}");
    assert!(
        told.contains(&format!("if `http://{}/file` is what it was: its server is not asked\n", server.host())),
        "{told}"
    );
    sandbox.write("Dockerfile", &format!("FROM busybox\nADD http://{}/other /\nRUN true\n", server.host()));
    let told = text(explain("--pull=missing"));
    assert!(told.contains("what its URL gives is not known: no server is asked"), "{told}");
    assert_eq!(server.seen().len(), asked);
}
