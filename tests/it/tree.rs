//! Trees in memory, read from directories and from tars by code that shares nothing with what it
//! tests, and the rules by which a layer changes a tree.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};

pub type Tree = BTreeMap<Vec<u8>, Object>;

#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// `f`, `d`, `l`, `p`, `c`, `b`, `s`; `w` for a whiteout.
    pub kind: char,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: (u32, u32),
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a file, or the target of a link.
    pub content: Vec<u8>,
    /// The same for all names of one file, else unique.
    pub file: Vec<u8>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, mode, uid, gid, device, mtime, xattrs, content, file } = self;
        let (file, start) = (file.escape_ascii(), content[..content.len().min(20)].escape_ascii());
        let length = content.len();
        write!(f, "{kind} {mode:o} {uid}:{gid} {device:?} {mtime:?} {xattrs:?} {length} \"{start}\" = {file}")
    }
}

impl Object {
    pub fn is_directory(&self) -> bool {
        self.kind == 'd'
    }
}

/// Reads all below `root`, records of what could not be done as if it had been.
pub fn read(root: BorrowedFd<'_>) -> Tree {
    let mut tree = Tree::new();
    let is_recorded = xattrs(root, c".").contains_key(&b"user.wythe.records"[..]);
    read_directory(root, is_recorded, &mut Vec::new(), &mut tree);
    name_files(&mut tree);
    tree
}

fn read_directory(dir: BorrowedFd<'_>, is_recorded: bool, path: &mut Vec<u8>, tree: &mut Tree) {
    let names: Vec<CString> = Dir::read_from(dir).unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    for name in names {
        if name.as_c_str() == c"." || name.as_c_str() == c".." {
            continue;
        }
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => 'f',
            FileType::Directory => 'd',
            FileType::Symlink => 'l',
            FileType::Fifo => 'p',
            FileType::CharacterDevice if stat.st_rdev == 0 => 'w',
            FileType::CharacterDevice => 'c',
            FileType::BlockDevice => 'b',
            FileType::Socket => 's',
            FileType::Unknown => '?',
        };
        let is_device = matches!(kind, 'c' | 'b');
        let length = path.len();
        path.extend_from_slice(name.to_bytes());
        let open = |flags| openat(dir, &name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let content = match kind {
            'f' => read_file(open(OFlags::RDONLY)),
            'l' => readlinkat(dir, &name, Vec::new()).unwrap().into_bytes(),
            _ => Vec::new(),
        };
        let mut object = Object {
            kind,
            mode: if kind == 'w' { 0 } else { stat.st_mode & 0o7777 },
            uid: if kind == 'w' { 0 } else { stat.st_uid },
            gid: if kind == 'w' { 0 } else { stat.st_gid },
            device: if is_device { (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) } else { (0, 0) },
            mtime: if kind == 'w' { (0, 0) } else { (stat.st_mtime, stat.st_mtime_nsec as u32) },
            xattrs: xattrs(dir, &name),
            content,
            file: if matches!(kind, 'd' | 'w') { path.clone() } else { format!("#{}", stat.st_ino).into_bytes() },
        };
        if is_recorded {
            believe(&mut object, (stat.st_atime, stat.st_atime_nsec as u32));
        }
        tree.insert(path.clone(), object);
        if kind == 'd' {
            path.push(b'/');
            read_directory(open(OFlags::RDONLY | OFlags::DIRECTORY).as_fd(), is_recorded, path, tree);
        }
        path.truncate(length);
    }
}

/// Makes an object what the records in it say.
fn believe(object: &mut Object, (seconds, nanoseconds): (i64, u32)) {
    let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
    let pair = |text: &str| -> (u32, u32) {
        let (first, second) = text.split_once(':').unwrap();
        (first.parse().unwrap(), second.parse().unwrap())
    };
    if let Some(owner) = object.xattrs.remove(&b"user.wythe.owner"[..]) {
        (object.uid, object.gid) = pair(&text(owner));
    }
    if let Some(node) = object.xattrs.remove(&b"user.wythe.node"[..]) {
        let node = text(node);
        object.kind = node.chars().next().unwrap();
        object.device = pair(&node[2..]);
        (object.content, object.xattrs) = Default::default();
    }
    if matches!(object.kind, 'l' | 'p') && seconds >= 8_589_934_592 {
        let owner = i128::from(seconds - 8_589_934_592) * 1_000_000_000 + i128::from(nanoseconds);
        (object.uid, object.gid) = ((owner / 2_147_483_648) as u32, (owner % 2_147_483_648) as u32);
    }
}

