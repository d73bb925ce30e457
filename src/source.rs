//! Contexts, Dockerfiles and repositories from wherever they are: what is on another machine or came in an
//! archive becomes a directory of the store.
//!
//! ```text
//! directory of this machine ─────────────────────────────▶ read where it is
//! git repository ── commit ──┐
//! URL of a tar ── blob ──────┼─ record ── layer ─────────▶ made once for each content
//! tar on standard input ─────── draft ───────────────────▶ gone after the build
//! ```
//!
//! Files of a tree made here have neither the owner nor the ignore file of who made the archive: in a context
//! everything belongs to root.

use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::cache::{Facts, LayerResult, Record, Records};
use crate::copy::{self, Owner};
use crate::diag::{Context as _, Diagnostic, Result, Source};
use crate::digest::{ChainId, Digest};
use crate::git::{self, Commit};
use crate::host::{Directory, Held, Host, LocalContext, NamedContext, Origin, rfc3339};
use crate::layer::{self, decompress::Format};
use crate::location::{GitLocation, Location, Times, Transport, redact};
use crate::registry::{self, Download, Wanted};
use crate::ssh::Forward;
use crate::store::{Blob, Draft, Layer, Scratch};
use crate::sys;

/// The largest Dockerfile or ignore file that is read.
const MAX_TEXT_BYTES: u64 = 16 << 20;
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// What the file of a URL is called in a context (BuildKit's word).
const FILE_OF_URL: &str = "context";

/// Records of what names of repositories stood for.
const COMMITS: &str = "files/git";

/// Where the Dockerfile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileAt {
    /// Read already.
    Text(Arc<Source>),
    /// A file of this machine, called so in messages.
    File {
        path: PathBuf,
        shown: String,
    },
    /// In the context, under this name; `Dockerfile` or `dockerfile` if `None`.
    Context(Option<String>),
    Url(String),
}

impl DockerfileAt {
    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::Text(source) => source.name.clone(),
            Self::File { shown, .. } => shown.trim_start_matches("./").to_owned(),
            Self::Context(name) => name.clone().unwrap_or_else(|| "Dockerfile".to_owned()),
            Self::Url(url) => redact(url).into_owned(),
        }
    }
}

/// Whether this is to be unpacked: a tar, or something compressed, which could be nothing else.
pub fn is_archive(mut input: impl std::io::Read + Send) -> Result<bool> {
    let mut head = Vec::new();
    input.by_ref().take(16).read_to_end(&mut head).context(|| "cannot read a context")?;
    Ok(Format::of(&head) != Format::Plain || copy::is_archive(std::io::Cursor::new(head).chain(input)))
}

/// The Dockerfile.
pub fn dockerfile(at: &DockerfileAt, host: &Host<'_>) -> Result<Arc<Source>> {
    match at {
        DockerfileAt::Text(source) => Ok(Arc::clone(source)),
        DockerfileAt::File { path, shown } => {
            let doing = || format!("cannot read the Dockerfile `{shown}`");
            let file = std::fs::File::open(path).context(doing)?;
            text(file, shown)
        }
        DockerfileAt::Url(url) => {
            let (blob, _) = download(url, host)?;
            text(blob, &redact(url))
        }
        DockerfileAt::Context(name) => {
            if let Origin::Remote(Location::Url(url)) = &host.context
                && !is_archive(download(url, host)?.0)?
            {
                return match name {
                    None => text(download(url, host)?.0, &redact(url)),
                    Some(name) => Err(Diagnostic::error(format!(
                        "`{}` is no archive but a Dockerfile, and so is `-f {name}`",
                        redact(url)
                    ))),
                };
            }
            in_context(name.as_deref(), host)
        }
    }
}

fn in_context(name: Option<&str>, host: &Host<'_>) -> Result<Arc<Source>> {
    let directory = context(None, host)?;
    let root = open_directory(&directory)?;
    let names = name.map_or_else(|| vec!["Dockerfile", "dockerfile"], |name| vec![name]);
    for name in &names {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let doing = || format!("cannot read the Dockerfile `{name}` of `{}`", directory.name);
        let file = match sys::open_beneath(&root, *name, flags, resolve) {
            Ok(file) => file,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno).context(doing),
        };
        let stat = rustix::fs::fstat(&file).context(doing)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Diagnostic::error(doing()).caused_by("it is no file"));
        }
        return text(std::fs::File::from(file), name);
    }
    let error = Diagnostic::error(format!("there is no Dockerfile `{}` in `{}`", names[0], directory.name));
    Err(if name.is_none() { error.hint("name it with `-f FILE`") } else { error })
}

