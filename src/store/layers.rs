//! Unpacked layers: directories named by the chain ID they complete, made beside and renamed into
//! place, then never written again.
//!
//! ```text
//! tmp/<builder>/<n>/{u/, w/}      a draft: overlay upper and work dir
//!        │ commit
//!        ▼
//! layers/<chain id>/{fs/, layer.json}
//! ```
//!
//! The lock of a layer is a flock on its `fs`, through the one file descriptor that a `Layer` holds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::checksum::ChecksumWriter;
use super::workspace::Bench;
use super::{Inner, Store, sealed};
use crate::diag::{Diagnostic, Result};
use crate::digest::{ChainId, DiffId, Digest, HashingWriter, TreeDigest};
use crate::layer::{self, Summary};

/// `layer.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMeta {
    pub diff_id: DiffId,
    /// None for a layer unpacked from a blob: packing it again need not give the tar it came from.
    pub tree: Option<TreeDigest>,
    /// Of the uncompressed tar.
    pub tar_size_bytes: u64,
    /// The same, for who packs it again: XXH3 of 128 bits in hex. None where it was never packed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Of its regular files.
    pub size_bytes: u64,
    pub entries: u64,
    /// `/proc/sys/kernel/random/boot_id` when it was made; set by [`Draft::commit`].
    pub boot_id: String,
    /// Whether its bytes are known to be on disk; set by [`Store::sync_layers`].
    pub is_synced: bool,
}

impl LayerMeta {
    /// Of a directory that is no layer of any image.
    fn of_none(id: &ChainId) -> Self {
        Self {
            diff_id: DiffId::new(Digest::of(format!("flat {id}").as_bytes())),
            tree: None,
            tar_size_bytes: 0,
            checksum: None,
            size_bytes: 0,
            entries: 0,
            boot_id: String::new(),
            is_synced: false,
        }
    }
}

/// An unpacked layer, held with a shared lock: it cannot be pruned while this lives.
pub struct Layer {
    pub id: ChainId,
    pub meta: LayerMeta,
    /// `…/layers/<id>/fs`.
    pub path: PathBuf,
    /// It carries the lock, and so do its duplicates.
    pub dir: OwnedFd,
}

/// An upper dir in the making, below `tmp/`; dropped without commit it goes to the trash.
pub struct Draft {
    /// Holds `u` (upper) and `w` (overlay work dir).
    pub path: PathBuf,
    inner: Arc<Inner>,
    bench: Arc<Bench>,
    name: String,
    dir: OwnedFd,
    upper: OwnedFd,
}

/// The directories of a draft that nobody has asked for yet.
pub(super) struct Blank {
    bench: Arc<Bench>,
    name: String,
    dir: OwnedFd,
    upper: OwnedFd,
}

impl Blank {
    fn make(inner: &Inner) -> rustix::io::Result<Self> {
        let (bench, name) = inner.workspace.fresh()?;
        rustix::fs::mkdirat(bench.fd(), &name, Mode::RWXU)?;
        let dir = super::open_dir(bench.fd(), &name)?;
        rustix::fs::mkdirat(&dir, "u", Mode::RWXU)?;
        rustix::fs::mkdirat(&dir, "w", Mode::RWXU)?;
        let upper = super::open_dir(dir.as_fd(), "u")?;
        // The mode of `/` in the container; mkdir's would depend on the umask.
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(0o755))?;
        inner.records.begin(upper.as_fd())?;
        Ok(Self { bench, name, dir, upper })
    }

    /// What cannot be removed goes with the workspace.
    pub(super) fn remove(self) {
        for name in ["u", "w"] {
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::REMOVEDIR);
        }
        let _ = rustix::fs::unlinkat(self.bench.fd(), self.name.as_str(), AtFlags::REMOVEDIR);
    }
}

