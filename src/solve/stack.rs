//! The layers a rootfs is made of.

use std::sync::Arc;

use crate::digest::{ChainId, DiffId, Digest};

/// One layer of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackLayer {
    pub diff_id: DiffId,
    /// The name of its unpacked directory: the chain it stands on, or, for a layer made on nothing
    /// (`COPY --link`), its diff ID.
    pub id: ChainId,
}

/// A rootfs as layers, bottom first. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    layers: Arc<Vec<StackLayer>>,
    chain: Option<ChainId>,
    /// Whether a layer has yet to be hashed: then its names are made up, and good for one build.
    is_unidentified: bool,
}

impl Stack {
    /// The layers of an image, each standing on those before it.
    pub fn of_image(diff_ids: &[DiffId]) -> Self {
        diff_ids.iter().fold(Self::default(), |stack, diff_id| stack.with(*diff_id, Standing::OnStack))
    }

    pub fn layers(&self) -> &[StackLayer] {
        &self.layers
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Names the whole stack, whatever its layers stand on.
    pub fn chain(&self) -> Option<&ChainId> {
        self.chain.as_ref()
    }

    /// The lowest `count` layers.
    pub fn lowest(&self, count: usize) -> Self {
        let layers = &self.layers[..count];
        let chain = layers.iter().fold(None, |chain, layer| Some(ChainId::extend(chain.as_ref(), &layer.diff_id)));
        Self { layers: Arc::new(layers.to_vec()), chain, is_unidentified: self.is_unidentified }
    }

    /// The directory name of all of it as one.
    pub fn flat_id(&self) -> ChainId {
        ChainId::new(Digest::of(format!("flat {}", self.fact()).as_bytes()))
    }

    /// The `parent` fact of a cache key.
    pub fn fact(&self) -> String {
        self.chain.map_or_else(|| "scratch".to_owned(), |chain| chain.to_string())
    }

    /// The directory name of a new layer on top.
    pub fn id_above(&self, diff_id: &DiffId, standing: Standing) -> ChainId {
        match standing {
            Standing::OnStack => ChainId::extend(self.chain(), diff_id),
            Standing::Alone => ChainId::extend(None, diff_id),
        }
    }

    #[must_use]
    pub fn with(&self, diff_id: DiffId, standing: Standing) -> Self {
        let mut layers = Vec::with_capacity(self.layers.len() + 1);
        layers.extend_from_slice(&self.layers);
        layers.push(StackLayer { diff_id, id: self.id_above(&diff_id, standing) });
        let chain = Some(ChainId::extend(self.chain(), &diff_id));
        Self { layers: Arc::new(layers), chain, is_unidentified: self.is_unidentified }
    }

    /// With a layer on top that nobody has hashed yet. `name` tells it from others of this build.
    #[must_use]
    pub fn with_unidentified(&self, name: &str) -> Self {
        let diff_id = DiffId::new(Digest::of(format!("unidentified {name}").as_bytes()));
        Self { is_unidentified: true, ..self.with(diff_id, Standing::OnStack) }
    }

    pub fn is_unidentified(&self) -> bool {
        self.is_unidentified
    }
}

/// What a layer was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The layers below it.
    OnStack,
    /// Nothing: it is the same on any stack.
    Alone,
}
