//! The process that makes the networks of a build and holds them: a fork of the spawner, so that the
//! spawner never waits for any of it.
//!
//! It makes a *lane* for each step that runs at once, and gives it a way out: through the host (`veth`),
//! else through a program (`userspace`), whichever works first. What does not work is not tried again. A way
//! that is known to work is opened when a step asks for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

use super::super::hosts::NameServers;
use super::super::protocol::{self, Failure};
use super::super::userns::Mapping;
use super::memory::{Forwarding, Memory};
use super::netlink::Socket;
use super::range;
use super::userspace::{self, Event, Line, Place, Program, Realm, TUN, in_one_line};
use super::veth::{self, FORBIDDEN, Uplink, Wire};
use super::{Kind, firewall, lane, link};
use crate::diag::{Context, Result};
use crate::sys;

/// What the spawner asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// What is known of this host.
    Remember {
        memory: Memory,
    },
    Make {
        kind: Kind,
        name_servers: NameServers,
    },
    /// A lane that is not used any more.
    Drop {
        id: u32,
    },
}

/// What the spawner is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    /// With it comes the network namespace.
    Made {
        id: u32,
        kind: Kind,
        traits: Traits,
    },
    /// There is no way out but the host's own network, and why.
    Impossible {
        reasons: Vec<String>,
        hints: Vec<String>,
    },
    Failed {
        kind: Kind,
        failure: Failure,
    },
    /// A lane has lost its way out; it need not be dropped.
    Lost {
        id: u32,
    },
    /// A step's packets go nowhere.
    Stuck {
        id: u32,
        why: String,
    },
    /// What is now known of this host.
    Learned {
        memory: Memory,
    },
}

/// What a step has to know of its network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Traits {
    /// Answers for the host's name servers.
    pub name_server: Option<IpAddr>,
    /// Where the host is reached.
    pub host: Option<IpAddr>,
}

/// The ways out, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Veth,
    Program(Program),
    Nothing,
}

impl Way {
    fn next(self) -> Self {
        match self {
            Self::Veth => Self::Program(Program::Pasta),
            Self::Program(Program::Pasta) => Self::Program(Program::Slirp),
            Self::Program(Program::Slirp) | Self::Nothing => Self::Nothing,
        }
    }
}

struct Keeper<'a> {
    orders: &'a OwnedFd,
    proc: BorrowedFd<'a>,
    user_namespace: BorrowedFd<'a>,
    mapping: &'a Mapping,
    /// The host's network namespace.
    own: OwnedFd,
    way: Way,
    /// Why earlier ways are not taken.
    reasons: Vec<String>,
    memory: Memory,
    uplink: Option<Uplink>,
    lanes: BTreeMap<u32, Held>,
    next: u32,
    /// Lanes whose programs are not ready, and not known to work.
    starting: Vec<Line>,
    name_servers: NameServers,
}

/// What a lane depends on.
#[derive(Default)]
struct Held {
    wire: Option<Wire>,
    line: Option<Line>,
}

/// Takes orders until the spawner is gone. `proc` is a procfs of its pid namespace.
pub fn keep(orders: &OwnedFd, proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, mapping: &Mapping) -> Result<()> {
    let doing = || "cannot set up the process that makes networks";
    sys::close_all_but(&[orders.as_fd(), proc, user_namespace]).context(doing)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(proc, "self/ns/net", flags, Mode::empty()).context(doing)?;
    let mut keeper = Keeper {
        orders,
        proc,
        user_namespace,
        mapping,
        own,
        way: Way::Veth,
        reasons: Vec::new(),
        memory: Memory::default(),
        uplink: None,
        lanes: BTreeMap::new(),
        next: 0,
        starting: Vec::new(),
        name_servers: NameServers::Reachable,
    };
    while keeper.turn()? {}
    Ok(())
}

