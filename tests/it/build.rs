//! Whole builds by the program itself: each folder in `testdata/build/` is a context with a
//! `Dockerfile`, a `case.json` that says how the build must end, and for those that succeed
//! `expected`, which lists how the image's files differ from the base's.
//!
//! `case.json`, everything optional:
//!
//! ```text
//! "about":      "a sentence",
//! "setup":      ["ln a b"]            shell lines run in a copy of the context first
//! "args":       ["--target", "x"]     more options of `wythe build`
//! "exit":       0                     the exit code
//! "stderr":     ["text"]              what standard error must contain
//! "stderr_not": ["text"]              and what it must not
//! "bases":      ["debian:12"]         images that are busybox here
//! "layers":     1                     layers above the base
//! "config":     {"config": {"User": "app"}}   what the config must contain: of an object the keys
//!                                     given here, of a list every element
//! ```
//!
//! `expected`, by path: kind, mode, owner, size and the beginning of its SHA-256; a link's target; a
//! `-` before what the base has and the image has not.
//!
//! `FROM busybox` is the base that `demo/base.sh` makes. What was built is built again: nothing may
//! run then, and the bytes must be the same. `CASE=name cargo test build` runs one. The folders of
//! `testdata/project` that have a `case.json` are built in the same way.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;
use wythe::digest::Digest;

use super::image::{Files, Image, apply, busybox, difference};
use super::sandbox::{Sandbox, busybox_layout, copy};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Case {
    #[serde(rename = "about")]
    _about: String,
    setup: Vec<String>,
    args: Vec<String>,
    exit: i32,
    stderr: Vec<String>,
    stderr_not: Vec<String>,
    bases: Vec<String>,
    layers: Option<usize>,
    config: Value,
}

impl Default for Case {
    fn default() -> Self {
        let (setup, args, stderr, stderr_not, bases) = Default::default();
        let config = Value::Object(serde_json::Map::new());
        Self { _about: String::new(), setup, args, exit: 0, stderr, stderr_not, bases, layers: None, config }
    }
}

