//! Bases that steps are going to need which wait for other stages: fetched and unpacked meanwhile.
//!
//! ```text
//! FROM a AS build ── RUN make ───────────────┐
//! FROM b ── (fetched and unpacked meanwhile) └─▶ COPY --from=build
//! ```

use std::collections::BTreeSet;

use super::input::inputs;
use super::{Solver, Stack};
use crate::diag::Result;
use crate::parallel;
use crate::plan::{Input, Op, StepId};

impl Solver<'_> {
    /// Those that are not unpacked, of `waiting` steps. Only of steps that are sure to run: what one needs that may yet
    /// be found in the cache could be fetched in vain.
    pub(super) fn bases_ahead(&self, waiting: &BTreeSet<StepId>) -> Result<Vec<Stack>> {
        let mut bases: Vec<Stack> = Vec::new();
        for id in waiting {
            let step = self.plan.step(*id);
            let needs_parent = match &step.op {
                Op::Run(_) | Op::Workdir(_) => true,
                Op::Copy(copy) => !copy.is_link,
                Op::From(_) | Op::Configure => false,
            };
            let parent = step.parent.filter(|_| needs_parent).and_then(|parent| self.get(parent));
            let images = inputs(&step.op).into_iter().filter(|input| matches!(input, Input::Image(_)));
            let stacks = parent.map(|parent| parent.stack.clone()).into_iter();
            let stacks = stacks.chain(images.filter_map(|image| self.stack_of(image)));
            for stack in stacks.filter(|stack| !stack.layers().is_empty()) {
                if !bases.contains(&stack) && !self.may_hit(*id)? && !self.layers.are_unpacked(&stack)? {
                    bases.push(stack);
                }
            }
        }
        Ok(bases)
    }

    /// Fetches and unpacks them. The step that needs what cannot be had will say why.
    pub(super) fn prefetch(&self, bases: &[Stack]) {
        let fetch = |stack: &Stack| {
            if !self.host.is_canceled() {
                drop(self.layers.lowers(stack));
            }
            Ok(())
        };
        // It never fails.
        let _ = parallel::each(bases, parallel::TRANSFERS, fetch);
    }
}
