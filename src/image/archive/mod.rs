//! Images in files: an OCI image layout, as a directory or a tar, and Docker's variant of the tar.
//!
//! ```text
//! blobs/sha256/<hex>      manifests, configs, layers
//! index.json              what is in it, and under which names
//! manifest.json           Docker's table of contents (`type=docker` only)
//! oci-layout              the layout's version
//! ```
//!
//! Written, the same image always is the same bytes; a file appears whole or not at all. Read, each
//! blob is hashed against its descriptor.

mod passage;
mod read;
mod tarball;
mod verified;
mod write;

use std::collections::BTreeMap;
use std::io::Read;

use super::manifest::{Descriptor, Index, Manifest, MediaTypes};
use super::{Platform, Reference, validate};
use crate::diag::{Diagnostic, Result};

pub use read::{Archive, ArchivedImage, ArchivedLayer, Selector};
pub use verified::VerifyingReader;
pub use write::{write_directory, write_file, write_tar};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Oci,
    /// With `manifest.json`, which `docker load` reads; holds one platform.
    Docker,
}

/// What is to be written: an image, for one or several platforms.
pub struct Contents<'a> {
    pub images: Vec<ImageContents<'a>>,
    /// May be empty.
    pub names: Vec<Reference>,
    /// RFC 3339, for `index.json`.
    pub created: Option<String>,
    pub media_types: MediaTypes,
    /// Other images of the same archive.
    pub others: Vec<Contents<'a>>,
}

impl<'a> Contents<'a> {
    /// This one and the others.
    pub fn all(&self) -> impl Iterator<Item = &Contents<'a>> {
        std::iter::once(self).chain(&self.others)
    }
}

pub struct ImageContents<'a> {
    pub platform: Platform,
    /// As it is to be written.
    pub config: Vec<u8>,
    /// Bottom first.
    pub layers: Vec<LayerBlob<'a>>,
    /// Of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// A layer's blob and how to read it. What is read is checked against the descriptor.
pub struct LayerBlob<'a> {
    pub descriptor: Descriptor,
    pub open: Box<dyn Fn() -> Result<Box<dyn Read + Send>> + Send + Sync + 'a>,
}

/// The documents over an image's configs and layers, in the order in which a registry wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// One for each image, in their order.
    pub manifests: Vec<(Descriptor, Vec<u8>)>,
    /// When there are several.
    pub index: Option<(Descriptor, Vec<u8>)>,
}

impl Assembled {
    /// What the image's names stand for: the index, or the only manifest.
    pub fn root(&self) -> &Descriptor {
        match &self.index {
            Some((descriptor, _)) => descriptor,
            None => &self.manifests[0].0,
        }
    }
}

/// Writes the manifests, and for several platforms the index over them. Layers of a base that came in
/// other words are named in these.
///
/// # Panics
/// When there is no image.
pub fn assemble(images: &[ImageContents<'_>], media_types: MediaTypes) -> Result<Assembled> {
    assert!(!images.is_empty(), "an archive of no image");
    let mut manifests: Vec<(Descriptor, Vec<u8>)> = Vec::new();
    for image in images {
        let layers: Vec<Descriptor> = image.layers.iter().map(|layer| layer.descriptor.clone()).collect();
        validate::image(&image.config, &layers)?;
        let named = |layer: Descriptor| match media_types.layer(&layer.media_type) {
            Some(media_type) => Ok(Descriptor { media_type: media_type.to_owned(), platform: None, ..layer.clone() }),
            None => Err(Diagnostic::error("docker's media types have none for layers compressed with zstd")),
        };
        let manifest = Manifest {
            media_type: media_types.manifest().into(),
            config: Descriptor::of(media_types.config(), &image.config),
            layers: layers.into_iter().map(named).collect::<Result<_>>()?,
            annotations: image.annotations.clone(),
        };
        let bytes = manifest.to_json();
        let mut descriptor = Descriptor::of(media_types.manifest(), &bytes);
        descriptor.platform = Some(image.platform.clone());
        if manifests.iter().any(|(other, _)| other.platform == descriptor.platform) {
            return Err(Diagnostic::error(format!("there are two images for `{}`", image.platform)));
        }
        manifests.push((descriptor, bytes));
    }
    let index = (manifests.len() > 1).then(|| {
        let index = Index::new(manifests.iter().map(|(descriptor, _)| descriptor.clone()).collect());
        let bytes = Index { media_type: media_types.index().into(), ..index }.to_json();
        (Descriptor::of(media_types.index(), &bytes), bytes)
    });
    Ok(Assembled { manifests, index })
}

#[cfg(test)]
mod tests;
