//! Git repositories: which commit a name stands for, and its files in a directory. The work is done by the
//! user's `git`, kept on a short lead.
//!
//! ```text
//! resolve    address ─ ls-remote ─▶ commit
//! check_out  commit ─ fetch ─▶ bare repository of the store ─ read-tree ─▶ files, submodules, `.git`
//! ```
//!
//! What always holds: git gets an environment of its own, so that no configuration, hook, credential helper or
//! prompt of the user or the machine decides anything; it speaks only the protocols that are named to it; no
//! address or name that begins with a dash reaches it; a password is passed in its environment and kept
//! nowhere. What is checked out depends on the commit alone: modes are 0644 and 0755, times are one time.

mod checkout;
mod command;
mod fetch;
mod resolve;
mod submodule;
mod tidy;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::diag::Result;
use crate::location::GitLocation;
use crate::progress::Audience;
use crate::registry::Proxies;
use crate::store::Store;

/// What the user's machine says about git.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where programs are looked for (`PATH`).
    pub search_path: OsString,
    pub proxies: Proxies,
    /// Trusted certificates (PEM), instead of the system's.
    pub certificates: Option<PathBuf>,
    /// Files with the keys of ssh servers that the user knows. The key of a server that nobody knows is
    /// taken and remembered in the store; a key that changed is refused.
    pub known_hosts: Vec<PathBuf>,
}

/// Runs git; shared by threads.
pub struct Client {
    options: Options,
    is_canceled: AtomicBool,
}

/// What opens repositories that not everybody may read.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The `Authorization` header for a repository reached over http.
    pub authorization: &'a (dyn Fn(&GitLocation) -> Result<Option<String>> + Sync),
    /// The socket of an ssh agent.
    pub agent: Option<&'a Path>,
}

/// What a name in a repository stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The whole name of the commit.
    pub commit: String,
    /// Of the tag that stands for it, where there is an annotated one; else that of the commit.
    pub object: String,
    /// `refs/heads/main`; `None` where the commit was named itself.
    pub name: Option<String>,
}

/// The world of one call.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    pub store: &'a Store,
    pub keys: Keys<'a>,
    pub audience: Audience<'a>,
}

/// What of a commit is wanted in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub location: &'a GitLocation,
    pub commit: &'a Commit,
    pub has_submodules: bool,
    /// Only where all of the repository is wanted.
    pub keeps_git_dir: bool,
    /// The modification time of everything, in seconds since the epoch; the commit's if `None`.
    pub time: Option<i64>,
}

impl Client {
    pub fn new(options: Options) -> Self {
        Self { options, is_canceled: AtomicBool::new(false) }
    }

    /// Ends what runs; what was asked fails.
    pub fn cancel(&self) {
        self.is_canceled.store(true, Ordering::Relaxed);
    }

    fn is_canceled(&self) -> bool {
        self.is_canceled.load(Ordering::Relaxed)
    }
}
