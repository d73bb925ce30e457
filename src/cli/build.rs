//! `wythe build` and `wythe cache explain`: from arguments to a request and a host.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::args::Build;
use super::call::Call;
use super::context::Sources;
use super::entrance::Entrance;
use super::interrupt::{Interrupts, Urgency};
use super::shell::Shell;
use super::{Failure, has_color, limits, output, print, stdin, usage, values};
use rustix::process::Signal;

use crate::build::{self, Request};
use crate::container::{Container, Dns, Moment, Rung, Spawner};
use crate::diag::Diagnostic;
use crate::export::{Destination, Output};
use crate::host::{Host, Opened, Pulls};
use crate::image::{Platform, Reference};
use crate::journal::{Ending, Head, Recorder, Writes};
use crate::parallel;
use crate::plan::{self, Network};
use crate::progress::{self, Event, Held, Reporter};
use crate::solve::{NoCache, Settings};
use crate::ssh::Agent;
use crate::store::{Packing, Store};

/// `/dev/shm` when nothing is said, as everywhere.
const SHM_SIZE_BYTES: u64 = 64 << 20;

const HOSTNAME: &str = "buildkitsandbox";

/// `spawner` is there unless the program still has to enter its namespaces.
pub fn build(
    root: &Path,
    entrance: &Entrance,
    arguments: Build,
    spawner: Option<crate::diag::Result<Spawner>>,
) -> Result<ExitCode, Failure> {
    refuse_unsupported(&arguments)?;
    if let Some(call) = Call::of(&arguments)? {
        return called(root, entrance, &arguments, call);
    }
    let (mut request, mut world) = request(&arguments)?;
    super::room::check_cap()?;
    let shell = arguments.on_failure.as_deref().map(Shell::new).transpose()?;
    let spawner = spawner.transpose()?;
    let (interrupts, stop) = Interrupts::block()?;
    let canceled = Arc::new(AtomicBool::new(false));
    let reporter = reporter(arguments.progress.as_deref(), arguments.quiet)?;
    let (reporter, store) = if entrance.is_outside() {
        // The program that enters tells of everything again.
        let (held, is_canceled) = (Arc::new(Held::new(reporter)), Arc::clone(&canceled));
        let leaving = Arc::clone(&held);
        let store = entrance.open(root, move || {
            if is_canceled.load(Ordering::Relaxed) {
                return Err(Diagnostic::error("the build was canceled"));
            }
            leaving.drop_all();
            Ok(())
        });
        (held as Arc<dyn Reporter>, store?)
    } else {
        (Arc::from(reporter), entrance.open(root, || Ok(()))?)
    };
    world.input = stdin::take(&mut world.sources, &store, entrance)?;
    request.dockerfile = world.sources.dockerfile.clone();
    // The program that enters writes a record of its own.
    let writes = if entrance.is_outside() { Writes::AtTheEnd } else { Writes::AsItComes };
    let recorder = Recorder::new(&store, &*reporter, head(&arguments, &request), writes);
    if let Some(poverty) = entrance.poverty.as_ref().filter(|_| !entrance.is_outside()) {
        recorder.report(Event::Warning(poverty));
    }
    let registry = super::registry::client(&arguments.insecure_registries);
    let git = super::context::git();
    let pulls = pulls(&arguments);
    let told = |mut diagnostics: Vec<Diagnostic>| {
        recorder.finish(Ending::Failed, Vec::new(), rendered(&diagnostics));
        if recorder.has_output_of_failure()
            && let Some(first) = diagnostics.first_mut()
        {
            first
                .hints
                .push(format!("`{} --failed` prints all of its output", logs_command(entrance, root, recorder.id())));
        }
        diagnostics
    };
    let was_inspected = AtomicBool::new(false);
    let inspect = |failure: &Diagnostic, container: crate::diag::Result<&Container>| {
        let Some(shell) = &shell else { return };
        was_inspected.store(true, Ordering::Relaxed);
        recorder.close();
        super::print_diagnostics(&told(vec![failure.clone()]));
        super::say(&super::shell::notice(shell));
        let spawner = spawner.as_ref().ok_or_else(|| Diagnostic::error("no container was made"));
        if let Err(error) = container.and_then(|container| shell.run(spawner?, container)) {
            super::print_diagnostics(&[super::shell::refusal(shell, &error)]);
        }
    };
    let host = world.host(Around {
        store: &store,
        executor: match &spawner {
            Some(spawner) => spawner,
            None => &NothingRuns,
        },
        reporter: &recorder,
        registry: &registry,
        git: &git,
        asks_servers: true,
        pulls,
        canceled: &canceled,
        on_failure: shell.is_some().then_some(&inspect),
    });
    let built = std::thread::scope(|scope| {
        let watch = interrupts.watch(scope, stop, |urgency| {
            canceled.store(true, Ordering::Relaxed);
            registry.cancel();
            git.cancel();
            if let Some(spawner) = &spawner {
                let _ = spawner.kill_all(match urgency {
                    Urgency::Gently => Signal::TERM,
                    Urgency::AtOnce => Signal::KILL,
                });
            }
        });
        let built = build::build(&request, &host);
        drop(watch);
        built
    });
    recorder.close();
    super::room::collect_in_background(&store);
    let outcome = match built {
        Ok(outcome) => outcome,
        Err(diagnostics) => {
            if let Some(signal) = interrupts.caught() {
                let name = crate::container::signal::name(signal);
                let stopped = [Diagnostic::error(format!("stopped by {name}"))];
                recorder.finish(Ending::Stopped, Vec::new(), rendered(&stopped));
                return Ok(super::interrupt::stopped_by(signal));
            }
            if was_inspected.load(Ordering::Relaxed) {
                return Ok(ExitCode::from(1));
            }
            return Err(told(diagnostics).into());
        }
    };
    let ids: Vec<_> = outcome.exported.image_ids.iter().map(ToString::to_string).collect();
    recorder.finish(Ending::Done, ids.clone(), Vec::new());
    if let Some(path) = &arguments.iidfile {
        crate::export::write_file(path, ids.join("\n").as_bytes())?;
    }
    if let Some(path) = &arguments.metadata_file {
        crate::export::write_file(path, &outcome.exported.metadata(&request.names))?;
    }
    if arguments.quiet {
        print(&format!("{}\n", ids.join("\n")));
    }
    Ok(ExitCode::SUCCESS)
}

