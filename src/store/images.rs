//! Which images have which names. One file a reference, one image in it for each platform it was
//! stored or asked for as.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, sealed};
use crate::diag::{Diagnostic, Result};
use crate::digest::{DiffId, Digest};
use crate::image::{ImageConfig, Platform, Reference, manifest};

/// An image in the store. Its config and manifest are blobs; its layers are where `layer` or `form`
/// finds them, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The manifest it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// The image ID.
    pub config: Digest,
    /// The platform it stands for: the one asked for, which an older variant may serve.
    pub platform: Platform,
    /// Bottom first.
    pub layers: Vec<ImageLayer>,
    /// RFC 3339, from the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLayer {
    pub diff_id: DiffId,
    /// The blob it came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Digest>,
}

/// What an image ID, or the beginning of one, stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageLookup {
    Found {
        record: ImageRecord,
        references: Vec<Reference>,
    },
    NotFound,
    /// Image IDs, sorted.
    Ambiguous(Vec<Digest>),
}

#[derive(Serialize, Deserialize)]
struct ImageFile {
    reference: String,
    images: Vec<ImageRecord>,
}

impl Store {
    /// The image of this name for this platform.
    pub fn image(&self, reference: &Reference, platform: &Platform) -> Result<Option<ImageRecord>> {
        Ok(self.images_named(reference)?.into_iter().find(|image| image.platform == *platform))
    }

    /// All images of this name, one a platform, sorted by platform.
    pub fn images_named(&self, reference: &Reference) -> Result<Vec<ImageRecord>> {
        let file: Option<ImageFile> = sealed::read_json(self.inner.images.as_fd(), &reference.file_name())
            .map_err(|error| self.inner.error(format_args!("read image `{}`", reference.familiar()), error))?;
        Ok(file.filter(|file| file.reference == reference.to_string()).map(|file| file.images).unwrap_or_default())
    }

    /// The image's config.
    pub fn image_config(&self, record: &ImageRecord) -> Result<ImageConfig> {
        let id = &record.config;
        let Some(bytes) = self.read_blob(id, manifest::MAX_CONFIG_BYTES)? else {
            return Err(Diagnostic::error(format!("the config `{id}` of an image is not in the store, or damaged"))
                .hint("build or import the image again"));
        };
        ImageConfig::from_json(&bytes)
            .map_err(|error| Diagnostic::error(format!("cannot read the config `{id}` of an image")).caused_by(error))
    }

    /// Gives the image this name; the name's earlier image for the same platform loses it.
    pub fn put_image(&self, reference: &Reference, record: &ImageRecord) -> Result<()> {
        let _lock = self.lock_image(reference)?;
        let mut images = self.images_named(reference)?;
        images.retain(|image| image.platform != record.platform);
        images.push(record.clone());
        self.write_images(reference, images)
    }

    /// Gives all that `from` names the name `to` as well, in place of what `to` named. Whether there
    /// was anything.
    pub fn tag_image(&self, from: &Reference, to: &Reference) -> Result<bool> {
        let images = self.images_named(from)?;
        if images.is_empty() {
            return Ok(false);
        }
        let _lock = self.lock_image(to)?;
        self.write_images(to, images)?;
        Ok(true)
    }

    /// Takes the name away; the image itself goes with the next prune. Whether there was one.
    pub fn remove_image(&self, reference: &Reference) -> Result<bool> {
        let _lock = self.lock_image(reference)?;
        match rustix::fs::unlinkat(&self.inner.images, reference.file_name(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.inner.error(format_args!("remove image `{}`", reference.familiar()), errno)),
        }
    }

    /// All names and their images, sorted by name.
    pub fn images(&self) -> Result<BTreeMap<Reference, Vec<ImageRecord>>> {
        let cannot_list = |error: std::io::Error| self.inner.error("list images", error);
        let mut images = BTreeMap::new();
        for name in super::names(self.inner.images.as_fd()).map_err(|errno| cannot_list(errno.into()))? {
            let file: Option<ImageFile> = sealed::read_json(self.inner.images.as_fd(), &name).map_err(cannot_list)?;
            // A file under another name than its reference's was not put there by this program.
            if let Some(file) = file
                && let Ok(reference) = file.reference.parse::<Reference>()
                && reference.file_name() == name
            {
                images.insert(reference, file.images);
            }
        }
        Ok(images)
    }

    /// The named image whose ID begins with these hex digits (`sha256:` may stand before them).
    pub fn image_by_id(&self, prefix: &str) -> Result<ImageLookup> {
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.is_empty() {
            return Ok(ImageLookup::NotFound);
        }
        let mut ids = BTreeSet::new();
        let mut found: Option<(ImageRecord, Vec<Reference>)> = None;
        for (reference, images) in self.images()? {
            for record in images {
                if !record.config.hex().starts_with(prefix) {
                    continue;
                }
                ids.insert(record.config);
                let (_, references) = found.get_or_insert_with(|| (record, Vec::new()));
                if references.last() != Some(&reference) {
                    references.push(reference.clone());
                }
            }
        }
        Ok(match (ids.len(), found) {
            (1, Some((record, references))) => ImageLookup::Found { record, references },
            (0 | 1, _) => ImageLookup::NotFound,
            _ => ImageLookup::Ambiguous(ids.into_iter().collect()),
        })
    }

    fn lock_image(&self, reference: &Reference) -> Result<super::KeyLock> {
        self.lock_name(format!("image-{}", Digest::of(reference.to_string().as_bytes()).hex()), || {})
    }

    fn write_images(&self, reference: &Reference, mut images: Vec<ImageRecord>) -> Result<()> {
        images.sort_by(|a, b| a.platform.cmp(&b.platform));
        let file = ImageFile { reference: reference.to_string(), images };
        sealed::write(&self.inner, self.inner.images.as_fd(), &reference.file_name(), &sealed::to_json(&file))
    }
}
