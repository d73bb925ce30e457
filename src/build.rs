//! The pipeline: from a request to images. Start reading here.
//!
//! ```text
//! read ─▶ parse ─▶ bases ─▶ resolve ─▶ plan ─▶ solve ─▶ image ─▶ export
//! ```

use std::collections::BTreeMap;

use crate::context::IgnoreRules;
use crate::diag::{Diagnostic, Result, Severity, nearest};
use crate::dockerfile::check::Check;
use crate::dockerfile::{self, Dockerfile, Stage};
use crate::export::{self, Built, Exported, Output};
use crate::host::{Host, Origin, rfc3339};
use crate::image::{History, ImageConfig, Platform, Reference};
use crate::layer::Compression;
use crate::parallel;
use crate::plan::{self, Base, BaseKey, Bases, Plan};
use crate::progress::Event;
use crate::resolve;
use crate::solve::{self, Explained, Layers, NoCache, Settings, Solution};
use crate::source::{self, DockerfileAt};
use crate::store::{ImageRecord, Packing};

/// What the user asked for.
pub struct Request {
    pub dockerfile: DockerfileAt,
    /// `options.platform` is replaced by each of `platforms`.
    pub options: plan::Options,
    /// At least one.
    pub platforms: Vec<Platform>,
    pub settings: Settings,
    pub outputs: Vec<Output>,
    /// Names in the local store.
    pub names: Vec<Reference>,
}

/// What a build gave.
pub struct Outcome {
    pub images: Vec<Built>,
    pub exported: Exported,
}

/// Builds and exports. Every fault of the Dockerfile is returned at once; a fault while running
/// comes alone. What was committed before a failure stays in the cache; outputs appear whole or not
/// at all.
pub fn build(request: &Request, host: &Host<'_>) -> Result<Outcome, Vec<Diagnostic>> {
    let dockerfile = parse(request, host)?;
    let mut warnings = Warnings::of(&dockerfile, request);
    let layers = Layers::of(host).packed_ahead(compressions(&request.outputs));
    let mut images = Vec::new();
    for platform in &request.platforms {
        let planned = plan(&request.options, &dockerfile, platform, host);
        let (plan, bases) = warnings.tell(planned, host)?;
        know(&bases, &layers);
        let solution = solve::solve(&plan, host, &request.settings, &bases, &layers).map_err(alone)?;
        let stack = solution.of(plan.target).stack.clone();
        let config = finish_config(&plan, &solution, host.epoch());
        images.push(Built { platform: platform.clone(), config, stack });
    }
    host.executor.rest();
    layers.finish_packing(host.audience()).map_err(alone)?;
    let exported = export::export(&images, &request.outputs, &request.names, host, &layers).map_err(alone)?;
    host.reporter.report(Event::Ended);
    Ok(Outcome { images, exported })
}

/// Those that outputs want layers in, where it takes time to make them.
fn compressions(outputs: &[Output]) -> Vec<Compression> {
    let mut compressions = Vec::new();
    for Packing { compression, .. } in outputs.iter().filter_map(Output::packing) {
        if compression != Compression::None && !compressions.contains(&compression) {
            compressions.push(compression);
        }
    }
    compressions
}

/// Says for each step whether it would hit, without running anything.
pub fn explain(request: &Request, host: &Host<'_>) -> Result<Vec<Explained>, Vec<Diagnostic>> {
    let dockerfile = parse(request, host)?;
    let mut explained = Vec::new();
    for platform in &request.platforms {
        let (plan, bases) = plan(&request.options, &dockerfile, platform, host)?;
        explained.extend(solve::explain(&plan, host, &request.settings, &bases).map_err(alone)?);
    }
    Ok(explained)
}

/// Makes the layers of bases known, which are fetched when a step needs them.
fn know(bases: &BTreeMap<BaseKey, ImageRecord>, layers: &Layers<'_>) {
    bases.iter().for_each(|(key, record)| layers.remote.know(record, &key.name));
}

fn alone(diagnostic: Diagnostic) -> Vec<Diagnostic> {
    vec![diagnostic]
}

