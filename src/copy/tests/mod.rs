//! What lands where: `testdata/copy/cases.txt`, and what no table can say.
#![allow(clippy::unwrap_used)]

mod archive;
mod escape;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use tempfile::TempDir;

use super::*;
use crate::context::select::{Form, Request, select, survey};
use crate::context::{Entry, EntryKind, Selection, Survey};
use crate::digest::Digest;
use crate::layer;
use crate::layer::node::open_below;

pub(super) const NOW: i64 = 1_700_000_000;

pub(super) fn landing(destination: &str) -> Landing<'_> {
    Landing { destination, owner: None, chmod: None, is_link: false, has_parents: false, unpacks: false, now: NOW }
}

pub(super) fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn tree(path: &Path, keeps_owners: bool) -> Tree {
    Tree { root: open(path), name: "the context".into(), ignore: None, keeps_owners }
}

fn time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (NOW, 0) => "now".into(),
        (seconds, 0) => seconds.to_string(),
        (seconds @ ..0, nanoseconds) => {
            let fraction = format!("{:09}", 1_000_000_000 - nanoseconds);
            format!("-{}.{}", -seconds - 1, fraction.trim_end_matches('0'))
        }
        (seconds, nanoseconds) => format!("{seconds}.{}", format!("{nanoseconds:09}").trim_end_matches('0')),
    }
}

/// `7.5`, `-5.25`, `now`.
fn parse_time(text: &str) -> Timespec {
    if text == "now" {
        return Timespec { tv_sec: NOW, tv_nsec: 0 };
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().unwrap();
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().unwrap();
    match whole.starts_with('-') && nanoseconds > 0 {
        true => Timespec { tv_sec: seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds },
        false => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}

/// Makes what a line of a case describes; see the head of the table.
fn make(root: &Path, line: &str) {
    let words: Vec<&str> = line.splitn(6, ' ').collect();
    if words[0] == "h" {
        return fs::hard_link(at(root, words[2]), at(root, words[1])).unwrap();
    }
    let path = at(root, words[4]);
    let rest = words.get(5).copied().unwrap_or_default();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let device = || {
        let (major, minor) = rest.split_once(':').unwrap();
        rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap())
    };
    let node = |kind, device| rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, device).unwrap();
    match words[0] {
        "d" => drop(fs::create_dir(&path)),
        "f" => fs::write(&path, rest).unwrap(),
        "l" => symlink(rest, &path).unwrap(),
        "p" => node(FileType::Fifo, 0),
        "s" => node(FileType::Socket, 0),
        "c" => node(FileType::CharacterDevice, device()),
        "b" => node(FileType::BlockDevice, device()),
        other => panic!("{other}: {line}"),
    }
    let (uid, gid) = words[2].split_once(':').unwrap();
    lchown(&path, uid.parse().ok(), gid.parse().ok()).unwrap();
    if words[0] != "l" {
        let mode = u32::from_str_radix(words[1], 8).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    stamp(&path, parse_time(words[3]));
}

fn at(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}

pub(super) fn stamp(path: &Path, time: Timespec) {
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Directories change when something is made in them: times come last, 500 where none is given.
fn make_all(root: &Path, lines: &[&str]) {
    lines.iter().for_each(|line| make(root, line));
    let given: BTreeMap<_, _> = lines
        .iter()
        .filter(|line| line.starts_with("d "))
        .map(|line| line.splitn(6, ' ').collect::<Vec<_>>())
        .map(|words| (at(root, words[4]), parse_time(words[3])))
        .collect();
    for directory in walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap()) {
        if directory.file_type().is_dir() {
            let time = given.get(directory.path()).copied();
            stamp(directory.path(), time.unwrap_or(Timespec { tv_sec: 500, tv_nsec: 0 }));
        }
    }
}

/// All that is below a directory, one line each, in the notation of the cases.
pub(super) fn describe(root: &Path) -> String {
    let mut text = String::new();
    let mut first = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1).sort_by_file_name() {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        let path = format!("/{}", entry.path().strip_prefix(root).unwrap().display());
        let kind = metadata.file_type();
        let first = first.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone());
        if *first != path {
            writeln!(text, "h {path} {first}").unwrap();
            continue;
        }
        let device = || format!(" {}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let (letter, rest) = match () {
            () if kind.is_dir() => ('d', String::new()),
            () if kind.is_symlink() => ('l', format!(" {}", fs::read_link(entry.path()).unwrap().display())),
            () if kind.is_fifo() => ('p', String::new()),
            () if kind.is_char_device() => ('c', device()),
            () if kind.is_block_device() => ('b', device()),
            () if kind.is_socket() => ('s', String::new()),
            () => {
                let content = fs::read(entry.path()).unwrap();
                let space = if content.is_empty() { "" } else { " " };
                ('f', format!("{space}{}", String::from_utf8_lossy(&content)))
            }
        };
        let mtime = time((metadata.mtime(), metadata.mtime_nsec() as u32));
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        writeln!(text, "{letter} {mode:04o} {uid}:{gid} {mtime} {path}{rest}").unwrap();
    }
    text
}

