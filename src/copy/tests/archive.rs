//! Archives: real ones, as other tools write them, and those of strangers.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tempfile::TempDir;

use super::*;

/// Kind (as in the cases), name, and content, target or device.
pub(super) type Line<'a> = (&'a str, &'a str, &'a str);

const TOP: &[Line<'_>] = &[
    ("d 0750 3:4 1577934245", "top/", ""),
    ("f 0640 100:200 1000000000", "top/f", "in tar\n"),
    ("h 0640 100:200 1000000000", "top/h", "top/f"),
    ("l 0777 0:0 1577934245", "top/l", "f"),
];

const TOP_LANDED: &str = "d 0755 0:0 now /o\nd 0750 3:4 1577934245 /o/top\n\
    f 0640 100:200 1000000000 /o/top/f in tar\n\nh /o/top/h /o/top/f\nl 0777 0:0 1577934245 /o/top/l f\n";

/// Names are written as they are, `..` and slashes included.
fn header(line: &Line<'_>) -> tar::Header {
    let mut words = line.0.split(' ');
    let kind = words.next().unwrap();
    let mut header = tar::Header::new_gnu();
    let default_mode = if kind == "d" { "0755" } else { "0644" };
    header.set_mode(u32::from_str_radix(words.next().unwrap_or(default_mode), 8).unwrap());
    let (uid, gid) = words.next().unwrap_or("0:0").split_once(':').unwrap();
    header.set_uid(uid.parse().unwrap());
    header.set_gid(gid.parse().unwrap());
    header.set_mtime(words.next().unwrap_or("5").parse().unwrap());
    header.set_size(0);
    header.as_old_mut().name[..line.1.len()].copy_from_slice(line.1.as_bytes());
    header.set_entry_type(match kind {
        "d" => tar::EntryType::Directory,
        "f" => tar::EntryType::Regular,
        "l" => tar::EntryType::Symlink,
        "h" => tar::EntryType::Link,
        "p" => tar::EntryType::Fifo,
        "c" => tar::EntryType::Char,
        "b" => tar::EntryType::Block,
        other => tar::EntryType::new(other.as_bytes()[0]),
    });
    match kind {
        "f" => header.set_size(line.2.len() as u64),
        "l" | "h" => header.set_link_name_literal(line.2).unwrap(),
        "c" | "b" => {
            let (major, minor) = line.2.split_once(':').unwrap();
            header.set_device_major(major.parse().unwrap()).unwrap();
            header.set_device_minor(minor.parse().unwrap()).unwrap();
        }
        _ => {}
    }
    header.set_cksum();
    header
}

pub(super) fn tar(lines: &[Line<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines {
        let content = if line.0.starts_with('f') { line.2 } else { "" };
        builder.append(&header(line), content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn add(bytes: &[u8], image: &TempDir, change: impl FnOnce(&mut Landing<'_>)) -> Result<()> {
    let context = TempDir::new().unwrap();
    fs::write(context.path().join("x.tar"), bytes).unwrap();
    stamp(&context.path().join("x.tar"), Timespec { tv_sec: 100, tv_nsec: 0 });
    let mut landing = Landing { unpacks: true, ..landing("/o/") };
    change(&mut landing);
    let listing = listing(context.path(), &["x.tar"]);
    land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing)
}

#[track_caller]
fn check(bytes: &[u8], expected: &str) {
    let image = TempDir::new().unwrap();
    add(bytes, &image, |_| {}).unwrap();
    assert_eq!(describe(image.path()), expected);
}

#[track_caller]
fn check_error(bytes: &[u8], message: &str, cause: &str) {
    let error = add(bytes, &TempDir::new().unwrap(), |_| {}).unwrap_err();
    assert_eq!((error.message.as_str(), error.cause.as_deref()), (message, Some(cause)));
}

fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn archives_are_told_by_their_content() {
    let plain = tar(TOP);
    check(&plain, TOP_LANDED);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    check(&gzip.finish().unwrap(), TOP_LANDED);
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    check(&bzip2.finish().unwrap(), TOP_LANDED);
    let mut xz = Vec::new();
    lzma_rs::xz_compress(&mut &*plain, &mut xz).unwrap();
    check(&xz, TOP_LANDED);
    let mut zstd = Vec::new();
    layer::compress(&mut &*plain, &mut zstd, layer::Compression::Zstd { level: 1 }, layer::Workers::new(1)).unwrap();
    check(&zstd, TOP_LANDED);
}

#[test]
fn what_is_no_archive_is_a_file() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"hello\n").unwrap();
    let gzip = gzip.finish().unwrap();
    let mut broken = tar(TOP);
    broken[0] ^= 1;
    let cut = &tar(TOP)[..300];
    for content in [&b""[..], b"not really a tar\n", &gzip, &gzip[..9], b"\x1f\x8b", b"BZh9", &[0; 1024], &broken, cut]
    {
        let image = TempDir::new().unwrap();
        add(content, &image, |_| {}).unwrap();
        assert_eq!(fs::read(image.path().join("o/x.tar")).unwrap(), content);
        let metadata = fs::metadata(image.path().join("o/x.tar")).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o644, 100));
    }
    let image = TempDir::new().unwrap();
    add(&tar(TOP), &image, |landing| landing.unpacks = false).unwrap();
    assert_eq!(fs::read(image.path().join("o/x.tar")).unwrap(), tar(TOP));
}

