//! The instructions that change variables or the config: ARG, ENV, LABEL, USER, WORKDIR, CMD, ENTRYPOINT,
//! HEALTHCHECK, EXPOSE, VOLUME, STOPSIGNAL. What each leaves in the config and the history is BuildKit's.

use std::sync::Arc;

use serde_json::json;

use crate::diag::{Diagnostic, Span, nearest};
use crate::dockerfile::expand::{self, Variables};
use crate::dockerfile::{ArgDeclaration, Command, Healthcheck, Instruction, Word};
use crate::image::HealthConfig;

use super::op::{Located, Op, Workdir};
use super::stage::{Place, Walk, split_variable};
use super::{history, lint, path, port, scope, signal, title};

impl Walk<'_> {
    pub(super) fn arg(&mut self, instruction: &Instruction, declarations: &[ArgDeclaration]) -> Option<()> {
        let mut text = String::from("ARG");
        for declaration in declarations {
            let name = &declaration.name;
            self.warn_of_secret(instruction, "ARG", name, declaration.name_span);
            // Each name of a list sees those before it.
            let value = match (self.graph.options.build_args.get(name), &declaration.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(instruction, default)?),
                (None, None) => self.graph.globals.get(name).map(String::from),
            };
            if let Some(value) = &value
                && !scope::is_no_variable(name)
            {
                self.state.scope.set(name, value);
            }
            self.state.arguments.declare(name, value.as_deref());
            text += &format!(" {name}");
            if let Some(value) = &value {
                text += &format!("={value}");
            }
        }
        self.configure(instruction, text)
    }

    pub(super) fn env(&mut self, instruction: &Instruction, pairs: &[(Word, Word)]) -> Option<()> {
        let mut text = String::from("ENV");
        for ((name, value), (word, _)) in self.pairs(instruction, pairs)?.into_iter().zip(pairs) {
            if name.is_empty() {
                let fault =
                    Diagnostic::error("the name of this variable is empty").at(&instruction.source, word.span, "");
                self.draft.faults.push(fault);
                return None;
            }
            self.warn_of_secret(instruction, "ENV", &name, word.span);
            text += &format!(" {name}={value}");
            self.state.scope.set(&name, &value);
            let env = &mut self.state.config.config.env;
            let variable = format!("{name}={value}");
            match env.iter_mut().find(|variable| split_variable(variable).0 == name) {
                Some(old) => *old = variable,
                None => env.push(variable),
            }
        }
        self.configure(instruction, text)
    }

    fn warn_of_secret(&mut self, instruction: &Instruction, keyword: &str, name: &str, span: Span) {
        if lint::is_secret_name(name) {
            let warning = Diagnostic::warning(
                "SecretsUsedInArgOrEnv",
                format!("{keyword} `{name}` looks like a secret: everyone who has the image can read it"),
            );
            self.draft.warnings.push(warning.at(&instruction.source, span, "").hint("use `RUN --mount=type=secret`"));
        }
    }

    pub(super) fn label(&mut self, instruction: &Instruction, pairs: &[(Word, Word)]) -> Option<()> {
        let mut text = String::from("LABEL");
        for (name, value) in self.pairs(instruction, pairs)? {
            text += &format!(" {name}={value}");
            self.state.config.config.labels.insert(name, value);
        }
        self.configure(instruction, text)
    }

    /// Names and values, all expanded with the variables as they were before the instruction.
    fn pairs(&mut self, instruction: &Instruction, pairs: &[(Word, Word)]) -> Option<Vec<(String, String)>> {
        let expanded: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (self.expand(instruction, name), self.expand(instruction, value)))
            .collect();
        expanded.into_iter().map(|(name, value)| Some((name?, value?))).collect()
    }

    pub(super) fn workdir(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
        let text = self.expand(instruction, word)?;
        if !self.state.has_workdir && !text.starts_with('/') {
            let warning = Diagnostic::warning(
                "WorkdirRelativePath",
                format!("what `{text}` is relative to depends on the base image"),
            );
            self.draft.warnings.push(warning.at(&instruction.source, word.span, ""));
        }
        self.state.has_workdir = true;
        let config = &mut self.state.config.config;
        // An absolute path goes into the config as it is written, trailing slash and all.
        config.working_dir = match text.as_str() {
            "" if config.working_dir.is_empty() => "/".into(),
            "" => config.working_dir.clone(),
            text if text.starts_with('/') => text.to_owned(),
            text => path::join(&config.working_dir, text),
        };
        let history = format!("WORKDIR {}", config.working_dir);
        let op = Op::Workdir(Workdir { path: self.workdir_path(), user: self.state.user.clone() });
        let title = title::words(&instruction.text, self.graph.dockerfile.escape, &self.state.scope);
        self.layer(instruction, op, title, history);
        Some(())
    }

    /// The directory in force: absolute and clean.
    pub(super) fn workdir_path(&self) -> String {
        path::join("/", &self.state.config.config.working_dir)
    }

    pub(super) fn user(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
        let text = self.expand(instruction, word)?;
        self.state.config.config.user.clone_from(&text);
        let history = format!("USER {text}");
        let located = Located { text, source: Arc::clone(&instruction.source), span: word.span };
        self.state.user = Some(located).filter(|user| !user.text.is_empty());
        self.configure(instruction, history)
    }

    /// What is executed for CMD, ENTRYPOINT and RUN: the shell and the text, or the list as it is.
    pub(super) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(text) => self.shell_argv(text),
        }
    }

    /// The image is, so far: such a one can be made of files and settings.
    fn is_windows(&self) -> bool {
        self.state.config.os == "windows"
    }

    pub(super) fn shell_argv(&self, text: &str) -> Vec<String> {
        let mut argv = self.state.config.config.shell.clone();
        if argv.is_empty() {
            let default: &[&str] = if self.is_windows() { &["cmd", "/S", "/C"] } else { &["/bin/sh", "-c"] };
            argv = default.iter().map(ToString::to_string).collect();
        }
        argv.push(text.to_owned());
        argv
    }

    pub(super) fn cmd(&mut self, instruction: &Instruction, command: &Command) -> Option<()> {
        self.warn_of_signals(instruction, "CMD", command);
        let earlier = self.cmd.replace((Arc::clone(&instruction.source), instruction.span));
        self.warn_of_earlier("CMD", earlier);
        let argv = self.argv(command);
        let text = format!("CMD {}", history::quoted_list(&argv));
        let config = &mut self.state.config.config;
        config.cmd = Some(argv).filter(|argv| !argv.is_empty());
        // Means nothing on Linux, but BuildKit sets it.
        config.args_escaped = true;
        self.configure(instruction, text)
    }

    pub(super) fn entrypoint(&mut self, instruction: &Instruction, command: &Command) -> Option<()> {
        self.warn_of_signals(instruction, "ENTRYPOINT", command);
        let earlier = self.entrypoint.replace((Arc::clone(&instruction.source), instruction.span));
        self.warn_of_earlier("ENTRYPOINT", earlier);
        let argv = self.argv(command);
        let text = format!("ENTRYPOINT {}", history::quoted_list(&argv));
        let config = &mut self.state.config.config;
        config.entrypoint = Some(argv).filter(|argv| !argv.is_empty());
        // An inherited CMD was meant for another entry point; one of this stage is meant for this one.
        if self.cmd.is_none() {
            config.cmd = None;
        }
        self.configure(instruction, text)
    }

    pub(super) fn healthcheck(&mut self, instruction: &Instruction, healthcheck: &Healthcheck) -> Option<()> {
        let earlier = self.healthcheck.replace((Arc::clone(&instruction.source), instruction.span));
        self.warn_of_earlier("HEALTHCHECK", earlier);
        let health = match healthcheck {
            Healthcheck::None => HealthConfig { test: vec!["NONE".into()], ..HealthConfig::default() },
            Healthcheck::Command { command, interval_ns, timeout_ns, start_period_ns, start_interval_ns, retries } => {
                let test = match command {
                    Command::Shell(text) => vec!["CMD-SHELL".into(), text.clone()],
                    Command::Exec(argv) => std::iter::once("CMD".into()).chain(argv.iter().cloned()).collect(),
                };
                HealthConfig {
                    test,
                    interval: *interval_ns,
                    timeout: *timeout_ns,
                    start_period: *start_period_ns,
                    start_interval: *start_interval_ns,
                    retries: *retries,
                }
            }
        };
        let text = format!("HEALTHCHECK {}", history::health(&health));
        self.state.config.config.healthcheck = Some(health);
        self.configure(instruction, text)
    }

    fn warn_of_earlier(&mut self, keyword: &str, earlier: Option<Place>) {
        if let Some((source, span)) = earlier {
            let warning = Diagnostic::warning(
                "MultipleInstructionsDisallowed",
                format!("a later {keyword} of the same stage replaces this one"),
            );
            self.draft.warnings.push(warning.at(&source, span, ""));
        }
    }

    fn warn_of_signals(&mut self, instruction: &Instruction, keyword: &str, command: &Command) {
        if matches!(command, Command::Shell(_)) && self.state.config.config.shell.is_empty() {
            let warning = Diagnostic::warning(
                "JSONArgsRecommended",
                format!("the shell that runs this {keyword} does not pass signals on"),
            );
            self.draft.warnings.push(
                warning
                    .at(&instruction.source, instruction.span, "")
                    .hint("write it as a JSON list: [\"command\", \"argument\"]"),
            );
        }
    }

    pub(super) fn expose(&mut self, instruction: &Instruction, words: &[Word]) -> Option<()> {
        let mut words: Vec<&Word> = words.iter().collect();
        // Sorted as texts, before anything is expanded.
        words.sort_by(|a, b| a.raw.cmp(&b.raw));
        let before = self.draft.faults.len();
        let mut ports = Vec::new();
        for word in words {
            let escape = self.graph.dockerfile.escape;
            match expand::expand_words(&word.raw, escape, &self.state.scope) {
                Err(error) => self.draft.faults.push(error.at(&instruction.source, word)),
                Ok(texts) => {
                    for text in texts {
                        self.warn_of_port(instruction, word, &text);
                        match port::parse(&text) {
                            Ok(parsed) => ports.extend(parsed),
                            Err(message) => {
                                let fault = Diagnostic::error(message).at(&instruction.source, word.span, "");
                                self.draft.faults.push(fault);
                            }
                        }
                    }
                }
            }
        }
        if self.draft.faults.len() > before {
            return None;
        }
        let text = format!("EXPOSE {}", history::list(&ports));
        self.state.config.config.exposed_ports.extend(ports.into_iter().map(|port| (port, json!({}))));
        self.configure(instruction, text)
    }

    fn warn_of_port(&mut self, instruction: &Instruction, word: &Word, text: &str) {
        let mut warn = |rule, message| {
            self.draft.warnings.push(Diagnostic::warning(rule, message).at(&instruction.source, word.span, ""));
        };
        let port = text.rsplit(':').next().unwrap_or(text);
        if port != text {
            warn("ExposeInvalidFormat", format!("EXPOSE has no use for more than `{port}`"));
        }
        if let Some((_, protocol)) = port.split_once('/')
            && protocol != protocol.to_ascii_lowercase()
        {
            warn("ExposeProtoCasing", format!("the protocol is written `{}`", protocol.to_ascii_lowercase()));
        }
    }

    pub(super) fn volume(&mut self, instruction: &Instruction, words: &[Word]) -> Option<()> {
        let expanded: Vec<_> = words.iter().map(|word| self.expand(instruction, word)).collect();
        let paths: Vec<String> = expanded.into_iter().collect::<Option<_>>()?;
        if let Some(empty) = paths.iter().position(String::is_empty) {
            let fault = Diagnostic::error("the path of this VOLUME is empty");
            self.draft.faults.push(fault.at(&instruction.source, words[empty].span, ""));
            return None;
        }
        let text = format!("VOLUME {}", history::list(&paths));
        self.state.config.config.volumes.extend(paths.into_iter().map(|path| (path, json!({}))));
        self.configure(instruction, text)
    }

    pub(super) fn stop_signal(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
        let text = self.expand(instruction, word)?;
        if !signal::is_signal(&text) {
            let fault = Diagnostic::error(format!("`{text}` is no signal")).at(&instruction.source, word.span, "");
            let names: Vec<String> = signal::names().collect();
            self.draft.faults.push(match nearest(&text, names.iter().map(String::as_str)) {
                Some(near) => fault.hint(format!("did you mean `{near}`?")),
                None => fault,
            });
            return None;
        }
        self.state.config.config.stop_signal.clone_from(&text);
        self.configure(instruction, format!("STOPSIGNAL {text}"))
    }
}
