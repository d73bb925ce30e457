//! How the program of an ordinary user comes to do what only root may: it begins as the user, and what
//! takes more ([`Store::enter`]) executes it anew, once, to begin in a user namespace. The process stays
//! the same, with its number, its terminal, its directory and its open files.
//!
//! [`Store::enter`]: crate::store::Store::enter

use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::container::entry::{self, Entry, Who};
use crate::diag::{Diagnostic, Result, Severity};
use crate::ids;
use crate::store::{Access, Store};

/// Set for a program that is to enter before all else.
const ENTER: &str = "WYTHE_ENTER";

/// Whether and how this process is still to enter.
pub struct Entrance {
    /// `None` for who may do everything.
    outside: Option<Entry>,
    /// This process ran before, as the user, and may have read what can be read once.
    pub is_anew: bool,
    /// Why everything in images becomes root's; for a build to say.
    pub poverty: Option<Diagnostic>,
    /// Where the user's store is when nothing is said.
    pub default_root: Option<PathBuf>,
}

impl Entrance {
    /// Enters, if that is what this process was begun for. To be called before any thread is started,
    /// and after all that depends on the user's own number.
    pub fn find(default_root: Option<PathBuf>) -> Result<Self> {
        if entry::is_privileged() {
            entry::own_mounts()?;
            return Ok(Self { outside: None, is_anew: false, poverty: poverty_of_namespace(), default_root });
        }
        let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let search = std::env::var_os("PATH").unwrap_or_default();
        let entry = Entry::find(Who { name: name.as_deref(), search: &search });
        let poverty = entry.poverty.clone();
        if std::env::var_os(ENTER).is_none() {
            return Ok(Self { outside: Some(entry), is_anew: false, poverty, default_root });
        }
        entry.enter()?;
        Ok(Self { outside: None, is_anew: true, poverty, default_root })
    }

    pub fn is_outside(&self) -> bool {
        self.outside.is_some()
    }

    /// What this process is to enter with, if it is still to enter.
    pub fn outside(&self) -> Option<&Entry> {
        self.outside.as_ref()
    }

    /// Opens the store; `leave` is called before this process gives way to the one that enters.
    pub fn open(&self, root: &Path, leave: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<Store> {
        Store::open_with(root, self.access(leave)?).map_err(|error| match &self.poverty {
            // A store of more ids is not to be opened because of that.
            Some(poverty) if error.cause.is_none() => {
                poverty.hints.iter().fold(error.caused_by(&poverty.message), |error, hint| error.hint(hint))
            }
            _ => error,
        })
    }

    fn access(&self, leave: impl Fn() -> Result<()> + Send + Sync + 'static) -> Result<Access> {
        let Some(entry) = &self.outside else { return Access::of_this_process() };
        let enter = move || {
            leave()?;
            Err(begin_anew())
        };
        Ok(Access::of_user(entry.ids.clone(), Box::new(enter)))
    }
}

/// Executes the program with the same arguments, to enter; returns only if that cannot be done.
fn begin_anew() -> Diagnostic {
    let c_string = |text: OsString| CString::new(text.into_vec());
    let arguments: Result<Vec<_>, _> = std::env::args_os().map(c_string).collect();
    let variables = std::env::vars_os().filter(|(name, _)| name != ENTER).chain([(ENTER.into(), "1".into())]);
    let variables: Result<Vec<_>, _> =
        variables.map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())).collect();
    // What came from the system as C strings is made of none but those.
    let error = match (arguments, variables) {
        (Ok(arguments), Ok(variables)) => {
            crate::container::restore_open_files();
            crate::sys::exec(c"/proc/self/exe", &arguments, &variables)
        }
        (Err(error), _) | (_, Err(error)) => error.into(),
    };
    Diagnostic::error("cannot begin anew in a user namespace").caused_by(error)
}

fn poverty_of_namespace() -> Option<Diagnostic> {
    if ids::are_the_hosts() || !ids::there_is_but_one() {
        return None;
    }
    let message = "nothing keeps the users in steps apart, as there is but one id to build with: this user namespace has one user and one group only";
    Some(Diagnostic { severity: Severity::Warning, ..Diagnostic::error(message) })
}
