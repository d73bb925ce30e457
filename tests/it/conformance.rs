//! The Dockerfile language, case by case, by the program itself: each file in `testdata/conformance/` has a
//! Dockerfile, a context and what comes of them.
//!
//! ```text
//! What the case is about.
//! $ --target x --build-arg 'A=b c'     more options of `wythe build`; single quotes group
//! differs: no-empty-layer              why the result is not BuildKit's: one of `DIFFERENCES`
//! === Dockerfile                       beside the context; without it, it is in the context
//! FROM busybox
//! === context/bin/tool 0755 5:6 @7     mode, owner, time; else 0644, 0:0 and some day in 2020
//! content
//! === context/x escaped                the content has escape sequences: see `case.rs`
//! === context/d/
//! === context/l -> target              also `hardlink PATH`, `fifo`, `socket`, `char 1:3`, `block 7:0`
//! === context/a.tar tar gz             a line a member, headings without `===`, `text hello\n`
//! === buildkit                         what BuildKit made of it: never rewritten
//! image                                or `fails`
//! === wythe                            the result where nobody asked BuildKit, or where it differs; of a
//! fails                                failure also what was said. Rewritten by BLESS=1
//! ```
//!
//! The lines of an image are those of `listing.rs`. In Dockerfile and options `{{http}}` is a web server.
//! A case that says `differs` and does not is a fault: the note is to go. `CASE=name` runs those whose
//! name begins so.

pub mod case;
pub mod context;
mod listing;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use case::Case;

use super::sandbox::{Sandbox, busybox_layout};
use super::server::{Reply, Server};

/// Where an image is not BuildKit's on purpose.
const DIFFERENCES: [(&str, &str); 5] = [
    ("no-empty-layer", "a step that changes nothing adds no layer"),
    ("unknown-user", "a name of --chown or USER that the image does not know is an error with the line"),
    ("user-xattrs", "`user.*` xattrs are kept"),
    ("long-line", "a line may have any length"),
    ("whiteout-name", "a name that begins with `.wh.` is an error, not a deletion"),
];

#[test]
fn every_case_ends_as_it_says() {
    let folder = super::testdata("conformance");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let chosen = super::build::chosen();
    paths.retain(|path| chosen.as_ref().is_none_or(|name| stem(path).starts_with(name.as_str())));
    assert!(chosen.is_some() || paths.len() > 380, "only {} cases", paths.len());
    let web = web();
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            scope.spawn(|| {
                let worker = Sandbox::new();
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(fault) = check(path, &worker.path("store"), &web) {
                        faults.lock().unwrap().push(format!("==== {}: {fault}", stem(path)));
                    }
                }
            });
        }
    });
    let mut faults = faults.into_inner().unwrap();
    faults.sort();
    assert!(faults.is_empty(), "{} of {} cases\n{}", faults.len(), paths.len(), faults.join("\n"));
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn check(path: &Path, store: &Path, web: &Server) -> Result<(), String> {
    let text = fs::read_to_string(path).unwrap();
    let case = Case::parse(&text)?;
    if let Some(reason) = &case.differs
        && !DIFFERENCES.iter().any(|(known, _)| known == reason)
    {
        return Err(format!("`{reason}` is no known difference"));
    }
    let result = build(&case, store, web);
    let is_failure = result.starts_with("fails\n");
    let is_same = match case.buildkit.as_deref() {
        // What an error says is ours.
        Some(expected) if is_failure => expected == "fails\n",
        Some(expected) => expected == result,
        None => false,
    };
    if super::is_blessing() {
        let said = if is_same && !is_failure { String::new() } else { format!("=== wythe\n{result}") };
        fs::write(path, format!("{}{said}", case.before)).unwrap();
    }
    match (&case.buildkit, &case.differs) {
        (Some(_), Some(_)) if is_same => return Err("it says that it differs from BuildKit, and does not".into()),
        (Some(expected), None) if !is_same => {
            return Err(format!("it is not what BuildKit makes, and does not say why\n{}", delta(expected, &result)));
        }
        (None, Some(_)) => return Err("it differs from what?".into()),
        _ => {}
    }
    let expected = case.wythe.as_deref().or(case.buildkit.as_deref()).unwrap_or_default();
    if expected == result || super::is_blessing() { Ok(()) } else { Err(delta(expected, &result)) }
}