/// All that can be said of the Dockerfile without running anything, in the order of the text: of all stages, or of
/// what the target needs if one is named.
pub fn check(request: &Request, host: &Host<'_>) -> Vec<Diagnostic> {
    let dockerfile = match parse(request, host) {
        Ok(dockerfile) => dockerfile,
        Err(faults) => return faults,
    };
    let mut warnings = Warnings::of(&dockerfile, request);
    let mut faults: Vec<Diagnostic> = Vec::new();
    let is_whole = request.options.target.as_deref().is_none_or(str::is_empty);
    let options = plan::Options { plans_every_stage: is_whole, ..request.options.clone() };
    for platform in &request.platforms {
        let planned = plan(&options, &dockerfile, platform, host);
        let unread = warnings.new_ones(&planned, host).err();
        let found = unread.into_iter().chain(planned.err()).flatten();
        for fault in found.filter(|fault| fault.severity == Severity::Error) {
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
    }
    warnings.told.append(&mut faults);
    warnings.told
}

/// What the target takes from outside, and which targets there are. No image is asked for: what the triggers of
/// a base take is not seen.
pub fn outline(request: &Request, host: &Host<'_>) -> Result<plan::Outline, Vec<Diagnostic>> {
    plan::outline(&parse(request, host)?, &request.options)
}

fn parse(request: &Request, host: &Host<'_>) -> Result<Dockerfile, Vec<Diagnostic>> {
    let source = source::dockerfile(&request.dockerfile, host).map_err(alone)?;
    let dockerfile = dockerfile::parse(source)?;
    if let Some(epoch) = epoch(&dockerfile, request, host).map_err(alone)? {
        // A build has one Dockerfile.
        let _ = host.epoch.set(epoch);
    }
    check_syntax(&dockerfile, request)?;
    Ok(dockerfile)
}

/// `SOURCE_DATE_EPOCH`, of the command line or the Dockerfile; `context` is the time of a context that
/// has one.
fn epoch(dockerfile: &Dockerfile, request: &Request, host: &Host<'_>) -> Result<Option<i64>> {
    match plan::source_date_epoch(dockerfile, &request.options).as_deref() {
        None | Some("") => Ok(None),
        Some("context") => source::context_time(host),
        Some(epoch) => match epoch.parse() {
            Ok(epoch) => Ok(Some(epoch)),
            Err(_) => Err(Diagnostic::error(format!("SOURCE_DATE_EPOCH=`{epoch}` is no number of seconds"))),
        },
    }
}

/// Where the word `context` stands for SOURCE_DATE_EPOCH, stages are told the time it means, or nothing.
fn tell_epoch(options: &mut plan::Options, dockerfile: &Dockerfile, host: &Host<'_>) {
    let name = "SOURCE_DATE_EPOCH";
    if plan::source_date_epoch(dockerfile, options).as_deref() != Some("context") {
        return;
    }
    match host.epoch() {
        Some(epoch) => drop(options.build_args.insert(name.into(), epoch.to_string())),
        None if options.build_args.contains_key(name) => drop(options.build_args.remove(name)),
        None => drop(options.build_args.insert(name.into(), String::new())),
    }
}

type Planned = Result<(Plan, BTreeMap<BaseKey, ImageRecord>), Vec<Diagnostic>>;

/// The warnings that are wanted, each once: the file is planned for each platform.
struct Warnings<'a> {
    dockerfile: &'a Dockerfile,
    check: Check,
    /// Of options that name nothing in the file.
    options: Vec<Diagnostic>,
    told: Vec<Diagnostic>,
}

impl<'a> Warnings<'a> {
    /// `--build-arg BUILDKIT_DOCKERFILE_CHECK` is taken instead of `# check=`.
    fn of(dockerfile: &'a Dockerfile, request: &Request) -> Self {
        let given = request.options.build_args.get("BUILDKIT_DOCKERFILE_CHECK");
        let directive = dockerfile.check.as_ref().map(|word| &word.raw);
        let check = Check::parse(given.or(directive).map_or("", String::as_str));
        Self { dockerfile, check, options: unknown_stages(dockerfile, request), told: Vec::new() }
    }