pub(super) fn listing(root: &Path, sources: &[&str]) -> Listing {
    select_from(&tree(root, false), sources, Form::Wildcard)
}

fn select_from(tree: &Tree, sources: &[&str], form: Form) -> Listing {
    let request = Request { sources: sources.to_vec(), form, excludes: &[], threads: 1 };
    select(tree, &request, None).unwrap()
}

/// Runs one `COPY` or `ADD` line; files may be taken from `earlier`.
fn copy(line: &str, context: &Path, image: &Path, earlier: Option<&Path>) -> Result<()> {
    read(line, context, |tree, listing, landing| {
        let (root, earlier) = (open(image), earlier.map(open));
        let kept = land_beside(tree, listing, root.as_fd(), landing, earlier.as_ref().map(AsFd::as_fd))?;
        earlier.map_or(Ok(()), |earlier| kept.link(earlier.as_fd(), root.as_fd()))
    })
}

/// Reads one `COPY` or `ADD` line.
fn read<T>(line: &str, context: &Path, run: impl FnOnce(&Tree, &Listing, &Landing<'_>) -> T) -> T {
    parse(line, context, |tree, request, landing| run(tree, &select(tree, request, None).unwrap(), landing))
}

fn parse<T>(line: &str, context: &Path, run: impl FnOnce(&Tree, &Request<'_>, &Landing<'_>) -> T) -> T {
    let mut words = line.split(' ').peekable();
    let unpacks = words.next() == Some("ADD");
    let (mut owner, mut chmod, mut has_parents, mut is_link, mut keeps_owners) = (None, None, false, false, false);
    while let Some(flag) = words.next_if(|word| word.starts_with("--")) {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("--chown", value) => {
                let (uid, gid) = value.split_once(':').unwrap();
                owner = Some(Owner { uid: uid.parse().unwrap(), gid: gid.parse().unwrap() });
            }
            ("--chmod", value) => chmod = Some(value),
            ("--parents", _) => has_parents = true,
            ("--link", _) => is_link = true,
            ("--from", _) => keeps_owners = true,
            _ => panic!("{line}"),
        }
    }
    let mut sources: Vec<&str> = words.collect();
    let destination = sources.pop().unwrap();
    let form = if has_parents { Form::Parents } else { Form::Wildcard };
    let request = Request { sources, form, excludes: &[], threads: 1 };
    let landing = Landing { destination, owner, chmod, is_link, has_parents, unpacks, now: NOW };
    run(&tree(context, keeps_owners), &request, &landing)
}

/// An outline packs to what the copy packs to, wherever there is one, and whether or not its files were read before.
fn check_outline(line: &str, context: &Path, of_image: &[&str]) -> bool {
    // Archives are for others.
    if line.starts_with("ADD ") {
        return false;
    }
    let image = TempDir::new().unwrap();
    make_all(image.path(), of_image);
    let is_copied = copy(line, context, image.path(), None).is_ok();
    let mut expected = Vec::new();
    layer::pack(open(image.path()).as_fd(), &mut expected).unwrap();
    let mut is_outlined = false;
    for is_read in [true, false] {
        let mut packed = Vec::new();
        if parse(line, context, |tree, request, landing| {
            pack_outline(tree, request, landing, is_read, of_image, &mut packed)
        }) {
            assert!(is_copied && packed == expected, "{line}");
            is_outlined = true;
        }
    }
    is_outlined
}