fn text(input: impl std::io::Read, name: &str) -> Result<Arc<Source>> {
    let mut bytes = Vec::new();
    input
        .take(MAX_TEXT_BYTES + 1)
        .read_to_end(&mut bytes)
        .context(|| format!("cannot read the Dockerfile `{name}`"))?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(Diagnostic::error(format!("`{name}` is larger than {} MiB", MAX_TEXT_BYTES >> 20)));
    }
    dockerfile_of(name.trim_start_matches("./"), &bytes)
}

/// The text of a Dockerfile, if it can be one.
pub fn dockerfile_of(name: &str, bytes: &[u8]) -> Result<Arc<Source>> {
    let error = || Diagnostic::error(format!("`{name}` is no Dockerfile"));
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(error().caused_by("it is UTF-16: save it as UTF-8"));
    }
    if Format::of(bytes) != Format::Plain || bytes.contains(&0) {
        return Err(error().caused_by("it is no text"));
    }
    Ok(Source::new(name, String::from_utf8_lossy(bytes)))
}

/// The build context, or the named context `name`, as a directory. It is fetched when it is first asked
/// for, and the same for the rest of the build.
pub fn context(name: Option<&str>, host: &Host<'_>) -> Result<Arc<Directory>> {
    let mut contexts = host.opened.contexts.lock().unwrap_or_else(PoisonError::into_inner);
    let key = name.map(str::to_owned);
    if let Some(directory) = contexts.get(&key) {
        return Ok(Arc::clone(directory));
    }
    let directory = match name {
        None => match &host.context {
            Origin::Directory(context) => local(context)?,
            Origin::Empty => empty(host)?,
            Origin::Archive => input(host)?,
            Origin::Remote(location) => remote(location, name, host)?,
        },
        Some(name) => match host.named_contexts.get(name) {
            Some(NamedContext::Directory(path)) => local(&LocalContext { path: path.clone(), ignore: None })?,
            Some(NamedContext::Empty) => empty(host)?,
            Some(NamedContext::Remote(location)) => remote(location, Some(name), host)?,
            _ => return Err(Diagnostic::error(format!("there is no build context `{name}`"))),
        },
    };
    let directory = Arc::new(directory);
    contexts.insert(key, Arc::clone(&directory));
    Ok(directory)
}

fn local(context: &LocalContext) -> Result<Directory> {
    let ignore = match &context.ignore {
        Some(file) => Some(file.clone()),
        None => ignore_file(&context.path.join(".dockerignore"))?,
    };
    let name = context.path.display().to_string();
    Ok(Directory { path: context.path.clone(), name, ignore, is_lasting: true, held: Held::Nothing })
}

/// The ignore file at `path`, if there is one, with its name.
pub fn ignore_file(path: &std::path::Path) -> Result<Option<(String, Vec<u8>)>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some((path.display().to_string(), text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("cannot read `{}`", path.display())),
    }
}

fn empty(host: &Host<'_>) -> Result<Directory> {
    of_scratch(host.store.scratch()?, "the empty context".into())
}

fn of_scratch(scratch: Scratch, name: String) -> Result<Directory> {
    let (path, held) = (scratch.path.clone(), Held::Scratch(scratch));
    let directory = Directory { path, name, ignore: None, is_lasting: false, held };
    let root = open_directory(&directory)?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).context(|| "cannot set the mode of a context")?;
    set_time(root.as_fd(), 0)?;
    Ok(directory)
}

/// The time of a tree's root, which a copy of all of it takes over: not the clock's.
fn set_time(root: BorrowedFd<'_>, seconds: i64) -> Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::fs::futimens(root, &Timestamps { last_access: time, last_modification: time })
        .context(|| "cannot set the time of a context")
}

