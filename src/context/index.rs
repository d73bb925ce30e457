//! Remembered content digests of files, by (device, inode, size, mtime, ctime).
//!
//! A digest is remembered only if the file's ctime was at least two seconds old when it was
//! hashed: a later change then has another ctime, however coarse the clock of the file system is,
//! and a ctime cannot be set back. So a hit needs no second look at the file.
//!
//! ```text
//! "wythe hash index 3\n" | number of summaries 1 | summary …, the newest first | XXH3 (64 bits) of all before
//!     | record … sorted by device and inode | XXH3 (64 bits) of the records
//! summary: request 32 | fingerprint 32 | digest 32 | entries 8
//! record: device 8 | inode 8 | size 8 | mtime 8+4 | ctime 8+4 | flags 4 | reserved 12 | digest 32     little endian
//! ```
//!
//! Where a [summary] fits, the records, of which there may be many, are not even read.
//!
//! [summary]: super::summary

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::summary::Summary;
use crate::diag::{Context as _, Result};
use crate::digest::Digest;

const MAGIC: &[u8] = b"wythe hash index 3\n";
const RECORD_BYTES: usize = 96;
/// Against damage, not against people: who can write here can write anything.
const CHECKSUM_BYTES: usize = 8;
const MAX_HEAD_BYTES: usize = MAGIC.len() + 1 + MAX_SUMMARIES * Summary::BYTES + CHECKSUM_BYTES;
/// The largest index that is read: some eleven million files.
const MAX_BYTES: u64 = 1 << 30;
/// Of so many requests, the newest.
const MAX_SUMMARIES: usize = 64;
/// How old a ctime must be: the coarsest file system (FAT) counts in steps of two seconds.
const SETTLED_SECONDS: i64 = 2;

type Record = [u8; RECORD_BYTES];

/// The hash index of one context directory. Threads may use it together.
#[derive(Debug, Default)]
pub struct HashIndex {
    /// When this build began, in seconds of the clock that stamps files.
    now: i64,
    summaries: Mutex<Summaries>,
    /// Where the rest of the file is to be read from.
    rest: Mutex<Option<Rest>>,
    old: OnceLock<Old>,
    /// The record after the one that was found last: files that were made one after the other are met so.
    next: AtomicUsize,
    new: Mutex<BTreeMap<FileKey, Remembered>>,
}

/// What comes after the summaries.
struct Rest {
    file: Box<dyn Read + Send>,
    /// At most.
    size_bytes: usize,
}

#[derive(Debug, Default)]
struct Summaries {
    list: Vec<Summary>,
    /// Entries of those that were met again.
    met: u64,
    have_changed: bool,
}

/// The records as they were on disk.
#[derive(Debug, Default)]
struct Old {
    bytes: Vec<u8>,
    /// Which of them this build has met.
    seen: Vec<AtomicBool>,
}

/// What a file is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey {
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
}

impl FileKey {
    fn to_bytes(self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[0..8].copy_from_slice(&self.device.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.mtime.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.mtime.1.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.ctime.0.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.ctime.1.to_le_bytes());
        bytes
    }
}

/// What is known of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub digest: Digest,
    /// It has extended attributes that count: they are to be read again.
    pub has_xattrs: bool,
}

impl HashIndex {
    /// An index without a file, which forgets at the end of the build. `now` is in seconds since
    /// the epoch, of the clock that stamps files (`CLOCK_REALTIME_COARSE`), read before the first
    /// file is looked at.
    pub fn new(now: i64) -> Self {
        Self { now, ..Self::default() }
    }

    /// Reads the index at `path`; one that is missing, torn or of another version is empty.
    pub fn load(path: &Path, now: i64) -> Self {
        let Ok(file) = File::open(path) else { return Self::new(now) };
        match file.metadata() {
            Ok(metadata) if metadata.len() <= MAX_BYTES => Self::read(file, metadata.len() as usize, now),
            _ => Self::new(now),
        }
    }

