//! What a request selected once, known again without asking for any file by itself.
//!
//! A fingerprint is of all that decides the digest of a listing, with the [key](super::index::FileKey) of each file in
//! place of what it holds. A summary says which digest the listing with a fingerprint has.
//!
//! That a fingerprint is met again claims what as many hits in the index would, and no more: each file has the key by
//! which its digest was remembered, so it was settled then; its file system is trusted, then and now; it has no
//! extended attributes that count. For a summary is made of a walk only in which the index knew every file so. Names,
//! modes, directories with their attributes and targets of links are those of now. The hash is SHA-256, so that two
//! trees with one fingerprint are as hard to make as two files with one digest; it is a thirtieth of the walk's time.
//!
//! ```text
//! fingerprint  for each selection: s name
//!              for each file that is not in a directory of it: f path entry
//!              for each directory: d path mode is-passed xattrs … those in it …
//!                                  e hash of its entries, is-visible, is-selected
//! entry        name | kind and mode | device | inode | size | mtime | ctime | their nanoseconds
//!              | of a link: target | of a device: major and minor number    words of 8 bytes; zeros end a text
//! ```

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io;

use super::facts::Facts;
use super::{Form, Request, Tree, lines};
use crate::digest::{Digest, Hasher};
use crate::layer::node::first_word;

/// Of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// See [`of_request`].
    pub request: Digest,
    pub fingerprint: Digest,
    /// Of the listing.
    pub digest: Digest,
    /// How many entries that has.
    pub entries: u64,
}

impl Summary {
    pub const BYTES: usize = 104;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..32].copy_from_slice(self.request.as_bytes());
        bytes[32..64].copy_from_slice(self.fingerprint.as_bytes());
        bytes[64..96].copy_from_slice(self.digest.as_bytes());
        bytes[96..].copy_from_slice(&self.entries.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let digest = |at: usize| Digest::from_bytes(std::array::from_fn(|index| bytes[at + index]));
        let entries = u64::from_le_bytes(std::array::from_fn(|index| bytes[96 + index]));
        Self { request: digest(0), fingerprint: digest(32), digest: digest(64), entries }
    }
}

/// What decides, beside the files, what a request selects and how it is listed.
pub fn of_request(tree: &Tree, request: &Request<'_>) -> Digest {
    let mut hasher = Hasher::default();
    // Another format of listings has other digests.
    hasher.field(lines::MAGIC);
    hasher.update(&[match request.form {
        Form::Wildcard => b'w',
        Form::Parents => b'p',
        Form::Literal => b'l',
    }]);
    for count in [request.sources.len(), request.excludes.len()] {
        hasher.update(&(count as u64).to_le_bytes());
    }
    request.sources.iter().for_each(|source| hasher.field(source.as_bytes()));
    request.excludes.iter().for_each(|pattern| hasher.field(pattern.as_bytes()));
    if let Some(rules) = &tree.ignore {
        hasher.update(rules.digest().as_bytes());
    }
    hasher.finish()
}

/// A fingerprint in the making.
#[derive(Default)]
pub struct Fingerprint {
    hasher: Hasher,
    /// Of the entries of each directory that the walk is in, but for directories. They have a hash of their own, as
    /// they may be met all together or in between.
    entries: Vec<Hasher>,
}

impl Fingerprint {
    pub fn selection(&mut self, name: &[u8]) {
        self.hasher.update(b"s");
        self.hasher.field(name);
    }

    pub fn directory(&mut self, land: &[u8], mode: u32, is_passed: bool, xattrs: &[(Vec<u8>, Vec<u8>)]) {
        self.hasher.update(b"d");
        self.hasher.field(land);
        self.hasher.update(&mode.to_le_bytes());
        self.hasher.update(&[u8::from(is_passed)]);
        self.hasher.update(&(xattrs.len() as u64).to_le_bytes());
        for (name, value) in xattrs {
            self.hasher.field(name);
            self.hasher.field(value);
        }
    }

    /// The walk goes into the directory; `entries` were met already.
    pub fn enter(&mut self, entries: Hasher) {
        self.entries.push(entries);
    }

    pub fn leave(&mut self, is_visible: bool, is_selected: bool) {
        let entries = self.entries.pop().unwrap_or_default().finish();
        self.hasher.update(b"e");
        self.hasher.update(entries.as_bytes());
        self.hasher.update(&[u8::from(is_visible), u8::from(is_selected)]);
    }

    /// Anything but a directory.
    pub fn entry(&mut self, land: &[u8], name: &[u8], facts: &Facts, target: &[u8]) {
        let mut words = Vec::new();
        describe(&mut words, name, facts, target);
        match self.entries.last_mut() {
            Some(entries) => entries.update(words.as_flattened()),
            None => {
                self.hasher.update(b"f");
                self.hasher.field(land);
                self.hasher.update(words.as_flattened());
            }
        }
    }

