//! User and group ids: which of them a process has, where they lie outside its user namespace, and
//! which ones `/etc/subuid` and `/etc/subgid` give to a user.

use std::fmt;
use std::io;
use std::sync::OnceLock;

/// A run of ids that lie beside each other inside and outside of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The users or the groups of a user namespace, as `/proc/PID/uid_map` lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap(Vec<Extent>);

impl IdMap {
    /// Runs stay apart even where they touch: what may be mapped is decided run by run.
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut extents: Vec<_> = extents.into_iter().filter(|extent| extent.count > 0).collect();
        extents.sort_unstable();
        Self(extents)
    }

    /// 0 and no other.
    pub fn one(outside: u32) -> Self {
        Self(vec![Extent { inside: 0, outside, count: 1 }])
    }

    /// Reads what [`IdMap`] shows as, and what the kernel writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut extents = Vec::new();
        for line in text.lines() {
            let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>().ok()?;
            let [inside, outside, count] = numbers[..] else { return None };
            extents.push(Extent { inside, outside, count });
        }
        Some(Self::new(extents))
    }

    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    pub fn has(&self, id: u32) -> bool {
        self.0.iter().any(|extent| id >= extent.inside && id - extent.inside < extent.count)
    }

    /// Whether there is one id only, to which everything belongs.
    pub fn is_single(&self) -> bool {
        matches!(self.0[..], [Extent { count: 1, .. }])
    }

    /// The same ids for a namespace within this one. Its runs are those of this map: the kernel
    /// takes none that spans two.
    pub fn unchanged(&self) -> Self {
        Self(self.0.iter().map(|extent| Extent { outside: extent.inside, ..*extent }).collect())
    }

    /// Whether each id of `other` is one of this map too, at the same place.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|wanted| {
            self.0.iter().any(|extent| {
                let skipped = wanted.inside.checked_sub(extent.inside);
                skipped.is_some_and(|skipped| {
                    wanted.outside.checked_sub(extent.outside) == Some(skipped)
                        && u64::from(skipped) + u64::from(wanted.count) <= u64::from(extent.count)
                })
            })
        })
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Extent { inside, outside, count } in &self.0 {
            writeln!(formatter, "{inside} {outside} {count}")?;
        }
        Ok(())
    }
}

/// The ids of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    pub users: IdMap,
    pub groups: IdMap,
}

impl Ids {
    /// Those of this process.
    pub fn of_this_process() -> io::Result<Self> {
        let read = |file: &str| {
            let text = std::fs::read_to_string(file)?;
            IdMap::parse(&text).ok_or_else(|| io::Error::other(format!("cannot understand `{file}`")))
        };
        Ok(Self { users: read("/proc/self/uid_map")?, groups: read("/proc/self/gid_map")? })
    }

    /// Whether everything belongs to one user or one group: then no owner can be kept.
    pub fn are_single(&self) -> bool {
        self.users.is_single() || self.groups.is_single()
    }

    pub fn covers(&self, other: &Self) -> bool {
        self.users.covers(&other.users) && self.groups.covers(&other.groups)
    }
}

/// Whether everything that this process makes belongs to one user and one group. Asked once: what a
/// process may map is settled before it makes anything.
pub fn there_is_but_one() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| Ids::of_this_process().is_ok_and(|ids| ids.are_single()))
}

/// Whether this process is in the first user namespace, the host's, where no id is another one.
pub fn are_the_hosts() -> bool {
    /// PROC_USER_INIT_INO of the kernel.
    const HOST: &[u8] = b"user:[4026531837]";
    match rustix::fs::readlink("/proc/self/ns/user", Vec::new()) {
        Ok(link) => link.as_bytes() == HOST,
        // A kernel without user namespaces has one.
        Err(_) => true,
    }
}

