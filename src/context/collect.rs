//! Turns what a walk meets into entries.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;

use super::facts::Facts;
use super::hash::{Hashed, Hashers, Job};
use super::index::{FileKey, HashIndex, is_trusted};
use super::summary::Fingerprint;
use super::survey::Unread;
use super::{Entry, EntryKind, Tree, lines, xattr};
use crate::diag::{Context as _, Result};
use crate::digest::{Digest, Hasher};
use crate::layer::Records;
use crate::layer::node::Node;
use crate::layer::record::Device;

/// Room is made ahead for so many at most: a context may have many more files than are asked for.
const MANY_ENTRIES: usize = 16 << 10;

/// Where an entry is.
pub struct Place<'a> {
    /// The directory it is in; for a directory, that directory itself, open for reading.
    pub directory: &'a Arc<OwnedFd>,
    /// Its name there; `.` for a directory.
    pub name: &'a [u8],
    pub path: &'a [u8],
    pub land: &'a [u8],
    pub facts: &'a Facts,
    /// See [`Entry::is_passed`].
    pub is_passed: bool,
}

/// What becomes of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They are kept, and their files read.
    Listing,
    /// They are kept; files of which nothing is remembered are left unread.
    Survey,
    /// They go into a digest, and nothing is kept; unless there is a file of which nothing is remembered.
    Digest,
    /// They go into a fingerprint, and nothing else is known of them.
    Fingerprint,
}

/// The entries of all selections so far. Digests of files come in later.
pub struct Collector<'c, 'scope, 'env> {
    tree: &'scope Tree,
    index: Option<&'scope HashIndex>,
    hashers: &'c Hashers<'scope, 'env>,
    /// What counts in a stage or an image; in a context nothing does.
    records: Records,
    entries: Vec<Entry>,
    digesting: Option<Digesting>,
    fingerprint: Option<Fingerprint>,
    purpose: Purpose,
    /// There is a file of which nothing is remembered, or nothing may be.
    has_given_up: bool,
    /// Devices met, and whether files on them may be remembered.
    devices: Vec<(u64, bool)>,
    /// Files that are left unread; `None` where all are read.
    unread: Option<Vec<Unread>>,
    /// The numbers of those among them that have several links.
    numbers: BTreeMap<(u64, u64), usize>,
}

