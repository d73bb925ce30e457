//! The spawner's life: takes requests, starts steps, waits for their ends. One thread and one poll;
//! everything slow is done in the steps' own processes, so that any number runs at once.
//!
//! It ends when the builder closes its socket, and every step with it, as it is PID 1 of their pid
//! namespace. It never changes its ids: the kernel would forget the parent-death signal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::CapabilitiesSecureBits;

use super::Container;
use super::cgroup::Group;
use super::mount_point::Stub;
use super::protocol::{self, Answer, Failure, KILL, REQUEST, Report, TERMINAL};
use super::step::{self, Streams};
use super::stop;
use super::template::{Prepared, Template};
use crate::diag::{Context, Diagnostic, Result};
use crate::progress::Usage;
use crate::sys::{self, Child};

/// A step from its fork to its answer.
struct Running {
    child: Child,
    /// What the step mounts: the last descriptors of these are closed after its answer.
    prepared: Prepared,
    deadline: Option<Instant>,
    /// It was killed because of that.
    is_late: bool,
    /// It was asked to end, and these have something to do before they do.
    listeners: Option<Vec<OwnedFd>>,
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
    let mut state = State { settled: settle(requests), template: None, running: Vec::new() };
    // The only other end is that the kernel refuses to wait, which closes the socket.
    while let Ok(true) = turn(requests, &mut state) {}
}

struct State {
    settled: Result<()>,
    template: Option<Template>,
    running: Vec<Running>,
}

/// Waits once and does what there is to do; whether there is a builder still.
fn turn(requests: &OwnedFd, state: &mut State) -> Result<bool> {
    let (requested, ready) = wait(requests.as_fd(), &state.running)?;
    for (step, events) in state.running.iter_mut().zip(ready) {
        if events.has_report {
            read_reports(step);
        }
        step.has_ended = events.has_ended;
        if !step.has_ended {
            end_in_time(step);
        }
    }
    for step in state.running.extract_if(.., |step| step.has_ended) {
        finish(step);
    }
    if requested {
        match protocol::receive(requests.as_fd()).context(|| "cannot receive a request")? {
            None => return Ok(false),
            Some((packet, fds)) => handle(&packet, fds, state),
        }
    }
    Ok(true)
}

struct Events {
    has_ended: bool,
    has_report: bool,
}

/// Sleeps until something happens: whether there is a request, and what of each step.
fn wait(requests: BorrowedFd<'_>, running: &[Running]) -> Result<(bool, Vec<Events>)> {
    let mut polled = vec![PollFd::from_borrowed_fd(requests, PollFlags::IN)];
    for step in running {
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
    // Only to be woken: who of them has ended is looked at later.
    let listeners = running.iter().filter_map(|step| step.listeners.as_ref()).flatten();
    polled.extend(listeners.map(|listener| PollFd::new(listener, PollFlags::IN)));
    let deadline = running.iter().filter_map(|step| step.deadline).min();
    let time_left = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // More than a poll can wait for is as good as for ever.
        Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
    });
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, time_left.as_ref()))
        .context(|| "cannot wait for steps")?;
    let happened = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let steps = polled[1..].chunks(2).take(running.len());
    let events = steps.map(|step| Events { has_ended: happened(&step[0]), has_report: happened(&step[1]) });
    Ok((happened(&polled[0]), events.collect()))
}