fn pack_outline(
    tree: &Tree,
    request: &Request<'_>,
    landing: &Landing<'_>,
    is_read: bool,
    of_image: &[&str],
    packed: &mut Vec<u8>,
) -> bool {
    let listing = select(tree, request, None).unwrap();
    let mut survey = match is_read {
        true => Survey { listing: listing.clone(), unread: Vec::new() },
        false => survey(tree, request, None).unwrap(),
    };
    let read = loop {
        let outlined = TempDir::new().unwrap();
        make_all(outlined.path(), of_image);
        let root = open(outlined.path());
        let outlining = outline(tree, &survey.listing, &survey.unread, root.as_fd(), landing);
        let numbers = match outlining {
            Ok(Outlining::Done(outline)) => {
                let found = layer::pack_outline(root.as_fd(), &outline, packed).unwrap();
                break outline.read(found);
            }
            Ok(Outlining::Unread(numbers)) => numbers,
            Err(_) => return false,
        };
        assert!(!is_read && !numbers.is_empty());
        survey.read(tree, None, Some(&numbers), 1).unwrap();
    };
    survey.learn(read, None);
    // What did not land at all.
    survey.read(tree, None, None, 1).unwrap();
    assert_eq!(survey.listing, listing);
    true
}

/// An overlay over `lower`, mounted nowhere; `None` where the kernel does not let us.
fn overlay(lower: &Path, beside: &TempDir) -> Option<OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    for (key, path) in [("upperdir", beside.path().join("upper")), ("workdir", beside.path().join("work"))] {
        fs::create_dir(&path).unwrap();
        fsconfig_set_string(context.as_fd(), key, &path).ok()?;
    }
    fsconfig_set_string(context.as_fd(), "lowerdir", lower).ok()?;
    fsconfig_create(context.as_fd()).ok()?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).ok()
}

#[test]
fn copies_land_as_in_the_cases() {
    check_cases(Onto::Directory);
}

#[test]
fn copies_land_beside_an_earlier_one_as_in_the_cases() {
    let shared = check_cases(Onto::Earlier);
    assert!(shared > 30, "only {shared} files were taken from the earlier copies");
}

