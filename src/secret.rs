//! Secrets of a build: values that reach a step or a server, and nothing that is kept.

use std::io::Read as _;
use std::path::PathBuf;

use crate::diag::{Context as _, Diagnostic, Result};

/// A secret's value; read when it is needed and shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    File(PathBuf),
    Value(Vec<u8>),
}

impl Secret {
    /// The value; `id` is its name for messages. One that is longer than `max_size_bytes` is an error.
    pub fn read(&self, id: &str, max_size_bytes: u64) -> Result<Vec<u8>> {
        let value = match self {
            Self::Value(value) => value.clone(),
            Self::File(path) => {
                let doing = || format!("cannot read the secret `{id}` from `{}`", path.display());
                let mut value = Vec::new();
                let file = std::fs::File::open(path).context(doing)?;
                file.take(max_size_bytes + 1).read_to_end(&mut value).context(doing)?;
                value
            }
        };
        if value.len() as u64 > max_size_bytes {
            return Err(Diagnostic::error(format!("the secret `{id}` is larger than {} KiB", max_size_bytes / 1024)));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_largest_size() {
        let secret = Secret::Value(vec![b'x'; 2048]);
        assert_eq!(secret.read("a", 2048).unwrap().len(), 2048);
        assert_eq!(secret.read("a", 2047).unwrap_err().message, "the secret `a` is larger than 1 KiB");
    }
}
