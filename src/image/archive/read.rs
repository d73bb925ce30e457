//! Reading a layout or a `docker save` tar: from a name to the one image for a platform. Names in it
//! lead to files in it, and nowhere else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;

use super::VerifyingReader;
use super::tarball::Tarball;
use crate::diag::{Context, Diagnostic, Result};
use crate::digest::{Digest, HashingReader};
use crate::image::manifest::{
    Descriptor, Document, Index, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, annotation, media_type, read_bounded,
};
use crate::image::{ImageConfig, Platform, Reference, validate};
use crate::sys;

const MAX_INDEX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// A layout directory, a layout in a tar, or a `docker save` tar.
pub struct Archive {
    /// As the user wrote it.
    name: String,
    files: Files,
}

enum Files {
    Directory(OwnedFd),
    Tar(Tarball),
}

/// Which of an archive's images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The only one, or the one tagged `latest`.
    Only,
    /// A tag or a reference.
    Name(String),
    /// Of a manifest or an index.
    Digest(Digest),
}

/// An image found in an archive: config and manifest read and checked, layers named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedImage {
    /// Absent in a `docker save` tar without a layout.
    pub manifest: Option<Vec<u8>>,
    pub config: Vec<u8>,
    /// Of the config; it need not be the one asked for, where there is no choice.
    pub platform: Platform,
    /// Bottom first, as many as the config has diff IDs.
    pub layers: Vec<ArchivedLayer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedLayer {
    pub descriptor: Descriptor,
    /// The file in the archive.
    path: String,
}