    /// As [`HashIndex::load`], from the bytes of the file.
    pub fn from_bytes(bytes: Vec<u8>, now: i64) -> Self {
        let size_bytes = bytes.len();
        Self::read(io::Cursor::new(bytes), size_bytes, now)
    }

    fn read(mut file: impl Read + Send + 'static, size_bytes: usize, now: i64) -> Self {
        let Some(list) = read_summaries(&mut file) else { return Self::new(now) };
        let summaries = Mutex::new(Summaries { list, ..Summaries::default() });
        let rest = Rest { file: Box::new(file), size_bytes };
        Self { summaries, rest: Mutex::new(Some(rest)), ..Self::new(now) }
    }

    /// How many files it remembered when it was loaded: about as many as there are to be met.
    pub fn expected(&self) -> usize {
        self.old().records().len()
    }

    /// Whether a request may be known again.
    pub fn has_summary(&self, request: &Digest) -> bool {
        self.summaries().list.iter().any(|summary| summary.request == *request)
    }

    /// The digest of the listing with this fingerprint. Where the request had another one the last time, that is
    /// forgotten: to compare is a walk by itself, which must not be in vain again and again.
    pub fn recall(&self, request: &Digest, fingerprint: &Digest) -> Option<Digest> {
        let mut summaries = self.summaries();
        let place = summaries.list.iter().position(|summary| summary.request == *request)?;
        let summary = summaries.list[place];
        if summary.fingerprint == *fingerprint {
            summaries.met += summary.entries;
            return Some(summary.digest);
        }
        summaries.list.remove(place);
        summaries.have_changed = true;
        None
    }

    /// Remembers what a request was found to select, of which every file was in the index.
    pub fn summarize(&self, summary: Summary) {
        let mut summaries = self.summaries();
        if summaries.list.contains(&summary) {
            return;
        }
        summaries.list.retain(|other| other.request != summary.request);
        summaries.list.insert(0, summary);
        summaries.list.truncate(MAX_SUMMARIES);
        summaries.have_changed = true;
    }

    /// The digest of the file, if it was hashed before and has not changed since.
    pub fn get(&self, key: &FileKey) -> Option<Remembered> {
        if let Some(index) = self.find(key) {
            let old = self.old();
            let record = &old.records()[index];
            let digest = Digest::from_bytes(*record.last_chunk()?);
            old.seen[index].store(true, Ordering::Relaxed);
            return Some(Remembered { digest, has_xattrs: record[48] != 0 });
        }
        self.new.lock().ok()?.get(key).copied()
    }

    /// Remembers a file that was read after its key was taken. One whose ctime is too young is
    /// not remembered.
    pub fn insert(&self, key: FileKey, remembered: Remembered) {
        if key.ctime.0 > self.now - SETTLED_SECONDS - 1 {
            return;
        }
        // A thread that panicked left the map whole: every change of it is one call.
        let mut new = self.new.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        new.insert(key, remembered);
    }