fn of_layer(layer: Layer, name: String) -> Directory {
    Directory { path: layer.path.clone(), name, ignore: None, is_lasting: true, held: Held::Layer(layer) }
}

/// The tar on standard input.
fn input(host: &Host<'_>) -> Result<Directory> {
    let doing = || "cannot read the context from standard input";
    // An archive may hold what only root unpacks.
    host.store.enter()?;
    let mut file = match &host.input {
        Some(file) => file.try_clone().context(doing)?,
        None => return Err(Diagnostic::error(doing()).caused_by("it is closed")),
    };
    file.rewind().context(doing)?;
    let size_bytes = file.metadata().context(doing)?.len();
    let scratch = host.store.scratch()?;
    let root = rustix::fs::open(&scratch.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    copy::unpack(file, size_bytes, "standard input", root.context(doing)?.as_fd(), own())?;
    of_scratch(scratch, "standard input".into())
}

fn remote(location: &Location, name: Option<&str>, host: &Host<'_>) -> Result<Directory> {
    let url = match location {
        Location::Git(location) => {
            let commit = commit(location, host)?.ok_or_else(|| not_fetched(&location.shown()))?;
            return git_tree(location, &commit, host);
        }
        Location::Url(url) => url,
    };
    let (blob, file) = download(url, host)?;
    let shown = redact(url).into_owned();
    let is_archive = is_archive(blob)?;
    if !is_archive && name.is_none() {
        // It is the Dockerfile.
        return empty(host);
    }
    let mut facts = Facts::new("scratch", "context of a URL");
    facts.add("blob", file.digest.to_string());
    if !is_archive {
        facts.add("time", file.mtime.to_string());
    }
    tree(facts, &shown, host, |draft| {
        let blob = open(&file, host)?;
        match is_archive {
            true => copy::unpack(blob, file.size_bytes, &shown, draft.upper(), own())?,
            false => write_file(blob, draft, file.mtime).context(|| format!("cannot keep `{shown}`"))?,
        }
        Ok(0)
    })
}

fn write_file(mut blob: Blob, draft: &Draft, mtime: i64) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(draft.upper(), FILE_OF_URL, flags, Mode::from_raw_mode(0o600))?;
    let mut file = std::fs::File::from(file);
    std::io::copy(&mut blob, &mut file)?;
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Ok(rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?)
}

/// Who makes files here: in a context all belong to root, whoever they belong to on disk.
fn own() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// The directory that these facts stand for; `fill` makes it where the store has none, and says what time
/// its root has.
fn tree(facts: Facts, shown: &str, host: &Host<'_>, fill: impl FnOnce(&Draft) -> Result<i64>) -> Result<Directory> {
    let begun = Instant::now();
    let records = Records::of(host.store);
    let key = facts.key();
    let _lock = host.store.lock_key(&key, || {})?;
    if let Some(record) = records.hit(&key)?
        && let Some(result) = record.layer
        && let Some(layer) = host.store.layer(&ChainId::extend(None, &result.diff_id))?
    {
        return Ok(of_layer(layer, shown.to_owned()));
    }
    if !host.asks_servers {
        return Err(not_fetched(shown));
    }
    let draft = host.store.draft()?;
    let root_time = fill(&draft)?;
    let summary = layer::canonicalize(draft.upper(), &[], None)?;
    if summary.entries == 0 {
        return of_scratch(host.store.scratch()?, shown.to_owned());
    }
    let (tree, meta) = draft.identify(&summary, None)?;
    let result = LayerResult { diff_id: meta.diff_id, tree, size_bytes: meta.size_bytes };
    let layer = draft.commit(&ChainId::extend(None, &result.diff_id), meta)?;
    // No layer says what time its root has.
    set_time(layer.dir.as_fd(), root_time)?;
    let record = Record {
        facts,
        title: format!("[context] {shown}"),
        layer: Some(result),
        created: rfc3339(host.now()),
        elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        usage: None,
    };
    records.put(&record, &record.title)?;
    Ok(of_layer(layer, shown.to_owned()))
}

/// A question asks no server.
fn not_fetched(shown: &str) -> Diagnostic {
    Diagnostic::error(format!("`{shown}` was never fetched here, and nothing is fetched to explain"))
        .hint("build first")
}