/// `--check` and `--call`: an answer instead of a build.
fn called(root: &Path, entrance: &Entrance, arguments: &Build, call: Call) -> Result<ExitCode, Failure> {
    let asking = Asking { asks_servers: true, pulls: pulls(arguments) };
    answer(root, entrance, arguments, asking, |request, host| call.answer(request, host))
}

/// What a question may do to be answered.
struct Asking {
    asks_servers: bool,
    pulls: Pulls,
}

/// Answers a question about a build that does not run.
fn answer(
    root: &Path,
    entrance: &Entrance,
    arguments: &Build,
    asking: Asking,
    say: impl FnOnce(&Request, &Host<'_>) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    refuse_unsupported(arguments)?;
    let (mut request, mut world) = request(arguments)?;
    let store = entrance.open(root, || Ok(()))?;
    world.input = stdin::take(&mut world.sources, &store, entrance)?;
    request.dockerfile = world.sources.dockerfile.clone();
    let registry = super::registry::client(&arguments.insecure_registries);
    let git = super::context::git();
    let canceled = AtomicBool::new(false);
    let host = world.host(Around {
        store: &store,
        executor: &NothingRuns,
        reporter: &progress::Silent,
        registry: &registry,
        git: &git,
        asks_servers: asking.asks_servers,
        pulls: asking.pulls,
        canceled: &canceled,
        on_failure: None,
    });
    say(&request, &host)
}

/// What the record of the build begins with.
fn head(arguments: &Build, request: &Request) -> Head {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Head {
        started_ms: i64::try_from(now.as_millis()).unwrap_or(0),
        names: request.names.iter().map(Reference::familiar).collect(),
        target: arguments.target.clone(),
        dockerfile: request.dockerfile.shown(),
        context: crate::location::redact(&arguments.context).into_owned(),
        platforms: request.platforms.iter().map(ToString::to_string).collect(),
    }
}

/// What prints the output of a build of this store.
fn logs_command(entrance: &Entrance, root: &Path, id: &str) -> String {
    match &entrance.default_root {
        Some(default) if default == root => format!("wythe logs {id}"),
        _ => format!("wythe --root {} logs {id}", root.display()),
    }
}

fn rendered(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(|diagnostic| diagnostic.render(false)).collect()
}

pub fn explain(root: &Path, entrance: &Entrance, arguments: &Build) -> Result<ExitCode, Failure> {
    // This question changes nothing.
    let asking = Asking { asks_servers: false, pulls: Pulls::Never };
    answer(root, entrance, arguments, asking, |request, host| {
        let steps = build::explain(request, host)?;
        let mut text = String::new();
        for step in &steps {
            text.push_str(&format!("{} {}\n", if step.is_hit { "hit  " } else { "miss " }, step.title));
            for reason in &step.reasons {
                text.push_str(&format!("        {reason}\n"));
            }
        }
        let misses = steps.iter().filter(|step| !step.is_hit).count();
        text.push_str(&format!("{} of {} steps would run\n", misses, steps.len()));
        print(&text);
        Ok(ExitCode::SUCCESS)
    })
}

/// The executor of an explanation, and of a user's build before it enters.
struct NothingRuns;

impl crate::host::Executor for NothingRuns {
    fn execute(
        &self,
        _: &Container,
        _: &mut dyn std::io::Write,
        _: &dyn Fn(Moment),
    ) -> crate::diag::Result<crate::container::Exit> {
        Err(Diagnostic::error("nothing is executed here"))
    }

    fn expect(&self, _: &crate::container::Expectation) {}

    fn cancel(&self) {}

    fn rest(&self) {}
}

/// What the command line says of the world.
struct World {
    sources: Sources,
    /// What came by standard input, if it is the context.
    input: Option<std::fs::File>,
    named_contexts: BTreeMap<String, crate::host::NamedContext>,
    secrets: BTreeMap<String, crate::host::Secret>,
    agents: BTreeMap<String, Arc<Agent>>,
}

/// What the command has made of it.
struct Around<'a> {
    store: &'a Store,
    executor: &'a dyn crate::host::Executor,
    reporter: &'a dyn Reporter,
    registry: &'a crate::registry::Client,
    git: &'a crate::git::Client,
    asks_servers: bool,
    pulls: Pulls,
    canceled: &'a AtomicBool,
    on_failure: Option<&'a crate::host::Inspect<'a>>,
}

