//! Layers: what a step leaves in an upper dir of a real overlay becomes a layer that says exactly
//! what the step changed.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tempfile::TempDir;
use wythe::layer;

use crate::overlay;
use crate::tree::{self, Object, Tree};

/// A stack of layer dirs, bottom first, in a directory of its own.
struct Stack {
    dir: TempDir,
    layers: Vec<PathBuf>,
    skeleton: Option<PathBuf>,
}

impl Stack {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        Self { dir, layers: Vec::new(), skeleton: None }
    }

    fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// The layers' directories, topmost first.
    fn lowers(&self) -> Vec<OwnedFd> {
        self.layers.iter().rev().map(|layer| open(layer)).collect()
    }

    /// What the layers show together, without the skeleton.
    fn view(&self) -> Tree {
        let empty = self.dir.path().join("empty");
        let mut lowers: Vec<&Path> = self.layers.iter().rev().map(PathBuf::as_path).collect();
        lowers.push(&empty);
        if lowers.len() == 1 {
            return Tree::new();
        }
        tree::read(overlay::mount(&lowers, None).unwrap().as_fd())
    }

    /// Lets `step` work on an overlay over the layers; returns the upper dir and what was seen.
    fn step(&self, name: &str, step: impl FnOnce(BorrowedFd<'_>)) -> (PathBuf, Tree) {
        let (upper, work) = (self.make_dir(name), self.make_dir(&format!("{name}.work")));
        let empty = self.dir.path().join("empty");
        let mut lowers: Vec<&Path> = self.layers.iter().rev().map(PathBuf::as_path).collect();
        lowers.push(self.skeleton.as_ref().unwrap_or(&empty));
        let merged = overlay::mount(&lowers, Some((&upper, &work))).expect("these tests need overlay mounts");
        step(merged.as_fd());
        let seen = tree::read(merged.as_fd());
        (upper, seen)
    }

    fn canonicalize(&self, upper: &Path) -> wythe::diag::Result<layer::Summary> {
        let lowers = self.lowers();
        let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
        let skeleton = self.skeleton.as_deref().map(open);
        layer::canonicalize(open(upper).as_fd(), &lowers, skeleton.as_ref().map(AsFd::as_fd))
    }

    fn unpack(&self, tar: &[u8], name: &str) -> wythe::diag::Result<(PathBuf, layer::Summary)> {
        let into = self.make_dir(name);
        let lowers = self.lowers();
        let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
        let summary = layer::unpack(&mut &tar[..], open(&into).as_fd(), &lowers)?;
        Ok((into, summary))
    }

    /// Makes a layer by a step, checks everything that must hold of it, and puts it on the stack.
    fn commit(&mut self, name: &str, step: impl FnOnce(BorrowedFd<'_>)) -> Tree {
        let below = self.view();
        let (upper, seen) = self.step(name, step);
        let summary = self.canonicalize(&upper).unwrap();
        let layer = tree::read(open(&upper).as_fd());
        assert_eq!(summary.entries, layer.len() as u64);

        let skeleton = self.skeleton.as_ref().map(|skeleton| tree::read(open(skeleton).as_fd()));
        let expected = expectation(&below, &seen, &layer, skeleton.as_ref().unwrap_or(&Tree::new()));
        self.layers.push(upper.clone());
        same(&self.view(), &expected, "the layer shows what the step saw");
        same(&tree::apply(&below, &layer), &expected, "and means it by the rules");
        no_entry_is_idle(&below, &layer);

        let tar = pack(&upper);
        same(&tree::read_tar(&tar), &tree::in_seconds(layer.clone()), "the tar says the same");
        self.layers.pop();
        let (again, unpacked) = self.unpack(&tar, &format!("{name}.again")).unwrap();
        self.layers.push(upper);
        assert_eq!(unpacked, summary);
        same(&tree::read(open(&again).as_fd()), &tree::in_seconds(layer.clone()), "unpacking gives it back");
        assert!(pack(&again) == tar, "and packing that gives the same tar");
        layer
    }
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

fn pack(dir: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    layer::pack(open(dir).as_fd(), &mut tar).unwrap();
    tar
}

#[track_caller]
fn same(left: &Tree, right: &Tree, what: &str) {
    assert!(left == right, "{what}:\n{}", tree::difference(left, right));
}

/// What must be seen once the upper is canonical, given what the step saw. The differences it may
/// make: sockets are gone, names of the skeleton are not ours, a directory that is no entry has
/// the times it had, a copy that is no entry is the original again and linked as that was.
fn expectation(below: &Tree, seen: &Tree, layer: &Tree, skeleton: &Tree) -> Tree {
    let mut expected = Tree::new();
    for (path, object) in seen.iter().filter(|(_, object)| object.kind != 's') {
        let mut object = object.clone();
        match below.get(path) {
            Some(original) if !layer.contains_key(path) => {
                if object.is_directory() {
                    object.mtime = original.mtime;
                } else {
                    object.file = [b"below ", &original.file[..]].concat();
                }
            }
            _ => {}
        }
        expected.insert(path.clone(), object);
    }
    for (path, skeletal) in skeleton.iter().rev().filter(|(path, _)| !below.contains_key(*path)) {
        let Some(object) = expected.get(path) else { continue };
        let prefix = [path, &b"/"[..]].concat();
        let is_parent = expected.range(prefix.clone()..).next().is_some_and(|(other, _)| other.starts_with(&prefix));
        let is_same = if object.is_directory() {
            Object { mtime: skeletal.mtime, ..object.clone() } == *skeletal
        } else {
            // One that was linked to is a change: the two belong together.
            let names = expected.values().filter(|other| other.file == object.file).count();
            names == 1 && Object { file: skeletal.file.clone(), ..object.clone() } == *skeletal
        };
        if is_same && !is_parent {
            expected.remove(path);
        }
    }
    tree::name_files(&mut expected);
    expected
}

/// Every entry but the parents of others changes something besides the time of a directory.
fn no_entry_is_idle(below: &Tree, layer: &Tree) {
    let timeless = |mut tree: Tree| {
        tree.values_mut().filter(|object| object.is_directory()).for_each(|object| object.mtime = (0, 0));
        tree
    };
    let whole = timeless(tree::apply(below, layer));
    for path in layer.keys() {
        let prefix = [&path[..], b"/"].concat();
        if layer.range(prefix.clone()..).next().is_some_and(|(other, _)| other.starts_with(&prefix)) {
            continue;
        }
        let mut without = layer.clone();
        without.remove(path);
        assert!(timeless(tree::apply(below, &without)) != whole, "`{}` changes nothing", path.escape_ascii());
    }
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"a.b",
    b"sp ace",
    b"new\nline",
    b"\xff\xfe",
    "über".as_bytes(),
    b"x.wh.y",
    b".hidden",
    b"trail ",
    b"back\\slash",
    &[b'x'; 255],
    b"etc",
    b"proc",
];

/// Does something random below `root`. What the kernel refuses is not done.
fn act(root: BorrowedFd<'_>, random: &mut Random) -> Result<(), Errno> {
    let seen = tree::read(root);
    let directories: Vec<Vec<u8>> =
        [Vec::new()].into_iter().chain(seen.iter().filter(|o| o.1.is_directory()).map(|o| o.0.clone())).collect();
    let paths: Vec<Vec<u8>> = seen.keys().cloned().collect();
    let of_kind = |kind: char| -> Vec<Vec<u8>> {
        seen.iter().filter(|(_, object)| object.kind == kind).map(|(path, _)| path.clone()).collect()
    };
    let fresh = |random: &mut Random| -> Vec<u8> {
        let parent = random.pick(&directories).clone();
        let name = *random.pick(NAMES);
        if parent.is_empty() { name.to_vec() } else { [&parent[..], b"/", name].concat() }
    };
    let choose = |random: &mut Random, of: &[Vec<u8>]| -> Result<Vec<u8>, Errno> {
        if of.is_empty() { Err(Errno::NOENT) } else { Ok(random.pick(of).clone()) }
    };
    let files = of_kind('f');
    match random.below(38) {
        0..4 => write(root, &fresh(random), OFlags::CREATE, &content(random))?,
        4..8 => drop(rustix::fs::mkdirat(root, fresh(random), Mode::from_raw_mode(0o755))),
        8 => write(root, &choose(random, &files)?, OFlags::TRUNC, &content(random))?,
        9 => write(root, &choose(random, &files)?, OFlags::APPEND, &content(random))?,
        10 => {
            // Other bytes in the same number.
            let path = choose(random, &files)?;
            let flipped: Vec<u8> = seen[&path].content.iter().map(|byte| byte ^ 1).collect();
            write(root, &path, OFlags::TRUNC, &flipped)?;
            // Sometimes at the same time too.
            if random.below(2) == 0 {
                set_mtime(root, &path, seen[&path].mtime)?;
            }
        }
        11 => write(root, &choose(random, &files)?, OFlags::APPEND, b"")?,
        12 => {
            // Written anew, but the same.
            let path = choose(random, &files)?;
            write(root, &path, OFlags::TRUNC, &seen[&path].content)?;
            set_mtime(root, &path, seen[&path].mtime)?;
        }
        13..16 => delete(root, &choose(random, &paths)?)?,
        16 | 17 => {
            // A directory made again, with some of what was in it.
            let path = choose(random, &of_kind('d'))?;
            delete(root, &path)?;
            rustix::fs::mkdirat(root, &path, Mode::from_raw_mode(0o755))?;
            let prefix = [&path[..], b"/"].concat();
            for (child, object) in seen.range(prefix.clone()..).take_while(|(child, _)| child.starts_with(&prefix)) {
                if random.below(2) == 0 {
                    continue;
                }
                match object.kind {
                    'f' => write(root, child, OFlags::CREATE, &object.content).unwrap_or(()),
                    'd' => rustix::fs::mkdirat(root, child, Mode::from_raw_mode(object.mode)).unwrap_or(()),
                    _ => {}
                }
                let _ = set_mtime(root, child, object.mtime);
            }
        }
        18 | 19 => {
            let (from, to) = (choose(random, &paths)?, fresh(random));
            rustix::fs::renameat(root, &from, root, &to)?;
            if random.below(3) == 0 {
                rustix::fs::renameat(root, &to, root, &from)?;
            }
        }
        20 | 21 => {
            let from = choose(random, &paths)?;
            rustix::fs::linkat(root, from, root, fresh(random), AtFlags::empty())?;
        }
        22 => {
            let path = choose(random, &paths)?;
            let mode = *random.pick(&[0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o600]);
            rustix::fs::chmodat(root, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        23 => {
            // There and back again.
            let path = choose(random, &paths)?;
            let mode = seen[&path].mode;
            rustix::fs::chmodat(root, &path, Mode::from_raw_mode(mode ^ 0o100), AtFlags::empty())?;
            rustix::fs::chmodat(root, &path, Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        24 => {
            let id = *random.pick(&[0, 1000, 70000, 3_000_000]);
            let (uid, gid) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id / 2)));
            rustix::fs::chownat(root, choose(random, &paths)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        25 => {
            let capability = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12]].concat();
            let file = open_at(root, &choose(random, &files)?, OFlags::RDONLY)?;
            rustix::fs::fsetxattr(file, "security.capability", &capability, XattrFlags::empty())?;
        }
        26 | 27 => {
            let path = choose(random, &paths)?;
            let file = match seen[&path].kind {
                'f' => open_at(root, &path, OFlags::RDONLY)?,
                'd' => open_at(root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?,
                _ => return Ok(()),
            };
            let name = *random.pick(&["user.a", "user.b"]);
            match random.below(3) {
                0 => rustix::fs::fremovexattr(file, name)?,
                1 => rustix::fs::fsetxattr(file, name, b"", XattrFlags::empty())?,
                _ => rustix::fs::fsetxattr(file, name, b"\n1=\0\xff", XattrFlags::empty())?,
            }
        }
        28 => {
            let target = if random.below(2) == 0 { fresh(random) } else { vec![b't'; 300] };
            rustix::fs::symlinkat(target, root, fresh(random))?;
        }
        29 => rustix::fs::mknodat(root, fresh(random), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?,
        30 => {
            let device = rustix::fs::makedev(random.below(200) as u32, 1 + random.below(70000) as u32);
            let file_type = *random.pick(&[FileType::CharacterDevice, FileType::BlockDevice]);
            rustix::fs::mknodat(root, fresh(random), file_type, Mode::from_raw_mode(0o660), device)?;
        }
        31 => rustix::fs::mknodat(root, fresh(random), FileType::Socket, Mode::from_raw_mode(0o755), 0)?,
        32 => {
            // Whatever it is becomes something else.
            let path = choose(random, &paths)?;
            delete(root, &path)?;
            match random.below(4) {
                0 => write(root, &path, OFlags::CREATE, &content(random))?,
                1 => rustix::fs::mkdirat(root, &path, Mode::from_raw_mode(0o750))?,
                2 => rustix::fs::symlinkat("elsewhere", root, &path)?,
                _ => rustix::fs::mknodat(root, &path, FileType::Socket, Mode::from_raw_mode(0o755), 0)?,
            }
        }
        33 => {
            let mtime = *random.pick(&[(1_700_000_000, 0), (1, 5), (-315_619_200, 0), (-1, 7), (9_000_000_000, 0)]);
            set_mtime(root, &choose(random, &paths)?, mtime)?;
        }
        34 => set_mtime(root, &choose(random, &of_kind('d'))?, (1_700_000_000 + random.below(9) as i64, 3))?,
        35 => {
            // Something comes and goes.
            let path = fresh(random);
            if !seen.contains_key(&path) {
                write(root, &path, OFlags::CREATE, b"x")?;
                delete(root, &path)?;
            }
        }
        36 => {
            // A file replaces another.
            let (from, to) = (choose(random, &files)?, choose(random, &files)?);
            rustix::fs::renameat(root, &from, root, &to)?;
        }
        _ => {
            // A file deleted and made again as a copy of itself.
            let path = choose(random, &files)?;
            delete(root, &path)?;
            write(root, &path, OFlags::CREATE, &seen[&path].content)?;
            set_mtime(root, &path, seen[&path].mtime)?;
        }
    }
    Ok(())
}

fn content(random: &mut Random) -> Vec<u8> {
    let length = *random.pick(&[0, 1, 3, 511, 512, 513, 5000]);
    let seed = random.below(256);
    (0..length).map(|at| (at * 7 + seed) as u8).collect()
}

fn open_at(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

fn write(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, content: &[u8]) -> Result<(), Errno> {
    let mut file = File::from(open_at(root, path, flags | OFlags::WRONLY | OFlags::NONBLOCK)?);
    std::io::Write::write_all(&mut file, content).map_err(|error| Errno::from_io_error(&error).unwrap())
}

fn set_mtime(root: BorrowedFd<'_>, path: &[u8], mtime: (i64, u32)) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(root, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn delete(root: BorrowedFd<'_>, path: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(root, path, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let dir = open_at(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for (child, _) in tree::read(dir.as_fd()).iter().rev() {
        rustix::fs::unlinkat(&dir, child, AtFlags::empty())
            .or_else(|_| rustix::fs::unlinkat(&dir, child, AtFlags::REMOVEDIR))?;
    }
    rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR)
}

#[test]
fn a_layer_says_what_the_step_changed() {
    let seeds: Vec<u64> = match option_env!("WYTHE_SEED") {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (1..=150).collect(),
    };
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut stack = Stack::new();
        if seed % 3 == 0 {
            let skeleton = stack.make_dir("skeleton");
            for name in ["proc", "etc", "a"] {
                fs::create_dir(skeleton.join(name)).unwrap();
            }
            fs::write(skeleton.join("etc/hosts"), "").unwrap();
            stack.skeleton = Some(skeleton);
        }
        for number in 0..1 + random.below(4) {
            let case = std::panic::AssertUnwindSafe(|| {
                let actions = 1 + random.below(24);
                stack.commit(&number.to_string(), |root| {
                    for _ in 0..actions {
                        let _ = act(root, &mut random);
                    }
                });
            });
            if let Err(panic) = std::panic::catch_unwind(case) {
                eprintln!("seed {seed}, layer {number}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}
