//! From a parsed Dockerfile and the configs of its base images to the step graph. Pure: variables
//! are expanded, stages linked, configs and history texts computed; nothing is opened.
//!
//! ```text
//! Dockerfile ── bases() ──▶ names to resolve ── (the world) ──▶ Bases ── plan() ──▶ Plan
//! ```

mod copy;
mod device;
mod graph;
mod history;
mod ignored;
mod lint;
mod metadata;
mod mount;
pub mod op;
mod outline;
mod path;
mod port;
mod run;
mod scope;
mod script;
mod signal;
mod stage;
mod title;

use std::collections::{BTreeMap, BTreeSet};

use crate::diag::Diagnostic;
use crate::dockerfile::Dockerfile;
use crate::dockerfile::expand::Variables as _;
use crate::image::{ImageConfig, Platform};

use graph::Graph;
use stage::Draft;

pub use graph::context_name;
pub use ignored::ignored;
pub use op::{
    BaseKey, Copy, CopyKind, CopySource, GitSource, HeredocFile, Input, Located, Network, Op, Root, Run, RunDevice,
    RunMount, RunMountKind, Security, Sharing, Step, StepId, Workdir,
};
pub use outline::{Outline, OutlineArg, Target, outline};

/// What the command line says about the language.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Option<String>,
    /// Stages that the target does not need are planned too, as `--check` of a whole file asks.
    pub plans_every_stage: bool,
    /// `--build-arg`, values already taken from the environment where none was given.
    pub build_args: BTreeMap<String, String>,
    /// `--label`, applied last.
    pub labels: BTreeMap<String, String>,
    /// What the image is built for.
    pub platform: Platform,
    /// Whether `platform` was asked for (then it is the image's, whatever the base says).
    pub platform_is_explicit: bool,
    /// Whether titles begin with the platform, as there are steps for others.
    pub shows_platform: bool,
    /// What the build runs on.
    pub build_platform: Platform,
    /// Names given with `--build-context` that are images or directories, as [`context_name`] has them.
    pub named_contexts: BTreeSet<String>,
    /// `--network`, for RUNs without their own.
    pub network: Network,
    /// `--allow`.
    pub allows_insecure: bool,
    pub allows_host_network: bool,
}

/// What a name turned out to be.
#[derive(Clone, Debug)]
pub enum Base {
    Image(Box<ImageConfig>),
    /// A named context that is a directory.
    Directory,
}

/// Results of resolving, by name and platform as [`bases`] asked for them.
pub type Bases = BTreeMap<BaseKey, Base>;

/// A name that must be resolved before planning, and where it stands.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub key: BaseKey,
    pub at: Located,
}

/// The names that the target needs and that are not in `known` yet. To be called again after
/// resolving: the ONBUILD triggers of a base may ask for more. Empty when planning can start.
pub fn bases(dockerfile: &Dockerfile, options: &Options, known: &Bases) -> Result<Vec<Wanted>, Vec<Diagnostic>> {
    Ok(Graph::new(dockerfile, options, known)?.wanted(known))
}

/// `SOURCE_DATE_EPOCH` as the command line gives it, or an ARG before the first FROM.
pub fn source_date_epoch(dockerfile: &Dockerfile, options: &Options) -> Option<String> {
    let name = "SOURCE_DATE_EPOCH";
    let globals = scope::globals(dockerfile, options, &options.build_args, &mut Vec::new());
    options.build_args.get(name).cloned().or_else(|| globals.get(name).map(String::from))
}

/// The steps the target needs, parents before children.
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// The last step of the target stage.
    pub target: StepId,
    /// The image's config, complete but for `created`, `rootfs` and the new entries of `history`
    /// (the base's entries stand in it; each step's text is [`Step::history`]).
    pub config: ImageConfig,
    /// Lint findings and unused build arguments.
    pub warnings: Vec<Diagnostic>,
}

impl Plan {
    pub fn step(&self, id: StepId) -> &Step {
        &self.steps[id.0]
    }

    /// The chain of steps that make up the rootfs of `id`, from its FROM to `id` itself; crosses
    /// into parent stages.
    pub fn ancestry(&self, id: StepId) -> Vec<StepId> {
        let mut chain: Vec<_> = std::iter::successors(Some(id), |id| self.step(*id).parent).collect();
        chain.reverse();
        chain
    }
}

/// Makes the step graph. Every fault found is returned, and with faults the warnings that say something else.
pub fn plan(dockerfile: &Dockerfile, options: &Options, bases: &Bases) -> Result<Plan, Vec<Diagnostic>> {
    let graph = Graph::new(dockerfile, options, bases)?;
    let mut draft = Draft { ends: vec![None; graph.nodes.len()], ..Draft::default() };
    draft.warnings.clone_from(&graph.warnings);
    for index in &graph.reachable {
        let end = stage::plan(&graph, bases, *index, &mut draft);
        draft.ends[*index] = Some(end);
    }
    let triggers = graph.nodes.iter().flat_map(|node| &node.triggers);
    draft.warnings.extend(scope::unused(dockerfile, triggers, options));
    match draft.ends.swap_remove(graph.target) {
        Some(end) if draft.faults.is_empty() => Ok(Plan {
            steps: draft.steps,
            target: end.last,
            config: finish(end.config, options),
            warnings: draft.warnings,
        }),
        _ => Err(lint::with_warnings(draft.faults, draft.warnings)),
    }
}

/// The config of the image: that of the target stage, for the platform that was asked for, with `--label`.
fn finish(mut config: ImageConfig, options: &Options) -> ImageConfig {
    config.config.labels.extend(options.labels.clone());
    if config.os == "windows" {
        config.config.working_dir = config.config.working_dir.replace('/', "\\");
    }
    let target = &options.platform;
    if options.platform_is_explicit || config.architecture.is_empty() || config.os.is_empty() {
        let is_same = config.os == target.os && config.architecture == target.architecture;
        config.os.clone_from(&target.os);
        config.architecture.clone_from(&target.architecture);
        if !is_same || target.variant.is_some() {
            config.variant.clone_from(&target.variant);
        }
        if !is_same {
            config.extra.remove("os.version");
        }
    }
    if let Some(normal) = stage::platform_of(&config) {
        config.os = normal.os;
        config.architecture = normal.architecture;
        config.variant = normal.variant;
    }
    config
}
