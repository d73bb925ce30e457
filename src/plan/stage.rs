//! One stage: its instructions in order, each changing the [`State`] and most of them adding a step.

use std::sync::Arc;

use serde_json::json;

use crate::diag::{Diagnostic, Span, nearest};
use crate::dockerfile::expand;
use crate::dockerfile::{ArgDeclaration, Command, Healthcheck, Instruction, Kind, Onbuild, Word};
use crate::image::{HealthConfig, ImageConfig, Platform};

use super::graph::{Graph, Node, Provider};
use super::op::{BaseKey, Input, Located, Op, Root, Step, StepId, Workdir};
use super::scope::{self, Arguments, Scope};
use super::{Base, Bases, history, lint, path, port, signal, title};

/// What an instruction sees and changes. A stage made from another begins with a copy of its end.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub config: ImageConfig,
    /// What expansion and RUN see: the image's ENV and the ARGs.
    pub scope: Scope,
    pub arguments: Arguments,
    /// The USER in force, where it was set.
    pub user: Option<Located>,
    pub platform: Platform,
    /// The step whose root filesystem this is.
    pub last: StepId,
    /// A WORKDIR of this file is in force.
    has_workdir: bool,
}

/// What planning has produced so far.
#[derive(Default)]
pub(super) struct Draft {
    pub steps: Vec<Step>,
    pub warnings: Vec<Diagnostic>,
    pub faults: Vec<Diagnostic>,
    /// How each stage ended.
    pub ends: Vec<Option<State>>,
}

/// Planning of one stage.
pub(super) struct Walk<'a> {
    pub graph: &'a Graph<'a>,
    pub bases: &'a Bases,
    pub draft: &'a mut Draft,
    pub node: &'a Node<'a>,
    pub state: State,
    index: usize,
    total: usize,
    /// Now running the triggers of the base.
    is_trigger: bool,
    /// The last of its kind in this stage.
    cmd: Option<Span>,
    entrypoint: Option<Span>,
    healthcheck: Option<Span>,
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Plans the stage `index`; those it is made from have been planned.
pub(super) fn plan(graph: &Graph<'_>, bases: &Bases, index: usize, draft: &mut Draft) -> State {
    let node = &graph.nodes[index];
    let has_base_step = matches!(node.base, Provider::Outside(_));
    let instructions = || node.triggers.iter().chain(&node.stage.instructions);
    let total =
        usize::from(has_base_step) + instructions().filter(|instruction| makes_layer(&instruction.kind)).count();
    let mut count = 0;
    let state = begin(graph, bases, node, draft, total, &mut count);
    if node.is_replaced {
        return state;
    }
    let mut walk = Walk {
        graph,
        bases,
        draft,
        node,
        state,
        index: count,
        total,
        is_trigger: true,
        cmd: None,
        entrypoint: None,
        healthcheck: None,
    };
    for trigger in &node.triggers {
        walk.instruction(trigger);
    }
    walk.is_trigger = false;
    for instruction in &node.stage.instructions {
        walk.instruction(instruction);
    }
    walk.state
}

fn makes_layer(kind: &Kind) -> bool {
    matches!(kind, Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_))
}

