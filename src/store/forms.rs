//! The forms of a layer: which blobs are known to hold the tar with a given diff ID. A form is
//! noted only after this program made the blob or decompressed and hashed it here; what an image
//! says about its own layers is no form.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Layer, Store, sealed};
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{ChainId, DiffId, Digest, HashingWriter};
use crate::image::archive::LayerBlob;
use crate::image::manifest::{Descriptor, media_type};
use crate::layer::{self, Compression};

/// A blob that holds a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    pub media_type: String,
    pub digest: Digest,
    pub size_bytes: u64,
    /// How we made it (`none`, `gzip:6`); nothing for a blob that came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_with: Option<String>,
    boot_id: String,
    is_synced: bool,
}

impl Store {
    /// The blobs known to hold this layer, whether or not they are still there.
    pub fn forms(&self, diff_id: &DiffId) -> Result<Vec<Form>> {
        sealed::read_json(self.inner.forms.as_fd(), &diff_id.hex())
            .map(Option::unwrap_or_default)
            .map_err(|error| self.inner.error(format_args!("read the forms of `{diff_id}`"), error))
    }

    /// A blob that is there and holds this layer: the one made with this compression, or else the one
    /// it came in, which is never made anew.
    pub fn form(&self, diff_id: &DiffId, compression: Compression) -> Result<Option<Form>> {
        let name = name_of(compression);
        let forms = self.forms(diff_id)?;
        let made = forms.iter().find(|form| form.made_with.as_deref() == Some(&name));
        for form in made.into_iter().chain(forms.iter().filter(|form| form.made_with.is_none())) {
            if self.is_usable(diff_id, form)? {
                return Ok(Some(form.clone()));
            }
        }
        Ok(None)
    }

    /// The layer as a blob with this compression, made now if there is none yet. A layer that no longer
    /// packs to its diff ID is dropped from the store, and the error says so.
    pub fn compressed(&self, layer: &Layer, compression: Compression) -> Result<Form> {
        let diff_id = &layer.meta.diff_id;
        if let Some(form) = self.form(diff_id, compression)? {
            return Ok(form);
        }
        self.enter()?;
        // Two threads or builders that want the same blob make it once.
        let _lock = self.lock_name(format!("form-{}-{}", diff_id.hex(), name_of(compression)), || {})?;
        if let Some(form) = self.form(diff_id, compression)? {
            return Ok(form);
        }
        let mut blob = self.blob_writer()?;
        let actual = if compression == Compression::None {
            let mut out = HashingWriter::new(&mut blob);
            layer::pack(layer.dir.as_fd(), &mut out)?;
            out.finish().1
        } else {
            let (mut reader, writer) = io::pipe().context(|| "cannot make a pipe")?;
            std::thread::scope(|scope| {
                let packer = scope.spawn(move || {
                    let mut out = HashingWriter::new(io::BufWriter::with_capacity(1 << 20, writer));
                    layer::pack(layer.dir.as_fd(), &mut out)?;
                    let (out, digest, _) = out.finish();
                    out.into_inner().map_err(io::IntoInnerError::into_error).context(|| "cannot compress a layer")?;
                    Ok::<_, Diagnostic>(digest)
                });
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let compressed = layer::compress(&mut reader, &mut blob, compression, threads);
                // A packer that still writes is told that nobody reads.
                drop(reader);
                let packed = packer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // Why compressing failed says more than that the pipe then broke.
                compressed.and(packed)
            })?
        };
        if actual != *diff_id.digest() && layer.meta.tree.is_none() {
            // Not a fault of the layer's: another program packed the tar it came from.
            return Err(Diagnostic::error(format!(
                "the blob of the pulled layer `{diff_id}` is no longer in the store"
            ))
            .hint("run the same build with `--pull`"));
        }
        if actual != *diff_id.digest() {
            self.drop_layer(&layer.id, layer.dir.as_fd())?;
            return Err(Diagnostic::error(format!(
                "layer `{diff_id}` was damaged in the store `{}` (it now packs to `{actual}`) and has been removed",
                self.inner.path.display()
            ))
            .hint("run the same build again: it makes the layer anew"));
        }
        let (digest, size_bytes) = blob.commit()?;
        let form = Form {
            media_type: media_type_of(compression).into(),
            made_with: Some(name_of(compression)),
            ..self.pulled_form(String::new(), digest, size_bytes)
        };
        self.record_form(diff_id, &form)?;
        Ok(form)
    }

