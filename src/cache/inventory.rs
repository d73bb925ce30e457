//! What the store holds that could go: items, and the objects that go with the last item that needs
//! them.
//!
//! ```text
//! step ──▶ its layer, the layer's blobs, the listing of what it copied ◀── another step, an image
//! layer of a base ──▶ its blobs        file of a URL ──▶ its blob        cache mount · git repository · record of a build
//! ```
//!
//! What an image needs does not go, whoever else needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::{Record, Records};
use crate::diag::Result;
use crate::digest::{CacheKey, ChainId, DiffId, Digest};
use crate::journal::Builds;
use crate::store::{Form, Keep, Store, StoredBlob, StoredLayer, StoredMount, StoredRepository};

/// What an item is; the words are BuildKit's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A step of a Dockerfile, or a layer of a base.
    Regular,
    /// `RUN --mount=type=cache`.
    CacheMount,
    /// A file that ADD downloaded, or a part of an image that no name has any more.
    Download,
    /// What was fetched from a git repository.
    Repository,
    /// What a build wrote.
    BuildRecord,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Regular, Self::CacheMount, Self::Download, Self::Repository, Self::BuildRecord];

    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::CacheMount => "exec.cachemount",
            Self::Download => "source.http",
            Self::Repository => "source.git.checkout",
            Self::BuildRecord => "build.record",
        }
    }
}

/// Something that can go as a whole.
#[derive(Clone, Debug)]
pub struct Item {
    pub kind: Kind,
    /// What a user types: the beginning of a digest, or of a build's ID.
    pub id: String,
    /// The step, or what else it is, for people.
    pub title: String,
    /// In seconds since the epoch; no earlier than that of what stands on it.
    pub last_used: i64,
    /// Of its own, and of the objects that it was the last to use.
    pub size_bytes: u64,
    /// Of these, what an image needs, too.
    pinned_bytes: u64,
    /// An image or another item needs some of it, too.
    pub is_shared: bool,
    /// A build that runs holds it.
    pub is_in_use: bool,
    /// How many steps stand below: of what was used at one time, what stands on the others goes first.
    depth: usize,
    pub(super) what: What,
    /// Places in [`Inventory::objects`].
    pub(super) objects: Vec<usize>,
}

impl Item {
    /// Without an object, and not in use.
    pub(super) fn new(kind: Kind, id: String, title: String, last_used: i64) -> Self {
        Self {
            kind,
            id,
            title,
            last_used,
            size_bytes: 0,
            pinned_bytes: 0,
            is_shared: false,
            is_in_use: false,
            depth: 0,
            what: What::Objects,
            objects: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Step(CacheKey),
    /// Nothing but its objects.
    Objects,
    Mount(String),
    Repository(String),
    Build(String),
}

/// Something that goes with the last item that needs it.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub what: Stored,
    pub size_bytes: u64,
    pub is_pinned: bool,
    /// How many items need it.
    pub users: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stored {
    Layer(ChainId),
    Blob(Digest),
    Listing(Digest),
}

pub struct Inventory {
    /// The longest unused first.
    pub items: Vec<Item>,
    pub(super) objects: Vec<Object>,
    /// What only images need.
    pub images_bytes: u64,
    /// Small files that say where things are, work in progress, and what is being deleted.
    pub other_bytes: u64,
    /// What is made or used later is not in it.
    pub(super) taken_at: SystemTime,
}

impl Inventory {
    /// Reads every record and looks at every layer and blob: for those who wait, or for the background.
    pub fn take(store: &Store) -> Result<Self> {
        if store.has_cache_mounts()? {
            // Their files may be anybody's.
            store.enter()?;
        }
        let mut draft = Draft { store, taken_at: store.present()?, items: Vec::new(), objects: BTreeMap::new() };
        let mut keep = Keep::default();
        for image in store.images()?.into_values().flatten() {
            keep.image(&image);
        }
        let forms = store.all_forms()?;
        let pinned_blobs = store.kept_blobs(&keep, &forms)?;
        draft.add_objects(store.stored_layers()?, store.stored_blobs()?, &keep, &pinned_blobs);
        draft.add_steps(&forms)?;
        draft.add_bases(&forms);
        draft.add_downloads();
        for mount in store.cache_mounts()? {
            draft.items.push(of_mount(mount));
        }
        for repository in store.stored_repositories()? {
            draft.items.push(of_repository(repository));
        }
        draft.add_builds()?;
        Ok(draft.finish())
    }

    /// Everything in the store.
    pub fn total_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.size_bytes).sum::<u64>() + self.images_bytes + self.other_bytes
    }

    /// What is free of an item when everything goes that could.
    pub fn reclaimable_bytes(&self, item: &Item) -> u64 {
        if item.is_in_use { 0 } else { item.size_bytes - item.pinned_bytes }
    }
}

/// An inventory in the making. An object that no item has yet is found by what it is.
struct Draft<'a> {
    store: &'a Store,
    taken_at: SystemTime,
    items: Vec<Item>,
    objects: BTreeMap<Stored, Known>,
}

