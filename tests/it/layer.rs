//! Layers: what a step leaves in an upper dir of a real overlay becomes a layer that says exactly
//! what the step changed.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FileType, Mode, OFlags};
use tempfile::TempDir;
use wythe::layer::{self, Records};

use crate::overlay;
use crate::step::{Random, Root, act, delete, open_at, set_mtime, write};
use crate::tree::{self, Object, Tree};

/// A stack of layer dirs, bottom first, in a directory of its own.
struct Stack {
    dir: TempDir,
    layers: Vec<PathBuf>,
    skeleton: Option<PathBuf>,
    /// What its layers record instead of doing it.
    records: Records,
}

impl Stack {
    fn new() -> Self {
        let dir = overlay::scratch();
        fs::create_dir(dir.path().join("empty")).unwrap();
        Self { dir, layers: Vec::new(), skeleton: None, records: Records::None }
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
        self.records.begin(open(&upper).as_fd()).unwrap();
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
        self.records.begin(open(&into).as_fd()).unwrap();
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
        if self.layers.len() == 1 {
            same(&tree::in_seconds(extract(&tar)), &tree::in_seconds(layer.clone()), "tar(1) agrees");
        }
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

/// What GNU tar makes of a layer's tar.
fn extract(tar: &[u8]) -> Tree {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new("tar")
        .args(["-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(tar).unwrap();
    assert!(child.wait().unwrap().success());
    tree::read(open(dir.path()).as_fd())
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

#[test]
#[allow(clippy::print_stderr)] // Says which seed to try again.
fn a_layer_says_what_the_step_changed() {
    let seeds: Vec<u64> = match option_env!("WYTHE_SEED") {
        Some(seed) => vec![seed.parse().unwrap()],
        None => (1..=150).collect(),
    };
    for seed in seeds {
        // The same steps by root, who may do everything, and by who can only record some of it. Once
        // in a while, as both take their time.
        let recording = if seed % 2 == 0 { vec![Records::Owners] } else { vec![] };
        let mut digests = Vec::new();
        for records in [vec![Records::None], recording].concat() {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut stack = Stack::new();
            stack.records = records;
            if seed % 3 == 0 {
                let skeleton = stack.make_dir("skeleton");
                for name in ["proc", "etc", "a"] {
                    fs::create_dir(skeleton.join(name)).unwrap();
                }
                fs::write(skeleton.join("etc/hosts"), "").unwrap();
                stack.skeleton = Some(skeleton);
            }
            let mut made = Vec::new();
            for number in 0..1 + random.below(4) {
                let case = std::panic::AssertUnwindSafe(|| {
                    let actions = 1 + random.below(24);
                    stack.commit(&number.to_string(), |root| {
                        for _ in 0..actions {
                            let _ = act(root, &mut random);
                        }
                    });
                    made.push(
                        layer::pack_and_digest(open(&stack.layers[number]).as_fd(), &mut std::io::sink()).unwrap(),
                    );
                });
                if let Err(panic) = std::panic::catch_unwind(case) {
                    eprintln!("seed {seed}, layer {number}, {records:?}");
                    std::panic::resume_unwind(panic);
                }
            }
            digests.push(made);
        }
        assert!(digests.iter().all(|made| *made == digests[0]), "seed {seed}: who only records makes other layers");
    }
}

fn paths(layer: &Tree) -> Vec<String> {
    layer.iter().map(|(path, object)| format!("{} {}", object.kind, path.escape_ascii())).collect()
}

/// A root as a distribution's, and what its package manager does when it replaces a package.
#[test]
fn a_distribution_and_an_upgrade() {
    let mut stack = Stack::new();
    stack.commit("base", |root| {
        let root = Root(root);
        for dir in ["usr", "usr/bin", "usr/lib", "usr/share", "usr/share/doc", "etc", "var", "var/lib", "var/lib/dpkg"]
        {
            root.mkdir(dir, 0o755);
        }
        root.mkdir("tmp", 0o1777);
        root.mkdir("root", 0o700);
        root.mkdir("var/mail", 0o2775);
        root.own("var/mail", 0, 8);
        root.chmod("var/mail", 0o2775);
        root.symlink("bin", "usr/bin");
        root.symlink("lib", "usr/lib");
        root.symlink("etc/mtab", "../proc/self/mounts");
        root.file("usr/bin/perl", "perl");
        root.link("usr/bin/perl", "usr/bin/perl5.36.0");
        root.file("usr/bin/su", "su");
        root.chmod("usr/bin/su", 0o4755);
        root.file("usr/bin/chage", "chage");
        root.own("usr/bin/chage", 0, 42);
        root.chmod("usr/bin/chage", 0o2755);
        root.file("usr/bin/ping", "ping");
        let capability = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 0x20, 0, 0], &[0; 12]].concat();
        root.xattr("usr/bin/ping", "security.capability", &capability);
        root.file("etc/shadow", "root:*");
        root.own("etc/shadow", 0, 42);
        root.chmod("etc/shadow", 0o640);
        root.file("usr/lib/libc.so.6", &"elf".repeat(1_000_000));
        root.file("usr/lib/libold.so.1.0", "old");
        root.symlink("usr/lib/libold.so.1", "libold.so.1.0");
        root.file("var/lib/dpkg/status", "Package: perl");
    });
    let upgrade = stack.commit("upgrade", |root| {
        let root = Root(root);
        root.file("usr/bin/perl.dpkg-new", "perl 2");
        root.link("usr/bin/perl", "usr/bin/perl.dpkg-tmp");
        root.rename("usr/bin/perl.dpkg-new", "usr/bin/perl");
        root.delete("usr/bin/perl.dpkg-tmp");
        root.file("usr/lib/libold.so.1.1", "new");
        root.symlink("usr/lib/libold.so.1.dpkg-new", "libold.so.1.1");
        root.rename("usr/lib/libold.so.1.dpkg-new", "usr/lib/libold.so.1");
        root.delete("usr/lib/libold.so.1.0");
        root.file("var/lib/dpkg/status-new", "Package: perl 2");
        root.rename("var/lib/dpkg/status", "var/lib/dpkg/status-old");
        root.rename("var/lib/dpkg/status-new", "var/lib/dpkg/status");
        root.file("tmp/scratch", "");
        root.delete("tmp/scratch");
    });
    assert_eq!(
        paths(&upgrade),
        [
            "d usr",
            "d usr/bin",
            "f usr/bin/perl",
            "d usr/lib",
            "l usr/lib/libold.so.1",
            "w usr/lib/libold.so.1.0",
            "f usr/lib/libold.so.1.1",
            "d var",
            "d var/lib",
            "d var/lib/dpkg",
            "f var/lib/dpkg/status",
            "f var/lib/dpkg/status-old",
        ]
    );
    // The other name still has the old content: links across layers are cut.
    assert!(
        stack
            .commit("nothing", |root| {
                let root = Root(root);
                write(root.0, b"usr/bin/perl", OFlags::APPEND, b"").unwrap();
                root.file("usr/x", "");
                root.delete("usr/x");
                root.rename("etc/shadow", "etc/shadow-");
                root.rename("etc/shadow-", "etc/shadow");
            })
            .is_empty()
    );
}

#[test]
fn no_change_is_an_empty_tar() {
    let stack = Stack::new();
    let (upper, _) = stack.step("upper", |_| {});
    assert_eq!(stack.canonicalize(&upper).unwrap(), layer::Summary::default());
    let digest = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    assert_eq!(wythe::digest::Digest::of(&pack(&upper)).to_string(), digest);
}

#[test]
fn the_skeleton_is_not_ours() {
    let mut stack = Stack::new();
    let skeleton = stack.make_dir("skeleton");
    for dir in ["proc", "sys", "dev", "etc", "mnt", "mnt/in"] {
        fs::create_dir(skeleton.join(dir)).unwrap();
    }
    for file in ["etc/hosts", "etc/resolv.conf"] {
        fs::write(skeleton.join(file), "").unwrap();
    }
    stack.skeleton = Some(skeleton);
    let layer = stack.commit("0", |root| {
        let root = Root(root);
        // Touched and left as they were.
        root.file("dev/x", "");
        root.delete("dev/x");
        root.chmod("proc", 0o700);
        root.chmod("proc", 0o755);
        write(root.0, b"etc/hosts", OFlags::APPEND, b"").unwrap();
        // Taken away.
        root.delete("etc/resolv.conf");
        root.delete("mnt/in");
        root.delete("sys");
    });
    assert!(layer.is_empty(), "{:?}", paths(&layer));
    let layer = stack.commit("1", |root| {
        let root = Root(root);
        root.file("etc/passwd", "root");
        root.file("etc/hosts", "127.0.0.1 h");
        root.chmod("dev", 0o700);
        root.delete("sys");
        root.file("sys", "a file");
    });
    assert_eq!(paths(&layer), ["d dev", "d etc", "f etc/hosts", "f etc/passwd", "f sys"]);
    let layer = stack.commit("2", |root| {
        let root = Root(root);
        root.delete("etc/hosts");
        root.delete("sys");
    });
    assert_eq!(paths(&layer), ["d etc", "w etc/hosts", "w sys"]);
}

#[test]
fn what_a_layer_cannot_say_is_an_error() {
    let message = |step: fn(&Root<'_>)| {
        let mut stack = Stack::new();
        stack.commit("0", |root| Root(root).mkdir("d", 0o755));
        let (upper, _) = stack.step("upper", |root| step(&Root(root)));
        stack.canonicalize(&upper).unwrap_err().message
    };
    assert_eq!(
        message(|root| root.file("d/.wh.x", "")),
        "a layer cannot hold `/d/.wh.x`: a name starting with `.wh.` means a deleted file"
    );
    assert_eq!(
        message(|root| root.mkdir(".wh.\n", 0o755)),
        "a layer cannot hold `/.wh.\\n`: a name starting with `.wh.` means a deleted file"
    );
    assert_eq!(
        message(|root| root.xattr("d", "user.a=b", b"")),
        "a layer cannot hold the attribute `user.a=b` of `/d`: its name has a `=`"
    );
}

/// Names longer together than any path may be, and deeper than there are descriptors.
#[test]
fn depth_has_no_limit() {
    let script = r#"ulimit -n 250 && exec "$0" --exact layer::within_few_descriptors --ignored"#;
    let test = Command::new("sh").args(["-c", script]).arg(std::env::current_exe().unwrap()).output().unwrap();
    assert!(test.status.success(), "{}", String::from_utf8_lossy(&test.stdout));
    assert!(String::from_utf8_lossy(&test.stdout).contains("1 passed"));
}

#[test]
#[ignore = "started by `depth_has_no_limit`, with few descriptors"]
fn within_few_descriptors() {
    for (name, levels) in [("x".repeat(200), 40), ("d".to_owned(), 700)] {
        let stack = Stack::new();
        let descend = |root: BorrowedFd<'_>, create: bool| {
            let mut dir = rustix::io::dup(root).unwrap();
            for _ in 0..levels {
                if create {
                    rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(0o755)).unwrap();
                }
                dir = open_at(dir.as_fd(), name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
            }
            dir
        };
        let lower = stack.make_dir("lower");
        write(descend(open(&lower).as_fd(), true).as_fd(), b"below", OFlags::CREATE, b"1").unwrap();
        let (upper, work) = (stack.make_dir("upper"), stack.make_dir("work"));
        let merged = overlay::mount(&[&lower], Some((&upper, &work))).unwrap();
        let bottom = descend(merged.as_fd(), false);
        write(bottom.as_fd(), b"above", OFlags::CREATE, b"2").unwrap();
        delete(bottom.as_fd(), b"below").unwrap();
        drop((merged, bottom));
        // A name beside each directory, so that the way back up is walked too.
        let lowers = [open(&lower)];
        let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
        let summary = layer::canonicalize(open(&upper).as_fd(), &lowers, None).unwrap();
        assert_eq!((summary.entries, summary.size_bytes), (levels + 2, 1));
        let tar = pack(&upper);
        let tree = tree::read_tar(&tar);
        let kinds: String = tree.values().map(|object| object.kind).collect();
        assert_eq!(kinds, "d".repeat(levels as usize) + "fw");
        let again = stack.make_dir("again");
        layer::unpack(&mut &tar[..], open(&again).as_fd(), &lowers).unwrap();
        assert!(pack(&again) == tar);
        let root = open(stack.dir.path());
        for dir in [c"lower", c"upper", c"work", c"again"] {
            layer::node::remove(&root, dir).unwrap();
        }
    }
}

#[test]
fn the_tree_digest_knows_all_but_times() {
    let digest = |step: fn(&Root<'_>)| {
        let stack = Stack::new();
        let (upper, _) = stack.step("upper", |root| {
            let root = Root(root);
            root.mkdir("d", 0o755);
            root.file("d/f", "content");
            root.file("g", &"x".repeat(3 << 20));
            root.symlink("l", "d");
            step(&root);
        });
        stack.canonicalize(&upper).unwrap();
        layer::pack_and_digest(open(&upper).as_fd(), &mut std::io::sink()).unwrap()
    };
    let plain = digest(|_| {});
    assert_eq!(plain, digest(|root| set_mtime(root.0, b"d/f", (5, 5)).unwrap()));
    assert_eq!(plain, digest(|root| set_mtime(root.0, b"d", (-5, 5)).unwrap()));
    let others = [
        digest(|root| root.file("d/f", "Content")),
        digest(|root| root.file("d/f2", "")),
        digest(|root| root.rename("d/f", "d/e")),
        digest(|root| root.chmod("d/f", 0o600)),
        digest(|root| root.own("d/f", 1, 0)),
        digest(|root| root.own("d/f", 0, 1)),
        digest(|root| root.xattr("d/f", "user.a", b"")),
        digest(|root| root.xattr("d/f", "user.a", b"1")),
        digest(|root| root.link("d/f", "d/h")),
        digest(|root| root.file("d/h", "content")),
        digest(|root| root.symlink("m", "d")),
        digest(|root| root.symlink("m", "e")),
    ];
    let distinct: std::collections::BTreeSet<_> =
        others.iter().chain([&plain]).map(|digest| digest.to_string()).collect();
    assert_eq!(distinct.len(), 13);
}

#[test]
fn paths_are_looked_up_through_layers() {
    let mut stack = Stack::new();
    stack.commit("0", |root| {
        let root = Root(root);
        root.mkdir("usr", 0o755);
        root.mkdir("usr/etc", 0o755);
        root.file("usr/etc/passwd", "old");
        root.file("usr/etc/gone", "old");
        root.symlink("etc", "/usr/etc");
        root.symlink("up", "../../usr");
        root.symlink("loop", "loop");
        rustix::fs::mknodat(root.0, "pipe", FileType::Fifo, Mode::RWXU, 0).unwrap();
    });
    stack.commit("1", |root| {
        let root = Root(root);
        root.file("usr/etc/passwd", "new");
        root.delete("usr/etc/gone");
    });
    let lowers = stack.lowers();
    let lowers: Vec<_> = lowers.iter().map(AsFd::as_fd).collect();
    let read = |path: &str| layer::read_file(&lowers, path.as_bytes(), 3).unwrap();
    for path in
        ["/etc/passwd", "etc//passwd", "usr/./etc/../etc/passwd", "../etc/passwd", "up/etc/passwd", "etc/../etc/passwd"]
    {
        assert_eq!(read(path).as_deref(), Some(&b"new"[..]), "{path}");
    }
    for path in ["etc/gone", "etc/none", "etc", "", "/", "etc/passwd/x", "pipe"] {
        assert_eq!(read(path), None, "{path}");
    }
    assert!(layer::read_file(&lowers, b"/etc/passwd", 2).is_err());
    assert!(layer::read_file(&lowers, b"loop", 3).is_err());
    assert!(layer::lookup(&lowers, b"/").unwrap().unwrap().node.is_directory());
    assert!(layer::lookup(&[], b"/").unwrap().is_none());
}
