//! Interfaces, addresses and routes, through rtnetlink.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::netlink::{Answer, CREATE, Message, Socket};
use super::range::Route;

/// From `linux/veth.h`.
const VETH_INFO_PEER: u16 = 1;
/// From `linux/if_link.h`.
const ADDRESS_MODE: u16 = 8;
const ADDRESS_MODE_NONE: u8 = 1;
/// `IF_OPER_UP`, from `linux/if.h`.
const OPERATING: u8 = 6;

/// From `linux/neighbour.h`.
const TABLE_NAME: u16 = 1;
const TABLE_PARAMETERS: u16 = 6;
const PARAMETER_INTERFACE: u16 = 1;
const PARAMETER_PROGRAMS: u16 = 9;

const NEIGHBOUR_BYTES: usize = 12;
const LINK_BYTES: usize = size_of::<libc::ifinfomsg>();
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;

/// One end of a pair.
pub struct End<'a> {
    pub name: &'a str,
    pub hardware_address: [u8; 6],
}

/// Makes two interfaces that are each other's wire: `host` here and `inside` in the network namespace
/// `lane`. The end of that namespace is the end of both.
pub fn make_pair(socket: &Socket, host: End<'_>, inside: End<'_>, lane: BorrowedFd<'_>, mtu: u32) -> Result<(), Errno> {
    let named = |message: Message, end: &End<'_>| {
        message
            .with_text(libc::IFLA_IFNAME, end.name)
            .with(libc::IFLA_MTU, &mtu.to_ne_bytes())
            // One that is given stays as it is: udev thinks up others.
            .with(libc::IFLA_ADDRESS, &end.hardware_address)
    };
    let pair = named(Message::new(libc::RTM_NEWLINK, CREATE, &link(0, false)), &host);
    socket.request(pair.nest(libc::IFLA_LINKINFO, |kind| {
        kind.with_text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                let lane = lane.as_raw_fd() as u32;
                named(peer.raw(&link(0, false)), &inside).with(libc::IFLA_NET_NS_FD, &lane.to_ne_bytes())
            })
        })
    }))
}

/// Keeps the kernel from giving an interface an IPv6 address of its own making, and with it from
/// talking on the wire by itself.
pub fn silence(socket: &Socket, index: u32) -> Result<(), Errno> {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link(index, false));
    let silenced = socket.request(message.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET6 as u16, |six| six.with(ADDRESS_MODE, &[ADDRESS_MODE_NONE]))
    }));
    match silenced {
        // A kernel without IPv6.
        Err(Errno::AFNOSUPPORT) => Ok(()),
        silenced => silenced,
    }
}

/// The number of an interface.
pub fn index(socket: &Socket, name: &str) -> Result<u32, Errno> {
    let answer = socket.get(Message::new(libc::RTM_GETLINK, 0, &link(0, false)).with_text(libc::IFLA_IFNAME, name))?;
    let fixed: [u8; LINK_BYTES] = answer.fixed();
    Ok(u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]))
}

/// In bytes.
pub fn set_mtu(socket: &Socket, index: u32, mtu: u32) -> Result<(), Errno> {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link(index, false));
    socket.request(message.with(libc::IFLA_MTU, &mtu.to_ne_bytes()))
}

pub fn bring_up(socket: &Socket, index: u32) -> Result<(), Errno> {
    socket.request(Message::new(libc::RTM_NEWLINK, 0, &link(index, true)))
}

/// Whether an interface takes packets, which is a moment after it was brought up and somebody is at its other end.
pub fn is_running(socket: &Socket, index: u32) -> Result<bool, Errno> {
    let answer = socket.get(Message::new(libc::RTM_GETLINK, 0, &link(index, false)))?;
    // `IFF_RUNNING` is also said of an interface at which the kernel has not looked yet.
    Ok(answer.attributes(LINK_BYTES).get(libc::IFLA_OPERSTATE) == Some(&[OPERATING]))
}

/// `struct ifinfomsg`.
fn link(index: u32, is_up: bool) -> [u8; LINK_BYTES] {
    let mut bytes = [0; LINK_BYTES];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if is_up {
        let up = libc::IFF_UP as u32;
        bytes[8..12].copy_from_slice(&up.to_ne_bytes());
        bytes[12..16].copy_from_slice(&up.to_ne_bytes());
    }
    bytes
}

/// Gives an interface an address, and the machine the route to its network.
pub fn add_address(socket: &Socket, index: u32, address: IpAddr, prefix: u8) -> Result<(), Errno> {
    let mut fixed = [0; ADDRESS_BYTES];
    fixed[0] = family(address);
    fixed[1] = prefix;
    // Nobody else is on this wire: the address need not be asked for.
    fixed[2] = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address);
    let message = Message::new(libc::RTM_NEWADDR, CREATE, &fixed);
    socket.request(message.with(libc::IFA_LOCAL, &bytes).with(libc::IFA_ADDRESS, &bytes))
}