struct Known {
    size_bytes: u64,
    is_pinned: bool,
    last_used: i64,
    diff_id: Option<DiffId>,
    /// The items that need it.
    users: Vec<usize>,
}

impl Draft<'_> {
    fn add_objects(
        &mut self,
        layers: Vec<StoredLayer>,
        blobs: Vec<StoredBlob>,
        keep: &Keep,
        pinned_blobs: &BTreeSet<Digest>,
    ) {
        for StoredLayer { id, diff_id, size_bytes, last_used } in layers {
            let is_pinned = keep.layers.contains(&id);
            let known = Known { size_bytes, is_pinned, last_used, diff_id, users: Vec::new() };
            self.objects.insert(Stored::Layer(id), known);
        }
        for StoredBlob { digest, size_bytes, last_used } in blobs {
            let is_pinned = pinned_blobs.contains(&digest);
            let known = Known { size_bytes, is_pinned, last_used, diff_id: None, users: Vec::new() };
            self.objects.insert(Stored::Blob(digest), known);
        }
    }

    /// Notes that the next item needs this, if it is there.
    fn need(&mut self, what: &Stored) {
        if let Some(known) = self.objects.get_mut(what) {
            known.users.push(self.items.len());
        }
    }

    fn need_blobs(&mut self, diff_id: &DiffId, forms: &BTreeMap<DiffId, Vec<Form>>) {
        for form in forms.get(diff_id).into_iter().flatten() {
            self.need(&Stored::Blob(form.digest));
        }
    }

    fn add_steps(&mut self, forms: &BTreeMap<DiffId, Vec<Form>>) -> Result<()> {
        let records = Records::of(self.store).all()?;
        let (times, depths) = (times_of_use(&records), depths(&records));
        for (((key, record, _), last_used), depth) in records.iter().zip(&times).zip(depths) {
            if let Some(layer) = record.layer {
                self.need(&Stored::Layer(ChainId::extend(parent(record).as_ref(), &layer.diff_id)));
                if parent(record).is_some() {
                    self.need(&Stored::Layer(ChainId::extend(None, &layer.diff_id)));
                }
                self.need_blobs(&layer.diff_id, forms);
            }
            if let Some(files) = record.facts.get("files").and_then(|files| files.parse::<Digest>().ok()) {
                let listing = Stored::Listing(files);
                if !self.objects.contains_key(&listing)
                    && let Some(size_bytes) = self.store.record_size("files", &files.hex())
                {
                    let known =
                        Known { size_bytes, is_pinned: false, last_used: *last_used, diff_id: None, users: Vec::new() };
                    self.objects.insert(listing.clone(), known);
                }
                self.need(&listing);
            }
            let item = Item::new(Kind::Regular, key.hex(), record.title.clone(), *last_used);
            self.items.push(Item { depth, what: What::Step(*key), ..item });
            // What a step stands on is needed as long as the step may be.
            if let Some(parent) = parent(record)
                && let Some(known) = self.objects.get_mut(&Stored::Layer(parent))
            {
                known.last_used = known.last_used.max(*last_used);
            }
        }
        Ok(())
    }

    /// Layers that no step made.
    fn add_bases(&mut self, forms: &BTreeMap<DiffId, Vec<Form>>) {
        let is_free = |known: &Known| known.users.is_empty() && !known.is_pinned;
        let bases: Vec<_> = self
            .objects
            .iter()
            .filter_map(|(what, known)| match what {
                Stored::Layer(id) if is_free(known) => Some((*id, known.diff_id, known.last_used)),
                _ => None,
            })
            .collect();
        for (id, diff_id, last_used) in bases {
            self.need(&Stored::Layer(id));
            if let Some(diff_id) = diff_id {
                self.need_blobs(&diff_id, forms);
            }
            self.add_plain(Kind::Regular, id.hex(), "a layer of a base".into(), last_used);
        }
        // Bases that were fetched and are not unpacked.
        for (diff_id, forms) in forms {
            let blobs: Vec<_> = forms.iter().map(|form| Stored::Blob(form.digest)).collect();
            let known = blobs.iter().filter_map(|blob| self.objects.get(blob)).filter(|known| is_free(known));
            let Some(last_used) = known.map(|known| known.last_used).max() else { continue };
            for blob in blobs {
                if self.objects.get(&blob).is_some_and(is_free) {
                    self.need(&blob);
                }
            }
            self.add_plain(Kind::Regular, diff_id.hex(), "a layer of a base, not unpacked".into(), last_used);
        }
    }

    /// Blobs that nothing else is known about.
    fn add_downloads(&mut self) {
        let is_free = |(what, known): &(&Stored, &Known)| {
            matches!(what, Stored::Blob(_)) && known.users.is_empty() && !known.is_pinned
        };
        let free: Vec<_> =
            self.objects.iter().filter(is_free).map(|(what, known)| (what.clone(), known.last_used)).collect();
        for (what, last_used) in free {
            self.need(&what);
            if let Stored::Blob(digest) = what {
                self.add_plain(
                    Kind::Download,
                    digest.hex(),
                    "a fetched file, or a part of an image without a name".into(),
                    last_used,
                );
            }
        }
    }

    fn add_builds(&mut self) -> Result<()> {
        for found in Builds::of(self.store).newest(usize::MAX)? {
            let title = format!("build of {}", found.build.name());
            let item = Item::new(Kind::BuildRecord, found.id, title, found.build.head.started_ms / 1000);
            self.items.push(Item {
                size_bytes: found.dir.size_bytes(),
                is_in_use: found.dir.is_running(),
                what: What::Build(found.dir.name.clone()),
                ..item
            });
        }
        Ok(())
    }

    fn add_plain(&mut self, kind: Kind, id: String, title: String, last_used: i64) {
        self.items.push(Item::new(kind, id, title, last_used));
    }

    /// Gives every object to the item that used it last, which is the last to let it go.
    fn finish(mut self) -> Inventory {
        let (mut objects, mut images_bytes, mut listed_bytes) = (Vec::new(), 0, 0);
        for (what, known) in self.objects {
            let place = objects.len();
            let Known { size_bytes, is_pinned, mut users, .. } = known;
            users.dedup();
            for user in &users {
                let item = &mut self.items[*user];
                item.objects.push(place);
                item.is_shared |= is_pinned || users.len() > 1;
            }
            match users.iter().max_by_key(|user| self.items[**user].last_used) {
                Some(last) => {
                    let item = &mut self.items[*last];
                    item.size_bytes += size_bytes;
                    item.pinned_bytes += if is_pinned { size_bytes } else { 0 };
                    item.is_in_use |= match &what {
                        Stored::Layer(id) => self.store.is_layer_held(id),
                        Stored::Blob(digest) => self.store.is_blob_held(digest),
                        Stored::Listing(_) => false,
                    };
                }
                None => images_bytes += size_bytes,
            }
            if matches!(what, Stored::Listing(_)) {
                listed_bytes += size_bytes;
            }
            objects.push(Object { what, size_bytes, is_pinned, users: users.len() });
        }
        self.items
            .sort_by(|a, b| a.last_used.cmp(&b.last_used).then(b.depth.cmp(&a.depth)).then_with(|| a.id.cmp(&b.id)));
        let small = self.store.size_below(&["cache", "files", "forms", "images", "partial", "tmp", "trash"]);
        Inventory {
            items: self.items,
            objects,
            images_bytes,
            other_bytes: small.saturating_sub(listed_bytes),
            taken_at: self.taken_at,
        }
    }
}

