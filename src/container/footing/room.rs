//! A tmpfs that holds the upper and work dir of one step.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode};

use super::super::{mount, overlay};
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::{Records, node};
use crate::store::Store;

pub fn make(records: Records, store: &Store) -> Result<OwnedFd> {
    let doing = || "cannot keep a step's files in memory";
    let size = size_bytes(store).to_string();
    let room = mount::filesystem("tmpfs", &[("mode", "700"), ("size", size.as_str())], mount::NO_DEV)?;
    for (name, mode) in [("u", 0o755), ("w", 0o700)] {
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::mkdirat(&room, name, mode).context(doing)?;
        // What mkdir makes depends on the umask.
        rustix::fs::chmodat(&room, name, mode, AtFlags::empty()).context(doing)?;
    }
    let (upper, _) = overlay::upper_of(room.as_fd())?;
    records.begin(upper.as_fd()).map_err(|errno| Records::explain(Diagnostic::error(doing()), errno))?;
    Ok(room)
}

/// The kernel takes no work dir again that a `volatile` overlay had.
pub fn renew(room: BorrowedFd<'_>) -> Result<()> {
    node::remove(room, c"w")
        .and_then(|()| rustix::fs::mkdirat(room, "w", Mode::RWXU))
        .context(|| "cannot open a layer again")
}

pub fn is_full(room: BorrowedFd<'_>) -> bool {
    const LITTLE_BYTES: u64 = 1 << 20;
    rustix::fs::fstatvfs(room).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < LITTLE_BYTES)
}

/// How much one step may write: half of the memory that can be had, swap included, and no more than the store
/// has place for.
pub fn size_bytes(store: &Store) -> u64 {
    const LEAST: u64 = 64 << 20;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let available = available(&read("/proc/meminfo"));
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .filter_map(|path| read(path).trim().parse::<u64>().ok())
        .min();
    let (_, free_bytes) = store.filesystem();
    (available.min(limit.unwrap_or(u64::MAX)) / 2).min(free_bytes).max(LEAST)
}

/// Memory and swap that are not in use, of the text of `/proc/meminfo`.
fn available(meminfo: &str) -> u64 {
    let kilobytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    (kilobytes("MemAvailable") + kilobytes("SwapFree")).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read() {
        let text =
            "MemTotal:       49389736 kB\nMemAvailable:       2000 kB\nSwapTotal: 9 kB\nSwapFree:            48 kB\n";
        assert_eq!(available(text), 2048 * 1024);
        assert_eq!(available(""), 0);
    }
}
