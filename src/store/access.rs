//! Whose the files of layers are on disk, and whether this process may handle them. The store of an
//! ordinary user holds files of ids that only its user namespace has: it is looked at from outside, and
//! entered for everything else.

use std::fmt;

use crate::diag::{Context, Result};
use crate::ids::{self, IdMap, Ids};
use crate::layer::Records;

/// Makes sure that this process may handle files of every id of the store. It does not come back where
/// that takes beginning anew in a user namespace.
pub type Enter = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// How a process stands to a store.
pub struct Access {
    pub(super) owners: Owners,
    pub(super) enter: Option<Enter>,
}

impl Access {
    /// Of a process that need not become anything else.
    pub fn of_this_process() -> Result<Self> {
        let owners = match ids::are_the_hosts() {
            true => Owners::Host,
            false => {
                Owners::Namespace(Ids::of_this_process().context(|| "cannot read the ids of this user namespace")?)
            }
        };
        Ok(Self { owners, enter: None })
    }

    /// Of a user who is to have these ids once `enter` was called.
    pub fn of_user(ids: Ids, enter: Enter) -> Self {
        Self { owners: Owners::Namespace(ids), enter: Some(enter) }
    }
}

/// What the ids of files mean; kept in `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// The ids of images, and `trusted.*` attributes.
    Host,
    /// Those that lie outside of the ids of images, and `user.*` attributes.
    Namespace(Ids),
}

impl Owners {
    /// What layer dirs have to record, as their maker cannot do it.
    pub fn records(&self) -> Records {
        match self {
            Self::Host => Records::None,
            Self::Namespace(ids) if ids.are_single() => Records::Owners,
            Self::Namespace(_) => Records::Nodes,
        }
    }

    /// Whether what was made under `other` means the same now.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host, Self::Host) => true,
            // More ids are welcome; but where there was one, files belong to it that should not.
            (Self::Namespace(own), Self::Namespace(other)) => {
                own.are_single() == other.are_single() && own.covers(other)
            }
            _ => false,
        }
    }

    /// Reads the lines that it shows as.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim().is_empty() {
            return Some(Self::Host);
        }
        let map = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            IdMap::parse(&line.replace(',', "\n"))
        };
        Some(Self::Namespace(Ids { users: map("users ")?, groups: map("groups ")? }))
    }

    /// For a person, after "the files belong to".
    pub fn describe(&self) -> String {
        match self {
            Self::Host => "the ids of their images".to_owned(),
            Self::Namespace(ids) => {
                let runs = ids.users.extents().iter().map(|extent| match extent.count {
                    1 => extent.outside.to_string(),
                    count => format!("{}-{}", extent.outside, u64::from(extent.outside) + u64::from(count) - 1),
                });
                format!("the host's ids {}", runs.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl fmt::Display for Owners {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Namespace(Ids { users, groups }) = self else { return Ok(()) };
        for (kind, map) in [("users", users), ("groups", groups)] {
            writeln!(formatter, "{kind} {}", map.to_string().trim_end().replace('\n', ","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(map: &str) -> Owners {
        let map = IdMap::parse(map).unwrap();
        Owners::Namespace(Ids { users: map.clone(), groups: map })
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        for (owners, text) in [
            (Owners::Host, ""),
            (of("0 1001 1\n1 100000 65536"), "users 0 1001 1,1 100000 65536\ngroups 0 1001 1,1 100000 65536\n"),
            (of("0 1001 1"), "users 0 1001 1\ngroups 0 1001 1\n"),
        ] {
            assert_eq!(owners.to_string(), text);
            assert_eq!(Owners::parse(text), Some(owners));
        }
        assert_eq!(Owners::parse("users 0 1 1\n"), None);
        assert_eq!(Owners::parse("users x\ngroups 0 1 1\n"), None);
    }

    #[test]
    fn only_what_means_the_same_is_shared() {
        let (range, more, single) = ("0 7 1\n1 100 50", "0 7 1\n1 100 90", "0 7 1");
        assert!(of(range).covers(&of(range)) && of(more).covers(&of(range)) && of(single).covers(&of(single)));
        assert!(!of(range).covers(&of(more)) && !of(range).covers(&of(single)) && !of(single).covers(&of(range)));
        assert!(!Owners::Host.covers(&of(range)) && !of(range).covers(&Owners::Host));
        assert_eq!(of(range).describe(), "the host's ids 7, 100-149");
    }
}
