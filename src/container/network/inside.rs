//! The lane's end of its way out: an interface with addresses, through which nothing goes yet.
//!
//! Most steps never send a packet, and to make a way takes longer than such a step. What is sent makes
//! the lane's kernel look for the hardware address of the gateway, and that it asks us for: then the way is
//! opened and the answer given, upon which what was sent goes on its way.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::Errno;

use super::link;
use super::netlink::Socket;

/// What the interface is called.
pub const NAME: &str = "eth0";

/// An address of the lane's own, and where everything else is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub address: IpAddr,
    /// Bits.
    pub prefix: u8,
    pub gateway: IpAddr,
}

/// The interface, and what is heard of it outside: the sockets stay in the lane's network wherever they are held.
pub struct Inside {
    route: Socket,
    /// Told of the interface, and of the addresses that are looked for.
    events: Socket,
    index: u32,
}

impl Inside {
    /// The interface of a lane, by sockets to its network: `route` for requests, `events` as [`listen`] made it.
    pub fn new(route: Socket, events: Socket) -> Result<Self, Errno> {
        let index = link::index(&route, NAME)?;
        Ok(Self { route, events, index })
    }

    /// Readable when something happens in the lane.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The neighbours that were looked for since the last call.
    pub fn asked(&self) -> Vec<IpAddr> {
        self.events.events().iter().filter_map(link::asked_neighbour).collect()
    }

    /// Says where neighbours are, to those who wait for it too.
    pub fn answer(&self, neighbours: impl IntoIterator<Item = IpAddr>, hardware: [u8; 6]) -> Result<(), Errno> {
        neighbours
            .into_iter()
            .try_for_each(|neighbour| link::add_neighbour(&self.route, self.index, neighbour, hardware))
    }

    /// Whether the interface takes packets: what is sent before is lost.
    pub fn is_running(&self) -> Result<bool, Errno> {
        link::is_running(&self.route, self.index)
    }

    /// Makes an address of the world a neighbour whose hardware address is known.
    pub fn add_neighbour(&self, address: std::net::Ipv4Addr, hardware: [u8; 6]) -> Result<(), Errno> {
        link::add_neighbour(&self.route, self.index, address.into(), hardware)?;
        link::add_neighbouring_route(&self.route, self.index, address)
    }
}

/// A socket for what [`Inside`] is told.
pub fn listen() -> Result<Socket, Errno> {
    Socket::listen(libc::RTMGRP_NEIGH | libc::RTMGRP_LINK)
}

/// Sets the interface up. `mtu` in bytes: what it has, without.
pub fn raise(route: &Socket, mtu: Option<u32>, addresses: &[Address]) -> Result<(), Errno> {
    let index = link::index(route, NAME)?;
    link::silence(route, index)?;
    if let Some(mtu) = mtu {
        link::set_mtu(route, index, mtu)?;
    }
    link::bring_up(route, index)?;
    for Address { address, prefix, gateway } in addresses {
        link::ask_us_for_neighbours(route, index, *address)?;
        link::add_address(route, index, *address, *prefix)?;
        link::add_default_route(route, index, *gateway)?;
    }
    Ok(())
}
