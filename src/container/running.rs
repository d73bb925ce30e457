//! A step as the spawner knows it, from its fork to its answer.
//!
//! ```text
//! forked ── Mounted ── Filtered ── (exec) ─┬───────────────────────────────▶ its end ─┬─▶ answer
//!                                          └─ first question ─▶ supervisor ──▶ end ───┘
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Signal;

use super::cgroup::Group;
use super::mount_point::Stub;
use super::protocol::{self, Answer, Failure, Report};
use super::stop;
use super::supervisor::{self, Credentials, Home, Supervisor, Table};
use super::template::{Prepared, Template};
use crate::diag::{Context, Diagnostic, Result};
use crate::progress::Usage;
use crate::sys::{self, Child, Waited};

pub struct Running {
    child: Child,
    /// What the step mounts: the last descriptors of these are closed after its answer.
    prepared: Prepared,
    deadline: Option<Instant>,
    /// It was killed because of that.
    is_late: bool,
    /// It was asked to end, and these have something to do before they do.
    stopping: Option<Vec<OwnedFd>>,
    /// Open until exec.
    reports: Option<OwnedFd>,
    reply: OwnedFd,
    mounted: Option<Mounted>,
    /// Until the filter's first question, which a supervisor answers.
    listener: Option<OwnedFd>,
    supervisor: Option<Child>,
    failure: Option<Failure>,
    /// How the process ended.
    waited: Option<Result<Waited>>,
}

/// A step that was forked.
pub struct Begun {
    pub child: Child,
    /// Where it reports.
    pub reports: OwnedFd,
    pub prepared: Prepared,
    pub timeout: Option<Duration>,
}

/// What a step handed over.
struct Mounted {
    /// Held beyond the step's end, so that neither it nor its answer waits for the unmount.
    overlay: OwnedFd,
    skeleton: OwnedFd,
    stubs: Vec<Stub>,
}

/// What of a step the spawner waits for.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Report,
    Question,
    /// All processes under the filter are gone.
    NoMoreQuestions,
    End,
    SupervisorEnd,
}

impl Running {
    pub fn new(begun: Begun, reply: OwnedFd) -> Self {
        let Begun { child, reports, prepared, timeout } = begun;
        Self {
            child,
            prepared,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            is_late: false,
            stopping: None,
            reports: Some(reports),
            reply,
            mounted: None,
            listener: None,
            supervisor: None,
            failure: None,
            waited: None,
        }
    }

    /// What may happen next, and the descriptors that become readable then.
    pub fn events(&self) -> impl Iterator<Item = (Event, BorrowedFd<'_>)> {
        let end = if self.waited.is_none() { Some(&self.child.pidfd) } else { None };
        let supervisor = self.supervisor.as_ref().map(|child| &child.pidfd);
        let events = [
            (Event::Report, self.reports.as_ref()),
            (Event::Question, self.listener.as_ref()),
            (Event::End, end),
            (Event::SupervisorEnd, supervisor),
        ];
        events.into_iter().filter_map(|(event, fd)| Some((event, fd?.as_fd())))
    }

    pub fn take_in(&mut self, event: Event, template: Option<&Template>) {
        match event {
            Event::Report => self.read_reports(),
            Event::Question => self.supervise(template),
            Event::NoMoreQuestions => self.listener = None,
            Event::End => {
                self.read_reports();
                self.waited = Some(sys::wait(self.child.pid).context(|| "cannot wait for a container"));
                (self.listener, self.deadline, self.stopping) = (None, None, None);
            }
            Event::SupervisorEnd => {
                if let Some(supervisor) = self.supervisor.take() {
                    let _ = sys::wait(supervisor.pid);
                }
            }
        }
    }

    /// Whether nothing works on its files any more, so that it can be answered for.
    pub fn is_over(&self) -> bool {
        self.waited.is_some() && self.supervisor.is_none()
    }

    /// When it is to be killed.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Processes that were asked to end and do something about it.
    pub fn stopping(&self) -> &[OwnedFd] {
        self.stopping.as_deref().unwrap_or_default()
    }

    /// Sends a signal to a step: it is killed, or asked to end.
    pub fn stop(&mut self, proc: BorrowedFd<'_>, signal: Signal) {
        if signal == Signal::KILL {
            self.kill();
        } else {
            self.stopping = Some(stop::ask(proc, self.child.pid, signal));
            self.end_in_time();
        }
    }