    /// Tells what has not been told; with `error=true` it ends the build.
    fn tell(&mut self, planned: Planned, host: &Host<'_>) -> Planned {
        let before = self.told.len();
        self.new_ones(&planned, host)?;
        let found = &self.told[before..];
        let faults = planned.as_ref().err().into_iter().flatten().filter(|fault| fault.severity == Severity::Error);
        if self.check.is_error && !found.is_empty() {
            let found = found.iter().map(|warning| Diagnostic { severity: Severity::Error, ..warning.clone() });
            return Err(found.chain(faults.cloned()).collect());
        }
        for warning in found {
            host.reporter.report(Event::Warning(warning));
        }
        match planned {
            Ok(planned) => Ok(planned),
            Err(faults) => Err(faults.into_iter().filter(|fault| fault.severity == Severity::Error).collect()),
        }
    }

    /// Adds what is new to `told`, in the order of the text.
    fn new_ones(&mut self, planned: &Planned, host: &Host<'_>) -> Result<(), Vec<Diagnostic>> {
        let mut found = self.dockerfile.warnings.clone();
        found.extend(self.options.iter().cloned());
        match planned {
            Ok((plan, _)) => {
                found.extend(plan.warnings.iter().cloned());
                if let Some(rules) = ignore_rules(host).map_err(alone)? {
                    found.extend(plan::ignored(plan, &rules));
                }
            }
            Err(faults) => found.extend(faults.iter().cloned()),
        }
        found.retain(|found| found.severity == Severity::Warning && self.check.admits(found, self.dockerfile));
        // What points nowhere comes last.
        found.sort_by_key(|warning| warning.labels.first().map_or(u32::MAX, |label| label.span.start));
        for warning in found {
            if !self.told.contains(&warning) {
                self.told.push(warning);
            }
        }
        Ok(())
    }
}

/// A warning for each stage of `--no-cache-filter` that there is not.
fn unknown_stages(dockerfile: &Dockerfile, request: &Request) -> Vec<Diagnostic> {
    let NoCache::Stages(asked) = &request.settings.no_cache else { return Vec::new() };
    let named = |(index, stage): (usize, &Stage)| stage.name().map_or_else(|| format!("stage-{index}"), String::from);
    let names: Vec<String> = dockerfile.stages.iter().enumerate().map(named).collect();
    let unknown = asked.iter().filter(|name| !names.contains(*name)).map(|name| {
        let warning = Diagnostic::warning("UnknownStage", format!("`--no-cache-filter`: there is no stage `{name}`"));
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => warning.hint(format!("did you mean `{near}`?")),
            None => warning,
        }
    });
    unknown.collect()
}

/// What hides files of the build context.
fn ignore_rules(host: &Host<'_>) -> Result<Option<IgnoreRules>> {
    // Only a directory has an ignore file; anything else need not be fetched to know that.
    let Origin::Directory(_) = &host.context else { return Ok(None) };
    let directory = source::context(None, host)?;
    directory.ignore.as_ref().map(|(name, text)| IgnoreRules::parse(name, text)).transpose()
}

/// `# syntax=` names the program that reads the file, and `--build-arg BUILDKIT_SYNTAX` another one in its place.
/// We are that program for Docker's own language; anything else we would misread.
fn check_syntax(dockerfile: &Dockerfile, request: &Request) -> Result<(), Vec<Diagnostic>> {
    let given = request.options.build_args.get("BUILDKIT_SYNTAX").filter(|given| !given.is_empty());
    let Some(name) = given.or(dockerfile.syntax.as_ref().map(|word| &word.raw)) else { return Ok(()) };
    // The image alone: what follows are arguments of the frontend.
    let image = name.split(' ').next().unwrap_or_default();
    let repository = image.split('@').next().unwrap_or_default();
    let tag_at = repository.rfind(':').filter(|at| !repository[*at..].contains('/')).unwrap_or(repository.len());
    let repository = repository[..tag_at].strip_prefix("docker.io/").unwrap_or(&repository[..tag_at]);
    if matches!(repository, "docker/dockerfile" | "docker/dockerfile-upstream") {
        return Ok(());
    }
    let fault = Diagnostic::error(format!("this file is written for another frontend, `{image}`"));
    Err(vec![match (given, &dockerfile.syntax) {
        (None, Some(syntax)) => {
            fault.at(&dockerfile.source, syntax.span, "only `docker/dockerfile` is understood").hint(
                "if the file is an ordinary Dockerfile, build with `--build-arg BUILDKIT_SYNTAX=docker/dockerfile:1`",
            )
        }
        _ => fault.hint("only `docker/dockerfile` is understood: leave out `--build-arg BUILDKIT_SYNTAX`"),
    }])
}

