//! A rootfs as the tables of its layers tell it, held against the one that is unpacked.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use tar::EntryType;
use wythe::layer::{self, Cutting, Met, Relief, Table};

use crate::overlay;
use crate::step::Random;
use crate::tree::{self, Tree};
use crate::unpack::Tar;

/// What tables have told so far; `None` after one that could not be applied.
/// And what layer dirs have.
pub struct Shown(Option<Relief>, Relief);

impl Default for Shown {
    fn default() -> Self {
        Self(Some(Relief::default()), Relief::default())
    }
}

impl Shown {
    /// Applies the table of a tar that was unpacked as the topmost of `layers`, or was not, and compares. `beside` is a
    /// directory on their filesystem.
    pub fn check(&mut self, tar: &mut &[u8], is_unpacked: bool, layers: &[BorrowedFd<'_>], beside: &Path) {
        let Some(relief) = &mut self.0 else { return };
        let Some(table) = layer::tabulate(tar).unwrap() else {
            assert!(!is_unpacked, "it has no table");
            self.0 = None;
            return;
        };
        let bytes = Table::to_bytes(Some(&table)).unwrap();
        let table = Table::from_bytes(&bytes).unwrap().unwrap();
        if relief.apply(&table).is_err() {
            assert!(!is_unpacked, "its table cannot be applied");
            self.0 = None;
            return;
        }
        // A layer dir tells the same.
        if let ([top, ..], true) = (layers, is_unpacked) {
            let mut of_dirs = self.1.clone();
            of_dirs.apply(&layer::tabulate_dir(*top).unwrap().unwrap()).unwrap();
            assert_eq!(format!("{of_dirs:?}"), format!("{relief:?}"));
            self.1 = of_dirs;
        }
        // What these ids or this filesystem do not take, tables do; there is nothing that root cannot do here.
        if !is_unpacked {
            assert!(!rustix::process::geteuid().is_root(), "its table can be applied");
            self.0 = None;
            return;
        }
        let expected = fresh(beside, |into| layer::flatten(layers, into).unwrap());
        let shown = fresh(beside, |into| {
            let mut cutting = Cutting::of(relief);
            for path in relief.paths() {
                assert_ne!(cutting.meet(b"", &path), Met::Nothing);
            }
            cutting.make(into).unwrap();
        });
        assert!(shown == expected, "{}", tree::difference(&shown, &expected));
    }
}

/// What `fill` makes of an empty directory, without the bytes of files.
fn fresh(beside: &Path, fill: impl Fn(BorrowedFd<'_>)) -> Tree {
    let dir = tempfile::tempdir_in(beside).unwrap();
    let fd = OwnedFd::from(File::open(dir.path()).unwrap());
    fill(fd.as_fd());
    let mut tree = tree::read(fd.as_fd());
    for (path, object) in &mut tree {
        object.file = path.clone();
        if object.kind == 'f' && path != b"etc/passwd" {
            object.content.fill(0);
        }
    }
    tree
}

/// A tar of few names, so that its members meet.
pub fn random(random: &mut Random) -> Tar {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "etc"];
    let path = |random: &mut Random| {
        let names = 1 + random.below(4);
        (0..names).map(|_| *random.pick(&NAMES)).collect::<Vec<_>>().join("/")
    };
    let mut tar = Tar::default();
    for _ in 0..random.below(12) {
        let at = path(random);
        let (parent, name) =
            at.rsplit_once('/').map_or((String::new(), at.as_str()), |(parent, name)| (format!("{parent}/"), name));
        let looks = (random.below(0o10000) as u32, random.below(3) as u64, random.below(1 << 30) as u64);
        let with = |header: &mut tar::Header| {
            header.set_mode(looks.0);
            header.set_uid(looks.1);
            header.set_gid(looks.1);
            header.set_mtime(looks.2);
        };
        let before = tar.clone();
        tar = match random.below(16) {
            0..5 => tar.header(&at, EntryType::Regular, "", &vec![b'x'; random.below(3) * 300], with),
            5..9 => tar.header(&format!("{at}/"), EntryType::Directory, "", b"", with),
            9 => tar.symlink(&at, [&path(random), "/a", "..", "../b", "/", "b/../c"][random.below(6)]),
            10 => tar.link(&at, &path(random)),
            11 | 12 => tar.file(&format!("{parent}.wh.{name}"), ""),
            13 => tar.file(&format!("{at}/.wh..wh..opq"), ""),
            14 => tar.pax(&[("SCHILY.xattr.user.a", b"1"), ("mtime", b"-1.5")]).header(
                &at,
                EntryType::Regular,
                "",
                b"y",
                with,
            ),
            _ => tar.header(&at, EntryType::Fifo, "", b"", with),
        };
        // Most that are made at random cannot be unpacked as a whole: members that make it so are left out.
        if random.below(8) > 0 && !applies(&tar) {
            tar = before;
        }
    }
    tar
}

fn applies(tar: &Tar) -> bool {
    let table = layer::tabulate(&mut tar.clone().end().as_slice()).unwrap();
    table.is_some_and(|table| Relief::default().apply(&table).is_ok())
}

#[test]
fn tables_tell_what_is_unpacked() {
    let mut compared = 0;
    for seed in 1..600 {
        let mut numbers = Random(seed * 0x9e37_79b9);
        let scratch = overlay::scratch();
        let (mut shown, mut layers) = (Shown::default(), Vec::<OwnedFd>::new());
        for number in 0..1 + numbers.below(4) {
            let tar = random(&mut numbers).end();
            let path = scratch.path().join(number.to_string());
            fs::create_dir(&path).unwrap();
            let into = OwnedFd::from(File::open(&path).unwrap());
            let is_unpacked = {
                let lowers: Vec<_> = layers.iter().rev().map(AsFd::as_fd).collect();
                layer::unpack(&mut tar.as_slice(), into.as_fd(), &lowers).is_ok()
            };
            layers.push(into);
            let dirs: Vec<_> = layers.iter().rev().map(AsFd::as_fd).collect();
            shown.check(&mut tar.as_slice(), is_unpacked, &dirs, scratch.path());
            if !is_unpacked {
                break;
            }
            compared += 1;
        }
    }
    assert!(compared > 600, "{compared}");
}

#[test]
fn what_is_met_is_cut_out() {
    let below = Tar::default()
        .header("usr/", EntryType::Directory, "", b"", |header| header.set_mode(0o2711))
        .dir("usr/share/")
        .dir("usr/share/web/")
        .file("usr/share/web/index.html", "hello")
        .file("usr/share/web/other", "")
        .dir("usr/share/else/")
        .dir("srv/")
        .symlink("srv/www", "../usr/share/web")
        .symlink("absolute", "/srv/www")
        .symlink("loop", "loop")
        .symlink("new", "nowhere/../made")
        .file("etc/passwd", "root:x:0:0")
        .end();
    let mut relief = Relief::default();
    relief.apply(&layer::tabulate(&mut below.as_slice()).unwrap().unwrap()).unwrap();
    let scratch = overlay::scratch();
    let cut = |walk: &str, meets: &[&str]| {
        let mut cutting = Cutting::of(&relief);
        let end = cutting.walk(walk.as_bytes());
        let met: Vec<_> =
            meets.iter().map(|path| cutting.meet(end.as_deref().unwrap_or_default(), path.as_bytes())).collect();
        let tree = fresh(scratch.path(), |into| cutting.make(into).unwrap());
        let names: Vec<_> = tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
        (end.map(|end| String::from_utf8(end).unwrap()), met, names.join(" "))
    };
    let web = Some("usr/share/web".to_owned());
    let file = Met::File { size_bytes: 5, mtime: (1_000_000_000, 0), has_content: false };
    assert_eq!(
        cut("/usr/share/web", &["index.html", "new/name"]),
        (web.clone(), vec![file, Met::Nothing], "usr usr/share usr/share/web usr/share/web/index.html".into())
    );
    assert_eq!(cut("absolute/", &[]), (web.clone(), vec![], "absolute srv srv/www usr usr/share usr/share/web".into()));
    assert_eq!(cut("srv/www", &["other/x"]).1, [Met::Nothing]);
    assert_eq!(cut("new/a", &[]), (Some("made/a".into()), vec![], "new".into()));
    assert_eq!(cut("loop", &[]), (None, vec![], "loop".into()));
    assert_eq!(
        cut("usr/share/web/other/x", &[]),
        (None, vec![], "usr usr/share usr/share/web usr/share/web/other".into())
    );
    let (end, met, names) = cut("etc/passwd", &[]);
    assert_eq!((end.as_deref(), met, names.as_str()), (Some("etc/passwd"), vec![], "etc etc/passwd"));
}
