//! `--ulimit`: resource limits of the payload, and the builder's own of open files.

use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::diag::{Diagnostic, Result, nearest};

/// The names that `--ulimit` knows, as Docker spells them.
const NAMES: [(&str, Resource); 15] = [
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// What this process was started with.
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// Lets this process open as many files as it may: each layer of a build is one. A limit of 1024 is there
/// for programs that call select(2), which payloads may be: they get it back.
pub fn raise_open_files() {
    let own = *OPEN_FILES.get_or_init(|| getrlimit(Resource::Nofile));
    // Where that fails there are as many as there were.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum });
}

/// Undoes [`raise_open_files`].
pub fn restore_open_files() {
    if let Some(own) = OPEN_FILES.get() {
        let _ = setrlimit(Resource::Nofile, *own);
    }
}

/// Sets limits of this process: `(name, soft, hard)`, where `u64::MAX` is unlimited.
pub fn set(limits: &[(String, u64, u64)]) -> Result<()> {
    for (name, soft, hard) in limits {
        let Some((_, resource)) = NAMES.iter().find(|(known, _)| known == name) else {
            let error = Diagnostic::error(format!("unknown resource `{name}` in --ulimit"));
            let known = nearest(name, NAMES.iter().map(|(known, _)| *known));
            return Err(known.into_iter().fold(error, |error, known| error.hint(format!("did you mean `{known}`?"))));
        };
        let finite = |limit: &u64| (*limit != u64::MAX).then_some(*limit);
        let limit = Rlimit { current: finite(soft), maximum: finite(hard) };
        setrlimit(*resource, limit).map_err(|errno| {
            let doing = format!("cannot set the limit `{name}` to {}:{}", shown(*soft), shown(*hard));
            let error = Diagnostic::error(doing);
            match (errno, getrlimit(*resource).maximum) {
                (Errno::PERM, Some(own)) => {
                    error.caused_by(format!("the hard limit that this builder was started with is {own}"))
                }
                (Errno::INVAL, _) if soft > hard => error.caused_by("the soft limit is above the hard one"),
                _ => error.caused_by(std::io::Error::from(errno)),
            }
        })?;
    }
    Ok(())
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}