    /// Writes the index beside `path` and renames it there, if it is not what was read: with what
    /// is new, and without what this build has not met.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Some(bytes) = self.to_bytes() else {
            return Ok(());
        };
        let doing = || format!("cannot write `{}`", path.display());
        let directory = path.parent().unwrap_or(Path::new("."));
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&bytes)?;
            file.persist(path)?;
            Ok(())
        };
        write().context(doing)
    }

    /// The bytes of the index as [`HashIndex::save`] would write it; nothing if nothing changed.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        let mut summaries = self.summaries();
        let is_same = new.is_empty() && !summaries.have_changed;
        // Which files a summary stood for nobody knows: then none is forgotten.
        let is_met = summaries.met > 0;
        if is_same && (is_met || self.old().seen.iter().all(|seen| seen.load(Ordering::Relaxed))) {
            return None;
        }
        let old = self.old();
        let is_seen = |seen: &AtomicBool| seen.load(Ordering::Relaxed);
        let kept = old.records().iter().zip(&old.seen).filter(|(_, seen)| is_met || is_seen(seen));
        let mut records: Vec<Record> = kept.map(|(record, _)| *record).collect();
        // But when they have become many more than there are files, the next build is to meet each.
        let alive = old.seen.iter().filter(|seen| is_seen(seen)).count() + new.len();
        if is_met && (records.len() as u64) / 2 > alive as u64 + summaries.met {
            summaries.list.clear();
        }
        records.extend(new.iter().map(|(key, remembered)| {
            let mut record = [0; RECORD_BYTES];
            record[..48].copy_from_slice(&key.to_bytes());
            record[48] = u8::from(remembered.has_xattrs);
            record[64..].copy_from_slice(remembered.digest.as_bytes());
            record
        }));
        // Both parts are in order: a stable sort finds that and merges them.
        records.sort_by_key(order);
        let records = records.as_flattened();
        let mut bytes = Vec::with_capacity(MAX_HEAD_BYTES + records.len() + CHECKSUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.push(summaries.list.len() as u8); // at most `MAX_SUMMARIES`
        summaries.list.iter().for_each(|summary| bytes.extend_from_slice(&summary.to_bytes()));
        let checksum_of_head = checksum(&bytes);
        bytes.extend_from_slice(&checksum_of_head);
        bytes.extend_from_slice(records);
        bytes.extend_from_slice(&checksum(records));
        Some(bytes)
    }

    fn summaries(&self) -> MutexGuard<'_, Summaries> {
        self.summaries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn old(&self) -> &Old {
        self.old.get_or_init(|| {
            let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner).take();
            rest.and_then(read_records).unwrap_or_default()
        })
    }

    /// The records are never turned into anything else.
    fn find(&self, key: &FileKey) -> Option<usize> {
        let (records, bytes) = (self.old().records(), key.to_bytes());
        let next = self.next.load(Ordering::Relaxed);
        if records.get(next).is_some_and(|record| record[..48] == bytes) {
            self.next.store(next + 1, Ordering::Relaxed);
            return Some(next);
        }
        let wanted = (key.device, key.inode);
        let first = records.partition_point(|record| order(record) < wanted);
        let same = records[first..].iter().take_while(|record| order(record) == wanted);
        let found = same.enumerate().find(|(_, record)| record[..48] == bytes).map(|(index, _)| first + index)?;
        self.next.store(found + 1, Ordering::Relaxed);
        Some(found)
    }
}

impl Old {
    fn records(&self) -> &[Record] {
        self.bytes.as_chunks().0
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rest")
    }
}

/// Reads up to where the records begin.
fn read_summaries(file: &mut impl Read) -> Option<Vec<Summary>> {
    let mut bytes = Vec::with_capacity(MAX_HEAD_BYTES);
    let mut read = |bytes: &mut Vec<u8>, count: usize| {
        let before = bytes.len();
        file.take(count as u64).read_to_end(bytes).ok().filter(|_| bytes.len() == before + count)
    };
    read(&mut bytes, MAGIC.len() + 1)?;
    let count = usize::from(*bytes.strip_prefix(MAGIC)?.first()?);
    read(&mut bytes, count * Summary::BYTES + CHECKSUM_BYTES)?;
    let (head, sum) = bytes.split_last_chunk()?;
    let summaries = head[MAGIC.len() + 1..].as_chunks().0.iter().map(Summary::from_bytes);
    (checksum(head) == *sum).then(|| summaries.collect())
}

