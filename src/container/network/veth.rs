//! The way out through the host itself, where it forwards packets anyway: a pair of interfaces for each
//! lane, and a table of the packet filter that gives what comes from them the host's address.
//!
//! ```text
//! lane (network namespace of the build)          host
//!   eth0 10.119.N.2/30 ───────────────── wytheN-0 10.119.N.1/30 ── forward ── masquerade ──▶
//! ```
//!
//! Nothing of it stays behind: an interface goes with the namespace that its other end is in, the table
//! with its socket. No setting of the host is touched but that its ends of our pairs do not listen
//! to routers, which are the steps' to play.

use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};

use super::firewall::{self, Table};
use super::lane;
use super::link::{self, End};
use super::netlink::Socket;
use super::range::{self, Ends, PREFIX, PREFIX_V6, Range};

/// What the interface is called inside.
pub const INSIDE: &str = "eth0";

/// Where no default route says otherwise.
const MTU: u32 = 1500;
/// How often another range is tried when somebody else is quicker.
const ATTEMPTS: usize = 16;
/// The kernel is given this long to do what takes it some microseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// What all lanes of a build share.
pub struct Uplink {
    table: Table,
    /// Holds the range's name among the builds of this host.
    _claim: OwnedFd,
    range: Range,
    route: Socket,
    mtu: u32,
    has_default: bool,
    has_v6: bool,
    /// Which lanes there are.
    used: u64,
}

/// A lane that can reach what the host reaches.
pub struct Wire {
    pub number: u8,
    /// The host's address on it.
    pub host: IpAddr,
}

impl Uplink {
    /// Says why not where the host does not forward, or does not let us.
    pub fn open(proc: BorrowedFd<'_>) -> Result<Self, String> {
        if read(proc, "sys/net/ipv4/ip_forward").as_deref() != Some("1") {
            return Err("the host does not forward packets (`net.ipv4.ip_forward` is 0)".into());
        }
        let route = Socket::open(None).map_err(|errno| unable("ask for the host's routes", errno))?;
        let routes = link::routes(&route).map_err(|errno| unable("read the host's routes", errno))?;
        let forwards_v6 = read(proc, "sys/net/ipv6/conf/all/forwarding").as_deref() == Some("1");
        let has_v6 = forwards_v6 && routes.has_default_v6;
        for range in range::free(&routes.own).take(ATTEMPTS) {
            let Some(claim) = claim(range) else { continue };
            let table = match Table::make(range, has_v6) {
                Ok(table) => table,
                // Of a build that is about to end.
                Err(Errno::EXIST) => continue,
                Err(errno) => return Err(unable("make a table of nf_tables", errno)),
            };
            let mtu = routes.mtu.unwrap_or(MTU);
            return Ok(Self {
                table,
                _claim: claim,
                range,
                route,
                mtu,
                has_default: routes.has_default,
                has_v6,
                used: 0,
            });
        }
        Err("every range of private addresses is in use".into())
    }

    /// Connects the network namespace `lane`, seen from the host's, `own`.
    pub fn connect(&mut self, proc: BorrowedFd<'_>, lane: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<Wire, String> {
        let (number, name) = self.make_pair(lane).map_err(|errno| unable("make a pair of interfaces", errno))?;
        let (ends, ends_v6) = (self.range.ends(number), self.range.ends_v6(number));
        let events = Socket::listen(libc::RTMGRP_LINK).map_err(|errno| unable("watch an interface", errno))?;
        let index = link::index(&self.route, &name).map_err(|errno| unable("find an interface", errno))?;
        self.raise_host(proc, &name, index, ends, ends_v6)
            .map_err(|errno| unable("set up the host's end of a pair of interfaces", errno))?;
        lane::within(lane, own, || raise_inside(ends, self.has_v6.then_some(ends_v6)))
            .map_err(|error| format!("cannot enter a network namespace: {error}"))?
            .map_err(|errno| unable("set up a network namespace", errno))?;
        self.await_running(index, &events)?;
        self.used |= 1 << number;
        Ok(Wire { number, host: ends.host.into() })
    }

