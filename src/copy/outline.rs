//! A copy that is all there but for the bytes of its files: those are read from where they come from when the layer is
//! packed.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use super::file::{Source, changed};
use crate::diag::{Diagnostic, Result};
use crate::digest::Digest;
use crate::layer::{Content, Contents};

/// What files landed, by their paths.
pub(super) type Outlined = BTreeMap<Vec<u8>, OutlinedFile>;

pub(super) struct OutlinedFile {
    /// Where it comes from.
    pub source: Vec<u8>,
    pub size_bytes: u64,
    pub digest: Digest,
}

/// The bytes of the files of an outlined copy. The tree they come from stays open as long.
pub struct Outline<'a> {
    source: Source<'a>,
    files: Outlined,
}

impl<'a> Outline<'a> {
    pub(super) fn new(tree: BorrowedFd<'a>, files: Outlined) -> Self {
        Self { source: Source::new(tree), files }
    }
}

impl Contents for Outline<'_> {
    fn open(&self, path: &[u8]) -> Result<Option<Content>> {
        let Some(OutlinedFile { source, size_bytes, digest }) = self.files.get(path) else { return Ok(None) };
        let file = self.source.open(source, *size_bytes)?;
        Ok(Some(Content { file, digest: *digest }))
    }

    fn is_another(&self, path: &[u8]) -> Diagnostic {
        changed(self.files.get(path).map_or(path, |file| &file.source))
    }
}
