//! The cap on the store: builds look at a number, and only when that is too large is something counted
//! and collected.

use super::policy::{Limit, Policy};
use super::prune::{Report, prune};
use crate::diag::Result;
use crate::store::{Action, Store, Tally};

/// Counted anew after so long: what cache mounts hold is in no number.
const COUNTED_SECONDS: i64 = 24 * 3_600;
/// What did not help is not done again at once.
const COLLECTED_SECONDS: i64 = 600;

/// How large the store may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cap {
    /// [`Limit::usual`].
    #[default]
    Usual,
    None,
    Bytes(u64),
    /// Of the filesystem.
    Percent(u8),
}

impl Cap {
    pub fn limit(self, store: &Store) -> Option<Limit> {
        let max = |bytes| Some(Limit { max_used_bytes: Some(bytes), min_free_bytes: None, reserved_bytes: 0 });
        let filesystem_bytes = store.filesystem().0;
        match self {
            Self::Usual => Some(Limit::usual(filesystem_bytes)),
            Self::None => None,
            Self::Bytes(bytes) => max(bytes),
            Self::Percent(percent) => max(filesystem_bytes / 100 * u64::from(percent)),
        }
    }

    /// Whether it is time to [`collect`], at the end of a build. `now` in seconds since the epoch. Of a build
    /// that put nothing into the store it asks nothing.
    pub fn is_due(self, store: &Store, now: i64) -> Result<bool> {
        let (Some(tally), Some(limit)) = (store.add_to_tally(now)?, self.limit(store)) else { return Ok(false) };
        let total = tally.total_bytes;
        let is_too_large = total > limit.allowed_bytes(total, store.free_bytes());
        let is_recent = |since: i64, seconds: i64| (since..since + seconds).contains(&now);
        Ok((is_too_large && !is_recent(tally.collected_at, COLLECTED_SECONDS))
            || !is_recent(tally.counted_at, COUNTED_SECONDS))
    }
}

/// Counts, and brings the store below its cap.
pub fn collect(store: &Store, cap: Cap, now: i64) -> Result<Report> {
    // Without a cap it is counted all the same.
    let limit = cap.limit(store).unwrap_or(Limit { max_used_bytes: None, min_free_bytes: None, reserved_bytes: 0 });
    let policy = Policy { limit: Some(limit), ..Policy::default() };
    let report = prune(store, &policy, Action::Remove)?;
    let is_too_large = report.left_bytes > limit.allowed_bytes(report.left_bytes, store.free_bytes());
    let collected_at = if is_too_large { now } else { 0 };
    store.set_tally(&Tally { total_bytes: report.left_bytes, counted_at: now, collected_at })?;
    Ok(report)
}
