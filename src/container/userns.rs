//! The user namespace of a build, and the id maps of mounts.
//!
//! Ids inside count from 0; on the host they are a range that nothing else uses, so that root in a
//! RUN is nobody outside. Layers stay owned by 0 on disk: they are mounted through a map.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::holder;
use crate::diag::Result;

/// The host's id for root inside: the upper half of all ids. Distributions hand out nothing there,
/// and everything an image may name up to 2³¹ can be represented.
pub const BASE: u32 = 1 << 31;
/// How many ids there are inside; the last two of the host's are no ids.
pub const COUNT: u32 = u32::MAX - BASE - 1;

/// The host's id of an id inside; `None` for one that cannot be mapped.
pub fn outside(id: u32) -> Option<u32> {
    (id < COUNT).then(|| BASE + id)
}

/// The map of `/proc/PID/uid_map` under which host id `as_root` appears as root; the id that root
/// would have had appears as `as_root`. For 0 that is the plain map.
pub fn map_swapping(as_root: u32) -> String {
    if as_root == 0 || as_root >= COUNT {
        return format!("0 {BASE} {COUNT}\n");
    }
    let extents =
        [(0, as_root, 1), (1, 1, as_root - 1), (as_root, 0, 1), (as_root + 1, as_root + 1, COUNT - as_root - 1)];
    let lines = extents.iter().filter(|(.., count)| *count > 0);
    lines.map(|(inside, outside, count)| format!("{inside} {} {count}\n", BASE + outside)).collect()
}

/// Makes a user namespace with these maps; see [`holder::namespace`].
pub fn create(proc: BorrowedFd<'_>, uid_map: &str, gid_map: &str) -> Result<OwnedFd> {
    holder::namespace(
        proc,
        "user",
        libc::CLONE_NEWUSER,
        || Ok(()),
        |pid| {
            for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(proc, format!("{pid}/{file}"), flags, Mode::empty())?;
                rustix::io::write(file, map.as_bytes())?;
            }
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_maps_cover_every_id_once() {
        assert_eq!(map_swapping(0), "0 2147483648 2147483646\n");
        assert_eq!(map_swapping(1), "0 2147483649 1\n1 2147483648 1\n2 2147483650 2147483644\n");
        assert_eq!(
            map_swapping(1000),
            "0 2147484648 1\n1 2147483649 999\n1000 2147483648 1\n1001 2147484649 2147482645\n"
        );
        for as_root in [1, 2, 1000, COUNT - 1] {
            let mut extents: Vec<(u64, u64)> = map_swapping(as_root)
                .lines()
                .map(|line| {
                    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
                    (numbers[1], numbers[2])
                })
                .collect();
            extents.sort_unstable();
            let end = extents.iter().fold(u64::from(BASE), |next, (outside, count)| {
                assert_eq!(*outside, next, "{as_root}");
                next + count
            });
            assert_eq!(end, u64::from(BASE) + u64::from(COUNT), "{as_root}");
        }
    }
}
