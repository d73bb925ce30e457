//! Steps that were executed and whose layers are hashed while the next step already runs over them.
//!
//! ```text
//! RUN a   runs ── canonical ─┬─ hashed, committed, recorded ─┐
//! RUN b                      └─ runs ── canonical ─┬─ hashed ┴─ committed, recorded
//! RUN c                                            └─ runs …
//! ```
//!
//! That is for layers that take long to hash, and where no record could match what comes next: the key of that is made
//! when its parent has a name. Until then the layer lies where it was written, below a name that is made up. It is
//! moved to its own when nobody is about to mount it; whoever has mounted it does not notice.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::Instant;

use super::commit::tree_of;
use super::input::inputs;
use super::{Solved, Solver, Stack, Standing, canceled, standing};
use crate::cache::{Facts, LayerResult};
use crate::container::Footing;
use crate::diag::Result;
use crate::digest::{DiffId, TreeDigest};
use crate::layer::Summary;
use crate::plan::{Input, Op, StepId};
use crate::progress::{Number, Usage};
use crate::store::{Draft, KeyLock, LayerMeta, Store};

/// What a step made.
#[derive(Default)]
pub(super) enum Made {
    #[default]
    Nothing,
    /// A canonical upper dir.
    Files {
        draft: Arc<Draft>,
        summary: Summary,
        /// If it is known.
        tree: Option<TreeDigest>,
    },
    /// A blob. The size is that of its regular files.
    Packed { diff_id: DiffId, size_bytes: u64 },
}

/// A step that was executed and has no record yet.
pub(super) struct Executed {
    pub id: StepId,
    pub number: Number,
    /// When it was begun for its user, and when for its record; what it waited for its parent is added.
    pub started: Instant,
    pub begun: Instant,
    pub made: Made,
    pub usage: Option<Usage>,
    /// The parent is not to be relied on where `parent` is pending.
    pub facts: Facts,
    /// Of its key, where that is known.
    pub lock: Option<KeyLock>,
    pub parent: Option<Arc<Pending>>,
    /// Itself, if a step runs over it.
    pub pending: Option<Arc<Pending>>,
}

/// A step that is being hashed and that another runs over.
pub(super) struct Pending {
    /// The rootfs after it.
    stack: Stack,
    /// Should another builder commit the same layer first, this one stays as long as it may be mounted: by those who
    /// hold this or what stands on it.
    _draft: Arc<Draft>,
    _parent: Option<Arc<Pending>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    end: Option<Result<()>>,
    /// Of the step that runs over it.
    follower: Option<Facts>,
    lock: Option<KeyLock>,
}

/// So many steps may wait for their names: each holds a draft and a thread.
const MOST: usize = 4;

impl Pending {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the step that runs over it depends on, but for its parent.
    pub(super) fn expect(&self, follower: &Facts) {
        self.state().follower = Some(follower.clone());
    }

    /// Waits until it has a name.
    pub(super) fn wait(&self) -> Result<()> {
        let waiting = self.changed.wait_while(self.state(), |state| state.end.is_none());
        waiting.unwrap_or_else(PoisonError::into_inner).end.clone().unwrap_or_else(|| Err(canceled()))
    }

    /// The lock of the key of the step that runs over it, if that was known in time.
    pub(super) fn take_lock(&self) -> Option<KeyLock> {
        self.state().lock.take()
    }

    /// It is recorded, and its rootfs is this one.
    fn hand_over(&self, store: &Store, stack: &Stack) {
        let mut state = self.state();
        if let Some(mut follower) = state.follower.take() {
            follower.replace("parent", stack.fact());
            // Should another builder have been faster, it is waited for when there is a result to compare.
            state.lock = store.try_lock_key(&follower.key());
        }
        drop(state);
        self.end(Ok(()));
    }

    fn end(&self, result: Result<()>) {
        self.state().end.get_or_insert(result);
        self.changed.notify_all();
    }
}

/// Ends the wait for a step in every case.
struct EndOnDrop<'p>(&'p Pending);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(Err(canceled()));
    }
}

