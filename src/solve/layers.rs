//! The layers a build uses: each opened and locked once, and held until the build is over, so that
//! no prune takes it. Those of a base are fetched and unpacked when a step needs files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Stack, StackLayer, Standing};
use crate::container::{self, Rung};
use crate::diag::Result;
use crate::digest::{ChainId, DiffId, Digest};
use crate::host::Host;
use crate::layer::node::Identity;
use crate::layer::{self, Compression, Links, Relief, Shift, Table};
use crate::parallel;
use crate::progress::Audience;
use crate::registry::{Incoming, Remote};
use crate::store::{Ahead, Layer, Store};

pub struct Layers<'a> {
    store: &'a Store,
    /// Those of bases, wherever they are.
    pub remote: Remote<'a>,
    held: Mutex<BTreeMap<ChainId, Arc<Layer>>>,
    /// What the names in layers stand for, where somebody asked.
    files: Mutex<BTreeMap<ChainId, Arc<Vec<Identity>>>>,
    ahead: Option<Ahead>,
    /// Of stacks, where somebody asked.
    reliefs: Mutex<BTreeMap<ChainId, Arc<Relief>>>,
}

/// The kernel stacks 500 layers, and each costs a little for every name that is looked up.
const MOST: usize = 128;
/// So many more are made one directory with those below.
const PART: usize = 100;

/// How many of `count` layers, from the lowest on, are to be one directory; then how many that one is
/// made from have been, and so on.
fn flat_counts(count: usize) -> impl Iterator<Item = usize> {
    let parts = if count > MOST { (count - (MOST - PART)) / PART } else { 0 };
    (1..=parts).rev().map(|part| part * PART)
}

impl<'a> Layers<'a> {
    pub fn of(host: &'a Host<'_>) -> Self {
        let remote = Remote::of(host.registry, host.store, host.audience());
        Self {
            store: host.store,
            remote,
            held: Mutex::default(),
            files: Mutex::default(),
            ahead: None,
            reliefs: Mutex::default(),
        }
    }

    /// Those of an image that is going to be exported in these forms.
    #[must_use]
    pub fn packed_ahead(self, compressions: Vec<Compression>) -> Self {
        let ahead = (!compressions.is_empty()).then(|| Ahead::new(self.store, compressions));
        Self { ahead, ..self }
    }

    pub(super) fn packs_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Has a layer of the image packed when there is time for it.
    pub(super) fn expect_packed(&self, layer: &StackLayer) {
        if let Some(ahead) = &self.ahead {
            ahead.expect(layer.diff_id, layer.id);
        }
    }

    /// The steps are done: what is being packed is waited for.
    pub fn finish_packing(&self, audience: Audience<'_>) -> Result<()> {
        self.ahead.as_ref().map_or(Ok(()), |ahead| ahead.finish(audience))
    }

