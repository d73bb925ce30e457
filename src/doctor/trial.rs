//! Trials of what RUN and COPY take: real containers, and drafts that nobody keeps.

use std::cell::Cell;
use std::path::PathBuf;

use super::{Finding, Verdict, program};
use crate::container::entry::sysctl;
use crate::container::{
    self, Container, Dns, Exit, Footing, Given, Ground, Limits, Mount, MountKind, Status, Worker, passwd,
};
use crate::diag::{Diagnostic, Result};
use crate::ids;
use crate::image::platform::Platform;
use crate::plan::{Network, Security};
use crate::store::Store;

/// Where the program lies in a trial's container.
const PROGRAM: &str = "/program";

pub struct Trials<'a> {
    pub store: &'a Store,
    /// Runs a container; what it writes goes to the other.
    pub run: &'a Run<'a>,
    /// What containers stand on.
    pub footing: Cell<Footing>,
}

pub type Run<'a> = dyn Fn(&Container, &mut Vec<u8>) -> Result<Exit> + 'a;

impl Trials<'_> {
    /// A RUN with everything that is on by default.
    pub fn container(&self) -> Finding {
        match self.run(&self.sample()) {
            Ok(_) => {
                let ids = match (ids::are_the_hosts(), self.footing.get().has_shifted_layers) {
                    (true, false) => "; layers are mounted through a map of ids",
                    (true, true) => "; layers are copied for the ids of steps",
                    (false, _) => "",
                };
                Finding::good("containers", format!("a program has run as in a RUN{ids}"))
            }
            Err(error) => Finding::told("containers", Verdict::Bad, &error),
        }
    }

    pub fn networks(&self) -> Vec<Finding> {
        let (mut works, mut findings) = (Vec::new(), Vec::new());
        for (network, name) in [(Network::Default, "default"), (Network::None, "none"), (Network::Host, "host")] {
            let (verdict, told) = match self.run(&Container { network, ..self.sample() }) {
                Ok(None) => {
                    works.push(format!("`{name}`"));
                    continue;
                }
                Ok(Some(warning)) => (Verdict::Note, warning),
                Err(error) => (Verdict::Bad, error),
            };
            let mut finding = Finding::told("network", verdict, &told);
            finding.what = format!("`--network={name}`: {}", finding.what);
            findings.push(finding);
        }
        if !works.is_empty() {
            findings.insert(0, Finding::good("network", format!("`--network` {} work", works.join(", "))));
        }
        findings
    }

    /// That calls are filtered the trial of a container has shown; this is what else filters can do here.
    pub fn filters(&self) -> Finding {
        let actions = sysctl("kernel.seccomp.actions_avail").unwrap_or_default();
        match actions.split_whitespace().any(|action| action == "user_notif") {
            true => Finding::good("seccomp", "calls of steps are filtered, and can be answered by the builder"),
            false => {
                Finding::of("seccomp", Verdict::Note, "calls of steps are filtered, but not answered by the builder")
                    .cure("a kernel of Linux 5.0 or later")
            }
        }
    }

    /// Each kind of limit by itself; those that fail for one reason are told of together.
    pub fn limits(&self) -> Vec<Finding> {
        let mut works = Vec::new();
        let mut failures: Vec<(Vec<&str>, Diagnostic)> = Vec::new();
        for (name, limits) in limits() {
            match self.run(&Container { limits, ..self.sample() }) {
                Ok(_) => works.push(name),
                Err(error) => match failures.iter_mut().find(|(_, known)| known.cause == error.cause) {
                    Some((names, _)) => names.push(name),
                    None => failures.push((vec![name], error)),
                },
            }
        }
        let mut findings = Vec::new();
        if !works.is_empty() {
            let groups = container::describe_cgroups();
            findings.push(Finding::good("limits", format!("{} by {groups}", works.join(", "))));
        }
        for (names, error) in failures {
            let mut finding = Finding::told("limits", Verdict::Note, &error);
            finding.what = format!("none of {}: {}", names.join(", "), finding.what);
            if finding.cures.is_empty() && !ids::are_the_hosts() {
                finding.cures.push("`systemd-run --user --scope wythe build …`, on a host with cgroup v2 only".into());
            }
            findings.push(finding);
        }
        findings
    }

    /// Which machines' programs run here.
    pub fn platforms(&self) -> Finding {
        let (mut works, mut lacks, mut cures) = (Vec::new(), Vec::new(), Vec::new());
        for architecture in program::architectures() {
            match self.run(&self.sample_for(architecture)) {
                Ok(_) => works.push(architecture),
                Err(error) => {
                    lacks.push(architecture);
                    cures.extend(error.hints);
                }
            }
        }
        cures.sort();
        cures.dedup();
        let what = format!("RUN works for {}", works.join(", "));
        if lacks.is_empty() {
            return Finding::good("platforms", what);
        }
        Finding { cures, ..Finding::of("platforms", Verdict::Note, format!("{what}; not for {}", lacks.join(", "))) }
    }

    pub(super) fn sample(&self) -> Container {
        self.sample_for(&Platform::host().architecture)
    }

    fn sample_for(&self, architecture: &str) -> Container {
        let content = program::of(architecture).unwrap_or_default();
        let file = MountKind::File { content, mode: 0o755, uid: 0, gid: 0 };
        Container {
            argv: vec![PROGRAM.into()],
            env: Vec::new(),
            platform: Platform::normalized("linux", architecture, None),
            workdir: "/".into(),
            user: passwd::User { home: "/".into(), ..passwd::User::default() },
            hostname: "doctor".into(),
            extra_hosts: Vec::new(),
            dns: Dns::default(),
            network: Network::default(),
            security: Security::default(),
            lowers: Vec::new(),
            draft: PathBuf::new(),
            ground: Given::default(),
            mounts: vec![Mount { target: PROGRAM.into(), kind: file }],
            shm_size_bytes: 64 << 20,
            ulimits: Vec::new(),
            limits: Limits::default(),
            timeout: None,
            tells_when_mounted: false,
        }
    }

    /// What a build would be warned of.
    fn run(&self, container: &Container) -> Result<Option<Diagnostic>> {
        let draft = self.store.draft()?;
        let ground = Ground::new(self.footing.get().rung, Worker::Step, &[], &draft, self.store)?;
        self.run_there(&Container { draft: ground.path(&draft), ground: ground.given(), ..container.clone() })
    }

    /// The same in a draft that it has already.
    pub(super) fn run_there(&self, container: &Container) -> Result<Option<Diagnostic>> {
        let mut output = Vec::new();
        let exit = (self.run)(container, &mut output)?;
        if exit.status == Status::Exited(0) {
            return Ok(exit.warning);
        }
        let said = String::from_utf8_lossy(&output);
        let error = Diagnostic::error("a program in a container did not end well");
        Err(match (exit.status, said.trim()) {
            (Status::Signaled(signal), _) => error.caused_by(format!("signal {signal}")),
            (Status::Exited(code), "") => error.caused_by(format!("exit code {code}")),
            (Status::Exited(_), said) => error.caused_by(said),
        })
    }
}

/// Limits that hinder nothing, one of each kind.
fn limits() -> [(&'static str, Limits); 5] {
    let none = Limits::default;
    [
        ("memory", Limits { memory_bytes: Some(1 << 30), ..none() }),
        ("CPU time", Limits { cpu_shares: Some(1024), ..none() }),
        ("processors", Limits { cpuset_cpus: Some("0".into()), ..none() }),
        ("processes", Limits { pids: Some(1000), ..none() }),
        ("block I/O", Limits { io_weight: Some(500), ..none() }),
    ]
}