/// Resolves what the target needs, then plans. ONBUILD triggers of a base may ask for more bases, so
/// asking goes on until nothing is missing.
fn plan(options: &plan::Options, dockerfile: &Dockerfile, platform: &Platform, host: &Host<'_>) -> Planned {
    let mut options = plan::Options { platform: platform.clone(), ..options.clone() };
    tell_epoch(&mut options, dockerfile, host);
    let mut known = Bases::new();
    let mut records = BTreeMap::new();
    loop {
        let wanted = plan::bases(dockerfile, &options, &known)?;
        if wanted.is_empty() {
            break;
        }
        // Several at once: who asks registries mostly waits.
        let resolved = parallel::map(&wanted, parallel::TRANSFERS, |wanted| Ok(resolve::resolve(wanted, host)));
        let mut faults = Vec::new();
        for (wanted, resolved) in wanted.into_iter().zip(resolved.map_err(alone)?) {
            match resolved {
                Ok(resolve::Resolved::Directory) => {
                    known.insert(wanted.key, Base::Directory);
                }
                Ok(resolve::Resolved::Image(config, record)) => {
                    known.insert(wanted.key.clone(), Base::Image(config));
                    records.insert(wanted.key, record);
                }
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
    }
    let plan = plan::plan(dockerfile, &options, &known)?;
    Ok((plan, records))
}

/// The config of the image: the plan's, with layers, history and times.
fn finish_config(plan: &Plan, solution: &Solution, epoch: Option<i64>) -> ImageConfig {
    let mut config = plan.config.clone();
    config.rootfs.diff_ids = solution.of(plan.target).stack.layers().iter().map(|layer| layer.diff_id).collect();
    let inherited = config.history.len();
    for id in plan.ancestry(plan.target) {
        let Some(text) = &plan.step(id).history else { continue };
        let solved = solution.of(id);
        config.history.push(History {
            created: solved.created.clone(),
            created_by: Some(text.clone()),
            author: None,
            comment: Some("wythe".into()),
            empty_layer: !solved.made_layer,
        });
    }
    fill_times(&mut config.history);
    if let Some(epoch) = epoch {
        let epoch = rfc3339(epoch);
        for entry in &mut config.history[inherited..] {
            entry.created = Some(epoch.clone());
        }
        config.created = Some(epoch);
    } else {
        config.created = config.history.last().and_then(|entry| entry.created.clone());
    }
    config
}

/// Metadata has no time of its own: it takes that of the first layer made after the base, or, where
/// there is none, of the last entry that has one (BuildKit's rule).
fn fill_times(history: &mut [History]) {
    let mut fallback = None;
    let mut has_gap = false;
    for entry in &*history {
        match &entry.created {
            Some(created) => {
                fallback = Some(created.clone());
                if has_gap {
                    break;
                }
            }
            None => has_gap = true,
        }
    }
    let mut has_gap = false;
    for entry in history {
        match &entry.created {
            Some(created) if has_gap => fallback = Some(created.clone()),
            Some(_) => {}
            None => {
                has_gap = true;
                entry.created.clone_from(&fallback);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(list: &[Option<&str>]) -> Vec<Option<String>> {
        let mut history: Vec<_> =
            list.iter().map(|created| History { created: created.map(str::to_owned), ..History::default() }).collect();
        fill_times(&mut history);
        history.into_iter().map(|entry| entry.created).collect()
    }

    fn some(list: &[&str]) -> Vec<Option<String>> {
        list.iter().map(|time| Some((*time).to_owned())).collect()
    }

    #[test]
    fn metadata_takes_the_time_of_the_first_new_layer() {
        assert_eq!(times(&[Some("base"), None, Some("new"), None]), some(&["base", "new", "new", "new"]));
        assert_eq!(times(&[Some("base"), None]), some(&["base", "base"]));
        assert_eq!(times(&[None]), [None]);
    }
}