impl<'c, 'scope, 'env> Collector<'c, 'scope, 'env> {
    pub fn new(
        tree: &'scope Tree,
        index: Option<&'scope HashIndex>,
        hashers: &'c Hashers<'scope, 'env>,
        purpose: Purpose,
    ) -> Result<Self> {
        let records = match tree.keeps_owners {
            true => Records::of(tree.root()).context(|| format!("cannot read {}", tree.described()))?,
            false => Records::None,
        };
        // Memory that is not used is not there; to move what is takes a third of the time to collect it.
        let are_kept = matches!(purpose, Purpose::Listing | Purpose::Survey);
        let expected = if are_kept { index.map_or(0, HashIndex::expected) } else { 0 };
        Ok(Self {
            tree,
            index,
            hashers,
            records,
            entries: Vec::with_capacity(expected.min(MANY_ENTRIES)),
            digesting: (purpose == Purpose::Digest).then(Digesting::default),
            fingerprint: (!are_kept).then(Fingerprint::default),
            purpose,
            has_given_up: false,
            devices: Vec::new(),
            unread: (purpose == Purpose::Survey).then(Vec::new),
            numbers: BTreeMap::new(),
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.digesting.as_ref().map_or(self.entries.len(), |digesting| digesting.count)
    }

    /// Forgets the entries from this one on, which must all be directories.
    pub fn truncate(&mut self, length: usize) {
        match &mut self.digesting {
            Some(digesting) => digesting.truncate(length),
            None => self.entries.truncate(length),
        }
    }

    /// What comes is of a selection with this name.
    pub fn begin(&mut self, name: &[u8]) {
        if let Some(digesting) = &mut self.digesting {
            digesting.name = name.to_vec();
        }
        if let Some(fingerprint) = &mut self.fingerprint {
            fingerprint.selection(name);
        }
    }

    /// Whether all it asks of a directory is a part of a fingerprint.
    pub fn is_brief(&self) -> bool {
        self.purpose == Purpose::Fingerprint
    }

    /// What comes is in the directory that came last; `entries` of it were described already.
    pub fn enter(&mut self, entries: Hasher) {
        if let Some(fingerprint) = &mut self.fingerprint {
            fingerprint.enter(entries);
        }
    }

    /// That was all that is in it.
    pub fn leave(&mut self, is_visible: bool, is_selected: bool) {
        if let Some(fingerprint) = &mut self.fingerprint {
            fingerprint.leave(is_visible, is_selected);
        }
    }

    /// Whether there will be no digest, so that the rest is of no use.
    pub fn has_given_up(&self) -> bool {
        self.has_given_up
    }

    /// Of all that was met, if nothing had to be read for it.
    pub fn fingerprint(self) -> Option<Digest> {
        self.fingerprint.filter(|_| !self.has_given_up).map(Fingerprint::finish)
    }

    /// The digest of the listing and how many entries it has, and their fingerprint; if nothing had to be read.
    pub fn digest(mut self) -> Option<(Digest, usize, Digest)> {
        let digesting = self.digesting.take()?;
        let count = digesting.count;
        Some((digesting.finish(), count, self.fingerprint()?))
    }

    /// All entries, and the files that were left unread.
    pub fn finish(self) -> (Vec<Entry>, Vec<Unread>) {
        (self.entries, self.unread.unwrap_or_default())
    }

    pub fn push(&mut self, place: &Place<'_>) -> Result<()> {
        if self.has_given_up() {
            return Ok(());
        }
        let facts = place.facts;
        let doing = || format!("cannot read `{}` in {}", place.path.escape_ascii(), self.tree.described());
        let recorded = self.recorded(place).context(doing)?;
        let mut xattrs = Vec::new();
        let mut link_group = None;
        let stands_for = recorded.and_then(|node| Device::of(&node));
        let kind = match (facts.file_type, stands_for) {
            (_, Some(Device { is_block: false, major, minor })) => EntryKind::CharDevice { major, minor },
            (_, Some(Device { is_block: true, major, minor })) => EntryKind::BlockDevice { major, minor },
            (FileType::RegularFile, None) => {
                let key = facts.key;
                if facts.link_count > 1 {
                    link_group = Some((key.device, key.inode));
                }
                self.file(place, key, link_group)?
            }
            (FileType::Directory, None) => {
                xattrs = xattr::of_file(place.directory.as_fd()).context(doing)?;
                // The files in it are not looked at one by one.
                self.has_given_up |= self.is_brief() && !self.is_trusted(place, facts.key.device)?;
                EntryKind::Directory
            }
            (FileType::Symlink, None) => {
                let target = rustix::fs::readlinkat(place.directory, place.name, Vec::new()).context(doing)?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            (FileType::Fifo, None) => EntryKind::Fifo,
            (FileType::Socket, None) => EntryKind::Socket,
            (FileType::CharacterDevice, None) => EntryKind::CharDevice { major: facts.device.0, minor: facts.device.1 },
            (FileType::BlockDevice, None) => EntryKind::BlockDevice { major: facts.device.0, minor: facts.device.1 },
            (FileType::Unknown, None) => return Err(rustix::io::Errno::INVAL).context(doing),
        };
        if let Some(fingerprint) = &mut self.fingerprint {
            match &kind {
                EntryKind::Directory => fingerprint.directory(place.land, facts.mode, place.is_passed, &xattrs),
                EntryKind::Symlink { target } => fingerprint.entry(place.land, place.name, facts, target),
                _ => fingerprint.entry(place.land, place.name, facts, b""),
            }
        }
        if self.is_brief() {
            return Ok(());
        }
        let (uid, gid) = match recorded {
            Some(node) => (node.uid, node.gid),
            None if self.tree.keeps_owners => (facts.uid, facts.gid),
            None => (0, 0),
        };
        // Most of what is met: no entry is made for it.
        if let (Some(digesting), EntryKind::File { size_bytes, digest }) = (&mut self.digesting, &kind) {
            digesting.file(place.land, (facts.mode, uid, gid), *size_bytes, digest);
            return Ok(());
        }
        let entry = Entry {
            path: place.path.to_vec(),
            land: place.land.to_vec(),
            kind,
            mode: facts.mode,
            uid,
            gid,
            mtime: facts.key.mtime,
            xattrs,
            link_group,
            is_passed: place.is_passed,
        };
        match &mut self.digesting {
            Some(digesting) => digesting.push(&entry),
            None => self.entries.push(entry),
        }
        Ok(())
    }

    /// What a place of a stage or an image is, where that may be recorded.
    fn recorded(&self, place: &Place<'_>) -> rustix::io::Result<Option<Node>> {
        if self.records == Records::None {
            return Ok(None);
        }
        let name = CString::new(place.name).map_err(|_| rustix::io::Errno::INVAL)?;
        self.records.node_at(place.directory, &name)
    }

    /// A file with the remembered digest; for one that must be read, which it has read, a place holder that [`fill`]
    /// replaces.
    fn file(&mut self, place: &Place<'_>, key: FileKey, link_group: Option<(u64, u64)>) -> Result<EntryKind> {
        let size_bytes = key.size_bytes;
        let is_trusted = self.index.is_some() && self.is_trusted(place, key.device)?;
        let unread = EntryKind::File { size_bytes, digest: Digest::from_bytes([0; 32]) };
        if self.is_brief() {
            self.has_given_up |= !is_trusted;
            return Ok(unread);
        }
        let index = self.index.filter(|_| is_trusted);
        let remembered = index.and_then(|index| index.get(&key));
        if let Some(remembered) = remembered.filter(|remembered| !remembered.has_xattrs) {
            return Ok(EntryKind::File { size_bytes, digest: remembered.digest });
        }
        if self.digesting.is_some() {
            self.has_given_up = true;
            return Ok(unread);
        }
        if let (Some(unread), None) = (&mut self.unread, remembered) {
            let next = unread.len();
            let number = link_group.map_or(next, |group| *self.numbers.entry(group).or_insert(next));
            if number == next {
                unread.push(Unread { key, is_trusted });
            }
            return Ok(EntryKind::Unread { size_bytes, number });
        }
        self.hashers.push(Job {
            slot: self.entries.len(),
            directory: Arc::clone(place.directory),
            name: place.name.to_vec(),
            path: place.path.to_vec(),
            key,
            digest: remembered.map(|remembered| remembered.digest),
            index,
        });
        Ok(unread)
    }

    fn is_trusted(&mut self, place: &Place<'_>, device: u64) -> Result<bool> {
        if let Some((_, is_trusted)) = self.devices.iter().find(|(known, _)| *known == device) {
            return Ok(*is_trusted);
        }
        let statfs = rustix::fs::fstatfs(place.directory)
            .context(|| format!("cannot read `{}` in {}", place.path.escape_ascii(), self.tree.described()))?;
        let is_trusted = is_trusted(statfs.f_type as u32);
        self.devices.push((device, is_trusted));
        Ok(is_trusted)
    }
}

/// A digest in the making: that of [`Listing::digest`](super::Listing::digest).
#[derive(Default)]
struct Digesting {
    hasher: Hasher,
    /// Of the selection.
    name: Vec<u8>,
    count: usize,
    writer: lines::Writer,
    /// Directories at the end, which may be forgotten yet: their numbers and lines.
    pending: Vec<(usize, Vec<u8>)>,
}

impl Digesting {
    fn push(&mut self, entry: &Entry) {
        let line = self.writer.entry(&self.name, entry);
        if entry.kind == EntryKind::Directory {
            self.pending.push((self.count, line.to_vec()));
        } else {
            self.pending.drain(..).for_each(|(_, line)| self.hasher.field(&line));
            self.hasher.field(line);
        }
        self.count += 1;
    }

    /// The same of a file without xattrs.
    fn file(&mut self, land: &[u8], mode_and_ids: (u32, u32, u32), size_bytes: u64, digest: &Digest) {
        self.pending.drain(..).for_each(|(_, line)| self.hasher.field(&line));
        self.hasher.field(self.writer.file(&self.name, land, mode_and_ids, size_bytes, digest));
        self.count += 1;
    }

    fn truncate(&mut self, length: usize) {
        while self.pending.pop_if(|(number, _)| *number >= length).is_some() {}
        self.count = length;
    }

    fn finish(mut self) -> Digest {
        self.pending.iter().for_each(|(_, line)| self.hasher.field(line));
        self.hasher.finish()
    }
}

/// Puts what was read into the entries.
pub fn fill(entries: &mut [Entry], hashed: Vec<Hashed>) {
    for Hashed { slot, size_bytes, digest, xattrs } in hashed {
        let entry = &mut entries[slot];
        entry.kind = EntryKind::File { size_bytes, digest };
        entry.xattrs = xattrs;
    }
}
