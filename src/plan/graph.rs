//! The stages of a file and what they are made from: FROM, `--from` and ONBUILD triggers linked to stages,
//! images and named contexts. Everything here is known before any instruction is planned.
//!
//! A name means, in this order: a named context, a stage, an image. A stage whose own name is a named
//! context is replaced by it. FROM sees the stages above it; `--from` sees all, and one that is not above is
//! an error rather than an image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::diag::{Diagnostic, Source, Span, nearest};
use crate::dockerfile::expand;
use crate::dockerfile::{self, Dockerfile, Flag, Instruction, Kind, Stage};
use crate::image::{Platform, Reference};

use super::op::{BaseKey, Located};
use super::scope::{self, Scope};
use super::{Base, Bases, Options, Wanted, lint, mount};

/// Where a root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    Scratch,
    Stage(usize),
    Outside(BaseKey),
}

pub(super) struct Node<'a> {
    pub stage: &'a Stage,
    /// `AS name`, or `stage-N`.
    pub name: String,
    /// The image of FROM, expanded.
    pub base_name: String,
    pub base: Provider,
    /// The stage's name is a named context: its instructions do not count, and `base` is all of it.
    pub is_replaced: bool,
    /// `--platform`.
    pub platform: Option<Platform>,
    /// ONBUILD triggers of the base, which run right after FROM.
    pub triggers: Vec<Instruction>,
    has_triggers: bool,
    reads: Vec<Read>,
}

impl Node<'_> {
    /// A fault in a trigger of the base image also points at the FROM that brought it.
    pub fn blame(&self, fault: Diagnostic) -> Diagnostic {
        let from = &self.stage.from;
        if fault.labels.iter().any(|label| Arc::ptr_eq(&label.source, &from.source)) {
            return fault;
        }
        fault.at(&from.source, from.image.span, "the base image has this trigger")
    }
}

/// A `--from` or `from=` of an instruction.
struct Read {
    provider: Provider,
    at: Located,
}

pub(super) struct Graph<'a> {
    pub dockerfile: &'a Dockerfile,
    pub options: &'a Options,
    pub globals: Scope,
    pub nodes: Vec<Node<'a>>,
    /// By name, the last stage of that name.
    names: BTreeMap<String, usize>,
    pub target: usize,
    /// The stages that the target needs, itself included.
    pub reachable: BTreeSet<usize>,
    pub warnings: Vec<Diagnostic>,
}

impl<'a> Graph<'a> {
    /// Links the stages. Triggers of images that are not in `known` yet are not seen.
    pub fn new(dockerfile: &'a Dockerfile, options: &'a Options, known: &Bases) -> Result<Self, Vec<Diagnostic>> {
        let mut faults = Vec::new();
        let globals = scope::globals(dockerfile, options, &options.build_args, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut graph = Self {
            dockerfile,
            options,
            globals,
            nodes: Vec::new(),
            names: BTreeMap::new(),
            target: dockerfile.stages.len() - 1,
            reachable: BTreeSet::new(),
            warnings: Vec::new(),
        };
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            graph.add_stage(index, stage, &mut faults);
        }
        graph.warnings = lint::froms(dockerfile, options, &graph.globals);
        graph.find_target(&mut faults);
        if !faults.is_empty() {
            return Err(lint::with_warnings(faults, graph.warnings));
        }
        for index in 0..graph.nodes.len() {
            if !graph.nodes[index].is_replaced {
                graph.read_instructions(index, &graph.nodes[index].stage.instructions, &mut faults);
            }
        }
        graph.find_cycles(&mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        graph.reach(known, &mut faults);
        if faults.is_empty() { Ok(graph) } else { Err(faults) }
    }

    /// What must be resolved for the stages that are reachable so far, without what `known` has.
    pub fn wanted(&self, known: &Bases) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for index in &self.reachable {
            let node = &self.nodes[*index];
            let from = &node.stage.from;
            let span = if node.is_replaced { from.name_span } else { from.image.span };
            let base = Located { text: node.base_name.clone(), source: Arc::clone(&from.source), span };
            let reads = node.reads.iter().map(|read| (&read.provider, &read.at));
            for (provider, at) in std::iter::once((&node.base, &base)).chain(reads) {
                if let Provider::Outside(key) = provider
                    && !known.contains_key(key)
                    && !wanted.iter().any(|earlier| earlier.key == *key)
                {
                    wanted.push(Wanted { key: key.clone(), at: at.clone() });
                }
            }
        }
        wanted
    }

