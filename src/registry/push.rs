//! From blobs in the store to an image in a registry: blobs first, then manifests, the name last, so that
//! nobody ever finds a name for what is not there.

use std::collections::BTreeMap;
use std::io::Read;

use ureq::http::{Method, Uri, header};

use super::auth::Asked;
use super::http::{Answer, Body, Call};
use super::{Client, Package, Scope, complaint, origin};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::Digest;
use crate::image::Reference;
use crate::image::archive::{LayerBlob, VerifyingReader};
use crate::image::manifest::{Descriptor, media_type};
use crate::parallel;
use crate::progress::{Meter, Metered};
use crate::store::Store;

/// How often one blob is tried in a row, without [`PROGRESS_BYTES`] between.
const MAX_UPLOADS: u32 = 3;
const PROGRESS_BYTES: u64 = 1 << 20;

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

/// A blob of which the registry has a part.
struct Upload {
    /// Where the rest goes.
    location: Uri,
    sent_bytes: u64,
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
        let (mut uploads, mut upload) = (0, None);
        loop {
            uploads += 1;
            let sent_before = upload.as_ref().map_or(0, |upload: &Upload| upload.sent_bytes);
            match self.upload(blob, &mut upload) {
                Ok(()) => return origin::note(self.store, blob.descriptor(), &name),
                Err(error) if self.client.is_canceled() => return Err(error),
                // One that comes further each time comes to its end.
                Err(_) if self.goes_on(&mut upload) > sent_before + PROGRESS_BYTES => uploads = 1,
                Err(error) if uploads == MAX_UPLOADS => return Err(error),
                Err(_) => {}
            }
            self.client.http.wait(self.client.http.pause() * uploads);
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

    /// Sends what the registry has not got of the blob. Where that fails, `upload` says what may go on.
    fn upload(&self, blob: &Blob<'_>, upload: &mut Option<Upload>) -> Result<()> {
        let Descriptor { digest, size_bytes, .. } = blob.descriptor();
        let Upload { location, sent_bytes } = match upload.take() {
            Some(earlier) => earlier,
            None => Upload { location: self.begin()?, sent_bytes: 0 },
        };
        let reader = |from: u64| -> Result<Box<dyn Read>> {
            let mut inner: Box<dyn Read> = match blob {
                Blob::Bytes(_, bytes) => Box::new(*bytes),
                Blob::Layer(layer) => Box::new(VerifyingReader::new((layer.open)()?, *digest, *size_bytes)),
            };
            std::io::copy(&mut (&mut inner).take(from), &mut std::io::sink())
                .context(|| format!("cannot read blob `{digest}`"))?;
            Ok(Box::new(Metered { inner, meter: self.meter }))
        };
        let send = |method: Method, url: &Uri, from: u64, range: bool| {
            let sent = self.client.ask(&self.scope, || {
                let call = Call::new(method.clone(), url.clone())
                    .with(header::CONTENT_TYPE, "application/octet-stream")
                    .body(Body::Stream(reader(from)?, size_bytes - from));
                Ok(match range {
                    true => call.with(header::CONTENT_RANGE, format!("{from}-{}", size_bytes - 1)),
                    false => call,
                })
            });
            self.answer(sent?)
        };
        let refused = |answer: Answer| {
            Diagnostic::error(format!("the registry does not take blob `{digest}`")).caused_by(complaint(answer))
        };
        let with_digest = |location: &Uri| {
            let separator = if location.query().is_some() { '&' } else { '?' };
            self.client.http.join(location, &format!("{location}{separator}digest={digest}"))
        };
        // An answer ends the upload, whatever it is; silence does not.
        *upload = Some(Upload { location: location.clone(), sent_bytes });
        let put = if sent_bytes == 0 {
            send(Method::PUT, &with_digest(&location)?, 0, false)?
        } else {
            let mut next = location.clone();
            if sent_bytes < *size_bytes {
                let patched = send(Method::PATCH, &location, sent_bytes, true)?;
                match (patched.status, patched.header(header::LOCATION)) {
                    (202, Some(further)) => next = self.client.http.join(&patched.url, further)?,
                    _ => {
                        *upload = None;
                        return Err(refused(patched));
                    }
                }
            }
            send(Method::PUT, &with_digest(&next)?, *size_bytes, false)?
        };
        *upload = None;
        match put.is_success() {
            true => Ok(()),
            false => Err(refused(put)),
        }
    }

    /// Where to send a blob.
    fn begin(&self) -> Result<Uri> {
        let begin = || Ok(Call::new(Method::POST, self.client.url(&self.scope, "blobs/uploads/")?));
        let begun = self.answer(self.client.ask(&self.scope, begin)?)?;
        match (begun.status, begun.header(header::LOCATION)) {
            (202, Some(location)) => self.client.http.join(&begun.url, location),
            _ => Err(Diagnostic::error("the registry takes no blobs").caused_by(complaint(begun))),
        }
    }

    /// Asks how far an upload came that broke off. One that the registry does not know any more is none.
    fn goes_on(&self, upload: &mut Option<Upload>) -> u64 {
        let Some(earlier) = upload.take() else { return 0 };
        let asked = self.client.ask(&self.scope, || Ok(Call::new(Method::GET, earlier.location.clone())));
        let Ok(Asked::Answered(answer)) = asked else { return 0 };
        // `0-0` is said of nothing; a single byte is not worth to be told apart.
        let last = answer.header(header::RANGE).and_then(|range| range.rsplit('-').next()?.trim().parse::<u64>().ok());
        let Some(last) = last.filter(|last| *last > 0 && answer.status == 204) else { return 0 };
        let location = match answer.header(header::LOCATION) {
            Some(location) => self.client.http.join(&answer.url, location).ok(),
            None => Some(earlier.location),
        };
        *upload = location.map(|location| Upload { location, sent_bytes: last + 1 });
        upload.as_ref().map_or(0, |upload| upload.sent_bytes)
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
