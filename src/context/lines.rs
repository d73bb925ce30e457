//! A listing as lines of bytes: what its digest is of, what a cache record keeps, and what two
//! builds are compared by.
//!
//! ```text
//! path \0 kind mode uid:gid [size digest | major:minor] \0 target of a link \0 xattr=hex \0 …
//! ```
//!
//! The path is the name of the source and what is below it (`src/main.c` of `COPY lib/src /src`).
//! A selection begins where an entry is a source itself. Times, inode numbers and where in the
//! tree a file was are in no line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Entry, EntryKind, Listing};
use crate::digest::Digest;

/// The first bytes of stored lines, with the version of their format.
pub(super) const MAGIC: &[u8] = b"wythe listing 1\n";

/// One line an entry, in order.
pub fn lines(listing: &Listing) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    each(listing, |line| lines.push(line.to_vec()));
    lines
}

/// Calls `take` with each line in order.
pub(super) fn each(listing: &Listing, mut take: impl FnMut(&[u8])) {
    let mut writer = Writer::default();
    for selection in &listing.selections {
        for entry in &selection.entries {
            take(writer.entry(&selection.name, entry));
        }
    }
}

/// Writes one line after the other, of which there may be a hundred thousand in every cached build.
#[derive(Default)]
pub(super) struct Writer {
    line: Vec<u8>,
    /// The last kind, mode, owner and group, and how they are written: most files of a tree have the same.
    last: Option<(Attributes, Vec<u8>)>,
}

type Attributes = (&'static str, u32, u32, u32);

impl Writer {
    /// The line of an entry of the selection `name`.
    pub fn entry(&mut self, name: &[u8], entry: &Entry) -> &[u8] {
        let kind = match &entry.kind {
            EntryKind::File { size_bytes, digest } => {
                self.content(name, &entry.land, (entry.mode, entry.uid, entry.gid), *size_bytes, digest);
                return self.xattrs(entry);
            }
            EntryKind::Unread { .. } => unreachable!("a listing is of files that were read"),
            EntryKind::Directory if entry.is_passed => "passed-directory",
            EntryKind::Directory => "directory",
            EntryKind::Symlink { .. } => "link",
            EntryKind::Fifo => "fifo",
            EntryKind::Socket => "socket",
            EntryKind::CharDevice { .. } => "character-device",
            EntryKind::BlockDevice { .. } => "block-device",
        };
        self.begin(name, &entry.land, (kind, entry.mode, entry.uid, entry.gid));
        let line = &mut self.line;
        if let EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } = &entry.kind {
            line.push(b' ');
            decimal(line, (*major).into());
            line.push(b':');
            decimal(line, (*minor).into());
        }
        line.push(0);
        if let EntryKind::Symlink { target } = &entry.kind {
            line.extend_from_slice(target);
        }
        self.xattrs(entry)
    }

    /// That of a file without xattrs.
    pub fn file(
        &mut self,
        name: &[u8],
        land: &[u8],
        mode_and_ids: (u32, u32, u32),
        size_bytes: u64,
        digest: &Digest,
    ) -> &[u8] {
        self.content(name, land, mode_and_ids, size_bytes, digest);
        &self.line
    }

    fn content(
        &mut self,
        name: &[u8],
        land: &[u8],
        (mode, uid, gid): (u32, u32, u32),
        size_bytes: u64,
        digest: &Digest,
    ) {
        self.begin(name, land, ("file", mode, uid, gid));
        self.line.push(b' ');
        decimal(&mut self.line, size_bytes);
        self.line.push(b' ');
        self.line.extend_from_slice(&digest.hex_digits());
        self.line.push(0);
    }

    /// The path, and what all kinds have.
    fn begin(&mut self, name: &[u8], land: &[u8], attributes: Attributes) {
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(name);
        if !name.is_empty() && !land.is_empty() {
            line.push(b'/');
        }
        line.extend_from_slice(land);
        if line.is_empty() {
            line.push(b'.');
        }
        match &self.last {
            Some((last, written)) if *last == attributes => line.extend_from_slice(written),
            _ => {
                let written = written(attributes);
                line.extend_from_slice(&written);
                self.last = Some((attributes, written));
            }
        }
    }

    fn xattrs(&mut self, entry: &Entry) -> &[u8] {
        for (name, value) in &entry.xattrs {
            self.line.push(0);
            self.line.extend_from_slice(name);
            self.line.push(b'=');
            let digits = value.iter().flat_map(|byte| [byte >> 4, byte & 15]);
            self.line.extend(digits.map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        &self.line
    }
}

/// With the NUL before them.
fn written((kind, mode, uid, gid): Attributes) -> Vec<u8> {
    let mut written = vec![0];
    written.extend_from_slice(kind.as_bytes());
    written.push(b' ');
    written.extend_from_slice(&[9, 6, 3, 0].map(|shift| b'0' + (mode >> shift & 7) as u8));
    written.push(b' ');
    decimal(&mut written, uid.into());
    written.push(b':');
    decimal(&mut written, gid.into());
    written
}

fn decimal(line: &mut Vec<u8>, mut number: u64) {
    const MOST_DIGITS: usize = 20;
    let mut digits = [b'0'; MOST_DIGITS];
    let mut first = MOST_DIGITS;
    loop {
        first -= 1;
        digits[first] += (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return line.extend_from_slice(&digits[first..]);
        }
    }
}

/// Lines as they are stored: each behind its length.
pub fn to_bytes(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for line in lines {
        bytes.extend_from_slice(&(line.len() as u32).to_le_bytes());
        bytes.extend_from_slice(line);
    }
    bytes
}

/// Reads what [`to_bytes`] wrote; nothing if it is something else or cut off. What is read is
/// never larger than `bytes`, whatever the lengths in it say.
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (line, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        lines.push(line.to_vec());
        rest = after;
    }
    Some(lines)
}

/// How a path differs between two listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub path: Vec<u8>,
    pub what: What,
}

