//! What of /proc and /sys a container must not see or change: Docker's lists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::mount;
use super::mount_point::Shape;
use crate::diag::{Context, Result};

/// Replaced by nothing: files by the null device, directories by an empty one.
const HIDDEN_IN_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const HIDDEN_IN_SYS: [&str; 2] = ["devices/virtual/powercap", "firmware"];
/// Also hidden, in each directory of the processors.
const PROCESSORS: &str = "devices/system/cpu";
const HIDDEN_IN_PROCESSOR: &str = "thermal_throttle";
const READ_ONLY_IN_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// What of the lists this kernel has; paths are below the container's root.
#[derive(Debug, Default)]
pub struct Masks {
    pub hidden: Vec<(String, Shape)>,
    pub read_only: Vec<String>,
}

/// Looks once for the build: the lists are long and most of it exists nowhere.
pub fn find(proc: BorrowedFd<'_>, sys: BorrowedFd<'_>) -> Masks {
    let mut masks = Masks::default();
    let mut hide = |dir: BorrowedFd<'_>, at: &str, name: String| {
        let shape = rustix::fs::openat(dir, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .and_then(|found| Shape::of(found.as_fd()));
        if let Ok(shape) = shape {
            masks.hidden.push((format!("{at}/{name}"), shape));
        }
    };
    for name in HIDDEN_IN_PROC {
        hide(proc, "proc", name.to_owned());
    }
    for name in HIDDEN_IN_SYS {
        hide(sys, "sys", name.to_owned());
    }
    for number in processors(sys) {
        hide(sys, "sys", format!("{PROCESSORS}/cpu{number}/{HIDDEN_IN_PROCESSOR}"));
    }
    for name in READ_ONLY_IN_PROC {
        if rustix::fs::accessat(proc, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
            masks.read_only.push(format!("proc/{name}"));
        }
    }
    masks
}

fn processors(sys: BorrowedFd<'_>) -> Vec<u32> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::openat(sys, PROCESSORS, flags, Mode::empty()) else { return Vec::new() };
    let Ok(entries) = rustix::fs::Dir::new(dir) else { return Vec::new() };
    let number = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok()?.strip_prefix("cpu")?.parse().ok();
    let mut numbers: Vec<u32> = entries.flatten().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Applies the masks to /proc and /sys as they stand below `root`, which is this process's. `null` is a
/// null device in it, and `empty` a detached empty directory.
pub fn apply(masks: &Masks, root: BorrowedFd<'_>, null: &OwnedFd, empty: &OwnedFd) -> Result<()> {
    let mut is_attached = false;
    for (path, shape) in &masks.hidden {
        // A file of /proc may be there for some pid namespaces only.
        let Ok(place) = mount::place(root, path, OFlags::empty(), mount::BENEATH) else { continue };
        let hidden = match shape {
            // What an older kernel copies has to be attached, as this is to the first place.
            Shape::Directory if !is_attached => {
                is_attached = true;
                mount::attach(empty.as_fd(), place.as_fd())
            }
            Shape::Directory => copy_to(empty, &place),
            Shape::File => copy_to(null, &place),
        };
        hidden.context(|| format!("cannot hide `/{path}`"))?;
    }
    for path in &masks.read_only {
        let Ok(place) = mount::place(root, path, OFlags::empty(), mount::BENEATH) else { continue };
        let covered = mount::copy_of(place.as_fd()).and_then(|copy| {
            mount::set(copy.as_fd(), mount::READ_ONLY | mount::DATA_ONLY)?;
            mount::attach(copy.as_fd(), place.as_fd())
        });
        covered.context(|| format!("cannot make `/{path}` read-only"))?;
    }
    Ok(())
}

fn copy_to(cover: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    mount::copy_of(cover.as_fd()).and_then(|copy| mount::attach(copy.as_fd(), place.as_fd()))
}
