//! From a reference to an image in the store: manifest or index, config, layers.

use std::collections::BTreeSet;

use ureq::http::{Method, header};

use super::auth::Asked;
use super::blob::BlobReader;
use super::http::Call;
use super::{Client, Remote, Scope, complaint, origin};
use crate::diag::{Diagnostic, Result};
use crate::digest::Digest;
use crate::image::manifest::{
    Descriptor, Document, Index, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Manifest, media_type, read_bounded,
};
use crate::image::{ImageConfig, Platform, Reference, validate};
use crate::progress::Meter;
use crate::store::{ImageLayer, ImageRecord, Store};

const MAX_INDEX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// Everything we can read, what we like best first.
const ACCEPT: [&str; 4] =
    [media_type::INDEX, media_type::MANIFEST, media_type::DOCKER_LIST, media_type::DOCKER_MANIFEST];

/// Finds out what the image for `platform` is. Its layers can be had of a [`Remote`] when they are needed.
/// The caller gives it its name.
pub fn resolve(
    client: &Client,
    store: &Store,
    reference: &Reference,
    platform: &Platform,
    meter: &Meter<'_>,
) -> Result<ImageRecord> {
    let puller = Puller { client, store, reference, scopes: client.scopes(reference)?, meter };
    let (digest, bytes, document) = puller.root()?;
    let (bytes, manifest) = match document {
        Document::Manifest(manifest) => (bytes, manifest),
        Document::Index(index) => {
            store.put_blob(&bytes)?;
            puller.choose(&digest, index, platform)?
        }
    };
    puller.image(&bytes, &manifest, platform)
}

/// Resolves the image, fetches the blobs of its layers, and gives it its name. They stay as they are packed; each is known to
/// be the one the config claims. What the store has is not fetched again.
pub fn pull(remote: &Remote<'_>, reference: &Reference, platform: &Platform) -> Result<ImageRecord> {
    let title = format!("[pull] {}", reference.familiar());
    remote.audience.show(&title, |meter| {
        let record = resolve(remote.client, remote.store, reference, platform, meter)?;
        remote.know(&record, &reference.familiar());
        let diff_ids: Vec<_> = record.layers.iter().map(|layer| layer.diff_id).collect();
        remote.fetch_quietly(&diff_ids, meter)?;
        remote.store.put_image(reference, &record)?;
        Ok(record)
    })
}

struct Puller<'a> {
    client: &'a Client,
    store: &'a Store,
    reference: &'a Reference,
    /// Where it may be had, the best first.
    scopes: Vec<Scope>,
    meter: &'a Meter<'a>,
}

