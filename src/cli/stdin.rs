//! What comes by standard input or another pipe, read in one place and once.
//!
//! It is kept in an unlinked file of the store, which then *is* standard input: a build that starts itself
//! anew finds everything there again.

use std::fs::File;
use std::io::{Read as _, Seek as _};

use super::context::{Sources, Stdin};
use super::entrance::Entrance;
use super::{Failure, usage};
use crate::diag::Context as _;
use crate::host::Origin;
use crate::source::{self, DockerfileAt};
use crate::store::Store;

/// The largest Dockerfile that is read.
const TEXT_LIMIT_BYTES: u64 = 16 << 20;

/// Reads standard input if `sources` says that something comes by it, and puts what it is into `sources`.
/// Returns the context, if it is one.
pub fn take(sources: &mut Sources, store: &Store, entrance: &Entrance) -> Result<Option<File>, Failure> {
    if sources.stdin == Stdin::Nothing {
        return Ok(None);
    }
    let name = match &sources.stdin {
        Stdin::Pipe(path) => path.display().to_string(),
        _ => "<stdin>".to_owned(),
    };
    let doing = || match &*name {
        "<stdin>" => "cannot read standard input".to_owned(),
        name => format!("cannot read the Dockerfile `{name}`"),
    };
    let mut file = spool(&sources.stdin, store, entrance).context(doing)?;
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
        return Err(usage(format!("`{name}` is larger than {} MiB", TEXT_LIMIT_BYTES >> 20)));
    }
    sources.dockerfile = DockerfileAt::Text(source::dockerfile_of(&name, &text)?);
    Ok(None)
}

/// All of it as a file. Its position is its own: that of standard input stays at the start.
fn spool(from: &Stdin, store: &Store, entrance: &Entrance) -> std::io::Result<File> {
    // Where this process begins anew, it has done so before.
    if !entrance.is_anew {
        let mut file = tempfile::tempfile_in(store.root().join("tmp"))?;
        match from {
            Stdin::Pipe(path) => std::io::copy(&mut File::open(path)?, &mut file)?,
            _ => std::io::copy(&mut std::io::stdin().lock(), &mut file)?,
        };
        file.rewind()?;
        rustix::stdio::dup2_stdin(&file)?;
    }
    File::open("/proc/self/fd/0")
}
