//! What is worth keeping: records in use, the layers they name, and images.

use std::time::{Duration, SystemTime};

use crate::cache::Records;
use crate::diag::Result;
use crate::digest::ChainId;
use crate::store::{Action, Keep, Pruned, Store};

/// What a prune did, or would do.
#[derive(Debug)]
pub struct Report {
    /// Titles of the records that go, the longest unused first.
    pub records: Vec<String>,
    pub store: Pruned,
}

/// Removes every record last hit before `unused_since` (seconds since the epoch; `None`: every
/// record), then every layer and blob that no remaining record and no image names and that no
/// running build holds. With `is_dry_run` nothing is removed.
pub fn prune(store: &Store, unused_since: Option<i64>, is_dry_run: bool) -> Result<Report> {
    if !is_dry_run {
        store.enter()?;
    }
    let records = Records::of(store);
    let mut keep = Keep::default();
    for image in store.images()?.into_values().flatten() {
        keep.image(&image);
    }
    let mut going = Vec::new();
    for (key, record, last_hit) in records.all()? {
        if unused_since.is_none_or(|since| last_hit < since) {
            going.push((last_hit, key, record.title));
        } else if let Some(layer) = record.layer {
            let parent = record.facts.get("parent").and_then(|parent| parent.parse::<ChainId>().ok());
            keep.layers.insert(ChainId::extend(parent.as_ref(), &layer.diff_id));
            keep.layers.insert(ChainId::extend(None, &layer.diff_id));
            keep.layers.extend(parent);
            keep.diff_ids.insert(layer.diff_id);
        }
    }
    going.sort();
    let unused_since = unused_since.map(|since| SystemTime::UNIX_EPOCH + Duration::from_secs(since.max(0) as u64));
    if !is_dry_run {
        for (_, key, _) in &going {
            store.remove_record("cache", &key.hex())?;
        }
    }
    let pruned = store.prune(&keep, unused_since, if is_dry_run { Action::Tell } else { Action::Remove })?;
    Ok(Report { records: going.into_iter().map(|(_, _, title)| title).collect(), store: pruned })
}
