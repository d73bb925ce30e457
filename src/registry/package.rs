//! What is pushed under one name.

use super::push::PushedImage;
use super::remote::{Remote, Whereabouts};
use crate::diag::{Diagnostic, Result};
use crate::digest::Digest;
use crate::image::MediaTypes;
use crate::image::archive::{ImageContents, LayerBlob, assemble};
use crate::image::manifest::{Descriptor, Document, Index, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::store::{ImageLayer, ImageRecord, Packing, Store};

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
    pub fn assembled(images: Vec<ImageContents<'a>>, media_types: MediaTypes) -> Result<Self> {
        let manifests = assemble(&images, media_types)?.manifests;
        let images = images.into_iter().zip(manifests);
        let images =
            images.map(|(image, manifest)| PushedImage { manifest, config: image.config, layers: image.layers });
        Ok(Self::of(images.collect(), media_types))
    }

    /// Of images of the store. When nothing is said of their packing, one that came with a manifest keeps
    /// it, and so its digest. Layers that are elsewhere are fetched only if they have to be sent.
    ///
    /// # Panics
    /// When there is no image.
    pub fn stored(remote: &'a Remote<'_>, records: &[ImageRecord], packing: Option<Packing>) -> Result<Self> {
        let (mut images, mut anew) = (Vec::new(), Vec::new());
        for record in records {
            match if packing.is_none() { as_it_came(remote, record)? } else { None } {
                Some(image) => images.push(image),
                None => anew.push(record.clone()),
            }
        }
        let packing = packing.unwrap_or(Packing::DEFAULT);
        if !anew.is_empty() {
            let contents = contents(remote, &anew, packing, Whereabouts::Anywhere)?;
            images.extend(Package::assembled(contents, packing.media_types)?.images);
        }
        let place = |image: &PushedImage<'_>| {
            let config = Digest::of(&image.config);
            records.iter().position(|record| record.config == config)
        };
        images.sort_by_key(place);
        Ok(Self::of(images, packing.media_types))
    }

    fn of(images: Vec<PushedImage<'a>>, media_types: MediaTypes) -> Self {
        assert!(!images.is_empty(), "a push of no image");
        let index = (images.len() > 1).then(|| {
            let index = Index::new(images.iter().map(|image| image.manifest.0.clone()).collect());
            let bytes = Index { media_type: media_types.index().into(), ..index }.to_json();
            (Descriptor::of(media_types.index(), &bytes), bytes)
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

/// Images of the store with their own configs, layers as blobs of this packing or as they came.
pub fn contents<'a>(
    remote: &'a Remote<'_>,
    records: &[ImageRecord],
    packing: Packing,
    wanted: Whereabouts,
) -> Result<Vec<ImageContents<'a>>> {
    let stacks: Vec<Vec<_>> =
        records.iter().map(|record| record.layers.iter().map(|layer| layer.diff_id).collect()).collect();
    let stacks: Vec<_> = stacks.iter().map(Vec::as_slice).collect();
    let contents = records.iter().zip(remote.packed(&stacks, packing, wanted)?).map(|(record, layers)| {
        let (platform, annotations) = (record.platform.clone(), std::collections::BTreeMap::new());
        Ok(ImageContents { platform, config: config(remote.store, record)?, layers, annotations })
    });
    contents.collect()
}

fn as_it_came<'a>(remote: &'a Remote<'_>, record: &ImageRecord) -> Result<Option<PushedImage<'a>>> {
    let store = remote.store;
    let Some(digest) = &record.manifest else { return Ok(None) };
    let Some(bytes) = store.read_blob(digest, MAX_MANIFEST_BYTES)? else { return Ok(None) };
    let Ok(Document::Manifest(manifest)) = Document::from_json(&bytes) else { return Ok(None) };
    let mut layers = Vec::new();
    for (descriptor, ImageLayer { diff_id, .. }) in manifest.layers.into_iter().zip(&record.layers) {
        if store.has_blob(&descriptor.digest) {
            layers.push(layer(store, descriptor));
            continue;
        }
        match remote.layer(diff_id)? {
            Some(layer) if layer.descriptor.digest == descriptor.digest => {
                layers.push(LayerBlob { descriptor, ..layer })
            }
            _ => return Ok(None),
        }
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
