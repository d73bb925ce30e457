//! Contexts and Dockerfiles that are no directory of this machine: standard input, other pipes, URLs; and directories
//! of odd shapes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use super::conformance::{case, context};
use super::sandbox::{Ended, Sandbox, holds};
use super::server::{Reply, Server};

/// Builds with `input` on standard input, into the directory `out`, anew.
fn build(sandbox: &Sandbox, args: &[&str], input: &[u8]) -> Ended {
    let _ = fs::remove_dir_all(sandbox.path("out"));
    let args = [&["build", "--progress", "plain", "-o", "type=local,dest=out"], args].concat();
    let mut command = sandbox.command(&args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who has read enough closes it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { code: output.status.code(), stdout: output.stdout, stderr }
}

#[track_caller]
fn built(sandbox: &Sandbox, args: &[&str], input: &[u8]) -> Ended {
    let ended = build(sandbox, args, input);
    assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
    ended
}

#[track_caller]
fn refused(sandbox: &Sandbox, args: &[&str], input: &[u8], fault: &str) {
    let ended = build(sandbox, args, input);
    assert!(matches!(ended.code, Some(1 | 2)), "{args:?}: {:?}\n{}", ended.code, ended.stderr);
    assert!(ended.stderr.contains(fault), "{args:?}: `{fault}` is not in\n{}", ended.stderr);
    assert!(!sandbox.path("out").exists(), "{args:?} left something");
}

/// A tar of members as the cases of the language write them.
fn tar(members: &str) -> Vec<u8> {
    let parsed = case::Case::parse(&format!("=== x tar\n{members}")).unwrap();
    let [case::File { kind: case::Kind::Tar(members, _), .. }] = &*parsed.files else { panic!("{members}") };
    context::tar(members)
}

fn out(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path("out").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

const MEMBERS: &str = "Dockerfile text 'FROM scratch\\nCOPY . /\\n'\n.dockerignore text 'a\\n'\n\
    a 0640 7:8 @1400000000 text 'one'\nd/ 0700 7:8 @1400000001\nd/b text 'two'\n";

#[test]
fn a_tar_on_standard_input_is_a_context() {
    let sandbox = Sandbox::new();
    let plain = tar(MEMBERS);
    for compression in ["", "gz", "bz2", "xz", "zst"] {
        built(&sandbox, &["-"], &context::compressed(&plain, compression));
        assert_eq!([out(&sandbox, "a"), out(&sandbox, "d/b")], ["one", "two"]);
        let look = |name: &str| {
            let metadata = sandbox.path("out").join(name).metadata().unwrap();
            (metadata.mode() & 0o7777, metadata.uid(), metadata.mtime())
        };
        assert_eq!([look("a"), look("d")], [(0o640, 0, 1_400_000_000), (0o700, 0, 1_400_000_001)], "{compression}");
    }
    // Another Dockerfile of it, and one that it does not have.
    let other = tar(&format!("{MEMBERS}d/Other text 'FROM scratch\\nCOPY d/b /c\\n'\n"));
    for name in ["d/Other", "./d/Other", "/d/Other", "d/../d/Other"] {
        built(&sandbox, &["-f", name, "-"], &other);
        assert_eq!(out(&sandbox, "c"), "two");
    }
    refused(&sandbox, &["-f", "nope", "-"], &other, "there is no Dockerfile `nope` in `standard input`");
    // A build that knows everything needs no more of it than its files.
    let again = built(&sandbox, &["-"], &plain);
    assert!(again.ran().is_empty(), "{}", again.stderr);
    // Nothing of it stays.
    assert_eq!(fs::read_dir(sandbox.path("store/tmp")).unwrap().count(), 0);
}

#[test]
fn a_tar_that_is_cut_or_damaged_is_told() {
    let sandbox = Sandbox::new();
    let content: String = (0..40_000).map(|number| format!("{}", number * 7919 % 1000)).collect();
    let plain = tar(&format!("Dockerfile text 'FROM scratch\\nCOPY . /\\n'\nbig text '{content}'\n"));
    for compression in ["", "gz", "bz2", "xz", "zst"] {
        let whole = context::compressed(&plain, compression);
        built(&sandbox, &["-"], &whole);
        let fault = if compression.is_empty() { "it ends inside a member" } else { "it ends early" };
        refused(&sandbox, &["-"], &whole[..whole.len() / 2], fault);
    }
    let mut damaged = context::compressed(&plain, "gz");
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0x55);
    refused(&sandbox, &["-"], &damaged, "the archive `standard input`");
    // Not a word of it is there afterwards.
    assert_eq!(fs::read_dir(sandbox.path("store/tmp")).unwrap().count(), 0);
}

#[test]
fn a_tar_reaches_nothing_outside() {
    let sandbox = Sandbox::new();
    let canary = sandbox.path("canary");
    fs::write(&canary, "alive").unwrap();
    let (outside, up) = (sandbox.path("").display().to_string(), "../../../../../../../../../..");
    let attacks = [
        format!("{up}{outside}/new text x"),
        format!("{outside}/new text x"),
        format!("l -> {outside}\nl/new text x"),
        format!("l -> {up}{outside}\nl/canary text x"),
        format!("d/\nd -> {outside}\nd/new text x"),
        format!("l -> {outside}\nl/ 0777"),
        format!("h hardlink {outside}/canary"),
        format!("h hardlink {up}{outside}/canary\nh text x"),
        format!("l -> {outside}/canary\nh hardlink l\nh text x"),
    ];
    for attack in attacks {
        let archive = tar(&format!("Dockerfile text 'FROM scratch\\nCOPY Dockerfile /\\n'\n{attack}\n"));
        let ended = build(&sandbox, &["-"], &archive);
        assert!(matches!(ended.code, Some(0 | 1)), "{attack}: {}", ended.stderr);
        assert_eq!(fs::read_to_string(&canary).unwrap(), "alive", "{attack}");
        assert!(!sandbox.path("new").exists(), "{attack}");
        assert_ne!(sandbox.path("").metadata().unwrap().mode() & 0o7777, 0o777, "{attack}");
    }
    // What is read of it stays in it, too.
    let reading = |dockerfile: &str, rest: &str| tar(&format!("real text '{dockerfile}'\n{rest}"));
    let links = format!("Dockerfile -> {}\n", canary.display());
    refused(&sandbox, &["-"], &reading("", &links), "there is no Dockerfile");
    let links = format!("out -> {up}{outside}\nDockerfile text 'FROM scratch\\nCOPY out/canary /\\n'\n");
    refused(&sandbox, &["-"], &reading("", &links), "not found in");
    // Deletions of an overlay are none of a context.
    refused(&sandbox, &["-"], &tar("Dockerfile text x\nx char 0:0\n"), "is a deletion to the overlay");
}

#[test]
fn a_dockerfile_comes_alone() {
    let sandbox = Sandbox::new();
    let alone = b"FROM scratch\nCOPY <<EOF /x\nalone\nEOF\n";
    sandbox.write("y", "here");
    for (args, input) in
        [(&["-"][..], &alone[..]), (&["-f", "-", "context"], alone), (&["-f", "/dev/stdin", "context"], alone)]
    {
        built(&sandbox, args, input);
        assert_eq!(out(&sandbox, "x"), "alone\n", "{args:?}");
    }
    refused(&sandbox, &["-"], b"FROM scratch\nCOPY y /\n", "`y` not found in the context `the empty context`");
    refused(&sandbox, &["-f", "-", "-"], alone, "standard input cannot be both");
    refused(&sandbox, &["-f", "x", "-"], alone, "standard input is no tar but a Dockerfile");
    refused(&sandbox, &["-"], b"", "the Dockerfile is empty");
    refused(&sandbox, &["-"], b"\xff\xfeF\0R\0O\0M\0", "it is UTF-16");
    refused(&sandbox, &["-"], b"\x7fELF\x02\x01\x01\0\0\0\0", "it is no text");
    fs::write(sandbox.path("gz"), context::compressed(alone, "gz")).unwrap();
    refused(&sandbox, &["-f", "gz", "context"], b"", "it is no text");
    // A pipe is read once, whoever writes to it.
    let status = std::process::Command::new("mkfifo").arg(sandbox.path("pipe")).status().unwrap();
    assert!(status.success() && sandbox.path("pipe").metadata().unwrap().file_type().is_fifo());
    let pipe = sandbox.path("pipe");
    let writer =
        std::thread::spawn(move || fs::File::options().write(true).open(pipe).unwrap().write_all(alone).unwrap());
    built(&sandbox, &["-f", "pipe", "context"], b"");
    writer.join().unwrap();
    assert_eq!(out(&sandbox, "x"), "alone\n");
    // But a context's own is waited for by nobody.
    fs::rename(sandbox.path("pipe"), sandbox.context.join("Dockerfile")).unwrap();
    refused(&sandbox, &["context"], b"", "it is no file");
}

#[test]
fn a_url_is_a_context_or_a_dockerfile() {
    let sandbox = Sandbox::new();
    let archive = context::compressed(&tar(MEMBERS), "gz");
    let server = Server::start(move |asked, _| match (asked.path.as_str(), asked.header("if-none-match")) {
        ("/c.tar.gz", "\"1\"") => Reply::new(304, ""),
        ("/c.tar.gz", _) => Reply::new(200, archive.clone()).with("ETag", "\"1\""),
        ("/Dockerfile", _) => Reply::new(200, "FROM scratch\nCOPY <<EOF /x\nserved\nEOF\n"),
        ("/of-context", _) => Reply::new(200, "FROM scratch\nCOPY y /\n"),
        ("/file", _) => Reply::new(200, "content").with("Last-Modified", "Tue, 13 May 2014 16:53:20 GMT"),
        ("/moved", _) => Reply::new(302, "").with("Location", "/c.tar.gz"),
        ("/elsewhere", _) => Reply::new(302, "").with("Location", "file:///etc/passwd"),
        ("/ftp", _) => Reply::new(302, "").with("Location", "ftp://127.0.0.1/x"),
        ("/round", _) => Reply::new(302, "").with("Location", "/round"),
        ("/cut", _) => Reply::new(200, archive.clone()).cut_at(100),
        _ => Reply::new(404, ""),
    });
    let url = |path: &str| format!("http://{}/{path}", server.host());

    built(&sandbox, &[&url("c.tar.gz")], b"");
    assert_eq!([out(&sandbox, "a"), out(&sandbox, "d/b")], ["one", "two"]);
    let again = built(&sandbox, &[&url("c.tar.gz")], b"");
    assert!(again.ran().is_empty() && !again.stderr.contains("[download]"), "{}", again.stderr);
    assert_eq!(server.seen_at("GET", "/c.tar.gz").last().unwrap().header("if-none-match"), "\"1\"");
    built(&sandbox, &[&url("moved")], b"");
    assert_eq!(out(&sandbox, "a"), "one");
    built(&sandbox, &[&url("Dockerfile")], b"");
    assert_eq!(out(&sandbox, "x"), "served\n");
    sandbox.write("y", "here");
    built(&sandbox, &["-f", &url("of-context"), "context"], b"");
    assert_eq!(out(&sandbox, "y"), "here");

    refused(&sandbox, &[&url("nope")], b"", "status 404");
    refused(&sandbox, &[&url("elsewhere")], b"", "which is no address");
    refused(&sandbox, &[&url("ftp")], b"", "which is no address");
    refused(&sandbox, &[&url("round")], b"", "redirects more than");
    refused(&sandbox, &[&url("cut")], b"", "cannot download");
    refused(&sandbox, &["-f", "x", &url("Dockerfile")], b"", "is no archive but a Dockerfile");
    refused(&sandbox, &["file:///etc"], b"", "nothing is fetched over `file`");
    refused(&sandbox, &["ftp://127.0.0.1/x"], b"", "nothing is fetched over `ftp`");

    // By name: a tar's content, or the file alone under the name that BuildKit gives it.
    sandbox.write("Dockerfile", "FROM scratch\nCOPY --from=c . /\n");
    let named = |path: &str| format!("c={}", url(path));
    built(&sandbox, &["--build-context", &named("c.tar.gz"), "context"], b"");
    assert_eq!(out(&sandbox, "d/b"), "two");
    built(&sandbox, &["--build-context", &named("file"), "context"], b"");
    let metadata = sandbox.path("out/context").metadata().unwrap();
    assert_eq!(
        (out(&sandbox, "context").as_str(), metadata.mode() & 0o7777, metadata.mtime()),
        ("content", 0o600, 1_400_000_000)
    );
    // A context that no step needs is not asked for.
    sandbox.write("Dockerfile", "FROM scratch\nCOPY y /\n");
    built(&sandbox, &["--build-context", &named("nope"), "context"], b"");
    assert_eq!(server.seen_at("GET", "/nope").len(), 1);
}

#[test]
fn passwords_of_urls_stay_with_their_server() {
    const TOKEN: &str = "t0ken-of-mine";
    let thief = Server::start(|_, _| Reply::new(200, "FROM scratch\nCOPY <<EOF /x\nx\nEOF\n"));
    let target = format!("http://{}/x", thief.host());
    let server = Server::start(move |asked, _| match (asked.path.as_str(), asked.header("authorization")) {
        ("/moved", _) => Reply::new(302, "").with("Location", &target),
        // us@er:t0ken-of-mine
        (_, "Bearer t0ken-of-mine" | "Basic dXNAZXI6dDBrZW4tb2YtbWluZQ==") => {
            Reply::new(200, "FROM scratch\nCOPY <<EOF /x\nx\nEOF\n")
        }
        _ => Reply::new(401, ""),
    });
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("token"), format!("{TOKEN}\n")).unwrap();
    let host = server.host();
    let secret = "id=HTTP_AUTH_TOKEN_127.0.0.1,src=token";
    refused(&sandbox, &[&format!("http://{host}/")], b"", "status 401");
    let mut said = vec![built(&sandbox, &["--secret", secret, &format!("http://{host}/")], b"")];
    said.push(built(&sandbox, &[&format!("http://us%40er:{TOKEN}@{host}/")], b""));
    sandbox.write("Dockerfile", &format!("FROM scratch\nADD http://us%40er:{TOKEN}@{host}/f /\n"));
    said.push(built(&sandbox, &["-t", "x", "context"], b""));
    sandbox.write(
        "Dockerfile",
        &format!("FROM scratch\nADD http://us%40er:{TOKEN}@{host}/f http://nobody:{TOKEN}@{host}/g /\n"),
    );
    said.push(build(&sandbox, &["context"], b""));
    // Another host gets no header, and another port is another host.
    said.push(built(&sandbox, &["--secret", secret, &format!("http://{host}/moved")], b""));
    said.push(built(&sandbox, &[&format!("http://us%40er:{TOKEN}@{host}/moved")], b""));
    assert!(!thief.seen().is_empty() && thief.seen().iter().all(|asked| asked.header("authorization").is_empty()));
    for args in [&["history", "x"][..], &["history"], &["cache", "explain", "context"], &["logs"]] {
        said.push(sandbox.wythe(args));
    }
    for ended in said {
        assert!(!ended.stderr.contains(TOKEN), "{}", ended.stderr);
        assert!(!String::from_utf8_lossy(&ended.stdout).contains(TOKEN), "{:?}", ended.stdout);
    }
    assert!(!holds(&sandbox.path("store"), TOKEN), "the token is in the store");
}

