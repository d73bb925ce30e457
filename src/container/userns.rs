//! The user namespace of the steps: which of the builder's ids are theirs, and the id maps of mounts.
//!
//! ```text
//! builder is the host's root     ids inside count from 0 and are a range of the host's that nothing
//!                                else uses, so that root in a RUN is nobody outside; layers stay owned
//!                                by 0 on disk and are mounted through a map
//! in a user namespace itself     no mount can be mapped there; ids inside are what they are outside, but
//!                                root in a RUN has no capability over the builder's mounts
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::holder;
use super::passwd::User;
use crate::diag::{Context, Result};
use crate::ids::{self, Extent, IdMap, Ids};

/// The host's id for root inside: the upper half of all ids. Distributions hand out nothing there,
/// and everything an image may name up to 2³¹ can be represented.
pub const BASE: u32 = 1 << 31;
/// How many ids there are inside; the last two of the host's are no ids.
pub const COUNT: u32 = u32::MAX - BASE - 1;

/// How the ids of steps lie among the builder's.
#[derive(Clone, Debug)]
pub enum Mapping {
    /// From [`BASE`] on.
    Shifted,
    /// As they are.
    Same(Ids),
}

impl Mapping {
    /// Of what this process makes.
    pub fn of_this_process() -> Result<Self> {
        if ids::are_the_hosts() {
            return Ok(Self::Shifted);
        }
        Ids::of_this_process().map(Self::Same).context(|| "cannot read the ids of this user namespace")
    }

    /// Whether mounts are shown through the map of a user namespace.
    pub fn is_shifted(&self) -> bool {
        matches!(self, Self::Shifted)
    }

    /// Whether everything belongs to root, whatever it should belong to.
    pub fn is_single(&self) -> bool {
        matches!(self, Self::Same(ids) if ids.are_single())
    }

    /// The builder's id of root.
    pub fn root(&self) -> u32 {
        if self.is_shifted() { BASE } else { 0 }
    }

    /// The builder's ids of these inside; `None` where there are none.
    pub fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        match self {
            Self::Shifted => (uid < COUNT && gid < COUNT).then(|| (BASE + uid, BASE + gid)),
            Self::Same(ids) if ids.are_single() => Some((0, 0)),
            Self::Same(ids) => (ids.users.has(uid) && ids.groups.has(gid)).then_some((uid, gid)),
        }
    }

    /// Whether there are ids inside that the builder knows as these.
    pub fn is_inside(&self, uid: u32, gid: u32) -> bool {
        let is_shifted = |id: u32| id.checked_sub(BASE).is_some_and(|id| id < COUNT);
        match self {
            Self::Shifted => is_shifted(uid) && is_shifted(gid),
            Self::Same(ids) => ids.users.has(uid) && ids.groups.has(gid),
        }
    }

    /// Who a payload can be instead of `user`: root, where there is nobody else.
    pub fn user(&self, user: &User) -> User {
        match self.is_single() {
            true => User { uid: 0, gid: 0, groups: Vec::new(), home: user.home.clone() },
            false => user.clone(),
        }
    }

    /// Sets the owner of what `fd` stands for, given as ids inside.
    pub fn give(&self, fd: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
        self.give_at(fd, "", uid, gid)
    }

    /// The same for `name` in `dir`, itself and not what a link of that name points at.
    pub fn give_at(&self, dir: impl AsFd, name: &str, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = self.outside(uid, gid).ok_or(Errno::INVAL)?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
    }

    /// The maps of the steps' user namespace.
    pub fn maps(&self) -> (String, String) {
        match self {
            Self::Shifted => (map_swapping(0), map_swapping(0)),
            Self::Same(ids) => (ids.users.unchanged().to_string(), ids.groups.unchanged().to_string()),
        }
    }
}

/// The map of `/proc/PID/uid_map` under which host id `as_root` appears as root; the id that root
/// would have had appears as `as_root`. For 0 that is the plain map.
pub fn map_swapping(as_root: u32) -> String {
    let run = |inside, id, count| Extent { inside, outside: BASE + id, count };
    if as_root == 0 || as_root >= COUNT {
        return IdMap::new([run(0, 0, COUNT)]).to_string();
    }
    let after = as_root + 1;
    IdMap::new([run(0, as_root, 1), run(1, 1, as_root - 1), run(as_root, 0, 1), run(after, after, COUNT - after)])
        .to_string()
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
