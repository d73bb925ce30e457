//! Records of results on disk.
//!
//! ```text
//! cache/<2 hex>/<key>          Record, JSON; its mtime is the last hit, to within the hour
//! cache/op/<2 hex>/<hash>      the newest key of this op, whatever its parent
//! cache/slot/<2 hex>/<hash>    the newest key at this place of this Dockerfile
//! ```
//!
//! A record that cannot be read or parsed, or whose facts do not hash to its key, is a miss.

use serde::{Deserialize, Serialize};

use crate::cache::Facts;
use crate::diag::Result;
use crate::digest::{CacheKey, DiffId, Digest, TreeDigest};
use crate::progress::Usage;
use crate::store::Store;

/// What a step left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub facts: Facts,
    /// The step as the user knows it, as in `RUN make`.
    pub title: String,
    /// `None`: the step changed nothing.
    pub layer: Option<LayerResult>,
    /// RFC 3339, UTC: becomes `created` of the history entry.
    pub created: String,
    /// How long it took to execute.
    pub elapsed_ms: u64,
    /// What its processes used; `None` where none ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerResult {
    pub diff_id: DiffId,
    pub tree: TreeDigest,
    /// Of its regular files.
    pub size_bytes: u64,
}

/// The cache directory of a store.
#[derive(Clone, Copy)]
pub struct Records<'a> {
    store: &'a Store,
}

impl<'a> Records<'a> {
    pub fn of(store: &'a Store) -> Self {
        Self { store }
    }

    /// The record of `key`; marks it as hit now.
    pub fn hit(self, key: &CacheKey) -> Result<Option<Record>> {
        Ok(parse(self.store.use_record("cache", &key.hex())?, key))
    }

    /// The record of `key`, without a trace.
    pub fn peek(self, key: &CacheKey) -> Result<Option<Record>> {
        Ok(parse(self.store.read_record("cache", &key.hex())?, key))
    }

    /// Publishes a record and makes it the nearest one for its op and its slot.
    pub fn put(self, record: &Record, slot: &str) -> Result<CacheKey> {
        let key = record.facts.key();
        // A struct of strings and numbers always serialises.
        #[allow(clippy::unwrap_used)]
        let bytes = serde_json::to_vec(record).unwrap();
        self.store.write_record("cache", &key.hex(), &bytes)?;
        let op = record.facts.get("op").unwrap_or_default();
        self.point("cache/op", op, &key)?;
        self.point("cache/slot", slot, &key)?;
        Ok(key)
    }

    /// The earlier record that `facts` are best compared with: the newest of the same op or the
    /// newest at the same slot, whichever differs in fewer facts.
    pub fn nearest(self, facts: &Facts, slot: &str) -> Result<Option<Record>> {
        let op = facts.get("op").unwrap_or_default();
        let by_op = self.newest_of_op(op)?;
        let by_slot = self.pointed_to("cache/slot", slot)?;
        let distance = |record: &Record| super::explain::differences(&record.facts, facts, &["parent"]).len();
        Ok([by_op, by_slot].into_iter().flatten().min_by_key(distance))
    }

    /// Whether there may be records of the same op, or one at the same slot.
    pub fn has_any_like(self, op: &str, slot: &str) -> Result<bool> {
        for (folder, name) in [("cache/op", op), ("cache/slot", slot)] {
            if self.store.read_record(folder, &Digest::of(name.as_bytes()).hex())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest record of this op, on whatever parent.
    pub fn newest_of_op(self, op: &str) -> Result<Option<Record>> {
        self.pointed_to("cache/op", op)
    }

    /// Makes `name` point to `key`. To read one costs less than to write it, and a step that runs again
    /// most often points to the same.
    fn point(self, folder: &str, name: &str, key: &CacheKey) -> Result<()> {
        let (name, key) = (Digest::of(name.as_bytes()).hex(), key.hex());
        if self.store.read_record(folder, &name)?.as_deref() == Some(key.as_bytes()) {
            return Ok(());
        }
        self.store.write_record(folder, &name, key.as_bytes())
    }

    fn pointed_to(self, folder: &str, name: &str) -> Result<Option<Record>> {
        let pointer = self.store.read_record(folder, &Digest::of(name.as_bytes()).hex())?;
        let key = pointer.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|hex| Digest::from_hex(&hex));
        match key {
            Some(key) => self.peek(&CacheKey::new(key)),
            None => Ok(None),
        }
    }

    /// Every readable record with its key, size on disk of the layer aside, and the time of its
    /// last hit in seconds since the epoch; in no particular order.
    pub fn all(self) -> Result<Vec<(CacheKey, Record, i64)>> {
        let mut records = Vec::new();
        for name in self.store.records("cache")? {
            let Some(key) = Digest::from_hex(&name).map(CacheKey::new) else { continue };
            if let Some(record) = self.peek(&key)?
                && let Some(last_hit) = self.store.record_time("cache", &name)?
            {
                records.push((key, record, last_hit));
            }
        }
        Ok(records)
    }
}

/// The record in these bytes, if it is that of `key`.
fn parse(bytes: Option<Vec<u8>>, key: &CacheKey) -> Option<Record> {
    let record = serde_json::from_slice::<Record>(&bytes?).ok()?;
    (record.facts.key() == *key).then_some(record)
}