#[test]
fn copies_land_in_an_overlay_as_in_the_cases() {
    let (lower, beside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    if overlay(lower.path(), &beside).is_none() {
        #[allow(clippy::print_stderr)]
        return eprintln!("copies_land_in_an_overlay_as_in_the_cases: no overlay can be mounted here");
    }
    check_cases(Onto::Overlay);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Onto {
    Directory,
    Overlay,
    /// A directory, beside what the same copies made in another one.
    Earlier,
}

/// How many files landed that are another copy's, too.
fn check_cases(onto: Onto) -> usize {
    const CASES: &str = include_str!("../../../testdata/copy/cases.txt");
    let (mut count, mut shared, mut outlined) = (0, 0, 0);
    let mut wrong = String::new();
    for case in CASES.split("\n== ").skip(1) {
        let (name, body) = case.split_once('\n').unwrap();
        let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let lines: Vec<&str> = body.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let first = lines.iter().position(|line| line.starts_with("COPY ") || line.starts_with("ADD ")).unwrap();
        let is_copy = |line: &&&str| line.starts_with("COPY ") || line.starts_with("ADD ");
        let copies = lines[first..].iter().take_while(is_copy).count();
        // A path of the image starts with a slash, one of the source does not.
        let is_image = |line: &&str| {
            let words: Vec<&str> = line.splitn(6, ' ').collect();
            words[if words[0] == "h" { 1 } else { 4 }].starts_with('/')
        };
        let given = lines[..first].iter().filter(|line| **line != "image:").copied();
        let (of_image, of_context): (Vec<&str>, Vec<&str>) = given.partition(is_image);
        make_all(context.path(), &of_context);
        make_all(image.path(), &of_image);
        let beside = TempDir::new().unwrap();
        let copies_of_lines = &lines[first..first + copies];
        if onto == Onto::Earlier {
            make_all(beside.path(), &of_image);
            let _ = copies_of_lines.iter().try_for_each(|line| copy(line, context.path(), beside.path(), None));
        }
        if let (Onto::Directory, [line]) = (onto, copies_of_lines) {
            outlined += usize::from(check_outline(line, context.path(), &of_image));
        }
        let earlier = (onto == Onto::Earlier).then_some(beside.path());
        let mount = (onto == Onto::Overlay).then(|| overlay(image.path(), &beside).unwrap());
        let mount_path = mount.as_ref().map(|fd| format!("/proc/self/fd/{}/.", fd.as_raw_fd()));
        let image = mount_path.as_ref().map_or(image.path(), Path::new);
        let result = copies_of_lines.iter().try_for_each(|line| copy(line, context.path(), image, earlier));
        let expected = lines[first + copies..].iter().map(|line| format!("{line}\n")).collect::<String>();
        let actual = match result {
            Ok(()) => describe(image),
            Err(error) => format!("error: {}\n", error.message),
        };
        if actual != expected {
            writeln!(wrong, "== {name}\n--- expected\n{expected}--- is\n{actual}").unwrap();
        }
        count += 1;
        shared += earlier.map_or(0, |earlier| files_of_both(earlier, image));
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    assert!(count > 50, "only {count} cases were found");
    assert!(onto != Onto::Directory || outlined > 30, "only {outlined} copies were outlined");
    shared
}

fn files_of_both(one: &Path, other: &Path) -> usize {
    let files = |root| {
        let entries = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().is_file());
        files.map(|file| file.metadata().unwrap().ino()).collect::<BTreeSet<_>>()
    };
    files(one).intersection(&files(other)).count()
}

#[test]
fn a_damaged_file_of_an_earlier_copy_is_not_taken() {
    let (context, earlier, image) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    make_all(context.path(), &["f 0644 0:0 100 d/a.txt alpha", "f 0600 0:0 100 d/b.txt beta"]);
    copy("COPY d /o", context.path(), earlier.path(), None).unwrap();
    let expected = describe(earlier.path());
    fs::write(earlier.path().join("o/a.txt"), "ALPHA").unwrap();
    stamp(&earlier.path().join("o/a.txt"), parse_time("100"));
    copy("COPY d /o", context.path(), image.path(), Some(earlier.path())).unwrap();
    assert_eq!(describe(image.path()), expected);
    assert_eq!(files_of_both(earlier.path(), image.path()), 1);
}

#[test]
fn a_changed_file_is_an_error() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 5] = [
        ("same size", |path| fs::write(path, "brand").unwrap()),
        ("longer", |path| fs::write(path, "alpha and more").unwrap()),
        ("shorter", |path| fs::write(path, "").unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("a link", |path| {
            fs::rename(path, path.with_file_name("b.txt")).unwrap();
            symlink("b.txt", path).unwrap();
        }),
    ];
    for (what, change) in changes {
        for unpacks in [false, true] {
            let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            make_all(context.path(), &["f 0644 0:0 100 d/a.txt alpha"]);
            let listing = listing(context.path(), &["d", "d/a.txt"]);
            change(&context.path().join("d/a.txt"));
            let landing = Landing { unpacks, ..landing("/o/") };
            let result = land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing);
            assert_eq!(result.unwrap_err().message, "`d/a.txt` changed during the build", "{what}");
        }
    }
    // The bytes are what counts, not what the file looks like by now.
    let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    make_all(context.path(), &["f 0644 0:0 100 a.txt alpha"]);
    let listing = listing(context.path(), &["a.txt"]);
    make_all(context.path(), &["f 0600 1:1 999 a.txt alpha"]);
    land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing("/o")).unwrap();
    assert_eq!(describe(image.path()), "f 0644 0:0 100 /o alpha\n");
}

