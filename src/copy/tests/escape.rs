//! Nothing outside the root is read or written, whatever the image or an archive has planted.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::RenameFlags;
use tempfile::TempDir;

use super::*;

/// A directory with an image and, beside it, a canary; all that could be touched from outside.
struct Trap {
    outer: TempDir,
}

impl Trap {
    fn new() -> Self {
        let outer = TempDir::new().unwrap();
        make_all(outer.path(), &["f 0600 0:0 100 canary/x sings", "d 0700 0:0 100 canary/d", "d 0755 0:0 100 image"]);
        Self { outer }
    }

    fn image(&self) -> std::path::PathBuf {
        self.outer.path().join("image")
    }

    fn canary(&self) -> std::path::PathBuf {
        self.outer.path().join("canary")
    }

    #[track_caller]
    fn check(&self) {
        let expected = "d 0700 0:0 100 /d\nf 0600 0:0 100 /x sings\n";
        assert_eq!(describe(&self.canary()), expected);
        assert_eq!(fs::read_dir(self.outer.path()).unwrap().count(), 2);
    }
}

/// Links that lead to the canary if anything but the root counts as `/`.
fn planted(trap: &Trap) -> Vec<std::path::PathBuf> {
    vec![
        trap.canary(),
        "../canary".into(),
        "../../../../../../..".into(),
        Path::new("/proc/self/root").join(trap.canary().strip_prefix("/").unwrap()),
        "/proc/self/cwd".into(),
    ]
}

#[test]
fn copies_through_planted_links_stay_inside() {
    for i in 0..5 {
        for destination in ["/ln", "/ln/", "/ln/x", "/ln/d/y", "/ln/x/", "/a/../ln/x"] {
            for source in ["f", "t"] {
                let (trap, context) = (Trap::new(), TempDir::new().unwrap());
                make_all(context.path(), &["f 0644 0:0 100 f bad", "f 0644 0:0 100 t/x bad", "f 0666 0:0 1 t/d/z bad"]);
                symlink(&planted(&trap)[i], trap.image().join("ln")).unwrap();
                let landing =
                    Landing { chmod: Some("0777"), owner: Some(Owner { uid: 9, gid: 9 }), ..landing(destination) };
                let image = open(&trap.image());
                drop(land(&tree(context.path(), false), &listing(context.path(), &[source]), image.as_fd(), &landing));
                drop(make_workdir(image.as_fd(), destination, Some(Owner { uid: 9, gid: 9 }), NOW));
                trap.check();
            }
        }
    }
}

#[test]
fn a_link_swapped_in_for_a_source_is_not_read() {
    let (trap, context) = (Trap::new(), TempDir::new().unwrap());
    make_all(context.path(), &["f 0600 0:0 100 d/x sings"]);
    let listing = listing(context.path(), &["d"]);
    fs::rename(context.path().join("d"), context.path().join("e")).unwrap();
    symlink(trap.canary(), context.path().join("d")).unwrap();
    let image = open(&trap.image());
    let error = land(&tree(context.path(), false), &listing, image.as_fd(), &landing("/o")).unwrap_err();
    assert_eq!(error.message, "`d/x` changed during the build");
}

/// Another process exchanges a directory of the destination with a link out of it, all the while.
#[test]
fn a_race_does_not_lead_outside() {
    let (trap, context) = (Trap::new(), TempDir::new().unwrap());
    make_all(context.path(), &["f 0666 0:0 100 t/p/x bad", "f 0666 0:0 100 t/p/d/z bad", "p 0666 0:0 100 t/p/q"]);
    let image = trap.image();
    fs::create_dir_all(image.join("o/p")).unwrap();
    symlink(trap.canary(), image.join("o/swap")).unwrap();
    let listing = listing(context.path(), &["t"]);
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = open(&image.join("o"));
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                rustix::fs::renameat_with(&directory, "p", &directory, "swap", RenameFlags::EXCHANGE).unwrap();
            }
        });
        for _ in 0..300 {
            let landing = Landing { chmod: Some("0777"), owner: Some(Owner { uid: 9, gid: 9 }), ..landing("/o") };
            // It fails when the link is met, and lands in the directory when that is.
            drop(land(&tree(context.path(), false), &listing, open(&image).as_fd(), &landing));
            drop(make_workdir(open(&image).as_fd(), "/o/p/d/w", Some(Owner { uid: 9, gid: 9 }), NOW));
        }
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    trap.check();
}

#[test]
fn archives_of_strangers_stay_inside() {
    use super::archive::{Line, tar};
    for i in 0..5 {
        let trap = Trap::new();
        let link = planted(&trap)[i].to_str().unwrap().to_owned();
        let archives: Vec<Vec<Line<'_>>> = vec![
            vec![("f", "../../canary/x", "bad"), ("f", "/canary/x", "bad"), ("d", "../canary/d", "")],
            vec![("l", "l", &link), ("f", "l/x", "bad"), ("d", "l/d", ""), ("f", "l/d/y", "bad")],
            vec![("l", "l", &link), ("d", "l", ""), ("f", "l/x", "bad")],
            vec![("l", "l", &link), ("h", "x", "l/x"), ("f", "x", "bad")],
            vec![("l", "l", &link), ("l", "m", "l/d"), ("f", "m/y", "bad")],
            vec![("h", "x", &link), ("f", "x", "bad")],
            vec![("h", "x", "../canary/x"), ("f", "x", "bad")],
            vec![("l", "x", &link), ("f", "x", "bad"), ("h", "y", "x")],
            vec![("l", "x", &link), ("h", "y", "x"), ("d", "y/d", "")],
            vec![("d", "canary", ""), ("l", "canary", &link), ("f", "canary/x", "bad")],
        ];
        for lines in archives {
            let bytes = tar(&lines);
            let blob = Blob { name: "x.tar", content: &bytes, mode: 0o600, mtime: 0 };
            let landing = Landing { unpacks: true, owner: Some(Owner { uid: 9, gid: 9 }), ..landing("/o") };
            drop(land_blob(&blob, open(&trap.image()).as_fd(), &landing));
            trap.check();
        }
    }
}
