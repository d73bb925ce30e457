//! The networks of a build's steps.
//!
//! A step is in a network namespace of the build's user namespace, a *lane*: never two steps at once in
//! one, but one after the other, since making one takes longer than a step that does nothing. What lanes
//! there are, and which are free, is here; a process of its own makes them.
//!
//! ```text
//! spawner ──orders──▶ keeper     makes lanes; has the packet filter's table, starts pasta or slirp4netns
//!         ◀───news───
//! ```

mod firewall;
mod inside;
mod keeper;
mod lane;
mod link;
mod memory;
mod netlink;
mod range;
mod userspace;
mod veth;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use self::keeper::{News, Order};
use super::hosts::NameServers;
use super::protocol;
use super::userns::Mapping;
use crate::diag::{Context, Diagnostic, Result};
use crate::sys::{self, Child};

pub use self::keeper::Traits;
pub use self::memory::{Memory, host};

/// Which lanes a step can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// With a way out.
    Connected,
    /// With nothing but a loopback interface.
    Alone,
}

/// A network namespace for one step at a time.
pub struct Lane {
    id: u32,
    /// Who made it.
    keeper: Pid,
    kind: Kind,
    pub namespace: OwnedFd,
    pub traits: Traits,
}

/// All lanes, and the process that makes them.
pub struct Networks {
    keeper: Child,
    socket: OwnedFd,
    free: BTreeMap<Kind, Vec<Lane>>,
    /// How many lanes there are, in use or not.
    alive: usize,
    /// How many lanes are being made.
    ordered: BTreeMap<Kind, usize>,
    /// Why no more can be made, by kind.
    failures: BTreeMap<Kind, Failure>,
    /// Lanes that lost their way out while a step was in them.
    lost: Vec<u32>,
    /// Lanes whose packets go nowhere, and what to say of that.
    stuck: Vec<(u32, Diagnostic)>,
    /// What is known of the host, until somebody is told.
    learned: Option<Memory>,
}

/// Why a step is in no lane.
#[derive(Clone, Debug)]
pub enum Failure {
    /// There is no way out of a lane: the step is on the host's network, and its user is told.
    Impossible(Diagnostic),
    /// The step cannot be run.
    Failed(Diagnostic),
}

/// What a step finds that asks for a lane.
pub enum Found {
    Lane(Lane),
    /// It did not ask for one.
    Host,
    /// There will be one.
    Later,
    Never(Failure),
}

impl Networks {
    /// Starts the process that makes lanes: a fork, to be made by a process with one thread. `proc` is a
    /// procfs of its pid namespace.
    pub fn start(proc: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, mapping: &Mapping) -> Result<Self> {
        let (socket, orders) = protocol::pair()?;
        let Some(keeper) = sys::clone(0).context(|| "cannot start the process that makes networks")? else {
            // Whether it ends well or not is seen by who waits for news.
            let _ = keeper::keep(&orders, proc, user_namespace, mapping);
            sys::exit(0)
        };
        Ok(Self {
            keeper,
            socket,
            free: BTreeMap::new(),
            alive: 0,
            ordered: BTreeMap::new(),
            failures: BTreeMap::new(),
            lost: Vec::new(),
            stuck: Vec::new(),
            learned: None,
        })
    }

    /// Has lanes made until `count` are free or about to be.
    pub fn expect(&mut self, kind: Kind, count: usize, name_servers: NameServers) {
        while self.available(kind) < count && self.has_room() && !self.failures.contains_key(&kind) {
            let order = protocol::encode(&Order::Make { kind, name_servers });
            if protocol::send(self.socket.as_fd(), &order, &[]).is_err() {
                // The news will be that the process is gone.
                return;
            }
            *self.ordered.entry(kind).or_default() += 1;
        }
    }

    /// Who comes later waits for a lane to become free.
    fn has_room(&self) -> bool {
        self.alive + self.ordered.values().sum::<usize>() < usize::from(range::LANES)
    }

    fn available(&self, kind: Kind) -> usize {
        self.free.get(&kind).map_or(0, Vec::len) + self.ordered.get(&kind).copied().unwrap_or(0)
    }

