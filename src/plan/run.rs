//! RUN: what is executed, with which environment and which mounts.

use std::sync::Arc;

use crate::diag::Diagnostic;
use crate::dockerfile::expand;
use crate::dockerfile::{self, Command, Flag, Heredoc, Instruction, Word};

use super::graph::Provider;
use super::mount::{self, Mount, Type};
use super::op::{HeredocFile, Input, Network, Op, Run, RunDevice, RunMount, RunMountKind, Security};
use super::stage::{Walk, split_variable};
use super::{device, path, scope, script, title};

impl Walk<'_> {
    pub(super) fn run(&mut self, instruction: &Instruction, run: &dockerfile::Run) -> Option<()> {
        let mounts = self.mounts(instruction, run);
        let network = self.network(instruction, run);
        let security = self.security(instruction, run);
        let devices = self.devices(instruction, run);
        let (argv, heredocs) = self.command(run);
        if argv.is_empty() {
            let fault = Diagnostic::error("this RUN has nothing to run");
            self.draft.faults.push(fault.at(&instruction.source, run.command_span, ""));
            return None;
        }
        self.warn_of_script(instruction, run);
        let (mounts, network, security) = (mounts?, network?, security?);
        let devices = devices?;

        let escape = self.graph.dockerfile.escape;
        let secrets: Vec<&str> = (mounts.iter())
            .filter_map(|mount| match &mount.kind {
                RunMountKind::Secret { env, .. } => env.as_deref(),
                _ => None,
            })
            .collect();
        let mut shown = title::command(&instruction.text, escape, &self.state.scope, &secrets);
        if let Some(script) = run.script() {
            shown += &title::summary(&script.body, escape, &self.state.scope, &secrets);
        }

        let state = &self.state;
        let args = state.arguments.in_scope(&state.scope);
        let mut proxies = scope::proxies(&self.graph.options.build_args);
        proxies.retain(|(name, _)| !state.arguments.has(name));
        let mut history = state.arguments.for_history(&state.scope);
        if !history.is_empty() {
            history.insert(0, format!("|{}", history.len()));
        }
        history.extend(argv.iter().cloned());
        let op = Op::Run(Run {
            argv,
            env: state.config.config.env.iter().map(|variable| split_variable(variable)).map(owned).collect(),
            args,
            proxies,
            workdir: self.workdir_path(),
            user: state.user.clone(),
            network,
            security,
            mounts,
            devices,
            heredocs,
            platform: state.platform.clone(),
        });
        self.layer(instruction, op, shown, format!("RUN {}", history.join(" ")));
        Some(())
    }

    /// The argv and the scripts to mount.
    ///
    /// A heredoc that is all of the command is the script itself, so that it works with shells that know no
    /// heredocs; with `#!` it is an executable. In any other command the heredocs are the shell's affair,
    /// which gets the lines as they were.
    fn command(&self, run: &dockerfile::Run) -> (Vec<String>, Vec<HeredocFile>) {
        let Command::Shell(text) = &run.command else { return (self.argv(&run.command), Vec::new()) };
        match run.heredocs.as_slice() {
            [] => (self.shell_argv(text), Vec::new()),
            [heredoc] if run.script().is_some() => {
                let content = heredoc.content();
                if content.starts_with("#!") {
                    let argv = self.shell_argv(&format!("/dev/pipes/{}", heredoc.name));
                    (argv, vec![HeredocFile { name: heredoc.name.clone(), content }])
                } else {
                    (self.shell_argv(&content), Vec::new())
                }
            }
            heredocs => {
                let mut script = text.clone();
                for Heredoc { name, body, .. } in heredocs {
                    script += &format!("\n{body}{name}");
                }
                (self.shell_argv(&script), Vec::new())
            }
        }
    }

    /// What BuildKit does not tell: with a heredoc the shell goes on after a command that fails.
    fn warn_of_script(&mut self, instruction: &Instruction, run: &dockerfile::Run) {
        let Some(heredoc) = run.script() else { return };
        let shell = self.shell_argv("");
        if script::ignores_failures(&heredoc.content(), &shell[..shell.len() - 1]) {
            let message = "only the last command of this heredoc can fail the step";
            let warning = Diagnostic::warning("HeredocWithoutErrexit", message);
            let warning = warning.at(&instruction.source, run.command_span, "");
            self.draft.warnings.push(warning.hint("begin it with a line `set -e`"));
        }
    }

    fn network(&mut self, instruction: &Instruction, run: &dockerfile::Run) -> Option<Network> {
        let network = match &run.network {
            None => self.graph.options.network,
            // The parser has checked the value; the default is the build's own, which may be another.
            Some(flag) => match flag.value.raw.as_str() {
                "none" => Network::None,
                "host" => Network::Host,
                _ => self.graph.options.network,
            },
        };
        if network == Network::Host && !self.graph.options.allows_host_network {
            let span = run.network.as_ref().map_or(instruction.keyword, |flag| flag.span);
            self.draft.faults.push(
                Diagnostic::error("this RUN may not use the host's network")
                    .at(&instruction.source, span, "")
                    .hint("to allow it, build with `--allow network.host`"),
            );
            return None;
        }
        Some(network)
    }

    fn security(&mut self, instruction: &Instruction, run: &dockerfile::Run) -> Option<Security> {
        let Some(flag) = &run.security else { return Some(Security::Sandbox) };
        if flag.value.raw != "insecure" {
            return Some(Security::Sandbox);
        }
        if !self.graph.options.allows_insecure {
            self.draft.faults.push(
                Diagnostic::error("this RUN may not be insecure")
                    .at(&instruction.source, flag.span, "")
                    .hint("to allow it, build with `--allow security.insecure`"),
            );
            return None;
        }
        Some(Security::Insecure)
    }

    fn devices(&mut self, instruction: &Instruction, run: &dockerfile::Run) -> Option<Vec<RunDevice>> {
        let devices: Vec<_> = run.devices.iter().map(|flag| device::device(flag, &instruction.source)).collect();
        let mut read = Vec::new();
        for device in devices {
            match device {
                Ok(device) => read.push(device),
                Err(fault) => self.draft.faults.push(fault),
            }
        }
        (read.len() == run.devices.len()).then_some(read)
    }

    fn mounts(&mut self, instruction: &Instruction, run: &dockerfile::Run) -> Option<Vec<RunMount>> {
        let mut sockets = 0;
        let mounts: Vec<_> = run.mounts.iter().map(|flag| self.mount(instruction, flag, &mut sockets)).collect();
        mounts.into_iter().collect()
    }

    fn mount(&mut self, instruction: &Instruction, flag: &Flag, sockets: &mut usize) -> Option<RunMount> {
        let source = &instruction.source;
        let fields = match mount::fields(flag, source) {
            Ok(fields) => fields,
            Err(fault) => {
                self.draft.faults.push(fault);
                return None;
            }
        };
        let mut unset: Vec<(Word, Vec<String>)> = Vec::new();
        let scope = &self.state.scope;
        let escape = self.graph.dockerfile.escape;
        let mount = Mount::new(&fields, source, &mut self.draft.faults, |word, faults| {
            match expand::expand(&word.raw, escape, scope) {
                Ok(expanded) => {
                    unset.push((word.clone(), expanded.unset));
                    Some(expanded.text)
                }
                Err(error) => {
                    faults.push(error.at(source, word));
                    None
                }
            }
        });
        for (word, unset) in unset {
            self.warn_of_unset(instruction, &word, &unset);
        }
        let mount = mount?;
        let from = match fields.iter().find(|field| field.key == "from").and_then(|field| field.value.as_ref()) {
            Some(name) if !name.raw.is_empty() => match self.graph.mount_from(&name.raw, source, name.span) {
                Ok(provider) => Some(provider),
                Err(fault) => {
                    self.draft.faults.push(fault);
                    return None;
                }
            },
            _ => None,
        };
        match self.linked(mount, from, sockets) {
            Ok((kind, target)) => Some(RunMount { kind, target, source: Arc::clone(source), span: flag.span }),
            Err(message) => {
                let target = fields.iter().find(|field| matches!(field.key.as_str(), "target" | "dst" | "destination"));
                let span = target.map_or(flag.span, |field| field.span);
                self.draft.faults.push(Diagnostic::error(message).at(source, span, ""));
                None
            }
        }
    }

    /// The mount with its defaults filled in, and its target. The error is about the target.
    fn linked(
        &self,
        mount: Mount,
        from: Option<Provider>,
        sockets: &mut usize,
    ) -> Result<(RunMountKind, String), String> {
        let workdir = self.workdir_path();
        let target = |text: &str| path::join(&workdir, text);
        let source = path::join("/", mount.source.as_deref().unwrap_or_default());
        let (uid, gid) = (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0));
        let text = mount.target.as_deref().unwrap_or_default();
        let kind = match mount.kind {
            Type::Bind => RunMountKind::Bind {
                from: from.map_or(Input::Context, |provider| self.input(&provider)),
                source,
                is_writable: mount.is_readonly == Some(false),
            },
            Type::Cache => RunMountKind::Cache {
                id: self.cache_id(mount.id.unwrap_or_else(|| path::clean_relative(text))),
                sharing: mount.sharing,
                from: from.map_or(Input::Scratch, |provider| self.input(&provider)),
                source,
                is_readonly: mount.is_readonly == Some(true),
                mode: mount.mode,
                uid: mount.uid,
                gid: mount.gid,
            },
            Type::Tmpfs => RunMountKind::Tmpfs { size_bytes: mount.size_bytes.filter(|size| *size != 0) },
            Type::Secret => {
                let id = mount.source.or(mount.id).filter(|id| !id.is_empty());
                let id = match (id, text) {
                    (Some(id), _) => id,
                    (None, "") => return Err("a secret needs an `id` or a `target`".into()),
                    (None, target) => path::base_name(target).to_owned(),
                };
                let place = match (text, &mount.env) {
                    ("", Some(_)) => String::new(),
                    ("", None) => format!("/run/secrets/{}", path::base_name(&id)),
                    (text, _) => target(text),
                };
                let kind = RunMountKind::Secret {
                    id,
                    env: mount.env,
                    is_required: mount.is_required,
                    mode: mount.mode.unwrap_or(0o400),
                    uid,
                    gid,
                };
                return Ok((kind, place));
            }
            Type::Ssh => {
                let place = match text {
                    "" => format!("/run/buildkit/ssh_agent.{sockets}"),
                    text => target(text),
                };
                *sockets += 1;
                let kind = RunMountKind::Ssh {
                    id: mount.id.unwrap_or_else(|| "default".into()),
                    is_required: mount.is_required,
                    mode: mount.mode.unwrap_or(0o600),
                    uid,
                    gid,
                };
                return Ok((kind, place));
            }
        };
        match target(text) {
            root if root == "/" && text.is_empty() => Err("this mount needs a `target`".into()),
            root if root == "/" => Err("nothing can be mounted on `/`".into()),
            target => Ok((kind, target)),
        }
    }

    /// `--build-arg BUILDKIT_CACHE_MOUNT_NS` keeps the caches of one build apart from those of others.
    fn cache_id(&self, id: String) -> String {
        match self.graph.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS") {
            Some(namespace) if !namespace.is_empty() => format!("{namespace}/{id}"),
            _ => id,
        }
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
