//! What is pushed under one name.

use super::push::PushedImage;
use crate::diag::{Diagnostic, Result};
use crate::digest::Digest;
use crate::image::archive::{ImageContents, LayerBlob, assemble};
use crate::image::manifest::{Descriptor, Document, Index, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, media_type};
use crate::layer::Compression;
use crate::store::{ImageRecord, Store};

/// An image, or several for different platforms.
pub struct Package<'a> {
    pub(super) images: Vec<PushedImage<'a>>,
    pub(super) index: Option<(Descriptor, Vec<u8>)>,
}

impl<'a> Package<'a> {
    /// Of images that get their manifests now.
    ///
    /// # Panics
    /// When there is no image.
    pub fn assembled(images: Vec<ImageContents<'a>>) -> Result<Self> {
        let manifests = assemble(&images)?.manifests;
        let images = images.into_iter().zip(manifests);
        let images =
            images.map(|(image, manifest)| PushedImage { manifest, config: image.config, layers: image.layers });
        Ok(Self::of(images.collect()))
    }

    /// Of images of the store. One that came with a manifest keeps it, and so its digest, as long as its
    /// blobs are there.
    ///
    /// # Panics
    /// When there is no image.
    pub fn stored(store: &Store, records: &[ImageRecord]) -> Result<Package<'static>> {
        let mut images = Vec::new();
        for record in records {
            images.push(match as_it_came(store, record)? {
                Some(image) => image,
                None => anew(store, record)?,
            });
        }
        Ok(Package::of(images))
    }

    fn of(images: Vec<PushedImage<'a>>) -> Self {
        assert!(!images.is_empty(), "a push of no image");
        let index = (images.len() > 1).then(|| {
            let bytes = Index::new(images.iter().map(|image| image.manifest.0.clone()).collect()).to_json();
            (Descriptor::of(media_type::INDEX, &bytes), bytes)
        });
        Self { images, index }
    }

    /// What the name will stand for.
    pub fn root(&self) -> &Descriptor {
        match &self.index {
            Some((descriptor, _)) => descriptor,
            None => &self.images[0].manifest.0,
        }
    }
}

/// The image's own config, layers as blobs with the default compression or as they came.
pub fn contents(store: &Store, record: &ImageRecord) -> Result<ImageContents<'static>> {
    let diff_ids: Vec<_> = record.layers.iter().map(|layer| layer.diff_id).collect();
    Ok(ImageContents {
        platform: record.platform.clone(),
        config: config(store, record)?,
        layers: store.layer_blobs(&diff_ids, Compression::DEFAULT)?,
        annotations: std::collections::BTreeMap::new(),
    })
}

fn anew(store: &Store, record: &ImageRecord) -> Result<PushedImage<'static>> {
    let contents = contents(store, record)?;
    let manifest = assemble(std::slice::from_ref(&contents))?.manifests.swap_remove(0);
    Ok(PushedImage { manifest, config: contents.config, layers: contents.layers })
}

fn as_it_came(store: &Store, record: &ImageRecord) -> Result<Option<PushedImage<'static>>> {
    let Some(digest) = &record.manifest else { return Ok(None) };
    let Some(bytes) = store.read_blob(digest, MAX_MANIFEST_BYTES)? else { return Ok(None) };
    let Ok(Document::Manifest(manifest)) = Document::from_json(&bytes) else { return Ok(None) };
    let mut layers = Vec::new();
    for descriptor in manifest.layers {
        if !store.has_blob(&descriptor.digest) {
            return Ok(None);
        }
        layers.push(layer(store, descriptor));
    }
    let mut descriptor = Descriptor::of(manifest.media_type, &bytes);
    descriptor.platform = Some(record.platform.clone());
    Ok(Some(PushedImage { manifest: (descriptor, bytes), config: config(store, record)?, layers }))
}

fn layer(store: &Store, descriptor: Descriptor) -> LayerBlob<'static> {
    let (store, digest) = (store.clone(), descriptor.digest);
    LayerBlob {
        descriptor,
        open: Box::new(move || match store.open_blob(&digest)? {
            Some(blob) => Ok(Box::new(blob)),
            None => Err(gone(&digest)),
        }),
    }
}

fn config(store: &Store, record: &ImageRecord) -> Result<Vec<u8>> {
    store.read_blob(&record.config, MAX_CONFIG_BYTES)?.ok_or_else(|| gone(&record.config))
}

fn gone(digest: &Digest) -> Diagnostic {
    Diagnostic::error(format!("blob `{digest}` is no longer in the store"))
}
