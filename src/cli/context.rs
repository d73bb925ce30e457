//! The context and the Dockerfile as the command line names them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::args::Build;
use super::{Failure, usage};
use crate::diag::Diagnostic;
use crate::git;
use crate::host::{LocalContext, Origin};
use crate::location::{GitLocation, Location, is_url};
use crate::source::{self, DockerfileAt};
use crate::ssh::Agent;

/// What a build reads, before anything is opened.
pub struct Sources {
    pub context: Origin,
    pub dockerfile: DockerfileAt,
    pub stdin: Stdin,
    /// Names the Dockerfile among all that were ever built.
    pub slot: String,
}

/// What comes by standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    Nothing,
    /// The context, or a Dockerfile alone.
    Context,
    Dockerfile,
}

/// In this order, as docker has it: `-`, a directory, an address.
pub fn sources(arguments: &Build) -> Result<Sources, Failure> {
    let (text, file) = (arguments.context.as_str(), arguments.file.as_deref());
    let (origin, mut stdin) = match text {
        "-" => (Origin::Archive, Stdin::Context),
        text => (origin(text, arguments)?, Stdin::Nothing),
    };
    let is_local = matches!(origin, Origin::Directory(_));
    let dockerfile = match file {
        Some("-") if stdin == Stdin::Context => {
            return Err(usage("standard input cannot be both the context and the Dockerfile"));
        }
        Some("-") => {
            stdin = Stdin::Dockerfile;
            // Put in its place when it has been read.
            DockerfileAt::Context(None)
        }
        Some(url) if is_url(url) => DockerfileAt::Url(url.to_owned()),
        Some(file) if is_local || (Path::new(file).is_absolute() && stdin == Stdin::Nothing) => {
            DockerfileAt::File { path: PathBuf::from(file), shown: file.to_owned() }
        }
        Some(file) => DockerfileAt::Context(Some(file.to_owned())),
        None => match &origin {
            Origin::Directory(context) => default_file(&context.path, text),
            _ => DockerfileAt::Context(None),
        },
    };
    let (origin, slot) = match (origin, &dockerfile) {
        (Origin::Directory(context), DockerfileAt::File { path, shown }) => {
            check_file(path, shown, file.is_none())?;
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let mut beside = path.clone().into_os_string();
            beside.push(".dockerignore");
            let ignore = source::ignore_file(Path::new(&beside))?;
            (Origin::Directory(LocalContext { ignore, ..context }), path.display().to_string())
        }
        (origin @ Origin::Directory(_), _) => (origin, file.unwrap_or("-").to_owned()),
        (origin, _) => {
            let name = match &origin {
                Origin::Remote(location) => location.shown(),
                _ => "-".to_owned(),
            };
            (origin, format!("{name}\n{}", file.unwrap_or_default()))
        }
    };
    Ok(Sources { context: origin, dockerfile, stdin, slot })
}

fn origin(text: &str, arguments: &Build) -> Result<Origin, Failure> {
    let path = std::path::absolute(text).unwrap_or_else(|_| PathBuf::from(text));
    let metadata = std::fs::metadata(&path);
    if metadata.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        return Ok(Origin::Directory(LocalContext { path, ignore: None }));
    }
    let wrong = |why: String| usage(format!("`{}`: {why}", crate::location::redact(text)));
    if let Some(location) = GitLocation::parse_context(text) {
        let mut location = location.map_err(wrong)?;
        if location.keeps_git_dir.is_none() {
            location.keeps_git_dir = keeps_git_dir(arguments);
        }
        return Ok(Origin::Remote(Location::Git(Box::new(location))));
    }
    if let Some(location) = Location::parse(text) {
        return Ok(Origin::Remote(location.map_err(wrong)?));
    }
    Err(match metadata {
        Ok(_) => Diagnostic::error(format!("the context `{text}` is no directory"))
            .hint(format!("to build from that Dockerfile, type `wythe build -f {text} DIRECTORY`"))
            .hint(format!("to build from that tar, type `wythe build - < {text}`"))
            .into(),
        Err(_) if text.contains("://") => {
            let scheme = text.split("://").next().unwrap_or_default();
            wrong(format!("nothing is fetched over `{scheme}`; known are https, http, ssh and git"))
        }
        Err(error) => Diagnostic::error(format!("cannot open the context `{text}`")).caused_by(error).into(),
    })
}

/// `--build-arg BUILDKIT_CONTEXT_KEEP_GIT_DIR`
fn keeps_git_dir(arguments: &Build) -> Option<bool> {
    let value = arguments.build_args.iter().find_map(|text| text.strip_prefix("BUILDKIT_CONTEXT_KEEP_GIT_DIR="))?;
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn default_file(context: &Path, written: &str) -> DockerfileAt {
    let (upper, lower) = (context.join("Dockerfile"), context.join("dockerfile"));
    let path = if !upper.exists() && lower.exists() { lower } else { upper };
    let shown = Path::new(written).join(path.file_name().unwrap_or_default()).display().to_string();
    DockerfileAt::File { path, shown }
}

/// Told before anything is made: there is no Dockerfile, or it may not be read.
fn check_file(path: &Path, shown: &str, is_default: bool) -> Result<(), Failure> {
    let Err(error) = std::fs::File::open(path) else { return Ok(()) };
    let fault = Diagnostic::error(format!("cannot read the Dockerfile `{shown}`")).caused_by(error);
    Err(if is_default { fault.hint("name it with `-f FILE`") } else { fault }.into())
}

/// Runs git as the user's environment says.
pub fn git() -> git::Client {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = variable("HOME").map(|home| PathBuf::from(home).join(".ssh/known_hosts"));
    git::Client::new(git::Options {
        search_path: variable("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()),
        proxies: super::registry::proxies(),
        certificates: variable("SSL_CERT_FILE").map(PathBuf::from),
        known_hosts: home.into_iter().chain(["/etc/ssh/ssh_known_hosts".into()]).collect(),
    })
}

/// `default`, `ID`, `ID=SOCKET`, `ID=KEY,KEY`; without a path the agent of the environment.
pub fn agents(list: &[String]) -> Result<BTreeMap<String, Arc<Agent>>, Failure> {
    let mut agents = BTreeMap::new();
    for text in list {
        let (id, paths) = text.split_once('=').unwrap_or((text, ""));
        let id = if id.is_empty() { "default" } else { id };
        let paths: Vec<PathBuf> = match paths {
            "" => match std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()) {
                Some(path) => vec![path.into()],
                None => {
                    let fault =
                        Diagnostic::error(format!("`--ssh {text}`: there is no agent, as SSH_AUTH_SOCK is not set"));
                    return Err(fault
                        .hint(format!("start one with `eval $(ssh-agent)`, or name a key: `--ssh {id}=FILE`"))
                        .into());
                }
            },
            paths => paths.split(',').map(PathBuf::from).collect(),
        };
        if agents.insert(id.to_owned(), Arc::new(Agent::open(id, &paths)?)).is_some() {
            return Err(usage(format!("`--ssh {text}`: `{id}` is there twice")));
        }
    }
    Ok(agents)
}