impl<'a> Keeper<'a> {
    fn realm(&self) -> Realm<'a> {
        Realm { user_namespace: self.user_namespace, mapping: self.mapping }
    }

    /// Waits once and does what there is to do; whether there is a spawner still.
    fn turn(&mut self) -> Result<bool> {
        let is_ordered = self.wait()?;
        self.look_after_wires()?;
        self.look_after_programs()?;
        if is_ordered {
            let Some((packet, _)) = protocol::receive(self.orders.as_fd()).context(|| "cannot receive an order")?
            else {
                return Ok(false);
            };
            match protocol::decode(&packet)? {
                Order::Make { kind, name_servers } => {
                    self.name_servers = name_servers;
                    self.make(kind)?;
                }
                Order::Drop { id } => self.forget(id),
                Order::Remember { memory } => self.memory = memory,
            }
        }
        Ok(true)
    }

    /// Sleeps until something happens; whether there is an order.
    fn wait(&self) -> Result<bool> {
        let mut polled = vec![PollFd::from_borrowed_fd(self.orders.as_fd(), PollFlags::IN)];
        let wires = self.lanes.values().filter_map(|held| held.wire.as_ref());
        polled.extend(wires.map(|wire| PollFd::from_borrowed_fd(wire.events(), PollFlags::IN)));
        let lines = || self.starting.iter().chain(self.lanes.values().filter_map(|held| held.line.as_ref()));
        polled.extend(lines().flat_map(Line::events).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let deadline = lines().filter_map(Line::deadline).min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, left.as_ref()))
            .context(|| "cannot wait for an order")?;
        Ok(!polled[0].revents().is_empty())
    }

    /// Makes a lane and, where it is to be connected, gives it the first way out that works.
    fn make(&mut self, kind: Kind) -> Result<()> {
        loop {
            if kind == Kind::Connected && self.way == Way::Nothing && !self.begin_again() {
                self.learned()?;
                return self.tell(&News::Impossible { reasons: self.reasons.clone(), hints: self.hints() }, None);
            }
            let refused = match self.try_way(kind) {
                Ok(sent) => return sent,
                Err(why) => why,
            };
            // What was done to the namespace may be in the way of the next: it gets another.
            self.refuse(self.way, refused);
        }
    }

    /// Makes a lane by the way that is taken now, or says why that is none.
    fn try_way(&mut self, kind: Kind) -> Result<Result<()>, String> {
        // Before a namespace is made, which takes a while.
        let program = match (kind, self.way) {
            (Kind::Connected, Way::Veth) => {
                self.check_host()?;
                None
            }
            (Kind::Connected, Way::Program(program)) => Some((program, self.check(program)?)),
            (Kind::Alone, _) | (_, Way::Nothing) => None,
        };
        let namespace = match lane::create(self.proc, self.user_namespace) {
            Ok(namespace) => namespace,
            Err(failure) => return Ok(self.tell(&News::Failed { kind, failure: failure.into() }, None)),
        };
        if let Some((program, path)) = program {
            let mut line = self.lay(program, &path, namespace)?;
            if self.memory.has_worked(&path) {
                return Ok(self.hand_over_line(line));
            }
            line.start(self.realm()).map_err(|error| in_one_line(&error))?;
            self.starting.push(line);
            return Ok(Ok(()));
        }
        let (traits, held) = match kind {
            Kind::Alone => (Traits::default(), Held::default()),
            Kind::Connected => {
                let wire = self.wire(&namespace)?;
                (Traits { name_server: None, host: Some(wire.host) }, Held { wire: Some(wire), line: None })
            }
        };
        Ok(self.hand_over(kind, namespace.as_fd(), traits).map(|id| drop(self.lanes.insert(id, held))))
    }

    /// What would make a way.
    fn hints(&self) -> Vec<String> {
        let has_program = [Program::Pasta, Program::Slirp].into_iter().any(|program| program.find().is_some());
        let can_open_tun = userspace::open_tun(self.mapping).is_ok();
        let mut hints = Vec::new();
        if !has_program {
            hints.push("install `passt`".to_owned());
        } else if !can_open_tun {
            hints.push(format!("let everybody open the device with `sudo chmod 666 {TUN}`"));
        }
        if self.mapping.is_shifted() && !veth::forwards(self.proc) {
            hints.push("let the host forward packets with `sysctl net.ipv4.ip_forward=1`".to_owned());
        }
        hints
    }

    /// Notes that a way is none.
    fn refuse(&mut self, way: Way, why: String) {
        if self.way == way {
            self.reasons.push(match way {
                Way::Veth => format!("through the host: {why}"),
                Way::Program(program) => format!("through `{}`: {why}", program.name()),
                Way::Nothing => why,
            });
            self.way = way.next();
        }
    }

    /// Tries the host once more when it was left out for what an earlier build found: with no other
    /// way it is worth it.
    fn begin_again(&mut self) -> bool {
        let is_worth_it = self.memory.forwarding == Forwarding::Forbidden;
        if is_worth_it {
            self.memory.forwarding = Forwarding::Unknown;
            self.reasons.clear();
            self.way = Way::Veth;
        }
        is_worth_it
    }

    /// What is known to be in a wire's way before there is one.
    fn check_host(&self) -> Result<(), String> {
        if self.memory.forwarding == Forwarding::Forbidden {
            return Err(FORBIDDEN.into());
        }
        if self.name_servers == NameServers::OnLoopback
            && [Program::Pasta, Program::Slirp].into_iter().any(|it| it.find().is_some())
        {
            return Err("the host's name servers are on its loopback".into());
        }
        if !self.mapping.is_shifted() {
            return Err("it takes root to make interfaces of the host's".into());
        }
        Ok(())
    }

    /// Lays a wire; one that is not known to be of use is tried first.
    fn wire(&mut self, namespace: &OwnedFd) -> Result<Wire, String> {
        let mut uplink = match self.uplink.take() {
            Some(uplink) => uplink,
            None => Uplink::open(self.proc)?,
        };
        let mut wire = uplink.connect(self.proc, namespace.as_fd(), self.own.as_fd())?;
        if self.memory.forwarding == Forwarding::Unknown {
            uplink.let_through(&mut wire)?;
            wire.answer()?;
            self.memory.forwarding = Forwarding::Proven;
            // With nobody to tell, the next order ends this process.
            let _ = self.learned();
        }
        self.uplink = Some(uplink);
        Ok(wire)
    }

    /// Opens the wires of steps that have something to send.
    fn look_after_wires(&mut self) -> Result<()> {
        let Some(uplink) = &mut self.uplink else { return Ok(()) };
        let mut asked = Vec::new();
        for (id, held) in &mut self.lanes {
            if let Some(wire) = held.wire.as_mut().filter(|wire| wire.is_asked()) {
                asked.push((*id, uplink.let_through(wire)));
            }
        }
        for (id, opened) in asked {
            if let Err(why) = opened {
                // What was known of this host is so no more. Lanes to come go another way.
                self.memory.forwarding = Forwarding::Forbidden;
                self.learned()?;
                self.refuse(Way::Veth, why.clone());
                // Before the step can fail because of it.
                self.tell(&News::Stuck { id, why }, None)?;
            }
            if let Some(wire) = self.lanes.get(&id).and_then(|held| held.wire.as_ref()) {
                // Not knowing the gateway is what the step would be told otherwise, after a while.
                let _ = wire.answer();
            }
        }
        Ok(())
    }

    fn learned(&self) -> Result<()> {
        self.tell(&News::Learned { memory: self.memory.clone() }, None)
    }

    /// Where a program is, or what is known to be in its way before there is a lane.
    fn check(&self, program: Program) -> Result<PathBuf, String> {
        let path = program.find().ok_or("it is not installed")?;
        if let Some(why) = self.memory.failure(&path) {
            return Err(why.to_owned());
        }
        if !self.mapping.is_shifted() {
            userspace::open_tun(self.mapping).map_err(|error| in_one_line(&error))?;
        }
        Ok(path)
    }

    /// Makes the lane's end of a way through a program.
    fn lay(&self, program: Program, path: &Path, lane: OwnedFd) -> Result<Line, String> {
        let routes = Socket::open().and_then(|socket| link::routes(&socket));
        let routes =
            routes.map_err(|errno| format!("cannot read the host's routes: {}", std::io::Error::from(errno)))?;
        let range = range::free(&routes.own).next().ok_or("every range of private addresses is in use")?;
        let place = Place {
            range,
            has_v4: routes.has_default,
            has_v6: routes.has_default_v6,
            forwards_names: self.name_servers != NameServers::Reachable,
        };
        Line::lay(program, path, lane, place, self.mapping).map_err(|error| in_one_line(&error))
    }

    /// Hands over the lanes whose programs are ready; tries another way for those whose program is not.
    fn look_after_programs(&mut self) -> Result<()> {
        for mut line in std::mem::take(&mut self.starting) {
            match line.look() {
                Some(Event::Ready) => {
                    let is_news = self.memory.note_working(&line.path, true);
                    self.hand_over_line(line)?;
                    if is_news {
                        self.learned()?;
                    }
                }
                Some(Event::Failed { why, has_ended }) => {
                    if !has_ended {
                        // Those that end can be tried again: that takes no time, and what was in their way may be gone.
                        self.memory.note_failure(&line.path, &why);
                    }
                    self.refuse(Way::Program(line.program), why);
                    self.make(Kind::Connected)?;
                }
                _ => self.starting.push(line),
            }
        }
        let realm = self.realm();
        let (mut lost, mut stuck) = (Vec::new(), Vec::new());
        for (id, held) in &mut self.lanes {
            let Some(line) = &mut held.line else { continue };
            let why = match line.look() {
                Some(Event::Asked) => match line.start(realm) {
                    Ok(()) => continue,
                    Err(error) => in_one_line(&error),
                },
                Some(Event::Failed { why, .. }) => why,
                Some(Event::Lost) => {
                    lost.push(*id);
                    continue;
                }
                Some(Event::Ready) | None => continue,
            };
            stuck.push((*id, line.program, line.path.clone(), why));
        }
        for id in lost {
            self.forget(id);
            self.tell(&News::Lost { id }, None)?;
        }
        for (id, program, path, why) in stuck {
            // What was known of it is so no more. Lanes to come go another way.
            if self.memory.note_working(&path, false) {
                self.learned()?;
            }
            self.refuse(Way::Program(program), why.clone());
            self.tell(&News::Stuck { id, why }, None)?;
        }
        Ok(())
    }

    fn forget(&mut self, id: u32) {
        let Some(held) = self.lanes.remove(&id) else { return };
        if let Some(line) = held.line {
            line.stop();
        }
        if let (Some(uplink), Some(wire)) = (&mut self.uplink, held.wire) {
            uplink.forget(&wire);
        }
    }

    fn hand_over_line(&mut self, line: Line) -> Result<()> {
        let traits = Traits { name_server: line.name_server, host: address_of_host() };
        let id = self.hand_over(Kind::Connected, line.lane.as_fd(), traits)?;
        self.lanes.insert(id, Held { wire: None, line: Some(line) });
        Ok(())
    }

    /// Returns the lane's number, by which its way out is to be held.
    fn hand_over(&mut self, kind: Kind, namespace: BorrowedFd<'_>, traits: Traits) -> Result<u32> {
        let id = self.next;
        self.next += 1;
        self.tell(&News::Made { id, kind, traits }, Some(namespace))?;
        Ok(id)
    }

    fn tell(&self, news: &News, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
        protocol::send(self.orders.as_fd(), &protocol::encode(news), namespace.as_slice())
            .context(|| "cannot report to the spawner")
    }
}

/// The address that the host would use towards the world.
fn address_of_host() -> Option<IpAddr> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    // Sends nothing.
    rustix::net::connect(&socket, &SocketAddrV4::new(firewall::PROBE, 9)).ok()?;
    let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&socket).ok()?).ok()?;
    Some(address.ip())
}
