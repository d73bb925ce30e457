//! The store on disk: blobs, unpacked layers, images, records. Plain files that appear by rename;
//! several builders share it. Anything torn or corrupt in it is a miss, never a wrong image.
//!
//! ```text
//! <root>/
//!   version                       format number
//!   blobs/sha256/<hex>            manifests, configs, compressed layers
//!   layers/<chain id hex>/{fs/, layer.json}
//!   forms/<diff id hex>           blobs known to hold this layer (verified here)
//!   images/<percent-encoded reference>
//!   cache/ files/ mounts/ builds/ tmp/ trash/
//! ```

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diag::Result;
use crate::digest::{ChainId, DiffId, Digest, TreeDigest};

pub struct Store {
    root: PathBuf,
}

/// `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    pub diff_id: DiffId,
    pub tree: TreeDigest,
    /// Of the uncompressed tar.
    pub tar_size_bytes: u64,
    /// Of its regular files.
    pub size_bytes: u64,
    pub entries: u64,
    /// `/proc/sys/kernel/random/boot_id` when it was made.
    pub boot_id: String,
    /// Whether its bytes are known to be on disk.
    pub is_synced: bool,
}

/// An unpacked layer, held with a shared lock: it cannot be pruned while this lives.
pub struct Layer {
    pub id: ChainId,
    pub meta: LayerMeta,
    /// `…/layers/<id>/fs`.
    pub path: PathBuf,
    pub dir: OwnedFd,
}

/// An upper dir in the making, below `tmp/`; dropped without commit it goes to the trash.
pub struct Draft {
    /// Holds `u` (upper) and `w` (overlay work dir).
    pub path: PathBuf,
}

impl Draft {
    /// The upper dir.
    pub fn upper(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Publishes `u` as `layers/<id>/fs`. If another builder did so first, theirs is taken.
    pub fn commit(self, id: &ChainId, meta: LayerMeta) -> Result<Layer> {
        let _ = (id, meta);
        todo!()
    }
}

/// A blob in the making; appears under its digest by rename, or not at all.
pub struct BlobWriter {
    _todo: (),
}

impl BlobWriter {
    pub fn commit(self) -> Result<(Digest, u64)> {
        todo!()
    }
}

impl Store {
    /// Opens or makes the store (mode 0700), checks its version, and sweeps what killed builders
    /// left in `tmp/`.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self { root: root.to_owned() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The layer, if it is there and whole. One made in another boot and never synced is packed
    /// and hashed first, and dropped if it is not what it claims.
    pub fn layer(&self, id: &ChainId) -> Result<Option<Layer>> {
        let _ = id;
        todo!()
    }

    pub fn draft(&self) -> Result<Draft> {
        todo!()
    }
}