fn of_mount(mount: StoredMount) -> Item {
    let title = format!("cache mount {}", mount.id.strip_prefix('/').unwrap_or(&mount.id));
    Item {
        size_bytes: mount.size_bytes,
        is_in_use: mount.is_in_use,
        what: What::Mount(mount.folder.clone()),
        ..Item::new(Kind::CacheMount, mount.folder, title, mount.last_used)
    }
}

fn of_repository(repository: StoredRepository) -> Item {
    Item {
        size_bytes: repository.size_bytes,
        is_in_use: repository.is_in_use,
        what: What::Repository(repository.folder.clone()),
        ..Item::new(Kind::Repository, repository.folder, repository.remote, repository.last_used)
    }
}

pub(super) fn parent(record: &Record) -> Option<ChainId> {
    record.facts.get("parent").and_then(|parent| parent.parse().ok())
}

/// How many steps with layers each step stands on, as far as they are known.
fn depths(records: &[(CacheKey, Record, i64)]) -> Vec<usize> {
    let below: BTreeMap<ChainId, Option<ChainId>> = records
        .iter()
        .filter_map(|(_, record, _)| {
            let parent = parent(record);
            Some((ChainId::extend(parent.as_ref(), &record.layer?.diff_id), parent))
        })
        .collect();
    // A chain is a hash of the one below: it never leads back to itself.
    let depth =
        |record: &Record| std::iter::successors(parent(record), |chain| below.get(chain).copied().flatten()).count();
    records.iter().map(|(_, record, _)| depth(record)).collect()
}

/// When each step was last used: when it was, or when one was that stands on it. Without the step its
/// children would never be found again.
fn times_of_use(records: &[(CacheKey, Record, i64)]) -> Vec<i64> {
    let mut by_result: BTreeMap<ChainId, Vec<usize>> = BTreeMap::new();
    for (place, (_, record, _)) in records.iter().enumerate() {
        let result = match record.layer {
            Some(layer) => Some(ChainId::extend(parent(record).as_ref(), &layer.diff_id)),
            None => parent(record),
        };
        if let Some(result) = result {
            by_result.entry(result).or_default().push(place);
        }
    }
    let mut times: Vec<i64> = records.iter().map(|(_, _, last_hit)| *last_hit).collect();
    let mut pending: Vec<usize> = (0..records.len()).collect();
    while let Some(place) = pending.pop() {
        let below = parent(&records[place].1).and_then(|parent| by_result.get(&parent));
        for other in below.into_iter().flatten() {
            if times[*other] < times[place] {
                times[*other] = times[place];
                pending.push(*other);
            }
        }
    }
    times
}
