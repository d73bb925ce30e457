//! Git repositories as contexts and as sources of ADD, served by git's own `http-backend` behind the test's web
//! server, and over an ssh that goes nowhere.

mod repositories;

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Stdio;
use std::time::Duration;

use repositories::{Repositories, git};
use rustix::process::{Pid, Signal};

use super::sandbox::{Ended, Sandbox, holds};
use super::server::{Reply, Server};

/// Builds `context` into the directory `out`, anew.
fn build(sandbox: &Sandbox, context: &str, options: &[&str]) -> Ended {
    let _ = fs::remove_dir_all(sandbox.path("out"));
    let mut args = vec!["build", "--progress", "plain", "-o", "type=local,dest=out"];
    args.extend(options);
    args.push(context);
    sandbox.wythe(&args)
}

#[track_caller]
fn built(sandbox: &Sandbox, context: &str, options: &[&str]) -> Ended {
    let ended = build(sandbox, context, options);
    assert_eq!(ended.code, Some(0), "{context}: {}", ended.stderr);
    ended
}

/// What must be said of a build that fails.
#[track_caller]
fn refused(sandbox: &Sandbox, context: &str, options: &[&str], fault: &str) {
    let ended = build(sandbox, context, options);
    assert!(matches!(ended.code, Some(1 | 2)), "{context}: {:?}\n{}", ended.code, ended.stderr);
    assert!(ended.stderr.contains(fault), "{context}: `{fault}` is not in\n{}", ended.stderr);
    assert!(!sandbox.path("out").exists(), "{context} left something");
}

/// The files below `out`, sorted.
fn files(sandbox: &Sandbox) -> Vec<String> {
    let out = sandbox.path("out");
    let entries = walkdir::WalkDir::new(&out).sort_by_file_name().into_iter().map(|entry| entry.unwrap().into_path());
    let files = entries.filter(|path| !path.symlink_metadata().unwrap().is_dir());
    files.map(|path| path.strip_prefix(&out).unwrap().display().to_string()).collect()
}

/// A sandbox whose Dockerfile adds `$SRC`.
fn adding() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("Dockerfile", "FROM scratch\nARG SRC\nADD $SRC /\n");
    sandbox
}

#[test]
fn a_repository_is_a_context() {
    let repositories = Repositories::new();
    let files_of_it = [("Dockerfile", "FROM scratch\nCOPY . /\n"), (".dockerignore", "a\n"), ("a", "1"), ("d/b", "2")];
    repositories.add("app", &files_of_it);
    fs::set_permissions(repositories.path("app/a"), fs::Permissions::from_mode(0o777)).unwrap();
    repositories.commit("app", &[]);
    let server = repositories.serve();
    let url = format!("http://{}/app.git", server.host());
    let sandbox = Sandbox::new();

    let first = built(&sandbox, &url, &["--iidfile", "id"]);
    // The ignore file says what docker should not send from the author's disk.
    assert_eq!(files(&sandbox), [".dockerignore", "Dockerfile", "a", "d/b"]);
    let look = |name: &str| {
        let metadata = sandbox.path("out").join(name).metadata().unwrap();
        (metadata.mode() & 0o7777, metadata.mtime())
    };
    assert_eq!([look("a"), look("d"), look("d/b")], [0o755, 0o755, 0o644].map(|mode| (mode, 1_500_000_000)));
    assert!(first.stderr.contains(&format!("[git] {url}")), "{}", first.stderr);
    let id = fs::read(sandbox.path("id")).unwrap();

    // Nothing is fetched again, and everything is known.
    let second = built(&sandbox, &url, &["--iidfile", "id"]);
    assert!(second.ran().is_empty(), "{}", second.stderr);
    assert!(!second.stderr.contains("[git]"), "{}", second.stderr);
    assert_eq!(fs::read(sandbox.path("id")).unwrap(), id);

    // A branch moves.
    repositories.commit("app", &[("a", "new")]);
    built(&sandbox, &url, &[]);
    assert_eq!(fs::read_to_string(sandbox.path("out/a")).unwrap(), "new");

    // Without its server it is known what would be done.
    let asked = server.seen().len();
    let explained = sandbox.wythe(&["cache", "explain", &url]);
    assert_eq!(explained.code, Some(0), "{}", explained.stderr);
    assert_eq!(server.seen().len(), asked, "a question asks no server");
}

