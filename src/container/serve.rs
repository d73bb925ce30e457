//! The spawner's life: takes requests, starts steps, waits for their ends. One thread and one poll;
//! everything slow is done in the steps' own processes or in that which makes networks, so that any
//! number runs at once.
//!
//! It ends when the builder closes its socket, and every step with it, as it is PID 1 of their pid
//! namespace. It never changes its ids: the kernel would forget the parent-death signal.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::CapabilitiesSecureBits;

use super::hosts::NameServers;
use super::mount_point::Stub;
use super::network::{self, Found, Kind, Lane, Memory, Networks};
use super::protocol::{self, Answer, EXPECT, Failure, KILL, REQUEST, Report, TERMINAL};
use super::step::{self, Streams};
use super::template::{self, Prepared, Template};
use super::{Container, Expectation};
use crate::diag::{Context, Diagnostic, Result};
use crate::plan::{Network, Security};
use crate::sys::{self, Child};

/// A step that was asked for and has no network yet.
struct Waiting {
    container: Container,
    streams: Streams,
    reply: OwnedFd,
}

/// A step from its fork to its answer.
struct Running {
    child: Child,
    /// What the step mounts: the last descriptors of these are closed after its answer.
    _prepared: Prepared,
    /// Given back at its end.
    lane: Option<Lane>,
    may_change_lane: bool,
    /// What its user is to know of its network.
    warning: Option<Diagnostic>,
    /// Open until exec.
    reports: Option<OwnedFd>,
    reply: OwnedFd,
    mounted: Option<Mounted>,
    failure: Option<Failure>,
    has_ended: bool,
}

/// What a step handed over.
struct Mounted {
    /// Held beyond the step's end, so that neither it nor its answer waits for the unmount.
    _overlay: OwnedFd,
    skeleton: OwnedFd,
    stubs: Vec<Stub>,
}

/// Turns a fresh fork of the builder into the spawner, until the builder is gone.
pub fn serve(requests: &OwnedFd) {
    // Where this fails no container can be; who asks for one is told.
    let mut state = State {
        settled: settle(requests),
        template: None,
        networks: None,
        waiting: VecDeque::new(),
        running: Vec::new(),
    };
    // The only other end is that the kernel refuses to wait, which closes the socket.
    while let Ok(true) = turn(requests, &mut state) {}
}

struct State {
    settled: Result<()>,
    template: Option<Template>,
    networks: Option<Networks>,
    /// In the order of their requests.
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
}

/// Waits once and does what there is to do; whether there is a builder still.
fn turn(requests: &OwnedFd, state: &mut State) -> Result<bool> {
    let (requested, has_news, ready) = wait(requests.as_fd(), state)?;
    for (step, events) in state.running.iter_mut().zip(ready) {
        if events.has_report {
            read_reports(step);
        }
        step.has_ended = events.has_ended;
    }
    let ended: Vec<_> = state.running.extract_if(.., |step| step.has_ended).collect();
    if has_news || !ended.is_empty() {
        // What is wrong with a step's network is said before the step can fail because of it.
        read_news(state);
    }
    for step in ended {
        finish(step, &mut state.networks);
    }
    if requested {
        match protocol::receive(requests.as_fd()).context(|| "cannot receive a request")? {
            None => return Ok(false),
            Some((packet, fds)) => handle(&packet, fds, state),
        }
    }
    begin_waiting(state);
    Ok(true)
}

struct Events {
    has_ended: bool,
    has_report: bool,
}

/// Sleeps until something happens: whether there is a request, news of networks, and what of each step.
fn wait(requests: BorrowedFd<'_>, state: &State) -> Result<(bool, bool, Vec<Events>)> {
    let networks = state.networks.as_ref().map(Networks::socket);
    let interest = if networks.is_some() { PollFlags::IN } else { PollFlags::empty() };
    let mut polled = vec![
        PollFd::from_borrowed_fd(requests, PollFlags::IN),
        PollFd::from_borrowed_fd(networks.unwrap_or(requests), interest),
    ];
    for step in &state.running {
        let pidfd = step.child.pidfd.as_fd();
        // A closed channel would be reported again and again: the pidfd, with no interest in it,
        // keeps its place.
        let (reports, interest) = match &step.reports {
            Some(reports) => (reports.as_fd(), PollFlags::IN),
            None => (pidfd, PollFlags::empty()),
        };
        polled.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
        polled.push(PollFd::from_borrowed_fd(reports, interest));
    }
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).context(|| "cannot wait for steps")?;
    let happened = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let events =
        polled[2..].chunks(2).map(|step| Events { has_ended: happened(&step[0]), has_report: happened(&step[1]) });
    Ok((happened(&polled[0]), networks.is_some() && happened(&polled[1]), events.collect()))
}

