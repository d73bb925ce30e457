//! Layers that are known but not here: an image is resolved by its manifest and config alone, and its
//! layers are fetched when somebody needs their files or their blobs, if ever.
//!
//! ```text
//! fetch    threads: each a blob → partial file ──▶ decompressed and hashed while it comes
//! unpack   threads: each a blob → partial file ──▶ … and made files of, layer upon layer
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::blob::BlobReader;
use super::{Client, Scope, origin};
use crate::diag::{Diagnostic, Result};
use crate::digest::{DiffId, Digest};
use crate::image::archive::LayerBlob;
use crate::image::{Descriptor, MediaTypes};
use crate::parallel;
use crate::progress::{Audience, Meter};
use crate::store::{Arrival, ImageRecord, Packing, Store};

/// The layers of some images, wherever they are; shared by threads.
pub struct Remote<'a> {
    pub client: &'a Client,
    pub store: &'a Store,
    pub audience: Audience<'a>,
    claims: Mutex<BTreeMap<DiffId, Claim>>,
    /// What a thread fetches now, and others may follow.
    underway: Mutex<BTreeMap<Digest, Arc<Arrival>>>,
}

/// That a blob holds a layer, as an image says.
#[derive(Clone)]
struct Claim {
    blob: Digest,
    /// Of the image, for whoever looks.
    image: String,
}

/// Where the blobs of an image have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the store.
    Here,
    /// There or in a registry: it may be the one they are pushed to.
    Anywhere,
}

/// A layer on its way.
pub struct Incoming {
    pub diff_id: DiffId,
    pub arrival: Arc<Arrival>,
    /// Another thread fetches it.
    is_followed: bool,
    scopes: Vec<Scope>,
    image: String,
}

impl<'a> Remote<'a> {
    pub fn of(client: &'a Client, store: &'a Store, audience: Audience<'a>) -> Self {
        Self { client, store, audience, claims: Mutex::default(), underway: Mutex::default() }
    }

