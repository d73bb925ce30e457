//! A copy of one source whose files nothing reads any more is packed from where they are: its layer is a blob from
//! the beginning, and becomes a directory only should a later build need its files.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::input::{Read, inputs};
use super::{Keyed, Solver, Stack, standing};
use crate::cache::LayerResult;
use crate::container::{Rung, Sketch};
use crate::context::EntryKind;
use crate::copy::{self, Owner};
use crate::diag::Result;
use crate::layer;
use crate::plan::{Copy, CopyKind, Input, Op, StepId};
use crate::store::Draft;

/// Each takes some kilobytes of the kernel's memory while it is packed.
const MOST_ENTRIES: usize = 50_000;

impl Solver<'_> {
    /// Whether nothing in this build reads files of the rootfs after a step.
    fn is_last(&self, id: StepId) -> bool {
        let mut same = vec![id];
        for later in (id.0 + 1..self.plan.steps.len()).map(StepId) {
            let step = self.plan.step(later);
            let is_read = |input: &&Input| matches!(input, Input::Step(id) if same.contains(id));
            if inputs(&step.op).iter().any(is_read) {
                return false;
            }
            if step.parent.is_some_and(|parent| same.contains(&parent)) {
                if step.op != Op::Configure {
                    return false;
                }
                same.push(later);
            }
        }
        !self.settings.exports_files
    }

    /// Makes the layer of a copy over `below` so, if it is one that it can be done for; `None` inside for one that
    /// changes nothing. `draft` stays as it is.
    pub(super) fn outlined(
        &self,
        id: StepId,
        copy: &Copy,
        owner: Option<Owner>,
        below: &Stack,
        draft: &Draft,
        key: &Keyed,
    ) -> Result<Option<Option<LayerResult>>> {
        let [Read::Listed { opened, listing }] = key.reads.sources.as_slice() else { return Ok(None) };
        // What is unpacked takes files.
        let may_unpack = copy.kind == CopyKind::Add
            && copy.unpack != Some(false)
            && listing
                .selections
                .iter()
                .flat_map(|selection| selection.entries.first())
                .any(|source| matches!(source.kind, EntryKind::File { .. }));
        let entries: usize = listing.selections.iter().map(|selection| selection.entries.len()).sum();
        if may_unpack || entries > MOST_ENTRIES || self.footing().rung != Rung::Overlay || !self.is_last(id) {
            return Ok(None);
        }
        let layers = if copy.is_link { Vec::new() } else { self.layers_on(self.footing(), below)? };
        let lowers: Vec<PathBuf> = layers.iter().map(|layer| layer.path.clone()).collect();
        let landing = self.copy_landing(copy, owner);
        let sketched = Sketch::new(draft, self.host.store).and_then(|sketch| {
            let root = sketch.root(&lowers)?;
            let outline = copy::outline(&opened.tree, listing, root.as_fd(), &landing)?;
            Ok((sketch.upper()?, outline))
        });
        // Whatever it is: where it is not for want of memory, an overlay or room, the copy says it as well.
        let Ok((upper, outline)) = sketched else { return Ok(None) };
        let below_fds: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
        let summary = layer::canonicalize(upper.as_fd(), &below_fds, None)?;
        if summary.entries == 0 {
            return Ok(Some(None));
        }
        let diff_id = self.host.store.pack_outline(upper.as_fd(), &outline)?;
        let tree = super::commit::tree_of(&key.facts);
        let result = LayerResult { diff_id, tree, size_bytes: summary.size_bytes };
        let standing = standing(&self.plan.step(id).op);
        Ok(Some(Some(self.same_tree(key, &result, below, standing)?.unwrap_or(result))))
    }
}
