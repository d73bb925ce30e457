//! Layer tars as strangers write them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tar::{EntryType, Header};
use tempfile::TempDir;
use wythe::diag::Result;
use wythe::layer::{self, Summary};

use crate::overlay;
use crate::relief::Shown;
use crate::step::Random;
use crate::tree::{self, Tree};

/// A tar in the making.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn header(
        mut self,
        path: &str,
        entry_type: EntryType,
        link: &str,
        content: &[u8],
        with: impl Fn(&mut Header),
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(entry_type);
        header.set_mode(if entry_type == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        with(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.raw(content)
    }

    fn raw(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.header(path, EntryType::Regular, "", content.as_bytes(), |_| {})
    }

    pub fn dir(self, path: &str) -> Self {
        self.header(path, EntryType::Directory, "", b"", |_| {})
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.header(path, EntryType::Symlink, target, b"", |_| {})
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.header(path, EntryType::Link, target, b"", |_| {})
    }

    pub fn device(self, path: &str, entry_type: EntryType, major: u32, minor: u32) -> Self {
        self.header(path, entry_type, "", b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|length| length - rest == length.to_string().len()).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.header("pax", EntryType::XHeader, "", &data, |_| {})
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Layers, bottom first, made from tars.
struct Stack(TempDir, Vec<OwnedFd>, Shown);

impl Stack {
    fn of(tars: impl IntoIterator<Item = Tar>) -> Self {
        let mut stack = Self(overlay::scratch(), Vec::new(), Shown::default());
        for tar in tars {
            stack.unpack(&tar.end()).unwrap();
        }
        stack
    }

    fn unpack(&mut self, tar: &[u8]) -> Result<Summary> {
        let mut rest = tar;
        let result = self.unpack_from(&mut rest);
        assert!(rest.is_empty() || result.is_err(), "all is read, so that all can be hashed");
        result
    }

    fn unpack_from(&mut self, tar: &mut &[u8]) -> Result<Summary> {
        let path = self.0.path().join(self.1.len().to_string());
        fs::create_dir(&path).unwrap();
        let into = OwnedFd::from(File::open(path).unwrap());
        let lowers: Vec<_> = self.1.iter().rev().map(AsFd::as_fd).collect();
        let mut again = *tar;
        let result = layer::unpack(tar, into.as_fd(), &lowers);
        let is_unpacked = result.is_ok();
        self.1.push(into);
        let layers: Vec<_> = self.1.iter().rev().map(AsFd::as_fd).collect();
        self.2.check(&mut again, is_unpacked, &layers, self.0.path());
        result
    }

    /// The topmost layer, one line a name.
    fn top(&self) -> Vec<String> {
        let tree = tree::read(self.1.last().unwrap().as_fd());
        tree.iter().map(|(path, object)| line(&tree, path, object)).collect()
    }

    fn tree(&self) -> Tree {
        tree::read(self.1.last().unwrap().as_fd())
    }
}

/// `d755 path`, `f path "content"`, `l path -> target`, `f path = other` for a hard link, `w path`.
fn line(tree: &Tree, path: &[u8], object: &tree::Object) -> String {
    let shown = path.escape_ascii();
    match object.kind {
        'd' => format!("d{:o} {shown}", object.mode),
        _ if object.file != path && tree.contains_key(&object.file) => {
            format!("{} {shown} = {}", object.kind, object.file.escape_ascii())
        }
        'f' => format!("f {shown} \"{}\"", object.content.escape_ascii()),
        'l' => format!("l {shown} -> {}", object.content.escape_ascii()),
        kind => format!("{kind} {shown}"),
    }
}

#[track_caller]
fn check(lowers: impl IntoIterator<Item = Tar>, tar: Tar, expected: &[&str]) {
    let mut stack = Stack::of(lowers);
    let summary = stack.unpack(&tar.end()).unwrap();
    assert_eq!(stack.top(), expected);
    assert_eq!(summary.entries, expected.len() as u64);
}

#[track_caller]
fn refused(lowers: impl IntoIterator<Item = Tar>, tar: Tar, cause: &str) {
    let error = Stack::of(lowers).unpack(&tar.end()).unwrap_err();
    assert_eq!(error.cause.as_deref(), Some(cause), "{}", error.message);
}

fn tar() -> Tar {
    Tar::default()
}

#[test]
fn names_are_cleaned() {
    check([], tar().dir("./").dir("./a/").file("./a//b", "1"), &["d755 a", "f a/b \"1\""]);
    check([], tar().file("/a/b", "1"), &["d755 a", "f a/b \"1\""]);
    check([], tar().dir("/").file("///a", "1"), &["f a \"1\""]);
    refused([], tar().file("../a", ""), "its path leads upwards");
    refused([], tar().file("a/../../b", ""), "its path leads upwards");
    refused([], tar().dir("a").dir("a/.."), "its path leads upwards");
    refused([], tar().symlink("./", "/etc"), "the root of a layer must be a directory");
    refused([], tar().file(".", ""), "the root of a layer must be a directory");
    refused([], tar().pax(&[("path", b"a\0b")]).file("x", ""), "its path holds a NUL");
}

#[test]
fn implied_parents_are_as_below() {
    let below = || {
        tar().header("opt/", EntryType::Directory, "", b"", |header| {
            header.set_mode(0o2750);
            header.set_uid(7);
            header.set_gid(8);
        })
    };
    let mut stack = Stack::of([below(), tar().file("elsewhere", "")]);
    stack.unpack(&tar().file("opt/a/b", "1").end()).unwrap();
    let tree = stack.tree();
    let opt = &tree[&b"opt"[..]];
    assert_eq!((opt.mode, opt.uid, opt.gid, opt.mtime), (0o2750, 7, 8, (1_000_000_000, 0)));
    let new = &tree[&b"opt/a"[..]];
    assert_eq!((new.mode, new.uid, new.gid, new.mtime), (0o755, 0, 0, (0, 0)));
    // A member that comes later, or came before, says otherwise.
    check([below()], tar().file("opt/a", "").dir("opt"), &["d755 opt", "f opt/a \"\""]);
    check([below()], tar().dir("opt").file("opt/a", ""), &["d755 opt", "f opt/a \"\""]);
}

#[test]
fn a_link_on_the_way_is_followed_inside() {
    let root = || tar().dir("run").dir("var").symlink("var/run", "/run").symlink("lock", "run/lock");
    check([root()], tar().file("var/run/x", "1"), &["d755 run", "f run/x \"1\""]);
    check([root()], tar().file("lock/x", "1"), &["d755 run", "d755 run/lock", "f run/lock/x \"1\""]);
    check(
        [],
        root().file("var/run/x", "1"),
        &["l lock -> run/lock", "d755 run", "f run/x \"1\"", "d755 var", "l var/run -> /run"],
    );
    // Out of the tree there is nothing: `..` at the top is the top.
    check([tar().symlink("up", "../../../up2")], tar().file("up/x", "1"), &["d755 up2", "f up2/x \"1\""]);
    check([], tar().symlink("l", "a/../b").file("l/x", "1"), &["d755 b", "f b/x \"1\"", "l l -> a/../b"]);
    // A directory in the place of a link is a directory.
    check([root()], tar().dir("var/run").file("var/run/x", "1"), &["d755 var", "d755 var/run", "f var/run/x \"1\""]);
    refused(
        [],
        tar().symlink("a", "b").symlink("b", "a").file("a/x", ""),
        "Too many levels of symbolic links (os error 40)",
    );
    refused([tar().file("a", "")], tar().file("a/x", ""), "its parent is not a directory");
}

#[test]
fn whiteouts_hide_what_is_below_alone() {
    let below = || tar().file("a", "1").dir("d").file("d/x", "1").dir("d/e").file("d/e/y", "1");
    check([below()], tar().file(".wh.a", ""), &["w a"]);
    check([below()], tar().file(".wh.none", ""), &[]);
    check([below()], tar().file("none/.wh.none", ""), &[]);
    check([below()], tar().file("a/.wh.none", ""), &[]);
    check([below()], tar().file("d/.wh.x", ""), &["d755 d", "w d/x"]);
    // Before or after what the layer adds.
    check([below()], tar().file(".wh.a", "").file("a", "2"), &["f a \"2\""]);
    check([below()], tar().file("a", "2").file(".wh.a", ""), &["f a \"2\""]);
    let replaced = &["d755 d", "w d/e", "w d/x", "f d/z \"2\""];
    check([below()], tar().file(".wh.d", "").dir("d").file("d/z", "2"), replaced);
    check([below()], tar().dir("d").file("d/z", "2").file(".wh.d", ""), replaced);
    check([below()], tar().file(".wh.d", "").file("d/z", "2"), replaced);
    check([below()], tar().file("d/.wh..wh..opq", "").dir("d").file("d/z", "2"), replaced);
    check([below()], tar().dir("d").file("d/z", "2").file("d/.wh..wh..opq", ""), replaced);
    // And deeper.
    check(
        [below()],
        tar().file("d/.wh..wh..opq", "").file("d/e/z", "2"),
        &["d755 d", "d755 d/e", "w d/e/y", "f d/e/z \"2\"", "w d/x"],
    );
    check([below()], tar().file(".wh..wh..opq", "").file("b", "2"), &["w a", "f b \"2\"", "w d"]);
    // What is not there any more needs no whiteout.
    check(
        [below(), tar().file(".wh.a", "")],
        tar().file(".wh.a", "").file("d/.wh..wh..opq", ""),
        &["d755 d", "w d/e", "w d/x"],
    );
    // A whiteout is not followed.
    check([below().symlink("l", "d")], tar().file(".wh.l", ""), &["w l"]);
    check([below().symlink("l", "d")], tar().file("l/.wh.x", ""), &["d755 d", "w d/x"]);
    check([below().symlink("l", "d")], tar().file(".wh.l", "").file("l/x", "2"), &["d755 l", "f l/x \"2\""]);
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        refused([below()], tar().file(name, ""), "it deletes no name");
    }
    refused([], tar().file(".wh.d/x", ""), "a name starting with `.wh.` means a deleted file, nothing can be in it");
    check([below()], tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1", "").file(".wh..wh.aufs", ""), &[]);
    // An overlay's whiteout, packed as what it is.
    check([below()], tar().device("a", EntryType::Char, 0, 0).device("none", EntryType::Char, 0, 0), &["w a"]);
}

#[test]
fn the_later_of_two_members_counts() {
    check([], tar().file("a", "1").file("a", "2"), &["f a \"2\""]);
    check([], tar().file("a", "1").link("b", "a").file("a", "2"), &["f a \"2\"", "f b \"1\""]);
    check([], tar().dir("a").file("a/b", "1").file("a", "2"), &["f a \"2\""]);
    check([], tar().file("a", "1").dir("a").file("a/b", "2"), &["d755 a", "f a/b \"2\""]);
    check([], tar().dir("a").file("a/b", "1").dir("a").file("a/c", "2"), &["d755 a", "f a/b \"1\"", "f a/c \"2\""]);
    check(
        [],
        tar().dir("a").file("a/b", "1").symlink("a", "c").file("a/d", "2"),
        &["l a -> c", "d755 c", "f c/d \"2\""],
    );
    // In between, the directory below was gone.
    let below = tar().dir("a").file("a/below", "");
    check([below], tar().file("a", "1").dir("a").file("a/b", "2"), &["d755 a", "f a/b \"2\"", "w a/below"]);
    // A name written through a link that the same tar then takes away.
    check(
        [],
        tar().dir("t").symlink("l", "t").file("l/a", "1").file("l", "2"),
        &["f l \"2\"", "d755 t", "f t/a \"1\""],
    );
}

#[test]
fn hard_links_reach_below() {
    let below = || tar().dir("d").file("d/a", "1").symlink("d/l", "a").symlink("e", "d");
    check([], tar().file("a", "1").link("b", "a").link("c", "/b"), &["f a \"1\"", "f b = a", "f c = a"]);
    check([below()], tar().link("b", "d/a"), &["f b \"1\"", "d755 d", "f d/a = b"]);
    check([below()], tar().link("b", "e/a"), &["f b \"1\"", "d755 d", "f d/a = b"]);
    check([below()], tar().link("b", "d/l"), &["l b -> a", "d755 d", "l d/l = b"]);
    check([below()], tar().link("d/a", "d/a"), &["d755 d", "f d/a \"1\""]);
    refused([below()], tar().link("b", "nowhere/a"), "it is a link to `nowhere/a`, which is not there");
    refused([below()], tar().file("d/.wh.a", "").link("b", "d/a"), "it is a link to `d/a`, which is not there");
    refused([below()], tar().link("b", "d"), "it is a link to `d`, which is not there");
    refused([], tar().dir("d").link("b", "d"), "it is a hard link to the directory `d`");
    refused([below()], tar().link("b", "../../etc/passwd"), "its path leads upwards");
    refused([], tar().link("b", "/etc/passwd"), "it is a link to `/etc/passwd`, which is not there");
}

#[test]
fn nothing_leads_outside() {
    let outside = TempDir::new().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "sings").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o600)).unwrap();
    let before = fs::metadata(&canary).unwrap();
    let out = outside.path().to_str().unwrap();
    let up = format!("{}{}", "../".repeat(20), &out[1..]);
    let tars = [
        tar().symlink("l", out).file("l/canary", "dead"),
        tar().symlink("l", &up).file("l/canary", "dead"),
        tar().symlink("l", out).dir("l").file("l/canary", "dead"),
        tar().symlink("l", &format!("{out}/canary")).file("l", "dead"),
        tar().symlink("l", &format!("{out}/canary")).link("m", "l").file("m", "dead"),
        tar().symlink("l", out).file("l/.wh.canary", ""),
        tar().symlink("l", out).file("l/.wh..wh..opq", ""),
        tar().symlink("l", out).link("m", "l/canary"),
        tar().symlink("l", out).dir("l/canary"),
        tar().symlink("l", "/proc/self/fd").file("l/3/x", "dead"),
        tar().symlink("l", "/proc/self/root").file(&format!("l/{}/canary", &out[1..]), "dead"),
        tar().symlink("l", "/proc/self/cwd").file("l/dead", "dead"),
        tar().link("m", &format!("{out}/canary")),
        tar().file(&format!("{out}/canary"), "dead"),
    ];
    for (number, hostile) in tars.into_iter().enumerate() {
        for lowers in [vec![], vec![tar().symlink("l", out).symlink("x", "/")]] {
            let _ = Stack::of(lowers).unpack(&Tar(hostile.0.clone()).end());
            let after = fs::metadata(&canary).unwrap();
            assert_eq!(fs::read_to_string(&canary).unwrap(), "sings", "tar {number}");
            let facts =
                |metadata: &fs::Metadata| (metadata.mode(), metadata.nlink(), metadata.ctime(), metadata.ctime_nsec());
            assert_eq!(facts(&after), facts(&before), "tar {number}");
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "tar {number}");
        }
    }
}

