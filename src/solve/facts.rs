//! The facts of a step's key: everything its result depends on, by name.

use super::input::{Keeps, Read, Reads};
use super::relief::Lowers;
use super::{Keyed, Solver, Stack, Standing, standing};
use crate::cache::Facts;
use crate::container::passwd;
use crate::diag::Result;
use crate::plan::{Copy, CopyKind, CopySource, Network, Op, Root, Run, RunMountKind, Security, StepId, Workdir};
use crate::source;

/// Stands for a parent that is not solved yet, in an explanation.
pub(super) const UNKNOWN: &str = "unknown";

impl Solver<'_> {
    /// `parent`: the layers below; `None` in an explanation, when they are not known.
    pub(super) fn facts(&self, id: StepId, parent: Option<&Stack>, keeps: Keeps) -> Result<Keyed> {
        let step = self.plan.step(id);
        let parent_fact = match (standing(&step.op), parent) {
            (Standing::Alone, _) => Stack::default().fact(),
            (Standing::OnStack, Some(stack)) => stack.fact(),
            (Standing::OnStack, None) => UNKNOWN.to_owned(),
        };
        let mut reads = Reads::default();
        let mut facts = Facts::new(&parent_fact, op_fact(&step.op).unwrap_or_default());
        match &step.op {
            Op::Run(run) => self.run_facts(&mut facts, run, keeps, &mut reads)?,
            Op::Copy(copy) => {
                let keeps = if self.may_leave_unread(id, copy)? { Keeps::Surveys } else { keeps };
                self.copy_facts(&mut facts, copy, parent, keeps, &mut reads)?;
            }
            Op::Workdir(Workdir { user, .. }) => facts.add("user", user.as_ref().map_or("", |user| &user.text)),
            Op::From(Root::Directory(name)) => {
                let input = crate::plan::Input::Directory(name.clone());
                let digest = self.read_all(&input, keeps, &mut reads)?;
                facts.add("files", digest.to_string());
            }
            // These have no key: they cost nothing to do again.
            Op::From(_) | Op::Configure => {}
        }
        if let (Some(epoch), Op::Copy(_) | Op::Workdir(_) | Op::From(_)) = (self.host.epoch(), &step.op) {
            facts.add("epoch", epoch.to_string());
        }
        self.add_ordinal(&mut facts, id);
        Ok(Keyed { facts, reads })
    }

    /// A step that changes nothing leaves its parent as it was, so that an equal step after it
    /// would be taken for it: the ordinal tells them apart.
    fn add_ordinal(&self, facts: &mut Facts, id: StepId) {
        let op = facts.get("op");
        let mut equal = 0;
        let mut below = self.plan.step(id).parent;
        while let Some(id) = below
            && let Some(solved) = self.get(id)
            && !solved.made_layer
        {
            equal += usize::from(solved.idle_op.is_some() && solved.idle_op.as_deref() == op);
            below = self.plan.step(id).parent;
        }
        if equal > 0 {
            facts.add("ordinal", equal.to_string());
        }
    }

    fn run_facts(&self, facts: &mut Facts, run: &Run, keeps: Keeps, reads: &mut Reads) -> Result<()> {
        for (name, value) in &run.env {
            facts.add(format!("env {name}"), value);
        }
        for (name, value) in &run.args {
            facts.add(format!("arg {name}"), value);
        }
        facts.add("user", run.user.as_ref().map_or("", |user| &user.text));
        facts.add("workdir", &run.workdir);
        facts.add("platform", run.platform.to_string());
        facts.add("hostname", &self.settings.hostname);
        match run.network {
            Network::Default => {}
            Network::None => facts.add("network", "none"),
            Network::Host => facts.add("network", "host"),
        }
        match run.security {
            Security::Sandbox => {}
            Security::Insecure => facts.add("security", "insecure"),
        }
        for (name, _) in &self.settings.extra_hosts {
            facts.add(format!("host {name}"), "");
        }
        for (name, soft, hard) in &self.settings.ulimits {
            facts.add(format!("ulimit {name}"), format!("{soft}:{hard}"));
        }
        for script in &run.heredocs {
            facts.add(format!("heredoc {}", script.name), &script.content);
        }
        for device in &run.devices {
            facts.add(format!("device {}", device.name), if device.is_required { "required" } else { "" });
        }
        for (place, mount) in run.mounts.iter().enumerate() {
            let value = match &mount.kind {
                RunMountKind::Bind { from, source, is_writable } => {
                    let digest = self.read_mount(place, from, source, mount, keeps, reads)?;
                    format!("bind {}{digest}", if *is_writable { "rw " } else { "" })
                }
                // What a cache holds never decides a result.
                RunMountKind::Cache { is_readonly, .. } => {
                    format!("cache{}", if *is_readonly { " ro" } else { "" })
                }
                RunMountKind::Tmpfs { size_bytes } => match size_bytes {
                    Some(size) => format!("tmpfs {size}"),
                    None => "tmpfs".to_owned(),
                },
                RunMountKind::Secret { id, env, mode, uid, gid, .. } => {
                    format!("secret {id} {} {mode:o} {uid}:{gid}", env.as_deref().unwrap_or("-"))
                }
                RunMountKind::Ssh { id, .. } => format!("ssh {id}"),
            };
            facts.add(format!("mount {}", mount.target), value);
        }
        Ok(())
    }

    fn copy_facts(
        &self,
        facts: &mut Facts,
        copy: &Copy,
        parent: Option<&Stack>,
        keeps: Keeps,
        reads: &mut Reads,
    ) -> Result<()> {
        if let Some(chown) = &copy.chown {
            // The parent's passwd decides what a name means, and the parent is a fact; a layer of its
            // own has no parent, so it is keyed on the ids.
            let value = match (copy.is_link, parent) {
                (true, Some(stack)) => {
                    let lowers = match passwd::files_of_owner(&chown.text).next() {
                        Some(_) => self.layers.lowers(stack)?,
                        None => Vec::new(),
                    };
                    let (uid, gid) = self.owner(&Lowers::of(lowers), chown)?;
                    format!("{uid}:{gid}")
                }
                _ => chown.text.clone(),
            };
            facts.add("owner", value);
        }
        if let Some(chmod) = &copy.chmod {
            facts.add("mode", &chmod.text);
        }
        let digest = self.read_sources(copy, keeps, reads)?;
        let repositories = copy.sources.iter().zip(&reads.sources).filter_map(|(source, read)| match (source, read) {
            (CopySource::Git(git), Read::Git(commit)) => Some((git, commit)),
            _ => None,
        });
        for (place, (git, commit)) in repositories.enumerate() {
            let name = if place == 0 { "git".to_owned() } else { format!("git {}", place + 1) };
            facts.add(name, source::git_facts(&git.location, commit));
        }
        // With git they are not among the files that were listed.
        if copy.sources.iter().any(|source| matches!(source, CopySource::Git(_))) {
            for pattern in &copy.exclude {
                facts.add(format!("exclude {pattern}"), "");
            }
        }
        facts.add("files", digest.map_or_else(|| UNKNOWN.to_owned(), |digest| digest.to_string()));
        Ok(())
    }
}

/// The `op` of a step that has a key.
pub(super) fn op_fact(op: &Op) -> Option<String> {
    match op {
        Op::Run(run) => Some(run_op(run)),
        Op::Copy(copy) => Some(copy_op(copy)),
        Op::Workdir(Workdir { path, .. }) => Some(format!("WORKDIR {path}")),
        Op::From(Root::Directory(name)) => Some(format!("FROM {name}")),
        Op::From(_) | Op::Configure => None,
    }
}

fn run_op(run: &Run) -> String {
    format!("RUN {}", serde_json::Value::from(run.argv.clone()))
}

/// Without the sources: what they are called below their root decides nothing but the names they
/// land under, and those are among the files.
fn copy_op(copy: &Copy) -> String {
    let mut op = match copy.kind {
        CopyKind::Copy => "COPY".to_owned(),
        CopyKind::Add => "ADD".to_owned(),
    };
    if copy.is_link {
        op.push_str(" --link");
    }
    if copy.has_parents {
        op.push_str(" --parents");
    }
    if let Some(unpack) = copy.unpack {
        op.push_str(&format!(" --unpack={unpack}"));
    }
    op.push(' ');
    op.push_str(&copy.destination);
    op
}