    /// Kills a step whose time is over, or that was asked to end and has nobody who would still do
    /// something about it.
    pub fn end_in_time(&mut self) {
        if self.waited.is_some() {
            return;
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.deadline = None;
            self.is_late = true;
            self.kill();
        }
        if let Some(stopping) = &mut self.stopping {
            let has_ended = |process: &OwnedFd| {
                let mut polled = [PollFd::new(process, PollFlags::IN)];
                rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
            };
            stopping.retain(|process| !has_ended(process));
            if stopping.is_empty() {
                self.stopping = None;
                self.kill();
            }
        }
    }

    /// Ends the first process, and so all of them.
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// Takes in what the step has said so far.
    fn read_reports(&mut self) {
        while let Some(reports) = &self.reports {
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
                        self.mounted = Some(Mounted { overlay, skeleton, stubs: made });
                    }
                    Ok(Report::Filtered) => self.listener = fds.into_iter().next(),
                    Ok(Report::Failed(failure)) => self.failure = Some(failure),
                    Err(failure) => self.failure = Some(failure.into()),
                },
                Err(Errno::AGAIN) => return,
                // Closed by exec, or by the end of a process that never came to it.
                Ok(None) | Err(_) => self.reports = None,
            }
        }
    }

    /// Forks the supervisor. Without one the filter's questions are answered with `ENOSYS`.
    fn supervise(&mut self, template: Option<&Template>) {
        let (Some(listener), Some(template), Some(mounted)) = (self.listener.take(), template, &self.mounted) else {
            return;
        };
        match sys::clone(0) {
            Ok(Some(child)) => self.supervisor = Some(child),
            Ok(None) => {
                let _ = self.answer_questions(&listener, template, mounted);
                sys::exit(0)
            }
            Err(_) => {}
        }
    }

    /// The supervisor's life.
    fn answer_questions(&self, listener: &OwnedFd, template: &Template, mounted: &Mounted) -> Result<()> {
        let doing = || "cannot answer a container's questions";
        let supervisor = Supervisor {
            listener: listener.as_fd(),
            step: self.child.pidfd.as_fd(),
            proc: template.proc.as_fd(),
            user_namespace: template.user_namespace.as_fd(),
            mapping: &template.mapping,
            layer: mounted.overlay.as_fd(),
            records: self.prepared.records,
            host_devices: &template.host_devices,
            table: Table::new(Credentials::of(&self.prepared.user)),
            home: Home::here().context(doing)?,
        };
        let Supervisor { listener, step, proc, user_namespace, layer, .. } = supervisor;
        let mut kept = vec![listener, step, proc, user_namespace, layer, supervisor.home.as_fd()];
        kept.extend(template.host_devices.iter().map(|device| device.mount.as_fd()));
        sys::close_all_but(&kept).context(doing)?;
        supervisor::run(&supervisor);
        Ok(())
    }

    /// Cleans up after the step and answers.
    pub fn finish(mut self) {
        let skeleton = self.mounted.as_mut().map(|mounted| {
            for stub in mounted.stubs.drain(..).rev() {
                stub.remove();
            }
            mounted.skeleton.as_fd()
        });
        let group = self.prepared.group.as_ref();
        let out_of_memory = group.and_then(Group::out_of_memory);
        let failed = |failure: Failure| answer(&self.reply, &Answer::Failed(failure), None);
        match (self.failure, self.waited, skeleton) {
            (Some(failure), ..) => failed(failure),
            (None, Some(Err(failure)), _) => failed(failure.into()),
            (None, Some(Ok(waited)), Some(skeleton)) => {
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
                    is_late: self.is_late,
                };
                answer(&self.reply, &ended, Some(skeleton));
            }
            (None, ..) => {
                let failure = Diagnostic::error("the container was killed before it started");
                let failure = match out_of_memory {
                    Some(out_of_memory) => failure.caused_by(out_of_memory.to_string()),
                    None if self.is_late => failure.caused_by("its time was over"),
                    None => failure,
                };
                failed(failure.into());
            }
        }
    }
}

/// Answers a request.
pub fn answer(reply: &OwnedFd, answer: &Answer, skeleton: Option<BorrowedFd<'_>>) {
    // Who does not wait any more needs no answer.
    let _ = protocol::send(reply.as_fd(), &protocol::encode(answer), skeleton.as_slice());
}
