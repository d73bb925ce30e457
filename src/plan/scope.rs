//! Variables: what ARG and ENV have set at a point of the file.
//!
//! ```text
//! platform arguments ─▶ global ARGs ─▶ FROM lines, and bare `ARG NAME` of a stage
//! image's Env ─▶ ARG and ENV of the stage, in the order of the text ─▶ expansion and RUN
//! ```
//!
//! ARG and ENV share one table and the later one wins, which is what BuildKit's code does: the
//! documentation's "ENV always wins" holds only for an ENV after the ARG. The image's own `Env` knows ENV
//! alone.

use std::collections::{BTreeMap, BTreeSet};

use super::Options;
use crate::diag::{Diagnostic, nearest};
use crate::dockerfile::expand::{self, Variables};
use crate::dockerfile::{ArgDeclaration, Dockerfile, Instruction, Kind};

/// Variables in the order in which they were first set.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope(Vec<(String, String)>);

impl Scope {
    /// A new value keeps the place of the old one.
    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

impl Variables for Scope {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The ARGs a stage has declared: each name once, at its first place, with its last value.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments(Vec<(String, Option<String>)>);

impl Arguments {
    pub fn declare(&mut self, name: &str, value: Option<&str>) {
        let value = value.map(String::from);
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.into(), value)),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Those that have a value in `scope`, which an ENV after the ARG may have changed.
    pub fn in_scope(&self, scope: &Scope) -> Vec<(String, String)> {
        self.0.iter().filter_map(|(name, _)| Some((name.clone(), scope.get(name)?.into()))).collect()
    }

    /// `NAME=value` of all, as the history of a RUN lists them: an unset one is `NAME=`.
    pub fn for_history(&self, scope: &Scope) -> Vec<String> {
        self.0
            .iter()
            .map(|(name, value)| format!("{name}={}", scope.get(name).or(value.as_deref()).unwrap_or_default()))
            .collect()
    }
}

/// Arguments that instruct the builder and never become variables of a RUN.
pub(super) fn is_no_variable(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// The global scope: platform arguments and the ARGs before the first FROM. `build_args` win over both.
pub(super) fn globals(
    dockerfile: &Dockerfile,
    options: &Options,
    build_args: &BTreeMap<String, String>,
    faults: &mut Vec<Diagnostic>,
) -> Scope {
    let mut scope = Scope::default();
    for (name, value) in platform_arguments(dockerfile, options) {
        scope.set(name, build_args.get(name).unwrap_or(&value));
    }
    for instruction in &dockerfile.global_args {
        for declaration in declarations(instruction) {
            if let Some(value) = build_args.get(&declaration.name) {
                scope.set(&declaration.name, value);
            } else if let Some(word) = &declaration.value {
                match expand::expand(&word.raw, dockerfile.escape, &scope) {
                    Ok(expanded) => scope.set(&declaration.name, &expanded.text),
                    Err(error) => faults.push(error.at(&instruction.source, word)),
                }
            }
        }
    }
    scope
}

/// What a FROM line may name: the platform arguments and every global ARG, those without a value too.
pub(super) fn global_names<'a>(dockerfile: &'a Dockerfile, globals: &'a Scope) -> BTreeSet<&'a str> {
    let declared = dockerfile.global_args.iter().flat_map(declarations).map(|declaration| declaration.name.as_str());
    declared.chain(globals.names()).collect()
}

fn platform_arguments(dockerfile: &Dockerfile, options: &Options) -> Vec<(&'static str, String)> {
    let variant = |variant: &Option<String>| variant.clone().unwrap_or_default();
    let (build, target) = (&options.build_platform, &options.platform);
    let stage = options
        .target
        .as_deref()
        .filter(|target| !target.is_empty())
        .or_else(|| dockerfile.stages.last().and_then(|stage| stage.name()))
        .unwrap_or("default");
    vec![
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", String::new()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", variant(&build.variant)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", String::new()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", variant(&target.variant)),
        ("TARGETSTAGE", stage.to_owned()),
    ]
}

const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The proxy variables that every RUN gets without declaring them, in both spellings. Where both were given, the
/// lower-case one wins.
pub(super) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut proxies = Vec::new();
    for name in PROXIES {
        let value =
            build_args.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value).next_back();
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            proxies.push((name.to_owned(), value.clone()));
            proxies.push((name.to_ascii_lowercase(), value.clone()));
        }
    }
    proxies
}

/// Build arguments that mean something without an ARG.
const PREDEFINED: [&str; 11] = [
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_INLINE_CACHE",
    "BUILDKIT_MULTI_PLATFORM",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
    "BUILDKIT_SYNTAX",
    "SOURCE_DATE_EPOCH",
];

/// A warning for each build argument that no ARG of the file (or of an ONBUILD trigger) declares.
pub(super) fn unused<'a>(
    dockerfile: &'a Dockerfile,
    triggers: impl Iterator<Item = &'a Instruction>,
    options: &Options,
) -> Vec<Diagnostic> {
    let stages = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
    let declared: BTreeSet<&str> = (dockerfile.global_args.iter().chain(stages).chain(triggers))
        .flat_map(declarations)
        .map(|declaration| declaration.name.as_str())
        .collect();
    let is_predefined = |name: &str| {
        PREDEFINED.contains(&name)
            || PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
            || platform_arguments(dockerfile, options).iter().any(|(known, _)| *known == name)
    };
    (options.build_args.keys())
        .filter(|name| !declared.contains(name.as_str()) && !is_predefined(name))
        .map(|name| {
            let warning = Diagnostic::warning("UnusedBuildArg", format!("no ARG declares the build argument `{name}`"));
            match nearest(name, declared.iter().copied()) {
                Some(near) => warning.hint(format!("did you mean `{near}`?")),
                None => warning,
            }
        })
        .collect()
}

fn declarations(instruction: &Instruction) -> &[ArgDeclaration] {
    match &instruction.kind {
        Kind::Arg(declarations) => declarations,
        // ONBUILD ARG declares for the images built on this one; an argument for it is not idle here.
        Kind::Onbuild(onbuild) => declarations(&onbuild.trigger),
        _ => &[],
    }
}
