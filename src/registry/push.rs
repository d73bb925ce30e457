//! From blobs in the store to an image in a registry: blobs first, then manifests, the name last, so that
//! nobody ever finds a name for what is not there.

use std::collections::BTreeMap;

use ureq::http::{Method, header};

use super::auth::Asked;
use super::http::{Answer, Body, Call};
use super::{Client, Package, Scope, complaint, origin};
use crate::diag::{Diagnostic, Result};
use crate::digest::Digest;
use crate::image::Reference;
use crate::image::archive::{LayerBlob, VerifyingReader};
use crate::image::manifest::{Descriptor, media_type};
use crate::parallel;
use crate::progress::{Meter, Metered};
use crate::store::Store;

/// How often one blob is tried.
const MAX_UPLOADS: u32 = 3;

/// One image, complete. The manifest's descriptor says its platform.
pub(super) struct PushedImage<'a> {
    pub manifest: (Descriptor, Vec<u8>),
    pub config: Vec<u8>,
    pub layers: Vec<LayerBlob<'a>>,
}

/// Pushes everything the registry lacks and gives it the name `reference`, which has a tag. Blobs are
/// checked as they are read.
pub fn push(
    client: &Client,
    store: &Store,
    package: &Package<'_>,
    reference: &Reference,
    meter: &Meter<'_>,
) -> Result<()> {
    let wrong = |error: Diagnostic| Diagnostic {
        message: format!("cannot push `{}`: {}", reference.familiar(), error.message),
        ..error
    };
    let Some(tag) = &reference.tag else { return Err(wrong(Diagnostic::error("a name to push to has a tag"))) };
    let scope = client.scope_of_push(reference).map_err(wrong)?;
    let pusher = Pusher { client, store, reference, scope, meter };
    let mut blobs: BTreeMap<Digest, Blob<'_>> = BTreeMap::new();
    for image in &package.images {
        let config = Descriptor::of(media_type::CONFIG, &image.config);
        blobs.insert(config.digest, Blob::Bytes(config, &image.config));
        blobs.extend(image.layers.iter().map(|layer| (layer.descriptor.digest, Blob::Layer(layer))));
    }
    let blobs: Vec<Blob<'_>> = blobs.into_values().collect();
    parallel::each(&blobs, parallel::TRANSFERS, |blob| pusher.blob(blob)).map_err(wrong)?;
    if let Some((index, bytes)) = &package.index {
        for PushedImage { manifest: (descriptor, bytes), .. } in &package.images {
            pusher.manifest(&descriptor.digest.to_string(), descriptor, bytes).map_err(wrong)?;
        }
        pusher.manifest(tag, index, bytes).map_err(wrong)
    } else {
        let (descriptor, bytes) = &package.images[0].manifest;
        pusher.manifest(tag, descriptor, bytes).map_err(wrong)
    }
}

enum Blob<'a> {
    Bytes(Descriptor, &'a [u8]),
    Layer(&'a LayerBlob<'a>),
}

impl Blob<'_> {
    fn descriptor(&self) -> &Descriptor {
        match self {
            Self::Bytes(descriptor, _) => descriptor,
            Self::Layer(layer) => &layer.descriptor,
        }
    }
}

struct Pusher<'a> {
    client: &'a Client,
    store: &'a Store,
    reference: &'a Reference,
    scope: Scope,
    meter: &'a Meter<'a>,
}

