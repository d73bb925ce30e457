//! A tar seen as files by name: where in it each one's bytes are. Nothing of it is unpacked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const BLOCK: u64 = 512;
/// Bounds on what a stranger's tar makes us keep.
const MAX_ENTRIES: usize = 100_000;
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// `docker save` once wrote a layer that two images share as a link; links to links it did not.
const MAX_LINKS: usize = 8;

pub(super) struct Tarball {
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File {
        offset: u64,
        size_bytes: u64,
    },
    /// To this name in the tar.
    Link(String),
}

impl Tarball {
    /// Reads the headers. The last entry of a name counts.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let length = file.metadata()?.len();
        let mut entries = BTreeMap::new();
        let (mut position, mut extension) = (0, Extension::default());
        while position + BLOCK <= length {
            let mut block = [0; BLOCK as usize];
            file.read_exact_at(&mut block, position)?;
            position += BLOCK;
            if block == [0; BLOCK as usize] {
                break;
            }
            let header = tar::Header::from_byte_slice(&block);
            if !is_checksum_right(&block, header) {
                return Err(wrong("it is no tar, or a damaged one"));
            }
            let kind = header.entry_type();
            let is_extension = kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
            let size_bytes = match extension.size_bytes {
                Some(size_bytes) if !is_extension => size_bytes,
                _ => header.entry_size()?,
            };
            let end = position.checked_add(size_bytes).filter(|end| *end <= length);
            let Some(end) = end else { return Err(wrong("it is cut short")) };
            if is_extension {
                if size_bytes > MAX_EXTENSION_BYTES {
                    return Err(wrong("an extended header is too large"));
                }
                let mut bytes = vec![0; size_bytes as usize];
                file.read_exact_at(&mut bytes, position)?;
                extension.read(kind, &bytes)?;
            } else {
                let Extension { path, link, .. } = std::mem::take(&mut extension);
                let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                let link = link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                // What has another name than UTF-8 is not asked for.
                if let (Ok(path), link) = (String::from_utf8(path), link.and_then(|link| String::from_utf8(link).ok()))
                {
                    let entry = match (kind, link) {
                        (kind, _) if kind.is_file() || kind.is_contiguous() => {
                            Some(Entry::File { offset: position, size_bytes })
                        }
                        (kind, Some(link)) if kind.is_hard_link() => Some(Entry::Link(normal("", &link))),
                        (kind, Some(link)) if kind.is_symlink() => {
                            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                            Some(Entry::Link(normal(parent, &link)))
                        }
                        _ => None,
                    };
                    if let Some(entry) = entry {
                        entries.insert(normal("", &path), entry);
                    }
                }
                if entries.len() > MAX_ENTRIES {
                    return Err(wrong("it has too many entries"));
                }
            }
            position = end.next_multiple_of(BLOCK);
        }
        if entries.is_empty() {
            return Err(wrong("it is no tar, or an empty one"));
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    /// The file of this name and its size.
    pub(super) fn file(&self, name: &str) -> Option<(Section, u64)> {
        let normal = normal("", name);
        let mut name = normal.as_str();
        for _ in 0..MAX_LINKS {
            match self.entries.get(name)? {
                Entry::Link(target) => name = target,
                &Entry::File { offset, size_bytes } => {
                    let section = Section { file: Arc::clone(&self.file), offset, remaining: size_bytes };
                    return Some((section, size_bytes));
                }
            }
        }
        None
    }
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size_bytes: Option<u64>,
}

impl Extension {
    fn read(&mut self, kind: tar::EntryType, bytes: &[u8]) -> io::Result<()> {
        let until_zero = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        if kind.is_gnu_longname() {
            self.path = Some(until_zero());
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_zero());
        } else {
            for record in tar::PaxExtensions::new(bytes) {
                let record = record?;
                match record.key_bytes() {
                    b"path" => self.path = Some(record.value_bytes().to_vec()),
                    b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                    b"size" => self.size_bytes = record.value().ok().and_then(|size| size.parse().ok()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The bytes of one file in the tar. Several can be read at once.
pub(super) struct Section {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..length], self.offset)?;
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}

/// `path`, seen from `parent`, without `.`, `..` and repeated slashes. It is only ever looked up in a
/// map, so where `..` leads does not matter.
fn normal(parent: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in parent.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn is_checksum_right(block: &[u8; BLOCK as usize], header: &tar::Header) -> bool {
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    header.cksum().is_ok_and(|expected| expected == sum)
}