/// Kills a step whose time is over, or that was asked to end and has nobody who would still do
/// something about it.
fn end_in_time(step: &mut Running) {
    if step.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        step.deadline = None;
        step.is_late = true;
        kill(step);
    }
    if let Some(listeners) = &mut step.listeners {
        let has_ended = |listener: &OwnedFd| {
            let mut polled = [PollFd::new(listener, PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
        };
        listeners.retain(|listener| !has_ended(listener));
        if listeners.is_empty() {
            step.listeners = None;
            kill(step);
        }
    }
}

/// Ends the first process of a step, and so all of them.
fn kill(step: &Running) {
    let _ = rustix::process::pidfd_send_signal(&step.child.pidfd, Signal::KILL);
}

fn handle(packet: &[u8], fds: Vec<OwnedFd>, state: &mut State) {
    match (packet, <[OwnedFd; 3]>::try_from(fds)) {
        ([kind @ (REQUEST | TERMINAL)], Ok([container, output, reply])) => match begin(
            &container,
            if *kind == TERMINAL { Streams::Terminal(output) } else { Streams::Output(output) },
            state,
        ) {
            Ok((child, reports, prepared, timeout)) => state.running.push(Running {
                child,
                prepared,
                deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
                is_late: false,
                listeners: None,
                reports: Some(reports),
                reply,
                mounted: None,
                failure: None,
                has_ended: false,
            }),
            Err(failure) => answer(&reply, &Answer::Failed(failure.into()), None),
        },
        ([KILL, signal], _) => {
            let Some(signal) = Signal::from_named_raw(i32::from(*signal)) else { return };
            let Some(template) = &state.template else { return };
            for step in &mut state.running {
                if signal == Signal::KILL {
                    kill(step);
                } else {
                    step.listeners = Some(stop::ask(template.proc.as_fd(), step.child.pid, signal));
                    end_in_time(step);
                }
            }
        }
        // Not from our builder; whoever waits sees the reply socket close.
        _ => {}
    }
}

/// Its process, where it reports, what it uses, and how long it may take.
type Begun = (Child, OwnedFd, Prepared, Option<Duration>);

/// Forks the step's process.
fn begin(container: &OwnedFd, streams: Streams, state: &mut State) -> Result<Begun> {
    state.settled.clone()?;
    let container: Container = protocol::decode_from_memory(container)?;
    let template = &mut state.template;
    let template = match template {
        Some(template) => template,
        None => template.insert(Template::new()?),
    };
    let prepared = template.prepare(&container)?;
    let (reports, reporting) = protocol::pair()?;
    match sys::clone(step::NAMESPACES).context(|| "cannot make the namespaces of a container")? {
        Some(child) => {
            template.stock(container.shm_size_bytes);
            Ok((child, reports, prepared, container.timeout))
        }
        None => {
            drop(reports);
            step::run(&container, template, &prepared, &streams, &reporting)
        }
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
fn finish(mut step: Running) {
    read_reports(&mut step);
    let waited = sys::wait(step.child.pid).context(|| "cannot wait for a container");
    let mounted = step.mounted.as_mut();
    let skeleton = mounted.map(|mounted| {
        for stub in mounted.stubs.drain(..).rev() {
            stub.remove();
        }
        mounted.skeleton.as_fd()
    });
    let group = step.prepared.group.as_ref();
    let out_of_memory = group.and_then(Group::out_of_memory);
    match (step.failure, waited, skeleton) {
        (Some(failure), ..) => answer(&step.reply, &Answer::Failed(failure), None),
        (None, Err(failure), _) => answer(&step.reply, &Answer::Failed(failure.into()), None),
        (None, Ok(waited), Some(skeleton)) => {
            let usage = Usage {
                cpu_us: u64::try_from(waited.cpu.as_micros()).unwrap_or(u64::MAX),
                memory_bytes: waited.peak_bytes,
                read_bytes: waited.read_bytes,
                written_bytes: waited.written_bytes,
            };
            let ended = Answer::Ended {
                status: waited.status,
                usage: group.map_or(usage, |group| group.usage().max(usage)),
                out_of_memory,
                is_late: step.is_late,
            };
            answer(&step.reply, &ended, Some(skeleton));
        }
        (None, Ok(_), None) => {
            let failure = Diagnostic::error("the container was killed before it started");
            let failure = match out_of_memory {
                Some(out_of_memory) => failure.caused_by(out_of_memory.to_string()),
                None if step.is_late => failure.caused_by("its time was over"),
                None => failure,
            };
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
    sys::close_all_but(requests.as_fd()).context(doing)?;
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
