//! The way out through the host itself, where it forwards packets anyway: a pair of interfaces for each
//! lane, and a table of the packet filter that gives what comes from them the host's address.
//!
//! ```text
//! lane (network namespace of the build)          host
//!   eth0 10.119.N.2/30 ───────────────── wytheN-0 10.119.N.1/30 ── forward ── masquerade ──▶
//! ```
//!
//! A wire is *closed* at first: the host's end is down and has no address, and there is no table, which
//! takes the kernel long to remove. It is opened when a step sends something; see [`inside`].
//!
//! Nothing of it stays behind: an interface goes with the namespace that its other end is in, the table
//! with its socket. No setting of the host is touched but that its ends of our pairs do not listen
//! to routers, which are the steps' to play.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};

use super::firewall::{self, Table};
use super::inside::{self, Address, Inside};
use super::lane;
use super::link::{self, End};
use super::netlink::Socket;
use super::range::{self, Ends, PREFIX, PREFIX_V6, Range};

/// What is wrong with a host that forwards and yet does not.
pub const FORBIDDEN: &str = "the host's packet filter does not let packets from new networks out";

/// Where no default route says otherwise.
const MTU: u32 = 1500;
/// The last byte of the ends' hardware addresses.
const HOST: u8 = 0;
const LANE: u8 = 1;
/// The kernel is given this long to do what takes it some microseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// What all lanes of a build share.
pub struct Uplink {
    /// Made when the first wire is opened.
    table: Option<Table>,
    /// Holds the range's name among the builds of this host.
    claim: OwnedFd,
    range: Range,
    route: Socket,
    mtu: u32,
    has_default: bool,
    has_v6: bool,
    /// The numbers of the wires that there are.
    used: u64,
}

/// A lane's connection to the host.
pub struct Wire {
    number: u8,
    /// The host's address on it.
    pub host: IpAddr,
    is_open: bool,
    /// Of the host's end.
    index: u32,
    gateway: [u8; 6],
    ends: Addresses,
    inside: Inside,
    /// A socket in the lane to send probes with.
    probe: OwnedFd,
}

struct Addresses {
    v4: Ends<Ipv4Addr>,
    v6: Option<Ends<Ipv6Addr>>,
}

impl Uplink {
    /// Says why not where the host does not forward.
    pub fn open(proc: BorrowedFd<'_>) -> Result<Self, String> {
        if !forwards(proc) {
            return Err("the host does not forward packets (`net.ipv4.ip_forward` is 0)".into());
        }
        let route = Socket::open().map_err(|errno| unable("ask for the host's routes", errno))?;
        let routes = link::routes(&route).map_err(|errno| unable("read the host's routes", errno))?;
        let forwards_v6 = read(proc, "sys/net/ipv6/conf/all/forwarding").as_deref() == Some("1");
        let claimed = range::free(&routes.own).find_map(|range| claim(range).map(|claim| (range, claim)));
        let (range, claim) = claimed.ok_or("every range of private addresses is in use")?;
        Ok(Self {
            table: None,
            claim,
            range,
            route,
            mtu: routes.mtu.unwrap_or(MTU),
            has_default: routes.has_default,
            has_v6: forwards_v6 && routes.has_default_v6,
            used: 0,
        })
    }

    /// Lays a wire, closed, between the host's network namespace, `own`, and `lane`.
    pub fn connect(&mut self, proc: BorrowedFd<'_>, lane: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<Wire, String> {
        let (number, name) = self.make_pair(lane).map_err(|errno| unable("make a pair of interfaces", errno))?;
        let v6 = self.has_v6.then(|| self.range.ends_v6(number));
        let ends = Addresses { v4: self.range.ends(number), v6 };
        let index = self.settle_host(proc, &name).map_err(|errno| unable("set up an interface", errno))?;
        let (inside, probe) = lane::within(lane, own, || raise_inside(&ends))
            .map_err(|error| format!("cannot enter a network namespace: {error}"))?
            .map_err(|errno| unable("set up a network namespace", errno))?;
        self.used |= 1 << number;
        let gateway = self.hardware_address(number, HOST);
        Ok(Wire { number, host: ends.v4.host.into(), is_open: false, index, gateway, ends, inside, probe })
    }

    /// Lets packets through; nothing to do if they are. An error says that they do not leave the host:
    /// its own rules may forbid it. What a step has sent is held back until [`Wire::answer`].
    pub fn let_through(&mut self, wire: &mut Wire) -> Result<(), String> {
        if wire.is_open {
            return Ok(());
        }
        if self.table.is_none() {
            let table = Table::make(self.range, self.has_v6, &self.claim);
            self.table = Some(table.map_err(|errno| unable("make a table of nf_tables", errno))?);
        }
        self.raise_host(wire).map_err(|errno| unable("set up the host's end of a pair of interfaces", errno))?;
        wire.await_running()?;
        wire.is_open = true;
        self.prove(wire)
    }

    /// For a wire that is no more; its number is free again once its interface has gone.
    pub fn forget(&mut self, wire: &Wire) {
        self.used &= !(1 << wire.number);
    }