#[test]
fn addresses_say_what_is_wanted() {
    let repositories = Repositories::new();
    let first = repositories.add("app", &[("a", "1"), ("d/e/f", "2"), ("-x/y", "3")]);
    repositories.git("app", &["tag", "--annotate", "--message=x", "v1"]);
    let tag = repositories.git("app", &["rev-parse", "v1"]).trim().to_owned();
    repositories.git("app", &["checkout", "--quiet", "-b", "dev"]);
    let second = repositories.commit("app", &[("b", "3")]);
    repositories.git("app", &["update-ref", "refs/pull/7/head", &first]);
    for (name, target) in [("in", "d"), ("up", "d/../d/e"), ("out", "../../.."), ("root", "/etc"), ("loop", "loop")] {
        symlink(target, repositories.path("app").join(name)).unwrap();
    }
    repositories.git("app", &["checkout", "--quiet", "-b", "links"]);
    repositories.commit("app", &[]);
    repositories.git("app", &["checkout", "--quiet", "main"]);
    let server = repositories.serve();
    let url = |wanted: &str| format!("SRC=http://{}/app.git{wanted}", server.host());
    let sandbox = adding();

    let (main, dev) = (&["-x/y", "a", "d/e/f"][..], &["-x/y", "a", "b", "d/e/f"][..]);
    let (short, long) = (&first[..8], &second[..]);
    for (wanted, expected) in [
        ("", main),
        ("#dev", dev),
        ("#refs/heads/dev", dev),
        ("#v1", main),
        ("#pull/7/head", main),
        ("#main:d", &["e/f"]),
        ("#:d/./e/", &["f"]),
        ("#main:-x", &["y"]),
        ("#links:in", &["e/f"]),
        ("#links:up", &["f"]),
        ("?ref=dev&subdir=d", &["e/f"]),
        ("?branch=dev", dev),
        ("?tag=v1", main),
        (&format!("#{short}"), main),
        (&format!("#{long}"), dev),
        (&format!("?ref=dev&checksum={long}"), dev),
        (&format!("?tag=v1&checksum={tag}"), main),
        (&format!("?tag=v1&checksum={first}"), main),
        (&format!("?checksum={long}&fetch-by-commit=1"), dev),
    ] {
        built(&sandbox, "context", &["--build-arg", &url(wanted)]);
        assert_eq!(files(&sandbox), expected, "{wanted}");
    }
    for (wanted, fault) in [
        ("#nope", "has no `nope`"),
        ("#de", "did you mean `dev`?"),
        ("#:nope", "the repository has no `nope`"),
        ("#:a", "`a` is no directory"),
        ("#links:out", "leads out of the repository"),
        ("#links:root", "leads out of the repository"),
        ("#links:loop", "leads to itself"),
        ("#:../x", "leads out of the repository"),
        ("#--upload-pack=touch${IFS}x", "is no name of a branch"),
        ("?ref=-x", "is no name of a branch"),
        ("#0000000000000000000000000000000000000000", "has no commit"),
        (&format!("?ref=main&checksum={long}"), "is not the commit"),
        ("?ref=main&x=y", "there is no `x`"),
    ] {
        refused(&sandbox, "context", &["--build-arg", &url(wanted)], fault);
    }
    // The flags say the same as the query.
    let with = |flags: &str| sandbox.write("Dockerfile", &format!("FROM scratch\nARG SRC\nADD {flags} $SRC /\n"));
    with(&format!("--checksum={short} --chown=0:0 --exclude=d"));
    built(&sandbox, "context", &["--build-arg", &url("#main")]);
    assert_eq!(files(&sandbox), ["-x/y", "a"]);
    refused(&sandbox, "context", &["--build-arg", &url("#dev")], "is not the commit");
    with("--checksum=sha256:0000");
    refused(&sandbox, "context", &["--build-arg", &url("#dev")], "is no commit");
}