#[test]
fn big_and_sparse_files_arrive_whole() {
    let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = context.path().join("big");
    let mut bytes = vec![0; 3 * content::BUFFER_BYTES + 17];
    bytes[2 * content::BUFFER_BYTES + 5] = 7;
    fs::write(&path, &bytes).unwrap();
    let hole = context.path().join("hole");
    fs::File::create(&hole).unwrap().set_len(1 << 20).unwrap();
    let listing = listing(context.path(), &["big", "hole"]);
    land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing("/o/")).unwrap();
    assert_eq!(fs::read(image.path().join("o/big")).unwrap(), bytes);
    let landed = fs::metadata(image.path().join("o/hole")).unwrap();
    assert_eq!((landed.size(), landed.blocks()), (1 << 20, 0));
}

#[test]
fn attributes_survive_the_change_of_owner() {
    // Revision 2, cap_net_raw permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    make_all(context.path(), &["f 4755 0:0 100 d/f x", "d 0755 0:0 300 d/e"]);
    let mut listing = listing(context.path(), &["d"]);
    let xattrs = vec![(b"security.capability".to_vec(), capability.to_vec()), (b"user.k".to_vec(), b"v\n\0".to_vec())];
    for entry in &mut listing.selections[0].entries {
        match &*entry.land {
            b"f" => entry.xattrs = xattrs.clone(),
            b"e" => entry.xattrs = xattrs[1..].to_vec(),
            _ => {}
        }
    }
    let landing = Landing { owner: Some(Owner { uid: 5, gid: 6 }), ..landing("/o") };
    land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing).unwrap();
    assert_eq!(describe(image.path()), "d 0755 5:6 500 /o\nd 0755 5:6 300 /o/e\nf 4755 5:6 100 /o/f x\n");
    assert_eq!(xattr(&image.path().join("o/f"), "security.capability"), Some(capability.to_vec()));
    assert_eq!(xattr(&image.path().join("o/f"), "user.k"), Some(b"v\n\0".to_vec()));
    assert_eq!(xattr(&image.path().join("o/e"), "user.k"), Some(b"v\n\0".to_vec()));
}