impl Pusher<'_> {
    fn blob(&self, blob: &Blob<'_>) -> Result<()> {
        let Descriptor { digest, size_bytes, .. } = blob.descriptor();
        let name = self.reference.name();
        let url = || self.client.url(&self.scope, &format!("blobs/{digest}"));
        let there = self.answer(self.client.ask(&self.scope, || Ok(Call::new(Method::HEAD, url()?)))?)?;
        if there.status == 200 || self.mount(digest)? {
            return origin::note(self.store, blob.descriptor(), &name);
        }
        self.meter.expect(*size_bytes);
        let mut uploads = 0;
        loop {
            uploads += 1;
            match self.upload(blob) {
                Ok(()) => return origin::note(self.store, blob.descriptor(), &name),
                Err(error) if uploads == MAX_UPLOADS || self.client.is_canceled() => return Err(error),
                Err(_) => self.client.http.wait(self.client.http.pause() * uploads),
            }
        }
    }

    /// Has the registry take the blob from another repository that had it. Whether it did.
    fn mount(&self, digest: &Digest) -> Result<bool> {
        let prefix = format!("{}/", self.reference.registry);
        let origin = origin::of(self.store, digest)?.unwrap_or_default();
        let mut others = origin.repositories.iter().filter_map(|origin| origin.strip_prefix(&prefix));
        let Some(from) = others.rfind(|other| *other != self.reference.repository) else { return Ok(false) };
        let scope = Scope { from: Some(from.to_owned()), ..self.scope.clone() };
        let path = format!("blobs/uploads/?mount={digest}&from={from}");
        let asked = self.client.ask(&scope, || Ok(Call::new(Method::POST, self.client.url(&scope, &path)?)))?;
        // An upload that was begun instead is left to the registry to forget.
        Ok(matches!(asked, Asked::Answered(answer) if answer.status == 201))
    }

    fn upload(&self, blob: &Blob<'_>) -> Result<()> {
        let Descriptor { digest, size_bytes, .. } = blob.descriptor();
        let begin = || Ok(Call::new(Method::POST, self.client.url(&self.scope, "blobs/uploads/")?));
        let begun = self.answer(self.client.ask(&self.scope, begin)?)?;
        let location = match (begun.status, begun.header(header::LOCATION)) {
            (202, Some(location)) => self.client.http.join(&begun.url, location)?,
            _ => return Err(Diagnostic::error("the registry takes no blobs").caused_by(complaint(begun))),
        };
        let separator = if location.query().is_some() { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let url = self.client.http.join(&location, &url)?;
        let asked = self.client.ask(&self.scope, || {
            let reader: Box<dyn std::io::Read> = match blob {
                Blob::Bytes(_, bytes) => Box::new(Metered { inner: *bytes, meter: self.meter }),
                Blob::Layer(layer) => {
                    let inner = VerifyingReader::new((layer.open)()?, *digest, *size_bytes);
                    Box::new(Metered { inner, meter: self.meter })
                }
            };
            Ok(Call::new(Method::PUT, url.clone())
                .with(header::CONTENT_TYPE, "application/octet-stream")
                .body(Body::Stream(reader, *size_bytes)))
        })?;
        let put = self.answer(asked)?;
        match put.is_success() {
            true => Ok(()),
            false => {
                Err(Diagnostic::error(format!("the registry does not take blob `{digest}`")).caused_by(complaint(put)))
            }
        }
    }

    fn manifest(&self, name: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let url = self.client.url(&self.scope, &format!("manifests/{name}"))?;
        self.meter.expect(bytes.len() as u64);
        let asked = self.client.ask(&self.scope, || {
            Ok(Call::new(Method::PUT, url.clone())
                .with(header::CONTENT_TYPE, descriptor.media_type.clone())
                .body(Body::Bytes(bytes)))
        })?;
        let answer = self.answer(asked)?;
        if !answer.is_success() {
            return Err(Diagnostic::error("the registry does not take the manifest").caused_by(complaint(answer)));
        }
        let said = answer.header("docker-content-digest").map(str::to_owned);
        match said {
            Some(said) if said != descriptor.digest.to_string() => Err(Diagnostic::error(format!(
                "the registry keeps the manifest as `{}` instead of `{}`",
                said.escape_debug(),
                descriptor.digest
            ))),
            _ => {
                self.meter.add(bytes.len() as u64);
                Ok(())
            }
        }
    }

    fn answer(&self, asked: Asked) -> Result<Answer> {
        match asked {
            Asked::Answered(answer) => Ok(answer),
            Asked::Refused(why) => {
                let registry = &self.reference.registry;
                Err(Diagnostic::error(format!("the registry `{registry}` does not let us"))
                    .caused_by(why)
                    .hint(format!("log in with `docker login {registry}` or `podman login {registry}`")))
            }
        }
    }
}
