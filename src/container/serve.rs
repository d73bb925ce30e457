//! The spawner's life: takes requests, starts steps, waits for their ends. One thread and one poll;
//! everything slow is done in the steps' own processes or in that which makes networks, so that any
//! number runs at once.
//!
//! It ends when the builder closes its socket, and every step with it, as it is PID 1 of their pid
//! namespace. It never changes its ids: the kernel would forget the parent-death signal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::CapabilitiesSecureBits;

use super::hosts::NameServers;
use super::network::{self, Found, Kind, Memory, Networks};
use super::protocol::{self, EXPECT, KILL, LEAVE, REQUEST, ROOM, ROOT, TERMINAL, TREE};
use super::realm::Realm;
use super::running::{self, Asked, Event, Running};
use super::step::Streams;
use super::template::{self, Template};
use super::{Container, Expectation, Given};
use crate::diag::{Context, Diagnostic, Result};
use crate::plan::Network;
use crate::sys;

/// Turns a fresh fork of the builder into the spawner, until the builder is gone.
pub fn serve(requests: &OwnedFd) {
    // Where this fails no container can be; who asks for one is told.
    let mut state = State {
        settled: settle(requests),
        realm: None,
        template: None,
        networks: None,
        waiting: VecDeque::new(),
        running: Vec::new(),
        is_left: false,
    };
    // The only other end is that the kernel refuses to wait, which closes the socket.
    while let Ok(true) = turn(requests, &mut state) {}
}

struct State {
    settled: Result<()>,
    realm: Option<Arc<Realm>>,
    template: Option<Template>,
    networks: Option<Networks>,
    /// For their networks, in the order of their requests.
    waiting: VecDeque<Asked>,
    running: Vec<Running>,
    /// No step comes any more.
    is_left: bool,
}

/// Waits once and does what there is to do; whether there is a builder still, and anything it may want.
fn turn(requests: &OwnedFd, state: &mut State) -> Result<bool> {
    let Woken { requested, has_news, events } = wait(requests.as_fd(), state)?;
    for (index, event) in events {
        state.running[index].take_in(event, state.template.as_ref());
    }
    state.running.iter_mut().for_each(Running::end_in_time);
    let ended: Vec<_> = state.running.extract_if(.., |step| step.is_over()).collect();
    if has_news || !ended.is_empty() {
        // What is wrong with a step's network is said before the step can fail because of it.
        read_news(state);
    }
    for step in ended {
        step.finish(&mut state.networks);
    }
    if requested {
        match protocol::receive(requests.as_fd()).context(|| "cannot receive a request")? {
            None => return Ok(false),
            Some((packet, fds)) => handle(&packet, fds, state),
        }
    }
    begin_waiting(state);
    Ok(!state.is_left || !state.waiting.is_empty() || !state.running.is_empty())
}

/// What ended a wait.
struct Woken {
    requested: bool,
    /// Of networks.
    has_news: bool,
    /// Of steps, by their index among the running ones.
    events: Vec<(usize, Event)>,
}

/// Sleeps until something happens.
fn wait(requests: BorrowedFd<'_>, state: &State) -> Result<Woken> {
    let networks = state.networks.as_ref().map(Networks::socket);
    let interest = if networks.is_some() { PollFlags::IN } else { PollFlags::empty() };
    let mut polled = vec![
        PollFd::from_borrowed_fd(requests, PollFlags::IN),
        PollFd::from_borrowed_fd(networks.unwrap_or(requests), interest),
    ];
    let mut events = Vec::new();
    for (index, step) in state.running.iter().enumerate() {
        for (event, fd) in step.events() {
            polled.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            events.push((index, event));
        }
    }
    // Only to be woken: who of them has ended is looked at later.
    let listeners = state.running.iter().flat_map(Running::listeners);
    polled.extend(listeners.map(|listener| PollFd::new(listener, PollFlags::IN)));
    let deadline = state.running.iter().filter_map(Running::deadline).min();
    let time_left = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // More than a poll can wait for is as good as for ever.
        Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
    });
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, time_left.as_ref()))
        .context(|| "cannot wait for steps")?;
    let has_happened = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let happened = events.into_iter().zip(&polled[2..]).filter(|(_, polled)| has_happened(polled));
    let happened = happened.map(|((index, event), polled)| match event {
        Event::Question if !polled.revents().contains(PollFlags::IN) => (index, Event::NoMoreQuestions),
        event => (index, event),
    });
    Ok(Woken {
        requested: has_happened(&polled[0]),
        has_news: networks.is_some() && has_happened(&polled[1]),
        events: happened.collect(),
    })
}