#[test]
fn builds_end_as_the_cases_say() {
    let mut faults = String::new();
    let projects = super::cases("project").into_iter().filter(|folder| folder.join("case.json").exists());
    let projects: Vec<_> = projects.collect();
    assert!(projects.len() >= 10, "only {} projects are built", projects.len());
    for folder in super::cases("build").into_iter().chain(projects) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if chosen().is_some_and(|chosen| chosen != name) {
            continue;
        }
        if let Err(fault) = check(&folder) {
            let _ = writeln!(faults, "==== {name}: {fault}");
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[allow(clippy::disallowed_methods)] // A test is its own command line.
pub fn chosen() -> Option<String> {
    std::env::var("CASE").ok()
}

fn check(folder: &Path) -> Result<(), String> {
    let case = match fs::read(folder.join("case.json")) {
        Ok(json) => serde_json::from_slice(&json).map_err(|error| format!("case.json: {error}"))?,
        Err(_) => Case::default(),
    };
    let sandbox = Sandbox::new();
    copy(folder, &sandbox.context);
    for name in ["case.json", "expected", "expected.txt", "options.json"] {
        let _ = fs::remove_file(sandbox.context.join(name));
    }
    for line in &case.setup {
        sandbox.shell(line);
    }
    let busybox_at = |name: &String| format!("--build-context={name}=oci-layout://{}", busybox_layout().display());
    let args: Vec<String> = case.bases.iter().map(busybox_at).chain(case.args.iter().cloned()).collect();
    let ended = sandbox.build("image.tar", &args);
    if ended.code != Some(case.exit) {
        return Err(format!("exit code {:?}, not {}\n{}", ended.code, case.exit, ended.stderr));
    }
    for text in &case.stderr {
        if !ended.stderr.contains(text) {
            return Err(format!("standard error has no `{text}`\n{}", ended.stderr));
        }
    }
    for text in &case.stderr_not {
        if ended.stderr.contains(text) {
            return Err(format!("standard error has `{text}`\n{}", ended.stderr));
        }
    }
    let path = sandbox.path("image.tar");
    if case.exit != 0 {
        return if path.exists() { Err("a failed build left an image".into()) } else { Ok(()) };
    }

    let image = Image::read(&fs::read(&path).map_err(|error| format!("no image: {error}"))?);
    let base = busybox();
    let inherited = if image.diff_ids.starts_with(&base.diff_ids) { base.diff_ids.len() } else { 0 };
    let layers = image.diff_ids.len() - inherited;
    if case.layers.is_some_and(|expected| expected != layers) {
        return Err(format!("{layers} layers above the base, not {}\n{}", case.layers.unwrap(), ended.stderr));
    }
    includes(&image.config, &case.config, "config")?;
    let nothing = Files::new();
    let listing = difference(if inherited > 0 { &base.files } else { &nothing }, &image.files);
    compare(&folder.join("expected"), &listing)?;

    let again = sandbox.build("again.tar", &args);
    if again.code != Some(0) {
        return Err(format!("the second build ended with {:?}\n{}", again.code, again.stderr));
    }
    if let Some(title) = again.ran().first() {
        return Err(format!("the second build ran `{title}`\n{}", again.stderr));
    }
    if fs::read(&path).unwrap() != fs::read(sandbox.path("again.tar")).unwrap() {
        return Err("the second build gave other bytes".into());
    }
    Ok(())
}

fn compare(golden: &Path, listing: &str) -> Result<(), String> {
    if super::is_blessing() {
        fs::write(golden, listing).unwrap();
    }
    let expected = fs::read_to_string(golden).unwrap_or_default();
    if expected == listing { Ok(()) } else { Err(format!("files\n--- expected\n{expected}--- actual\n{listing}")) }
}

/// Whether `actual` has all that `expected` asks for.
fn includes(actual: &Value, expected: &Value, place: &str) -> Result<(), String> {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => expected.iter().try_for_each(|(key, expected)| {
            includes(actual.get(key).unwrap_or(&Value::Null), expected, &format!("{place}.{key}"))
        }),
        (Value::Array(actual), Value::Array(expected)) if actual.len() == expected.len() => {
            let mut pairs = actual.iter().zip(expected).enumerate();
            pairs.try_for_each(|(index, (actual, expected))| includes(actual, expected, &format!("{place}[{index}]")))
        }
        _ if actual == expected => Ok(()),
        _ => Err(format!("{place} is {actual}, not {expected}")),
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\n");
    for args in [
        &["build"][..],
        &["frobnicate"],
        &["build", "--frobnicate", "context"],
        &["build", "-o", "type=frob", "context"],
    ] {
        let ended = sandbox.wythe(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{args:?}");
    }
}

/// `build` is a link to the program; Cargo refuses a binary of that name.
#[test]
fn called_build_it_builds() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    symlink(env!("CARGO_BIN_EXE_wythe"), sandbox.path("build")).unwrap();
    let store = sandbox.path("store");
    let output = format!("type=oci,dest={}", sandbox.path("image.tar").display());
    let args = ["--root", store.to_str().unwrap(), "--progress", "quiet", "-o", &output];
    let ended = Command::new(sandbox.path("build")).args(args).arg(&sandbox.context).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(ended.stderr.is_empty(), "quiet said {}", String::from_utf8_lossy(&ended.stderr));
    let image = Image::read(&fs::read(sandbox.path("image.tar")).unwrap());
    assert_eq!(image.files.keys().collect::<Vec<_>>(), ["Dockerfile"]);
}

/// With the clock held still (`SOURCE_DATE_EPOCH`), what a build makes has that time, the
/// directories made on the way included.
#[test]
fn the_clock_does_not_show_in_an_image() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nCOPY file /a/file\nWORKDIR /b/c\nENV A=b\n");
    sandbox.write("file", "content");
    let ended = sandbox.build("image.tar", &["--build-arg".into(), "SOURCE_DATE_EPOCH=1100000000".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let image = Image::read(&fs::read(sandbox.path("image.tar")).unwrap());
    assert_eq!(image.config["created"], "2004-11-09T11:33:20Z");
    let times: Vec<_> = ["a", "b", "b/c"].iter().map(|path| image.times[*path]).collect();
    assert_eq!(times, [1_100_000_000; 3]);
}

/// A change makes exactly the steps run again that see it.
#[test]
fn only_what_a_change_touches_runs_again() {
    let sandbox = Sandbox::new();
    let dockerfile = |env: &str| format!("FROM busybox\nENV A={env}\nCOPY a /a\nRUN cat /a > /out\nCOPY b /b\n");
    sandbox.write("Dockerfile", &dockerfile("1"));
    sandbox.write("a", "a1");
    sandbox.write("b", "b1");
    let ran = |args: &[&str]| {
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let ended = sandbox.build("image.tar", &args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        // `[2/4] COPY a /a` → `COPY a /a`
        ended.ran().iter().map(|title| title.split_once("] ").unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ran(&[]), ["COPY a /a", "RUN cat /a > /out", "COPY b /b"]);
    assert_eq!(ran(&[]), [""; 0]);
    sandbox.shell("touch -d @1 a b; chmod 755 .");
    assert_eq!(ran(&[]), [""; 0], "times are no part of a key");
    sandbox.write("b", "b2");
    assert_eq!(ran(&[]), ["COPY b /b"]);
    sandbox.write("b", "b1");
    assert_eq!(ran(&[]), [""; 0], "the earlier result is still there");
    sandbox.shell("chmod 755 a");
    assert_eq!(ran(&[]), ["COPY a /a", "RUN cat /a > /out", "COPY b /b"]);
    sandbox.write("unrelated", "x");
    assert_eq!(ran(&["--label", "l=1"]), [""; 0], "metadata runs nothing");
    assert_eq!(ran(&["--no-cache"]).len(), 3);
    sandbox.write("Dockerfile", &dockerfile("2"));
    // A RUN sees the environment. This one gives what it gave before, so what stands on it stays.
    assert_eq!(ran(&[]), ["RUN cat /a > /out"]);
}

/// Ctrl-C ends a build at once, with its own exit code, without an image, and the store is usable.
#[test]
fn an_interrupted_build_says_so_and_leaves_a_usable_store() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM busybox\nRUN echo up > /file\nRUN echo started; sleep 30; echo finished\n");
    let mut child = sandbox.command(&sandbox.build_args("image.tar", &[])).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = stderr.by_ref().map(Result::unwrap).find(|line| line.starts_with("#3 ") && line.ends_with(" started"));
    assert!(said.is_some(), "the build ended before it was interrupted: {:?}", child.wait());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest: Vec<_> = stderr.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(!rest.iter().any(|line| line.ends_with(" finished")), "the step went on: {rest:?}");
    assert!(!sandbox.path("image.tar").exists());

    sandbox.write("Dockerfile", "FROM busybox\nRUN echo up > /file\n");
    let ended = sandbox.build("image.tar", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.ran(), [""; 0], "what was done before is kept");
}

/// One build, every form of result.
#[test]
fn results_take_every_form() {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\nCOPY hello /dir/hello\nCMD [\"/hello\"]\n");
    sandbox.write("hello", "hello\n");
    let build = |args: &[&str]| {
        let ended = sandbox.wythe(&[&["build", "--progress", "plain"][..], args, &["context"]].concat());
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended
    };
    let hello = "file 0644 0:0 6 5891b5b522d5";

    build(&["-o", "type=oci,dest=oci.tar", "--iidfile", "id", "--metadata-file", "metadata.json"]);
    let image = Image::read(&fs::read(sandbox.path("oci.tar")).unwrap());
    assert_eq!(image.files["dir/hello"], hello);
    assert_eq!(fs::read_to_string(sandbox.path("id")).unwrap().trim_end(), image.id);
    let metadata: Value = serde_json::from_slice(&fs::read(sandbox.path("metadata.json")).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], image.id);

    let quiet = build(&["-q"]);
    assert_eq!((String::from_utf8(quiet.stdout).unwrap().trim_end(), quiet.stderr.as_str()), (&*image.id, ""));

    build(&["-o", "type=oci,dest=layout,tar=false"]);
    let layout = Image::load(&|name| fs::read(sandbox.path("layout").join(name)).unwrap());
    assert_eq!((layout.id, &layout.files), (image.id.clone(), &image.files));

    build(&["-o", "out"]);
    assert_eq!(fs::read_to_string(sandbox.path("out/dir/hello")).unwrap(), "hello\n");

    let mut files = Files::new();
    apply(&mut files, &build(&["-o", "-"]).stdout);
    assert_eq!(files["dir/hello"], hello);

    build(&["-t", "name:tag", "-o", "type=docker,dest=docker.tar"]);
    for (name, kind) in [("oci.tar", "oci-archive"), ("docker.tar", "docker-archive")] {
        let source = format!("{kind}:{}", sandbox.path(name).display());
        let Some(config) = skopeo(&["inspect", "--config", "--raw", &source]) else { return };
        assert_eq!(Digest::of(&config).to_string(), image.id, "{kind}");
    }
    let tags = skopeo(&["list-tags", &format!("docker-archive:{}", sandbox.path("docker.tar").display())]).unwrap();
    assert!(String::from_utf8(tags).unwrap().contains("name:tag"));
}

/// What skopeo prints; nothing where it is not installed.
#[allow(clippy::print_stderr)] // It says what it cannot check.
fn skopeo(args: &[&str]) -> Option<Vec<u8>> {
    let Ok(output) = Command::new("skopeo").args(args).output() else {
        eprintln!("not checked by skopeo, which is not installed");
        return None;
    };
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn configs_are_compared_by_what_is_asked() {
    let actual = serde_json::json!({"a": {"b": 1, "c": 2}, "d": [{"e": 1, "f": 2}]});
    let asked = |text: &str| includes(&actual, &serde_json::from_str(text).unwrap(), "config");
    assert_eq!(asked(r#"{"a": {"b": 1}, "d": [{"e": 1}]}"#), Ok(()));
    assert_eq!(asked(r#"{"g": null}"#), Ok(()));
    for wrong in [r#"{"a": {"b": 2}}"#, r#"{"d": []}"#, r#"{"d": [{"e": 2}]}"#, r#"{"g": 1}"#, r#"{"a": null}"#] {
        assert!(asked(wrong).is_err(), "{wrong}");
    }
}

/// A secret in the environment takes the place of an ENV of that name, and there is one of it.
#[test]
fn a_secret_wins_over_an_env_of_its_name() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "Dockerfile",
        "FROM busybox\nENV V=image\nRUN --mount=type=secret,id=s,env=V test \"$V\" = secret && test $(env | grep -c ^V=) = 1\n",
    );
    fs::write(sandbox.path("s"), "secret").unwrap();
    let ended = sandbox.build("image.tar", &["--secret".into(), "id=s,src=s".into()]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}