impl Draft {
    /// The upper dir, mode 0755.
    pub fn upper(&self) -> BorrowedFd<'_> {
        self.upper.as_fd()
    }

    /// Says what it is, once it is canonical, of which `summary` came. `tree` is its tree digest, if that is known.
    pub fn identify(&self, summary: &Summary, tree: Option<TreeDigest>) -> Result<(TreeDigest, LayerMeta)> {
        let mut writer = HashingWriter::new(ChecksumWriter::new(io::sink()));
        let tree = match tree {
            Some(tree) => layer::pack(self.upper(), &mut writer).map(|()| tree)?,
            None => layer::pack_and_digest(self.upper(), &mut writer)?,
        };
        let (writer, digest, tar_size_bytes) = writer.finish();
        let meta = LayerMeta {
            diff_id: DiffId::new(digest),
            tree: Some(tree),
            tar_size_bytes,
            checksum: Some(writer.finish().1),
            size_bytes: summary.size_bytes,
            entries: summary.entries,
            // Filled in by the commit.
            boot_id: String::new(),
            is_synced: false,
        };
        Ok((tree, meta))
    }

    /// Makes it fit to be mounted once more: the kernel takes no work dir again that a `volatile` overlay
    /// had.
    pub fn renew_work_dir(&self) -> Result<()> {
        let renew = || {
            self.inner.trash.take(self.dir.as_fd(), "w")?;
            rustix::fs::mkdirat(&self.dir, "w", Mode::RWXU)
        };
        renew().map_err(|errno| self.inner.error("open a layer again", errno))
    }

    /// Publishes a directory that shows several layers at once, as [`Draft::commit`] does. It is no layer of
    /// any image, takes no room of its own, and is made anew where it could have suffered from a crash.
    pub fn commit_flat(&self, id: &ChainId) -> Result<Layer> {
        self.commit(id, LayerMeta::of_none(id))
    }

    /// The same as a layer where it is now, for this process alone.
    pub fn unnamed(&self, id: &ChainId) -> Result<Layer> {
        let dir = self.upper.try_clone().map_err(|error| self.inner.error("open a layer", error))?;
        Ok(Layer { id: *id, meta: LayerMeta::of_none(id), path: self.path.join("u"), dir })
    }

    /// Publishes `u` as `layers/<id>/fs`. If another builder did so first, theirs is taken, and what is in this one
    /// stays until it is dropped. Of `meta`, the boot id and `is_synced` are filled in here.
    pub fn commit(&self, id: &ChainId, meta: LayerMeta) -> Result<Layer> {
        let inner = Arc::clone(&self.inner);
        let store = Store { inner: Arc::clone(&inner) };
        let cannot_commit = |error: io::Error| inner.error(format_args!("commit layer `{id}`"), error);
        let meta = LayerMeta { boot_id: inner.boot_id.clone(), is_synced: false, ..meta };
        sealed::create(self.dir.as_fd(), "layer.json", &sealed::to_json(&meta)).map_err(cannot_commit)?;
        rustix::fs::renameat(&self.dir, "u", &self.dir, "fs").map_err(|errno| cannot_commit(errno.into()))?;
        inner.trash.take(self.dir.as_fd(), "w").map_err(|errno| cannot_commit(errno.into()))?;
        // Locked before it can be seen, so that it cannot be pruned in between.
        let dir = self.upper.try_clone().map_err(cannot_commit)?;
        super::flock(dir.as_fd(), FlockOperation::LockShared).map_err(|errno| cannot_commit(errno.into()))?;
        let hex = id.hex();
        for _ in 0..16 {
            match rustix::fs::renameat(self.bench.fd(), &self.name, &inner.layers, &hex) {
                Ok(()) => {
                    inner.added_bytes.fetch_add(meta.size_bytes, Ordering::Relaxed);
                    return Ok(Layer { id: *id, meta, path: inner.layer_path(id), dir });
                }
                // A layer is never an empty directory, so rename does not replace one. What is no directory
                // is no layer either, and dropped below.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                Err(errno) => return Err(cannot_commit(errno.into())),
            }
            if let Some(layer) = store.layer(id)? {
                return Ok(layer);
            }
        }
        Err(Diagnostic::error(format!("cannot commit layer `{id}`: others make and remove it all the time")))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a commit there is no such name.
        if self.inner.trash.take(self.bench.fd(), &self.name).is_ok() {
            self.inner.trash.wake();
        }
    }
}

impl Store {
    /// An empty upper dir beside an empty work dir.
    pub fn draft(&self) -> Result<Draft> {
        self.enter()?;
        let stocked = self.inner.blank.lock().unwrap_or_else(PoisonError::into_inner).take();
        let blank = stocked.map_or_else(|| Blank::make(&self.inner), Ok);
        let Blank { bench, name, dir, upper } = blank.map_err(|errno| {
            let failure = self.inner.error("make a layer", errno);
            if errno == Errno::OPNOTSUPP { layer::Records::explain(failure, errno) } else { failure }
        })?;
        Ok(Draft { path: bench.path.join(&name), inner: Arc::clone(&self.inner), bench, name, dir, upper })
    }

    /// Whether layers may have whiteouts that no overlay of the kernel's knows.
    pub fn has_our_whiteouts(&self) -> Result<bool> {
        self.inner.workspace.has_our_whiteouts().map_err(|errno| self.inner.error("look for whiteouts", errno))
    }

    /// Makes ahead what the next draft takes. To be called once a draft is in use, when there is time.
    pub fn stock(&self) {
        let mut blank = self.inner.blank.lock().unwrap_or_else(PoisonError::into_inner);
        if blank.is_none() {
            // If this fails the next draft will say why.
            *blank = Blank::make(&self.inner).ok();
        }
    }

