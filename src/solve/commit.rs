//! From an upper dir to a layer in the store.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::input::Read;
use super::pending::Made;
use super::relief::Lowers;
use super::{Keyed, Solved, Solver, Stack, Standing};
use crate::cache::{Facts, LayerResult, Record};
use crate::diag::{Diagnostic, Result};
use crate::digest::{Hasher, TreeDigest};
use crate::layer;
use crate::plan::StepId;
use crate::progress::{Outcome, Usage};
use crate::store::{Draft, Layer};

impl Solver<'_> {
    /// What a step is made over.
    pub(super) fn lowers(&self, id: StepId, below: &Stack) -> Result<Lowers> {
        Ok(Lowers::of(match super::standing(&self.plan.step(id).op) {
            Standing::OnStack => self.layers.lowers(below)?,
            Standing::Alone => Vec::new(),
        }))
    }

    /// Makes a draft that was written over `lowers` canonical. `skeleton` is as for [`layer::canonicalize`].
    pub(super) fn made(
        &self,
        draft: Draft,
        lowers: &Lowers,
        skeleton: Option<BorrowedFd<'_>>,
        key: &Keyed,
    ) -> Result<Made> {
        let summary = layer::canonicalize(draft.upper(), &lowers.dirs(), skeleton)?;
        if summary.entries == 0 {
            return Ok(Made::Nothing);
        }
        let tree = if is_all_listed(key) { Some(tree_of(&key.facts)) } else { None };
        Ok(Made::Files { draft: Arc::new(draft), summary, tree })
    }

    /// Records what a step gave.
    pub(super) fn conclude(
        &self,
        id: StepId,
        layer: Option<LayerResult>,
        usage: Option<Usage>,
        facts: Facts,
        begun: Instant,
    ) -> Result<Solved> {
        let step = self.plan.step(id);
        let record = Record {
            facts,
            title: step.history.clone().unwrap_or_else(|| step.title.clone()),
            layer,
            created: self.created(),
            elapsed_ms: milliseconds(begun),
            usage,
        };
        self.records.put(&record, &self.slot(id))?;
        let solved = self.adopt(id, &record, Outcome::Done)?;
        solved.ok_or_else(|| Diagnostic::error("the layer just made is gone from the store").hint("build again"))
    }

    /// Commits files that are no step's: they stand on nothing and have a record of their own.
    pub(super) fn commit_alone(
        &self,
        draft: Draft,
        facts: Facts,
        title: &str,
        begun: Instant,
    ) -> Result<Option<Arc<Layer>>> {
        let summary = layer::canonicalize(draft.upper(), &[], None)?;
        let (mut layer, mut committed) = (None, None);
        if summary.entries > 0 {
            let (tree, meta) = draft.identify(&summary, Some(tree_of(&facts)))?;
            let result = LayerResult { diff_id: meta.diff_id, tree, size_bytes: meta.size_bytes };
            let id = Stack::default().id_above(&result.diff_id, Standing::Alone);
            (layer, committed) = (Some(result), Some(self.layers.hold(draft.commit(&id, meta)?)));
        }
        let title = title.to_owned();
        let (created, elapsed_ms) = (self.created(), milliseconds(begun));
        let record = Record { facts, title, layer, created, elapsed_ms, usage: None };
        self.records.put(&record, &record.title)?;
        Ok(committed)
    }

    /// An earlier layer of the same step on the same parent with the same tree but for times.
    pub(super) fn same_tree(
        &self,
        facts: &Facts,
        result: &LayerResult,
        below: &Stack,
        standing: Standing,
    ) -> Result<Option<LayerResult>> {
        let Some(op) = facts.get("op") else { return Ok(None) };
        let Some(earlier) = self.records.newest_of_op(op)? else { return Ok(None) };
        let is_same =
            |layer: &LayerResult| layer.tree == result.tree && earlier.facts.get("parent") == facts.get("parent");
        match earlier.layer {
            Some(layer)
                if is_same(&layer)
                    && self.layers.can_be_had(&below.id_above(&layer.diff_id, standing), &layer.diff_id)? =>
            {
                Ok(Some(layer))
            }
            _ => Ok(None),
        }
    }
}

/// Whether the key says all there is to a layer but its times: it is of a copy whose files were listed by their content.
fn is_all_listed(key: &Keyed) -> bool {
    let is_listed = |read: &Read| matches!(read, Read::Listed { .. } | Read::Immutable | Read::Heredoc);
    !key.reads.sources.is_empty() && key.reads.sources.iter().all(is_listed)
}

/// The tree digest of such a layer, which need not be read for it: equal facts make equal trees on the same parent,
/// and only there are they compared.
pub(super) fn tree_of(facts: &Facts) -> TreeDigest {
    let mut hasher = Hasher::default();
    for (name, value) in facts.iter().filter(|(name, _)| *name != "parent") {
        hasher.field(name.as_bytes());
        hasher.field(value.as_bytes());
    }
    TreeDigest::new(hasher.finish())
}

fn milliseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}
