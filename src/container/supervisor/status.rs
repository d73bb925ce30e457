//! What the kernel says of a thread in `/proc/TID/status`.

use rustix::thread::CapabilitySet;

/// Ids are as the reader's user namespace has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Of files that it makes and opens.
    pub filesystem_ids: (u32, u32),
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: CapabilitySet,
    /// The numbers of its process and of itself in its own pid namespace.
    pub own_numbers: (u32, u32),
}

impl Status {
    /// `None` if it is not what Linux writes.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let numbers = |name: &str| -> Option<Vec<u32>> {
            field(name)?.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
        };
        // Real, effective, saved, file system.
        let filesystem_id = |name: &str| numbers(name)?.get(3).copied();
        // One for each pid namespace, from the reader's down.
        let own_number = |name: &str| numbers(name)?.last().copied();
        Some(Self {
            filesystem_ids: (filesystem_id("Uid")?, filesystem_id("Gid")?),
            groups: numbers("Groups")?,
            umask: u32::from_str_radix(field("Umask")?.trim(), 8).ok()?,
            capabilities: CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?),
            own_numbers: (own_number("NStgid")?, own_number("NSpid")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\tUid: 7\nUmask:\t0027\nState:\tS (sleeping)\nTgid:\t812\nPid:\t815\n\
        Uid:\t2147484648\t2147484648\t2147484648\t2147483648\nGid:\t1\t2\t3\t4\nFDSize:\t64\n\
        Groups:\t2147483658 2147483748 \nNStgid:\t812\t9\nNSpid:\t815\t12\nCapPrm:\t0000000000000000\n\
        CapEff:\t00000000a80425fb\n";

    #[test]
    fn a_thread_of_a_step() {
        let status = Status::parse(TEXT).unwrap();
        assert_eq!(status.filesystem_ids, (1 << 31, 4));
        assert_eq!(status.groups, [(1 << 31) + 10, (1 << 31) + 100]);
        assert_eq!((status.umask, status.own_numbers), (0o027, (9, 12)));
        assert_eq!(status.capabilities, super::super::super::caps::DEFAULT);
        let alone = TEXT.replace("2147483658 2147483748 ", " ");
        assert!(Status::parse(&alone).unwrap().groups.is_empty());
    }

    #[test]
    fn anything_else_is_nothing() {
        for missing in ["Umask", "Uid:\t", "Groups", "CapEff", "NStgid"] {
            assert_eq!(Status::parse(&TEXT.replace(missing, "x")), None, "{missing}");
        }
        assert_eq!(Status::parse(""), None);
    }
}
