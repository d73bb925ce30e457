//! What the steps of a build stand on: the best there is, until it turns out not to be had. Then a trial finds what
//! is, once for the build, and its user is told.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Solver, Stack};
use crate::container::{Footing, Ground, Rung, Worker};
use crate::diag::{Diagnostic, Result};
use crate::doctor::{Trials, footings, lesser};
use crate::ids;
use crate::plan::StepId;
use crate::progress::Event;
use crate::store::{Draft, Layer};

#[derive(Default)]
pub(super) struct Found {
    footing: Footing,
    /// The rungs that its user was told of.
    told: Vec<Rung>,
}

impl Found {
    pub(super) fn new(asked: Option<Rung>) -> Mutex<Self> {
        let footing = Footing { rung: asked.unwrap_or_default(), has_shifted_layers: false };
        Mutex::new(Self { footing, told: Vec::new() })
    }
}

impl Solver<'_> {
    pub(super) fn footing(&self) -> Footing {
        let mut found = self.found();
        if found.footing.rung != Rung::Overlay {
            self.tell(&mut found, None);
        }
        found.footing
    }

    /// After `failure` on a footing: the one to try it again on. The failure comes back where it was not the
    /// footing's.
    pub(super) fn descend(&self, from: Footing, worker: Worker, failure: Diagnostic) -> Result<Footing> {
        if self.host.is_canceled() {
            return Err(failure);
        }
        let mut found = self.found();
        if found.footing != from {
            // Another step met it first.
            return Ok(found.footing);
        }
        let trials = Trials {
            store: self.host.store,
            run: &|container, output| self.host.executor.execute(container, output, &|_| {}),
            footing: Default::default(),
        };
        let is_asked = |footing: &Footing| self.settings.footing.is_none_or(|rung| footing.rung == rung);
        let mut reasons: Vec<(Footing, Diagnostic)> = Vec::new();
        for footing in footings(ids::are_the_hosts()).filter(|footing| *footing >= from && is_asked(footing)) {
            match trials.footing(footing, worker) {
                Ok(()) if footing == from => return Err(failure),
                Ok(()) => {
                    found.footing = footing;
                    self.tell(&mut found, reasons.first().map(|(_, reason)| reason));
                    return Ok(footing);
                }
                Err(reason) => reasons.push((footing, reason)),
            }
        }
        reasons.dedup_by_key(|(footing, _)| footing.rung);
        // What is wrong with the first was said by the failure itself.
        Err(reasons.into_iter().skip(1).flat_map(|(_, reason)| reason.hints).fold(
            failure,
            |failure, hint| match failure.hints.contains(&hint) {
                true => failure,
                false => failure.hint(hint),
            },
        ))
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.footing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, found: &mut Found, reason: Option<&Diagnostic>) {
        let rung = found.footing.rung;
        if !found.told.contains(&rung) {
            found.told.push(rung);
            self.host.reporter.report(Event::Warning(&lesser(rung, reason, self.host.store)));
        }
    }

    // ---- layers for a footing

    /// The layers of a stack as a ground takes them.
    pub(super) fn layers_on(&self, footing: Footing, stack: &Stack) -> Result<Vec<Arc<Layer>>> {
        let layers = match footing.rung.takes_one_layer(self.host.store)? {
            true => self.layers.as_one(stack)?,
            false => self.layers.lowers(stack)?,
        };
        match footing.rung {
            Rung::Fuse => self.layers.parted(layers),
            _ => Ok(layers),
        }
    }

    /// The layers of a stack as a step mounts them, topmost first.
    pub(super) fn step_lowers(&self, footing: Footing, stack: &Stack) -> Result<Vec<PathBuf>> {
        let layers = self.layers_on(footing, stack)?;
        layers.iter().map(|layer| self.step_lower(footing, layer)).collect()
    }

    pub(super) fn step_lower(&self, footing: Footing, layer: &Arc<Layer>) -> Result<PathBuf> {
        Ok(match footing.has_shifted_layers {
            true => self.layers.shifted(layer)?.path.clone(),
            false => layer.path.clone(),
        })
    }

    /// Has something written over the stack below a step by this process, into a draft.
    pub(super) fn write_over(
        &self,
        id: StepId,
        below: &Stack,
        draft: &Draft,
        write: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<()> {
        let (mut below, mut footing) = (below.clone(), self.footing());
        loop {
            let still = self.still(&below);
            let layers = self.layers_on(footing, &below)?;
            let lowers: Vec<_> = layers.iter().map(|layer| layer.path.clone()).collect();
            let opened = Ground::new(footing.rung, Worker::Builder, &lowers, draft, self.host.store)
                .and_then(|ground| ground.root(&lowers, draft).map(|root| (ground, root)));
            drop(still);
            match opened {
                Ok((ground, root)) => {
                    write(&root)?;
                    drop(root);
                    let below: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
                    return ground.settle(draft, &below, None);
                }
                Err(failure) => {
                    footing = self.descend(footing, Worker::Builder, failure)?;
                    if below.is_unidentified() {
                        below = self.identified_below(id)?;
                    }
                }
            }
        }
    }
}