#[test]
fn a_link_in_the_way_of_the_layer_itself_is_not_followed() {
    // The layers below may hold a link anywhere: nothing of them is followed by the kernel.
    let dir = TempDir::new().unwrap();
    let outside = dir.path().join("outside");
    let lower = dir.path().join("lower");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&lower).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, lower.join("l")).unwrap();
    let lower = OwnedFd::from(File::open(lower).unwrap());
    assert!(layer::lookup(&[lower.as_fd()], b"/l/secret").unwrap().is_none());
    assert_eq!(layer::read_file(&[lower.as_fd()], b"l/secret", 10).unwrap(), None);
}

#[test]
fn kinds_owners_and_attributes_arrive() {
    let capability = [&0x0300_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12], &1000_u32.to_le_bytes()].concat();
    let mut stack = Stack::of([]);
    let tar = tar()
        .device("null", EntryType::Char, 1, 3)
        .device("disk", EntryType::Block, 259, 70000)
        .header("pipe", EntryType::Fifo, "", b"", |header| header.set_mode(0o622))
        .header("su", EntryType::Regular, "", b"x", |header| header.set_mode(0o104755))
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.a", b"multi\nline=\0\n99 size=7\n"),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("mtime", b"-1.25"),
            ("uid", b"3000000000"),
        ])
        .file("rich", "r")
        .pax(&[("SCHILY.xattr.user.d", b"1")])
        .dir("dir")
        .pax(&[("path", b"caf\xe9/\n"), ("mtime", b"1700000000.123456789")])
        .file("x", "");
    stack.unpack(&tar.end()).unwrap();
    let tree = stack.tree();
    let null = &tree[&b"null"[..]];
    assert_eq!((null.kind, null.device), ('c', (1, 3)));
    assert_eq!((tree[&b"disk"[..]].kind, tree[&b"disk"[..]].device), ('b', (259, 70000)));
    assert_eq!((tree[&b"pipe"[..]].kind, tree[&b"pipe"[..]].mode), ('p', 0o622));
    assert_eq!(tree[&b"su"[..]].mode, 0o4755);
    let rich = &tree[&b"rich"[..]];
    assert_eq!((rich.uid, rich.mtime), (3_000_000_000, (-2, 750_000_000)));
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = [
        (&b"security.capability"[..], [&0x0200_0001_u32.to_le_bytes()[..], &capability[4..20]].concat()),
        (b"user.a", b"multi\nline=\0\n99 size=7\n".to_vec()),
        (b"user.empty", Vec::new()),
    ]
    .map(|(name, value)| (name.to_vec(), value))
    .into();
    assert_eq!(rich.xattrs, expected);
    assert_eq!(tree[&b"dir"[..]].xattrs.len(), 1);
    assert_eq!(tree[&b"caf\xe9/\n"[..]].mtime, (1_700_000_000, 123_456_789));
    refused(
        [],
        crate::unpack::tar().pax(&[("uid", b"4294967295")]).file("a", ""),
        "its owner 4294967295:0 is out of range",
    );
    refused(
        [],
        crate::unpack::tar().file("a", "").header("v", EntryType::new(b'V'), "", b"", |_| {}),
        "it is of a kind that no layer has",
    );
}

