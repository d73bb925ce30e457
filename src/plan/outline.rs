//! What a target takes from outside: arguments, secrets, agents, caches; and which targets there are.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::Graph;
use super::{Bases, Options, mount, path};
use crate::diag::Diagnostic;
use crate::dockerfile::expand::{self, Variables};
use crate::dockerfile::{Dockerfile, Instruction, Kind};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The name of the target.
    pub name: Option<String>,
    pub description: Option<String>,
    /// In the order of the text, each name once.
    pub args: Vec<OutlineArg>,
    /// Whether each secret is required, by id.
    pub secrets: BTreeMap<String, bool>,
    pub agents: BTreeMap<String, bool>,
    /// The ids of cache mounts.
    pub caches: BTreeSet<String>,
    pub targets: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArg {
    pub name: String,
    pub description: Option<String>,
    /// The one it has in this build, as far as it can be told without the base images.
    pub value: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: Option<String>,
    pub description: Option<String>,
    /// The image or stage of its FROM.
    pub base: String,
    pub platform: Option<String>,
    /// It is built when no target is named.
    pub is_default: bool,
}

/// Of the stages that the target needs.
pub fn outline(dockerfile: &Dockerfile, options: &Options) -> Result<Outline, Vec<Diagnostic>> {
    let graph = Graph::new(dockerfile, options, &Bases::new())?;
    let last = dockerfile.stages.len() - 1;
    let described = |index: usize| {
        let from = &dockerfile.stages[index].from;
        dockerfile.description(from.span, from.name.as_deref()?)
    };
    let targets = graph.nodes.iter().enumerate().map(|(index, node)| Target {
        name: node.stage.from.name.clone(),
        description: described(index),
        base: node.base_name.clone(),
        platform: node.platform.as_ref().map(ToString::to_string),
        is_default: index == last,
    });
    let mut outline = Outline {
        name: dockerfile.stages[graph.target].from.name.clone(),
        description: described(graph.target),
        args: Vec::new(),
        secrets: BTreeMap::new(),
        agents: BTreeMap::new(),
        caches: BTreeSet::new(),
        targets: targets.collect(),
    };
    let stages = graph.reachable.iter().filter(|index| !graph.nodes[**index].is_replaced);
    let instructions = stages.flat_map(|index| &dockerfile.stages[*index].instructions);
    for instruction in dockerfile.global_args.iter().chain(instructions) {
        match &instruction.kind {
            Kind::Arg(_) => outline.add_arguments(instruction, &graph),
            Kind::Run(run) => {
                for flag in &run.mounts {
                    outline.add_mount(&mount::fields(flag, &instruction.source).map_err(|fault| vec![fault])?);
                }
            }
            _ => {}
        }
    }
    Ok(outline)
}

impl Outline {
    fn add_arguments(&mut self, instruction: &Instruction, graph: &Graph<'_>) {
        let Kind::Arg(declarations) = &instruction.kind else { return };
        for declaration in declarations {
            let name = &declaration.name;
            let default = |raw: &str| expand::expand(raw, graph.dockerfile.escape, &graph.globals).ok();
            let given = graph.options.build_args.get(name).cloned();
            let value = given
                .or_else(|| Some(default(&declaration.value.as_ref()?.raw)?.text))
                .or_else(|| graph.globals.get(name).map(str::to_owned));
            let description = graph.dockerfile.description(instruction.span, name);
            match self.args.iter_mut().find(|known| known.name == *name) {
                // What is said first of an argument holds, and where nothing is said what comes later.
                Some(known) => {
                    known.description = known.description.take().or(description);
                    known.value = known.value.take().or(value);
                }
                None => self.args.push(OutlineArg { name: name.clone(), description, value }),
            }
        }
    }

    /// Values with variables are shown as they are written.
    fn add_mount(&mut self, fields: &[mount::Field]) {
        let value = |keys: &[&str]| {
            let field = fields.iter().rev().find(|field| keys.contains(&field.key.as_str()))?;
            field.value.as_ref().map(|value| value.raw.clone()).filter(|value| !value.is_empty())
        };
        let target = || value(&["target", "dst", "destination"]);
        let is_required = fields.iter().rev().find(|field| field.key == "required").is_some_and(|field| {
            field
                .value
                .as_ref()
                .is_none_or(|value| matches!(value.raw.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
        });
        match value(&["type"]).unwrap_or_default().to_ascii_lowercase().as_str() {
            "secret" => {
                let id = value(&["id", "source", "src"]);
                if let Some(id) = id.or_else(|| Some(path::base_name(&target()?).to_owned())) {
                    *self.secrets.entry(id).or_default() |= is_required;
                }
            }
            "ssh" => *self.agents.entry(value(&["id"]).unwrap_or_else(|| "default".into())).or_default() |= is_required,
            "cache" => {
                self.caches.extend(value(&["id"]).or_else(|| Some(path::clean_relative(&target()?))));
            }
            _ => {}
        }
    }
}