    /// From now on the layers of this image, called `image`, can be asked for.
    pub fn know(&self, record: &ImageRecord, image: &str) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &record.layers {
            if let Some(blob) = layer.blob {
                claims.entry(layer.diff_id).or_insert_with(|| Claim { blob, image: image.to_owned() });
            }
        }
    }

    /// The blob that an image says holds this layer.
    pub fn blob_of(&self, diff_id: &DiffId) -> Option<Digest> {
        self.claim(diff_id).map(|claim| claim.blob)
    }

    fn claim(&self, diff_id: &DiffId) -> Option<Claim> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(diff_id).cloned()
    }

    /// What would have to be fetched to have blobs of these layers, in their order, each once. A layer
    /// that nobody knows the whereabouts of is not among them.
    fn missing(&self, diff_ids: &[DiffId]) -> Result<Vec<Incoming>> {
        let mut missing: Vec<Incoming> = Vec::new();
        for diff_id in diff_ids {
            if missing.iter().any(|other| other.diff_id == *diff_id) || self.store.has_any_form(diff_id)? {
                continue;
            }
            let Some(claim) = self.claim(diff_id) else { continue };
            let Some(origin) = origin::of(self.store, &claim.blob)? else { continue };
            let names = origin.repositories.iter().rev();
            let scopes: Vec<_> = names.flat_map(|name| self.client.scopes_of_blob(name)).collect();
            if !scopes.is_empty() {
                let arrival = Arc::new(Arrival::new(Descriptor::new(origin.media_type, claim.blob, origin.size_bytes)));
                missing.push(Incoming { diff_id: *diff_id, arrival, is_followed: false, scopes, image: claim.image });
            }
        }
        Ok(missing)
    }

    /// The same, each either begun by the caller or followed, as another thread fetches it already.
    fn begin(&self, diff_ids: &[DiffId]) -> Result<Begun<'_>> {
        let mut missing = self.missing(diff_ids)?;
        let mut underway = self.underway.lock().unwrap_or_else(PoisonError::into_inner);
        for incoming in &mut missing {
            let digest = incoming.arrival.descriptor.digest;
            match underway.get(&digest).filter(|other| !other.is_broken()) {
                Some(other) => (incoming.arrival, incoming.is_followed) = (Arc::clone(other), true),
                None => drop(underway.insert(digest, Arc::clone(&incoming.arrival))),
            }
        }
        Ok(Begun { missing, underway: &self.underway })
    }

    /// Fetches the blobs of these layers that are not in the store, and makes sure that they hold them.
    pub fn fetch(&self, diff_ids: &[DiffId]) -> Result<()> {
        self.during(diff_ids, |missing| self.verify(missing))
    }

    pub(super) fn fetch_quietly(&self, diff_ids: &[DiffId], meter: &Meter<'_>) -> Result<()> {
        let begun = self.begin(diff_ids)?;
        self.receive(&begun.missing, meter, || self.verify(&begun.missing))
    }

    fn verify(&self, missing: &[Incoming]) -> Result<()> {
        parallel::each(missing, parallel::TRANSFERS, |incoming| {
            self.store.verify_arrival(&incoming.arrival, &incoming.diff_id).map_err(|error| incoming.wrong(error))
        })
    }

    /// Fetches the blobs of these layers that are not in the store while `work` reads them as they come; shown
    /// as a step where there are any.
    pub fn during<T>(&self, diff_ids: &[DiffId], work: impl FnOnce(&[Incoming]) -> Result<T>) -> Result<T> {
        let begun = self.begin(diff_ids)?;
        let missing = &begun.missing[..];
        match missing.iter().find(|incoming| !incoming.is_followed) {
            None => work(missing),
            Some(first) => {
                let title = format!("[pull] {}", first.image);
                self.audience.show(&title, |meter| self.receive(missing, meter, || work(missing)))
            }
        }
    }

    fn receive<T>(&self, missing: &[Incoming], meter: &Meter<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let own: Vec<_> = missing.iter().filter(|incoming| !incoming.is_followed).collect();
        own.iter().for_each(|incoming| meter.expect(incoming.arrival.descriptor.size_bytes));
        let abandon = |why: &Diagnostic| own.iter().for_each(|incoming| incoming.arrival.abandon(why));
        std::thread::scope(|scope| {
            let (own, abandon) = (&own, &abandon);
            let receiver = scope.spawn(move || {
                // The others end because of it, whichever of them is told of first.
                let cause = Mutex::new(None);
                let received = parallel::each(own, parallel::TRANSFERS, |incoming| {
                    self.receive_one(incoming, meter).inspect_err(|error| {
                        cause.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
                        abandon(error);
                    })
                });
                received.map_err(|error| cause.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or(error))
            });
            let done = work();
            let is_cut = own.iter().any(|incoming| incoming.arrival.is_broken());
            if let Err(why) = &done {
                abandon(why);
            }
            let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match (done, received) {
                // Who reads of what did not come knows nothing of why.
                (Err(_), Err(why)) if is_cut => Err(why),
                (Ok(_), Err(why)) => Err(why),
                (done, _) => done,
            }
        })
    }

    fn receive_one(&self, incoming: &Incoming, meter: &Meter<'_>) -> Result<()> {
        let descriptor = &incoming.arrival.descriptor;
        let received = self.store.receive(&incoming.arrival, |offset| {
            BlobReader::new(self.client, &incoming.scopes, descriptor, meter).from(offset)
        });
        received.map_err(|error| incoming.wrong(error))
    }

    /// The blobs of stacks of layers, each bottom first; see [`Store::packed`].
    pub fn packed(
        &self,
        stacks: &[&[DiffId]],
        packing: Packing,
        wanted: Whereabouts,
    ) -> Result<Vec<Vec<LayerBlob<'_>>>> {
        // What is to be compressed anew, or cannot be named as it is, is needed here.
        let is_taken_as_it_is = !packing.is_forced && packing.media_types == MediaTypes::Oci;
        if wanted == Whereabouts::Here || !is_taken_as_it_is {
            self.fetch(&self.store.absent(stacks)?)?;
        }
        self.store.packed(stacks, packing, self.audience, &|diff_id| self.layer(diff_id))
    }

    /// The layer's blob, to be fetched when somebody opens it, and what it is. `None` where nobody knows.
    pub fn layer(&self, diff_id: &DiffId) -> Result<Option<LayerBlob<'_>>> {
        let missing = self.missing(&[*diff_id])?;
        let descriptor = missing.first().map(|incoming| incoming.arrival.descriptor.clone());
        let diff_id = *diff_id;
        Ok(descriptor.map(|descriptor| {
            let digest = descriptor.digest;
            let gone = move || Diagnostic::error(format!("blob `{digest}` is no longer in the store"));
            LayerBlob {
                descriptor,
                open: Box::new(move || {
                    let quiet = Audience { canceled: self.audience.canceled, ..Audience::nobody() };
                    quiet.show("", |meter| self.fetch_quietly(&[diff_id], meter))?;
                    Ok(Box::new(self.store.open_blob(&digest)?.ok_or_else(gone)?))
                }),
            }
        }))
    }
}

/// What a thread fetches and follows; over when dropped.
struct Begun<'a> {
    missing: Vec<Incoming>,
    underway: &'a Mutex<BTreeMap<Digest, Arc<Arrival>>>,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut underway = self.underway.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.missing.iter().filter(|incoming| !incoming.is_followed);
        for Incoming { arrival, .. } in own {
            if underway.get(&arrival.descriptor.digest).is_some_and(|other| Arc::ptr_eq(other, arrival)) {
                underway.remove(&arrival.descriptor.digest);
            }
        }
    }
}

impl Incoming {
    fn wrong(&self, error: Diagnostic) -> Diagnostic {
        Diagnostic { message: format!("cannot pull `{}`: {}", self.image, error.message), ..error }
    }
}