#[test]
fn a_directory_keeps_its_time() {
    let mut stack = Stack::of([]);
    stack.unpack(&tar().dir("a").dir("a/b").file("a/b/c", "").file("a/b/c", "2").file("a/d", "").end()).unwrap();
    assert!(stack.tree().values().all(|object| object.mtime == (1_000_000_000, 0)));
    let root = fs::metadata(stack.0.path().join("0")).unwrap();
    assert_eq!((root.mode() & 0o7777, root.mtime()), (0o755, 0));
}

#[test]
fn torn_tars_are_errors() {
    let whole = tar().file("a", &"x".repeat(700)).pax(&[("path", b"b")]).file("c", "1").end();
    // Around each block, where the reader changes what it expects.
    for length in (1..whole.len() - 1024).filter(|length| matches!(length % 512, 0 | 1 | 200 | 511)) {
        let result = Stack::of([]).unpack(&whole[..length]);
        assert_eq!(result.is_ok(), length == 512 + 1024, "{length} of {}", whole.len());
    }
    let mut stack = Stack::of([]);
    stack.unpack(&whole[..whole.len() - 1024]).unwrap();
    stack.unpack(&[&whole[..], b"garbage"].concat()).unwrap();
    stack.unpack(&[&whole[..], &[0; 10240]].concat()).unwrap();
    stack.unpack(b"").unwrap();
    let mut wrong = whole.clone();
    wrong[0] = b'z';
    assert!(stack.unpack(&wrong).is_err());
    let bomb = tar().header("x", EntryType::XHeader, "", b"", |header| header.set_size(1 << 40)).end();
    let error = stack.unpack(&bomb).unwrap_err();
    assert_eq!(error.cause.as_deref(), Some("an extension header is larger than 1 MiB"));
}