    /// The layer, if it is unpacked and whole.
    pub fn get(&self, id: &ChainId) -> Result<Option<Arc<Layer>>> {
        if let Some(layer) = self.held.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(Some(Arc::clone(layer)));
        }
        Ok(self.store.layer(id)?.map(|layer| self.hold(layer)))
    }

    /// Whether the layer of a step is unpacked, or is a blob that is unpacked when it is needed.
    pub fn can_be_had(&self, id: &ChainId, diff_id: &DiffId) -> Result<bool> {
        Ok(self.get(id)?.is_some() || self.store.has_original_form(diff_id)?)
    }

    /// Keeps a layer that was just made.
    pub fn hold(&self, layer: Layer) -> Arc<Layer> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.entry(layer.id).or_insert_with(|| Arc::new(layer)))
    }

    /// Makes a layer answer to another name as well.
    pub(super) fn rename(&self, from: &ChainId, layer: Arc<Layer>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(*from, layer);
    }

    /// Directories that together show a stack, topmost first: its layers, the lowest of many as one. Those
    /// of a base that were only blobs so far, or not even here, are unpacked.
    pub fn lowers(&self, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        // The highest that is there shows all below it.
        let (mut floor, mut done, mut missing) = (None, 0, Vec::new());
        for count in flat_counts(stack.layers().len()) {
            let part = stack.lowest(count);
            floor = self.get(&part.flat_id())?;
            if floor.is_some() {
                done = count;
                break;
            }
            missing.push(part);
        }
        for part in missing.iter().rev() {
            let layers = self.unpack_all(&part.layers()[done..], floor)?;
            floor = Some(self.flatten(&part.flat_id(), &layers)?);
            done = part.layers().len();
        }
        self.unpack_all(&stack.layers()[done..], floor)
    }

    /// Layers that stand on `floor`, and that last; topmost first.
    fn unpack_all(&self, wanted: &[StackLayer], floor: Option<Arc<Layer>>) -> Result<Vec<Arc<Layer>>> {
        let mut packed = Vec::new();
        for wanted in wanted {
            if self.unpacked(wanted)?.is_none() {
                packed.push(wanted.diff_id);
            }
        }
        if !packed.is_empty() {
            self.store.enter()?;
        }
        self.remote.during(&packed, |missing| self.unpack(wanted, floor, missing))
    }

    /// Whether nothing of the stack would have to be fetched.
    pub fn are_here(&self, stack: &Stack) -> Result<bool> {
        for wanted in stack.layers() {
            if self.unpacked(wanted)?.is_none() && !self.store.has_any_form(&wanted.diff_id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all of the stack is there as files.
    pub fn are_unpacked(&self, stack: &Stack) -> Result<bool> {
        for wanted in stack.layers() {
            if self.unpacked(wanted)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bottom first: a layer is unpacked onto those below it.
    fn unpack(
        &self,
        wanted: &[StackLayer],
        floor: Option<Arc<Layer>>,
        missing: &[Incoming],
    ) -> Result<Vec<Arc<Layer>>> {
        let mut layers: Vec<Arc<Layer>> = floor.into_iter().collect();
        for wanted in wanted {
            let layer = match self.unpacked(wanted)? {
                Some(layer) => layer,
                None => {
                    let below: Vec<_> = layers.iter().rev().map(|layer| layer.dir.as_fd()).collect();
                    let StackLayer { id, diff_id } = wanted;
                    self.hold(match missing.iter().find(|incoming| incoming.diff_id == *diff_id) {
                        Some(incoming) => self.store.unpack_arrival(id, diff_id, &incoming.arrival, &below)?,
                        None => self.store.unpack_form(id, diff_id, &below)?,
                    })
                }
            };
            layers.push(layer);
        }
        layers.reverse();
        // The kernel takes no directory twice. Of one that is, the upper shows all that the lower would.
        let mut seen = BTreeSet::new();
        layers.retain(|layer| seen.insert(layer.id));
        Ok(layers)
    }

    /// A stack as the tables of its layers tell it. What these are to be made of is fetched. `None` where something has no
    /// table, or all are one directory.
    pub fn relief(&self, stack: &Stack) -> Result<Option<Arc<Relief>>> {
        let layers = stack.layers();
        if layers.len() > MOST {
            return Ok(None);
        }
        // From the highest that was asked for before, which is not asked for again, nearly always.
        let chains: Vec<_> = (1..=layers.len()).map(|count| stack.lowest(count).chain().copied()).collect();
        let (mut done, mut relief) = (0, Arc::default());
        let reliefs = || self.reliefs.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, chain) in chains.iter().enumerate().rev() {
            if let Some(found) = chain.and_then(|chain| reliefs().remove(&chain)) {
                (done, relief) = (place + 1, found);
                break;
            }
        }
        if done < layers.len() {
            let mut made = Arc::unwrap_or_clone(relief);
            for table in self.tables(&layers[done..])? {
                let Some(table) = table else { return Ok(None) };
                if made.apply(&table).is_err() {
                    return Ok(None);
                }
            }
            relief = Arc::new(made);
        }
        if let Some(Some(chain)) = chains.last() {
            reliefs().insert(*chain, Arc::clone(&relief));
        }
        Ok(Some(relief))
    }

    /// What is unpacked above the highest layer of a stack that is not, topmost first.
    pub fn unpacked_on_top(&self, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        let mut top = Vec::new();
        for layer in stack.layers().iter().rev() {
            let Some(unpacked) = self.unpacked(layer)? else { break };
            // As for lowers.
            if top.iter().all(|other: &Arc<Layer>| other.id != unpacked.id) {
                top.push(unpacked);
            }
        }
        Ok(top)
    }

    /// The tables of layers, bottom first.
    fn tables(&self, layers: &[StackLayer]) -> Result<Vec<Option<Table>>> {
        let (mut tables, mut unknown) = (BTreeMap::new(), Vec::new());
        for layer in layers {
            if self.store.has_table(&layer.diff_id)? {
                continue;
            }
            // To look through a directory takes less than to decompress a blob.
            match self.unpacked(layer)? {
                Some(unpacked) => drop(tables.insert(layer.diff_id, layer::tabulate_dir(unpacked.dir.as_fd())?)),
                None => unknown.push(layer.diff_id),
            }
        }
        self.remote.fetch(&unknown)?;
        parallel::each(&unknown, parallel::processors(), |diff_id| self.store.table(diff_id).map(drop))?;
        let take = |layer: &StackLayer| match tables.remove(&layer.diff_id) {
            Some(table) => Ok(table),
            None => self.store.table(&layer.diff_id),
        };
        layers.iter().map(take).collect()
    }

    /// A stack as one directory.
    pub fn as_one(&self, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        let layers = self.lowers(stack)?;
        if layers.len() < 2 {
            return Ok(layers);
        }
        Ok(vec![match self.get(&stack.flat_id())? {
            Some(flat) => flat,
            None => self.flatten(&stack.flat_id(), &layers)?,
        }])
    }

    /// A stack as a readable tree, mounted nowhere.
    pub fn view(&self, stack: &Stack) -> Result<OwnedFd> {
        let paths = |layers: Vec<Arc<Layer>>| layers.iter().map(|layer| layer.path.clone()).collect::<Vec<_>>();
        let lowers = paths(self.lowers(stack)?);
        let overlay = || container::overlay_detached(&lowers, None);
        // Where there are no overlays at all, or old ones that do not know these whiteouts.
        let as_one = || container::overlay_detached(&paths(self.as_one(stack)?), None);
        match lowers.len() {
            0 | 1 => overlay(),
            _ if Rung::Fuse.takes_one_layer(self.store)? => as_one(),
            _ => overlay().or_else(|_| as_one()),
        }
    }

    /// The same layer with the owners that steps have outside.
    pub fn shifted(&self, layer: &Layer) -> Result<Arc<Layer>> {
        let id = ChainId::new(Digest::of(format!("shifted {}", layer.id).as_bytes()));
        if let Some(shifted) = self.get(&id)? {
            return Ok(shifted);
        }
        let draft = self.store.draft()?;
        layer::transfer(layer.dir.as_fd(), draft.upper(), Links::Kept, container::shift_of_steps())?;
        Ok(self.hold(draft.commit_flat(&id)?))
    }

    /// The same layers, but for the files that have several names in them: there each name is a file of its own. To
    /// `fuse-overlayfs` they are one, and what is written to one name it may show under another.
    pub fn parted(&self, layers: Vec<Arc<Layer>>) -> Result<Vec<Arc<Layer>>> {
        let files = layers.iter().map(|layer| self.files(layer)).collect::<Result<Vec<_>>>()?;
        let mut names: Vec<Identity> = files.iter().flat_map(|files| files.iter().copied()).collect();
        names.sort_unstable();
        let shared: BTreeSet<Identity> =
            names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        if shared.is_empty() {
            return Ok(layers);
        }
        let part = |(layer, files): (Arc<Layer>, Arc<Vec<Identity>>)| {
            let own: BTreeSet<Identity> = files.iter().filter(|file| shared.contains(file)).copied().collect();
            if own.is_empty() { Ok(layer) } else { self.part(&layer, &own) }
        };
        layers.into_iter().zip(files).map(part).collect()
    }

    fn part(&self, layer: &Layer, files: &BTreeSet<Identity>) -> Result<Arc<Layer>> {
        let id = ChainId::new(Digest::of(format!("parted {} {files:?}", layer.id).as_bytes()));
        if let Some(parted) = self.get(&id)? {
            return Ok(parted);
        }
        let draft = self.store.draft()?;
        layer::transfer(layer.dir.as_fd(), draft.upper(), Links::BrokenOf(files), Shift::None)?;
        Ok(self.hold(draft.commit_flat(&id)?))
    }

    fn files(&self, layer: &Layer) -> Result<Arc<Vec<Identity>>> {
        if let Some(files) = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&layer.id) {
            return Ok(Arc::clone(files));
        }
        let files = Arc::new(layer::files_by_name(layer.dir.as_fd())?);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.id, Arc::clone(&files));
        Ok(files)
    }

    /// Makes one directory of `layers`, topmost first.
    fn flatten(&self, id: &ChainId, layers: &[Arc<Layer>]) -> Result<Arc<Layer>> {
        let draft = self.store.draft()?;
        let layers: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
        layer::flatten(&layers, draft.upper())?;
        Ok(self.hold(draft.commit_flat(id)?))
    }

    fn unpacked(&self, wanted: &StackLayer) -> Result<Option<Arc<Layer>>> {
        // An image may hold a layer that was made on nothing.
        let alone = Stack::default().id_above(&wanted.diff_id, Standing::Alone);
        match self.get(&wanted.id)? {
            // What was unpacked on nothing is another directory: it deletes nothing, and its parents are like none below.
            None if wanted.id != alone => Ok(self.get(&alone)?.filter(|layer| layer.meta.tree.is_some())),
            found => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stacked_is_bounded() {
        for count in 0..2_000 {
            let flat: Vec<_> = flat_counts(count).collect();
            let stacked = count - flat.first().unwrap_or(&0) + usize::from(!flat.is_empty());
            assert!(stacked <= MOST, "{count}: {stacked}");
            assert!(flat.is_empty() == (count <= MOST), "{count}");
            assert!(flat.windows(2).all(|pair| pair[0] == pair[1] + PART), "{count}: {flat:?}");
        }
    }
}