/// Old and new values where there are any, as they stand in the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Added,
    Removed,
    Kind(String, String),
    /// The sizes; they may be the same.
    Content(String, String),
    Mode(String, String),
    Owner(String, String),
    Device(String, String),
    Target(String, String),
    Xattrs,
    /// Nothing but the order of the sources.
    Order,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added => f.write_str("added"),
            Self::Removed => f.write_str("removed"),
            Self::Kind(old, new) => write!(f, "was a {old}, is a {new}"),
            Self::Content(old, new) if old == new => write!(f, "content changed ({old} bytes)"),
            Self::Content(old, new) => write!(f, "content changed ({old} → {new} bytes)"),
            Self::Mode(old, new) => write!(f, "mode changed ({old} → {new})"),
            Self::Owner(old, new) => write!(f, "owner changed ({old} → {new})"),
            Self::Device(old, new) => write!(f, "device changed ({old} → {new})"),
            Self::Target(old, new) => write!(f, "link target changed (`{old}` → `{new}`)"),
            Self::Xattrs => f.write_str("extended attributes changed"),
            Self::Order => f.write_str("order of the sources changed"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path.escape_ascii(), self.what)
    }
}

/// What has changed from `old` to `new`, sorted by path; a path may have several changes.
pub fn diff(old: &[Vec<u8>], new: &[Vec<u8>]) -> Vec<Change> {
    let (old_paths, new_paths) = (by_path(old), by_path(new));
    let paths: BTreeSet<&[u8]> = old_paths.keys().chain(new_paths.keys()).copied().collect();
    let mut changes = Vec::new();
    for path in paths {
        let none = Vec::new();
        let (old, new) = (old_paths.get(path).unwrap_or(&none), new_paths.get(path).unwrap_or(&none));
        let mut push = |what| changes.push(Change { path: path.to_vec(), what });
        for index in 0..old.len().max(new.len()) {
            match (old.get(index), new.get(index)) {
                (Some(old), Some(new)) => compare(old, new, &mut push),
                (Some(_), None) => push(What::Removed),
                _ => push(What::Added),
            }
        }
    }
    let is_moved = |(old, new): &(&Vec<u8>, &Vec<u8>)| old != new;
    if let (true, Some((_, moved))) = (changes.is_empty(), old.iter().zip(new).find(is_moved)) {
        changes.push(Change { path: split(moved).0.to_vec(), what: What::Order });
    }
    changes
}