/// Made by GNU tar from one tree in each of its formats.
#[test]
fn every_tar_format_is_read() {
    let dir = crate::testdata("layer").join("tar");
    let mut expected = None;
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mut stack = Stack::of([]);
        let compressed = File::open(&path).unwrap();
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut layer::decompress(compressed).unwrap(), &mut plain).unwrap();
        stack.unpack(&plain).unwrap();
        let tree = tree::in_seconds(stack.tree());
        let sparse = &tree[&b"sparse"[..]].content;
        assert_eq!(sparse.len(), 3 << 20, "{}", path.display());
        assert_eq!(&sparse[1 << 20..(1 << 20) + 4], b"data");
        assert_eq!(sparse.iter().filter(|byte| **byte != 0).count(), 8);
        let name = [&b"dir/"[..], &[b'n'; 90], b"/", &[b'm'; 90], b"/f"].concat();
        assert_eq!(tree[&name].content, b"deep\n");
        let blocks = fs::metadata(stack.0.path().join("0/sparse")).unwrap().blocks();
        assert!(!path.to_string_lossy().contains("sparse") || blocks < 1000, "holes stay holes");
        let expected = expected.get_or_insert_with(|| tree.clone());
        assert!(tree == *expected, "{}:\n{}", path.display(), tree::difference(&tree, expected));
        count += 1;
    }
    assert!(count >= 5);
}

