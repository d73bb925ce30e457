//! A step as the spawner knows it, from its fork to its answer.
//!
//! ```text
//! forked ── Mounted ── Filtered ── (exec) ─┬───────────────────────────────▶ its end ─┬─▶ answer
//!                                          └─ first question ─▶ supervisor ──▶ end ───┘
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Signal;

use super::mount_point::Stub;
use super::protocol::{self, Answer, Failure, Report};
use super::supervisor::{self, Home, Supervisor};
use super::template::{Prepared, Template};
use crate::diag::{Context, Diagnostic, Result};
use crate::sys::{self, Child, Waited};

pub struct Running {
    child: Child,
    /// What the step mounts: the last descriptors of these are closed after its answer.
    prepared: Prepared,
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
    pub fn new(child: Child, reports: OwnedFd, prepared: Prepared, reply: OwnedFd) -> Self {
        Self {
            child,
            prepared,
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
                self.listener = None;
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

    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, signal);
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
        let failed = |failure: Failure| answer(&self.reply, &Answer::Failed(failure), None);
        match (self.failure, self.waited, skeleton) {
            (Some(failure), ..) => failed(failure),
            (None, Some(Err(failure)), _) => failed(failure.into()),
            (None, Some(Ok(waited)), Some(skeleton)) => {
                let cpu_us = u64::try_from(waited.cpu.as_micros()).unwrap_or(u64::MAX);
                let ended = Answer::Ended { status: waited.status, cpu_us, peak_bytes: waited.peak_bytes };
                answer(&self.reply, &ended, Some(skeleton));
            }
            (None, ..) => failed(Diagnostic::error("the container was killed before it started").into()),
        }
    }
}

/// Answers a request.
pub fn answer(reply: &OwnedFd, answer: &Answer, skeleton: Option<BorrowedFd<'_>>) {
    // Who does not wait any more needs no answer.
    let _ = protocol::send(reply.as_fd(), &protocol::encode(answer), skeleton.as_slice());
}