/// The runs of ids, first and count, that a text like `/etc/subuid` gives to a user, who goes there
/// by name or by number.
pub fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next().filter(|who| *who == number || name == Some(*who));
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        who.map(|_| (first, count)).filter(|_| count > 0)
    };
    text.lines().filter_map(line).collect()
}

/// A map in which `own` is root and the ids after it come from `ranges`; `None` without any.
pub fn map_of(own: u32, ranges: &[(u32, u32)]) -> Option<IdMap> {
    let mut next = 1_u32;
    let mut extents = vec![Extent { inside: 0, outside: own, count: 1 }];
    for &(first, count) in ranges {
        // As many as there are numbers for, outside and inside.
        let count = count.min(u32::MAX - first).min(u32::MAX - next);
        extents.push(Extent { inside: next, outside: first, count });
        next += count;
    }
    (next > 1).then(|| IdMap::new(extents))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> IdMap {
        IdMap::parse(text).unwrap()
    }

    #[test]
    fn maps_are_read_as_the_kernel_writes_them() {
        let kernel = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!(map(kernel).to_string(), "0 1001 1\n1 100000 65536\n");
        assert_eq!(map("0 0 4294967295\n").unchanged().to_string(), "0 0 4294967295\n");
        assert_eq!(map(kernel).unchanged().extents().len(), 2);
        for wrong in ["0 1", "0 1 2 3", "a 0 1", "0 -1 1", "0 0 4294967296"] {
            assert_eq!(IdMap::parse(wrong), None, "{wrong}");
        }
        assert!(map(kernel).has(65536) && map(kernel).has(0) && !map(kernel).has(65537));
        assert!(map("0 7 1").is_single() && !map("0 7 2").is_single() && !map(kernel).is_single());
    }

    #[test]
    fn a_map_that_grew_covers_what_it_was() {
        let check = |now: &str, before: &str, expected: bool| {
            assert_eq!(map(now).covers(&map(before)), expected, "{now} | {before}");
        };
        check("0 1001 1\n1 100000 65536", "0 1001 1\n1 100000 65536", true);
        check("0 1001 1\n1 100000 131072", "0 1001 1\n1 100000 65536", true);
        check("0 1001 1\n1 100000 65536", "0 1001 1\n1 100000 131072", false);
        check("0 1001 1\n1 100000 65536", "0 1001 1", true);
        check("0 1001 1", "0 1001 1\n1 100000 65536", false);
        check("0 1001 1\n1 200000 65536", "0 1001 1\n1 100000 65536", false);
        check("0 1002 1\n1 100000 65536", "0 1001 1\n1 100000 65536", false);
        check("0 0 4294967295", "5 5 10", true);
        check("0 0 4294967295", "5 6 10", false);
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_number() {
        let text = "root:1:2\nann:100000:65536\n# ann:5:5\n 1000:300000:10\nann:7:0\nannie:9:9\nann:bad:1\nann:4\n";
        assert_eq!(subordinate(text, Some("ann"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(subordinate(text, None, 1000), [(300_000, 10)]);
        assert_eq!(subordinate(text, Some("bob"), 5), []);
    }

    #[test]
    fn own_id_is_root_and_the_ranges_follow() {
        let shown = |own, ranges: &[(u32, u32)]| map_of(own, ranges).map(|map| map.to_string());
        assert_eq!(shown(1001, &[(100_000, 65536)]).unwrap(), "0 1001 1\n1 100000 65536\n");
        assert_eq!(shown(1001, &[(5, 2), (9, 1)]).unwrap(), "0 1001 1\n1 5 2\n3 9 1\n");
        assert_eq!(shown(4, &[(5, 2), (7, 1)]).unwrap(), "0 4 1\n1 5 2\n3 7 1\n");
        assert_eq!(shown(1, &[(u32::MAX - 2, 9)]).unwrap(), format!("0 1 1\n1 {} 2\n", u32::MAX - 2));
        assert_eq!(shown(1, &[]), None);
    }
}
