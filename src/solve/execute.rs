//! Doing what the cache does not know: run a container, copy files, make a directory.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::copy::landing;
use super::devices::Granted;
use super::held::Held;
use super::input::Read;
use super::pending::Made;
use super::relief::Lowers;
use super::wreck::Wreck;
use super::{Keyed, Solver, Stack};
use crate::container::{
    self, Container, Exit, Footing, Given, Ground, Moment, Mount, MountKind, Status, Worker, passwd,
};
use crate::context::{EntryKind, Form};
use crate::copy;
use crate::diag::{Context as _, Diagnostic, Result};
use crate::layer::{self, Links, Shift};
use crate::location;
use crate::plan::{Input, Located, Op, Root, Run, RunMount, RunMountKind, Security, Sharing, StepId};
use crate::progress::{self, Event, Number, Usage, units};
use crate::store::{Draft, MountLock};

/// What a container left besides its draft.
pub(super) struct Ran {
    /// What stood below all layers to offer mount points.
    pub skeleton: OwnedFd,
    pub usage: Usage,
}

/// The most of a secret that is handed to a step (BuildKit's limit).
const SECRET_LIMIT_BYTES: u64 = 500 * 1024;

/// Where ssh looks for its agent.
const AGENT_VARIABLE: &str = "SSH_AUTH_SOCK";

/// How running a step ended.
enum Attempt {
    Ran(Draft, Ran),
    /// Before it began: to be tried again on this.
    Unfit(Footing),
}

