//! The layers a build uses: each opened and locked once, and held until the build is over, so that
//! no prune takes it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Stack, Standing};
use crate::diag::Result;
use crate::digest::ChainId;
use crate::store::{Layer, Store};

pub struct Layers<'a> {
    store: &'a Store,
    held: Mutex<BTreeMap<ChainId, Arc<Layer>>>,
}

impl<'a> Layers<'a> {
    pub fn of(store: &'a Store) -> Self {
        Self { store, held: Mutex::default() }
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

    /// The layers of a stack, topmost first. Those of a base that were only blobs so far are
    /// unpacked.
    pub fn lowers(&self, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        // Bottom first: a layer is unpacked onto those below it.
        let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(stack.layers().len());
        for wanted in stack.layers() {
            let alone = Stack::default().id_above(&wanted.diff_id, Standing::Alone);
            let layer = match self.get(&wanted.id)? {
                Some(layer) => layer,
                // An image may hold a layer that was made on nothing.
                None => match self.get(&alone)? {
                    Some(layer) if wanted.id != alone => layer,
                    _ => {
                        let below: Vec<_> = layers.iter().rev().map(|layer| layer.dir.as_fd()).collect();
                        self.hold(self.store.unpack_form(&wanted.id, &wanted.diff_id, &below)?)
                    }
                },
            };
            layers.push(layer);
        }
        layers.reverse();
        Ok(layers)
    }
}