/// The time of the context's content, in seconds since the epoch: of a commit, or when a server says that a
/// file was changed.
pub fn context_time(host: &Host<'_>) -> Result<Option<i64>> {
    match &host.context {
        Origin::Directory(_) | Origin::Empty | Origin::Archive => Ok(None),
        Origin::Remote(Location::Url(url)) => Ok(Some(download(url, host)?.1.mtime).filter(|time| *time > 0)),
        Origin::Remote(Location::Git(location)) if location.times != Times::Commit => Ok(None),
        // Everything in it has that time.
        Origin::Remote(Location::Git(_)) => {
            let root = open_directory(&*context(None, host)?)?;
            Ok(Some(rustix::fs::fstat(&root).context(|| "cannot read the time of the context")?.st_mtime))
        }
    }
}

// ---- git

/// What the address stands for; asked of its server once a build. Where servers are not asked it is what
/// the last build found, if any did.
pub fn commit(location: &GitLocation, host: &Host<'_>) -> Result<Option<Commit>> {
    let mut commits = host.opened.commits.lock().unwrap_or_else(PoisonError::into_inner);
    let GitLocation { remote, reference, checksum, .. } = location;
    let key =
        [Some(remote), reference.as_ref(), checksum.as_ref()].map(|part| part.map_or("", String::as_str)).join("\n");
    if let Some(commit) = commits.get(&key) {
        return Ok(Some(commit.clone()));
    }
    let name = Digest::of(key.as_bytes()).hex();
    if !host.asks_servers {
        let last = host.store.read_record(COMMITS, &name)?;
        return Ok(last.and_then(|last| serde_json::from_slice(&last).ok()));
    }
    let commit = with_site(location, host, |site| host.git.resolve(location, site))?;
    // Our own types always serialise.
    host.store.write_record(COMMITS, &name, &serde_json::to_vec(&commit).unwrap_or_default())?;
    commits.insert(key, commit.clone());
    Ok(Some(commit))
}

/// Everything that decides which files [`git_tree`] gives, but for times.
pub fn git_facts(location: &GitLocation, commit: &Commit) -> String {
    let mut text = commit.commit.clone();
    if !location.directory.is_empty() {
        text += &format!(" `{}`", location.directory);
    }
    if location.submodules == Some(false) {
        text.push_str(" without submodules");
    }
    if keeps_git_dir(location) {
        let name = commit.name.as_deref().unwrap_or_default();
        text += &format!(" with .git of {} {name} {}", redact(&location.remote), commit.object);
    }
    text
}

/// The files of the commit.
pub fn git_tree(location: &GitLocation, commit: &Commit, host: &Host<'_>) -> Result<Directory> {
    let time = match location.times {
        Times::Commit => None,
        Times::Checkout => Some(host.now()),
    };
    let mut facts = Facts::new("scratch", "files of a git repository");
    facts.add("remote", redact(&location.remote));
    facts.add("git", git_facts(location, commit));
    facts.add("time", time.map_or_else(|| "commit".to_owned(), |time| time.to_string()));
    tree(facts, &location.shown(), host, |draft| {
        let wanted = git::Wanted {
            location,
            commit,
            has_submodules: location.submodules != Some(false),
            keeps_git_dir: keeps_git_dir(location),
            time,
        };
        let scratch = host.store.scratch()?;
        let into = draft.path.join("u");
        with_site(location, host, |site| host.git.check_out(&wanted, &into, &scratch.path, site))
    })
}

fn keeps_git_dir(location: &GitLocation) -> bool {
    location.keeps_git_dir == Some(true) && location.directory.is_empty()
}

/// Lets `work` reach repositories with the keys of this build.
fn with_site<T>(location: &GitLocation, host: &Host<'_>, work: impl FnOnce(&git::Site<'_>) -> Result<T>) -> Result<T> {
    let authorization = |other: &GitLocation| git_authorization(other, location, host);
    let mut held = None;
    if let Some(agent) = host.agents.get("default") {
        let scratch = host.store.scratch()?;
        let forward = Forward::new(agent, &scratch.path, "agent")?;
        held = Some((forward, scratch));
    }
    let agent = match &held {
        // The path of a socket has at most 107 bytes, and that of a store may be longer.
        Some((_, scratch)) => Some(short_path(&scratch.path)?),
        None => None,
    };
    let keys = git::Keys { authorization: &authorization, agent: agent.as_ref().map(|(path, _)| path.as_path()) };
    work(&git::Site { store: host.store, keys, audience: host.audience() })
}