impl World {
    fn host(self, around: Around<'_>) -> Host<'_> {
        Host {
            store: around.store,
            executor: around.executor,
            reporter: around.reporter,
            numbers: progress::Numbers::default(),
            registry: around.registry,
            git: around.git,
            asks_servers: around.asks_servers,
            pulls: around.pulls,
            clock: now(),
            epoch: OnceLock::new(),
            files_now: files_now(),
            context: self.sources.context,
            input: self.input,
            named_contexts: self.named_contexts,
            opened: Opened::default(),
            secrets: self.secrets,
            agents: self.agents,
            canceled: around.canceled,
            on_failure: around.on_failure,
        }
    }
}

/// Options of docker that would change the result or promise something we do not do.
fn refuse_unsupported(arguments: &Build) -> Result<(), Failure> {
    let refuse = |option: &str, why: &str| Err(usage(format!("`{option}` is not supported: {why}")));
    if !arguments.cache_from.is_empty() || !arguments.cache_to.is_empty() {
        return refuse("--cache-from/--cache-to", "carry it with `wythe cache export` and `wythe cache import`");
    }
    if !arguments.attest.is_empty() || arguments.sbom.as_deref().is_some_and(|sbom| sbom != "false") {
        return refuse("--attest/--sbom", "attestations are not made");
    }
    if arguments.provenance.as_deref().is_some_and(|provenance| provenance != "false") {
        return refuse("--provenance", "attestations are not made");
    }
    if !arguments.annotation.is_empty() {
        return refuse("--annotation", "annotations are not written yet; use `--label`");
    }
    Ok(())
}

fn request(arguments: &Build) -> Result<(Request, World), Failure> {
    let sources = super::context::sources(arguments)?;
    let mut named_contexts = BTreeMap::new();
    for text in &arguments.build_contexts {
        let (name, named) = values::named_context(text)?;
        named_contexts.insert(name, named);
    }
    let mut secrets = BTreeMap::new();
    for text in &arguments.secrets {
        let (id, secret) = values::secret(text)?;
        secrets.insert(id, secret);
    }
    let agents = super::context::agents(&arguments.ssh, &sources.context)?;
    let mut build_args = values::build_args(&arguments.build_args);
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        build_args.entry("SOURCE_DATE_EPOCH".into()).or_insert(epoch);
    }
    let mut labels = BTreeMap::new();
    for text in &arguments.labels {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        labels.insert(name.to_owned(), value.to_owned());
    }
    let allow = entitlements(&arguments.allow)?;
    let network = match arguments.network.as_deref() {
        Some("none") => Network::None,
        Some("host") => Network::Host,
        _ => Network::Default,
    };
    let mut platforms = Vec::new();
    for text in &arguments.platform {
        let platform = if text == "local" { Platform::host() } else { text.parse().map_err(usage)? };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    let platform_is_explicit = !platforms.is_empty();
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    let names = arguments
        .tags
        .iter()
        .map(|tag| tag.parse::<Reference>().map_err(|why| usage(format!("`-t {tag}`: {why}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut outputs = arguments.outputs.iter().map(|text| output::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let is_pushed = |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Registry { .. }));
    if arguments.push && !is_pushed(&outputs) {
        outputs.push(Output::Registry { names: Vec::new(), packing: Packing::DEFAULT });
    }
    if arguments.load && !outputs.iter().any(|output| matches!(output, Output::Load { .. })) {
        outputs.push(output::load(Packing::DEFAULT));
    }
    // Before an hour of building rather than after it.
    if outputs
        .iter()
        .any(|output| matches!(output, Output::Registry { names: own, .. } if own.is_empty() && names.is_empty()))
    {
        return Err(usage("an image without a name cannot be pushed: name it with `-t`"));
    }
    check_outputs(&outputs, &platforms, arguments.quiet)?;
    let no_cache = if arguments.no_cache {
        NoCache::All
    } else if arguments.no_cache_filter.is_empty() {
        NoCache::Never
    } else {
        NoCache::Stages(arguments.no_cache_filter.iter().map(|stage| stage.to_ascii_lowercase()).collect())
    };
    let options = plan::Options {
        target: arguments.target.clone(),
        plans_every_stage: false,
        build_args: build_args.clone(),
        labels,
        platform: platforms[0].clone(),
        platform_is_explicit,
        shows_platform: platforms.len() > 1,
        build_platform: Platform::host(),
        named_contexts: named_contexts.keys().cloned().collect(),
        network,
        allows_insecure: allow.contains("security.insecure"),
        allows_host_network: allow.contains("network.host"),
    };
    let allowed_device =
        |name: &String| name.strip_prefix("device").map(|name| name.trim_start_matches('=').to_owned());
    let settings = Settings {
        device_directories: match arguments.cdi_spec_dirs.is_empty() {
            true => crate::cdi::DIRECTORIES.iter().map(PathBuf::from).collect(),
            false => arguments.cdi_spec_dirs.clone(),
        },
        allowed_devices: allow.iter().filter_map(allowed_device).collect(),
        no_cache,
        slot: sources.slot.clone(),
        jobs: arguments.jobs.unwrap_or_else(|| parallel::processors().max(4)),
        hash_threads: parallel::processors().min(4),
        hostname: build_args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned().unwrap_or_else(|| HOSTNAME.to_owned()),
        extra_hosts: arguments.add_hosts.iter().map(|text| values::host(text)).collect::<Result<_, _>>()?,
        dns: Dns {
            servers: arguments.dns.clone(),
            search: arguments.dns_search.clone(),
            options: arguments.dns_options.clone(),
        },
        shm_size_bytes: match &arguments.shm_size {
            Some(text) => values::size("--shm-size", text)?,
            None => SHM_SIZE_BYTES,
        },
        ulimits: arguments.ulimits.iter().map(|text| values::ulimit(text)).collect::<Result<_, _>>()?,
        limits: limits::limits(&arguments.limits)?,
        timeout: arguments.limits.timeout.as_deref().map(limits::timeout).transpose()?,
        cache_mount_namespace: build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default(),
        footing: footing()?,
        exports_files: outputs.iter().any(|output| matches!(output, Output::Local { .. } | Output::Tar { .. })),
        explains: arguments.explain,
    };
    if settings.jobs == 0 {
        return Err(usage("`--jobs 0` runs nothing: use 1 or more"));
    }
    let dockerfile = sources.dockerfile.clone();
    let request = Request { dockerfile, options, platforms, settings, outputs, names };
    Ok((request, World { sources, input: None, named_contexts, secrets, agents }))
}

fn entitlements(list: &[String]) -> Result<BTreeSet<String>, Failure> {
    for name in list {
        let is_device = name == "device" || name.starts_with("device=");
        if !is_device && !matches!(name.as_str(), "network.host" | "security.insecure") {
            return Err(usage(format!(
                "`--allow {name}`: known are network.host, security.insecure and device[=NAME]"
            )));
        }
    }
    Ok(list.iter().cloned().collect())
}

fn check_outputs(outputs: &[Output], platforms: &[Platform], is_quiet: bool) -> Result<(), Failure> {
    let to_stdout = |output: &&Output| output.destination() == Some(&Destination::Stdout);
    match outputs.iter().filter(to_stdout).count() {
        0 => {}
        1 if is_quiet => return Err(usage("`-q` and an output on standard output would be mixed up")),
        1 if std::io::stdout().is_terminal() => {
            return Err(usage("a tar is not written to a terminal: redirect standard output or give `dest=FILE`"));
        }
        1 => {}
        _ => return Err(usage("only one output can go to standard output")),
    }
    // Told before the build rather than after it.
    for output in outputs {
        let Some(Destination::Path(path)) = output.destination() else { continue };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            let message = format!("cannot write `{}`: there is no directory `{}`", path.display(), parent.display());
            return Err(Diagnostic::error(message).into());
        }
    }
    for output in outputs {
        let Output::Load { programs, .. } = output else { continue };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |program: &String| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
        if !programs.iter().any(is_there) {
            let message = format!("cannot load the image: there is no program `{}` here", programs.join("` or `"));
            return Err(Diagnostic::error(message).hint("without `--load` it is in the local store").into());
        }
    }
    let holds_one = |output: &Output| matches!(output, Output::Docker { .. } | Output::Load { .. });
    if platforms.len() > 1 && outputs.iter().any(holds_one) {
        return Err(usage("`type=docker` holds one platform; use `type=oci` for several"));
    }
    Ok(())
}

/// When registries are asked.
fn pulls(arguments: &Build) -> Pulls {
    match arguments.pull.as_deref() {
        Some("always" | "newer" | "true") => Pulls::Always,
        Some("never") => Pulls::Never,
        _ => Pulls::Missing,
    }
}

pub fn reporter(mode: Option<&str>, is_quiet: bool) -> Result<Box<dyn Reporter>, Failure> {
    if is_quiet {
        return Ok(Box::new(progress::Silent));
    }
    let mode = match mode {
        Some(mode) => mode.to_owned(),
        None => std::env::var("BUILDKIT_PROGRESS").unwrap_or_else(|_| "auto".into()),
    };
    let is_terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    Ok(match mode.as_str() {
        "auto" if is_terminal => Box::new(progress::Terminal::new(has_color())),
        "tty" => Box::new(progress::Terminal::new(has_color())),
        "auto" | "plain" => Box::new(progress::Plain::new(std::io::stderr(), std::io::stderr().is_terminal())),
        "quiet" | "none" => Box::new(progress::Silent),
        "rawjson" => Box::new(progress::Json::new(std::io::stderr())),
        other => return Err(usage(format!("there is no progress mode `{other}`"))),
    })
}

/// Seconds since the epoch. The one place where the clock is read for a build.
fn now() -> i64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

/// The clock that stamps files.
fn files_now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec
}

/// `WYTHE_FOOTING`, by which tests have steps stand on what this machine need not take.
fn footing() -> Result<Option<Rung>, Failure> {
    let Some(name) = std::env::var_os("WYTHE_FOOTING").filter(|name| !name.is_empty()) else { return Ok(None) };
    let found = Rung::ALL.into_iter().find(|rung| name == rung.name());
    found.map(Some).ok_or_else(|| usage(format!("`WYTHE_FOOTING={}` is none of the footings", name.display())))
}