fn handle(packet: &[u8], fds: Vec<OwnedFd>, state: &mut State) {
    match (packet, <[OwnedFd; 3]>::try_from(fds)) {
        ([kind @ (REQUEST | TERMINAL)], Ok([container, output, reply])) => {
            match protocol::decode_from_memory(&container) {
                Ok(container) => {
                    let streams = if *kind == TERMINAL { Streams::Terminal(output) } else { Streams::Output(output) };
                    state.waiting.push_back(Waiting { container, streams, reply });
                }
                Err(failure) => answer(&reply, &Answer::Failed(failure.into()), None),
            }
        }
        ([EXPECT, expectation @ ..], _) => {
            // What goes wrong now goes wrong again when it is needed, and is told then.
            let _ = protocol::decode(expectation).and_then(|expectation| prepare(&expectation, state));
        }
        ([KILL, signal], _) => {
            let Some(signal) = Signal::from_named_raw(i32::from(*signal)) else { return };
            for waiting in state.waiting.drain(..) {
                let failure = Diagnostic::error("the step was stopped before it began");
                answer(&waiting.reply, &Answer::Failed(failure.into()), None);
            }
            for step in &state.running {
                let _ = rustix::process::pidfd_send_signal(&step.child.pidfd, signal);
            }
        }
        // Not from our builder; whoever waits sees the reply socket close.
        _ => {}
    }
}

fn prepare(expectation: &Expectation, state: &mut State) -> Result<()> {
    let (_, networks) = ready(state)?;
    if let Some(memory) = &expectation.memory {
        networks.remember(Memory::read(memory));
    }
    let name_servers = NameServers::find(&template::host_resolv_conf()?, &expectation.dns);
    networks.expect(Kind::Connected, expectation.lanes, name_servers);
    Ok(())
}

/// What steps have in common, made when the first is near.
fn ready(state: &mut State) -> Result<(&mut Template, &mut Networks)> {
    state.settled.clone()?;
    let template = match &mut state.template {
        Some(template) => template,
        none => none.insert(Template::new()?),
    };
    let networks = match &mut state.networks {
        Some(networks) => networks,
        none => {
            none.insert(Networks::start(template.proc.as_fd(), template.user_namespace.as_fd(), &template.mapping)?)
        }
    };
    Ok((template, networks))
}

/// Starts every step that can have its network now, the earliest first.
fn begin_waiting(state: &mut State) {
    for waiting in std::mem::take(&mut state.waiting) {
        let (lane, warning) = match lane_for(&waiting.container, state) {
            Ok(Found::Lane(lane)) => (Some(lane), None),
            Ok(Found::Never(network::Failure::Impossible(reason))) => (None, Some(reason)),
            Ok(Found::Host) => (None, None),
            Ok(Found::Later) => {
                state.waiting.push_back(waiting);
                continue;
            }
            Ok(Found::Never(network::Failure::Failed(failure))) | Err(failure) => {
                answer(&waiting.reply, &Answer::Failed(failure.into()), None);
                continue;
            }
        };
        begin(waiting, lane, warning, state);
    }
}

fn lane_for(container: &Container, state: &mut State) -> Result<Found> {
    let kind = match container.network {
        Network::Host => return Ok(Found::Host),
        Network::Default => Kind::Connected,
        Network::None => Kind::Alone,
    };
    let (_, networks) = ready(state)?;
    let found = networks.take(kind);
    if matches!(found, Found::Later) {
        let name_servers = NameServers::find(&template::host_resolv_conf()?, &container.dns);
        let waiting = 1 + state.waiting.iter().filter(|other| other.container.network == container.network).count();
        let (_, networks) = ready(state)?;
        networks.expect(kind, waiting, name_servers);
    }
    Ok(found)
}

/// Forks the step's process.
fn begin(waiting: Waiting, lane: Option<Lane>, warning: Option<Diagnostic>, state: &mut State) {
    let Waiting { container, streams, reply } = waiting;
    match fork(&container, lane.as_ref(), &streams, state) {
        Ok((child, reports, prepared)) => state.running.push(Running {
            child,
            _prepared: prepared,
            lane,
            may_change_lane: container.security == Security::Insecure,
            warning,
            reports: Some(reports),
            reply,
            mounted: None,
            failure: None,
            has_ended: false,
        }),
        Err(failure) => {
            if let (Some(networks), Some(lane)) = (&mut state.networks, lane) {
                let _ = networks.give_back(lane, false);
            }
            answer(&reply, &Answer::Failed(failure.into()), None);
        }
    }
}