/// The agent's socket in `directory` by another path; it is good while the descriptor lives.
fn short_path(directory: &std::path::Path) -> Result<(PathBuf, OwnedFd)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty()).context(|| "cannot open a directory of the store")?;
    let process = rustix::process::getpid().as_raw_nonzero();
    Ok((format!("/proc/{process}/fd/{}/agent", std::os::fd::AsRawFd::as_raw_fd(&fd)).into(), fd))
}

/// From the secrets `GIT_AUTH_HEADER` and `GIT_AUTH_TOKEN`. With a host behind them (`.HOST`) they are for
/// this host; without one, for the server of the repository that the user named, whatever its submodules
/// say.
fn git_authorization(other: &GitLocation, main: &GitLocation, host: &Host<'_>) -> Result<Option<String>> {
    if !matches!(other.transport, Transport::Http | Transport::Https) {
        return Ok(None);
    }
    let is_main = other.origin() == main.origin();
    for suffix in [format!(".{}", other.host), String::new()] {
        if suffix.is_empty() && !is_main {
            continue;
        }
        for (name, is_token) in [("GIT_AUTH_HEADER", false), ("GIT_AUTH_TOKEN", true)] {
            let id = format!("{name}{suffix}");
            let Some(secret) = host.secrets.get(&id) else { continue };
            let value = secret.read(&id, MAX_SECRET_BYTES)?;
            let value = String::from_utf8_lossy(&value).trim().to_owned();
            if value.contains(char::is_control) {
                return Err(Diagnostic::error(format!("the secret `{id}` is more than one line")));
            }
            return Ok(Some(match is_token {
                true => {
                    format!("basic {}", registry::encode_base64(format!("x-access-token:{value}").as_bytes()))
                }
                false => value,
            }));
        }
    }
    Ok(None)
}

// ---- URLs

/// From the secrets `HTTP_AUTH_HEADER_<host>` and `HTTP_AUTH_TOKEN_<host>`.
pub fn http_authorization(url: &str, host: &Host<'_>) -> Result<Option<String>> {
    let authority = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let name = registry::http::host_of(authority);
    for (prefix, kind) in [("HTTP_AUTH_HEADER_", ""), ("HTTP_AUTH_TOKEN_", "Bearer ")] {
        let id = format!("{prefix}{name}");
        if let Some(secret) = host.secrets.get(&id) {
            let value = secret.read(&id, MAX_SECRET_BYTES)?;
            return Ok(Some(format!("{kind}{}", String::from_utf8_lossy(&value).trim())));
        }
    }
    Ok(None)
}

/// The file of a URL as a blob of the store; asked for once a build.
fn download(url: &str, host: &Host<'_>) -> Result<(Blob, Download)> {
    let mut files = host.opened.files.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match files.get(url) {
        Some(file) => file.clone(),
        None => {
            let wanted = Wanted { url, checksum: None, authorization: http_authorization(url, host)? };
            let file = match host.asks_servers {
                true => {
                    // Not asked twice, and not shown twice.
                    host.store.enter()?;
                    host.registry.download(host.store, &wanted, host.audience())?
                }
                false => registry::last_download(host.store, &wanted)?.ok_or_else(|| not_fetched(&redact(url)))?,
            };
            files.insert(url.to_owned(), file.clone());
            file
        }
    };
    Ok((open(&file, host)?, file))
}

fn open(file: &Download, host: &Host<'_>) -> Result<Blob> {
    let gone =
        || Diagnostic::error(format!("the download `{}` is gone from the store", file.digest)).hint("build again");
    host.store.open_blob(&file.digest)?.ok_or_else(gone)
}

fn open_directory(directory: &Directory) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&directory.path, flags, Mode::empty());
    opened.context(|| format!("cannot open the context `{}`", directory.name))
}
