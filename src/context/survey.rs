//! A listing of files that nobody has read yet. Whoever reads them anyway later says then what they hold; the others
//! are read when they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use super::facts::Facts;
use super::hash::{Hashers, Job};
use super::index::{FileKey, HashIndex, Remembered};
use super::{Entry, EntryKind, Listing, Tree, xattr};
use crate::diag::{Context as _, Result};
use crate::digest::Digest;

/// Names and values, sorted by name.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is known of files, by their numbers.
type Known = BTreeMap<usize, (Digest, Xattrs)>;

/// What a copy would read, as far as it is known without reading files.
#[derive(Debug, Default)]
pub struct Survey {
    /// Its files are [`EntryKind::Unread`] but for those whose digest is remembered.
    pub listing: Listing,
    /// By their numbers.
    pub unread: Vec<Unread>,
}

/// A file as it was when it was met.
#[derive(Debug)]
pub struct Unread {
    pub(super) key: FileKey,
    /// Whether what it holds may be remembered.
    pub(super) is_trusted: bool,
}

/// What an open file says of itself.
pub struct Looked {
    pub xattrs: Xattrs,
    /// Nothing has changed it since it was met.
    pub is_as_listed: bool,
}

/// What was read of a file.
pub struct Read {
    pub number: usize,
    pub digest: Digest,
    pub xattrs: Xattrs,
    /// From before its content was read.
    pub is_as_listed: bool,
}

impl Unread {
    /// Looks at the file, which is open and has not been read.
    pub fn look(&self, file: &File) -> rustix::io::Result<Looked> {
        let is_as_listed = Facts::of_open(file)?.key == self.key;
        Ok(Looked { xattrs: xattr::of_file(file.as_fd())?, is_as_listed })
    }
}

impl Survey {
    /// Takes in what was read of files, and remembers it.
    pub fn learn(&mut self, read: Vec<Read>, index: Option<&HashIndex>) {
        let mut known = Known::new();
        for Read { number, digest, xattrs, is_as_listed } in read {
            let Unread { key, is_trusted } = self.unread[number];
            if let Some(index) = index.filter(|_| is_trusted && is_as_listed) {
                index.insert(key, Remembered { digest, has_xattrs: !xattrs.is_empty() });
            }
            known.insert(number, (digest, xattrs));
        }
        self.fill(&known);
    }

    /// Reads the files with these numbers, or all that nobody has read.
    pub fn read(
        &mut self,
        tree: &Tree,
        index: Option<&HashIndex>,
        wanted: Option<&[usize]>,
        threads: usize,
    ) -> Result<()> {
        let wanted = wanted.map(|numbers| numbers.iter().collect::<BTreeSet<_>>());
        let root = tree.root.try_clone().context(|| format!("cannot read {}", tree.described()))?;
        let root = Arc::new(root);
        let mut jobs = BTreeMap::new();
        for entry in self.entries_mut() {
            if let EntryKind::Unread { number, .. } = entry.kind
                && wanted.as_ref().is_none_or(|wanted| wanted.contains(&number))
            {
                jobs.entry(number).or_insert_with(|| entry.path.clone());
            }
        }
        let unread = &self.unread;
        let hashed = std::thread::scope(|scope| {
            let hashers = Hashers::new(scope, threads);
            for (number, path) in jobs {
                let Unread { key, is_trusted } = unread[number];
                let index = index.filter(|_| is_trusted);
                let (directory, name) = (Arc::clone(&root), path.clone());
                hashers.push(Job { slot: number, directory, name, path, key, digest: None, index });
            }
            hashers.finish()
        });
        let hashed = hashed.map_err(|(_, error)| *error)?;
        // Of a file that was replaced meanwhile the new size counts.
        let mut known = Known::new();
        for hashed in hashed {
            self.unread[hashed.slot].key.size_bytes = hashed.size_bytes;
            known.insert(hashed.slot, (hashed.digest, hashed.xattrs));
        }
        self.fill(&known);
        Ok(())
    }

    fn fill(&mut self, known: &Known) {
        let unread = std::mem::take(&mut self.unread);
        for entry in self.entries_mut() {
            if let EntryKind::Unread { number, .. } = entry.kind
                && let Some((digest, xattrs)) = known.get(&number)
            {
                entry.kind = EntryKind::File { size_bytes: unread[number].key.size_bytes, digest: *digest };
                entry.xattrs.clone_from(xattrs);
            }
        }
        self.unread = unread;
    }

    fn entries_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.listing.selections.iter_mut().flat_map(|selection| &mut selection.entries)
    }
}