#[test]
fn downloads_unpack_too() {
    let bytes = tar(TOP);
    let blob = Blob { name: "x.tar", content: &bytes, mode: 0o600, mtime: 7 };
    let image = TempDir::new().unwrap();
    land_blob(&blob, open(image.path()).as_fd(), &Landing { unpacks: true, ..landing("/o") }).unwrap();
    assert_eq!(describe(image.path()), TOP_LANDED);
    let image = TempDir::new().unwrap();
    land_blob(&blob, open(image.path()).as_fd(), &landing("/o/")).unwrap();
    assert_eq!(fs::read(image.path().join("o/x.tar")).unwrap(), bytes);
}

#[test]
fn an_archive_that_changed_is_an_error() {
    let (context, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = context.path().join("x.tar");
    // The last member cut short, a byte of content, a byte behind the end.
    let (whole, mut other, mut behind) = (tar(TOP), tar(TOP), tar(TOP));
    other[1024] ^= 1;
    *behind.last_mut().unwrap() = 1;
    let cut = [&whole[..1536], &[b'x'; 512], &whole[2048..]].concat();
    for changed in [cut, other, behind] {
        fs::write(&path, &whole).unwrap();
        let listing = listing(context.path(), &["x.tar"]);
        fs::write(&path, &changed).unwrap();
        let landing = Landing { unpacks: true, ..landing("/o/") };
        let result = land(&tree(context.path(), false), &listing, open(image.path()).as_fd(), &landing);
        assert_eq!(result.unwrap_err().message, "`x.tar` changed during the build");
    }
}

#[test]
fn owner_counts_and_chmod_does_not() {
    let image = TempDir::new().unwrap();
    add(&tar(TOP), &image, |landing| landing.chmod = Some("0711")).unwrap();
    assert_eq!(describe(image.path()), TOP_LANDED);
    let image = TempDir::new().unwrap();
    add(&tar(&[("f 4755 1:1 5", "p/s", "x"), ("d 0700 1:1 6", "d", "")]), &image, |landing| {
        landing.owner = Some(Owner { uid: 8, gid: 9 });
        landing.destination = "/o";
    })
    .unwrap();
    let expected = "d 0755 8:9 now /o\nd 0700 8:9 6 /o/d\nd 0755 0:0 now /o/p\nf 4755 8:9 5 /o/p/s x\n";
    assert_eq!(describe(image.path()), expected);
}

#[test]
fn names_are_clamped_and_parents_implied() {
    check(
        &tar(&[("f", "../escape", "e"), ("f", "/abs/f", "a"), ("f", "x/../../y/./z", "z"), ("d 0700 9:9 9", "./", "")]),
        "d 0755 0:0 now /o\nd 0755 0:0 now /o/abs\nf 0644 0:0 5 /o/abs/f a\nf 0644 0:0 5 /o/escape e\n\
         d 0755 0:0 now /o/y\nf 0644 0:0 5 /o/y/z z\n",
    );
}

#[test]
fn special_modes_and_nodes() {
    check(
        &tar(&[
            ("d 1777 0:0 5", "d", ""),
            ("f 2750 1:2 5", "g", "y"),
            ("f 4755 1:2 5", "s", "x"),
            ("p 0622 3:4 6", "p", ""),
            ("c 0620 0:5 7", "c", "1:3"),
            ("b 0660 0:6 8", "b", "7:1"),
        ]),
        "d 0755 0:0 now /o\nb 0660 0:6 8 /o/b 7:1\nc 0620 0:5 7 /o/c 1:3\nd 1777 0:0 5 /o/d\nf 2750 1:2 5 /o/g y\n\
         p 0622 3:4 6 /o/p\nf 4755 1:2 5 /o/s x\n",
    );
}

#[test]
fn links_stay_as_they_are_and_lead_inside() {
    check(
        &tar(&[("l 0777 1:2 5", "l", "/abs/t"), ("l", "m", "../../.."), ("l", "n", "/real"), ("f", "n/f", "x")]),
        "d 0755 0:0 now /o\nl 0777 1:2 5 /o/l /abs/t\nl 0777 0:0 5 /o/m ../../..\nl 0777 0:0 5 /o/n /real\n\
         d 0755 0:0 now /o/real\nf 0644 0:0 5 /o/real/f x\n",
    );
    // A directory member lands in what a link leads to, as in a system with merged /usr.
    check(
        &tar(&[("d", "usr/lib", ""), ("l", "lib", "usr/lib"), ("d 0700 0:0 9", "lib", ""), ("f", "lib/x", "x")]),
        "d 0755 0:0 now /o\nl 0777 0:0 5 /o/lib usr/lib\nd 0755 0:0 now /o/usr\nd 0700 0:0 9 /o/usr/lib\n\
         f 0644 0:0 5 /o/usr/lib/x x\n",
    );
    check(&tar(&[("l", "l", "."), ("d 0700 9:9 9", "l", "")]), "d 0755 0:0 now /o\nl 0777 0:0 5 /o/l .\n");
}

#[test]
fn later_members_replace_earlier_ones() {
    check(
        &tar(&[
            ("d 0700 0:0 9", "a", ""),
            ("f", "a/b/c", "gone"),
            ("f", "a", "file"),
            ("f", "d", "gone"),
            ("d 0711 0:0 9", "d", ""),
            ("l", "e", "a"),
            ("f", "e", "file too"),
            ("f", "f", "old"),
            ("f 0600 0:0 8", "f", "new"),
        ]),
        "d 0755 0:0 now /o\nf 0644 0:0 5 /o/a file\nd 0711 0:0 9 /o/d\nf 0644 0:0 5 /o/e file too\n\
         f 0600 0:0 8 /o/f new\n",
    );
    let image = TempDir::new().unwrap();
    make_all(image.path(), &["d 0755 0:0 1 /o/top", "f 0644 0:0 2 /o/top/one 1", "d 0755 0:0 3 /o/top/f/x"]);
    add(&tar(TOP), &image, |_| {}).unwrap();
    let expected = TOP_LANDED.replace("/o/top/l f\n", "/o/top/l f\nf 0644 0:0 2 /o/top/one 1\n");
    assert_eq!(describe(image.path()), expected.replacen("d 0755 0:0 now /o\n", "d 0755 0:0 500 /o\n", 1));
}

#[test]
fn the_last_hard_link_says_what_all_look_like() {
    check(
        &tar(&[
            ("f 0600 1:1 5", "a", "x"),
            ("h 4711 2:3 9", "d/b", "./a"),
            ("h 0644 0:0 5", "l2", "l"),
            ("f", "z", ""),
        ][..2]),
        "d 0755 0:0 now /o\nf 4711 2:3 9 /o/a x\nd 0755 0:0 now /o/d\nh /o/d/b /o/a\n",
    );
    check(
        &tar(&[("l 0777 1:1 5", "l", "nowhere"), ("h 0600 2:2 5", "m", "l")]),
        "d 0755 0:0 now /o\nl 0777 2:2 5 /o/l nowhere\nh /o/m /o/l\n",
    );
    check(&tar(&[("f 0600 1:1 5", "a", "x"), ("h 0644 0:0 6", "a", "a")]), "d 0755 0:0 now /o\nf 0644 0:0 6 /o/a x\n");
}

#[test]
fn refused_members_are_named() {
    let whiteout = "cannot make `/o/.wh.a`: in a layer, a name with `.wh.` is a deletion";
    for (lines, member, cause) in [
        (&[("f", ".wh.a", "")][..], ".wh.a", whiteout),
        (&[("f", "ok", ""), ("d", ".wh.a", "")], ".wh.a", whiteout),
        (&[("h", "h", "gone")], "h", "a hard link to `/o/gone`, which is not there"),
        (&[("d", "d", ""), ("h", "h", "d")], "h", "a hard link to the directory `/o/d`"),
        (&[("h", "h", "../..")], "h", "a hard link to the archive's root"),
        (&[("M", "m", "")], "m", "a member of the unknown type `M`"),
        (&[("c", "n", "0:0")], "n", "a character device 0:0 is a deletion to the overlay"),
        (&[("f 0644 4294967295:0", "n", "")], "n", "there is no owner 4294967295:0"),
        (&[("f", "f", ""), ("f", "f/x", "")], "f/x", "`/o/f` is not a directory"),
        (&[("l", "l", "l"), ("f", "l/x", "")], "l/x", "too many symbolic links on the way to `/o/l`"),
    ] {
        check_error(&tar(lines), &format!("cannot unpack `{member}` of the archive `x.tar`"), cause);
    }
    let cut = &tar(TOP)[..1024 + 300];
    check_error(cut, "cannot read the archive `x.tar`", "it ends inside a member");
}

#[test]
fn bombs_are_refused() {
    let bytes = tar(&[("f", "a", "12345"), ("f", "b", "12345"), ("d", "c", "")]);
    let unpack = |members, size_bytes| {
        let image = TempDir::new().unwrap();
        let image = open(image.path());
        let mut root = place::Root::new(image.as_fd(), NOW).unwrap();
        let into = root.top().unwrap();
        let limits = super::super::archive::Limits { members, size_bytes };
        super::super::archive::unpack(&*bytes, "x", &into, &mut root, None, limits)
    };
    assert!(unpack(3, 10).is_ok());
    for (members, size_bytes) in [(2, 10), (3, 9)] {
        let error = unpack(members, size_bytes).unwrap_err();
        assert_eq!(error.cause.as_deref(), Some("the archive unpacks to more than is reasonable"));
    }
    // A sparse file takes no room in the archive.
    assert_eq!(super::super::archive::Limits::of(100).size_bytes, 16 << 30);
    assert_eq!(super::super::archive::Limits::of(16 << 30).size_bytes, 1 << 40);
}

/// One pax header in front of a file `f` that holds `x`.
fn with_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    builder.append(&header(&("f", "f", "x")), &b"x"[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn attributes_of_members() {
    let capability = [1, 0, 0, 2, 0x0a, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bytes = with_records(&[
        ("SCHILY.xattr.user.k", b"a\nb\0c"),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.k", b"v"),
    ]);
    let image = TempDir::new().unwrap();
    add(&bytes, &image, |_| {}).unwrap();
    let path = image.path().join("o/f");
    assert_eq!(xattr(&path, "user.k"), Some(b"a\nb\0c".to_vec()));
    assert_eq!(xattr(&path, "security.capability"), Some(capability.to_vec()));
    for stripped in ["user.overlay.opaque", "trusted.overlay.opaque", "trusted.k"] {
        assert_eq!(xattr(&path, stripped), None, "{stripped}");
    }
}

#[test]
fn pax_records_go_before_the_header() {
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
    let bytes = with_records(&[
        ("path", long.as_bytes()),
        ("uid", b"3000000000"),
        ("gid", b"7"),
        ("mtime", b"1.25"),
        ("comment", b"nothing"),
    ]);
    let directory = "d".repeat(120);
    check(&bytes, &format!("d 0755 0:0 now /o\nd 0755 0:0 now /o/{directory}\nf 0644 3000000000:7 1.25 /o/{long} x\n"));
    for mtime in [b"-1.25".as_slice(), b"9223372037"] {
        let bytes = with_records(&[("path", b"f"), ("mtime", mtime)]);
        check(&bytes, "d 0755 0:0 now /o\nf 0644 0:0 0 /o/f x\n");
    }
    let mut huge = header(&("x", "pax", ""));
    huge.set_size(1 << 40);
    huge.set_cksum();
    let bytes = [&tar(&[("f", "a", "")])[..512], huge.as_bytes()].concat();
    let cause = "an extension header is larger than 1 MiB";
    check_error(&bytes, "cannot read the archive `x.tar`", cause);
}

/// What GNU tar makes of long names, sparse files, hard links and times, in each of its formats.
#[test]
fn archives_of_gnu_tar() {
    let source = TempDir::new().unwrap();
    let long = "n".repeat(180);
    make_all(
        source.path(),
        &[
            "d 2755 1:2 300 t",
            "f 0640 3:4 100 t/a content",
            "h t/b t/a",
            "p 0644 0:0 101 t/p",
            &format!("l 0777 5:6 102 t/l {long}"),
            &format!("f 0600 0:0 103 t/{long} long"),
        ],
    );
    let sparse = fs::File::create(source.path().join("t/sparse")).unwrap();
    for i in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"piece", i << 16).unwrap();
    }
    sparse.set_len((30 << 16) + 999).unwrap();
    stamp(&source.path().join("t/sparse"), Timespec { tv_sec: 104, tv_nsec: 0 });
    stamp(&source.path().join("t"), Timespec { tv_sec: 300, tv_nsec: 0 });
    let expected = describe(source.path()).replace(" /t", " /o/t");
    let directory = source.path().to_str().unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=gnu", "-S"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=0.0"],
    ] {
        let arguments = [&["-C", directory, "--sort=name", "-c"], format, &["t"]].concat();
        let bytes = piped("tar", &arguments, b"");
        let image = TempDir::new().unwrap();
        add(&bytes, &image, |_| {}).unwrap();
        let landed = describe(image.path());
        assert_eq!(landed, format!("d 0755 0:0 now /o\n{expected}"), "{format:?}");
        // Else the test would say nothing about sparse files.
        let is_sparse = bytes.chunks(512).any(|block| block[156] == b'S') || find(&bytes, b"GNU.sparse.");
        assert_eq!(is_sparse, format.contains(&"-S"), "{format:?}");
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