impl Solver<'_> {
    pub(super) fn execute(&self, id: StepId, number: Number, key: &mut Keyed) -> Result<(Made, Option<Usage>)> {
        let step = self.plan.step(id);
        let below = self.below(id);
        let draft = self.host.store.draft()?;
        let made = match &step.op {
            Op::Run(run) => {
                let (draft, ran) = self.run(id, number, run, &below, draft, key)?;
                let made = self.made(draft, &self.lowers(id, &below)?, Some(ran.skeleton.as_fd()), key)?;
                return Ok((made, Some(ran.usage)));
            }
            Op::Copy(copy) => self.execute_copy(id, copy, &below, draft, key)?,
            Op::Workdir(workdir) => {
                let made = self.execute_workdir(id, workdir, &below, draft, key);
                made.map_err(|error| match error.labels.is_empty() {
                    true => error.at(&step.source, step.span, ""),
                    false => error,
                })?
            }
            Op::From(Root::Directory(_)) => {
                self.land_all(key, &draft)?;
                self.made(draft, &self.lowers(id, &below)?, None, key)?
            }
            // Hits by nature: looking them up solves them.
            Op::From(_) | Op::Configure => unreachable!("metadata is never executed"),
        };
        Ok((made, None))
    }

    // ---- RUN

    /// Runs the container over `below` into `draft`. Returns that and what else the container left.
    fn run(
        &self,
        id: StepId,
        number: Number,
        run: &Run,
        below: &Stack,
        draft: Draft,
        key: &Keyed,
    ) -> Result<(Draft, Ran)> {
        let (mut below, mut draft, mut footing) = (below.clone(), draft, self.footing());
        loop {
            match self.run_on(footing, id, number, run, &below, draft, key)? {
                Attempt::Ran(draft, ran) => return Ok((draft, ran)),
                Attempt::Unfit(next) => {
                    (below, draft, footing) = (self.identified_below(id)?, self.host.store.draft()?, next);
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // One more than `run`, which calls it.
    fn run_on(
        &self,
        footing: Footing,
        id: StepId,
        number: Number,
        run: &Run,
        below: &Stack,
        draft: Draft,
        key: &Keyed,
    ) -> Result<Attempt> {
        let still = RefCell::new(self.still(below));
        let layers = self.layers_on(footing, below)?;
        let layer_paths: Vec<_> = layers.iter().map(|layer| layer.path.clone()).collect();
        let ground = match Ground::new(footing.rung, Worker::Step, &layer_paths, &draft, self.host.store) {
            Ok(ground) => ground,
            Err(failure) => return self.descend(footing, Worker::Step, failure).map(Attempt::Unfit),
        };
        let lowers = match ground.given() {
            Given::Root(_) | Given::Tree => Vec::new(),
            _ => self.step_lowers(footing, below)?,
        };
        let mut user = self.user(below, run.user.as_ref())?;
        let mut held = Held::default();
        let mut env = environment(run);
        let Granted { env: of_devices, mut mounts, groups } = self.devices(run)?;
        of_devices.iter().for_each(|(name, value)| set(&mut env, name, value));
        user.groups.extend(groups);
        for (place, mount) in run.mounts.iter().enumerate() {
            if let RunMountKind::Secret { id, env: Some(variable), is_required, .. } = &mount.kind {
                match self.secret(id, *is_required, mount)? {
                    Some(value) => set(&mut env, variable, &value_of(id, value, mount)?),
                    None => continue,
                }
                if mount.target.is_empty() {
                    continue;
                }
            }
            if let Some(kind) = self.mount(footing, place, mount, key, &mut held)? {
                if matches!(kind, MountKind::Socket { .. }) && !env.iter().any(|(name, _)| name == AGENT_VARIABLE) {
                    env.push((AGENT_VARIABLE.into(), mount.target.clone()));
                }
                mounts.push(Mount { target: mount.target.clone(), kind });
            }
        }
        for script in &run.heredocs {
            mounts.push(Mount {
                target: format!("/dev/pipes/{}", script.name),
                kind: MountKind::File { content: script.content.clone().into_bytes(), mode: 0o755, uid: 0, gid: 0 },
            });
        }
        if !env.iter().any(|(name, _)| name == "HOME") {
            env.push(("HOME".into(), user.home.clone()));
        }
        let container = Container {
            argv: run.argv.clone(),
            env,
            platform: run.platform.clone(),
            workdir: run.workdir.clone(),
            user,
            hostname: self.settings.hostname.clone(),
            extra_hosts: self.settings.extra_hosts.clone(),
            dns: self.settings.dns.clone(),
            network: run.network,
            security: run.security,
            lowers,
            draft: ground.path(&draft),
            ground: ground.given(),
            mounts,
            shm_size_bytes: self.settings.shm_size_bytes,
            ulimits: self.settings.ulimits.clone(),
            limits: self.settings.limits.clone(),
            timeout: self.settings.timeout,
            tells_when_mounted: below.is_unidentified(),
        };
        let step = self.plan.step(id);
        let mut output = progress::Output::new(self.host.reporter, number);
        let failed = |failure: Diagnostic, held, draft, ground| {
            // Whoever looks at it has all the time.
            let container = Container { timeout: None, tells_when_mounted: false, ..container.clone() };
            let moves = below.is_unidentified().then_some((id, footing));
            self.keep_wreck(Wreck { failure: failure.clone(), container, moves, draft, ground, mounts: held });
            failure
        };
        let meanwhile = |moment| match moment {
            Moment::Mounted => drop(still.take()),
            // Room for the next layer, unless there is none to come.
            Moment::Asked => {
                if self.plan.steps[id.0 + 1..].iter().any(|later| !matches!(later.op, Op::From(_) | Op::Configure)) {
                    self.host.store.stock();
                }
            }
        };
        let executed = self.host.executor.execute(&container, &mut output, &meanwhile);
        drop(still.take());
        let exit = match executed {
            Ok(exit) => exit,
            Err(error) => match self.descend(footing, Worker::Step, error) {
                Ok(next) => return Ok(Attempt::Unfit(next)),
                Err(error) if error.labels.is_empty() => {
                    return Err(failed(error.at(&step.source, step.span, ""), held, draft, ground));
                }
                Err(error) => return Err(failed(error, held, draft, ground)),
            },
        };
        self.note_network(&exit);
        let (code, signal) = match exit.status {
            Status::Exited(code) => (Some(code), None),
            Status::Signaled(signal) => (None, Some(signal)),
        };
        let exited = progress::Exit { code, signal, usage: exit.usage };
        self.host.reporter.report(Event::Exited { number, exit: exited });
        if self.host.is_canceled() {
            // Also one that ended well: it may have been asked to end, and cut something short.
            return Err(Diagnostic::error("the step was canceled").at(&step.source, step.span, ""));
        }
        if exit.status != Status::Exited(0) {
            let mut failure = self.run_failed(id, run, &exit, &output.tail().lines());
            if ground.is_full() {
                failure = failure.hint("what it wrote did not fit into memory: keep the store where steps can write to it, with `--root DIR`");
            }
            return Err(failed(failure, held, draft, ground));
        }
        if let Some(out_of_memory) = exit.out_of_memory {
            let count = out_of_memory.kills;
            let killed = format!("processes of this step were killed ({count}), but it went on: {out_of_memory}");
            self.host.reporter.report(Event::Warning(&Diagnostic::warning("OutOfMemory", killed).at(
                &step.source,
                step.span,
                "",
            )));
        }
        let below: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
        ground.settle(&draft, &below, Some(exit.skeleton.as_fd()))?;
        Ok(Attempt::Ran(draft, Ran { skeleton: exit.skeleton, usage: exit.usage }))
    }

    fn run_failed(&self, id: StepId, run: &Run, exit: &Exit, tail: &[String]) -> Diagnostic {
        let step = self.plan.step(id);
        let command = location::redact(&run.argv.join(" ")).into_owned();
        let first_line = command.lines().next().unwrap_or_default().trim_end();
        let command = if first_line.len() < command.trim_end().len() { format!("{first_line} …") } else { command };
        let how = match exit.status {
            _ if exit.is_late => {
                let timeout = self.settings.timeout.unwrap_or_default();
                format!("it took longer than {} and was killed", units::exactly(timeout))
            }
            Status::Exited(code) => format!("exit code {code}"),
            Status::Signaled(signal) => format!("killed by {}", container::signal::name(signal)),
        };
        let how = match exit.out_of_memory {
            Some(out_of_memory) => format!("{how}, {out_of_memory}"),
            None => how,
        };
        let mut error =
            Diagnostic::error(format!("`{command}` did not complete: {how}")).at(&step.source, step.span, "");
        if !tail.is_empty() {
            error = error.caused_by(format!("the last lines of its output:\n{}", tail.join("\n")));
        }
        if self.host.store.is_full() {
            error = error.hint("the filesystem of the store is full: make room there, or use another with `--root`");
        }
        if run.security == Security::Insecure {
            error = error.hint(
                "an insecure step is root of a user namespace and not of this machine: disks, modules of the kernel and \
                 another `/proc` are out of its reach",
            );
        }
        match exit.status {
            _ if exit.is_late => error.hint("give it more time with `--timeout`"),
            _ if exit.out_of_memory.is_some_and(|memory| memory.limit_bytes.is_some()) => {
                error.hint("give it more with `--memory`")
            }
            Status::Exited(127) => error.hint("exit code 127 means that the command was not found in the image"),
            Status::Exited(126) => error.hint("exit code 126 means that the file cannot be executed"),
            _ => error,
        }
    }

    /// The container's mount for one `--mount`; `None` where there is nothing to mount (an absent
    /// optional secret). What lasts as long as the step goes to `held`.
    fn mount(
        &self,
        footing: Footing,
        place: usize,
        mount: &RunMount,
        key: &Keyed,
        held: &mut Held,
    ) -> Result<Option<MountKind>> {
        Ok(Some(match &mount.kind {
            RunMountKind::Bind { from, source, is_writable } => {
                self.bind(footing, from, source, !is_writable, key.reads.mounts.get(&place))?
            }
            RunMountKind::Cache { id, sharing, is_readonly, .. } => {
                let mut name = format!("{}/{id}", self.settings.cache_mount_namespace);
                if footing.has_shifted_layers {
                    // Its files belong to others.
                    name.push_str(" (shifted)");
                }
                let lock = match sharing {
                    Sharing::Shared => MountLock::Shared,
                    Sharing::Locked => MountLock::Exclusive,
                    Sharing::Private => MountLock::Private,
                };
                let cache = self.host.store.cache_mount(&name, lock, |dir| self.seed(footing, mount, dir))?;
                let root = cache.path.clone();
                held.caches.push(cache);
                MountKind::Bind { root, path: "/".into(), is_readonly: *is_readonly }
            }
            RunMountKind::Tmpfs { size_bytes } => MountKind::Tmpfs { size_bytes: *size_bytes },
            RunMountKind::Secret { id, is_required, mode, uid, gid, .. } => {
                match self.secret(id, *is_required, mount)? {
                    Some(content) => MountKind::File { content, mode: *mode, uid: *uid, gid: *gid },
                    None => return Ok(None),
                }
            }
            RunMountKind::Ssh { id, is_required, mode, uid, gid } => {
                let Some(agent) = self.host.agents.get(id) else {
                    if !*is_required {
                        return Ok(None);
                    }
                    return Err(Diagnostic::error(format!("the ssh agent `{id}` was not given to this build"))
                        .at(&mount.source, mount.span, "required here")
                        .hint(format!("add `--ssh {id}`")));
                };
                let path = held.forward(agent, self.host.store)?;
                MountKind::Socket { path, mode: *mode, uid: *uid, gid: *gid }
            }
        }))
    }

    fn bind(
        &self,
        footing: Footing,
        from: &Input,
        source: &str,
        is_readonly: bool,
        read: Option<&Read>,
    ) -> Result<MountKind> {
        if let Some(Read::Listed { opened, listing }) = read {
            // What the key was made from is what the step sees: a copy, made once for each content.
            let (layer, path) = self.listed_layer(&opened.tree, listing)?;
            let lowers = layer.iter().map(|layer| self.step_lower(footing, layer)).collect::<Result<_>>()?;
            return Ok(MountKind::Layers { lowers, path, is_readonly });
        }
        let stack = self.stack_of(from).unwrap_or_default();
        Ok(MountKind::Layers { lowers: self.step_lowers(footing, &stack)?, path: source.to_owned(), is_readonly })
    }

    /// What a new cache mount starts with.
    fn seed(&self, footing: Footing, mount: &RunMount, dir: &OwnedFd) -> Result<()> {
        let RunMountKind::Cache { from, source, mode, uid, gid, .. } = &mount.kind else { return Ok(()) };
        let mut looks = (0, 0, 0o755);
        if let Some(stack) = self.stack_of(from).filter(|stack| !stack.is_empty()) {
            let tree = self.rootfs_tree(from, &stack)?;
            let at = Located { text: source.to_owned(), source: Arc::clone(&mount.source), span: mount.span };
            let listing = self.select(&tree, &at, Form::Literal, &[], None)?;
            match footing.has_shifted_layers {
                false => copy::land(&tree, &listing, dir.as_fd(), &landing("/", self.host.now()))?,
                true => {
                    let draft = self.host.store.draft()?;
                    copy::land(&tree, &listing, draft.upper(), &landing("/", self.host.now()))?;
                    layer::transfer(draft.upper(), dir.as_fd(), Links::Kept, container::shift_of_steps())?;
                }
            }
            let first = listing.selections.first().and_then(|selection| selection.entries.first());
            if let Some(directory) = first.filter(|entry| entry.kind == EntryKind::Directory) {
                looks = (directory.uid, directory.gid, directory.mode);
            }
        }
        let shift = if footing.has_shifted_layers { container::shift_of_steps() } else { Shift::None };
        let (uid, gid) = (uid.unwrap_or(looks.0), gid.unwrap_or(looks.1));
        shift
            .id(uid)
            .and_then(|uid| layer::node::set_owner_of(dir, uid, shift.id(gid)?))
            .and_then(|()| rustix::fs::fchmod(dir, rustix::fs::Mode::from_raw_mode(mode.unwrap_or(looks.2))))
            .context(|| "cannot set the owner and mode of a new cache mount")
    }

    fn secret(&self, id: &str, is_required: bool, mount: &RunMount) -> Result<Option<Vec<u8>>> {
        match self.host.secrets.get(id) {
            Some(secret) => match secret.read(id, SECRET_LIMIT_BYTES) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(error.at(&mount.source, mount.span, "")),
            },
            None if is_required => Err(Diagnostic::error(format!("the secret `{id}` was not given to this build"))
                .at(&mount.source, mount.span, "required here")
                .hint(format!("add `--secret id={id},src=FILE`"))),
            None => Ok(None),
        }
    }

    // ---- users and owners

    /// Who a RUN runs as.
    fn user(&self, below: &Stack, user: Option<&Located>) -> Result<passwd::User> {
        let layers = self.layers.lowers(below)?;
        let layers: Vec<_> = layers.iter().map(|layer| layer.dir.as_fd()).collect();
        let spec = user.map_or("", |user| &user.text);
        passwd::user(&layers, spec).map_err(|error| locate(error, user))
    }

    /// Who `--chown` names, in what shows `/etc/passwd` and `/etc/group`.
    pub(super) fn owner(&self, lowers: &Lowers, chown: &Located) -> Result<(u32, u32)> {
        passwd::owner(&lowers.dirs(), &chown.text).or_else(|error| {
            // A user's build may lack no more than the right to read the file.
            self.host.store.enter()?;
            Err(locate(error, Some(chown)))
        })
    }
}

/// Gives a variable its value, in the place of an earlier one: a name that is there twice means different
/// things to different programs.
fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => value.clone_into(known),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

/// ENV, then ARGs, then proxies that nothing else set; the last value of a name counts.
fn environment(run: &Run) -> Vec<(String, String)> {
    let mut env = run.env.clone();
    for (name, value) in &run.args {
        set(&mut env, name, value);
    }
    for (name, value) in &run.proxies {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.clone(), value.clone()));
        }
    }
    env
}

/// A secret as the value of a variable.
fn value_of(id: &str, value: Vec<u8>, mount: &RunMount) -> Result<String> {
    let wrong = |why| {
        Diagnostic::error(format!("the secret `{id}` cannot be the value of a variable: {why}")).at(
            &mount.source,
            mount.span,
            "",
        )
    };
    match String::from_utf8(value) {
        Ok(text) if text.contains('\0') => Err(wrong("there is a NUL in it")),
        Ok(text) => Ok(text),
        Err(_) => Err(wrong("it is not UTF-8")),
    }
}

pub(super) fn locate(error: Diagnostic, at: Option<&Located>) -> Diagnostic {
    match at {
        Some(at) if error.labels.is_empty() => error.at(&at.source, at.span, ""),
        _ => error,
    }
}