/// An element of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Archive {
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let cannot_open = || format!("cannot open the image archive `{name}`");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).context(cannot_open)?;
        let stat = rustix::fs::fstat(&fd).context(cannot_open)?;
        let files = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Files::Directory(fd),
            FileType::RegularFile => {
                let file = File::from(fd);
                let mut magic = [0; 4];
                let count = std::os::unix::fs::FileExt::read_at(&file, &mut magic, 0).context(cannot_open)?;
                if magic[..count].starts_with(&[0x1f, 0x8b]) || magic[..count] == [0x28, 0xb5, 0x2f, 0xfd] {
                    return Err(Diagnostic::error(format!("{}: it is compressed; decompress it first", cannot_open())));
                }
                Files::Tar(Tarball::open(file).context(cannot_open)?)
            }
            _ => return Err(Diagnostic::error(format!("{}: it is neither a directory nor a file", cannot_open()))),
        };
        let archive = Self { name, files };
        let is_layout = archive.file("index.json")?.is_some();
        if !is_layout && archive.file("manifest.json")?.is_none() {
            return Err(Diagnostic::error(format!(
                "`{}` is no image archive: it has neither `index.json` nor `manifest.json`",
                archive.name
            )));
        }
        Ok(archive)
    }

    /// The image for this platform, or the closest one it can run. Where the archive has no choice of
    /// platforms its one image is taken, whatever it is for.
    pub fn image(&self, selector: &Selector, platform: &Platform) -> Result<ArchivedImage> {
        match self.read("index.json", MAX_MANIFEST_BYTES)? {
            Some(index) => {
                let index = self.index(&index, "index.json")?;
                let manifest = self.select(&index, selector, platform)?;
                self.image_of(&manifest)
            }
            None => self.docker_image(selector),
        }
    }

    /// The names that images of the archive have, as they are written there; a tag alone is none.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        if let Some(index) = self.read("index.json", MAX_MANIFEST_BYTES)? {
            let index = self.index(&index, "index.json")?;
            let full = |entry: &Descriptor| {
                let name = entry.annotations.get(annotation::REF_NAME).filter(|name| name.contains(['/', ':']));
                entry.annotations.get(annotation::IMAGE_NAME).or(name).cloned()
            };
            names.extend(index.manifests.iter().filter(|entry| !entry.is_attestation()).filter_map(full));
        } else if let Some(table) = self.read("manifest.json", MAX_MANIFEST_BYTES)? {
            let images: Vec<DockerImage> = serde_json::from_slice(&table).map_err(|error| {
                Diagnostic::error(format!("`manifest.json` of `{}` cannot be read", self.name)).caused_by(error)
            })?;
            names.extend(images.into_iter().flat_map(|image| image.repo_tags.unwrap_or_default()));
        }
        Ok(names.into_iter().collect())
    }

    /// The layer's bytes as they are stored; the end comes only if they are what the descriptor says.
    pub fn open_layer(&self, layer: &ArchivedLayer) -> Result<impl Read + Send + use<>> {
        let Some((file, _)) = self.file(&layer.path)? else { return Err(self.missing(&layer.path)) };
        Ok(VerifyingReader::new(file, layer.descriptor.digest, layer.descriptor.size_bytes))
    }

    fn select(&self, index: &Index, selector: &Selector, platform: &Platform) -> Result<Descriptor> {
        let entries: Vec<&Descriptor> = index.manifests.iter().filter(|entry| !entry.is_attestation()).collect();
        let chosen: Vec<Descriptor> = match selector {
            Selector::Digest(digest) => match entries.iter().find(|entry| entry.digest == *digest) {
                Some(entry) => vec![(*entry).clone()],
                // A manifest that only an index in the archive names.
                None => vec![self.descriptor_of(digest)?],
            },
            Selector::Name(name) => entries.into_iter().filter(|entry| has_name(entry, name)).cloned().collect(),
            Selector::Only => {
                let names: BTreeSet<_> = entries.iter().map(|entry| name_of(entry)).collect();
                let digests: BTreeSet<_> = entries.iter().map(|entry| entry.digest).collect();
                // One image, under several names; or one name, or none, for several platforms.
                let is_one = digests.len() == 1 || names.len() == 1;
                let is_wanted = |entry: &&Descriptor| is_one || has_name(entry, "latest");
                entries.into_iter().filter(is_wanted).cloned().collect()
            }
        };
        let digests: BTreeSet<_> = chosen.iter().map(|entry| entry.digest).collect();
        match (digests.len(), selector) {
            (1, _) => {}
            (0, Selector::Name(name)) => {
                return Err(self.names_hint(index, format!("`{}` has no image named `{name}`", self.name)));
            }
            (0, _) if index.manifests.is_empty() => {
                return Err(Diagnostic::error(format!("`{}` has no image in it", self.name)));
            }
            (0, _) => return Err(self.names_hint(index, format!("`{}` has several images; name one", self.name))),
            // Several manifests of one name are for several platforms, as in an index.
            _ if chosen.iter().all(|entry| entry.platform.is_some()) => {}
            _ => return Err(self.names_hint(index, format!("`{}` has several such images", self.name))),
        }
        let is_choice = digests.len() > 1;
        self.choose(chosen, platform, is_choice)
    }

    /// The manifest that fits best, of these and those that indexes among them list.
    fn choose(&self, entries: Vec<Descriptor>, platform: &Platform, mut is_choice: bool) -> Result<Descriptor> {
        let mut manifests = Vec::new();
        let mut level = entries;
        for _ in 0..MAX_INDEX_DEPTH {
            let mut next = Vec::new();
            for entry in std::mem::take(&mut level) {
                if entry.is_attestation() {
                    continue;
                }
                if media_type::is_index(&entry.media_type) {
                    is_choice = true;
                    next.extend(
                        self.index(&self.blob(&entry, MAX_MANIFEST_BYTES)?, &entry.digest.to_string())?.manifests,
                    );
                } else if media_type::is_manifest(&entry.media_type) {
                    manifests.push(entry);
                }
            }
            if manifests.len() + next.len() > MAX_MANIFESTS {
                return Err(Diagnostic::error(format!("`{}` lists more than {MAX_MANIFESTS} images", self.name)));
            }
            level = next;
        }
        if !level.is_empty() {
            return Err(Diagnostic::error(format!("`{}` has an index in an index in an index too many", self.name)));
        }
        if !is_choice && manifests.len() == 1 {
            return Ok(manifests.remove(0));
        }
        let mut best: Option<(usize, Descriptor)> = None;
        let mut offered = BTreeSet::new();
        for manifest in manifests {
            // An index need not say what its manifests are for; their configs do.
            let of = match &manifest.platform {
                Some(of) => of.clone(),
                None => self.image_of(&manifest)?.platform,
            };
            // The first of equals, as it is listed.
            if let Some(fit) = platform.fit(&of)
                && best.as_ref().is_none_or(|(best, _)| fit < *best)
            {
                best = Some((fit, manifest));
            }
            offered.insert(of.to_string());
        }
        match best {
            Some((_, manifest)) => Ok(manifest),
            None if offered.is_empty() => Err(Diagnostic::error(format!("`{}` has no image in it", self.name))),
            None => {
                let offered: Vec<_> = offered.into_iter().map(|platform| format!("`{platform}`")).collect();
                Err(Diagnostic::error(format!(
                    "`{}` has no image for `{platform}`; it has one for {}",
                    self.name,
                    offered.join(", ")
                )))
            }
        }
    }

    fn image_of(&self, descriptor: &Descriptor) -> Result<ArchivedImage> {
        let bytes = self.blob(descriptor, MAX_MANIFEST_BYTES)?;
        let manifest = match Document::from_json(&bytes) {
            Ok(Document::Manifest(manifest)) => manifest,
            Ok(Document::Index(_)) => return Err(self.unreadable(&descriptor.digest, "it is an index")),
            Err(why) => return Err(self.unreadable(&descriptor.digest, &why)),
        };
        if !media_type::is_config(&manifest.config.media_type) {
            return Err(self.unreadable(
                &descriptor.digest,
                &format!("it is no image but `{}`", manifest.config.media_type.escape_debug()),
            ));
        }
        let config = self.blob(&manifest.config, MAX_CONFIG_BYTES)?;
        let layers = manifest.layers.into_iter().map(|descriptor| {
            let path = blob_path(&descriptor.digest);
            ArchivedLayer { descriptor, path }
        });
        self.checked(Some(bytes), config, layers.collect())
    }

    fn docker_image(&self, selector: &Selector) -> Result<ArchivedImage> {
        let wrong =
            |why: String| Diagnostic::error(format!("`manifest.json` of `{}` cannot be read: {why}", self.name));
        let Some(table) = self.read("manifest.json", MAX_MANIFEST_BYTES)? else {
            return Err(self.missing("manifest.json"));
        };
        let mut images: Vec<DockerImage> = serde_json::from_slice(&table).map_err(|error| wrong(error.to_string()))?;
        match selector {
            Selector::Only => {}
            Selector::Name(wanted) => {
                let is_it = |tag: &String| tag == wanted || is_same_reference(tag, wanted);
                images.retain(|image| image.repo_tags.iter().flatten().any(is_it));
            }
            Selector::Digest(_) => {
                return Err(Diagnostic::error(format!(
                    "`{}` is a docker archive: it has no manifest digests",
                    self.name
                )));
            }
        }
        let image = match images.len() {
            1 => images.remove(0),
            0 => return Err(Diagnostic::error(format!("`{}` has no such image", self.name))),
            _ => return Err(Diagnostic::error(format!("`{}` has several images; name one", self.name))),
        };
        let config = self.read(&image.config, MAX_CONFIG_BYTES)?.ok_or_else(|| self.missing(&image.config))?;
        let paths = image.layers.unwrap_or_default();
        if paths.len() > validate::MAX_LAYERS {
            return Err(wrong(format!("it has more than {} layers", validate::MAX_LAYERS)));
        }
        let mut layers = Vec::new();
        for path in paths {
            let Some((file, size_bytes)) = self.file(&path)? else { return Err(self.missing(&path)) };
            let mut reader = HashingReader::new(file);
            let mut magic = Vec::new();
            (&mut reader)
                .take(4)
                .read_to_end(&mut magic)
                .and_then(|_| io::copy(&mut reader, &mut io::sink()))
                .context(|| format!("cannot read `{path}` of `{}`", self.name))?;
            let media_type = match magic[..] {
                [0x1f, 0x8b, ..] => media_type::LAYER_GZIP,
                [0x28, 0xb5, 0x2f, 0xfd] => media_type::LAYER_ZSTD,
                _ => media_type::LAYER_TAR,
            };
            let descriptor = Descriptor::new(media_type, reader.finish().1, size_bytes);
            layers.push(ArchivedLayer { descriptor, path });
        }
        self.checked(None, config, layers)
    }

    fn checked(&self, manifest: Option<Vec<u8>>, bytes: Vec<u8>, layers: Vec<ArchivedLayer>) -> Result<ArchivedImage> {
        let config = ImageConfig::from_json(&bytes).map_err(|error| {
            Diagnostic::error(format!("the config of the image in `{}` cannot be read", self.name)).caused_by(error)
        })?;
        let descriptors: Vec<_> = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        validate::layers(&config, &descriptors)?;
        let platform = Platform::normalized(&config.os, &config.architecture, config.variant.as_deref());
        Ok(ArchivedImage { manifest, config: bytes, platform, layers })
    }

    fn index(&self, bytes: &[u8], name: &str) -> Result<Index> {
        match Document::from_json(bytes) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Manifest(_)) => {
                Err(Diagnostic::error(format!("`{name}` of `{}` is a manifest instead of an index", self.name)))
            }
            Err(why) => Err(Diagnostic::error(format!("`{name}` of `{}` cannot be read: {why}", self.name))),
        }
    }

    /// A descriptor for a blob that is known by its digest only.
    fn descriptor_of(&self, digest: &Digest) -> Result<Descriptor> {
        let Some(bytes) = self.read(&blob_path(digest), MAX_MANIFEST_BYTES)? else {
            return Err(Diagnostic::error(format!("`{}` has no image `{digest}`", self.name)));
        };
        match Document::from_json(&bytes) {
            Ok(Document::Manifest(manifest)) => Ok(Descriptor::new(manifest.media_type, *digest, bytes.len() as u64)),
            Ok(Document::Index(index)) => Ok(Descriptor::new(index.media_type, *digest, bytes.len() as u64)),
            Err(why) => Err(self.unreadable(digest, &why)),
        }
    }

    /// The bytes of a small blob, checked.
    fn blob(&self, descriptor: &Descriptor, max_size_bytes: u64) -> Result<Vec<u8>> {
        let path = blob_path(&descriptor.digest);
        let Some((file, _)) = self.file(&path)? else { return Err(self.missing(&path)) };
        let reader = VerifyingReader::new(file, descriptor.digest, descriptor.size_bytes);
        read_bounded(reader, max_size_bytes, &format!("`{path}` of `{}`", self.name))
    }

    fn read(&self, path: &str, max_size_bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some((file, _)) = self.file(path)? else { return Ok(None) };
        read_bounded(file, max_size_bytes, &format!("`{path}` of `{}`", self.name)).map(Some)
    }

    /// A regular file of the archive and its size. A path that leads out of a directory is an error.
    fn file(&self, path: &str) -> Result<Option<(Box<dyn Read + Send>, u64)>> {
        let dir = match &self.files {
            Files::Directory(dir) => dir,
            Files::Tar(tarball) => {
                return Ok(tarball.file(path).map(|(section, size)| (Box::new(section) as Box<dyn Read + Send>, size)));
            }
        };
        let cannot_open = || format!("cannot open `{}` of `{}`", path.escape_debug(), self.name);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match sys::open_beneath(dir, path, flags, resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => {
                return Err(Diagnostic::error(format!("{}: it leads out of the archive", cannot_open())));
            }
            Err(errno) => return Err(errno).context(cannot_open),
        };
        let stat = rustix::fs::fstat(&fd).context(cannot_open)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Diagnostic::error(format!("{}: it is no regular file", cannot_open())));
        }
        Ok(Some((Box::new(File::from(fd)), stat.st_size as u64)))
    }

    fn names_hint(&self, index: &Index, message: String) -> Diagnostic {
        let names: BTreeSet<_> = index.manifests.iter().filter_map(name_of).collect();
        let names: Vec<_> = names.into_iter().map(|name| format!("`{}`", name.escape_debug())).collect();
        match names.is_empty() {
            true => Diagnostic::error(message),
            false => Diagnostic::error(format!("{message} (it has {})", names.join(", "))),
        }
    }

    fn missing(&self, path: &str) -> Diagnostic {
        Diagnostic::error(format!("`{}` has no `{}`", self.name, path.escape_debug()))
    }

    fn unreadable(&self, digest: &Digest, why: &str) -> Diagnostic {
        Diagnostic::error(format!("`{digest}` of `{}` cannot be read as an image manifest: {why}", self.name))
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The most telling of an entry's names.
fn name_of(entry: &Descriptor) -> Option<&String> {
    entry.annotations.get(annotation::IMAGE_NAME).or_else(|| entry.annotations.get(annotation::REF_NAME))
}

/// Whether it has this tag or is named by this reference.
fn has_name(entry: &Descriptor, name: &str) -> bool {
    let is = |key: &str| entry.annotations.get(key).is_some_and(|value| value == name);
    let full = entry.annotations.get(annotation::IMAGE_NAME);
    is(annotation::REF_NAME) || is(annotation::IMAGE_NAME) || full.is_some_and(|full| is_same_reference(full, name))
}

fn is_same_reference(a: &str, b: &str) -> bool {
    matches!((a.parse::<Reference>(), b.parse::<Reference>()), (Ok(a), Ok(b)) if a == b)
}