impl Solver<'_> {
    /// The step that runs while this one is hashed, if there is one and it pays.
    pub(super) fn follower(&self, executed: &Executed) -> Result<Option<StepId>> {
        let Made::Files { summary, tree, .. } = &executed.made else { return Ok(None) };
        let is_worth_it = executed.parent.is_some() || takes_long(summary);
        // What is explained is compared with its parent first.
        if !is_worth_it || self.settings.explains || self.pending().len() >= MOST {
            return Ok(None);
        }
        // Where all layers are mounted as they are.
        let footing = self.footing();
        if footing != Footing::default()
            || footing.rung.takes_one_layer(self.host.store)?
            || !self.layers.are_unpacked(&self.below(executed.id))?
        {
            return Ok(None);
        }
        // Where the key says all there is to a layer, none like it was ever made, or it would have been found.
        let is_unlike = tree.is_some() && self.asks_cache(executed.id);
        if !is_unlike {
            let earlier = self.records.newest_of_op(executed.facts.get("op").unwrap_or_default())?;
            // Which may take its place.
            if earlier.is_some_and(|earlier| earlier.facts.get("parent") == executed.facts.get("parent")) {
                return Ok(None);
            }
        }
        let is_new = is_unlike || self.is_new(summary);
        for id in (executed.id.0 + 1..self.plan.steps.len()).map(StepId) {
            if self.stands_on(id, executed.id) && (is_new || !self.may_hit(id)?) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Whether something in a layer was written during this build, so that no record stands on the like of it: whatever
    /// was there before says that it is older. A time to come may have been set.
    fn is_new(&self, summary: &Summary) -> bool {
        let first = self.host.files_now + 1;
        let last = self.host.files_now.saturating_add_unsigned(self.begun.elapsed().as_secs());
        self.host.epoch().is_none() && (first..=last).contains(&summary.newest)
    }

    /// Whether a step waits for nothing but `parent`.
    fn stands_on(&self, id: StepId, parent: StepId) -> bool {
        let op = &self.plan.step(id).op;
        let has_layer = matches!(op, Op::Run(_) | Op::Copy(_) | Op::Workdir(_));
        let is_there = |input: &Input| match input {
            Input::Step(step) => self.get(*step).is_some(),
            _ => true,
        };
        has_layer
            && self.get(id).is_none()
            && self.last_below(id) == Some(parent)
            && inputs(op).into_iter().all(is_there)
    }

    /// The nearest step below whose result is known, or is no metadata.
    fn last_below(&self, id: StepId) -> Option<StepId> {
        let mut below = self.plan.step(id).parent;
        while let Some(id) = below
            && self.get(id).is_none()
            && matches!(self.plan.step(id).op, Op::Configure)
        {
            below = self.plan.step(id).parent;
        }
        below
    }

    /// The rootfs that a step stands on; nothing where there is none, or it is not known.
    pub(super) fn below(&self, id: StepId) -> Stack {
        let Some(parent) = self.last_below(id) else { return Stack::default() };
        match self.get(parent) {
            Some(parent) => parent.stack.clone(),
            None => self.pending().get(&parent).map(|parent| parent.stack.clone()).unwrap_or_default(),
        }
    }

    /// What a step stands on, if that has no name yet.
    pub(super) fn pending_below(&self, id: StepId) -> Option<Arc<Pending>> {
        let parent = self.last_below(id).filter(|parent| self.get(*parent).is_none())?;
        self.pending().get(&parent).cloned()
    }

    /// Lets a step run over one that has no name yet.
    pub(super) fn let_stand(&self, executed: &mut Executed) -> Result<()> {
        let Made::Files { draft, .. } = &executed.made else { return Ok(()) };
        let stack = self.below(executed.id).with_unidentified(&executed.id.0.to_string());
        if let Some(top) = stack.layers().last() {
            self.layers.hold(draft.unnamed(&top.id)?);
        }
        let pending = Arc::new(Pending {
            stack,
            _draft: Arc::clone(draft),
            _parent: executed.parent.clone(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        self.pending().insert(executed.id, Arc::clone(&pending));
        executed.pending = Some(pending);
        Ok(())
    }

    /// Hashes what a step made, names it and records it, on whatever thread.
    pub(super) fn finish(&self, mut executed: Executed) -> Result<()> {
        let pending = executed.pending.clone();
        let ends = pending.as_deref().map(EndOnDrop);
        let named = self.named(&mut executed);
        let Executed { id, number, started, lock, .. } = executed;
        let ended = self.end(id, number, started, named);
        if let Some(pending) = &pending {
            match (&ended, self.get(id)) {
                (Ok(()), Some(solved)) => {
                    pending.hand_over(self.host.store, &solved.stack);
                    self.pending().remove(&id);
                }
                _ => {
                    // What runs over it did nothing wrong.
                    self.host.canceled.store(true, Ordering::Relaxed);
                    pending.end(ended.clone());
                }
            }
        }
        // Only now, lest another builder comes in between.
        drop((ends, lock));
        ended
    }

    fn named(&self, executed: &mut Executed) -> Result<Solved> {
        let id = executed.id;
        let mut facts = std::mem::take(&mut executed.facts);
        let made = match std::mem::take(&mut executed.made) {
            Made::Files { draft, summary, tree } => {
                let (tree, meta) = draft.identify(&summary, tree)?;
                let LayerMeta { diff_id, size_bytes, .. } = meta;
                Some((LayerResult { diff_id, tree, size_bytes }, Some((draft, meta))))
            }
            Made::Packed { diff_id, size_bytes } => {
                Some((LayerResult { diff_id, tree: tree_of(&facts), size_bytes }, None))
            }
            Made::Nothing => None,
        };
        if let Some(parent) = executed.parent.take() {
            let waiting = Instant::now();
            parent.wait()?;
            let waited = waiting.elapsed();
            (executed.started, executed.begun) = (executed.started + waited, executed.begun + waited);
            if standing(&self.plan.step(id).op) == Standing::OnStack {
                facts.replace("parent", self.below(id).fact());
            }
            executed.lock = match parent.take_lock() {
                Some(lock) => Some(lock),
                None => Some(self.host.store.lock_key(&facts.key(), || {})?),
            };
            // Another builder was at the same step. What runs over this one wants this one.
            if executed.pending.is_none()
                && self.asks_cache(id)
                && let Some(solved) = self.recorded(id, &facts)?
            {
                return Ok(solved);
            }
        }
        let layer = match made {
            Some((result, files)) => Some(self.layer(id, result, files, &facts, executed.pending.as_deref())?),
            None => None,
        };
        self.conclude(id, layer, executed.usage, facts, executed.begun)
    }

    /// The layer of a step, in the store: this one, or an earlier one like it.
    fn layer(
        &self,
        id: StepId,
        result: LayerResult,
        files: Option<(Arc<Draft>, LayerMeta)>,
        facts: &Facts,
        pending: Option<&Pending>,
    ) -> Result<LayerResult> {
        let standing = standing(&self.plan.step(id).op);
        let below = self.below(id);
        // The step ran again and made the same files at another time: what stands on the earlier layer stays valid.
        if pending.is_none()
            && let Some(earlier) = self.same_tree(facts, &result, &below, standing)?
        {
            return Ok(earlier);
        }
        if let Some((draft, meta)) = files {
            let moving = pending.map(|_| self.moving.write().unwrap_or_else(PoisonError::into_inner));
            let layer = self.layers.hold(draft.commit(&below.id_above(&result.diff_id, standing), meta)?);
            if let Some(top) = pending.and_then(|pending| pending.stack.layers().last()) {
                self.layers.rename(&top.id, layer);
            }
            drop(moving);
        }
        Ok(result)
    }

    /// While this is held, the layers of a stack are where they are.
    pub(super) fn still(&self, stack: &Stack) -> Option<RwLockReadGuard<'_, ()>> {
        stack.is_unidentified().then(|| self.moving.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The stack below a step, once all of it has names.
    pub(super) fn identified_below(&self, id: StepId) -> Result<Stack> {
        if let Some(parent) = self.pending_below(id) {
            parent.wait()?;
        }
        Ok(self.below(id))
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<StepId, Arc<Pending>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it takes longer to hash than to have another thread do it.
fn takes_long(summary: &Summary) -> bool {
    const BYTES: u64 = 4 << 20;
    const ENTRIES: u64 = 500;
    summary.size_bytes >= BYTES || summary.entries >= ENTRIES
}
