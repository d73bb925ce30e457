//! The spawner's life: takes requests, starts steps, waits for their ends. One thread and one poll;
//! everything slow is done in the steps' own processes, so that any number runs at once.
//!
//! It ends when the builder closes its socket, and every step with it, as it is PID 1 of their pid
//! namespace. It never changes its ids: the kernel would forget the parent-death signal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::Signal;
use rustix::thread::CapabilitiesSecureBits;

use super::Container;
use super::protocol::{self, Answer, KILL, REQUEST, TERMINAL};
use super::running::{self, Begun, Event, Running};
use super::step::{self, Streams};
use super::template::Template;
use crate::diag::{Context, Result};
use crate::sys;

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
    let (requested, happened) = wait(requests.as_fd(), &state.running)?;
    for (index, event) in happened {
        state.running[index].take_in(event, state.template.as_ref());
    }
    state.running.iter_mut().for_each(Running::end_in_time);
    for step in state.running.extract_if(.., |step| step.is_over()) {
        step.finish();
    }
    if requested {
        match protocol::receive(requests.as_fd()).context(|| "cannot receive a request")? {
            None => return Ok(false),
            Some((packet, fds)) => handle(&packet, fds, state),
        }
    }
    Ok(true)
}

/// Sleeps until something happens: whether there is a request, and what of which step.
fn wait(requests: BorrowedFd<'_>, running: &[Running]) -> Result<(bool, Vec<(usize, Event)>)> {
    let mut polled = vec![PollFd::from_borrowed_fd(requests, PollFlags::IN)];
    let mut events = Vec::new();
    for (index, step) in running.iter().enumerate() {
        for (event, fd) in step.events() {
            polled.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            events.push((index, event));
        }
    }
    // Only to be woken: who of them has ended is looked at later.
    polled.extend(running.iter().flat_map(Running::stopping).map(|stopping| PollFd::new(stopping, PollFlags::IN)));
    let deadline = running.iter().filter_map(Running::deadline).min();
    let time_left = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // More than a poll can wait for is as good as for ever.
        Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
    });
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, time_left.as_ref()))
        .context(|| "cannot wait for steps")?;
    let has_happened = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let happened = events.into_iter().zip(&polled[1..]).filter(|(_, polled)| has_happened(polled));
    let happened = happened.map(|((index, event), polled)| match event {
        Event::Question if !polled.revents().contains(PollFlags::IN) => (index, Event::NoMoreQuestions),
        event => (index, event),
    });
    Ok((has_happened(&polled[0]), happened.collect()))
}

fn handle(packet: &[u8], fds: Vec<OwnedFd>, state: &mut State) {
    match (packet, <[OwnedFd; 3]>::try_from(fds)) {
        ([kind @ (REQUEST | TERMINAL)], Ok([container, output, reply])) => {
            let streams = if *kind == TERMINAL { Streams::Terminal(output) } else { Streams::Output(output) };
            match begin(&container, streams, state) {
                Ok(begun) => state.running.push(Running::new(begun, reply)),
                Err(failure) => running::answer(&reply, &Answer::Failed(failure.into()), None),
            }
        }
        ([KILL, signal], _) => {
            let Some(signal) = Signal::from_named_raw(i32::from(*signal)) else { return };
            let Some(template) = &state.template else { return };
            state.running.iter_mut().for_each(|step| step.stop(template.proc.as_fd(), signal));
        }
        // Not from our builder; whoever waits sees the reply socket close.
        _ => {}
    }
}

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
            Ok(Begun { child, reports, prepared, timeout: container.timeout })
        }
        None => {
            drop(reports);
            step::run(&container, template, &prepared, &streams, &reporting)
        }
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
