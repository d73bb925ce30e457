//! The files of a commit, in a directory of their own.
//!
//! ```text
//! <into>/            empty before; the files, or those of the directory that is wanted
//! <scratch>/index    git's, thrown away with the scratch
//! <scratch>/all/     all of the repository, where only a directory of it is wanted
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::submodule::Submodule;
use super::{Client, Commit, Site, Wanted, tidy};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::location::{GitLocation, Transport};
use crate::store::Repository;
use crate::sys;

/// How deep submodules may have submodules.
const MAX_DEPTH: usize = 10;

/// What is checked out where.
#[derive(Clone, Copy)]
struct Checkout<'a> {
    location: &'a GitLocation,
    commit: &'a Commit,
    /// Absolute; in a directory that nobody else reaches.
    into: &'a Path,
    scratch: &'a Path,
    wanted: &'a Wanted<'a>,
    depth: usize,
}

impl Client {
    /// Puts the files into the empty directory `into`; `scratch` is an empty directory on the same file
    /// system, in which remains are left. Both must be private to the caller. On failure a part of the files may
    /// be there. Returns the time that everything has.
    pub fn check_out(&self, wanted: &Wanted<'_>, into: &Path, scratch: &Path, site: &Site<'_>) -> Result<i64> {
        let Wanted { location, commit, .. } = *wanted;
        let is_all = location.directory.is_empty();
        let wanted = &Wanted { keeps_git_dir: wanted.keeps_git_dir && is_all, ..*wanted };
        // The tag that stands for the commit is of use only in a `.git`.
        let alone = Commit { object: commit.commit.clone(), ..commit.clone() };
        let commit = if wanted.keeps_git_dir { commit } else { &alone };
        let all = scratch.join("all");
        let target = if is_all { into } else { &all };
        if !is_all {
            std::fs::create_dir(&all).context(|| "cannot make a directory for a git repository")?;
        }
        let checkout = Checkout { location, commit, into: target, scratch, wanted, depth: 0 };
        let mut time = wanted.time.unwrap_or_default();
        self.one(checkout, site, &mut |commit_time| time = wanted.time.unwrap_or(commit_time))?;
        if !is_all {
            take_directory(target, &location.directory, into)
                .map_err(|why| Diagnostic::error(format!("cannot take `{}`", location.shown())).caused_by(why))?;
        }
        let root = open_directory(into)?;
        tidy::tidy(root.as_fd(), time).context(|| "cannot set modes and times of the files of a git repository")?;
        Ok(time)
    }