/// Lets an interface's kernel ask its programs (`RTM_GETNEIGH`) for the hardware address of a neighbour, in
/// the protocol of `address`, before it asks the wire a second later.
pub fn ask_us_for_neighbours(socket: &Socket, index: u32, address: IpAddr) -> Result<(), Errno> {
    let table = if address.is_ipv6() { "ndisc_cache" } else { "arp_cache" };
    let message = Message::new(libc::RTM_SETNEIGHTBL, 0, &[family(address), 0, 0, 0]).with_text(TABLE_NAME, table);
    socket.request(message.nest(TABLE_PARAMETERS, |parameters| {
        parameters.with(PARAMETER_INTERFACE, &index.to_ne_bytes()).with(PARAMETER_PROGRAMS, &1_u32.to_ne_bytes())
    }))
}

/// The neighbour that is looked for, if that is what an event says; see [`ask_us_for_neighbours`].
pub fn asked_neighbour(event: &Answer) -> Option<IpAddr> {
    if event.kind != libc::RTM_GETNEIGH {
        return None;
    }
    let address = event.attributes(NEIGHBOUR_BYTES).get(libc::NDA_DST)?;
    match address.len() {
        4 => <[u8; 4]>::try_from(address).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(address).ok().map(IpAddr::from),
    }
}

/// Gives a neighbour its hardware address, for good.
pub fn add_neighbour(socket: &Socket, index: u32, address: IpAddr, hardware: [u8; 6]) -> Result<(), Errno> {
    let mut fixed = [0; NEIGHBOUR_BYTES];
    fixed[0] = family(address);
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
    let message = Message::new(libc::RTM_NEWNEIGH, flags, &fixed);
    socket.request(message.with(libc::NDA_DST, &octets(address)).with(libc::NDA_LLADDR, &hardware))
}

/// Sends everything that has no other way through `gateway`.
pub fn add_default_route(socket: &Socket, index: u32, gateway: IpAddr) -> Result<(), Errno> {
    let mut fixed = [0; ROUTE_BYTES];
    fixed[0] = family(gateway);
    fixed[4..8].copy_from_slice(&[
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ]);
    let message = Message::new(libc::RTM_NEWROUTE, CREATE, &fixed);
    socket.request(message.with(libc::RTA_GATEWAY, &octets(gateway)).with(libc::RTA_OIF, &index.to_ne_bytes()))
}

/// Makes an address one on the wire itself.
pub fn add_neighbouring_route(socket: &Socket, index: u32, address: Ipv4Addr) -> Result<(), Errno> {
    let mut fixed = [0; ROUTE_BYTES];
    (fixed[0], fixed[1]) = (libc::AF_INET as u8, 32);
    fixed[4..8].copy_from_slice(&[libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST]);
    let message = Message::new(libc::RTM_NEWROUTE, CREATE, &fixed);
    socket.request(message.with(libc::RTA_DST, &address.octets()).with(libc::RTA_OIF, &index.to_ne_bytes()))
}

/// What a machine reaches, and how.
#[derive(Debug, Default)]
pub struct Routes {
    /// All but the default ones, of IPv4.
    pub own: Vec<Route>,
    pub has_default: bool,
    pub has_default_v6: bool,
    /// The smallest packet size of the interfaces that default routes lead to.
    pub mtu: Option<u32>,
}

/// The routes of the socket's network namespace.
pub fn routes(socket: &Socket) -> Result<Routes, Errno> {
    let mut routes = Routes::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let is_v6 = family == libc::AF_INET6;
        let mut fixed = [0; ROUTE_BYTES];
        fixed[0] = family as u8;
        for answer in socket.dump(Message::new(libc::RTM_GETROUTE, 0, &fixed))? {
            let [_, prefix, _, _, _, _, _, kind] = answer.fixed::<8>();
            let attributes = answer.attributes(ROUTE_BYTES);
            if prefix != 0 {
                let network = attributes.get(libc::RTA_DST).and_then(|dst| <[u8; 4]>::try_from(dst).ok());
                if let (false, Some(network)) = (is_v6, network) {
                    routes.own.push((Ipv4Addr::from(network), prefix));
                }
            } else if kind == libc::RTN_UNICAST {
                routes.has_default |= !is_v6;
                routes.has_default_v6 |= is_v6;
                if let Some(interface) = attributes.get(libc::RTA_OIF).and_then(number) {
                    let mtu = mtu(socket, interface);
                    routes.mtu = routes.mtu.into_iter().chain(mtu).min();
                }
            }
        }
    }
    Ok(routes)
}

fn mtu(socket: &Socket, index: u32) -> Option<u32> {
    let answer = socket.get(Message::new(libc::RTM_GETLINK, 0, &link(index, false))).ok()?;
    answer.attributes(LINK_BYTES).get(libc::IFLA_MTU).and_then(number)
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
