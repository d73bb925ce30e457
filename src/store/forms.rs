//! The forms of a layer: which blobs are known to hold the tar with a given diff ID. A form is
//! noted only after this program made the blob or decompressed and hashed it here; what an image
//! says about its own layers is no form.

use std::os::fd::AsFd;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Store, sealed};
use crate::diag::Result;
use crate::digest::{DiffId, Digest};

/// A blob that holds a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    pub media_type: String,
    pub digest: Digest,
    pub size_bytes: u64,
    /// How we made it (`none`, `gzip:6`), or that it came with a cache; nothing for a blob that came from
    /// elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) made_with: Option<String>,
    boot_id: String,
    is_synced: bool,
}

/// In the place of a compression.
const CARRIED: &str = "cache";
/// Made without one. It is the tar itself, so it serves as one that came from elsewhere does.
pub(super) const PLAIN: &str = "none";

impl Store {
    /// The blobs known to hold this layer, whether or not they are still there.
    pub fn forms(&self, diff_id: &DiffId) -> Result<Vec<Form>> {
        sealed::read_json(self.inner.forms.as_fd(), &diff_id.hex())
            .map(Option::unwrap_or_default)
            .map_err(|error| self.inner.error(format_args!("read the forms of `{diff_id}`"), error))
    }

    /// Whether some blob is there that holds this layer.
    pub fn has_any_form(&self, diff_id: &DiffId) -> Result<bool> {
        Ok(self.usable_form(diff_id, |_| true)?.is_some())
    }

    /// Whether a blob is there that came from elsewhere, or was all there was from the beginning, and was seen to hold
    /// this layer.
    pub fn has_original_form(&self, diff_id: &DiffId) -> Result<bool> {
        let is_original = |form: &Form| form.made_with.as_deref().is_none_or(|name| name == CARRIED || name == PLAIN);
        Ok(self.usable_form(diff_id, is_original)?.is_some())
    }

    /// Notes that a blob is a layer's on its way between caches only: images are packed as ever.
    pub fn mark_as_carried(&self, diff_id: &DiffId, form: &Form) -> Result<()> {
        self.record_form(diff_id, &Form { made_with: Some(CARRIED.into()), ..form.clone() })
    }

    /// One that came with a cache.
    pub fn carried_form(&self, diff_id: &DiffId) -> Result<Option<Form>> {
        self.usable_form(diff_id, |form| form.made_with.as_deref() == Some(CARRIED))
    }

    /// A blob that is there and holds this layer, of those that are `wanted`.
    pub(super) fn usable_form(&self, diff_id: &DiffId, wanted: impl Fn(&Form) -> bool) -> Result<Option<Form>> {
        for form in self.forms(diff_id)?.into_iter().filter(wanted) {
            if self.is_usable(diff_id, &form)? {
                return Ok(Some(form));
            }
        }
        Ok(None)
    }

    /// The form of a blob that was made with `made_with`, or came from elsewhere.
    pub(super) fn new_form(
        &self,
        media_type: String,
        digest: Digest,
        size_bytes: u64,
        made_with: Option<String>,
    ) -> Form {
        Form { media_type, digest, size_bytes, made_with, boot_id: self.inner.boot_id.clone(), is_synced: false }
    }

    /// Notes that a blob holds this layer; the caller has seen that it does.
    pub(super) fn record_form(&self, diff_id: &DiffId, form: &Form) -> Result<()> {
        let _lock = self.lock_name(format!("forms-{}", diff_id.hex()), || {})?;
        let (mut form, mut forms) = (form.clone(), self.forms(diff_id)?);
        if let Some(same) = forms.iter().find(|other| other.digest == form.digest) {
            // What comes back from where it was pushed to is still what we made.
            form.made_with = form.made_with.or_else(|| same.made_with.clone());
        }
        forms.retain(|other| {
            other.digest != form.digest && (other.made_with.is_none() || other.made_with != form.made_with)
        });
        forms.push(form);
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