/// Damage anywhere, with checksums made right again: an error or another tree, never a panic, and
/// nothing outside.
#[test]
fn damage_is_survived() {
    let outside = TempDir::new().unwrap();
    let sparse = fs::read(crate::testdata("layer").join("tar/pax-sparse-1.0.tar.gz")).unwrap();
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut layer::decompress(&sparse[..]).unwrap(), &mut plain).unwrap();
    plain.truncate(plain.len().min(24 * 512));
    let hostile = tar()
        .symlink("l", outside.path().to_str().unwrap())
        .dir("d")
        .file("d/.wh.x", "")
        .pax(&[("path", b"l/x"), ("SCHILY.xattr.user.a", b"1"), ("mtime", b"1.5")])
        .file("f", "1")
        .link("d/g", "l/x")
        .end();
    let mut random = Random(11);
    for round in 0..600 {
        let mut tar = if round % 2 == 0 { plain.clone() } else { hostile.clone() };
        for _ in 0..1 + random.below(4) {
            let at = random.below(tar.len());
            tar[at] = *random.pick(&[0, 1, b'/', b'.', b'0', b'7', b'x', b'S', b'L', 0x80, 0xff]);
            let header = &mut tar[at / 512 * 512..][..512];
            let sum: u32 = header
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
                .sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = Stack::of([Tar::default().dir("d").file("d/x", "")]).unpack(&tar);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "round {round}");
    }
}