impl Puller<'_> {
    /// What the reference names.
    fn root(&self) -> Result<(Digest, Vec<u8>, Document)> {
        if let Some(digest) = self.reference.digest {
            let (bytes, document) = self.manifest(&digest)?;
            return Ok((digest, bytes, document));
        }
        let tag = self.reference.tag.as_deref().unwrap_or("latest");
        let bytes = match self.unchanged(tag)? {
            Some(bytes) => bytes,
            None => self.fetch(tag)?,
        };
        let document = self.parse(&bytes)?;
        Ok((Digest::of(&bytes), bytes, document))
    }

    /// What the tag stands for, if the store has it. Asking for its digest alone counts little or nothing
    /// where pulls are counted.
    fn unchanged(&self, tag: &str) -> Result<Option<Vec<u8>>> {
        if self.store.images_named(self.reference)?.is_empty() {
            return Ok(None);
        }
        let Ok(Asked::Answered(answer)) = self.ask(Method::HEAD, tag) else { return Ok(None) };
        let digest = answer.header("docker-content-digest").and_then(|digest| digest.parse().ok());
        match digest.filter(|_| answer.status == 200) {
            Some(digest) => self.store.read_blob(&digest, MAX_MANIFEST_BYTES),
            None => Ok(None),
        }
    }

    /// The manifest or index with this digest.
    fn manifest(&self, digest: &Digest) -> Result<(Vec<u8>, Document)> {
        let bytes = match self.store.read_blob(digest, MAX_MANIFEST_BYTES)? {
            Some(bytes) => bytes,
            None => self.fetch(&digest.to_string())?,
        };
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(self.error(format!("the registry sends the manifest `{actual}` instead of `{digest}`")));
        }
        let document = self.parse(&bytes)?;
        Ok((bytes, document))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Document> {
        Document::from_json(bytes).map_err(|why| self.error(format!("its manifest cannot be read: {why}")))
    }

    /// Asks one place after the other; what the last one says counts, whatever it is.
    fn ask(&self, method: Method, tag_or_digest: &str) -> Result<Asked> {
        let ask = |scope: &Scope| {
            self.client.ask(scope, || {
                let call = Call::new(method.clone(), self.client.url(scope, &format!("manifests/{tag_or_digest}"))?);
                Ok(call.with(header::ACCEPT, ACCEPT.join(", ")))
            })
        };
        let (own, mirrors) = self.scopes.split_last().ok_or_else(|| self.error("nobody has it"))?;
        for mirror in mirrors {
            match ask(mirror) {
                Ok(Asked::Answered(answer)) if answer.status == 200 => return Ok(Asked::Answered(answer)),
                Err(error) if self.client.is_canceled() => return Err(error),
                _ => {}
            }
        }
        ask(own)
    }

    fn fetch(&self, tag_or_digest: &str) -> Result<Vec<u8>> {
        let asked = self.ask(Method::GET, tag_or_digest);
        let registry = &self.reference.registry;
        let answer = match asked.map_err(|error| self.unreachable(error))? {
            Asked::Answered(answer) => answer,
            Asked::Refused(why) => {
                return Err(Diagnostic::error(format!(
                    "the registry `{registry}` does not let us have `{}`: it is private, or not there",
                    self.reference.familiar()
                ))
                .caused_by(why)
                .hint(format!(
                    "if it is private, log in with `docker login {registry}` or `podman login {registry}`"
                )));
            }
        };
        match answer.status {
            200 => {}
            404 => {
                return Err(Diagnostic::error(format!(
                    "the registry `{registry}` has no image `{}`",
                    self.reference.familiar()
                ))
                .caused_by(complaint(answer)));
            }
            _ => return Err(self.error("the registry does not give its manifest").caused_by(complaint(answer))),
        }
        let bytes = read_bounded(answer.into_reader(), MAX_MANIFEST_BYTES, "its manifest");
        let bytes = bytes.map_err(|error| Diagnostic { message: self.error(&error.message).message, ..error })?;
        self.meter.add(bytes.len() as u64);
        Ok(bytes)
    }

    /// The manifest that fits the platform best, of those an index and the indexes in it list.
    fn choose(&self, digest: &Digest, index: Index, platform: &Platform) -> Result<(Vec<u8>, Manifest)> {
        let mut level = vec![(*digest, index)];
        let mut best: Option<(usize, Descriptor)> = None;
        let (mut offered, mut count) = (BTreeSet::new(), 0);
        for _ in 0..MAX_INDEX_DEPTH {
            let mut next = Vec::new();
            for entry in std::mem::take(&mut level).into_iter().flat_map(|(_, index)| index.manifests) {
                count += 1;
                if count > MAX_MANIFESTS {
                    return Err(self.error(format!("its index lists more than {MAX_MANIFESTS} images")));
                }
                if entry.is_attestation() {
                    continue;
                }
                if media_type::is_index(&entry.media_type) {
                    match self.manifest(&entry.digest)?.1 {
                        Document::Index(index) => next.push((entry.digest, index)),
                        Document::Manifest(_) => return Err(self.error("its index is wrong about what it lists")),
                    }
                } else if media_type::is_manifest(&entry.media_type) {
                    // An index need not say what its manifests are for; their configs do.
                    let of = match &entry.platform {
                        Some(of) => of.clone(),
                        None => self.platform_of(&entry)?,
                    };
                    if let Some(fit) = platform.fit(&of)
                        && best.as_ref().is_none_or(|(best, _)| fit < *best)
                    {
                        best = Some((fit, entry));
                    }
                    offered.insert(format!("`{of}`"));
                }
            }
            level = next;
        }
        if !level.is_empty() {
            return Err(self.error("it has an index in an index in an index too many"));
        }
        let Some((_, chosen)) = best else {
            let offered: Vec<_> = offered.into_iter().collect();
            return Err(self.error(match offered.is_empty() {
                true => "its index lists no image".to_owned(),
                false => format!("there is none for `{platform}`, only for {}", offered.join(", ")),
            }));
        };
        match self.manifest(&chosen.digest)? {
            (bytes, Document::Manifest(manifest)) => Ok((bytes, manifest)),
            (_, Document::Index(_)) => Err(self.error("its index is wrong about what it lists")),
        }
    }

    fn platform_of(&self, entry: &Descriptor) -> Result<Platform> {
        match self.manifest(&entry.digest)?.1 {
            Document::Manifest(manifest) => Ok(self.config(&manifest)?.2),
            Document::Index(_) => Err(self.error("its index is wrong about what it lists")),
        }
    }

    /// The config, checked, and what it is for.
    fn config(&self, manifest: &Manifest) -> Result<(Vec<u8>, ImageConfig, Platform)> {
        let descriptor = &manifest.config;
        if !media_type::is_config(&descriptor.media_type) {
            return Err(self.error(format!("it is no image but `{}`", descriptor.media_type.escape_debug())));
        }
        let bytes = match self.store.read_blob(&descriptor.digest, MAX_CONFIG_BYTES)? {
            Some(bytes) => bytes,
            None => {
                if descriptor.size_bytes > MAX_CONFIG_BYTES {
                    return Err(self.error(format!("its config is larger than {} MiB", MAX_CONFIG_BYTES >> 20)));
                }
                let reader = BlobReader::new(self.client, &self.scopes, descriptor, self.meter);
                let bytes = read_bounded(reader, MAX_CONFIG_BYTES, "its config");
                bytes.map_err(|error| Diagnostic { message: self.error(&error.message).message, ..error })?
            }
        };
        let actual = Digest::of(&bytes);
        if actual != descriptor.digest {
            return Err(
                self.error(format!("the registry sends the config `{actual}` instead of `{}`", descriptor.digest))
            );
        }
        let config =
            ImageConfig::from_json(&bytes).map_err(|error| self.error("its config cannot be read").caused_by(error))?;
        let platform = Platform::normalized(&config.os, &config.architecture, config.variant.as_deref());
        Ok((bytes, config, platform))
    }

    fn image(&self, bytes: &[u8], manifest: &Manifest, wanted: &Platform) -> Result<ImageRecord> {
        let (config_bytes, config, platform) = self.config(manifest)?;
        validate::layers(&config, &manifest.layers).map_err(|error| self.within(error))?;
        for layer in &manifest.layers {
            origin::note(self.store, layer, &self.reference.name())?;
        }
        let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        Ok(ImageRecord {
            manifest: Some(self.store.put_blob(bytes)?),
            config: self.store.put_blob(&config_bytes)?,
            // Where there is no choice the image is taken, whatever it is for, but not called what it is not.
            platform: if wanted.fit(&platform).is_some() { wanted.clone() } else { platform },
            layers: layers
                .map(|(descriptor, diff_id)| ImageLayer { diff_id: *diff_id, blob: Some(descriptor.digest) })
                .collect(),
            created: config.created,
        })
    }

    fn error(&self, why: impl AsRef<str>) -> Diagnostic {
        Diagnostic::error(format!("cannot pull `{}`: {}", self.reference.familiar(), why.as_ref()))
    }

    fn within(&self, error: Diagnostic) -> Diagnostic {
        Diagnostic { message: self.error(&error.message).message, ..error }
    }

    fn unreachable(&self, error: Diagnostic) -> Diagnostic {
        let error = self.within(error);
        match self.client.is_canceled() {
            true => error,
            false => error.hint("without a network, give the image with `--build-context NAME=oci-layout://DIR`"),
        }
    }
}
