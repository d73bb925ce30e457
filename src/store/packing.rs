//! From layers to blobs: packed and compressed when somebody asks, and then remembered as forms.
//!
//! ```text
//! layer dir ── pack ──┐
//!                     ├──▶ tar, hashed ── compress ──▶ blob
//! blob ── decompress ─┘
//! ```
//!
//! A layer that was made here is packed from its directory. One that came as a blob is never packed again,
//! since another program's tar cannot be made anew: its blob is decompressed instead.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::checksum::ChecksumWriter;
use super::{Form, Layer, Store, forms};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{ChainId, DiffId, Digest, HashingReader, HashingWriter};
use crate::image::MediaTypes;
use crate::image::archive::LayerBlob;
use crate::image::manifest::{Descriptor, media_type};
use crate::layer::{self, Compression, Contents, Workers};
use crate::parallel;
use crate::progress::{Audience, Meter, Metered};

/// How the layers of an image are to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    pub compression: Compression,
    /// Whether layers that came in another form are compressed anew, too.
    pub is_forced: bool,
    pub media_types: MediaTypes,
}

impl Packing {
    /// What is packed when nothing is said.
    pub const DEFAULT: Self =
        Self { compression: Compression::DEFAULT, is_forced: false, media_types: MediaTypes::Oci };

    /// Whether a blob that came from elsewhere is taken as it is.
    fn takes(&self, form: &Form) -> bool {
        let is_wanted = || media_type::to_oci(&form.media_type) == media_type_of(self.compression);
        form.made_with.is_none()
            && self.media_types.layer(&form.media_type).is_some()
            && (!self.is_forced || is_wanted())
    }
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Self {
        Self { compression, ..Self::DEFAULT }
    }
}

impl Store {
    /// A blob that is there and holds this layer: the one made with this compression, or else the one
    /// it came in.
    pub fn form(&self, diff_id: &DiffId, packing: Packing) -> Result<Option<Form>> {
        let name = name_of(packing.compression);
        match self.usable_form(diff_id, |form| form.made_with.as_deref() == Some(&name))? {
            Some(made) => Ok(Some(made)),
            None => self.usable_form(diff_id, |form| packing.takes(form)),
        }
    }

