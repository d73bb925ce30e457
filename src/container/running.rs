//! A step that runs, as the spawner has it: from its fork to its answer.
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

use super::Container;
use super::binfmt;
use super::cgroup::Group;
use super::mount_point::Stub;
use super::network::{Lane, Networks};
use super::protocol::{self, Answer, Failure, Report};
use super::step::{self, Streams};
use super::stop;
use super::supervisor::{self, Credentials, Home, Supervisor, Table};
use super::template::{Prepared, Template};
use crate::diag::{Context, Diagnostic, Result};
use crate::layer::Records;
use crate::plan::Security;
use crate::progress::Usage;
use crate::sys::{self, Child, Waited};

/// A step that is asked for.
pub struct Asked {
    pub container: Container,
    pub streams: Streams,
    pub reply: OwnedFd,
}

/// A step from its fork to its answer.
pub struct Running {
    child: Child,
    /// What the step mounts: the last descriptors of these are closed after its answer.
    prepared: Prepared,
    /// Given back at its end.
    lane: Option<Lane>,
    may_change_lane: bool,
    /// What its user is to know of its network.
    warning: Option<Diagnostic>,
    /// Until exec, from which on it counts.
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    /// It was killed because of that.
    is_late: bool,
    /// It was asked to end, and these have something to do before they do.
    listeners: Option<Vec<OwnedFd>>,
    /// Open until exec.
    reports: Option<OwnedFd>,
    reply: OwnedFd,
    tells_when_mounted: bool,
    mounted: Option<Mounted>,
    /// Until the filter's first question, which a supervisor answers.
    questions: Option<OwnedFd>,
    supervisor: Option<Child>,
    failure: Option<Failure>,
    /// How the process ended.
    waited: Option<Result<Waited>>,
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

/// What a step handed over.
struct Mounted {
    /// Held beyond the step's end, so that neither it nor its answer waits for the unmount.
    overlay: OwnedFd,
    skeleton: OwnedFd,
    /// As long as it is open the end of the last process does not wait for the kernel to undo its mounts.
    namespace: Option<OwnedFd>,
    stubs: Vec<Stub>,
}

impl Asked {
    /// Makes the step's process. `lane` is its network, the host's if `None`.
    pub fn fork(&self, template: &mut Template, lane: Option<&Lane>) -> Result<(Child, OwnedFd, Prepared)> {
        let prepared = template.prepare(&self.container, lane)?;
        let (reports, reporting) = protocol::pair()?;
        let doing = || "cannot make the namespaces of a container";
        // What a filter asks before exec the spawner answers. An older kernel takes a thread to name the layers, which
        // nobody may make in another's memory. And who runs out of a group's memory ends with all who share his own.
        let shares_memory = template.copies_detached && prepared.records != Records::Owners && prepared.group.is_none();
        let child = if shares_memory {
            let mut stack = template.take_stack()?;
            let life = || step::run(&self.container, template, &prepared, lane, &self.streams, &reporting);
            let child = sys::clone_sharing_memory(step::NAMESPACES, &mut stack, &life).context(doing)?;
            template.give_back(stack);
            child
        } else {
            match sys::clone(step::NAMESPACES).context(doing)? {
                Some(child) => child,
                None => step::run(&self.container, template, &prepared, lane, &self.streams, &reporting),
            }
        };
        template.stock(self.container.shm_size_bytes);
        Ok((child, reports, prepared))
    }

    /// Says that it does not run.
    pub fn fail(&self, failure: Diagnostic) {
        fail(&self.reply, failure);
    }
}

impl Running {
    /// `warning` is what is to be known of its network.
    pub fn new(
        asked: Asked,
        (child, reports, prepared): (Child, OwnedFd, Prepared),
        lane: Option<Lane>,
        warning: Option<Diagnostic>,
    ) -> Self {
        Self {
            child,
            prepared,
            lane,
            may_change_lane: asked.container.security == Security::Insecure,
            warning,
            timeout: asked.container.timeout,
            deadline: None,
            is_late: false,
            listeners: None,
            reports: Some(reports),
            reply: asked.reply,
            tells_when_mounted: asked.container.tells_when_mounted,
            mounted: None,
            questions: None,
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
            (Event::Question, self.questions.as_ref()),
            (Event::End, end),
            (Event::SupervisorEnd, supervisor),
        ];
        events.into_iter().filter_map(|(event, fd)| Some((event, fd?.as_fd())))
    }

