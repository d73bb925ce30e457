//! Images from elsewhere into the store. Nothing an image says of itself is believed: blobs are
//! hashed against their descriptors, and what they unpack to against the config's diff IDs.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::blobs::Tee;
use super::{Form, ImageLayer, ImageRecord, Layer, LayerMeta, Store};
use crate::diag::{Diagnostic, Result};
use crate::digest::{ChainId, DiffId, Digest, HashingReader};
use crate::image::archive::{Archive, ArchivedImage, ArchivedLayer};
use crate::image::manifest::Descriptor;
use crate::image::{ImageConfig, Platform, validate};
use crate::layer;

/// What may follow the end of a layer's tar: tars are padded, by default to 10 KiB.
const MAX_TRAILER_BYTES: u64 = 64 << 20;

impl Store {
    /// Takes an image of an archive into the store: config and manifest as they are, each layer's blob,
    /// whose diff ID is then known to be the one the config claims. Nothing heavy is done for what is
    /// there already. The caller names it with `put_image`.
    pub fn import_image(&self, archive: &Archive, image: &ArchivedImage, platform: &Platform) -> Result<ImageRecord> {
        let config = ImageConfig::from_json(&image.config)
            .map_err(|error| Diagnostic::error("the image config cannot be read").caused_by(error))?;
        let descriptors: Vec<Descriptor> = image.layers.iter().map(|layer| layer.descriptor.clone()).collect();
        validate::layers(&config, &descriptors)?;
        self.import_layers(archive, &image.layers, &config.rootfs.diff_ids)?;
        let manifest = image.manifest.as_deref().map(|manifest| self.put_blob(manifest)).transpose()?;
        let layers = descriptors.iter().zip(&config.rootfs.diff_ids);
        Ok(ImageRecord {
            manifest,
            config: self.put_blob(&image.config)?,
            platform: platform.clone(),
            layers: layers
                .map(|(descriptor, diff_id)| ImageLayer { diff_id: *diff_id, blob: Some(descriptor.digest) })
                .collect(),
            created: config.created,
        })
    }