fn fork(
    container: &Container,
    lane: Option<&Lane>,
    streams: &Streams,
    state: &mut State,
) -> Result<(Child, OwnedFd, Prepared)> {
    state.settled.clone()?;
    let template = match &mut state.template {
        Some(template) => template,
        none => none.insert(Template::new()?),
    };
    let prepared = template.prepare(container, lane)?;
    let (reports, reporting) = protocol::pair()?;
    match sys::clone(step::NAMESPACES).context(|| "cannot make the namespaces of a container")? {
        Some(child) => {
            template.stock(container.shm_size_bytes);
            Ok((child, reports, prepared))
        }
        None => {
            drop(reports);
            step::run(container, template, &prepared, lane, streams, &reporting)
        }
    }
}

/// Takes in what was said of networks.
fn read_news(state: &mut State) {
    if state.networks.as_mut().is_none_or(Networks::read_news) {
        return;
    }
    // With the process that makes networks, the ways out of those that there are have gone.
    state.networks = None;
    for waiting in state.waiting.drain(..) {
        let failure = Diagnostic::error("the process that makes networks has ended");
        answer(&waiting.reply, &Answer::Failed(failure.into()), None);
    }
}

/// Takes in what a step has said so far.
fn read_reports(step: &mut Running) {
    while let Some(reports) = &step.reports {
        match protocol::receive_now(reports.as_fd()) {
            Ok(Some((packet, fds))) => match protocol::decode(&packet) {
                Ok(Report::Mounted { stubs }) => {
                    let mut fds = fds.into_iter();
                    let (Some(overlay), Some(skeleton)) = (fds.next(), fds.next()) else { continue };
                    let mut made = Vec::new();
                    for record in stubs {
                        let (Some(parent), Some(entry)) = (fds.next(), fds.next()) else { break };
                        made.push(Stub { parent, entry, record });
                    }
                    step.mounted = Some(Mounted { _overlay: overlay, skeleton, stubs: made });
                }
                Ok(Report::Failed(failure)) => step.failure = Some(failure),
                Err(failure) => step.failure = Some(failure.into()),
            },
            Err(Errno::AGAIN) => return,
            // Closed by exec, or by the end of a process that never came to it.
            Ok(None) | Err(_) => step.reports = None,
        }
    }
}

/// Waits for a process that has ended, cleans up after it and answers.
fn finish(mut step: Running, networks: &mut Option<Networks>) {
    read_reports(&mut step);
    let waited = sys::wait(step.child.pid).context(|| "cannot wait for a container");
    let mut learned = None;
    if let Some(networks) = networks {
        if let Some(lane) = step.lane.take() {
            let stuck = networks.give_back(lane, step.may_change_lane);
            step.warning = stuck.or(step.warning);
        }
        learned = networks.learned();
    }
    let mounted = step.mounted.as_mut();
    let skeleton = mounted.map(|mounted| {
        for stub in mounted.stubs.drain(..).rev() {
            stub.remove();
        }
        mounted.skeleton.as_fd()
    });
    match (step.failure, waited, skeleton) {
        (Some(failure), ..) => answer(&step.reply, &Answer::Failed(failure), None),
        (None, Err(failure), _) => answer(&step.reply, &Answer::Failed(failure.into()), None),
        (None, Ok(waited), Some(skeleton)) => {
            let cpu_us = u64::try_from(waited.cpu.as_micros()).unwrap_or(u64::MAX);
            let ended = Answer::Ended {
                status: waited.status,
                cpu_us,
                peak_bytes: waited.peak_bytes,
                warning: step.warning.map(Failure::from),
                learned,
            };
            answer(&step.reply, &ended, Some(skeleton));
        }
        (None, Ok(_), None) => {
            let failure = Diagnostic::error("the container was killed before it started");
            answer(&step.reply, &Answer::Failed(failure.into()), None);
        }
    }
}

fn answer(reply: &OwnedFd, answer: &Answer, skeleton: Option<BorrowedFd<'_>>) {
    // Who does not wait any more needs no answer.
    let _ = protocol::send(reply.as_fd(), &protocol::encode(answer), skeleton.as_slice());
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
