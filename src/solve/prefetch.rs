//! Bases that steps are going to need which wait for other stages: fetched meanwhile, and unpacked if it takes more than
//! their tables.
//!
//! ```text
//! FROM a AS build ── RUN make ──┐
//! FROM b ── (fetched meanwhile) └─▶ COPY --from=build
//! ```

use std::collections::BTreeSet;

use super::input::inputs;
use super::relief::needs_all;
use super::{Solver, Stack};
use crate::diag::Result;
use crate::parallel;
use crate::plan::{Input, Op, StepId};

/// A base that a step waits for.
#[derive(PartialEq, Eq)]
pub(super) struct Awaited {
    stack: Stack,
    /// Only what lands on it is looked at.
    is_met: bool,
}

impl Solver<'_> {
    /// Those that are not unpacked, of `waiting` steps. Only of steps that are sure to run: what one needs that may yet
    /// be found in the cache could be fetched in vain.
    pub(super) fn bases_ahead(&self, waiting: &BTreeSet<StepId>) -> Result<Vec<Awaited>> {
        let mut bases: Vec<Awaited> = Vec::new();
        for id in waiting {
            let step = self.plan.step(*id);
            let needs_parent = match &step.op {
                Op::Run(_) | Op::Workdir(_) => true,
                Op::Copy(copy) => !copy.is_link,
                Op::From(_) | Op::Configure => false,
            };
            let parent = step.parent.filter(|_| needs_parent).and_then(|parent| self.get(parent));
            let images = inputs(&step.op).into_iter().filter(|input| matches!(input, Input::Image(_)));
            let may_be_met = match &step.op {
                Op::Copy(copy) => !needs_all(copy),
                op => matches!(op, Op::Workdir(_)),
            };
            let is_met = may_be_met && !self.is_unpacked_anyway(*id);
            let parents = parent.map(|parent| Awaited { stack: parent.stack.clone(), is_met }).into_iter();
            let images = images.filter_map(|image| self.stack_of(image));
            let awaited = parents.chain(images.map(|stack| Awaited { stack, is_met: false }));
            for base in awaited.filter(|base| !base.stack.layers().is_empty()) {
                if !bases.contains(&base) && !self.may_hit(*id)? && !self.layers.are_unpacked(&base.stack)? {
                    bases.push(base);
                }
            }
        }
        Ok(bases)
    }

    /// Fetches and unpacks them. The step that needs what cannot be had will say why.
    pub(super) fn prefetch(&self, bases: &[Awaited]) {
        let fetch = |base: &Awaited| {
            match base.is_met {
                _ if self.host.is_canceled() => {}
                true => drop(self.layers.relief(&base.stack)),
                false => drop(self.layers.lowers(&base.stack)),
            }
            Ok(())
        };
        // It never fails.
        let _ = parallel::each(bases, parallel::TRANSFERS, fetch);
    }
}
