//! Layers of the image that outputs want compressed: compressed while other steps run.

use super::Solver;
use crate::plan::{Op, StepId};

impl Solver<'_> {
    /// Has the layers of these steps packed, where steps are left to run that would otherwise be waited for alone.
    pub(super) fn pack_ahead(&self, ids: impl Iterator<Item = StepId>) {
        if !self.layers.packs_ahead() {
            return;
        }
        let takes_time = |id: StepId| !matches!(self.plan.step(id).op, Op::From(_) | Op::Configure);
        let is_left = |id: &StepId| self.get(*id).is_none() && takes_time(*id);
        if !(0..self.plan.steps.len()).map(StepId).any(|id| is_left(&id)) {
            return;
        }
        let image = self.plan.ancestry(self.plan.target);
        for id in ids.filter(|id| image.contains(id)) {
            if let Some(solved) = self.get(id).filter(|solved| solved.made_layer)
                && let Some(layer) = solved.stack.layers().last()
            {
                self.layers.expect_packed(layer);
            }
        }
    }
}