    /// Sends a packet from a lane into the world, and looks how far it comes.
    fn prove(&self, wire: &Wire) -> Result<(), String> {
        let Some(table) = self.table.as_ref().filter(|_| self.has_default) else {
            // Nothing is beyond this host.
            return Ok(());
        };
        let count = || table.probes().map_err(|errno| unable("read a counter of nf_tables", errno));
        let before = count()?;
        let known = wire.inside.add_neighbour(firewall::PROBE, wire.gateway);
        known.map_err(|errno| unable("set up a network namespace", errno))?;
        // The port of those who throw away what they get.
        let nobody = SocketAddrV4::new(firewall::PROBE, 9);
        rustix::net::sendto(&wire.probe, &[0], SendFlags::empty(), &nobody)
            .map_err(|errno| unable("send a packet from a private network", errno))?;
        let begun = Instant::now();
        loop {
            let (came, went) = count()?;
            match (came > before.0, went > before.1) {
                (_, true) => return Ok(()),
                // A packet that has come in is through, or not, within microseconds.
                (true, false) if begun.elapsed() > Duration::from_millis(3) => {
                    return Err(FORBIDDEN.into());
                }
                _ if begun.elapsed() > LIMIT => return Err("packets from a private network do not arrive".into()),
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// Makes the next pair that there is not yet; its number, and the name of the host's end.
    fn make_pair(&self, lane: BorrowedFd<'_>) -> Result<(u8, String), Errno> {
        for number in (0..range::LANES).filter(|number| self.used & 1 << number == 0) {
            let name = format!("{}{}-{number}", firewall::LANES, self.range.index);
            let host = End { name: &name, hardware_address: self.hardware_address(number, HOST) };
            let inside = End { name: inside::NAME, hardware_address: self.hardware_address(number, LANE) };
            match link::make_pair(&self.route, host, inside, lane, self.mtu) {
                Ok(()) => return Ok((number, name)),
                // Of a namespace that the kernel is still clearing away.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::NOSPC)
    }

    /// Of no maker (`02`), and different for each end on this host.
    fn hardware_address(&self, number: u8, side: u8) -> [u8; 6] {
        let [low, high] = self.range.index.to_le_bytes();
        [0x02, 0x77, high, low, number, side]
    }

    /// Makes the host's end harmless. Its number.
    fn settle_host(&self, proc: BorrowedFd<'_>, name: &str) -> Result<u32, Errno> {
        let index = link::index(&self.route, name)?;
        link::silence(&self.route, index)?;
        // A step may send what routers send, and must not become the host's.
        match write(proc, &format!("sys/net/ipv6/conf/{name}/accept_ra"), "0") {
            // A kernel without IPv6.
            Err(Errno::NOENT) => {}
            written => written?,
        }
        Ok(index)
    }

    fn raise_host(&self, wire: &Wire) -> Result<(), Errno> {
        let inside = self.hardware_address(wire.number, LANE);
        link::bring_up(&self.route, wire.index)?;
        link::add_address(&self.route, wire.index, wire.ends.v4.host.into(), PREFIX)?;
        link::add_neighbour(&self.route, wire.index, wire.ends.v4.inside.into(), inside)?;
        if let Some(ends) = wire.ends.v6 {
            link::add_address(&self.route, wire.index, ends.host.into(), PREFIX_V6)?;
            // The kernel would ask from a link-local address, and this interface has none.
            link::add_neighbour(&self.route, wire.index, ends.inside.into(), inside)?;
        }
        Ok(())
    }
}

impl Wire {
    /// Readable when something happens in the lane.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.inside.events()
    }

    /// Whether a step has sent something that a closed wire holds back.
    pub fn is_asked(&self) -> bool {
        let asked = self.inside.asked();
        !self.is_open && !asked.is_empty()
    }

    /// Says where the gateway is.
    pub fn answer(&self) -> Result<(), String> {
        let gateways = [Some(self.ends.v4.host.into()), self.ends.v6.map(|ends| ends.host.into())];
        let answered = self.inside.answer(gateways.into_iter().flatten(), self.gateway);
        answered.map_err(|errno| unable("set up a network namespace", errno))
    }

    /// Waits until the lane's end takes packets: what is sent before is lost.
    fn await_running(&self) -> Result<(), String> {
        let begun = Instant::now();
        while !self.inside.is_running().map_err(|errno| unable("look at an interface", errno))? {
            let left = LIMIT.checked_sub(begun.elapsed()).ok_or("a pair of interfaces does not come up")?;
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut polled = [PollFd::from_borrowed_fd(self.events(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, Some(&left));
            self.inside.asked();
        }
        Ok(())
    }
}

/// Sets up the lane's end, in the lane, and opens a socket to send probes with.
fn raise_inside(ends: &Addresses) -> Result<(Inside, OwnedFd), Errno> {
    let events = inside::listen()?;
    let probe = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let route = Socket::open()?;
    let v4 = Address { address: ends.v4.inside.into(), prefix: PREFIX, gateway: ends.v4.host.into() };
    let v6 = ends.v6.map(|ends| Address { address: ends.inside.into(), prefix: PREFIX_V6, gateway: ends.host.into() });
    let addresses: Vec<Address> = [Some(v4), v6].into_iter().flatten().collect();
    inside::raise(&route, None, &addresses)?;
    Ok((Inside::new(route, events)?, probe))
}

/// Takes the range's name, which no two sockets of a network namespace have at once.
fn claim(range: Range) -> Option<OwnedFd> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    let name = SocketAddrUnix::new_abstract_name(format!("wythe/network/{}", range.index).as_bytes()).ok()?;
    rustix::net::bind(&socket, &name).ok()?;
    Some(socket)
}

/// Whether the host lets through what is not its own.
pub fn forwards(proc: BorrowedFd<'_>) -> bool {
    read(proc, "sys/net/ipv4/ip_forward").as_deref() == Some("1")
}

/// A setting in `proc`; `None` where there is none.
fn read(proc: BorrowedFd<'_>, name: &str) -> Option<String> {
    let file = rustix::fs::openat(proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0; 64];
    let length = rustix::io::read(file, &mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
}

fn write(proc: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = rustix::fs::openat(proc, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

fn unable(what: &str, errno: Errno) -> String {
    format!("cannot {what}: {}", std::io::Error::from(errno))
}