    /// One repository and its submodules. `told` gets the time of the commit, if anybody wants it.
    fn one(&self, checkout: Checkout<'_>, site: &Site<'_>, told: &mut dyn FnMut(i64)) -> Result<()> {
        let Checkout { location, commit, wanted, .. } = checkout;
        let submodules = {
            // Held no longer than this repository needs it: submodules may lead back to it.
            let repository = site.store.repository(&location.remote, &location.shown())?;
            self.bring(&repository, location, commit, site)?;
            if self.write_files(&repository, checkout).is_err() {
                // It has the commit, and yet not all of it: it is damaged.
                repository.reset()?;
                self.bring(&repository, location, commit, site)?;
                empty(checkout.into)?;
                self.write_files(&repository, checkout)?;
            }
            told(self.time_of(&repository, location, commit)?);
            if wanted.keeps_git_dir {
                self.make_git_dir(&repository, checkout)?;
            }
            if wanted.has_submodules { self.submodules(&repository, location, commit)? } else { Vec::new() }
        };
        for submodule in submodules {
            self.submodule(checkout, &submodule, site).map_err(|error| {
                let cause = error.cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}"));
                let cause = format!("{}{cause}", error.message);
                let message = format!("cannot fetch the submodule `{}` of `{}`", submodule.path, location.shown());
                Diagnostic { hints: error.hints, ..Diagnostic::error(message).caused_by(cause) }
            })?;
        }
        Ok(())
    }

    fn submodule(&self, checkout: Checkout<'_>, submodule: &Submodule, site: &Site<'_>) -> Result<()> {
        if checkout.depth == MAX_DEPTH {
            return Err(Diagnostic::error("submodules are nested too deeply"));
        }
        let location = submodule.location(checkout.location)?;
        let commit = Commit { commit: submodule.commit.clone(), object: submodule.commit.clone(), name: None };
        // Git made it; looked at all the same, as it is entered by its path.
        let root = open_directory(checkout.into)?;
        below(root.as_fd(), &submodule.path, ResolveFlags::NO_SYMLINKS)
            .context(|| format!("cannot open `{}`", submodule.path))?;
        let into = checkout.into.join(&submodule.path);
        let inner =
            Checkout { location: &location, commit: &commit, into: &into, depth: checkout.depth + 1, ..checkout };
        self.one(inner, site, &mut |_| {})
    }

    fn write_files(&self, repository: &Repository, checkout: Checkout<'_>) -> Result<()> {
        let index = checkout.scratch.join("index");
        let git = self.local(&repository.path, &checkout.location.shown());
        let written = git
            .env("GIT_WORK_TREE", checkout.into)
            .env("GIT_INDEX_FILE", &index)
            .set("core.bare", "false")
            .args(&["read-tree", "--reset", "-u", &checkout.commit.commit])
            .output("write the files of");
        let _ = std::fs::remove_file(&index);
        written.map(|_| ())
    }

    fn time_of(&self, repository: &Repository, location: &GitLocation, commit: &Commit) -> Result<i64> {
        let git = self.local(&repository.path, &location.shown());
        let text = git.args(&["cat-file", "commit", &commit.commit]).output("read the commit of")?;
        let text = String::from_utf8_lossy(&text);
        // `committer NAME <MAIL> SECONDS ZONE`
        let line = text.lines().take_while(|line| !line.is_empty()).find(|line| line.starts_with("committer "));
        let seconds = line.and_then(|line| line.rsplit(' ').nth(1)).and_then(|seconds| seconds.parse().ok());
        Ok(seconds.unwrap_or(0))
    }

    /// A `.git` that knows the commit alone, detached, and where it came from.
    fn make_git_dir(&self, repository: &Repository, checkout: Checkout<'_>) -> Result<()> {
        let Checkout { location, commit, .. } = checkout;
        let shown = location.shown();
        let doing = "make the `.git` of";
        let git_dir = checkout.into.join(".git");
        let format = if commit.commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let run = |arguments: &[&str]| self.local(&git_dir, &shown).args(arguments).output(doing);
        self.local(&git_dir, &shown)
            .env("GIT_WORK_TREE", checkout.into)
            .args(&["init", "--quiet", "--template=", format])
            .output(doing)?;
        let mut source = std::ffi::OsString::from("file://");
        source.push(&repository.path);
        let name = commit.name.clone().unwrap_or_else(|| format!("{}{}", super::fetch::LOCAL_REFS, commit.commit));
        self.local(&git_dir, &shown)
            .env("GIT_ALLOW_PROTOCOL", "file")
            .args(&["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--update-head-ok"])
            .args(&["--no-auto-maintenance", "--"])
            .arg(&source)
            .arg(format!("+{}:{name}", commit.object))
            .output(doing)?;
        run(&["update-ref", "--no-deref", "HEAD", &commit.commit])?;
        if commit.name.is_none() {
            run(&["update-ref", "-d", &name])?;
        }
        run(&["config", "core.bare", "false"])?;
        // As the time of a checkout would be, it is an accident where the work tree was.
        let _ = run(&["config", "--unset-all", "core.worktree"]);
        run(&["config", "remote.origin.url", &without_user(location)])?;
        run(&["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
        // An index that knows nothing of the files but their names: git looks at them when it is asked.
        run(&["read-tree", "HEAD"])?;
        Ok(())
    }
}

/// The address without a user, who may be a password; but over ssh the user is part of the address.
fn without_user(location: &GitLocation) -> String {
    let remote = &location.remote;
    if !matches!(location.transport, Transport::Http | Transport::Https) {
        return crate::location::redact(remote).into_owned();
    }
    let Some((scheme, rest)) = remote.split_once("://") else { return remote.clone() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context(|| format!("cannot open `{}`", path.display()))
}

/// A directory below `root`; a link that leads out of it is an error.
fn below(root: BorrowedFd<'_>, path: &str, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    sys::open_beneath(root, path, flags, resolve)
}

/// Moves what is in the directory `path` of `all` to `into`.
fn take_directory(all: &Path, path: &str, into: &Path) -> Result<(), String> {
    let all = open_directory(all).map_err(|error| error.message)?;
    let into = open_directory(into).map_err(|error| error.message)?;
    let directory = below(all.as_fd(), path, ResolveFlags::empty()).map_err(|errno| match errno {
        Errno::NOENT => format!("the repository has no `{path}`"),
        Errno::NOTDIR => format!("`{path}` is no directory"),
        Errno::XDEV => format!("`{path}` is a symbolic link that leads out of the repository"),
        Errno::LOOP => format!("`{path}` is a symbolic link that leads to itself"),
        errno => std::io::Error::from(errno).to_string(),
    })?;
    for name in tidy::names(directory.as_fd()).map_err(|errno| errno.to_string())? {
        rustix::fs::renameat(&directory, &name, &into, &name).map_err(|errno| errno.to_string())?;
    }
    Ok(())
}

/// Removes what a failed attempt left.
fn empty(directory: &Path) -> Result<()> {
    let doing = || format!("cannot empty `{}`", directory.display());
    for entry in std::fs::read_dir(directory).context(doing)? {
        let entry = entry.context(doing)?;
        let is_directory = entry.file_type().context(doing)?.is_dir();
        let path = entry.path();
        if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.context(doing)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_password() {
        for (remote, expected) in [
            ("https://u:p@h.test/a.git", "https://h.test/a.git"),
            ("https://token@h.test:1/a.git", "https://h.test:1/a.git"),
            ("git@h.test:a", "git@h.test:a"),
            ("ssh://git:p@h.test/a", "ssh://git:xxxxx@h.test/a"),
        ] {
            let location = GitLocation::parse(remote).unwrap().unwrap();
            assert_eq!(without_user(&location), expected);
        }
    }
}