pub(super) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn trees_deeper_than_a_path_may_be_long() {
    let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let name = "n".repeat(200);
    let mut directory = open(context.path());
    for _ in 0..30 {
        rustix::fs::mkdirat(&directory, name.as_str(), Mode::RWXU).unwrap();
        directory = rustix::fs::openat(&directory, name.as_str(), rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(&directory, "f", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, Mode::RUSR);
    rustix::io::write(file.unwrap(), b"deep").unwrap();
    let entry = |land: String, kind| Entry {
        path: land.clone().into_bytes(),
        land: land.into_bytes(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (7, 0),
        xattrs: Vec::new(),
        link_group: None,
        is_passed: false,
    };
    let below = |depth: usize| vec![name.as_str(); depth].join("/");
    let mut entries: Vec<Entry> = (0..=30).map(|depth| entry(below(depth), EntryKind::Directory)).collect();
    let file = EntryKind::File { size_bytes: 4, digest: Digest::of(b"deep") };
    entries.push(entry(below(30) + "/f", file));
    let listing = Listing { selections: vec![Selection { name: Vec::new(), entries }] };
    land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing("/o")).unwrap();
    let path = format!("o/{}/f", below(30));
    let landed = open_below(open(image.path()).as_fd(), path.as_bytes(), rustix::fs::OFlags::RDONLY).unwrap();
    let stat = rustix::fs::fstat(landed).unwrap();
    assert_eq!((stat.st_size, stat.st_mtime, stat.st_mode & 0o777), (4, 7, 0o755));
    let directory = format!("o/{}", below(30));
    let landed = open_below(open(image.path()).as_fd(), directory.as_bytes(), rustix::fs::OFlags::PATH).unwrap();
    assert_eq!(rustix::fs::fstat(landed).unwrap().st_mtime, 7);
    // Nor can `remove_dir_all` name them.
    node::remove(open(image.path()).as_fd(), b"o").unwrap();
    node::remove(open(context.path()).as_fd(), name.as_bytes()).unwrap();
}

#[test]
fn heredocs_and_downloads() {
    let blob = Blob { name: "EOF", content: b"#!/bin/sh\n", mode: 0o644, mtime: NOW };
    let owned = Landing { owner: Some(Owner { uid: 1, gid: 2 }), chmod: Some("0755"), ..landing("/run.sh") };
    let download = Blob { name: "x.bin", content: b"", mode: 0o600, mtime: 0 };
    for (blob, landing, expected) in [
        (&blob, landing("/o/h.txt"), "d 0755 0:0 now /o\nf 0644 0:0 now /o/h.txt #!/bin/sh\n\n"),
        (&blob, owned, "f 0755 1:2 now /run.sh #!/bin/sh\n\n"),
        (&download, landing("/d/"), "d 0755 0:0 now /d\nf 0600 0:0 0 /d/x.bin\n"),
    ] {
        let image = TempDir::new().unwrap();
        land_blob(blob, open(image.path()).as_fd(), &landing).unwrap();
        assert_eq!(describe(image.path()), expected);
    }
    let image = TempDir::new().unwrap();
    fs::create_dir_all(image.path().join("x/y")).unwrap();
    let result = land_blob(&blob, open(image.path()).as_fd(), &landing("/x/y/../../x/y"));
    assert!(result.is_ok());
    assert_eq!(fs::read(image.path().join("x/y/EOF")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn workdirs() {
    let root = Owner::ROOT;
    let user = Owner { uid: 1717, gid: 1718 };
    let cases: &[(&[&str], &str, Owner, bool, &str)] = &[
        (&[], "/a/b", root, true, "d 0755 0:0 now /a\nd 0755 0:0 now /a/b\n"),
        (&[], "/a/b/", root, true, "d 0755 0:0 now /a\nd 0755 0:0 now /a/b\n"),
        (&[], "/", root, false, ""),
        (&[], "/w/x", user, true, "d 0755 1717:1718 now /w\nd 0755 1717:1718 now /w/x\n"),
        (&["d 0700 3:4 200 /w"], "/w", user, false, "d 0700 3:4 200 /w\n"),
        (&["d 0700 3:4 200 /w"], "/w/x", user, true, "d 0700 3:4 now /w\nd 0755 1717:1718 now /w/x\n"),
        (
            &["d 0755 0:0 200 /real", "l 0777 0:0 201 /ln /real"],
            "/ln/sub",
            root,
            true,
            "l 0777 0:0 201 /ln /real\nd 0755 0:0 now /real\nd 0755 0:0 now /real/sub\n",
        ),
        (
            &["l 0777 0:0 201 /ln ../../no/where"],
            "/ln",
            root,
            true,
            "l 0777 0:0 201 /ln ../../no/where\nd 0755 0:0 now /no\nd 0755 0:0 now /no/where\n",
        ),
    ];
    for (given, path, owner, made, expected) in cases {
        let image = TempDir::new().unwrap();
        make_all(image.path(), given);
        let result = make_workdir(open(image.path()).as_fd(), path, Some(*owner), NOW);
        assert_eq!((result.unwrap(), describe(image.path()).as_str()), (*made, *expected), "{path}");
    }
    for (given, path, message) in [
        ("f 0644 0:0 1 /f", "/f", "`/f` is not a directory"),
        ("f 0644 0:0 1 /f", "/f/x", "`/f` is not a directory"),
        ("l 0777 0:0 1 /l l", "/l/x", "too many symbolic links on the way to `/l/x`"),
        ("l 0777 0:0 1 /l /dev/null", "/l/x/y", "`/dev/null` is not a directory"),
    ] {
        let image = TempDir::new().unwrap();
        make_all(image.path(), &[given, "c 0666 0:0 1 /dev/null 1:3"]);
        let error = make_workdir(open(image.path()).as_fd(), path, None, NOW).unwrap_err();
        assert_eq!(error.message, message);
    }
}
