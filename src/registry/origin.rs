//! Remembers what is elsewhere: what a blob is and which repositories have it. One that is not in the
//! store can be fetched from there when it is needed, and one that is pushed to another repository of the
//! same registry is mounted instead of sent. What these memories say is checked wherever it counts; one
//! that is wrong or lost costs time, or another look at the image's manifest.

use serde::{Deserialize, Serialize};

use crate::diag::Result;
use crate::digest::Digest;
use crate::image::Descriptor;
use crate::store::Store;

const DIRECTORY: &str = "files/origin";
/// The latest ones are kept.
const MAX_ORIGINS: usize = 8;

/// What is known of a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub media_type: String,
    pub size_bytes: u64,
    /// `registry/repository`, the latest last.
    pub repositories: Vec<String>,
}

/// Notes that `registry/repository` has the blob.
pub(super) fn note(store: &Store, blob: &Descriptor, name: &str) -> Result<()> {
    let earlier = of(store, &blob.digest)?.unwrap_or_default();
    let mut repositories = earlier.repositories.clone();
    repositories.retain(|known| known != name);
    repositories.push(name.to_owned());
    repositories.drain(..repositories.len().saturating_sub(MAX_ORIGINS));
    let origin = Origin { media_type: blob.media_type.clone(), size_bytes: blob.size_bytes, repositories };
    if origin == earlier {
        return Ok(());
    }
    // Our own types always serialise.
    store.write_record(DIRECTORY, &blob.digest.hex(), &serde_json::to_vec(&origin).unwrap_or_default())
}

/// How large the blob is, by what was last heard of it.
pub fn size_of(store: &Store, blob: &Digest) -> Option<u64> {
    of(store, blob).ok().flatten().map(|origin| origin.size_bytes)
}

pub(super) fn of(store: &Store, blob: &Digest) -> Result<Option<Origin>> {
    let bytes = store.read_record(DIRECTORY, &blob.hex())?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}
