//! What the store's filesystem can do.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{IFlags, Mode, OFlags};

use super::{Finding, Verdict};
use crate::cache::Limit;
use crate::progress::units;
use crate::store::Store;

const EXT: i64 = 0xef53;

/// `statfs(2)` numbers of filesystems that a store may be on.
const NAMES: [(i64, &str); 16] = [
    (EXT, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "fuse"),
    (0xf15f, "ecryptfs"),
    (0x00c3_6400, "ceph"),
    (0x5273_6e70, "ntfs3"),
];

/// The kind of the store's filesystem.
pub fn name(store: &Store) -> String {
    match rustix::fs::statfs(store.root()) {
        Ok(stat) => {
            // Its type differs between architectures.
            let number = i64::from(stat.f_type as u32);
            let known = NAMES.iter().find(|(known, _)| *known == number);
            known.map_or_else(|| format!("a filesystem of type {number:#x}"), |(_, name)| (*name).to_owned())
        }
        Err(_) => "an unknown filesystem".into(),
    }
}

/// Space for layers, beside what is to be left free.
pub fn room(store: &Store) -> Finding {
    let (size_bytes, free_bytes) = store.filesystem();
    let reserve = Limit::usual(size_bytes).min_free_bytes.unwrap_or(0);
    let what = format!("`{}`, {} of {} free", store.root().display(), units::size(free_bytes), units::size(size_bytes));
    // Less than a small base and its packages take.
    const LITTLE: u64 = 1 << 30;
    if free_bytes < LITTLE {
        return Finding::of("store", Verdict::Bad, format!("{what}: a build soon fills that"))
            .cure("`wythe cache prune --all`")
            .cure("another filesystem: `--root DIR` or `WYTHE_ROOT`");
    }
    if free_bytes < reserve {
        return Finding::of(
            "store",
            Verdict::Note,
            format!("{what}: after builds the cache is pruned, to leave {} free", units::size(reserve)),
        )
        .cure("another cap: `WYTHE_STORE_CAP`");
    }
    Finding::good("store", what)
}

/// Whether copies may share blocks, as COPY tries.
pub fn reflinks(store: &Store) -> Option<Finding> {
    let scratch = store.scratch().ok()?;
    let (from, to) = (scratch.path.join("from"), scratch.path.join("to"));
    std::fs::write(&from, [0; 4096]).ok()?;
    let (from, to) = (File::open(from).ok()?, File::create(to).ok()?);
    Some(match rustix::fs::ioctl_ficlone(&to, &from) {
        Ok(()) => Finding::good("reflinks", "files of a context on this filesystem are shared, not copied"),
        Err(_) => Finding::of("reflinks", Verdict::Note, format!("{} has none: COPY copies every byte", name(store)))
            .cure("a store on btrfs or xfs, with the contexts on the same filesystem"),
    })
}

/// Without a journal, ext4 is slow to make files where others were deleted; a flag of directories spreads
/// them, which the store sets. `None` on other filesystems.
pub fn slow_creation(store: &Store) -> Option<Finding> {
    if name(store) != "ext4" {
        return None;
    }
    let has_flag = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(store.root().join(name), flags, Mode::empty()).ok()?;
        Some(rustix::fs::ioctl_getflags(dir.as_fd()).ok()?.contains(IFlags::TOPDIR))
    };
    let lacking: Vec<_> = ["layers", "tmp"].into_iter().filter(|name| has_flag(name) == Some(false)).collect();
    if lacking.is_empty() {
        return Some(Finding::good(
            "ext4",
            "layers are spread over the disk, so that deleting one slows down no other",
        ));
    }
    let paths: Vec<_> = lacking.iter().map(|name| store.root().join(name).display().to_string()).collect();
    Some(
        Finding::of("ext4", Verdict::Note, "making files may be slow after layers were deleted")
            .cure(format!("`sudo chattr +T {}`", paths.join(" "))),
    )
}