    /// For a lane that is no more; its number is free again once its interface has gone.
    pub fn forget(&mut self, number: u8) {
        self.used &= !(1 << number);
    }

    /// Whether packets from a connected lane leave the host: its own rules may forbid it.
    pub fn prove(&self, lane: BorrowedFd<'_>, own: BorrowedFd<'_>) -> Result<(), String> {
        if !self.has_default {
            // Nothing is beyond this host.
            return Ok(());
        }
        let socket = lane::within(lane, own, || rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None));
        let socket = socket.map_err(|error| format!("cannot enter a network namespace: {error}"))?;
        // The port of those who throw away what they get.
        let nobody = SocketAddrV4::new(firewall::PROBE, 9);
        socket
            .and_then(|socket| rustix::net::sendto(socket, &[0], SendFlags::empty(), &nobody))
            .map_err(|errno| unable("send a packet from a private network", errno))?;
        let begun = Instant::now();
        loop {
            match self.table.probes().map_err(|errno| unable("read a counter of nf_tables", errno))? {
                (_, 1..) => return Ok(()),
                // A packet that has come in is through, or not, within microseconds.
                (1.., 0) if begun.elapsed() > Duration::from_millis(3) => {
                    return Err("the host's packet filter does not let packets from new networks out".into());
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
            let [low, high] = self.range.index.to_le_bytes();
            let hardware_address = |side| [0x02, 0x77, high, low, number, side];
            let host = End { name: &name, hardware_address: hardware_address(0) };
            let inside = End { name: INSIDE, hardware_address: hardware_address(1) };
            match link::make_pair(&self.route, host, inside, lane, self.mtu) {
                Ok(()) => return Ok((number, name)),
                // Of a namespace that the kernel is still clearing away.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::NOSPC)
    }

    fn raise_host(
        &self,
        proc: BorrowedFd<'_>,
        name: &str,
        index: u32,
        ends: Ends<std::net::Ipv4Addr>,
        ends_v6: Ends<std::net::Ipv6Addr>,
    ) -> Result<(), Errno> {
        link::silence(&self.route, index)?;
        // A step may send what routers send, and must not become the host's.
        match write(proc, &format!("sys/net/ipv6/conf/{name}/accept_ra"), "0") {
            // A kernel without IPv6.
            Err(Errno::NOENT) => {}
            written => written?,
        }
        link::add_address(&self.route, index, ends.host.into(), PREFIX)?;
        if self.has_v6 {
            link::add_address(&self.route, index, ends_v6.host.into(), PREFIX_V6)?;
        }
        link::bring_up(&self.route, index)
    }

    /// Waits until the host's end takes packets: what it is to send before is lost.
    fn await_running(&self, index: u32, events: &Socket) -> Result<(), String> {
        let begun = Instant::now();
        while !link::is_running(&self.route, index).map_err(|errno| unable("look at an interface", errno))? {
            let left = LIMIT.checked_sub(begun.elapsed()).ok_or("a pair of interfaces does not come up")?;
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut polled = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, Some(&left));
            events.events();
        }
        Ok(())
    }
}

fn raise_inside(ends: Ends<std::net::Ipv4Addr>, ends_v6: Option<Ends<std::net::Ipv6Addr>>) -> Result<(), Errno> {
    let route = Socket::open(None)?;
    let index = link::index(&route, INSIDE)?;
    link::silence(&route, index)?;
    link::bring_up(&route, index)?;
    link::add_address(&route, index, ends.inside.into(), PREFIX)?;
    link::add_default_route(&route, index, ends.host.into())?;
    if let Some(ends) = ends_v6 {
        link::add_address(&route, index, ends.inside.into(), PREFIX_V6)?;
        link::add_default_route(&route, index, ends.host.into())?;
    }
    Ok(())
}

/// Takes the range's name, which no two sockets of a network namespace have at once.
fn claim(range: Range) -> Option<OwnedFd> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    let name = SocketAddrUnix::new_abstract_name(format!("wythe/network/{}", range.index).as_bytes()).ok()?;
    rustix::net::bind(&socket, &name).ok()?;
    Some(socket)
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
