//! The user's ssh agent, lent to steps and to git: they can list its keys and have things signed, and
//! nothing else. Keys never leave it.
//!
//! ```text
//! ssh in a step ── socket of the step's ── proxy ──┬── the user's agent
//!                                                  └── keys read from files: an agent of our own
//! ```
//!
//! What always holds: no request but "list" and "sign" reaches an agent, and neither its socket's path nor a key's
//! file is known to who uses it. What is served ends with the step.

mod key;
mod proxy;
mod wire;

use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use crate::diag::{Context as _, Diagnostic, Result};

pub use key::Key;
pub use proxy::Forward;

/// What stands behind an id of `--ssh`.
pub enum Agent {
    /// An agent's socket.
    Socket(PathBuf),
    /// Private keys, held by this process.
    Keys(Vec<Key>),
}

impl Agent {
    /// The agent with a socket at `paths`, or one that holds the keys of these files.
    pub fn open(id: &str, paths: &[PathBuf]) -> Result<Self> {
        let wrong = |why: String| Diagnostic::error(format!("`--ssh {id}`: {why}"));
        let mut keys = Vec::new();
        for path in paths {
            let shown = path.display();
            let metadata = std::fs::metadata(path).context(|| format!("`--ssh {id}`: cannot open `{shown}`"))?;
            if metadata.file_type().is_socket() {
                return match paths {
                    [path] => Ok(Self::Socket(path.clone())),
                    _ => Err(wrong(format!("the socket `{shown}` stands alone, as it has its own keys"))),
                };
            }
            if !metadata.is_file() {
                return Err(wrong(format!("`{shown}` is neither a socket nor a file with a key")));
            }
            let key = Key::read(path)
                .map_err(|error| Diagnostic { message: format!("`--ssh {id}`: {}", error.message), ..error })?;
            keys.push(key);
        }
        match keys.is_empty() {
            true => Err(wrong("name a socket or a file with a key".into())),
            false => Ok(Self::Keys(keys)),
        }
    }
}
