//! What a build learned of its host's network, for the next one on the same host.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Nothing in it decides whether a step has a network, only how soon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub forwarding: Forwarding,
    /// Programs that were no use, as [`version`] has them, and why.
    pub failed: Vec<(String, String)>,
    /// Programs that have made a way out, likewise.
    #[serde(default)]
    pub worked: Vec<String>,
}

/// Whether the host's packet filter lets what comes from lanes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forwarding {
    #[default]
    Unknown,
    Proven,
    Forbidden,
}

impl Memory {
    /// What an earlier build wrote; nothing if it is of another version of this program.
    pub fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// Why the program at `path` is no use, if it is the same as then.
    pub fn failure(&self, path: &Path) -> Option<&str> {
        let version = version(path)?;
        self.failed.iter().find(|(failed, _)| *failed == version).map(|(_, why)| why.as_str())
    }

    /// Whether the program at `path` has made a way out, if it is the same as then.
    pub fn has_worked(&self, path: &Path) -> bool {
        version(path).is_some_and(|version| self.worked.contains(&version))
    }

    /// Notes whether the program at `path` makes a way out; whether that is news.
    pub fn note_working(&mut self, path: &Path, works: bool) -> bool {
        if self.has_worked(path) == works {
            return false;
        }
        let Some(version) = version(path) else { return false };
        match works {
            true => self.worked.push(version),
            false => self.worked.retain(|worked| *worked != version),
        }
        true
    }

    /// Notes that the program at `path` is no use.
    pub fn note_failure(&mut self, path: &Path, why: &str) {
        if let Some(version) = version(path) {
            self.failed.retain(|(failed, _)| *failed != version);
            self.failed.push((version, why.to_owned()));
        }
    }
}

/// What tells a program from the one that took its place.
fn version(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    Some(format!("{} {}:{} {}", path.display(), found.mtime(), found.mtime_nsec(), found.size()))
}

/// Names this host, as long as it runs, and the network that this process is in.
pub fn host() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let network = fs::read_link("/proc/self/ns/net").ok()?;
    Some(format!("{} {}", boot.trim(), network.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_changed_is_given_another_chance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pasta");
        let mut memory = Memory::default();
        memory.note_failure(&path, "it is not there");
        assert_eq!(memory, Memory::default());
        fs::write(&path, "one").unwrap();
        memory.note_failure(&path, "no");
        memory.note_failure(&path, "still no");
        assert_eq!(memory.failed.len(), 1);
        let memory = Memory::read(&serde_json::to_vec(&memory).unwrap());
        assert_eq!(memory.failure(&path), Some("still no"));
        fs::write(&path, "three").unwrap();
        assert_eq!(memory.failure(&path), None);
        assert_eq!(Memory::read(b"{}"), Memory::default());
    }
}
