//! What comes by standard input, read in one place and once.
//!
//! It is kept in an unlinked file of the store, which then *is* standard input: a build that starts itself
//! anew finds everything there again.

use std::fs::File;
use std::io::{Read as _, Seek as _};

use super::context::{Sources, Stdin};
use super::{Failure, usage};
use crate::diag::{Context as _, Source};
use crate::host::Origin;
use crate::source::{self, DockerfileAt};
use crate::store::Store;

/// The largest Dockerfile that is read.
const TEXT_LIMIT_BYTES: u64 = 16 << 20;

/// Reads standard input if `sources` says that something comes by it, and puts what it is into `sources`.
/// Returns the context, if it is one.
pub fn take(sources: &mut Sources, store: &Store) -> Result<Option<File>, Failure> {
    if sources.stdin == Stdin::Nothing {
        return Ok(None);
    }
    let doing = || "cannot read standard input";
    let mut file = spool(store).context(doing)?;
    if sources.stdin == Stdin::Context {
        if source::is_archive(file.try_clone().context(doing)?)? {
            return Ok(Some(file));
        }
        if let DockerfileAt::Context(Some(name)) = &sources.dockerfile {
            return Err(usage(format!("standard input is no tar but a Dockerfile, and so is `-f {name}`")));
        }
        sources.context = Origin::Empty;
    }
    file.rewind().context(doing)?;
    let mut text = Vec::new();
    file.take(TEXT_LIMIT_BYTES + 1).read_to_end(&mut text).context(doing)?;
    if text.len() as u64 > TEXT_LIMIT_BYTES {
        return Err(usage(format!("the Dockerfile on standard input is larger than {} MiB", TEXT_LIMIT_BYTES >> 20)));
    }
    sources.dockerfile = DockerfileAt::Text(Source::new("<stdin>", String::from_utf8_lossy(&text)));
    Ok(None)
}

/// All of standard input as a file. Its position is its own: that of standard input stays at the start.
fn spool(store: &Store) -> std::io::Result<File> {
    let stdin = std::io::stdin();
    let stat = rustix::fs::fstat(&stdin)?;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    // A file without a name was made here, before this process started itself anew.
    if !(is_file && stat.st_nlink == 0) {
        let mut file = tempfile::tempfile_in(store.root().join("tmp"))?;
        std::io::copy(&mut stdin.lock(), &mut file)?;
        file.rewind()?;
        rustix::stdio::dup2_stdin(&file)?;
    }
    File::open("/proc/self/fd/0")
}