#[test]
fn odd_places_of_dockerfiles_are_found() {
    let sandbox = Sandbox::new();
    let make = |path: &str, content: &str| {
        let path = sandbox.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for name in ["x", "y", "sub/z"] {
        make(&format!("context/{name}"), name);
    }
    make("elsewhere/File", "FROM scratch\nCOPY . /\n");
    let files = || {
        let entries = walkdir::WalkDir::new(sandbox.path("out")).sort_by_file_name().into_iter().map(Result::unwrap);
        let files = entries.filter(|entry| entry.file_type().is_file());
        files
            .map(|entry| entry.path().strip_prefix(sandbox.path("out")).unwrap().display().to_string())
            .collect::<Vec<_>>()
    };
    built(&sandbox, &["-f", "elsewhere/File", "context"], b"");
    assert_eq!(files(), ["sub/z", "x", "y"]);
    // The ignore file beside the Dockerfile wins, whatever the context's says.
    make("context/.dockerignore", "x\n.dockerignore\n");
    built(&sandbox, &["-f", "elsewhere/File", "context"], b"");
    assert_eq!(files(), ["sub/z", "y"]);
    make("elsewhere/File.dockerignore", "y\n");
    built(&sandbox, &["-f", "elsewhere/File", "context"], b"");
    assert_eq!(files(), [".dockerignore", "sub/z", "x"]);
    // It may hide the Dockerfile and itself.
    make("context/Dockerfile", "FROM scratch\nCOPY . /\n");
    make("context/.dockerignore", "*\n!x\n");
    built(&sandbox, &["context"], b"");
    assert_eq!(files(), ["x"]);
    make("context/Dockerfile", "FROM scratch\nCOPY y /\n");
    refused(&sandbox, &["context"], b"", "`y` is hidden by line 1");

    make("sub/dockerfile", "FROM scratch\nCOPY dockerfile /\n");
    built(&sandbox, &["sub"], b"");
    make("context/sub/Own", "FROM scratch\nCOPY x /\n");
    symlink("context/sub/Own", sandbox.path("link")).unwrap();
    built(&sandbox, &["-f", "link", "context"], b"");
    make("podman/Containerfile", "FROM scratch\n");
    for (args, fault) in [
        (&["-f", "sub/Own", "context"][..], "did you mean `-f context/sub/Own`?"),
        (&["-f", "context", "context"], "did you mean `-f context/Dockerfile`?"),
        (&["podman"], "did you mean `-f podman/Containerfile`?"),
        (&["elsewhere"], "name it with `-f FILE`"),
        (&["-f", "nope", "context"], "cannot read the Dockerfile `nope`"),
        (&["nope"], "cannot open the context `nope`"),
        (&["context/x"], "wythe build -f context/x DIRECTORY"),
    ] {
        refused(&sandbox, args, b"", fault);
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let sandbox = Sandbox::new();
    let set_mode = |path: &Path, mode: u32| {
        rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
    };
    sandbox.write("Dockerfile", "FROM scratch\nCOPY . /\n");
    sandbox.write("secret", "x");
    fs::create_dir(sandbox.context.join("closed")).unwrap();
    let tree = wythe::context::Tree::open(&sandbox.context, None).unwrap();
    set_mode(&sandbox.context.join("secret"), 0);
    set_mode(&sandbox.context.join("closed"), 0);
    let request = |path: &'static str| wythe::context::Request {
        sources: vec![path],
        form: wythe::context::Form::Wildcard,
        excludes: &[],
        threads: 1,
    };
    // Only this thread gives up what root may.
    let faults = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(65534);
            // Who is nobody special cannot become another, and need not.
            let _ = rustix::thread::set_thread_res_uid(nobody, nobody, nobody);
            ["secret", "."]
                .map(|path| wythe::context::select(&tree, &request(path), None).err().unwrap().diagnostic.render(false))
        });
        asked.join().unwrap()
    });
    set_mode(&sandbox.context.join("closed"), 0o700);
    for fault in faults {
        assert!(fault.contains("Permission denied") && fault.contains("`.dockerignore`"), "{fault}");
    }
}
