//! Bringing a commit into the store's copy of a repository: it alone if the server gives it, else with
//! its history.

use std::path::Path;

use super::command::{Ended, failed};
use super::{Client, Commit, Site};
use crate::diag::{Diagnostic, Result};
use crate::location::GitLocation;
use crate::progress::Meter;
use crate::store::Repository;

/// Below which a copy has names of its own, so that later fetches know what is there.
pub(super) const LOCAL_REFS: &str = "refs/wythe/";

impl Client {
    /// Has the commit, and the tag that stands for it, in the repository; nothing is transferred if they are
    /// there. A copy that is damaged is made anew.
    pub(super) fn bring(
        &self,
        repository: &Repository,
        location: &GitLocation,
        commit: &Commit,
        site: &Site<'_>,
    ) -> Result<()> {
        let was_new = repository.is_new();
        self.prepare(repository, location, commit.object.len())?;
        if self.has(repository, commit)? {
            return Ok(());
        }
        let is_there = self.show_fetch(location, site, |meter| {
            match self.fetch(repository, location, commit, site, meter) {
                Err(_) if !was_new && !self.is_canceled() && self.answers(location, site) => {
                    // The server is there: then what we have is in the way.
                    repository.reset()?;
                    self.prepare(repository, location, commit.object.len())?;
                    self.fetch(repository, location, commit, site, meter)
                }
                fetched => fetched,
            }
        })?;
        if is_there {
            return Ok(());
        }
        Err(Diagnostic::error(format!("the git repository `{}` has no commit `{}`", location.shown(), commit.commit)))
    }

    /// Shows a transfer as a step of its own.
    pub(super) fn show_fetch<T>(
        &self,
        location: &GitLocation,
        site: &Site<'_>,
        work: impl FnOnce(&Meter<'_>) -> Result<T>,
    ) -> Result<T> {
        let title = format!("[git] {}", location.shown());
        site.audience.show(&title, work)
    }

    /// Fetches all branches and tags with their history.
    pub(super) fn fetch_history(
        &self,
        repository: &Repository,
        location: &GitLocation,
        object_digits: usize,
        site: &Site<'_>,
        meter: &Meter<'_>,
    ) -> Result<()> {
        self.prepare(repository, location, object_digits)?;
        let names = |kind: &str| format!("+refs/{kind}/*:{LOCAL_REFS}all/{kind}/*");
        let ended = self.fetch_names(
            repository,
            location,
            &["--no-tags", "--prune"],
            &[&names("heads"), &names("tags")],
            site,
            meter,
        )?;
        if ended.is_success { Ok(()) } else { Err(cannot_fetch(location, &ended)) }
    }

    /// Makes the repository if there is none. Its lock is ours: what git locked and left is nobody's.
    fn prepare(&self, repository: &Repository, location: &GitLocation, object_digits: usize) -> Result<()> {
        if repository.is_new() {
            let format = if object_digits == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
            let git = self.local(&repository.path, &location.shown());
            git.args(&["init", "--quiet", "--bare", "--template=", format])
                .arg(&repository.path)
                .output("make a copy of the git repository")?;
        }
        for name in ["shallow.lock", "packed-refs.lock", "config.lock", "HEAD.lock"] {
            let _ = std::fs::remove_file(repository.path.join(name));
        }
        let _ = std::fs::create_dir_all(repository.path.join(LOCAL_REFS));
        remove_locks(&repository.path.join(LOCAL_REFS));
        Ok(())
    }

    fn has(&self, repository: &Repository, commit: &Commit) -> Result<bool> {
        for object in [format!("{}^{{commit}}", commit.commit), commit.object.clone()] {
            let git = self.local(&repository.path, "");
            if !git.args(&["cat-file", "-e", &object]).run(None)?.is_success {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the server lets its names be listed.
    fn answers(&self, location: &GitLocation, site: &Site<'_>) -> bool {
        self.remote(location, site)
            .and_then(|git| git.args(&["ls-remote", "--", &location.remote, "HEAD"]).run(None))
            .is_ok_and(|ended| ended.is_success)
    }

    /// Whether the commit is there then. It is asked for in the cheapest way first: not every server gives
    /// commits by their names, and not every one gives them without history.
    fn fetch(
        &self,
        repository: &Repository,
        location: &GitLocation,
        commit: &Commit,
        site: &Site<'_>,
        meter: &Meter<'_>,
    ) -> Result<bool> {
        let into = |name: &str| format!("+{name}:{LOCAL_REFS}{}", commit.object);
        let alone = ["--no-tags", "--depth=1"];
        let first = self.fetch_names(repository, location, &alone, &[&into(&commit.object)], site, meter)?;
        if first.is_success && self.has(repository, commit)? {
            return Ok(true);
        }
        // Asked whether the server is there at all, so that its absence is not waited for again.
        if !self.answers(location, site) {
            return Err(cannot_fetch(location, &first));
        }
        if let Some(name) = &commit.name {
            for options in [&alone[..], &alone[..1]] {
                let named = self.fetch_names(repository, location, options, &[&into(name)], site, meter)?;
                if named.is_success && self.has(repository, commit)? {
                    return Ok(true);
                }
            }
        }
        self.fetch_history(repository, location, commit.object.len(), site, meter)?;
        self.has(repository, commit)
    }

    fn fetch_names(
        &self,
        repository: &Repository,
        location: &GitLocation,
        options: &[&str],
        names: &[&str],
        site: &Site<'_>,
        meter: &Meter<'_>,
    ) -> Result<Ended> {
        let mut git = self
            .remote(location, site)?
            .env("GIT_DIR", &repository.path)
            .args(&["fetch", "--progress", "--no-write-fetch-head", "--no-auto-maintenance"])
            .args(options);
        let is_shallow = repository.path.join("shallow").exists();
        if is_shallow && !options.contains(&"--depth=1") {
            git = git.arg("--unshallow");
        }
        git.args(&["--", &location.remote]).args(names).run(Some(meter))
    }
}

fn cannot_fetch(location: &GitLocation, ended: &Ended) -> Diagnostic {
    failed(&format!("cannot fetch from the git repository `{}`", location.shown()), ended)
}

/// Removes what a killed git left of its locks on names.
fn remove_locks(names: &Path) {
    for entry in walkdir::WalkDir::new(names).into_iter().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "lock") {
            // One that cannot be removed is in git's way, which says so.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