/// The state after FROM, and its step if it has one of its own.
fn begin(
    graph: &Graph<'_>,
    bases: &Bases,
    node: &Node<'_>,
    draft: &mut Draft,
    total: usize,
    count: &mut usize,
) -> State {
    let from = &node.stage.from;
    let mut state = if let Provider::Stage(earlier) = node.base {
        // Stages are planned in order and a base comes first: it has an end.
        #[allow(clippy::unwrap_used)]
        draft.ends[earlier].clone().unwrap()
    } else {
        let (root, config, platform) = root(graph, bases, node, draft);
        let mut shown = format!("FROM {}", node.base_name);
        if root != Root::Scratch {
            *count += 1;
            shown.insert_str(0, &title::number(shown_stage(graph, node), *count, total));
        }
        draft.steps.push(Step {
            op: Op::From(root),
            parent: None,
            title: shown,
            stage: node.name.clone(),
            history: None,
            source: Arc::clone(&from.source),
            span: from.span,
        });
        let last = StepId(draft.steps.len() - 1);
        let (scope, arguments) = (Scope::default(), Arguments::default());
        State { config, scope, arguments, user: None, platform, last, has_workdir: false }
    };
    let config = &mut state.config.config;
    config.on_build.clear();
    if node.is_replaced {
        return state;
    }
    if !config.env.iter().any(|variable| split_variable(variable).0 == "PATH") {
        config.env.push(format!("PATH={DEFAULT_PATH}"));
    }
    // ENV wins again over an ARG that came after it in the parent stage.
    for variable in &config.env {
        let (name, value) = split_variable(variable);
        state.scope.set(name, value);
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        config.working_dir = path::join("/", &config.working_dir);
    }
    if state.user.is_none() && !config.user.is_empty() {
        state.user =
            Some(Located { text: config.user.clone(), source: Arc::clone(&from.source), span: from.image.span });
    }
    state
}

fn shown_stage<'a>(graph: &Graph<'_>, node: &'a Node<'_>) -> Option<&'a str> {
    (graph.nodes.len() > 1).then_some(node.name.as_str())
}

/// The root of a stage that is made from no stage, its config and its platform.
fn root(graph: &Graph<'_>, bases: &Bases, node: &Node<'_>, draft: &mut Draft) -> (Root, ImageConfig, Platform) {
    let options = graph.options;
    let Provider::Outside(key) = &node.base else {
        // Scratch is for every platform, so `--platform` says nothing here.
        return (Root::Scratch, empty_config(&options.platform), options.platform.clone());
    };
    match bases.get(key) {
        Some(Base::Image(config)) => {
            let mut config = (**config).clone();
            config.created = None;
            let mut platform = key.platform.clone();
            if node.platform.is_none() && !options.platform_is_explicit && !config.architecture.is_empty() {
                platform.os.clone_from(&config.os);
                if platform.architecture != config.architecture {
                    platform.architecture.clone_from(&config.architecture);
                    platform.variant.clone_from(&config.variant);
                }
            }
            let from = &node.stage.from;
            draft.warnings.extend(lint::base_platform(from, &key.name, &platform, &config.os, &config.architecture));
            (Root::Image(key.clone()), config, platform)
        }
        Some(Base::Directory) => (Root::Directory(key.name.clone()), empty_config(&key.platform), key.platform.clone()),
        None => {
            draft.faults.push(unresolved(key, node));
            (Root::Scratch, empty_config(&key.platform), key.platform.clone())
        }
    }
}

/// A caller that plans before [`super::bases`] is empty gets this instead of a wrong plan.
fn unresolved(key: &BaseKey, node: &Node<'_>) -> Diagnostic {
    let from = &node.stage.from;
    Diagnostic::error(format!("`{}` has not been resolved for {}", key.name, key.platform)).at(
        &from.source,
        from.image.span,
        "",
    )
}

fn empty_config(platform: &Platform) -> ImageConfig {
    let mut config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        ..ImageConfig::default()
    };
    config.config.working_dir = "/".into();
    config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    config
}

pub(super) fn split_variable(variable: &str) -> (&str, &str) {
    variable.split_once('=').unwrap_or((variable, ""))
}