    /// Imports layers, several at once; of several errors the lowest layer's is returned.
    fn import_layers(&self, archive: &Archive, layers: &[ArchivedLayer], diff_ids: &[DiffId]) -> Result<()> {
        let import = |layer: &ArchivedLayer, diff_id| {
            if self.has_form(diff_id, &layer.descriptor.digest)? {
                return Ok(());
            }
            let mut blob = archive.open_layer(layer)?;
            self.import_layer(&mut blob, &layer.descriptor, diff_id).map(drop)
        };
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None::<(usize, Diagnostic)>);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let (Some(layer), Some(diff_id)) = (layers.get(index), diff_ids.get(index)) else { return };
                if let Err(error) = import(layer, diff_id) {
                    // The others finish what they began, and begin nothing more.
                    next.store(layers.len(), Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(other, _)| index < *other) {
                        *failed = Some((index, error));
                    }
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(layers.len());
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((index, error)) => Err(Diagnostic {
                message: format!("cannot import layer {} of {}: {}", index + 1, layers.len(), error.message),
                ..error
            }),
        }
    }

    /// Whether this blob is in the store and known to hold this layer.
    pub fn has_form(&self, diff_id: &DiffId, blob: &Digest) -> Result<bool> {
        match self.forms(diff_id)?.iter().find(|form| form.digest == *blob) {
            Some(form) => self.is_usable(diff_id, form),
            None => Ok(false),
        }
    }

    /// Copies a layer's blob into the store and, in the same pass, decompresses and hashes it. Nothing
    /// is left behind if its digest, size or diff ID is another one than claimed.
    pub fn import_layer(
        &self,
        input: &mut (dyn Read + Send),
        descriptor: &Descriptor,
        diff_id: &DiffId,
    ) -> Result<Form> {
        let input = input.take(descriptor.size_bytes.saturating_add(1));
        let mut tee = Tee { input, blob: self.blob_writer()?, error: None };
        let plain_digest = hash_plain(&mut tee);
        // What follows a compressed stream belongs to the blob.
        let rest = io::copy(&mut tee, &mut io::sink()).map(|_| ());
        let blob = tee.finish(rest, &descriptor.digest)?;
        // That the blob is damaged says more than that it then could not be decompressed.
        let verified = blob.verified(&descriptor.digest, descriptor.size_bytes)?;
        check_diff_id(&descriptor.digest, &plain_digest?, diff_id)?;
        verified.publish()?;
        let form = self.pulled_form(descriptor.media_type.clone(), descriptor.digest, descriptor.size_bytes);
        self.record_form(diff_id, &form)?;
        Ok(form)
    }

    /// Unpacks a layer onto the layers below (topmost first) from any blob that is known to hold it.
    pub fn unpack_form(&self, id: &ChainId, diff_id: &DiffId, lowers: &[BorrowedFd<'_>]) -> Result<Layer> {
        self.enter()?;
        // Two builders that need it unpack it once.
        let _lock = self.lock_name(format!("layer-{}", id.hex()), || {})?;
        for form in self.forms(diff_id)? {
            if self.is_usable(diff_id, &form)? {
                let descriptor = Descriptor::new(form.media_type, form.digest, form.size_bytes);
                return self.unpack_blob(id, diff_id, &descriptor, lowers);
            }
        }
        Err(Diagnostic::error(format!("the layer `{diff_id}` is no longer in the store"))
            .hint("build with `--no-cache`, or import the base image again"))
    }

    /// Unpacks a layer's blob onto the layers below (topmost first), unless it is there. What the
    /// blob decompresses to must have this diff ID; then it is noted as a form of it.
    pub fn unpack_blob(
        &self,
        id: &ChainId,
        diff_id: &DiffId,
        descriptor: &Descriptor,
        lowers: &[BorrowedFd<'_>],
    ) -> Result<Layer> {
        if let Some(layer) = self.layer(id)? {
            return Ok(layer);
        }
        let Some(blob) = self.open_blob(&descriptor.digest)? else {
            return Err(Diagnostic::error(format!("blob `{}` of a layer is not in the store", descriptor.digest)));
        };
        let draft = self.draft()?;
        let unpack = || {
            let mut tar = HashingReader::new(layer::decompress(blob)?);
            let summary = layer::unpack(&mut tar, draft.upper(), lowers)?;
            let trailer_size = io::copy(&mut (&mut tar).take(MAX_TRAILER_BYTES + 1), &mut io::sink())
                .map_err(|error| self.inner.error(format_args!("read blob `{}`", descriptor.digest), error))?;
            if trailer_size > MAX_TRAILER_BYTES {
                return Err(Diagnostic::error(format!(
                    "layer `{diff_id}` has more than {MAX_TRAILER_BYTES} bytes after the end of its tar"
                )));
            }
            let (_, digest, tar_size_bytes) = tar.finish();
            check_diff_id(&descriptor.digest, &digest, diff_id)?;
            Ok((summary, tar_size_bytes))
        };
        let (summary, tar_size_bytes) = match unpack() {
            Ok(unpacked) => unpacked,
            // Damaged in the store, or made so? The first is a miss of what can be had again.
            Err(error) if self.verify_blob(&descriptor.digest)? => return Err(error),
            Err(_) => {
                return Err(Diagnostic::error(format!(
                    "blob `{}` was damaged in the store `{}` and has been removed",
                    descriptor.digest,
                    self.inner.path.display()
                ))
                .hint("run the same build again: it fetches the layer anew"));
            }
        };
        let form = self.pulled_form(descriptor.media_type.clone(), descriptor.digest, descriptor.size_bytes);
        self.record_form(diff_id, &form)?;
        let meta = LayerMeta {
            diff_id: *diff_id,
            tree: None,
            tar_size_bytes,
            size_bytes: summary.size_bytes,
            entries: summary.entries,
            boot_id: String::new(),
            is_synced: false,
        };
        draft.commit(id, meta)
    }
}

fn hash_plain(blob: &mut (impl Read + Send)) -> Result<Digest> {
    let mut plain = HashingReader::new(layer::decompress(blob)?);
    io::copy(&mut plain, &mut io::sink())
        .map_err(|error| Diagnostic::error("the layer cannot be decompressed").caused_by(error))?;
    Ok(plain.finish().1)
}

fn check_diff_id(blob: &Digest, actual: &Digest, claimed: &DiffId) -> Result<()> {
    if actual == claimed.digest() {
        return Ok(());
    }
    Err(Diagnostic::error(format!(
        "blob `{blob}` holds the layer `{actual}`, but the image config claims it is `{claimed}`"
    )))
}
