//! The cache: keys of named facts, records of results, and why a step missed.
//!
//! ```text
//! step ── facts ──▶ Facts ── SHA-256 ──▶ CacheKey ── look up ──▶ Record (result, times, the facts)
//!                     └────────── differ from the nearest record's ──▶ why it missed
//! ```
//!
//! A key is made of nothing but facts that `explain` can show. What an image says of itself is never
//! one of them: only digests computed here are.

pub mod explain;
pub mod fact;
mod cap;
mod inventory;
mod parcel;
mod policy;
mod prune;
pub mod record;

pub use cap::{Cap, collect};
pub use explain::{Difference, Reason};
pub use fact::Facts;
pub use inventory::{Inventory, Item, Kind};
pub use parcel::{Contents, receive, send};
pub use policy::{Filter, Grounds, Limit, Policy};
pub use prune::{Report, prune};
pub use record::{LayerResult, Record, Records};
