//! `wythe cache export` and `import`: the cache on its way between machines.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::process::ExitCode;

use super::{Failure, room, say, usage};
use crate::cache::{self, Contents};
use crate::diag::Context as _;
use crate::progress::units;
use crate::store::Store;

/// A file appears when it is complete.
pub fn export(store: &Store, output: Option<&Path>, filters: &[String]) -> Result<ExitCode, Failure> {
    let filters = room::filters(filters)?;
    // Whoever enters is this program anew.
    store.enter()?;
    let contents = match output {
        None if io::stdout().is_terminal() => {
            return Err(usage("a tar is not written to a terminal: give `-o FILE` or redirect standard output"));
        }
        None => cache::send(store, &filters, &mut io::stdout().lock())?,
        Some(path) => {
            let doing = || format!("cannot write `{}`", path.display());
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(parent).context(doing)?;
            let contents = cache::send(store, &filters, &mut file)?;
            file.persist(path).map_err(|error| error.error).context(doing)?;
            contents
        }
    };
    tell("wrote", "in use, left out", &contents);
    Ok(ExitCode::SUCCESS)
}

pub fn import(store: &Store, input: Option<&Path>) -> Result<ExitCode, Failure> {
    store.enter()?;
    let input: Box<dyn Read + Send> = match input {
        None if io::stdin().is_terminal() => return Err(usage("name the file with `-i FILE`")),
        None => Box::new(io::stdin()),
        Some(path) => Box::new(File::open(path).context(|| format!("cannot read `{}`", path.display()))?),
    };
    tell("took in", "here already, kept", &cache::receive(store, input)?);
    Ok(ExitCode::SUCCESS)
}

fn tell(done: &str, why_left: &str, contents: &Contents) {
    let many = |count: u64, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let Contents { steps, layers, mounts, size_bytes, left } = contents;
    let counted = [many(*steps, "step"), many(*layers, "layer"), many(*mounts, "cache mount")].join(", ");
    let mut text = format!("{done} {counted}: {}\n", units::size(*size_bytes));
    for title in left {
        text.push_str(&format!("{why_left}: {}\n", super::cache::one_line(title, 80)));
    }
    say(&text);
}