    /// The blobs of a stack of layers, bottom first, for whoever writes or pushes an image.
    pub fn layer_blobs(&self, diff_ids: &[DiffId], compression: Compression) -> Result<Vec<LayerBlob<'static>>> {
        let mut below = None;
        let mut blobs = Vec::new();
        for diff_id in diff_ids {
            let id = ChainId::extend(below.as_ref(), diff_id);
            below = Some(id);
            let form = match self.form(diff_id, compression)? {
                Some(form) => form,
                None => {
                    // One that was made on nothing is named by its diff ID, wherever it stands.
                    let layer = match self.layer(&id)? {
                        Some(layer) => Some(layer),
                        None => self.layer(&ChainId::extend(None, diff_id))?,
                    };
                    let Some(layer) = layer else {
                        return Err(Diagnostic::error(format!("layer `{diff_id}` is no longer in the store"))
                            .hint("run the same build again: it makes the layer anew"));
                    };
                    self.compressed(&layer, compression)?
                }
            };
            let store = self.clone();
            blobs.push(LayerBlob {
                descriptor: Descriptor::new(form.media_type, form.digest, form.size_bytes),
                open: Box::new(move || match store.open_blob(&form.digest)? {
                    Some(blob) => Ok(Box::new(blob)),
                    None => Err(Diagnostic::error(format!("blob `{}` is no longer in the store", form.digest))),
                }),
            });
        }
        Ok(blobs)
    }

    /// The form of a blob that came from elsewhere.
    pub(super) fn pulled_form(&self, media_type: String, digest: Digest, size_bytes: u64) -> Form {
        Form { media_type, digest, size_bytes, made_with: None, boot_id: self.inner.boot_id.clone(), is_synced: false }
    }

    /// Notes that a blob holds this layer; the caller has seen that it does.
    pub(super) fn record_form(&self, diff_id: &DiffId, form: &Form) -> Result<()> {
        let _lock = self.lock_name(format!("forms-{}", diff_id.hex()), || {})?;
        let mut forms = self.forms(diff_id)?;
        forms.retain(|other| {
            other.digest != form.digest && (other.made_with.is_none() || other.made_with != form.made_with)
        });
        forms.push(form.clone());
        self.write_forms(diff_id, &forms)
    }

    fn write_forms(&self, diff_id: &DiffId, forms: &[Form]) -> Result<()> {
        sealed::write(&self.inner, self.inner.forms.as_fd(), &diff_id.hex(), &sealed::to_json(&forms))
    }

    /// Whether the form's blob is there; one that another boot wrote and never synced is hashed first.
    pub(super) fn is_usable(&self, diff_id: &DiffId, form: &Form) -> Result<bool> {
        if !self.touch_blob(&form.digest, form.size_bytes)? {
            return Ok(false);
        }
        if form.is_synced || self.is_of_this_boot(&form.boot_id) {
            return Ok(true);
        }
        if !self.verify_blob(&form.digest)? {
            return Ok(false);
        }
        self.record_form(diff_id, &Form { is_synced: true, ..form.clone() })?;
        Ok(true)
    }

    /// Forgets what is known about a layer.
    pub(super) fn remove_forms(&self, name: &str) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&self.inner.forms, name, rustix::fs::AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }
}

fn name_of(compression: Compression) -> String {
    match compression {
        Compression::None => "none".into(),
        Compression::Gzip { level } => format!("gzip:{level}"),
    }
}

fn media_type_of(compression: Compression) -> &'static str {
    match compression {
        Compression::None => media_type::LAYER_TAR,
        Compression::Gzip { .. } => media_type::LAYER_GZIP,
    }
}