/// All but what the filesystem below keeps for itself; so a leftover of the overlay's shows.
fn xattrs(dir: BorrowedFd<'_>, name: &CStr) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(&path[..], &mut list[..]).unwrap();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path[..], name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Renames the identities of files to the first name each has.
pub fn name_files(tree: &mut Tree) {
    let mut first: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (path, object) in tree.iter_mut() {
        object.file = first.entry(object.file.clone()).or_insert_with(|| path.clone()).clone();
    }
}

/// What `layer` makes of `below`: whiteouts first, then everything it has, each in the place of
/// whatever was there, but a directory joins a directory.
pub fn apply(below: &Tree, layer: &Tree) -> Tree {
    let mut tree: Tree = below
        .iter()
        .map(|(path, object)| (path.clone(), Object { file: [b"below ", &object.file[..]].concat(), ..object.clone() }))
        .collect();
    for path in layer.iter().filter(|(_, object)| object.kind == 'w').map(|(path, _)| path) {
        remove(&mut tree, path);
    }
    for (path, object) in layer.iter().filter(|(_, object)| object.kind != 'w') {
        if !object.is_directory() || !tree.get(path).is_some_and(Object::is_directory) {
            remove(&mut tree, path);
        }
        tree.insert(path.clone(), object.clone());
    }
    for (path, object) in &mut tree {
        if object.is_directory() {
            object.file = path.clone();
        }
    }
    name_files(&mut tree);
    tree
}

pub fn remove(tree: &mut Tree, path: &[u8]) {
    let prefix = [path, b"/"].concat();
    tree.retain(|other, _| other != path && !other.starts_with(&prefix));
}

/// Reads a layer tar. Only what layer tars are made of: ustar headers and pax records.
pub fn read_tar(tar: &[u8]) -> Tree {
    let mut tree = Tree::new();
    let mut at = 0;
    let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let octal = |field: &[u8]| {
        let digits: String = field.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
        u64::from_str_radix(digits.trim(), 8).unwrap()
    };
    let text = |field: &[u8]| field.split(|byte| *byte == 0).next().unwrap().to_vec();
    loop {
        let header = &tar[at..at + 512];
        at += 512;
        if header.iter().all(|byte| *byte == 0) {
            assert_eq!(tar.len(), at + 512, "two zero blocks end a tar");
            assert!(tar[at..].iter().all(|byte| *byte == 0));
            break;
        }
        assert_eq!(&header[257..265], b"ustar\x0000");
        assert!(header[265..329].iter().all(|byte| *byte == 0), "no user or group names");
        let sum: u64 =
            header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        assert_eq!(sum, octal(&header[148..156]));
        let number = |key: &[u8], field: &[u8]| match records.get(key) {
            Some(value) => str::from_utf8(value).unwrap().parse::<i64>().unwrap(),
            None => octal(field) as i64,
        };
        let size = number(b"size", &header[124..136]) as usize;
        let data = &tar[at..at + size];
        at += size.next_multiple_of(512);
        if header[156] == b'x' {
            let mut rest = data;
            while !rest.is_empty() {
                let space = rest.iter().position(|byte| *byte == b' ').unwrap();
                let length: usize = str::from_utf8(&rest[..space]).unwrap().parse().unwrap();
                let record = rest[space + 1..length].strip_suffix(b"\n").unwrap();
                let equals = record.iter().position(|byte| *byte == b'=').unwrap();
                records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
                rest = &rest[length..];
            }
            continue;
        }
        let path = records.get(&b"path"[..]).cloned().unwrap_or_else(|| text(&header[..100]));
        let link = records.get(&b"linkpath"[..]).cloned().unwrap_or_else(|| text(&header[157..257]));
        let kind = match header[156] {
            b'0' => 'f',
            b'1' => 'h',
            b'2' => 'l',
            b'3' => 'c',
            b'4' => 'b',
            b'5' => 'd',
            b'6' => 'p',
            other => panic!("a member of type {other}"),
        };
        assert_eq!(path.ends_with(b"/"), kind == 'd');
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        assert!(!path.starts_with(b"/") && !path.starts_with(b"./"));
        let object = Object {
            kind,
            mode: octal(&header[100..108]) as u32,
            uid: number(b"uid", &header[108..116]) as u32,
            gid: number(b"gid", &header[116..124]) as u32,
            device: (octal(&header[329..337]) as u32, octal(&header[337..345]) as u32),
            mtime: (number(b"mtime", &header[136..148]), 0),
            xattrs: records
                .iter()
                .filter_map(|(key, value)| {
                    key.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), value.clone()))
                })
                .collect(),
            content: if kind == 'l' { link.clone() } else { data.to_vec() },
            file: path.clone(),
        };
        records.clear();
        let name_at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        if name_at > 0 {
            let parent = tree.get(&path[..name_at - 1]).expect("parents come before children");
            assert!(parent.is_directory());
        }
        let previous = match (kind, path[name_at..].strip_prefix(b".wh.")) {
            (_, Some(name)) => {
                let path = [&path[..name_at], name].concat();
                assert_eq!((kind, object.mode, object.uid, object.gid, object.mtime), ('f', 0, 0, 0, (0, 0)));
                tree.insert(path.clone(), Object { kind: 'w', file: path, ..object })
            }
            ('h', None) => {
                let first = tree.get(&link).expect("a hard link comes after its file").clone();
                let said =
                    Object { kind: first.kind, content: first.content.clone(), file: first.file.clone(), ..object };
                assert_eq!(said, first, "a hard link says again what its file says");
                tree.insert(path, first)
            }
            _ => tree.insert(path, object),
        };
        assert!(previous.is_none(), "no name twice");
    }
    // A walk meets `a/b` before `a.b`, a map the other way round.
    name_files(&mut tree);
    tree
}

/// The tree as a tar can say it.
pub fn in_seconds(mut tree: Tree) -> Tree {
    for object in tree.values_mut() {
        object.mtime.1 = 0;
    }
    tree
}

/// The differences, for a person.
pub fn difference(left: &Tree, right: &Tree) -> String {
    let mut out = String::new();
    for path in left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (left, right) = (left.get(path), right.get(path));
        if left != right {
            out += &format!("{}\n  left  {left:?}\n  right {right:?}\n", path.escape_ascii());
        }
    }
    out
}

fn read_file(fd: std::os::fd::OwnedFd) -> Vec<u8> {
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(fd), &mut content).unwrap();
    content
}