fn handle(packet: &[u8], mut fds: Vec<OwnedFd>, state: &mut State) {
    let given = fds.drain(fds.len().min(3)..).next().map(Arc::new);
    match (packet, <[OwnedFd; 3]>::try_from(fds)) {
        ([kind @ (REQUEST | TERMINAL), ground @ ..], Ok([container, output, reply])) => {
            match protocol::decode_from_memory::<Container>(&container) {
                Ok(container) => {
                    let ground = match (ground, given) {
                        ([ROOM], Some(room)) => Given::Room(room),
                        ([ROOT], Some(root)) => Given::Root(root),
                        ([TREE], None) => Given::Tree,
                        _ => Given::Nothing,
                    };
                    let container = Container { ground, ..container };
                    let streams = if *kind == TERMINAL { Streams::Terminal(output) } else { Streams::Output(output) };
                    state.waiting.push_back(Asked { container, streams, reply });
                }
                Err(failure) => running::fail(&reply, failure),
            }
        }
        ([EXPECT, expectation @ ..], _) => {
            // What goes wrong now goes wrong again when it is needed, and is told then.
            let _ = protocol::decode(expectation).and_then(|expectation| prepare(&expectation, state));
        }
        ([LEAVE], _) => state.is_left = true,
        ([KILL, signal], _) => {
            let Some(signal) = Signal::from_named_raw(i32::from(*signal)) else { return };
            for asked in state.waiting.drain(..) {
                asked.fail(Diagnostic::error("the step was stopped before it began"));
            }
            let Some(template) = &state.template else { return };
            for step in &mut state.running {
                step.signal(template.realm.proc.as_fd(), signal);
            }
        }
        // Not from our builder; whoever waits sees the reply socket close.
        _ => {}
    }
}

fn prepare(expectation: &Expectation, state: &mut State) -> Result<()> {
    let networks = networks(state)?;
    if let Some(memory) = &expectation.memory {
        networks.remember(Memory::read(memory));
    }
    let name_servers = NameServers::find(&template::host_resolv_conf()?, &expectation.dns);
    networks.expect(Kind::Connected, expectation.lanes, name_servers);
    // While those are made by another process.
    template(state)?.expect(expectation.shm_size_bytes);
    Ok(())
}

/// Made when the first step is near.
fn realm(state: &mut State) -> Result<Arc<Realm>> {
    state.settled.clone()?;
    Ok(match &state.realm {
        Some(realm) => Arc::clone(realm),
        None => Arc::clone(state.realm.insert(Arc::new(Realm::new()?))),
    })
}

fn networks(state: &mut State) -> Result<&mut Networks> {
    let realm = realm(state)?;
    Ok(match &mut state.networks {
        Some(networks) => networks,
        none => none.insert(Networks::start(realm.proc.as_fd(), realm.user_namespace.as_fd(), &realm.mapping)?),
    })
}

fn template(state: &mut State) -> Result<&mut Template> {
    let realm = realm(state)?;
    Ok(match &mut state.template {
        Some(template) => template,
        none => none.insert(Template::new(realm)?),
    })
}

/// Starts every step that can have its network now, the earliest first.
fn begin_waiting(state: &mut State) {
    for asked in std::mem::take(&mut state.waiting) {
        let (lane, warning) = match lane_for(&asked.container, state) {
            Ok(Found::Lane(lane)) => (Some(lane), None),
            Ok(Found::Never(network::Failure::Impossible(reason))) => (None, Some(reason)),
            Ok(Found::Host) => (None, None),
            Ok(Found::Later) => {
                state.waiting.push_back(asked);
                continue;
            }
            Ok(Found::Never(network::Failure::Failed(failure))) | Err(failure) => {
                asked.fail(failure);
                continue;
            }
        };
        let forked = template(state).and_then(|template| asked.fork(template, lane.as_ref()));
        match forked {
            Ok(forked) => state.running.push(Running::new(asked, forked, lane, warning)),
            Err(failure) => {
                if let (Some(networks), Some(lane)) = (&mut state.networks, lane) {
                    let _ = networks.give_back(lane, false);
                }
                asked.fail(failure);
            }
        }
    }
}

fn lane_for(container: &Container, state: &mut State) -> Result<Found> {
    let kind = match container.network {
        Network::Host => return Ok(Found::Host),
        Network::Default => Kind::Connected,
        Network::None => Kind::Alone,
    };
    let found = networks(state)?.take(kind);
    if matches!(found, Found::Later) {
        let name_servers = NameServers::find(&template::host_resolv_conf()?, &container.dns);
        let waiting = 1 + state.waiting.iter().filter(|other| other.container.network == container.network).count();
        networks(state)?.expect(kind, waiting, name_servers);
    }
    Ok(found)
}

/// Takes in what was said of networks.
fn read_news(state: &mut State) {
    if state.networks.as_mut().is_none_or(Networks::read_news) {
        return;
    }
    // With the process that makes networks, the ways out of those that there are have gone.
    state.networks = None;
    for asked in state.waiting.drain(..) {
        asked.fail(Diagnostic::error("the process that makes networks has ended"));
    }
}

fn settle(requests: &OwnedFd) -> Result<()> {
    let doing = || "cannot set up the spawner";
    // The builder may have died before this was set; then its end of the socket is closed, which
    // ends the first poll.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context(doing)?;
    // Signals of the terminal are for the builder to judge. As PID 1 the spawner ignores all that
    // it has no handler for, and steps inherit the default actions.
    rustix::process::setsid().context(doing)?;
    sys::reset_signals();
    sys::close_all_but(&[requests.as_fd()]).context(doing)?;
    // Whoever reads the builder's output must not have to wait for this process; standard error
    // is kept for our own bugs.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(doing)?;
    rustix::stdio::dup2_stdin(&null).context(doing)?;
    rustix::stdio::dup2_stdout(&null).context(doing)?;
    // Later mounts of the host arrive here, none of ours gets out.
    sys::enter_new_mount_namespace().context(doing)?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).context(doing)?;
    // Modes are meant as they are written.
    rustix::process::umask(Mode::empty());
    // Steps make files as root inside while they still have the host's capabilities.
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP).context(doing)
}