    pub fn take_in(&mut self, event: Event, template: Option<&Template>) {
        match event {
            Event::Report => self.read_reports(),
            Event::Question => self.supervise(template),
            Event::NoMoreQuestions => self.questions = None,
            Event::End => {
                self.read_reports();
                self.waited = Some(sys::wait(self.child.pid).context(|| "cannot wait for a container"));
                (self.questions, self.deadline, self.listeners) = (None, None, None);
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

    /// Takes in what a step has said so far.
    fn read_reports(&mut self) {
        while let Some(reports) = &self.reports {
            match protocol::receive_now(reports.as_fd()) {
                Ok(Some((packet, fds))) => match protocol::decode(&packet) {
                    Ok(Report::Mounted { stubs }) => {
                        let mut fds = fds.into_iter();
                        let [Some(overlay), Some(skeleton), Some(namespace)] = [fds.next(), fds.next(), fds.next()]
                        else {
                            continue;
                        };
                        let mut made = Vec::new();
                        for record in stubs {
                            let (Some(parent), Some(entry)) = (fds.next(), fds.next()) else { break };
                            made.push(Stub { parent, entry, record });
                        }
                        if self.tells_when_mounted {
                            answer(&self.reply, &Answer::Mounted, None);
                        }
                        self.mounted = Some(Mounted { overlay, skeleton, namespace: Some(namespace), stubs: made });
                    }
                    Ok(Report::Filtered) => self.questions = fds.into_iter().next(),
                    Ok(Report::Failed { failure, machine }) => {
                        // The step has left the host's files, which say what is missing.
                        let failure = Diagnostic::from(failure);
                        let hint = machine.and_then(binfmt::hint);
                        self.failure = Some(hint.into_iter().fold(failure, Diagnostic::hint).into());
                    }
                    Err(failure) => self.failure = Some(failure.into()),
                },
                Err(Errno::AGAIN) => return,
                // Closed by exec, or by the end of a process that never came to it.
                Ok(None) | Err(_) => {
                    self.reports = None;
                    self.deadline = self.timeout.take().and_then(|timeout| Instant::now().checked_add(timeout));
                }
            }
        }
    }

    /// Forks the supervisor. Without one the filter's questions are answered with `ENOSYS`.
    fn supervise(&mut self, template: Option<&Template>) {
        let (Some(listener), Some(template), Some(mounted)) = (self.questions.take(), template, &self.mounted) else {
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
            proc: template.realm.proc.as_fd(),
            user_namespace: template.realm.user_namespace.as_fd(),
            mapping: &template.realm.mapping,
            layer: mounted.overlay.as_fd(),
            records: self.prepared.records,
            table: Table::new(Credentials::of(&self.prepared.user)),
            home: Home::here().context(doing)?,
        };
        let Supervisor { listener, step, proc, user_namespace, layer, .. } = supervisor;
        let kept = [listener, step, proc, user_namespace, layer, supervisor.home.as_fd()];
        sys::close_all_but(&kept).context(doing)?;
        supervisor::run(&supervisor);
        Ok(())
    }

    /// When its time is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whose ends are waited for.
    pub fn listeners(&self) -> &[OwnedFd] {
        self.listeners.as_deref().unwrap_or_default()
    }

    /// Asks it to end, or ends it.
    pub fn signal(&mut self, proc: BorrowedFd<'_>, signal: Signal) {
        if signal == Signal::KILL {
            self.kill();
        } else {
            self.listeners = Some(stop::ask(proc, self.child.pid, signal));
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
        if let Some(listeners) = &mut self.listeners {
            let has_ended = |listener: &OwnedFd| {
                let mut polled = [PollFd::new(listener, PollFlags::IN)];
                rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
            };
            listeners.retain(|listener| !has_ended(listener));
            if listeners.is_empty() {
                self.listeners = None;
                self.kill();
            }
        }
    }

    /// Ends the first process of a step, and so all of them.
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, Signal::KILL);
    }

    /// Cleans up after a step that is over, and answers.
    pub fn finish(mut self, networks: &mut Option<Networks>) {
        let mut learned = None;
        if let Some(networks) = networks {
            if let Some(lane) = self.lane.take() {
                let stuck = networks.give_back(lane, self.may_change_lane);
                self.warning = stuck.or(self.warning);
            }
            learned = networks.learned();
        }
        let mounted = self.mounted.as_mut();
        let skeleton = mounted.map(|mounted| {
            if !mounted.stubs.is_empty() {
                // What is mounted on them would be taken for somebody else's.
                mounted.namespace = None;
            }
            for stub in mounted.stubs.drain(..).rev() {
                stub.remove();
            }
            mounted.skeleton.as_fd()
        });
        let group = self.prepared.group.as_ref();
        let out_of_memory = group.and_then(Group::out_of_memory);
        match (self.failure, self.waited, skeleton) {
            (Some(failure), ..) => answer(&self.reply, &Answer::Failed(failure), None),
            (None, Some(Err(failure)), _) => answer(&self.reply, &Answer::Failed(failure.into()), None),
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
                    warning: self.warning.map(Failure::from),
                    learned,
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
                answer(&self.reply, &Answer::Failed(failure.into()), None);
            }
        }
    }
}

/// Says that what was asked for does not run.
pub fn fail(reply: &OwnedFd, failure: Diagnostic) {
    answer(reply, &Answer::Failed(failure.into()), None);
}

fn answer(reply: &OwnedFd, answer: &Answer, skeleton: Option<BorrowedFd<'_>>) {
    // Who does not wait any more needs no answer.
    let _ = protocol::send(reply.as_fd(), &protocol::encode(answer), skeleton.as_slice());
}
