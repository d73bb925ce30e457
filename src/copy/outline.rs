//! A copy without what it copies: files stand in a root for what is to be there, which is read from where it comes from
//! when the layer is packed. A directory that the copy itself makes has one file for all that is in it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use tar::EntryType;

use super::chmod::Mode;
use super::file::{Source, cannot_read, changed};
use super::{Owner, place};
use crate::context::{Entry, EntryKind, Listing, Read, Unread};
use crate::diag::{Context as _, Diagnostic, Result};
use crate::digest::Digest;
use crate::layer::xattr::{CAPABILITY, Xattrs, portable_capability};
use crate::layer::{Content, Contents, Expected, Member, Put};

/// What stands for what, by path.
pub(super) type Outlined = BTreeMap<Vec<u8>, StandIn>;

/// What a file stands for: entries of a selection.
pub(super) struct StandIn {
    pub selection: usize,
    pub entries: Range<usize>,
    pub at: At,
}

/// Where they land.
pub(super) enum At {
    /// This one has the path of the file.
    Itself,
    /// Beneath the directory at this path.
    Beneath(Vec<u8>),
}

/// How what lands differs from what is listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks {
    pub owner: Option<Owner>,
    pub chmod: Option<Mode>,
}

impl Looks {
    pub fn owner_of(&self, entry: &Entry) -> Owner {
        self.owner.unwrap_or(Owner { uid: entry.uid, gid: entry.gid })
    }

    pub fn mode(&self, mode: u32, is_directory: bool) -> u32 {
        self.chmod.as_ref().map_or(mode, |chmod| chmod.apply(mode, is_directory))
    }
}

/// What an outlined copy is made of. The tree it comes from stays open as long.
pub struct Outline<'a> {
    source: Source<'a>,
    listing: &'a Listing,
    unread: &'a [Unread],
    looks: Looks,
    stand_ins: Outlined,
    /// Where the first of several links of a file landed. Those of other selections are files of their own.
    linked: RefCell<BTreeMap<Link, Vec<u8>>>,
    /// What was found of files when they were opened.
    opened: RefCell<Vec<Opened>>,
}

/// A selection, and a group of links in it.
type Link = (usize, (u64, u64));

struct Opened {
    number: usize,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    is_as_listed: bool,
}

impl<'a> Outline<'a> {
    pub(super) fn new(
        tree: BorrowedFd<'a>,
        listing: &'a Listing,
        unread: &'a [Unread],
        looks: Looks,
        stand_ins: Outlined,
    ) -> Self {
        let source = Source::new(tree);
        let (linked, opened) = (RefCell::default(), RefCell::default());
        Self { source, listing, unread, looks, stand_ins, linked, opened }
    }

    /// Of the files that are not in the root themselves.
    pub fn size_bytes(&self) -> u64 {
        let mut linked = BTreeSet::new();
        let mut sum: u64 = 0;
        for stand_in in self.stand_ins.values() {
            for entry in self.entries(stand_in) {
                // One file, however many names it has.
                let is_link = entry.link_group.is_some_and(|group| !linked.insert((stand_in.selection, group)));
                if let EntryKind::File { size_bytes, .. } | EntryKind::Unread { size_bytes, .. } = entry.kind
                    && !is_link
                {
                    sum = sum.saturating_add(size_bytes);
                }
            }
        }
        sum
    }

    /// What was read of files that nobody had read before, given the [digests](crate::layer::pack_outline) found.
    pub fn read(self, found: Vec<(usize, Digest)>) -> Vec<Read> {
        // Both are in the order of the layer.
        let opened = self.opened.into_inner().into_iter();
        let read = opened.zip(found).map(|(Opened { number, xattrs, is_as_listed }, (same, digest))| {
            debug_assert_eq!(number, same);
            Read { number, digest, xattrs, is_as_listed }
        });
        read.collect()
    }

