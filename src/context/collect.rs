//! Turns what a walk meets into entries.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Statx};

use super::hash::{Hashed, Hashers, Job};
use super::index::{FileKey, HashIndex, is_trusted};
use super::{Entry, EntryKind, Tree, xattr};
use crate::diag::{Context as _, Result};
use crate::digest::Digest;

/// Where an entry is.
pub struct Place<'a> {
    /// The directory it is in; for a directory, that directory itself, open for reading.
    pub directory: &'a Arc<OwnedFd>,
    /// Its name there; `.` for a directory.
    pub name: &'a [u8],
    pub path: &'a [u8],
    pub land: &'a [u8],
    pub stat: &'a Statx,
}

/// The entries of all selections so far. Digests of files come in later.
pub struct Collector<'c, 'scope, 'env> {
    tree: &'c Tree,
    index: Option<&'c HashIndex>,
    hashers: &'c Hashers<'scope, 'env>,
    entries: Vec<Entry>,
    /// Devices met, and whether files on them may be remembered.
    devices: Vec<(u64, bool)>,
}

impl<'c, 'scope, 'env> Collector<'c, 'scope, 'env> {
    pub fn new(tree: &'c Tree, index: Option<&'c HashIndex>, hashers: &'c Hashers<'scope, 'env>) -> Self {
        Self { tree, index, hashers, entries: Vec::new(), devices: Vec::new() }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets the entries from this one on, which must all be directories.
    pub fn truncate(&mut self, length: usize) {
        self.entries.truncate(length);
    }

    pub fn finish(self) -> Vec<Entry> {
        self.entries
    }

    pub fn push(&mut self, place: &Place<'_>) -> Result<()> {
        let stat = place.stat;
        let doing = || format!("cannot read `{}` in {}", place.path.escape_ascii(), self.tree.described());
        let device = || (stat.stx_rdev_major, stat.stx_rdev_minor);
        let mut xattrs = Vec::new();
        let mut link_group = None;
        let kind = match FileType::from_raw_mode(u32::from(stat.stx_mode)) {
            FileType::RegularFile => {
                let key = FileKey::of(stat);
                if stat.stx_nlink > 1 {
                    link_group = Some((key.device, key.inode));
                }
                EntryKind::File { size_bytes: key.size_bytes, digest: self.known_digest(place, key)? }
            }
            FileType::Directory => {
                xattrs = xattr::of_file(place.directory.as_fd()).context(doing)?;
                EntryKind::Directory
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(place.directory, place.name, Vec::new()).context(doing)?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharDevice { major: device().0, minor: device().1 },
            FileType::BlockDevice => EntryKind::BlockDevice { major: device().0, minor: device().1 },
            FileType::Unknown => return Err(rustix::io::Errno::INVAL).context(doing),
        };
        let (uid, gid) = if self.tree.keeps_owners { (stat.stx_uid, stat.stx_gid) } else { (0, 0) };
        self.entries.push(Entry {
            path: place.path.to_vec(),
            land: place.land.to_vec(),
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid,
            gid,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            xattrs,
            link_group,
        });
        Ok(())
    }

    /// The remembered digest; for a file that must be read, which it has read, a place holder
    /// that [`fill`] replaces.
    fn known_digest(&mut self, place: &Place<'_>, key: FileKey) -> Result<Digest> {
        let is_trusted = self.index.is_some() && self.is_trusted(place, key.device)?;
        let remembered = self.index.filter(|_| is_trusted).and_then(|index| index.get(&key));
        if let Some(remembered) = remembered.filter(|remembered| !remembered.has_xattrs) {
            return Ok(remembered.digest);
        }
        self.hashers.push(Job {
            slot: self.entries.len(),
            directory: Arc::clone(place.directory),
            name: place.name.to_vec(),
            path: place.path.to_vec(),
            key,
            digest: remembered.map(|remembered| remembered.digest),
            is_trusted,
        });
        Ok(Digest::from_bytes([0; 32]))
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

/// Puts what was read into the entries.
pub fn fill(entries: &mut [Entry], hashed: Vec<Hashed>) {
    for Hashed { slot, size_bytes, digest, xattrs } in hashed {
        let entry = &mut entries[slot];
        entry.kind = EntryKind::File { size_bytes, digest };
        entry.xattrs = xattrs;
    }
}