    /// Looks up `--from` of COPY: a stage by name or number, or what [`Graph::outside`] finds.
    pub fn copy_from(&self, flag: &Flag, source: &Arc<Source>) -> Result<Provider, Diagnostic> {
        let name = &flag.value.raw;
        if name.contains('$') {
            return Err(no_variable("--from", source, flag.value.span));
        }
        if let Ok(index) = name.parse::<i64>() {
            return match usize::try_from(index) {
                Ok(index) if index < self.nodes.len() => Ok(Provider::Stage(index)),
                _ => {
                    let last = self.nodes.len() - 1;
                    let message = format!("there is no stage number {index}, the last is number {last}");
                    Err(Diagnostic::error(message).at(source, flag.value.span, ""))
                }
            };
        }
        self.named(name, source, flag.value.span)
    }

    /// Looks up `from=` of a mount: like [`Graph::copy_from`], but a number is no stage.
    pub fn mount_from(&self, name: &str, source: &Arc<Source>, span: Span) -> Result<Provider, Diagnostic> {
        if name.contains('$') {
            return Err(no_variable("from", source, span));
        }
        self.named(name, source, span)
    }

    fn named(&self, name: &str, source: &Arc<Source>, span: Span) -> Result<Provider, Diagnostic> {
        if let Some(index) = self.names.get(&name.to_ascii_lowercase()) {
            return Ok(Provider::Stage(*index));
        }
        if name == "scratch" {
            return Ok(Provider::Scratch);
        }
        self.outside(name, &self.options.platform, source, span).map(Provider::Outside)
    }

    /// The key of a named context or an image.
    fn outside(
        &self,
        name: &str,
        platform: &Platform,
        source: &Arc<Source>,
        span: Span,
    ) -> Result<BaseKey, Diagnostic> {
        if let Some(context) = self.context(name, platform) {
            return Ok(BaseKey { name: context, platform: platform.clone() });
        }
        match name.parse::<Reference>() {
            Ok(_) => Ok(BaseKey { name: name.into(), platform: platform.clone() }),
            Err(reason) => {
                let fault =
                    Diagnostic::error(format!("`{name}` is no image reference")).at(source, span, "").caused_by(reason);
                Err(match self.names.contains_key(&name.to_ascii_lowercase()) {
                    true => fault.hint(format!("to name the stage, write `{}`", name.to_ascii_lowercase())),
                    false => fault,
                })
            }
        }
    }