    fn entries(&self, StandIn { selection, entries, .. }: &StandIn) -> &'a [Entry] {
        &self.listing.selections[*selection].entries[entries.clone()]
    }

    fn put(&self, path: Vec<u8>, selection: usize, entry: &Entry, put: &mut Put<'_>) -> Result<()> {
        let Owner { uid, gid } = self.looks.owner_of(entry);
        let mode = self.looks.mode(entry.mode, entry.kind == EntryKind::Directory);
        let nothing = Member {
            path: &path,
            entry_type: EntryType::Regular,
            mode,
            uid,
            gid,
            size_bytes: 0,
            mtime: entry.mtime.0,
            link: &[],
            major: 0,
            minor: 0,
            xattrs: &[],
        };
        if let Some(link) = entry.link_group.map(|group| (selection, group)) {
            let mut linked = self.linked.borrow_mut();
            if let Some(first) = linked.get(&link) {
                let xattrs = match entry.kind {
                    EntryKind::Unread { number, .. } => self.xattrs_of(number),
                    _ => layer_xattrs(&entry.xattrs),
                };
                return put(&Member { entry_type: EntryType::Link, link: first, xattrs: &xattrs, ..nothing }, None);
            }
            linked.insert(link, path.clone());
        }
        match &entry.kind {
            EntryKind::File { size_bytes, digest } => {
                let xattrs = layer_xattrs(&entry.xattrs);
                let file = self.source.open(&entry.path, *size_bytes)?;
                let content = Content { file, expected: Expected::Digest(*digest) };
                put(&Member { size_bytes: *size_bytes, xattrs: &xattrs, ..nothing }, Some(content))
            }
            EntryKind::Unread { size_bytes, number } => {
                let file = self.source.open(&entry.path, *size_bytes)?;
                let looked = self.unread[*number].look(&file).context(|| cannot_read(&entry.path))?;
                let xattrs = layer_xattrs(&looked.xattrs);
                let content = Content { file, expected: Expected::Anything(*number) };
                let opened = Opened { number: *number, xattrs: looked.xattrs, is_as_listed: looked.is_as_listed };
                self.opened.borrow_mut().push(opened);
                put(&Member { size_bytes: *size_bytes, xattrs: &xattrs, ..nothing }, Some(content))
            }
            EntryKind::Directory => {
                let xattrs = layer_xattrs(&entry.xattrs);
                let path = [path.as_slice(), b"/"].concat();
                let member = Member { path: &path, entry_type: EntryType::Directory, xattrs: &xattrs, ..nothing };
                put(&member, None)
            }
            EntryKind::Symlink { target } => {
                // Links have no mode of their own.
                put(&Member { entry_type: EntryType::Symlink, link: target, mode: 0o777, ..nothing }, None)
            }
            EntryKind::Fifo => put(&Member { entry_type: EntryType::Fifo, ..nothing }, None),
            // What BuildKit makes of it: there is no socket in a layer.
            EntryKind::Socket => put(&nothing, None),
            EntryKind::CharDevice { major: 0, minor: 0 } => Err(place::no_whiteout(&path)),
            EntryKind::CharDevice { major, minor } => {
                put(&Member { entry_type: EntryType::Char, major: *major, minor: *minor, ..nothing }, None)
            }
            EntryKind::BlockDevice { major, minor } => {
                put(&Member { entry_type: EntryType::Block, major: *major, minor: *minor, ..nothing }, None)
            }
        }
    }

    /// Of a file that was opened.
    fn xattrs_of(&self, number: usize) -> Xattrs {
        let opened = self.opened.borrow();
        let found = opened.iter().find(|opened| opened.number == number);
        found.map(|opened| layer_xattrs(&opened.xattrs)).unwrap_or_default()
    }
}

impl Contents for Outline<'_> {
    fn instead(&self, path: &[u8], put: &mut Put<'_>) -> Result<bool> {
        let Some(stand_in) = self.stand_ins.get(path) else { return Ok(false) };
        for entry in self.entries(stand_in) {
            let path = match &stand_in.at {
                At::Itself => path.to_vec(),
                At::Beneath(directory) => place::join(directory, &entry.land),
            };
            self.put(path, stand_in.selection, entry, put)?;
        }
        Ok(true)
    }

    fn is_another(&self, path: &[u8]) -> Diagnostic {
        let source = self.stand_ins.iter().find_map(|(name, stand_in)| {
            let mut entries = self.entries(stand_in).iter();
            let is_it = |entry: &&Entry| match &stand_in.at {
                At::Itself => name == path,
                At::Beneath(directory) => place::join(directory, &entry.land) == path,
            };
            entries.find(is_it)
        });
        changed(source.map_or(path, |entry| &entry.path))
    }
}

/// As a layer carries them.
fn layer_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Xattrs {
    let of_layer = |(name, value): &(Vec<u8>, Vec<u8>)| {
        // A name that the kernel gave has no NUL.
        let name = CString::new(name.as_slice()).ok()?;
        let value = if name.as_c_str() == CAPABILITY { portable_capability(value.clone()) } else { value.clone() };
        Some((name, value))
    };
    xattrs.iter().filter_map(of_layer).collect()
}
