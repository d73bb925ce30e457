//! What a RUN that failed leaves, kept until somebody has looked at it.

use std::sync::PoisonError;

use super::Solver;
use super::held::Held;
use crate::container::{Container, Footing, Ground};
use crate::diag::{Diagnostic, Result};
use crate::plan::StepId;
use crate::store::Draft;

/// A container whose command failed, and all that it stands on.
pub(super) struct Wreck {
    pub failure: Diagnostic,
    pub container: Container,
    /// The step, where its layers are elsewhere once all of them have names.
    pub moves: Option<(StepId, Footing)>,
    /// Holds what it wrote.
    pub draft: Draft,
    pub ground: Ground,
    /// Its cache mounts, still locked, and the sockets of its agents.
    pub mounts: Held,
}

impl Solver<'_> {
    /// Keeps the wreck if somebody will look at it.
    pub(super) fn keep_wreck(&self, wreck: Wreck) {
        if self.host.on_failure.is_some() && !self.host.is_canceled() {
            self.wreck.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(wreck);
        }
    }

    /// Has the wreck looked at that `failure` is about.
    pub(super) fn show_wreck(&self, failure: &Diagnostic) {
        let wreck = self.wreck.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(inspect), Some(mut wreck)) =
            (self.host.on_failure, wreck.filter(|wreck| wreck.failure == *failure))
        {
            if let Some((id, footing)) = wreck.moves {
                match self.identified_below(id).and_then(|below| self.step_lowers(footing, &below)) {
                    Ok(lowers) => wreck.container.lowers = lowers,
                    Err(error) => return inspect(failure, Err(error)),
                }
            }
            let ready: Result<_> = wreck.ground.renew(&wreck.draft).map(|()| &wreck.container);
            inspect(failure, ready);
            drop(wreck.mounts);
        }
    }
}