    /// The blobs of stacks of layers, each bottom first, for whoever writes or pushes images. Those that are
    /// not there are made, several at once, which is shown as a step; or they are as `elsewhere` knows them.
    pub fn packed<'a>(
        &self,
        stacks: &[&[DiffId]],
        packing: Packing,
        audience: Audience<'_>,
        elsewhere: &dyn Fn(&DiffId) -> Result<Option<LayerBlob<'a>>>,
    ) -> Result<Vec<Vec<LayerBlob<'a>>>> {
        let mut missing = Vec::new();
        for (diff_id, id) in stacks.iter().flat_map(|diff_ids| chain(diff_ids)) {
            if self.form(&diff_id, packing)?.is_none() {
                let made = self.made_layer(&diff_id, &id)?;
                if made.is_some() || self.has_any_form(&diff_id)? || elsewhere(&diff_id)?.is_none() {
                    missing.push((diff_id, id, made));
                }
            }
        }
        // Layers that several platforms share are packed once.
        missing.sort_by_key(|(diff_id, ..)| *diff_id);
        missing.dedup_by_key(|(diff_id, ..)| *diff_id);
        if !missing.is_empty() {
            // Not shown twice.
            if missing.iter().any(|(.., made)| made.is_some()) {
                self.enter()?;
            }
            let plural = if missing.len() == 1 { "" } else { "s" };
            let title = format!("[export] pack {} layer{plural} ({})", missing.len(), packing.compression);
            audience.show(&title, |meter| {
                for (diff_id, _, layer) in &missing {
                    meter.expect(match layer {
                        Some(layer) => layer.meta.tar_size_bytes,
                        None => self.usable_form(diff_id, |_| true)?.map_or(0, |form| form.size_bytes),
                    });
                }
                parallel::each(&missing, parallel::processors(), |(diff_id, _, layer)| match layer {
                    Some(layer) => self.pack(layer, packing.compression, Some(meter)).map(drop),
                    None => self.repack(diff_id, packing.compression, Some(meter)).map(drop),
                })
            })?;
        }
        let blob = |diff_id: &DiffId| match self.form(diff_id, packing)? {
            Some(form) => Ok(self.blob_of(form)),
            None => elsewhere(diff_id)?.ok_or_else(|| gone(diff_id)),
        };
        stacks.iter().map(|diff_ids| diff_ids.iter().map(blob).collect()).collect()
    }

    /// The same of one layer, before anybody asks.
    pub(super) fn pack_ahead(
        &self,
        diff_id: &DiffId,
        id: &ChainId,
        compression: Compression,
        meter: &Meter<'_>,
        workers: Workers<'_>,
    ) -> Result<()> {
        // Who waits for another builder that is at it can give nothing up: that is left to the export.
        if self.form(diff_id, compression.into())?.is_some() || self.is_locked(&lock_of(diff_id, compression)) {
            return Ok(());
        }
        let made = match self.made_layer(diff_id, id)? {
            Some(layer) => {
                meter.expect(layer.meta.tar_size_bytes);
                self.pack_by(&layer, compression, Some(meter), workers)
            }
            None => self.repack_by(diff_id, compression, Some(meter), workers),
        };
        made.map(drop)
    }

    fn blob_of(&self, form: Form) -> LayerBlob<'static> {
        let store = self.clone();
        LayerBlob {
            descriptor: Descriptor::new(form.media_type, form.digest, form.size_bytes),
            open: Box::new(move || match store.open_blob(&form.digest)? {
                Some(blob) => Ok(Box::new(blob)),
                None => Err(Diagnostic::error(format!("blob `{}` is no longer in the store", form.digest))),
            }),
        }
    }

    /// The layers of these stacks, each bottom first, that there is nothing of here to make a blob of.
    pub fn absent(&self, stacks: &[&[DiffId]]) -> Result<Vec<DiffId>> {
        let mut absent = Vec::new();
        for (diff_id, id) in stacks.iter().flat_map(|diff_ids| chain(diff_ids)) {
            if !self.has_any_form(&diff_id)? && self.made_layer(&diff_id, &id)?.is_none() {
                absent.push(diff_id);
            }
        }
        Ok(absent)
    }

    /// The unpacked layer, if it was made here. One that was made on nothing is named by its diff ID,
    /// wherever it stands.
    fn made_layer(&self, diff_id: &DiffId, id: &ChainId) -> Result<Option<Layer>> {
        for id in [*id, ChainId::extend(None, diff_id)] {
            if let Some(layer) = self.layer(&id)?.filter(|layer| layer.meta.tree.is_some()) {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }

    /// The layer as a blob with this compression, packed now if there is none yet. A layer that no longer
    /// packs to its diff ID is dropped from the store, and the error says so.
    pub fn pack(&self, layer: &Layer, compression: Compression, meter: Option<&Meter<'_>>) -> Result<Form> {
        self.pack_by(layer, compression, meter, Workers::new(parallel::processors()))
    }

    /// The same, compressed by these.
    pub(super) fn pack_by(
        &self,
        layer: &Layer,
        compression: Compression,
        meter: Option<&Meter<'_>>,
        workers: Workers<'_>,
    ) -> Result<Form> {
        if layer.meta.tree.is_none() {
            return self.repack_by(&layer.meta.diff_id, compression, meter, workers);
        }
        self.enter()?;
        self.made(&layer.meta.diff_id, compression, |blob| {
            if compression == Compression::None {
                return self.pack_dir(layer, meter, blob).map(drop);
            }
            let (mut reader, writer) = io::pipe().context(|| "cannot make a pipe")?;
            std::thread::scope(|scope| {
                let packer = scope.spawn(move || {
                    let out = self.pack_dir(layer, meter, io::BufWriter::with_capacity(1 << 20, writer))?;
                    let flushed = out.into_inner().map_err(io::IntoInnerError::into_error);
                    flushed.map(drop).context(|| "cannot compress a layer")
                });
                let compressed = layer::compress(&mut reader, blob, compression, workers);
                // A packer that still writes is told that nobody reads.
                drop(reader);
                let packed = packer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // Why compressing failed says more than that the pipe then broke.
                compressed.and(packed)
            })
        })
    }

    /// Packs a layer whose files are elsewhere (see [`layer::pack_outline`], which says what is found) into a blob, which
    /// is then all there is of it.
    pub fn pack_outline(&self, dir: BorrowedFd<'_>, contents: &dyn Contents) -> Result<(DiffId, Vec<(usize, Digest)>)> {
        let mut blob = self.blob_writer()?;
        let found = layer::pack_outline(dir, contents, &mut blob)?;
        let (digest, size_bytes) = blob.commit()?;
        let (diff_id, made_with) = (DiffId::new(digest), name_of(Compression::None));
        let form = self.new_form(media_type_of(Compression::None).into(), digest, size_bytes, Some(made_with));
        self.record_form(&diff_id, &form)?;
        Ok((diff_id, found))
    }

    /// Packs a layer dir, and makes sure that what it packs to is its diff ID.
    fn pack_dir<W: io::Write + Send>(&self, layer: &Layer, meter: Option<&Meter<'_>>, out: W) -> Result<W> {
        let pack = |out: &mut (dyn io::Write + Send)| match meter {
            Some(meter) => layer::pack(layer.dir.as_fd(), &mut Metered { inner: out, meter }),
            None => layer::pack(layer.dir.as_fd(), out),
        };
        let (out, is_whole) = match &layer.meta.checksum {
            Some(checksum) => {
                let mut out = ChecksumWriter::new(out);
                pack(&mut out)?;
                let (out, actual) = out.finish();
                (out, actual == *checksum)
            }
            None => {
                let mut out = HashingWriter::new(out);
                pack(&mut out)?;
                let (out, actual, _) = out.finish();
                (out, actual == *layer.meta.diff_id.digest())
            }
        };
        if is_whole {
            return Ok(out);
        }
        self.drop_layer(&layer.id, layer.dir.as_fd())?;
        Err(Diagnostic::error(format!(
            "layer `{}` was damaged in the store `{}` and has been removed",
            layer.meta.diff_id,
            self.inner.path.display()
        ))
        .hint("run the same build again: it makes the layer anew"))
    }

    /// The layer as a blob with this compression, made now from any other blob that holds it.
    pub fn repack(&self, diff_id: &DiffId, compression: Compression, meter: Option<&Meter<'_>>) -> Result<Form> {
        self.repack_by(diff_id, compression, meter, Workers::new(parallel::processors()))
    }

    /// The same, compressed by these.
    pub(super) fn repack_by(
        &self,
        diff_id: &DiffId,
        compression: Compression,
        meter: Option<&Meter<'_>>,
        workers: Workers<'_>,
    ) -> Result<Form> {
        self.made(diff_id, compression, |out| {
            let from = self.usable_form(diff_id, |_| true)?.ok_or_else(|| gone(diff_id))?;
            let blob = self.open_blob(&from.digest)?.ok_or_else(|| gone(diff_id))?;
            let plain = match meter {
                Some(meter) => layer::decompress(Metered { inner: blob, meter }),
                None => layer::decompress(blob),
            };
            let mut plain = HashingReader::new(plain?);
            layer::compress(&mut plain, out, compression, workers)?;
            let (_, actual, _) = plain.finish();
            if actual == *diff_id.digest() {
                return Ok(());
            }
            self.discard_blob(&from.digest);
            Err(Diagnostic::error(format!("blob `{}` was damaged in the store and has been removed", from.digest))
                .hint("run the same build again, with `--pull` if it is a layer of its base"))
        })
    }

    /// The form made with this compression, or what `make` writes, noted as that form.
    fn made(
        &self,
        diff_id: &DiffId,
        compression: Compression,
        make: impl FnOnce(&mut super::BlobWriter) -> Result<()>,
    ) -> Result<Form> {
        let name = name_of(compression);
        let is_it = |form: &Form| form.made_with.as_deref() == Some(&name);
        if let Some(form) = self.usable_form(diff_id, is_it)? {
            return Ok(form);
        }
        // Two threads or builders that want the same blob make it once.
        let _lock = self.lock_name(lock_of(diff_id, compression), || {})?;
        if let Some(form) = self.usable_form(diff_id, is_it)? {
            return Ok(form);
        }
        let mut blob = self.blob_writer()?;
        make(&mut blob)?;
        let (digest, size_bytes) = blob.commit()?;
        let form = self.new_form(media_type_of(compression).into(), digest, size_bytes, Some(name_of(compression)));
        self.record_form(diff_id, &form)?;
        Ok(form)
    }
}

fn gone(diff_id: &DiffId) -> Diagnostic {
    Diagnostic::error(format!("layer `{diff_id}` is no longer in the store"))
        .hint("run the same build again, with `--pull` if it is a layer of its base")
}

/// The layers of a stack and the chains they complete.
fn chain(diff_ids: &[DiffId]) -> impl Iterator<Item = (DiffId, ChainId)> {
    diff_ids.iter().scan(None, |below, diff_id| {
        let id = ChainId::extend(below.as_ref(), diff_id);
        *below = Some(id);
        Some((*diff_id, id))
    })
}

/// The name of the lock for making a form.
pub(super) fn lock_of(diff_id: &DiffId, compression: Compression) -> String {
    format!("form-{}-{}", diff_id.hex(), name_of(compression))
}

fn name_of(compression: Compression) -> String {
    match compression {
        Compression::None => forms::PLAIN.into(),
        Compression::Gzip { level } => format!("gzip:{level}"),
        Compression::Zstd { level } => format!("zstd:{level}"),
    }
}

fn media_type_of(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_type::LAYER_TAR,
        Compression::Gzip { .. } => media_type::LAYER_GZIP,
        Compression::Zstd { .. } => media_type::LAYER_ZSTD,
    }
}