/// The lines in which two listings differ.
fn delta(expected: &str, result: &str) -> String {
    let only = |sign: char, a: &str, b: &str| {
        let other: Vec<_> = b.lines().collect();
        let lines = a.lines().filter(|line| !other.contains(line)).map(|line| format!("{sign} {line}\n"));
        lines.collect::<String>()
    };
    let lines = only('-', expected, result) + &only('+', result, expected);
    if lines.is_empty() { "the same lines in another order".into() } else { lines }
}

/// Builds a case and lists what came of it. Nothing in the store is known from another case but the layers of
/// bases: keys do not count times, and a case may be about them.
fn build(case: &Case, store: &Path, web: &Server) -> String {
    let sandbox = Sandbox::new();
    for known in ["cache", "files", "mounts"] {
        let _ = fs::remove_dir_all(store.join(known));
    }
    let substitute = |text: &str| text.replace("{{http}}", &format!("http://{}", web.host()));
    context::lay(&case.files, &sandbox.path(""), &substitute);
    let busybox = format!("busybox=oci-layout://{}", busybox_layout().display());
    let mut args: Vec<String> =
        ["build", "--progress", "quiet", "--pull=never", "--build-context", &busybox, "-o", "type=oci,dest=image.tar"]
            .map(String::from)
            .into();
    if case.files.iter().any(|file| file.path == "Dockerfile") {
        args.extend(["-f".into(), "Dockerfile".into()]);
    }
    args.extend(case.options.iter().map(|option| substitute(option)));
    args.push("context".into());
    args.extend(["--root".into(), store.display().to_string()]);
    let ended = sandbox.wythe(&args);
    let stderr = ended
        .stderr
        .replace(&format!("http://{}", web.host()), "{{http}}")
        .replace(&sandbox.path("").display().to_string(), "");
    match ended.code {
        Some(0) => {
            assert!(stderr.is_empty(), "a quiet build said {stderr}");
            let mut known: Vec<_> = (case.files.iter())
                .filter(|file| matches!(file.kind, case::Kind::Tar(..)))
                .map(|file| (file.path.clone(), fs::read(sandbox.path(&file.path)).unwrap()))
                .collect();
            known.push(("{{http}}/x.tar.gz".into(), archive()));
            let is_named = case.options.iter().any(|option| option == "--platform");
            let listing = listing::of(&fs::read(sandbox.path("image.tar")).unwrap(), is_named, &known);
            listing.replace(&format!("http://{}", web.host()), "{{http}}")
        }
        Some(1) => {
            assert!(!sandbox.path("image.tar").exists(), "a failed build left an image");
            // Where the log of the build is, is another place each time.
            let said = stderr.lines().filter(|line| !line.contains("help: `wythe --root "));
            format!("fails\n{}", said.map(|line| format!("{line}\n")).collect::<String>())
        }
        code => format!("exit code {code:?}\n{stderr}"),
    }
}

/// What the cases of ADD download.
fn web() -> Server {
    const DATE: &str = "Tue, 13 May 2014 16:53:20 GMT";
    Server::start(|asked, _| match asked.path.split('?').next().unwrap_or_default() {
        "/file.txt" => Reply::new(200, "served\n"),
        "/dated.txt" => Reply::new(200, "dated\n").with("Last-Modified", DATE),
        "/x.tar.gz" => Reply::new(200, archive()),
        "/d/named" => Reply::new(200, "cd\n").with("Content-Disposition", "attachment; filename=\"given.txt\""),
        "/d/" => Reply::new(200, "index\n"),
        "/etag.txt" => Reply::new(200, "etag\n").with("ETag", "\"v1\""),
        "/q" => Reply::new(200, "query\n"),
        "/exe.sh" => Reply::new(200, "#!/bin/sh\necho hi\n").with("Last-Modified", DATE),
        "/redirect" => Reply::new(302, "").with("Location", "/file.txt"),
        _ => Reply::new(404, ""),
    })
}

/// `x.tar.gz` of the server.
fn archive() -> Vec<u8> {
    let case = Case::parse("=== x tar\nin/ @1500000000\nin/f 0640 5:6 @1500000000 text 'from url tar\\n'\n").unwrap();
    let [case::File { kind: case::Kind::Tar(members, _), .. }] = &*case.files else { panic!("{case:?}") };
    context::compressed(&context::tar(members), "gz")
}
