//! Room for what a build needs while it runs and nobody keeps.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::Mode;

use super::workspace::Bench;
use super::{Inner, Store};
use crate::diag::Result;

/// A directory below `tmp/`, mode 0700; dropped, it goes to the trash with all that is in it.
pub struct Scratch {
    /// Absolute.
    pub path: PathBuf,
    inner: Arc<Inner>,
    bench: Arc<Bench>,
    name: String,
}

impl Store {
    /// An empty directory.
    pub fn scratch(&self) -> Result<Scratch> {
        let make = || -> rustix::io::Result<Scratch> {
            let (bench, name) = self.inner.workspace.fresh()?;
            rustix::fs::mkdirat(bench.fd(), &name, Mode::RWXU)?;
            Ok(Scratch { path: bench.path.join(&name), inner: Arc::clone(&self.inner), bench, name })
        };
        make().map_err(|errno| self.inner.error("make a directory", errno))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.inner.trash.take(self.bench.fd(), &self.name).is_ok() {
            self.inner.trash.wake();
        }
    }
}
