//! Git repositories on disk, and git's own `http-backend` behind the test's web server.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::server::{Asked, Reply, Server};

/// Repositories on disk, each with a work tree.
pub struct Repositories {
    pub dir: TempDir,
}

impl Repositories {
    pub fn new() -> Self {
        Self { dir: TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A repository with these files in its first commit, on the branch `main`.
    pub fn add(&self, name: &str, files: &[(&str, &str)]) -> String {
        fs::create_dir(self.path(name)).unwrap();
        self.git(name, &["init", "--quiet", "--initial-branch=main", "--template="]);
        self.commit(name, files)
    }

    /// The name of the new commit.
    pub fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        for (path, content) in files {
            let path = self.path(name).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        self.git(name, &["add", "--all"]);
        self.git(name, &["commit", "--quiet", "--allow-empty", "--message=x"]);
        self.git(name, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub fn git(&self, name: &str, args: &[&str]) -> String {
        let output = git().arg("-C").arg(self.path(name)).args(args).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A tree entry that is another repository's commit.
    pub fn add_submodule(&self, name: &str, path: &str, url: &str, commit: &str) {
        let modules = format!("[submodule \"{path}\"]\n\tpath = {path}\n\turl = {url}\n");
        fs::write(self.path(name).join(".gitmodules"), modules).unwrap();
        self.git(name, &["add", ".gitmodules"]);
        self.git(name, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{path}")]);
        self.git(name, &["commit", "--quiet", "--message=x"]);
    }

    /// Answers for all repositories.
    fn answer(root: &Path, asked: &Asked) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let mut backend = git()
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", path.replacen(".git/", "/.git/", 1))
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", &asked.method)
            .env("CONTENT_TYPE", asked.header("content-type"))
            .env("CONTENT_LENGTH", asked.body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", asked.header("content-encoding"))
            .env("GIT_PROTOCOL", asked.header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = backend.stdin.take().unwrap();
        let body = asked.body.clone();
        std::thread::spawn(move || stdin.write_all(&body));
        let output = backend.wait_with_output().unwrap().stdout;
        let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("git http-backend answers");
        let head = String::from_utf8_lossy(&output[..end]).into_owned();
        let headers: Vec<_> = head.lines().filter_map(|line| line.split_once(": ")).collect();
        let status = headers.iter().find(|(name, _)| *name == "Status");
        let status = status.map_or(200, |(_, status)| status[..3].parse().unwrap());
        let reply = Reply::new(status, &output[end + 4..]);
        headers.iter().filter(|(name, _)| *name != "Status").fold(reply, |reply, (name, value)| reply.with(name, value))
    }

    pub fn serve(&self) -> Server {
        let root = self.dir.path().to_owned();
        Server::start(move |asked, _| Self::answer(&root, asked))
    }

    /// Serves only who knows the password.
    pub fn serve_with_password(&self, authorization: &'static str) -> Server {
        let root = self.dir.path().to_owned();
        Server::start(move |asked, _| match asked.header("authorization") == authorization {
            true => Self::answer(&root, asked),
            false => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        })
    }
}

/// Git without the configuration of who runs the test, at one time for all commits.
pub fn git() -> Command {
    let mut command = Command::new("git");
    for name in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{name}_NAME"), "n").env(format!("GIT_{name}_EMAIL"), "n@example.com");
        command.env(format!("GIT_{name}_DATE"), "1500000000 +0000");
    }
    let settings =
        [("safe.directory", "*"), ("uploadpack.allowAnySHA1InWant", "true"), ("protocol.file.allow", "always")];
    command.env("GIT_CONFIG_COUNT", settings.len().to_string());
    for (place, (name, value)) in settings.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{place}"), name).env(format!("GIT_CONFIG_VALUE_{place}"), value);
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").env_remove("GIT_DIR");
    command
}
