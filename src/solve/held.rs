//! What a step uses while it runs, and a wreck as long as somebody looks at it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::diag::Result;
use crate::ssh::{Agent, Forward};
use crate::store::{CacheMount, Scratch, Store};

#[derive(Default)]
pub(super) struct Held {
    pub caches: Vec<CacheMount>,
    /// Before the directory that they are in.
    forwards: Vec<Forward>,
    sockets: Option<Scratch>,
}

impl Held {
    /// A socket at which the agent is served until the step is over.
    pub fn forward(&mut self, agent: &Arc<Agent>, store: &Store) -> Result<PathBuf> {
        let sockets = match &self.sockets {
            Some(sockets) => sockets,
            None => self.sockets.insert(store.scratch()?),
        };
        let forward = Forward::new(agent, &sockets.path, &self.forwards.len().to_string())?;
        let path = forward.path.clone();
        self.forwards.push(forward);
        Ok(path)
    }
}