#[test]
fn a_git_dir_is_kept_where_it_is_wanted() {
    let repositories = Repositories::new();
    let commit = repositories.add("app", &[("a", "1"), ("d/b", "2"), ("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    let server = repositories.serve_with_password("Basic dTpzM2NyM3Q=");
    let (host, sandbox) = (server.host(), Sandbox::new());
    let url = format!("http://u:s3cr3t@{host}/app.git");
    sandbox.write("Dockerfile", &format!("FROM scratch\nADD --keep-git-dir=true {url} /\n"));
    let as_context = format!("{url}?keep-git-dir=true");
    for (context, options) in [
        ("context", &[][..]),
        (&as_context, &[]),
        (&url, &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"]),
        ("context", &["--no-cache"]),
    ] {
        built(&sandbox, context, options);
        let inside = |args: &[&str]| {
            let output = git().arg("-C").arg(sandbox.path("out")).args(args).output().unwrap();
            assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(inside(&["rev-parse", "HEAD"]), commit);
        assert_eq!(inside(&["status", "--porcelain"]), "");
        assert_eq!(inside(&["remote", "get-url", "origin"]), format!("http://{host}/app.git"));
        inside(&["fsck", "--strict"]);
        assert!(!holds(&sandbox.path("out"), "s3cr3t"));
    }
    // Two stores make the same bytes of it.
    let digest = |sandbox: &Sandbox| {
        let args = ["build", "--progress", "quiet", "-o", "type=tar,dest=out.tar", "context"];
        let ended = sandbox.wythe(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        wythe::digest::Digest::of(&fs::read(sandbox.path("out.tar")).unwrap())
    };
    let other = Sandbox::new();
    fs::copy(sandbox.context.join("Dockerfile"), other.context.join("Dockerfile")).unwrap();
    assert_eq!(digest(&sandbox), digest(&other));
    // Of a directory there is none.
    built(
        &sandbox,
        &format!("{url}?keep-git-dir=true&subdir=d"),
        &["-f", sandbox.context.join("Dockerfile").to_str().unwrap()],
    );
}

#[test]
fn submodules_are_fetched_from_servers_only() {
    let repositories = Repositories::new();
    let deepest = repositories.add("deepest", &[("z", "3")]);
    repositories.add("inner", &[("i", "2")]);
    repositories.add_submodule("inner", "deep", "../deepest.git", &deepest);
    let inner = repositories.git("inner", &["rev-parse", "HEAD"]).trim().to_owned();
    repositories.add("app", &[("a", "1")]);
    repositories.add_submodule("app", "lib/inner", "../inner.git", &inner);
    let server = repositories.serve();
    let (host, sandbox) = (server.host(), adding());
    let url = |name: &str| format!("SRC=http://{host}/{name}");
    built(&sandbox, "context", &["--build-arg", &url("app.git")]);
    assert_eq!(files(&sandbox), [".gitmodules", "a", "lib/inner/.gitmodules", "lib/inner/deep/z", "lib/inner/i"]);
    built(&sandbox, "context", &["--build-arg", &url("app.git?submodules=false")]);
    assert_eq!(files(&sandbox), [".gitmodules", "a"]);
    built(&sandbox, "context", &["--build-arg", &url("app.git?subdir=lib/inner/deep")]);
    assert_eq!(files(&sandbox), ["z"]);

    let canary = sandbox.path("canary");
    let local = repositories.path("inner").display().to_string();
    for (place, bad) in [
        format!("file://{local}"),
        local.clone(),
        format!("ext::sh -c touch% {}", canary.display()),
        format!("--upload-pack=touch {}", canary.display()),
        format!("ssh://-oProxyCommand=touch${{IFS}}{}/x", canary.display()),
        "../../../../inner.git".to_owned(),
        "http://127.0.0.1:1/nobody.git".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("bad{place}");
        repositories.add(&name, &[("a", "1")]);
        repositories.add_submodule(&name, "m", bad, &inner);
        refused(&sandbox, "context", &["--build-arg", &url(&format!("{name}.git"))], "cannot fetch the submodule `m`");
    }
    // Where the tree has a link in the submodule's place, nothing is written through it.
    repositories.add("linked", &[("a", "1")]);
    symlink(sandbox.path(""), repositories.path("linked").join("m")).unwrap();
    let modules = format!("[submodule \"m\"]\n\tpath = m/inner\n\turl = http://{host}/inner.git\n");
    repositories.commit("linked", &[(".gitmodules", &modules)]);
    built(&sandbox, "context", &["--build-arg", &url("linked.git")]);
    assert_eq!(files(&sandbox), [".gitmodules", "a", "m"]);
    assert!(!canary.exists() && !sandbox.path("inner").exists());
    // A repository that contains itself comes to an end.
    repositories.add("endless", &[("a", "1")]);
    let commit = repositories.git("endless", &["rev-parse", "HEAD"]).trim().to_owned();
    repositories.add_submodule("endless", "m", "../endless.git", &commit);
    built(&sandbox, "context", &["--build-arg", &url("endless.git")]);
}

#[test]
fn what_a_repository_says_runs_nothing() {
    let repositories = Repositories::new();
    let attributes = "* filter=evil diff=evil merge=evil\nident ident\n*.txt text eol=crlf\n";
    let config =
        "[filter \"evil\"]\n\tsmudge = touch canary\n\tprocess = touch canary\n[core]\n\tfsmonitor = touch canary\n";
    repositories.add(
        "app",
        &[
            ("Dockerfile", "FROM scratch\nCOPY . /\n"),
            (".gitattributes", attributes),
            (".gitconfig", config),
            ("config", config),
            ("hooks/post-checkout", "#!/bin/sh\ntouch canary\n"),
        ],
    );
    let server = repositories.serve();
    let sandbox = Sandbox::new();
    // Nor does what the user's own configuration says.
    let canary = sandbox.path("canary");
    let own = format!(
        "[filter \"evil\"]\n\tsmudge = touch {0}\n\trequired = true\n[core]\n\thooksPath = {0}\n",
        canary.display()
    );
    fs::write(sandbox.path(".gitconfig"), own).unwrap();
    built(&sandbox, &format!("http://{}/app.git", server.host()), &[]);
    assert_eq!(files(&sandbox).len(), 5);
    assert!(!canary.exists() && !sandbox.path("store/canary").exists());
}

#[test]
fn a_dockerfile_that_is_a_link_stays_in_the_repository() {
    let repositories = Repositories::new();
    repositories.add("app", &[("docker/real", "FROM scratch\nCOPY docker /\n")]);
    for (name, target) in [
        ("Dockerfile", "docker/real"),
        ("absolute", "/docker/real"),
        ("out", "/etc/passwd"),
        ("up", "../../../etc/passwd"),
    ] {
        symlink(target, repositories.path("app").join(name)).unwrap();
    }
    repositories.commit("app", &[]);
    let server = repositories.serve();
    let (sandbox, url) = (Sandbox::new(), format!("http://{}/app.git", server.host()));
    built(&sandbox, &url, &[]);
    built(&sandbox, &url, &["-f", "absolute"]);
    refused(&sandbox, &url, &["-f", "out"], "there is no Dockerfile `out`");
    refused(&sandbox, &url, &["-f", "up"], "there is no Dockerfile `up`");
    refused(&sandbox, &url, &["-f", "docker"], "it is no file");
    refused(&sandbox, &url, &["-f", "../x"], "there is no Dockerfile");
}

#[test]
fn passwords_open_repositories_and_are_kept_nowhere() {
    const TOKEN: &str = "t0ken-of-mine";
    // x-access-token:t0ken-of-mine
    const BASIC: &str = "basic eC1hY2Nlc3MtdG9rZW46dDBrZW4tb2YtbWluZQ==";
    let repositories = Repositories::new();
    repositories.add("other", &[("o", "1")]);
    let other = repositories.git("other", &["rev-parse", "HEAD"]).trim().to_owned();
    let elsewhere = repositories.serve();
    repositories.add("app", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    repositories.add_submodule("app", "m", &format!("http://{}/other.git", elsewhere.host()), &other);
    let server = repositories.serve_with_password(BASIC);
    let url = format!("http://{}/app.git", server.host());
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("token"), format!("{TOKEN}\n")).unwrap();

    refused(&sandbox, &url, &[], "--secret id=GIT_AUTH_TOKEN,env=VARIABLE");
    let for_host = format!("id=GIT_AUTH_TOKEN.{},src=token", server.host());
    for secret in ["id=GIT_AUTH_TOKEN,src=token", &for_host] {
        let ended = built(&sandbox, &url, &["--secret", secret, "--no-cache", "-t", "x"]);
        assert_eq!(files(&sandbox), [".gitmodules", "Dockerfile", "m/o"]);
        assert!(!ended.stderr.contains(TOKEN), "{}", ended.stderr);
    }
    fs::write(sandbox.path("header"), BASIC).unwrap();
    built(&sandbox, &url, &["--secret", "id=GIT_AUTH_HEADER,src=header", "--no-cache"]);
    // Another server gets none, unless it has one of its own.
    assert!(elsewhere.seen().iter().all(|asked| asked.header("authorization").is_empty()));
    let of_elsewhere = format!("id=GIT_AUTH_TOKEN.{},src=token", elsewhere.host());
    let other = format!("o=http://{}/other.git", elsewhere.host());
    sandbox.write("Dockerfile", "FROM scratch\nCOPY --from=o o /\n");
    built(&sandbox, "context", &["--build-context", &other, "--secret", &of_elsewhere]);
    assert!(elsewhere.seen().iter().any(|asked| asked.header("authorization") == BASIC));

    // In the address it is for this address alone, and shown nowhere.
    let named = repositories.serve_with_password("Basic dXNlcjp0MGtlbi1vZi1taW5l");
    let url = format!("http://user:{TOKEN}@{}/app.git", named.host());
    let ended = built(&sandbox, &url, &["-t", "y"]);
    assert!(ended.stderr.contains("http://xxxxx:xxxxx@"), "{}", ended.stderr);
    let failed = build(&sandbox, &format!("{url}#nope"), &[]);
    sandbox.write("Dockerfile", &format!("FROM scratch\nADD {url} /\n"));
    let added = built(&sandbox, "context", &["-t", "z"]);
    let history = sandbox.wythe(&["history", "z"]);
    let listed = sandbox.wythe(&["history"]);
    let explained = sandbox.wythe(&["cache", "explain", "context"]);
    for ended in [ended, failed, added, history, listed, explained] {
        assert!(!ended.stderr.contains(TOKEN), "{}", ended.stderr);
        assert!(!String::from_utf8_lossy(&ended.stdout).contains(TOKEN), "{:?}", ended.stdout);
    }
    for text in [TOKEN, "dDBrZW4tb2YtbWluZQ", "t0ken"] {
        assert!(!holds(&sandbox.path("store"), text), "{text} is in the store");
    }
}

#[test]
fn a_redirect_carries_no_password_elsewhere() {
    let repositories = Repositories::new();
    repositories.add("app", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    let thief = repositories.serve();
    let target = thief.host();
    let server =
        Server::start(move |asked, _| Reply::new(302, "").with("Location", format!("http://{target}{}", asked.path)));
    let (sandbox, host) = (Sandbox::new(), server.host());
    fs::write(sandbox.path("token"), "t0ken").unwrap();
    // One that moved is found again where nothing secret is told.
    built(&sandbox, &format!("http://{host}/app.git"), &[]);
    let before = thief.seen().len();
    assert_ne!(before, 0);
    let ended = build(&sandbox, &format!("http://{host}/app.git"), &["--secret", "id=GIT_AUTH_TOKEN,src=token"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let _ = build(&sandbox, &format!("http://u:t0ken@{host}/app.git"), &[]);
    assert!(thief.seen().iter().all(|asked| asked.header("authorization").is_empty()));
    // Git itself follows none to another kind of server.
    for scheme in ["file:///etc", "ext::sh", "ftp://127.0.0.1/x"] {
        let server = Server::start(move |_, _| Reply::new(302, "").with("Location", scheme));
        assert_eq!(build(&sandbox, &format!("http://{}/app.git", server.host()), &[]).code, Some(1));
    }
}

#[test]
fn a_damaged_copy_is_made_anew() {
    let repositories = Repositories::new();
    repositories.add("app", &[("a", "1")]);
    let server = repositories.serve();
    let sandbox = adding();
    let source = format!("SRC=http://{}/app.git", server.host());
    built(&sandbox, "context", &["--build-arg", &source]);
    repositories.commit("app", &[("b", "2")]);
    // Packs, the list of names, everything that git wrote.
    let damage = || {
        for entry in walkdir::WalkDir::new(sandbox.path("store/git")).into_iter().map(Result::unwrap) {
            if entry.file_type().is_file() {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600)).unwrap();
                fs::write(entry.path(), "damaged").unwrap();
            }
        }
    };
    damage();
    built(&sandbox, "context", &["--build-arg", &source]);
    assert_eq!(files(&sandbox), ["a", "b"]);
    // What was checked out is a layer of the store, and needs no copy.
    damage();
    built(&sandbox, "context", &["--build-arg", &source]);
    assert_eq!(files(&sandbox), ["a", "b"]);
}

#[test]
fn a_server_that_gives_no_commits_alone_is_asked_for_its_names() {
    let repositories = Repositories::new();
    let first = repositories.add("app", &[("a", "1")]);
    repositories.commit("app", &[("b", "2")]);
    repositories.git("app", &["update-server-info"]);
    let root = repositories.dir.path().to_owned();
    // Files and nothing else: no depth, no wishes.
    let server = Server::start(move |asked, _| {
        let path = asked.path.split('?').next().unwrap_or_default().replacen(".git/", "/.git/", 1);
        match fs::read(root.join(path.trim_start_matches('/'))) {
            Ok(bytes) => Reply::new(200, bytes),
            Err(_) => Reply::new(404, ""),
        }
    });
    let sandbox = adding();
    let source = |wanted: &str| format!("SRC=http://{}/app.git{wanted}", server.host());
    built(&sandbox, "context", &["--build-arg", &source("")]);
    assert_eq!(files(&sandbox), ["a", "b"]);
    built(&sandbox, "context", &["--build-arg", &source(&format!("#{first}"))]);
    assert_eq!(files(&sandbox), ["a"]);
}

#[test]
fn git_over_ssh_uses_the_agent_that_was_given() {
    let repositories = Repositories::new();
    repositories.add("app", &[("Dockerfile", "FROM scratch\nCOPY . /\n")]);
    let sandbox = Sandbox::new();
    // What is asked of ssh is done here, after it has told how it was called.
    let programs = sandbox.path("bin");
    fs::create_dir(&programs).unwrap();
    let told = sandbox.path("told");
    let script = format!(
        "#!/bin/sh\nexport GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'\n\
         echo \"$@\" >> {0}\necho \"agent $(test -S \"$SSH_AUTH_SOCK\" && echo there) $SSH_AUTH_SOCK\" >> {0}\n\
         for command; do :; done\nexec sh -c \"$command\"\n",
        told.display()
    );
    fs::write(programs.join("ssh"), script).unwrap();
    fs::set_permissions(programs.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let _agent = std::os::unix::net::UnixListener::bind(sandbox.path("socket")).unwrap();
    let build = |context: &str, options: &[&str], socket: Option<&str>| {
        let _ = fs::remove_file(&told);
        let args = [&["build", "--progress", "plain", "--no-cache", "-o", "type=local,dest=out"], options, &[context]]
            .concat();
        let mut command = sandbox.command(&args);
        command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display()));
        if let Some(socket) = socket {
            command.env("SSH_AUTH_SOCK", sandbox.path(socket));
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{context}: {stderr}");
        fs::read_to_string(&told).unwrap()
    };
    let path = repositories.path("app").display().to_string();
    for url in [format!("ssh://git@h.test:22{path}"), format!("git@h.test:{path}")] {
        let told = build(&url, &["--ssh", "default=socket"], None);
        assert!(told.contains("git@h.test") && told.contains("BatchMode=yes"), "{told}");
        assert!(told.contains("agent there") && !told.contains("sandbox/socket"), "{told}");
        assert_eq!(files(&sandbox), ["Dockerfile"]);
        // A context over ssh is opened with the agent of the environment, as in docker; one of another id is not
        // for git, and neither is one that is not there.
        assert!(build(&url, &[], Some("socket")).contains("agent there"));
        assert!(!build(&url, &["--ssh", "other=socket"], Some("socket")).contains("agent there"));
        assert!(!build(&url, &[], Some("nowhere")).contains("agent there"));
        // What an ADD needs must be lent by name.
        sandbox.write("Dockerfile", &format!("FROM scratch\nADD {url} /\n"));
        assert!(!build("context", &[], Some("socket")).contains("agent there"));
        assert!(build("context", &["--ssh", "default"], Some("socket")).contains("agent there"));
    }
}

#[test]
fn git_ends_with_the_build() {
    let sandbox = Sandbox::new();
    for signal in [Signal::KILL, Signal::INT] {
        // A server that takes the question and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/app.git", listener.local_addr().unwrap());
        let mut build = sandbox.command(&["build", &url]).stderr(Stdio::null()).spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        rustix::process::kill_process(Pid::from_child(&build), signal).unwrap();
        let status = build.wait().unwrap();
        assert_eq!(status.code(), (signal == Signal::INT).then_some(130));
        // Whoever asked is gone, and its end of the connection with it.
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(
            ended.is_ok() || ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "{ended:?}"
        );
    }
}