fn read_records(mut rest: Rest) -> Option<Old> {
    let mut bytes = Vec::with_capacity(rest.size_bytes);
    rest.file.read_to_end(&mut bytes).ok()?;
    let (records, sum) = bytes.split_last_chunk()?;
    if !records.len().is_multiple_of(RECORD_BYTES) || checksum(records) != *sum {
        return None;
    }
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    let mut seen = Vec::new();
    seen.resize_with(bytes.len() / RECORD_BYTES, AtomicBool::default);
    Some(Old { bytes, seen })
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    xxhash_rust::xxh3::xxh3_64(bytes).to_le_bytes()
}

fn order(record: &Record) -> (u64, u64) {
    let numbers = record.as_chunks().0;
    (u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1]))
}

/// Whether inode numbers and times of the file system with this `statfs` magic can be trusted to
/// tell files apart: not where another machine can change a file and the times are cached.
pub fn is_trusted(magic: u32) -> bool {
    const REMOTE: &[u32] = &[
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x6573_5546, // FUSE, virtiofs
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x6b41_4653, // kAFS
        0x7375_7245, // Coda
        0x564c,      // NCP
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
        0x0116_1970, // GFS2
        0x7461_636f, // OCFS2
        0x786f_4256, // VirtualBox shared folders
        0xbacb_acbc, // VMware shared folders
    ];
    !REMOTE.contains(&magic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const NOW: i64 = 1_000_000;

    fn key(inode: u64, ctime: i64) -> FileKey {
        FileKey { device: 7, inode, size_bytes: 1, mtime: (5, 6), ctime: (ctime, 9) }
    }

    fn content(text: &str) -> Remembered {
        Remembered { digest: Digest::of(text.as_bytes()), has_xattrs: text.starts_with('x') }
    }

    #[test]
    fn remembers_by_every_part_of_the_key() {
        let index = HashIndex::new(NOW);
        index.insert(key(1, 5), content("x"));
        index.insert(key(2, 5), content("b"));
        let index = HashIndex::from_bytes(index.to_bytes().unwrap(), NOW);
        assert_eq!(index.get(&key(1, 5)), Some(content("x")));
        assert_eq!(index.get(&key(2, 5)), Some(content("b")));
        for other in [
            FileKey { device: 8, ..key(1, 5) },
            FileKey { inode: 3, ..key(1, 5) },
            FileKey { size_bytes: 2, ..key(1, 5) },
            FileKey { mtime: (5, 7), ..key(1, 5) },
            FileKey { mtime: (6, 6), ..key(1, 5) },
            FileKey { ctime: (5, 8), ..key(1, 5) },
            FileKey { ctime: (6, 9), ..key(1, 5) },
        ] {
            assert_eq!(index.get(&other), None, "{other:?}");
        }
    }

    #[test]
    fn a_young_file_is_not_remembered() {
        let index = HashIndex::new(NOW);
        for (ctime, expected) in [(NOW - 3, true), (NOW - 2, false), (NOW, false), (NOW + 100, false)] {
            index.insert(key(1, ctime), content("a"));
            assert_eq!(index.get(&key(1, ctime)).is_some(), expected, "{ctime}");
        }
    }

    #[test]
    fn is_written_only_when_something_changed() {
        let index = HashIndex::new(NOW);
        assert_eq!(index.to_bytes(), None);
        for inode in 0..100 {
            index.insert(key(inode * 7 % 100, 5), content(&format!("{inode}")));
        }
        let bytes = index.to_bytes().unwrap();

        let index = HashIndex::from_bytes(bytes.clone(), NOW);
        assert!((0..100).all(|inode| index.get(&key(inode, 5)).is_some()));
        assert_eq!(index.to_bytes(), None);

        // What is not met any more goes, what is new comes.
        let index = HashIndex::from_bytes(bytes, NOW);
        assert!((10..100).all(|inode| index.get(&key(inode, 5)).is_some()));
        index.insert(key(50, 6), content("new"));
        let index = HashIndex::from_bytes(index.to_bytes().unwrap(), NOW);
        assert_eq!(index.expected(), 91);
        assert_eq!(index.get(&key(9, 5)), None);
        assert_eq!(index.get(&key(50, 6)), Some(content("new")));
        assert!(index.get(&key(50, 5)).is_some());
    }

    fn summary(request: &str, fingerprint: &str) -> Summary {
        let digest = |text: &str| Digest::of(text.as_bytes());
        Summary { request: digest(request), fingerprint: digest(fingerprint), digest: digest("d"), entries: 3 }
    }

    fn recall(index: &HashIndex, request: &str, fingerprint: &str) -> bool {
        let Summary { request, fingerprint, digest, .. } = summary(request, fingerprint);
        index.recall(&request, &fingerprint).is_some_and(|found| found == digest)
    }

    #[test]
    fn a_summary_that_does_not_fit_is_forgotten() {
        let index = HashIndex::new(NOW);
        index.summarize(summary("a", "1"));
        index.summarize(summary("b", "1"));
        index.summarize(summary("b", "2"));
        let index = HashIndex::from_bytes(index.to_bytes().unwrap(), NOW);
        assert!(recall(&index, "a", "1") && recall(&index, "b", "2"));
        assert_eq!(index.to_bytes(), None);
        assert!(!recall(&index, "b", "1"));
        let index = HashIndex::from_bytes(index.to_bytes().unwrap(), NOW);
        assert!(!recall(&index, "b", "2") && recall(&index, "a", "1"));
    }

    #[test]
    fn only_the_newest_summaries_are_kept() {
        let index = HashIndex::new(NOW);
        (0..MAX_SUMMARIES + 10).for_each(|number| index.summarize(summary(&number.to_string(), "1")));
        let bytes = index.to_bytes().unwrap();
        assert!(bytes.len() <= MAX_HEAD_BYTES + CHECKSUM_BYTES);
        let index = HashIndex::from_bytes(bytes, NOW);
        let is_kept = |number: usize| recall(&index, &number.to_string(), "1");
        assert!(!is_kept(9) && is_kept(10) && is_kept(MAX_SUMMARIES + 9));
    }

    /// Where a summary stood for files they are not met, and yet remembered; but not for ever.
    #[test]
    fn files_behind_a_summary_stay() {
        let mut index = HashIndex::new(NOW);
        (0..3).for_each(|inode| index.insert(key(inode, 5), content("a")));
        index.summarize(summary("a", "1"));
        let mut highest = 0;
        for inode in 10..100 {
            index = HashIndex::from_bytes(index.to_bytes().unwrap(), NOW);
            if !recall(&index, "a", "1") {
                assert!((0..3).all(|inode| index.get(&key(inode, 5)).is_some()));
                index.summarize(summary("a", "1"));
            }
            index.insert(key(inode, 5), content("new"));
            highest = highest.max(index.expected());
        }
        assert!((8..16).contains(&highest), "{highest}");
    }

    #[test]
    fn what_is_torn_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        let load = || HashIndex::load(&path, NOW).get(&key(1, 5));
        assert_eq!(load(), None);
        let index = HashIndex::new(NOW);
        index.insert(key(1, 5), content("a"));
        index.summarize(summary("a", "1"));
        index.save(&path).unwrap();
        assert_eq!(load(), Some(content("a")));
        assert!(recall(&HashIndex::load(&path, NOW), "a", "1"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            for bytes in [torn, whole[..at].to_vec()] {
                let index = HashIndex::from_bytes(bytes, NOW);
                assert_eq!(index.get(&key(1, 5)), None, "{at}");
                // What is known of files comes later.
                assert_eq!(recall(&index, "a", "1"), at >= whole.len() - CHECKSUM_BYTES - RECORD_BYTES, "{at}");
            }
        }
    }

    #[test]
    fn other_machines_files_are_not_trusted() {
        assert!(is_trusted(0xef53)); // ext4
        assert!(!is_trusted(0x6969));
        assert!(!is_trusted(0xff53_4d42));
    }
}
