//! One stage: its instructions in order, each changing the [`State`] and most of them adding a step.

use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span};
use crate::dockerfile::expand;
use crate::dockerfile::{Instruction, Kind, Onbuild, Word};
use crate::image::{ImageConfig, Platform};
use crate::location::redact;

use super::graph::{Graph, Node, Provider};
use super::op::{BaseKey, Input, Located, Op, Root, Step, StepId};
use super::scope::{Arguments, Scope};
use super::{Base, Bases, history, lint, path, title};

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
    pub has_workdir: bool,
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
    pub cmd: Option<Place>,
    pub entrypoint: Option<Place>,
    pub healthcheck: Option<Place>,
}

pub(super) type Place = (Arc<Source>, Span);

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Plans the stage `index`; those it is made from have been planned.
pub(super) fn plan(graph: &Graph<'_>, bases: &Bases, index: usize, draft: &mut Draft) -> State {
    let node = &graph.nodes[index];
    let has_base_step = matches!(node.base, Provider::Outside(_));
    let instructions = || node.triggers.iter().chain(&node.stage.instructions);
    let layers = instructions().filter(|instruction| makes_layer(&instruction.kind) && !node.is_replaced).count();
    let total = usize::from(has_base_step) + layers;
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
        let before = walk.draft.faults.len();
        walk.instruction(trigger);
        let found = walk.draft.faults.split_off(before);
        walk.draft.faults.extend(found.into_iter().map(|fault| node.blame(fault)));
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
            let place = shown_place(graph, node, &platform, &Scope::default());
            shown.insert_str(0, &title::number(&place, *count, total));
        }
        // The files of a directory are a layer that no other history tells of.
        let history = matches!(root, Root::Directory(_)).then(|| format!("FROM {}", node.base_name));
        draft.steps.push(Step {
            op: Op::From(root),
            parent: None,
            title: shown,
            stage: node.name.clone(),
            history,
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
    // Windows has one of its own.
    if state.platform.os != "windows" && !config.env.iter().any(|variable| split_variable(variable).0 == "PATH") {
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

/// Where a step is: the platform when there are several, the stage when there are several.
fn shown_place(graph: &Graph<'_>, node: &Node<'_>, platform: &Platform, scope: &Scope) -> String {
    let mut place = String::new();
    if graph.options.shows_platform {
        place = title::platform(platform, scope) + " ";
    }
    if graph.nodes.len() > 1 {
        place += &node.name;
        place.push(' ');
    }
    place
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
            if node.platform.is_none()
                && !options.platform_is_explicit
                && let Some(actual) = platform_of(&config)
                && (&actual.os, &actual.architecture) != (&platform.os, &platform.architecture)
            {
                platform = actual;
            }
            let from = &node.stage.from;
            draft.warnings.extend(lint::base_platform(from, &key.name, &platform, &config.os, &config.architecture));
            (Root::Image(key.clone()), config, platform)
        }
        Some(Base::Directory) => {
            // A stage that is replaced is as its context is, which says nothing.
            let config = if node.is_replaced { ImageConfig::default() } else { empty_config(&key.platform) };
            (Root::Directory(key.name.clone()), config, key.platform.clone())
        }
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
    if platform.os != "windows" {
        config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    }
    config
}

/// The platform a config is for, normalised; `None` where it does not say.
pub(super) fn platform_of(config: &ImageConfig) -> Option<Platform> {
    if config.os.is_empty() || config.architecture.is_empty() {
        return None;
    }
    let variant = config.variant.clone().filter(|variant| !variant.is_empty());
    let platform = Platform { os: config.os.clone(), architecture: config.architecture.clone(), variant };
    Some(platform.to_string().parse().unwrap_or(platform))
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

    /// A metadata step.
    pub(super) fn configure(&mut self, instruction: &Instruction, history: String) -> Option<()> {
        self.step(instruction, Op::Configure, instruction.text.clone(), history);
        Some(())
    }

    /// A numbered step.
    pub(super) fn layer(&mut self, instruction: &Instruction, op: Op, title: String, history: String) {
        self.index += 1;
        let place = shown_place(self.graph, self.node, &self.state.platform, &self.state.scope);
        let number = title::number(&place, self.index, self.total);
        let trigger = if self.is_trigger { "ONBUILD " } else { "" };
        self.step(instruction, op, format!("{number}{trigger}{}", redact(&title)), history);
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
