//! Remembers which repositories have a blob: one that is pushed to another repository of the same
//! registry is mounted there instead of sent. Wrong or lost memories cost only time.

use crate::diag::Result;
use crate::digest::Digest;
use crate::store::Store;

const DIRECTORY: &str = "files/origin";
/// The latest ones are kept.
const MAX_ORIGINS: usize = 8;

/// Notes that `registry/repository` has the blob.
pub(super) fn note(store: &Store, blob: &Digest, name: &str) -> Result<()> {
    let mut names = of(store, blob)?;
    if names.last().is_some_and(|last| last == name) {
        return Ok(());
    }
    names.retain(|known| known != name);
    names.push(name.to_owned());
    let surplus = names.len().saturating_sub(MAX_ORIGINS);
    store.write_record(DIRECTORY, &blob.hex(), names[surplus..].join("\n").as_bytes())
}

/// Names of repositories that had the blob, the latest last.
pub(super) fn of(store: &Store, blob: &Digest) -> Result<Vec<String>> {
    let bytes = store.read_record(DIRECTORY, &blob.hex())?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}