    /// Takes a lane; to be given back.
    pub fn take(&mut self, kind: Kind) -> Found {
        if let Some(lane) = self.free.get_mut(&kind).and_then(Vec::pop) {
            return Found::Lane(lane);
        }
        match self.failures.get(&kind) {
            Some(failure) => Found::Never(failure.clone()),
            None => Found::Later,
        }
    }

    /// Takes back a lane whose step has ended. One that the step may have changed, or that has lost its
    /// way out, is given up.
    ///
    /// Returns what went wrong with it meanwhile.
    pub fn give_back(&mut self, lane: Lane, may_be_changed: bool) -> Option<Diagnostic> {
        if lane.keeper != self.keeper.pid {
            return None;
        }
        let is_lost = self.lost.extract_if(.., |id| *id == lane.id).count() > 0;
        let stuck = self.stuck.extract_if(.., |(id, _)| *id == lane.id).next();
        if may_be_changed || is_lost || stuck.is_some() {
            self.alive -= 1;
            let _ = protocol::send(self.socket.as_fd(), &protocol::encode(&Order::Drop { id: lane.id }), &[]);
        } else {
            self.free.entry(lane.kind).or_default().push(lane);
        }
        stuck.map(|(_, why)| why)
    }

    /// What is to be remembered of this host, if that is news.
    pub fn learned(&mut self) -> Option<Memory> {
        self.learned.take()
    }

    /// Has what an earlier build learned taken into account.
    pub fn remember(&self, memory: Memory) {
        // The news will be that the process is gone.
        let _ = protocol::send(self.socket.as_fd(), &protocol::encode(&Order::Remember { memory }), &[]);
    }

    /// Takes in what the process has said so far; whether it is still there.
    pub fn read_news(&mut self) -> bool {
        loop {
            let (news, fds) = match protocol::receive_now(self.socket.as_fd()) {
                Ok(Some((packet, fds))) => match protocol::decode(&packet) {
                    Ok(news) => (news, fds),
                    Err(_) => return false,
                },
                Err(Errno::AGAIN) => return true,
                Ok(None) | Err(_) => return false,
            };
            match news {
                News::Made { id, kind, traits } => {
                    self.arrived(kind);
                    let Some(namespace) = fds.into_iter().next() else { continue };
                    self.alive += 1;
                    self.free.entry(kind).or_default().push(Lane {
                        id,
                        keeper: self.keeper.pid,
                        kind,
                        namespace,
                        traits,
                    });
                }
                News::Impossible { reasons, hints } => {
                    self.arrived(Kind::Connected);
                    self.failures.insert(Kind::Connected, Failure::Impossible(impossible(&reasons, hints)));
                }
                News::Failed { kind, failure } => {
                    self.arrived(kind);
                    self.failures.insert(kind, Failure::Failed(failure.into()));
                }
                News::Stuck { id, why } => self.stuck.push((id, stuck(&why))),
                News::Learned { memory } => self.learned = Some(memory),
                News::Lost { id } => {
                    let free = self.free.values_mut().flat_map(|lanes| lanes.extract_if(.., |lane| lane.id == id));
                    match free.count() {
                        0 => self.lost.push(id),
                        count => self.alive -= count,
                    }
                }
            }
        }
    }

    fn arrived(&mut self, kind: Kind) {
        let ordered = self.ordered.entry(kind).or_default();
        *ordered = ordered.saturating_sub(1);
    }

    /// Readable when there is news.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Networks {
    /// The process has ended, or is to.
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.keeper.pidfd, rustix::process::Signal::KILL);
        let _ = sys::wait(self.keeper.pid);
    }
}

fn stuck(why: &str) -> Diagnostic {
    Diagnostic::error("what a step sent did not get out of its network").caused_by(why).hint("run the build again")
}

fn impossible(reasons: &[String], hints: Vec<String>) -> Diagnostic {
    let warning = Diagnostic::error("steps are on the network of the host: a private one has no way out");
    Diagnostic { hints, ..warning.caused_by(reasons.join("; ")) }
}