/// Two sources may hold the same path: then a path has several lines, in order.
fn by_path(lines: &[Vec<u8>]) -> BTreeMap<&[u8], Vec<&[u8]>> {
    let mut paths: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for line in lines {
        let (path, facts) = split(line);
        paths.entry(path).or_default().push(facts);
    }
    paths
}

/// The line up to the first NUL, and what is behind.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|byte| *byte == 0).unwrap_or(line.len());
    (&line[..end], line.get(end + 1..).unwrap_or(&[]))
}

fn compare(old: &[u8], new: &[u8], push: &mut impl FnMut(What)) {
    if old == new {
        return;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ((old_facts, old_rest), (new_facts, new_rest)) = (split(old), split(new));
    let (old_facts, new_facts) = (text(old_facts), text(new_facts));
    let (old_facts, new_facts): (Vec<&str>, Vec<&str>) =
        (old_facts.split(' ').collect(), new_facts.split(' ').collect());
    let fact = |index: usize| {
        let (old, new) = (old_facts.get(index).unwrap_or(&""), new_facts.get(index).unwrap_or(&""));
        (*old != *new, (*old).to_owned(), (*new).to_owned())
    };
    // The fields of a file and of a device are no match for each other.
    if let (true, old, new) = fact(0) {
        return push(What::Kind(old.replace('-', " "), new.replace('-', " ")));
    }
    if fact(4).0 {
        let (_, old, new) = fact(3);
        push(What::Content(old, new));
    } else if let (true, old, new) = fact(3) {
        push(What::Device(old, new));
    }
    if let (true, old, new) = fact(1) {
        push(What::Mode(old, new));
    }
    if let (true, old, new) = fact(2) {
        push(What::Owner(old, new));
    }
    let ((old_target, old_xattrs), (new_target, new_xattrs)) = (split(old_rest), split(new_rest));
    if old_target != new_target {
        push(What::Target(text(old_target), text(new_target)));
    }
    if old_xattrs != new_xattrs {
        push(What::Xattrs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Selection;

    fn file(land: &str, content: &str) -> Entry {
        Entry {
            path: format!("somewhere/{land}").into_bytes(),
            land: land.as_bytes().to_vec(),
            kind: EntryKind::File { size_bytes: content.len() as u64, digest: Digest::of(content.as_bytes()) },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1, 2),
            xattrs: Vec::new(),
            link_group: None,
            is_passed: false,
        }
    }

    fn listing(selections: &[(&str, &[Entry])]) -> Listing {
        let selection = |(name, entries): &(&str, &[Entry])| Selection {
            name: name.as_bytes().to_vec(),
            entries: entries.to_vec(),
        };
        Listing { selections: selections.iter().map(selection).collect() }
    }

    fn changes(old: &Entry, new: &Entry) -> Vec<String> {
        let lines = |entry: &Entry| listing(&[("x", std::slice::from_ref(entry))]).lines();
        diff(&lines(old), &lines(new)).iter().map(|change| change.what.to_string()).collect()
    }

    #[test]
    fn a_line_is_stable() {
        let mut entry = file("main.c", "a");
        entry.xattrs = vec![(b"user.a".to_vec(), vec![0, 255])];
        let lines = listing(&[("src", &[entry])]).lines();
        let digest = Digest::of(b"a");
        let expected = format!("src/main.c\0file 0644 0:0 1 {}\0\0user.a=00ff", digest.hex());
        assert_eq!(lines, [expected.into_bytes()]);

        for (mode, ids, device, expected) in [
            (0o7777, (1, 10), (0, 1), "character-device 7777 1:10 0:1"),
            (
                0,
                (u32::MAX, 4_000_000_000),
                (u32::MAX, 100),
                "character-device 0000 4294967295:4000000000 4294967295:100",
            ),
        ] {
            let (kind, (uid, gid)) = (EntryKind::CharDevice { major: device.0, minor: device.1 }, ids);
            let entry = Entry { kind, mode, uid, gid, ..file("", "") };
            assert_eq!(listing(&[("d", &[entry])]).lines(), [format!("d\0{expected}\0").into_bytes()]);
        }
        for size_bytes in [0, 9, 10, u64::MAX] {
            let digest = Digest::of(b"");
            let entry = Entry { kind: EntryKind::File { size_bytes, digest }, ..file("", "") };
            let expected = format!("f\0file 0644 0:0 {size_bytes} {}\0", digest.hex());
            assert_eq!(listing(&[("f", &[entry])]).lines(), [expected.into_bytes()]);
        }
    }

    #[test]
    fn times_and_places_do_not_count_and_all_else_does() {
        let old = file("f", "a");
        let same = Entry { path: b"elsewhere".to_vec(), mtime: (9, 9), link_group: Some((1, 2)), ..old.clone() };
        let digest = |entry: &Entry| listing(&[("x", std::slice::from_ref(entry))]).digest();
        assert_eq!(digest(&old), digest(&same));
        assert!(changes(&old, &same).is_empty());

        let link = Entry { kind: EntryKind::Symlink { target: b"t".to_vec() }, ..old.clone() };
        let other_link = Entry { kind: EntryKind::Symlink { target: b"u".to_vec() }, ..old.clone() };
        let device = Entry { kind: EntryKind::CharDevice { major: 1, minor: 3 }, ..old.clone() };
        let other_device = Entry { kind: EntryKind::CharDevice { major: 1, minor: 5 }, ..old.clone() };
        let table: &[(&Entry, &Entry, &[&str])] = &[
            (&old, &file("f", "b"), &["content changed (1 bytes)"]),
            (&old, &file("f", "bb"), &["content changed (1 → 2 bytes)"]),
            (&old, &Entry { mode: 0o4755, ..old.clone() }, &["mode changed (0644 → 4755)"]),
            (&old, &Entry { uid: 5, gid: 6, ..old.clone() }, &["owner changed (0:0 → 5:6)"]),
            (
                &old,
                &Entry { xattrs: vec![(b"user.a".to_vec(), vec![])], ..old.clone() },
                &["extended attributes changed"],
            ),
            (&old, &link, &["was a file, is a link"]),
            (&old, &device, &["was a file, is a character device"]),
            (&link, &other_link, &["link target changed (`t` → `u`)"]),
            (&device, &other_device, &["device changed (1:3 → 1:5)"]),
            (
                &old,
                &Entry { mode: 0o600, ..file("f", "b") },
                &["content changed (1 bytes)", "mode changed (0644 → 0600)"],
            ),
        ];
        for (old, new, expected) in table {
            assert_eq!(changes(old, new), *expected);
            assert_ne!(digest(old), digest(new), "{expected:?}");
        }
    }

    #[test]
    fn paths_come_and_go_and_change_places() {
        let (a, b) = (file("", "a"), file("", "b"));
        let old = listing(&[("a", std::slice::from_ref(&a)), ("b", std::slice::from_ref(&b))]);
        let new = listing(&[("a", std::slice::from_ref(&a)), ("c", std::slice::from_ref(&b))]);
        let show = |old: &Listing, new: &Listing| {
            let changes = diff(&old.lines(), &new.lines());
            let show = |change: &Change| format!("{} {}", String::from_utf8_lossy(&change.path), change.what);
            changes.iter().map(show).collect::<Vec<_>>()
        };
        assert_eq!(show(&old, &new), ["b removed", "c added"]);

        let turned = listing(&[("b", std::slice::from_ref(&b)), ("a", std::slice::from_ref(&a))]);
        assert_eq!(show(&old, &turned), ["b order of the sources changed"]);
        assert_ne!(old.digest(), turned.digest());

        let twice = listing(&[("a", std::slice::from_ref(&a)), ("a", std::slice::from_ref(&b))]);
        assert_eq!(show(&listing(&[("a", std::slice::from_ref(&a))]), &twice), ["a added"]);
    }

    #[test]
    fn stored_lines_are_read_back_and_torn_ones_are_not() {
        let lines = vec![b"a\0b".to_vec(), Vec::new(), b"c\nd".to_vec()];
        let bytes = to_bytes(&lines);
        assert_eq!(from_bytes(&bytes), Some(lines));
        assert_eq!(from_bytes(&bytes[..bytes.len() - 1]), None);
        assert_eq!(from_bytes(b""), None);
        assert_eq!(from_bytes(&[MAGIC, &[0xff; 4]].concat()), None);
    }
}
