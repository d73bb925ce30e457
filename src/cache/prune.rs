//! Making room: what goes is chosen from an inventory, and goes unless somebody began to use it.

use std::collections::BTreeSet;

use super::inventory::{Inventory, Item, Stored, What};
use super::policy::{self, Grounds, Policy};
use crate::diag::Result;
use crate::digest::{CacheKey, Digest};
use crate::store::{Action, Keep, Store};

/// What a prune did, or would do.
#[derive(Debug)]
pub struct Report {
    /// What goes, and why; the longest unused first.
    pub items: Vec<(Item, Grounds)>,
    /// Of everything that goes.
    pub freed_bytes: u64,
    /// What was to go and stays, since a build began to use it.
    pub in_use: u64,
    /// What stays.
    pub left_bytes: u64,
}

/// Removes what `policy` says, but nothing that an image needs or a running build uses. With
/// [`Action::Tell`] nothing changes. The space is free after [`Store::empty_trash`].
pub fn prune(store: &Store, policy: &Policy, action: Action) -> Result<Report> {
    if action == Action::Remove {
        store.enter()?;
    }
    let inventory = Inventory::take(store)?;
    let chosen = policy::choose(&inventory, policy, store.free_bytes());
    let mut users: Vec<usize> = inventory.objects.iter().map(|object| object.users).collect();
    for (place, _) in &chosen {
        for object in &inventory.items[*place].objects {
            users[*object] -= 1;
        }
    }
    let mut report = Report { items: Vec::new(), freed_bytes: 0, in_use: 0, left_bytes: 0 };
    for (place, reason) in &chosen {
        let item = &inventory.items[*place];
        let has_gone = match &item.what {
            What::Objects => true,
            What::Step(key) => {
                if action == Action::Remove {
                    store.remove_record("cache", &key.hex())?;
                }
                true
            }
            What::Mount(folder) => action == Action::Tell || store.remove_cache_mount(folder)?,
            What::Repository(folder) => action == Action::Tell || store.remove_repository(folder)?,
            What::Build(name) => action == Action::Tell || store.remove_build(name)?,
        };
        if !has_gone {
            report.in_use += 1;
            continue;
        }
        if matches!(item.what, What::Mount(_) | What::Repository(_) | What::Build(_)) {
            report.freed_bytes += item.size_bytes;
        }
        report.items.push((item.clone(), *reason));
    }
    let mut keep = Keep::default();
    for (object, users) in inventory.objects.iter().zip(&users) {
        let is_kept = object.is_pinned || *users > 0;
        match object.what {
            Stored::Layer(id) if is_kept => drop(keep.layers.insert(id)),
            Stored::Blob(digest) if is_kept => drop(keep.blobs.insert(digest)),
            Stored::Listing(digest) if !is_kept => {
                report.freed_bytes += object.size_bytes;
                if action == Action::Remove {
                    store.remove_record("files", &digest.hex())?;
                }
            }
            _ => {}
        }
    }
    // What was made or found since it was looked at is not in the inventory, and stays.
    let pruned = store.prune(&keep, Some(inventory.taken_at), action)?;
    report.freed_bytes += pruned.layers.size_bytes + pruned.blobs.size_bytes;
    report.in_use += pruned.in_use;
    report.left_bytes = inventory.total_bytes().saturating_sub(report.freed_bytes);
    if action == Action::Remove {
        remove_stale(store)?;
    }
    Ok(report)
}

/// Small files that lead nowhere any more: pointers to records that are gone.
fn remove_stale(store: &Store) -> Result<()> {
    let known: BTreeSet<String> = store.records("cache")?.into_iter().collect();
    for folder in ["cache/op", "cache/slot"] {
        for name in store.records(folder)? {
            let key = store.read_record(folder, &name)?.and_then(|bytes| String::from_utf8(bytes).ok());
            let key = key.and_then(|hex| Digest::from_hex(&hex)).map(CacheKey::new);
            // One that was made just now is not among the known.
            let leads_somewhere = match key {
                Some(key) => known.contains(&key.hex()) || store.record_time("cache", &key.hex())?.is_some(),
                None => false,
            };
            if !leads_somewhere {
                store.remove_record(folder, &name)?;
            }
        }
    }
    Ok(())
}
