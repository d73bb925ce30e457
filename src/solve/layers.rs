//! The layers a build uses: each opened and locked once, and held until the build is over, so that
//! no prune takes it. Those of a base are fetched and unpacked when a step needs files.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Stack, StackLayer, Standing};
use crate::diag::Result;
use crate::digest::ChainId;
use crate::host::Host;
use crate::registry::{Incoming, Remote};
use crate::store::{Layer, Store};

pub struct Layers<'a> {
    store: &'a Store,
    /// Those of bases, wherever they are.
    pub remote: Remote<'a>,
    held: Mutex<BTreeMap<ChainId, Arc<Layer>>>,
}

impl<'a> Layers<'a> {
    pub fn of(host: &'a Host<'_>) -> Self {
        let remote = Remote::of(host.registry, host.store, host.audience());
        Self { store: host.store, remote, held: Mutex::default() }
    }

    /// The layer, if it is unpacked and whole.
    pub fn get(&self, id: &ChainId) -> Result<Option<Arc<Layer>>> {
        if let Some(layer) = self.held.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(Some(Arc::clone(layer)));
        }
        Ok(self.store.layer(id)?.map(|layer| self.hold(layer)))
    }

    /// Keeps a layer that was just made.
    pub fn hold(&self, layer: Layer) -> Arc<Layer> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.entry(layer.id).or_insert_with(|| Arc::new(layer)))
    }

    /// The layers of a stack, topmost first. Those of a base that were only blobs so far, or not even
    /// here, are unpacked.
    pub fn lowers(&self, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        let mut packed = Vec::new();
        for wanted in stack.layers() {
            if self.unpacked(wanted)?.is_none() {
                packed.push(wanted.diff_id);
            }
        }
        if !packed.is_empty() {
            self.store.enter()?;
        }
        self.remote.during(&packed, |missing| self.unpack(stack, missing))
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

    /// Bottom first: a layer is unpacked onto those below it.
    fn unpack(&self, stack: &Stack, missing: &[Incoming]) -> Result<Vec<Arc<Layer>>> {
        let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(stack.layers().len());
        for wanted in stack.layers() {
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
        Ok(layers)
    }

    fn unpacked(&self, wanted: &StackLayer) -> Result<Option<Arc<Layer>>> {
        // An image may hold a layer that was made on nothing.
        let alone = Stack::default().id_above(&wanted.diff_id, Standing::Alone);
        match self.get(&wanted.id)? {
            None if wanted.id != alone => self.get(&alone),
            found => Ok(found),
        }
    }
}