    /// The layer, if it is there and whole. One made in another boot and never synced is packed
    /// and hashed first, and dropped if it is not what it claims; one that was unpacked from a blob is
    /// dropped at once, to be unpacked again.
    pub fn layer(&self, id: &ChainId) -> Result<Option<Layer>> {
        let cannot_open = |errno: Errno| self.inner.error(format_args!("open layer `{id}`"), errno);
        let layers = self.inner.layers.as_fd();
        let hex = id.hex();
        let fs = format!("{hex}/fs");
        let dir = loop {
            let dir = match super::open_dir(layers, &fs) {
                Ok(dir) => dir,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    self.drop_if_no_layer(&hex).map_err(cannot_open)?;
                    return Ok(None);
                }
                Err(errno) => return Err(cannot_open(errno)),
            };
            super::flock(dir.as_fd(), FlockOperation::LockShared).map_err(cannot_open)?;
            // Pruned before it was locked: look again.
            if super::is_still_at(layers, &fs, dir.as_fd()) {
                break dir;
            }
        };
        let meta: Option<LayerMeta> = sealed::read_json(layers, &format!("{hex}/layer.json"))
            .map_err(|error| self.inner.error(format_args!("read layer `{id}`"), error))?;
        let Some(meta) = meta else { return self.drop_layer(id, dir.as_fd()).map(|()| None) };
        self.inner.workspace.announce();
        // When it was last used, for prune. Without the right to say so it looks older than it is.
        let _ = rustix::fs::utimensat(layers, &hex, &super::NOW, AtFlags::SYMLINK_NOFOLLOW);
        let mut layer = Layer { id: *id, meta, path: self.inner.layer_path(id), dir };
        if self.is_of_this_boot(&layer.meta.boot_id) || layer.meta.is_synced {
            return Ok(Some(layer));
        }
        // What may not be read would be taken for damaged.
        self.enter()?;
        if !self.is_what_it_claims(&layer) {
            return self.drop_layer(id, layer.dir.as_fd()).map(|()| None);
        }
        // What was written in another boot and can be read in this one is on disk.
        layer.meta.is_synced = true;
        let _ = self.write_meta(&layer);
        Ok(Some(layer))
    }

    /// Waits until these layers are on disk, and notes it. It takes as long as the disk does: for a
    /// thread that nobody waits for.
    pub fn sync_layers(&self, ids: &[ChainId]) -> Result<()> {
        rustix::fs::syncfs(&self.inner.root).map_err(|errno| self.inner.error("sync layers", errno))?;
        for id in ids {
            if let Some(mut layer) = self.layer(id)?
                && !layer.meta.is_synced
            {
                layer.meta.is_synced = true;
                self.write_meta(&layer)?;
            }
        }
        Ok(())
    }

    pub(super) fn is_of_this_boot(&self, boot_id: &str) -> bool {
        !boot_id.is_empty() && boot_id == self.inner.boot_id
    }

    fn is_what_it_claims(&self, layer: &Layer) -> bool {
        let mut out = HashingWriter::new(io::sink());
        // One that was unpacked does not always pack to the same, and one that cannot be packed is damaged as well.
        let is_packed = layer.meta.tree.is_some() && layer::pack(layer.dir.as_fd(), &mut out).is_ok();
        let (_, digest, _) = out.finish();
        is_packed && digest == *layer.meta.diff_id.digest()
    }

    fn write_meta(&self, layer: &Layer) -> Result<()> {
        let name = format!("{}/layer.json", layer.id.hex());
        sealed::write(&self.inner, self.inner.layers.as_fd(), &name, &sealed::to_json(&layer.meta))
    }

    /// Takes a damaged layer away, whoever has it open; but not another one that has taken the place of
    /// the one that was opened as `fs`.
    pub(super) fn drop_layer(&self, id: &ChainId, fs: BorrowedFd<'_>) -> Result<()> {
        let (layers, hex) = (self.inner.layers.as_fd(), id.hex());
        if super::is_still_at(layers, &format!("{hex}/fs"), fs) {
            self.inner
                .trash
                .take(layers, &hex)
                .map_err(|errno| self.inner.error(format_args!("remove the damaged layer `{id}`"), errno))?;
            self.inner.trash.wake();
        }
        Ok(())
    }

    /// Takes away what has a layer's name and, looked at again, has no `fs`.
    fn drop_if_no_layer(&self, hex: &str) -> rustix::io::Result<()> {
        let layers = self.inner.layers.as_fd();
        let is_layer = match super::open_dir(layers, hex) {
            Ok(dir) => super::open_dir(dir.as_fd(), "fs").is_ok(),
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => false,
            Err(errno) => return Err(errno),
        };
        match is_layer {
            // Committed just now.
            true => Ok(()),
            false => self.inner.trash.take(layers, hex),
        }
    }
}

impl Inner {
    fn layer_path(&self, id: &ChainId) -> PathBuf {
        self.path.join("layers").join(id.hex()).join("fs")
    }
}
