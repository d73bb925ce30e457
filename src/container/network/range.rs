//! The addresses of a build's private networks, chosen so that none of the host's is hidden by them.
//!
//! ```text
//! 10.119.N.0/24        one build
//!   .1/30 ── .2/30     its first network: the host's end and the step's
//!   .5/30 ── .6/30     the second …
//! fd77:7974:6865:N::/64   the same once more
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

/// The length of a lane's prefixes: two addresses to use in each.
pub const PREFIX: u8 = 30;
pub const PREFIX_V6: u8 = 126;

/// As many networks of four addresses fit.
pub const LANES: u8 = 64;

/// First octets in the order in which they are tried. Of the private ranges these parts are the least
/// used; the last is set aside for measuring networks, and nobody's at all.
const BLOCKS: [[u8; 2]; 4] = [[10, 119], [172, 29], [192, 168], [198, 18]];

/// The addresses of one build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Different for each range there is.
    pub index: u16,
}

/// Both ends of a network of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    pub host: A,
    pub inside: A,
}

/// Addresses that a host reaches by a route of its own: a network and the length of its prefix.
pub type Route = (Ipv4Addr, u8);

/// All ranges that have no address in common with `routes`.
pub fn free(routes: &[Route]) -> impl Iterator<Item = Range> {
    let count = BLOCKS.len() as u16 * 256;
    (0..count).map(|index| Range { index }).filter(|range| !routes.iter().any(|route| range.overlaps(*route)))
}

impl Range {
    /// Its first address; 24 bits are common to all.
    pub fn network(self) -> Ipv4Addr {
        let [number, block] = self.index.to_le_bytes();
        let [first, second] = BLOCKS[usize::from(block) % BLOCKS.len()];
        Ipv4Addr::new(first, second, number, 0)
    }

    /// Its first address; 64 bits are common to all.
    pub fn network_v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0x7974, 0x6865, self.index, 0, 0, 0, 0)
    }

    /// The ends of the lane of this number, below [`LANES`].
    pub fn ends(self, lane: u8) -> Ends<Ipv4Addr> {
        let at = |offset| Ipv4Addr::from_bits(self.network().to_bits() + u32::from(lane) * 4 + offset);
        Ends { host: at(1), inside: at(2) }
    }

    pub fn ends_v6(self, lane: u8) -> Ends<Ipv6Addr> {
        let at = |offset| Ipv6Addr::from_bits(self.network_v6().to_bits() + u128::from(lane) * 4 + offset);
        Ends { host: at(1), inside: at(2) }
    }

    fn overlaps(self, (network, prefix): Route) -> bool {
        let common = u32::from(prefix.min(24));
        let mask = u32::MAX.checked_shl(32 - common).unwrap_or(0);
        (network.to_bits() ^ self.network().to_bits()) & mask == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_free(routes: &[&str]) -> Option<String> {
        let routes: Vec<Route> = routes
            .iter()
            .map(|route| {
                let (network, prefix) = route.split_once('/').unwrap();
                (network.parse().unwrap(), prefix.parse().unwrap())
            })
            .collect();
        free(&routes).next().map(|range| range.network().to_string())
    }

    #[test]
    fn ranges_keep_clear_of_the_hosts_routes() {
        let check = |routes: &[&str], expected: &str| assert_eq!(first_free(routes).as_deref(), Some(expected));
        check(&[], "10.119.0.0");
        check(&["10.88.0.0/16", "192.0.2.0/24", "127.0.0.0/8"], "10.119.0.0");
        check(&["10.119.0.128/30"], "10.119.1.0");
        check(&["10.119.0.0/32", "10.119.1.255/32", "10.119.2.0/24"], "10.119.3.0");
        check(&["10.112.0.0/12"], "172.29.0.0");
        check(&["10.0.0.0/8", "172.16.0.0/12"], "192.168.0.0");
        check(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17"], "192.168.128.0");
        assert_eq!(first_free(&["0.0.0.0/1", "128.0.0.0/1"]), None);
    }

    #[test]
    fn every_range_and_lane_has_addresses_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for range in free(&[]) {
            for lane in [0, 1, LANES - 1] {
                let (Ends { host, inside }, six) = (range.ends(lane), range.ends_v6(lane));
                assert_eq!(host.to_bits() >> 2, inside.to_bits() >> 2);
                assert_eq!(host.to_bits() >> 8, range.network().to_bits() >> 8);
                assert_eq!(six.host.to_bits() >> 64, range.network_v6().to_bits() >> 64);
                assert!(seen.insert(host) && seen.insert(inside));
            }
        }
        assert_eq!(seen.len(), 1024 * 6);
        let range = Range { index: 258 };
        assert_eq!(range.ends(1), Ends { host: [172, 29, 2, 5].into(), inside: [172, 29, 2, 6].into() });
        assert_eq!(range.ends_v6(0).inside.to_string(), "fd77:7974:6865:102::2");
    }
}