    /// The named context that `name` means. `docker.io/library/x:latest` means the context `x`, and
    /// one made for the platform, `x::linux/arm64`, goes before it.
    fn context(&self, name: &str, platform: &Platform) -> Option<String> {
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "scratch" | "context") {
            return None;
        }
        let short = context_name(&name);
        [format!("{short}::{platform}"), short]
            .into_iter()
            .find(|candidate| self.options.named_contexts.contains(candidate))
    }

    fn add_stage(&mut self, index: usize, stage: &'a Stage, faults: &mut Vec<Diagnostic>) {
        let from = &stage.from;
        let expand = |word: &dockerfile::Word| {
            expand::expand(&word.raw, self.dockerfile.escape, &self.globals)
                .map_err(|error| error.at(&from.source, word))
        };
        let mut node = Node {
            stage,
            name: stage.name().map_or_else(|| format!("stage-{index}"), String::from),
            base_name: String::new(),
            base: Provider::Scratch,
            is_replaced: false,
            platform: None,
            triggers: Vec::new(),
            has_triggers: false,
            reads: Vec::new(),
        };
        if let Some(word) = &from.platform {
            match expand(word).and_then(|expanded| self.platform(&expanded, word, &from.source)) {
                Ok(platform) => node.platform = Some(platform),
                Err(fault) => faults.push(fault),
            }
        }
        match expand(&from.image) {
            Err(fault) => faults.push(fault),
            Ok(expanded) if expanded.text.is_empty() => {
                let fault = Diagnostic::error(format!("`{}` is empty: FROM needs an image", from.image.raw)).at(
                    &from.source,
                    from.image.span,
                    "",
                );
                faults.push(self.suggest_global(fault, &expanded.unset));
            }
            Ok(expanded) => {
                node.base_name = expanded.text;
                let platform = node.platform.as_ref().unwrap_or(&self.options.platform);
                let own_context = stage.name().and_then(|name| self.context(name, platform));
                if let Some(context) = own_context {
                    node.base_name.clone_from(&context);
                    node.base = Provider::Outside(BaseKey { name: context, platform: platform.clone() });
                    node.is_replaced = true;
                } else if let Some(earlier) = self.names.get(&node.base_name) {
                    node.base = Provider::Stage(*earlier);
                } else if node.base_name != "scratch" {
                    match self.outside(&node.base_name, platform, &from.source, from.image.span) {
                        Ok(key) => node.base = Provider::Outside(key),
                        Err(fault) => faults.push(fault),
                    }
                }
            }
        }
        self.nodes.push(node);
        if let Some(name) = stage.name() {
            self.names.insert(name.to_ascii_lowercase(), index);
        }
    }

    fn platform(
        &self,
        expanded: &expand::Expanded,
        word: &dockerfile::Word,
        source: &Arc<Source>,
    ) -> Result<Platform, Diagnostic> {
        let fault = if expanded.text.is_empty() {
            Diagnostic::error(format!("`{}` is empty: --platform needs a platform", word.raw))
        } else {
            match expanded.text.parse::<Platform>() {
                Ok(platform) => return Ok(platform),
                Err(reason) => Diagnostic::error(format!("`{}` is no platform", expanded.text)).caused_by(reason),
            }
        };
        Err(self.suggest_global(fault.at(source, word.span, ""), &expanded.unset))
    }

    /// Says what to do about names that are unset.
    fn suggest_global(&self, fault: Diagnostic, unset: &[String]) -> Diagnostic {
        let names = scope::global_names(self.dockerfile, &self.globals);
        if let Some(name) = unset.iter().find(|name| names.contains(name.as_str())) {
            return fault
                .hint(format!("give it a value with `--build-arg {name}=…`, or a default with `ARG {name}=…`"));
        }
        match unset.iter().find_map(|name| nearest(name, names.iter().copied())) {
            Some(near) => fault.hint(format!("did you mean `${near}`?")),
            None => fault,
        }
    }

    fn find_target(&mut self, faults: &mut Vec<Diagnostic>) {
        let Some(target) = self.options.target.as_deref().filter(|target| !target.is_empty()) else { return };
        match self.names.get(&target.to_ascii_lowercase()) {
            Some(index) => self.target = *index,
            None => {
                let fault = Diagnostic::error(format!("there is no stage `{target}` to build"));
                let names: Vec<&str> = self.names.keys().map(String::as_str).collect();
                faults.push(match nearest(target, names.iter().copied()) {
                    Some(near) => fault.hint(format!("did you mean `--target {near}`?")),
                    None if names.is_empty() => fault.hint("name a stage with `FROM … AS name`"),
                    None => fault.hint(format!("the stages are: {}", names.join(", "))),
                });
            }
        }
    }

    /// Records what `instructions` read from.
    fn read_instructions(&mut self, index: usize, instructions: &[Instruction], faults: &mut Vec<Diagnostic>) {
        for instruction in instructions {
            for (text, span, provider) in self.froms(instruction, faults) {
                match provider {
                    Ok(provider) => {
                        let at = Located { text, source: Arc::clone(&instruction.source), span };
                        self.nodes[index].reads.push(Read { provider, at });
                    }
                    Err(fault) => faults.push(fault),
                }
            }
        }
    }

    /// The `--from` and `from=` of an instruction.
    #[allow(clippy::type_complexity)]
    fn froms(
        &self,
        instruction: &Instruction,
        faults: &mut Vec<Diagnostic>,
    ) -> Vec<(String, Span, Result<Provider, Diagnostic>)> {
        let source = &instruction.source;
        let mut froms = Vec::new();
        match &instruction.kind {
            Kind::Copy(copy) => {
                if let Some(flag) = copy.from.as_ref().filter(|flag| !flag.value.raw.is_empty()) {
                    froms.push((flag.value.raw.clone(), flag.value.span, self.copy_from(flag, source)));
                }
            }
            Kind::Run(run) => {
                for flag in &run.mounts {
                    match mount::fields(flag, source) {
                        Ok(fields) => {
                            for field in fields.iter().filter(|field| field.key == "from") {
                                if let Some(name) = field.value.as_ref().filter(|name| !name.raw.is_empty()) {
                                    let provider = self.mount_from(&name.raw, source, name.span);
                                    froms.push((name.raw.clone(), name.span, provider));
                                }
                            }
                        }
                        Err(fault) => faults.push(fault),
                    }
                }
            }
            _ => {}
        }
        froms
    }

    /// A stage must not need itself, not even one that is not built.
    fn find_cycles(&self, faults: &mut Vec<Diagnostic>) {
        let mut done = BTreeSet::new();
        for index in 0..self.nodes.len() {
            if let Some(cycle) = self.cycle_from(index, &mut done) {
                faults.push(self.cycle_fault(&cycle));
            }
        }
    }

    /// The first cycle among the stages that `index` needs, leaving out those in `done`; adds all it has
    /// looked at to `done`. A path is kept instead of recursing: a file may have any number of stages.
    fn cycle_from(&self, index: usize, done: &mut BTreeSet<usize>) -> Option<Vec<usize>> {
        if !done.insert(index) {
            return None;
        }
        let mut path = vec![(index, self.needs(index))];
        while let Some((_, needs)) = path.last_mut() {
            let Some(needed) = needs.pop() else {
                path.pop();
                continue;
            };
            if let Some(start) = path.iter().position(|(earlier, _)| *earlier == needed) {
                return Some(path[start..].iter().map(|(index, _)| *index).collect());
            }
            if done.insert(needed) {
                path.push((needed, self.needs(needed)));
            }
        }
        None
    }

    fn cycle_fault(&self, cycle: &[usize]) -> Diagnostic {
        let names: Vec<_> = cycle.iter().chain(&cycle[..1]).map(|index| self.nodes[*index].name.as_str()).collect();
        let mut fault = Diagnostic::error(match cycle.len() {
            1 => format!("stage `{}` needs itself", names[0]),
            _ => format!("stages need each other: {}", names.join(" → ")),
        });
        for (from, to) in cycle.iter().zip(cycle.iter().cycle().skip(1)) {
            let node = &self.nodes[*from];
            let text = match from == to {
                true => String::new(),
                false => format!("`{}` needs `{}`", node.name, self.nodes[*to].name),
            };
            fault = match node.reads.iter().find(|read| read.provider == Provider::Stage(*to)) {
                Some(read) => fault.at(&read.at.source, read.at.span, text),
                None => fault.at(&node.stage.from.source, node.stage.from.image.span, text),
            };
        }
        fault
    }

    /// The stages that a stage needs.
    fn needs(&self, index: usize) -> Vec<usize> {
        let node = &self.nodes[index];
        (std::iter::once(&node.base).chain(node.reads.iter().map(|read| &read.provider)))
            .filter_map(|provider| match provider {
                Provider::Stage(stage) => Some(*stage),
                _ => None,
            })
            .collect()
    }

    /// Finds what is reachable from the target. Triggers may make more so, whose bases may have triggers.
    fn reach(&mut self, known: &Bases, faults: &mut Vec<Diagnostic>) {
        loop {
            self.reachable.clear();
            let mut pending = vec![self.target];
            if self.options.plans_every_stage {
                pending.extend(0..self.nodes.len());
            }
            while let Some(index) = pending.pop() {
                if self.reachable.insert(index) {
                    pending.extend(self.needs(index));
                }
            }
            let new: Vec<_> = self.reachable.iter().copied().filter(|index| !self.nodes[*index].has_triggers).collect();
            let mut found_triggers = false;
            for index in new {
                found_triggers |= self.add_triggers(index, known, faults);
            }
            if !found_triggers || !faults.is_empty() {
                break;
            }
        }
        for index in &self.reachable {
            for read in &self.nodes[*index].reads {
                if let Provider::Stage(stage) = read.provider
                    && stage >= *index
                {
                    faults.push(self.nodes[*index].blame(self.too_early(*index, stage, &read.at)));
                }
            }
        }
    }

    fn too_early(&self, index: usize, needed: usize, at: &Located) -> Diagnostic {
        let (name, this) = (&self.nodes[needed].name, &self.nodes[index].name);
        let from = &self.nodes[needed].stage.from;
        if needed == index {
            return at.error(format!("stage `{name}` needs itself"));
        }
        at.error(format!("stage `{name}` comes after stage `{this}`, which needs it"))
            .at(&from.source, from.span, "defined here")
            .hint(format!("move stage `{name}` above stage `{this}`"))
    }

    /// Adds the triggers of a stage's base, once; says whether there were any.
    fn add_triggers(&mut self, index: usize, known: &Bases, faults: &mut Vec<Diagnostic>) -> bool {
        let node = &self.nodes[index];
        if node.is_replaced {
            self.nodes[index].has_triggers = true;
            return false;
        }
        let (key, earlier) = match &node.base {
            Provider::Scratch => (None, None),
            Provider::Outside(key) => (Some(key), None),
            Provider::Stage(earlier) => match &self.nodes[*earlier].base {
                Provider::Outside(key) if self.nodes[*earlier].is_replaced => (Some(key), None),
                _ => (None, Some(*earlier)),
            },
        };
        let mut triggers = Vec::new();
        if let Some(earlier) = earlier {
            triggers.extend(self.nodes[earlier].stage.instructions.iter().filter_map(|instruction| {
                match &instruction.kind {
                    Kind::Onbuild(onbuild) => Some((*onbuild.trigger).clone()),
                    _ => None,
                }
            }));
        } else if let Some(key) = key {
            let Some(base) = known.get(key) else { return false };
            if let Base::Image(config) = base {
                for text in &config.config.on_build {
                    // An image does not say which escape character its Dockerfile had.
                    let source = Source::new(format!("ONBUILD trigger of {}", key.name), text.clone());
                    match dockerfile::parse_trigger(source, '\\') {
                        Ok(trigger) => triggers.push(trigger),
                        Err(found) => faults.extend(found.into_iter().map(|fault| node.blame(fault))),
                    }
                }
            }
        }
        self.nodes[index].has_triggers = true;
        let mut found = Vec::new();
        self.read_instructions(index, &triggers, &mut found);
        faults.extend(found.into_iter().map(|fault| self.nodes[index].blame(fault)));
        let found = !triggers.is_empty();
        self.nodes[index].triggers = triggers;
        found
    }
}

/// The name of a named context as it is looked up: lower case, as short as an image is called.
pub fn context_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let short = name.strip_prefix("docker.io/").unwrap_or(&name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    short.strip_suffix(":latest").unwrap_or(short).to_owned()
}

fn no_variable(flag: &str, source: &Arc<Source>, span: Span) -> Diagnostic {
    let name = source.text.get(span.range()).unwrap_or("$IMAGE");
    Diagnostic::error(format!("`{flag}` does not expand variables")).at(source, span, "").hint(format!(
        "give it a name with `FROM {name} AS alias` (the ARG before the first FROM), and use `{flag}=alias`"
    ))
}