impl Walk<'_> {
    /// Plans one instruction. `None` from a part of it means that a fault has been reported and the
    /// instruction is left out.
    fn instruction(&mut self, instruction: &Instruction) -> Option<()> {
        match &instruction.kind {
            Kind::Arg(declarations) => self.arg(instruction, declarations),
            Kind::Env(pairs) => self.env(instruction, pairs),
            Kind::Label(pairs) => self.label(instruction, pairs),
            Kind::Run(run) => self.run(instruction, run),
            Kind::Copy(copy) => self.copy(instruction, &copy.into()),
            Kind::Add(add) => self.copy(instruction, &add.into()),
            Kind::Workdir(path) => self.workdir(instruction, path),
            Kind::User(user) => self.user(instruction, user),
            Kind::Cmd(command) => self.cmd(instruction, command),
            Kind::Entrypoint(command) => self.entrypoint(instruction, command),
            Kind::Shell(shell) => {
                self.state.config.config.shell.clone_from(shell);
                self.configure(instruction, format!("SHELL {}", history::list(shell)))
            }
            Kind::Expose(ports) => self.expose(instruction, ports),
            Kind::Volume(paths) => self.volume(instruction, paths),
            Kind::StopSignal(signal) => self.stop_signal(instruction, signal),
            Kind::Healthcheck(healthcheck) => self.healthcheck(instruction, healthcheck),
            Kind::Onbuild(Onbuild { text, .. }) => {
                self.state.config.config.on_build.push(text.clone());
                Some(())
            }
            Kind::Maintainer(name) => {
                self.state.config.author = Some(name.clone()).filter(|name| !name.is_empty());
                self.configure(instruction, format!("MAINTAINER {name}"))
            }
        }
    }

    fn arg(&mut self, instruction: &Instruction, declarations: &[ArgDeclaration]) -> Option<()> {
        let mut text = String::from("ARG");
        for declaration in declarations {
            let name = &declaration.name;
            self.warn_of_secret(instruction, "ARG", name, declaration.name_span);
            // Each name of a list sees those before it.
            let value = match (self.graph.options.build_args.get(name), &declaration.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(instruction, default)?),
                (None, None) => self.global(name),
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

    fn global(&self, name: &str) -> Option<String> {
        expand::Variables::get(&self.graph.globals, name).map(String::from)
    }

    fn env(&mut self, instruction: &Instruction, pairs: &[(Word, Word)]) -> Option<()> {
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

    fn label(&mut self, instruction: &Instruction, pairs: &[(Word, Word)]) -> Option<()> {
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

    fn workdir(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
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

    fn user(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
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

    pub(super) fn shell_argv(&self, text: &str) -> Vec<String> {
        let mut argv = self.state.config.config.shell.clone();
        if argv.is_empty() {
            argv = vec!["/bin/sh".into(), "-c".into()];
        }
        argv.push(text.to_owned());
        argv
    }

    fn cmd(&mut self, instruction: &Instruction, command: &Command) -> Option<()> {
        self.warn_of_signals(instruction, "CMD", command);
        let earlier = self.cmd.replace(instruction.span);
        self.warn_of_earlier(instruction, "CMD", earlier);
        let argv = self.argv(command);
        let text = format!("CMD {}", history::quoted_list(&argv));
        let config = &mut self.state.config.config;
        config.cmd = Some(argv).filter(|argv| !argv.is_empty());
        // Means nothing on Linux, but BuildKit sets it.
        config.args_escaped = true;
        self.configure(instruction, text)
    }

    fn entrypoint(&mut self, instruction: &Instruction, command: &Command) -> Option<()> {
        self.warn_of_signals(instruction, "ENTRYPOINT", command);
        let earlier = self.entrypoint.replace(instruction.span);
        self.warn_of_earlier(instruction, "ENTRYPOINT", earlier);
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

    fn healthcheck(&mut self, instruction: &Instruction, healthcheck: &Healthcheck) -> Option<()> {
        let earlier = self.healthcheck.replace(instruction.span);
        self.warn_of_earlier(instruction, "HEALTHCHECK", earlier);
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

    fn warn_of_earlier(&mut self, instruction: &Instruction, keyword: &str, earlier: Option<Span>) {
        // The span of a trigger is in another source.
        if let Some(span) = earlier.filter(|_| !self.is_trigger) {
            let warning = Diagnostic::warning(
                "MultipleInstructionsDisallowed",
                format!("a later {keyword} of the same stage replaces this one"),
            );
            self.draft.warnings.push(warning.at(&instruction.source, span, ""));
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

    fn expose(&mut self, instruction: &Instruction, words: &[Word]) -> Option<()> {
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

    fn volume(&mut self, instruction: &Instruction, words: &[Word]) -> Option<()> {
        let expanded: Vec<_> = words.iter().map(|word| self.expand(instruction, word)).collect();
        let paths: Vec<String> = expanded.into_iter().collect::<Option<_>>()?;
        for (path, word) in paths.iter().zip(words).filter(|(path, _)| path.is_empty()) {
            let fault = Diagnostic::error(format!("the path of this VOLUME is empty{path}"));
            self.draft.faults.push(fault.at(&instruction.source, word.span, ""));
            return None;
        }
        let text = format!("VOLUME {}", history::list(&paths));
        self.state.config.config.volumes.extend(paths.into_iter().map(|path| (path, json!({}))));
        self.configure(instruction, text)
    }

    fn stop_signal(&mut self, instruction: &Instruction, word: &Word) -> Option<()> {
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

    /// A metadata step.
    fn configure(&mut self, instruction: &Instruction, history: String) -> Option<()> {
        self.step(instruction, Op::Configure, instruction.text.clone(), history);
        Some(())
    }

    /// A numbered step.
    pub(super) fn layer(&mut self, instruction: &Instruction, op: Op, title: String, history: String) {
        self.index += 1;
        let number = title::number(shown_stage(self.graph, self.node), self.index, self.total);
        let trigger = if self.is_trigger { "ONBUILD " } else { "" };
        self.step(instruction, op, format!("{number}{trigger}{title}"), history);
    }

    fn step(&mut self, instruction: &Instruction, op: Op, title: String, history: String) {
        self.draft.steps.push(Step {
            op,
            parent: Some(self.state.last),
            title,
            stage: self.node.name.clone(),
            history: Some(history),
            source: Arc::clone(&instruction.source),
            span: instruction.span,
        });
        self.state.last = StepId(self.draft.steps.len() - 1);
    }

    /// Expands a word, or reports why it cannot be.
    pub(super) fn expand(&mut self, instruction: &Instruction, word: &Word) -> Option<String> {
        match expand::expand(&word.raw, self.graph.dockerfile.escape, &self.state.scope) {
            Ok(expanded) => {
                self.warn_of_unset(instruction, word, &expanded.unset);
                Some(expanded.text)
            }
            Err(error) => {
                self.draft.faults.push(error.at(&instruction.source, word));
                None
            }
        }
    }

    /// Warns of names that neither have a value nor are declared.
    pub(super) fn warn_of_unset(&mut self, instruction: &Instruction, word: &Word, unset: &[String]) {
        for name in unset.iter().filter(|name| !self.state.arguments.has(name)) {
            let warning = lint::undefined(name, word, &instruction.source, self.state.scope.names());
            self.draft.warnings.push(warning);
        }
    }

    /// A text of the instruction with its place.
    pub(super) fn located(instruction: &Instruction, text: String, span: Span) -> Located {
        Located { text, source: Arc::clone(&instruction.source), span }
    }

    /// What `provider` is to a step that reads from it.
    pub(super) fn input(&self, provider: &Provider) -> Input {
        match provider {
            Provider::Scratch => Input::Scratch,
            // Later stages have been refused, earlier ones are reachable: they have ends.
            #[allow(clippy::unwrap_used)]
            Provider::Stage(index) => Input::Step(self.draft.ends[*index].as_ref().unwrap().last),
            Provider::Outside(key) => match self.bases.get(key) {
                Some(Base::Directory) => Input::Directory(key.name.clone()),
                _ => Input::Image(key.clone()),
            },
        }
    }
}
