//! The named facts that decide a step's result, in a fixed order.

use serde::{Deserialize, Serialize};

use crate::digest::{CacheKey, Hasher};

/// Bumped whenever the same facts would have to give another result: it is the first fact of
/// every key, so that older records are never found again.
const FORMAT: &str = "1";

/// An ordered list of `(name, value)`. Names are unique; a name that is a list of its own (one
/// variable, one mount) carries it after a space, as in `env PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Facts(Vec<(String, String)>);

impl Facts {
    /// What every key begins with. `parent` is the chain ID below, or `scratch`; `op` the step in
    /// canonical form.
    pub fn new(parent: &str, op: impl Into<String>) -> Self {
        let mut facts = Self(Vec::with_capacity(12));
        facts.add("format", FORMAT);
        facts.add("parent", parent);
        facts.add("op", op);
        facts
    }

    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// Gives a fact that is there another value.
    pub fn replace(&mut self, name: &str, value: impl Into<String>) {
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == name) {
            *known = value.into();
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn key(&self) -> CacheKey {
        let mut hasher = Hasher::default();
        for (name, value) in &self.0 {
            hasher.field(name.as_bytes());
            hasher.field(value.as_bytes());
        }
        CacheKey::new(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_is_in_the_key() {
        let base = Facts::new("scratch", "RUN x");
        let mut with_env = base.clone();
        with_env.add("env A", "1");
        let mut moved = base.clone();
        moved.add("env A1", "");
        assert_ne!(base.key(), with_env.key());
        assert_ne!(with_env.key(), moved.key());
        assert_ne!(Facts::new("a", "b").key(), Facts::new("ab", "").key());
    }
}