    pub fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

/// What a fingerprint has of entries: the `memcpy` of the static binary's C library takes longer for a few bytes than
/// whole words take to be pushed.
pub type Words = Vec<[u8; 8]>;

/// Adds the entry `name` of a directory, which is asked for.
pub fn describe_at(words: &mut Words, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let facts = Facts::of(directory, name);
    let facts = facts.as_ref().map_err(|errno| *errno)?;
    match facts.file_type {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
            describe(words, name.to_bytes(), facts, target.to_bytes());
        }
        _ => describe(words, name.to_bytes(), facts, b""),
    }
    Ok(())
}

fn describe(words: &mut Words, name: &[u8], facts: &Facts, target: &[u8]) {
    let Facts { file_type, mode, device, key, .. } = facts;
    text(words, name);
    let numbers = [
        pair(file_type.as_raw_mode(), *mode),
        key.device,
        key.inode,
        key.size_bytes,
        key.mtime.0.cast_unsigned(),
        key.ctime.0.cast_unsigned(),
        pair(key.mtime.1, key.ctime.1),
    ];
    numbers.iter().for_each(|number| words.push(number.to_le_bytes()));
    match *file_type {
        FileType::Symlink => text(words, target),
        FileType::CharacterDevice | FileType::BlockDevice => words.push(pair(device.0, device.1).to_le_bytes()),
        _ => {}
    }
}

/// Adds a text in which there is no NUL, and at least one after it.
fn text(words: &mut Words, text: &[u8]) {
    let (whole, rest) = text.as_chunks();
    whole.iter().for_each(|word| words.push(*word));
    words.push(first_word(rest));
}

fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) << 32 | u64::from(second)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use rustix::fs::{CWD, RenameFlags, XattrFlags};

    use super::*;
    use crate::context::index::FileKey;
    use crate::context::tests::{LATER, plant, request, summarized, tree};
    use crate::context::{HashIndex, digest, select};

    /// What happens to a tree.
    #[derive(Debug, PartialEq, Eq)]
    enum Change {
        /// Nothing that counts.
        Same,
        /// Something else than files.
        Other,
        /// There is a file of which nothing is known.
        Unknown,
    }

    #[test]
    fn a_summary_is_of_all_that_counts() {
        use Change::{Other, Same, Unknown};
        let change = |what: fn(&Path), expected: Change| {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path();
            plant(root, "d/f=one d/g=two d/x.o=no e/f=one e/g=two empty/ link->d pipe|");
            let tree = tree(root, Some(b"*.o\n**/*.o"));
            let request = request(&["."], Form::Wildcard);
            let index = HashIndex::new(LATER);
            let before = select(&tree, &request, Some(&index)).unwrap().digest();
            assert_eq!(digest(&tree, &request, &index), Ok(Some(before)));
            // Nothing is written once it has been.
            let index = HashIndex::from_bytes(index.to_bytes().unwrap(), LATER);
            assert_eq!(digest(&tree, &request, &index), Ok(Some(before)));
            assert_eq!(index.to_bytes(), None);

            what(root);
            let after = select(&tree, &request, None).unwrap().digest();
            assert_eq!(digest(&tree, &request, &index), Ok((expected == Same).then_some(before)));
            // What does not fit is forgotten, and then made anew if all is known all the same.
            assert_eq!(index.to_bytes().is_some(), expected != Same);
            let again = digest(&tree, &request, &index).unwrap();
            assert_eq!(again, (expected != Unknown).then_some(after));
        };
        change(|_| {}, Same);
        change(|root| plant(root, "d/y.o=hidden d/x.o=changed"), Same);
        change(|root| fs::File::open(root.join("d")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap(), Same);
        change(
            |root| {
                let path = root.join("d/f");
                let modified = fs::metadata(&path).unwrap().modified().unwrap();
                fs::write(&path, "two").unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
            },
            Unknown,
        );
        change(|root| fs::rename(root.join("d/f"), root.join("d/h")).unwrap(), Unknown);
        change(|root| fs::rename(root.join("d/f"), root.join("d/g")).unwrap(), Unknown);
        change(|root| fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o711)).unwrap(), Unknown);
        change(|root| plant(root, "d/new=new"), Unknown);
        change(|root| fs::remove_file(root.join("d/f")).unwrap(), Other);
        change(|root| plant(root, "d/new/"), Other);
        change(|root| fs::remove_dir(root.join("empty")).unwrap(), Other);
        change(|root| fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o711)).unwrap(), Other);
        // The files in it know nothing of it.
        change(|root| fs::rename(root.join("d"), root.join("c")).unwrap(), Other);
        change(
            |root| {
                rustix::fs::renameat_with(CWD, root.join("d"), CWD, root.join("empty"), RenameFlags::EXCHANGE).unwrap()
            },
            Other,
        );
        change(
            |root| {
                fs::remove_file(root.join("link")).unwrap();
                plant(root, "link->e");
            },
            Other,
        );
        change(
            |root| {
                fs::remove_file(root.join("pipe")).unwrap();
                plant(root, "pipe!");
            },
            Other,
        );
    }

    #[test]
    fn every_part_of_an_entry_counts() {
        let key = FileKey { device: 1, inode: 2, size_bytes: 3, mtime: (4, 5), ctime: (6, 7) };
        let of_file = |key| Facts {
            file_type: FileType::RegularFile,
            mode: 0o644,
            link_count: 1,
            uid: 0,
            gid: 0,
            device: (0, 0),
            key,
        };
        let (file, link) = (of_file(key), Facts { file_type: FileType::Symlink, ..of_file(key) });
        let entry = |name: &str, facts: Facts, target: &str| {
            let mut fingerprint = Fingerprint::default();
            fingerprint.enter(Hasher::default());
            fingerprint.entry(b"", name.as_bytes(), &facts, target.as_bytes());
            fingerprint.leave(true, true);
            fingerprint.finish()
        };
        let directory = |land: &str, mode, is_passed, xattrs: &[(Vec<u8>, Vec<u8>)]| {
            let mut fingerprint = Fingerprint::default();
            fingerprint.directory(land.as_bytes(), mode, is_passed, xattrs);
            fingerprint.finish()
        };
        let all = [
            entry("f", file, ""),
            entry("g", file, ""),
            entry("f is longer", file, ""),
            entry("f", Facts { mode: 0o600, ..file }, ""),
            entry("f", Facts { file_type: FileType::Fifo, ..file }, ""),
            entry("f", of_file(FileKey { device: 0, ..key }), ""),
            entry("f", of_file(FileKey { inode: 0, ..key }), ""),
            entry("f", of_file(FileKey { size_bytes: 0, ..key }), ""),
            entry("f", of_file(FileKey { mtime: (0, 5), ..key }), ""),
            entry("f", of_file(FileKey { mtime: (4, 0), ..key }), ""),
            entry("f", of_file(FileKey { ctime: (0, 7), ..key }), ""),
            entry("f", of_file(FileKey { ctime: (6, 0), ..key }), ""),
            entry("f", link, "to"),
            entry("f", link, "to another place"),
            entry("f", Facts { file_type: FileType::BlockDevice, device: (1, 2), ..file }, ""),
            entry("f", Facts { file_type: FileType::BlockDevice, device: (1, 3), ..file }, ""),
            directory("d", 0o755, false, &[]),
            directory("e", 0o755, false, &[]),
            directory("d", 0o700, false, &[]),
            directory("d", 0o755, true, &[]),
            directory("d", 0o755, false, &[(b"user.a".to_vec(), b"1".to_vec())]),
            directory("d", 0o755, false, &[(b"user.a".to_vec(), b"2".to_vec())]),
        ];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_summary_is_of_one_request() {
        let directory = tempfile::tempdir().unwrap();
        plant(directory.path(), "d/f=one d/g=two");
        let (all, index) = (tree(directory.path(), None), HashIndex::new(LATER));
        let request = request(&["d"], Form::Wildcard);
        let expected = select(&all, &request, Some(&index)).unwrap().digest();
        assert_eq!(digest(&all, &request, &index), Ok(Some(expected)));
        assert_eq!(summarized(&all, &request, &index), Some(expected));
        for ignore in ["d/f", "!d/f"] {
            assert_eq!(
                summarized(&tree(directory.path(), Some(ignore.as_bytes())), &request, &index),
                None,
                "{ignore}"
            );
        }
        let (excludes, threads) = (["g".to_owned()], 1);
        for (sources, form, excludes) in [
            (["./d"], Form::Wildcard, &[][..]),
            (["d"], Form::Parents, &[]),
            (["d"], Form::Literal, &[]),
            (["d"], Form::Wildcard, &excludes),
        ] {
            let other = Request { sources: sources.to_vec(), form, excludes, threads };
            assert_eq!(summarized(&all, &other, &index), None, "{other:?}");
        }
    }

    /// What cannot be remembered of one file cannot be of many.
    #[test]
    fn there_is_no_summary_of_what_is_read_each_time() {
        let directory = tempfile::tempdir().unwrap();
        plant(directory.path(), "f=one x=one");
        let (tree, request) = (tree(directory.path(), None), request(&["."], Form::Wildcard));
        let young = HashIndex::new(Facts::of(tree.root(), "f").unwrap().key.ctime.0);
        select(&tree, &request, Some(&young)).unwrap();
        assert_eq!(digest(&tree, &request, &young), Ok(None));
        assert_eq!(young.to_bytes(), None);

        if rustix::fs::setxattr(directory.path().join("x"), "user.a", b"1", XattrFlags::empty()).is_ok() {
            let index = HashIndex::new(LATER);
            select(&tree, &request, Some(&index)).unwrap();
            assert_eq!(digest(&tree, &request, &index), Ok(None));
            assert_eq!(summarized(&tree, &request, &index), None);
        }
    }
}
