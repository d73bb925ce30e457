//! Plans, as a readable dump of every step, and as the configs and histories that BuildKit gives for
//! the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use serde::Deserialize;
use serde_json::Value;
use wythe::context::IgnoreRules;
use wythe::diag::{Diagnostic, Severity, Source, Span};
use wythe::dockerfile;
use wythe::dockerfile::check::Check;
use wythe::image::{ContainerConfig, ImageConfig, Platform};
use wythe::plan::{
    self, Base, Bases, CopySource, Input, Network, Op, Options, Plan, Root, RunMountKind, Security, Step,
};

use crate::{cases, check_golden, testdata};

/// Each folder of `testdata/plan` is a Dockerfile, perhaps with `options.json`, and the plan as
/// [`dump`] writes it. Those of `testdata/project` are as whole projects have them; some are built as well.
#[test]
fn plans_are_as_expected() {
    let projects = cases("project");
    assert!(projects.len() >= 30, "only {} projects", projects.len());
    for case in cases("plan").into_iter().chain(projects) {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let settings: Settings = match fs::read(case.join("options.json")) {
            Ok(json) => serde_json::from_slice(&json).unwrap_or_else(|error| panic!("{}: {error}", case.display())),
            Err(_) => Settings::default(),
        };
        check_golden(&case.join("expected.txt"), dump(&text, &settings).as_bytes());
    }
}

/// What a case asks for; the file says nothing of what is the default.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    target: Option<String>,
    args: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    platform: Option<String>,
    shows_platform: bool,
    /// Named contexts: `directory`, or the name of an image.
    contexts: BTreeMap<String, String>,
    network: Option<String>,
    allow: Vec<String>,
    /// Image configs by name. `busybox` is always there, `missing` never.
    bases: BTreeMap<String, Value>,
}

impl Settings {
    fn options(&self) -> Options {
        Options {
            target: self.target.clone(),
            plans_every_stage: false,
            build_args: self.args.clone(),
            labels: self.labels.clone(),
            platform: self.platform.as_deref().unwrap_or("linux/amd64").parse().unwrap(),
            platform_is_explicit: self.platform.is_some(),
            shows_platform: self.shows_platform,
            build_platform: "linux/amd64".parse().unwrap(),
            named_contexts: self.contexts.keys().cloned().collect(),
            network: match self.network.as_deref() {
                None => Network::Default,
                Some("none") => Network::None,
                Some("host") => Network::Host,
                Some(other) => panic!("unknown network {other}"),
            },
            allows_insecure: self.allow.iter().any(|name| name == "security.insecure"),
            allows_host_network: self.allow.iter().any(|name| name == "network.host"),
        }
    }

    fn base(&self, name: &str, platform: &Platform) -> Base {
        let image = match self.contexts.get(name).map(String::as_str) {
            Some("directory") => return Base::Directory,
            Some(image) => image,
            None => name,
        };
        let mut config = match self.bases.get(image) {
            Some(config) => ImageConfig::from_json(config.to_string().as_bytes()).unwrap(),
            None => busybox(),
        };
        if config.architecture.is_empty() {
            config.os.clone_from(&platform.os);
            config.architecture.clone_from(&platform.architecture);
            config.variant.clone_from(&platform.variant);
        }
        Base::Image(Box::new(config))
    }
}

fn busybox() -> ImageConfig {
    ImageConfig {
        config: ContainerConfig {
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            cmd: Some(vec!["sh".into()]),
            ..ContainerConfig::default()
        },
        ..ImageConfig::default()
    }
}

/// Parses, resolves every base that is asked for, and plans; `wanted` gets what was asked for.
fn planned(text: &str, settings: &Settings, wanted: &mut String) -> Result<Plan, Vec<Diagnostic>> {
    let dockerfile = dockerfile::parse(Source::new("Dockerfile", text))?;
    let options = settings.options();
    let mut bases = Bases::new();
    loop {
        let missing = plan::bases(&dockerfile, &options, &bases)?;
        if missing.is_empty() {
            return plan::plan(&dockerfile, &options, &bases);
        }
        for want in missing {
            let at = place(&want.at.source, want.at.span);
            writeln!(wanted, "needs {} for {} ({at})", want.key.name, want.key.platform).unwrap();
            let base = settings.base(&want.key.name, &want.key.platform);
            assert!(bases.insert(want.key, base).is_none(), "a base was asked for twice");
        }
    }
}

fn dump(text: &str, settings: &Settings) -> String {
    let mut out = String::new();
    match planned(text, settings, &mut out) {
        Ok(plan) => {
            for (index, step) in plan.steps.iter().enumerate() {
                dump_step(&mut out, index, step);
            }
            writeln!(out, "\ntarget #{}", plan.target.0).unwrap();
            let mut config = serde_json::to_value(&plan.config).unwrap();
            config.as_object_mut().unwrap().remove("rootfs");
            writeln!(out, "{}", serde_json::to_string_pretty(&config).unwrap()).unwrap();
            plan.warnings.iter().for_each(|warning| dump_diagnostic(&mut out, warning));
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "failed without a fault");
            assert!(faults.iter().any(|fault| fault.severity == Severity::Error), "failed for a warning");
            faults.iter().for_each(|fault| dump_diagnostic(&mut out, fault));
        }
    }
    out
}

fn dump_step(out: &mut String, index: usize, step: &Step) {
    let parent = step.parent.map(|parent| format!(" on #{}", parent.0)).unwrap_or_default();
    writeln!(out, "\n#{index}{parent} {} ({} of {})", step.title, place(&step.source, step.span), step.stage).unwrap();
    if let Some(history) = &step.history {
        writeln!(out, "  history {history:?}").unwrap();
    }
    match &step.op {
        Op::From(Root::Scratch) => writeln!(out, "  from scratch").unwrap(),
        Op::From(Root::Image(key)) => writeln!(out, "  from image {} for {}", key.name, key.platform).unwrap(),
        Op::From(Root::Directory(name)) => writeln!(out, "  from directory {name}").unwrap(),
        Op::Run(run) => dump_run(out, run),
        Op::Copy(copy) => dump_copy(out, copy),
        Op::Workdir(workdir) => {
            let user = workdir.user.as_ref().map(|user| format!(" of user {}", located(user))).unwrap_or_default();
            writeln!(out, "  make {}{user}", workdir.path).unwrap();
        }
        Op::Configure => {}
    }
}

fn dump_run(out: &mut String, run: &plan::Run) {
    writeln!(out, "  run {:?} in {} for {}", run.argv, run.workdir, run.platform).unwrap();
    for (kind, variables) in [("env", &run.env), ("arg", &run.args), ("proxy", &run.proxies)] {
        for (name, value) in variables {
            writeln!(out, "  {kind} {name}={value}").unwrap();
        }
    }
    if let Some(user) = &run.user {
        writeln!(out, "  user {}", located(user)).unwrap();
    }
    for device in &run.devices {
        let needed = if device.is_required { "needed" } else { "if there is one" };
        writeln!(out, "  device {} ({}), {needed}", device.name, place(&device.source, device.span)).unwrap();
    }
    if run.network != Network::Default || run.security != Security::Sandbox {
        writeln!(out, "  network {:?}, security {:?}", run.network, run.security).unwrap();
    }
    for mount in &run.mounts {
        let at = place(&mount.source, mount.span);
        let kind = match &mount.kind {
            RunMountKind::Bind { from, source, is_writable } => {
                format!("bind {source} of {}{}", input(from), if *is_writable { ", writable" } else { "" })
            }
            RunMountKind::Cache { id, sharing, from, source, is_readonly, mode, uid, gid } => format!(
                "cache {id} {sharing:?} from {source} of {}{}, mode {:o}, owner {}:{}",
                input(from),
                if *is_readonly { ", read-only" } else { "" },
                mode.unwrap_or(0o755),
                uid.unwrap_or(0),
                gid.unwrap_or(0)
            ),
            RunMountKind::Tmpfs { size_bytes } => format!("tmpfs {size_bytes:?}"),
            RunMountKind::Secret { id, env, is_required, mode, uid, gid } => {
                format!("secret {id}, env {env:?}, required {is_required}, mode {mode:o}, owner {uid}:{gid}")
            }
            RunMountKind::Ssh { id, is_required, mode, uid, gid } => {
                format!("ssh {id}, required {is_required}, mode {mode:o}, owner {uid}:{gid}")
            }
        };
        writeln!(out, "  mount {:?}: {kind} ({at})", mount.target).unwrap();
    }
    for heredoc in &run.heredocs {
        writeln!(out, "  script {} {:?}", heredoc.name, heredoc.content).unwrap();
    }
}

fn dump_copy(out: &mut String, copy: &plan::Copy) {
    writeln!(out, "  {:?} from {} to {}", copy.kind, input(&copy.from), copy.destination).unwrap();
    for source in &copy.sources {
        match source {
            CopySource::Path(path) => writeln!(out, "  path {}", located(path)).unwrap(),
            CopySource::Url(url) => writeln!(out, "  url {}", located(url)).unwrap(),
            CopySource::Git(git) => writeln!(out, "  git {}", located(&git.at)).unwrap(),
            CopySource::Heredoc(heredoc) => writeln!(out, "  heredoc {} {:?}", heredoc.name, heredoc.content).unwrap(),
        }
    }
    for (name, flag) in [("chown", &copy.chown), ("chmod", &copy.chmod), ("checksum", &copy.checksum)] {
        if let Some(flag) = flag {
            writeln!(out, "  {name} {}", located(flag)).unwrap();
        }
    }
    let keeps =
        |source: &CopySource| matches!(source, CopySource::Git(git) if git.location.keeps_git_dir == Some(true));
    let keeps_git_dir = copy.sources.iter().any(keeps);
    for (name, is_set) in [("link", copy.is_link), ("parents", copy.has_parents), ("keep-git-dir", keeps_git_dir)] {
        if is_set {
            writeln!(out, "  {name}").unwrap();
        }
    }
    if let Some(unpack) = copy.unpack {
        writeln!(out, "  unpack {unpack}").unwrap();
    }
    for pattern in &copy.exclude {
        writeln!(out, "  exclude {pattern}").unwrap();
    }
}

fn input(input: &Input) -> String {
    match input {
        Input::Context => "the context".into(),
        Input::Directory(name) => format!("directory {name}"),
        Input::Step(step) => format!("#{}", step.0),
        Input::Image(key) => format!("image {} for {}", key.name, key.platform),
        Input::Scratch => "scratch".into(),
    }
}

fn located(located: &plan::Located) -> String {
    format!("{} ({})", located.text, place(&located.source, located.span))
}

/// `3:5-9`: line, first and last column; another source than the Dockerfile by name.
fn place(source: &Source, span: Span) -> String {
    let (line, column) = source.position(span.start as usize);
    let (end_line, end) = source.position(span.end as usize);
    let name = if source.name == "Dockerfile" { String::new() } else { format!("{}: ", source.name) };
    let lines = if end_line > line { format!(" to {end_line}") } else { String::new() };
    format!("{name}{line}{lines}:{column}-{end}")
}

fn dump_diagnostic(out: &mut String, diagnostic: &Diagnostic) {
    let rule = diagnostic.rule.map(|rule| format!(" [{rule}]")).unwrap_or_default();
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    writeln!(out, "\n{severity}{rule}: {}", diagnostic.message).unwrap();
    for label in &diagnostic.labels {
        let text = &label.source.text[label.span.range()];
        writeln!(out, "  at {} {text:?} {}", place(&label.source, label.span), label.text).unwrap();
    }
    if let Some(cause) = &diagnostic.cause {
        writeln!(out, "  because {cause}").unwrap();
    }
    for hint in &diagnostic.hints {
        writeln!(out, "  hint: {hint}").unwrap();
    }
}

/// A file, with its ignore file and build arguments, and what BuildKit's linter says of it: `LINE RULE`. A
/// fault in a heredoc or in a continued line is at its own line here, at the instruction's or the last one in
/// BuildKit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LintRow {
    dockerfile: String,
    #[serde(default)]
    ignore: Option<String>,
    #[serde(default)]
    args: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// Rules that BuildKit does not have.
const OWN_RULES: [&str; 3] = ["UnusedBuildArg", "HeredocWithoutErrexit", "MalformedJSONForm"];

#[test]
fn warnings_are_those_of_buildkit() {
    let table = fs::read_to_string(testdata("plan").join("lint.jsonl")).unwrap();
    let mut differences = Vec::new();
    let mut rules = BTreeSet::new();
    for line in table.lines() {
        let row: LintRow = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let given = row.args.get("BUILDKIT_DOCKERFILE_CHECK").cloned();
        let settings = Settings { args: row.args, ..Settings::default() };
        let source = Source::new("Dockerfile", row.dockerfile.clone());
        let file = dockerfile::parse(source).unwrap_or_else(|_| panic!("{} is not read", row.dockerfile));
        let mut found = file.warnings.clone();
        let mut faults = Vec::new();
        match planned(&row.dockerfile, &settings, &mut String::new()) {
            Ok(plan) => {
                found.extend(plan.warnings.iter().cloned());
                let text = row.ignore.as_ref();
                let rules = text.map(|text| IgnoreRules::parse(".dockerignore", text.as_bytes()).unwrap());
                found.extend(rules.iter().flat_map(|rules| plan::ignored(&plan, rules)));
            }
            Err(said) => {
                faults.extend(said.iter().filter(|said| said.severity == Severity::Error).map(line_of));
                found.extend(said.into_iter().filter(|said| said.severity == Severity::Warning));
            }
        }
        let directive = file.check.as_ref().map(|word| word.raw.clone());
        let check = Check::parse(&given.or(directive).unwrap_or_default());
        let found: BTreeSet<(usize, &str)> = (found.iter())
            .filter(|warning| check.admits(warning, &file))
            .filter_map(|warning| Some((line_of(warning)?, warning.rule?)))
            .filter(|(_, rule)| !OWN_RULES.contains(rule))
            .collect();
        rules.extend(row.warnings.iter().filter_map(|warning| warning.split(' ').nth(1).map(str::to_owned)));
        let mut found: Vec<_> = found.iter().map(|(line, rule)| format!("{line} {rule}")).collect();
        // What is an error here is no warning as well.
        for fault in faults.into_iter().flatten() {
            found.extend(row.warnings.iter().filter(|warning| warning.starts_with(&format!("{fault} "))).cloned());
        }
        found.sort();
        found.dedup();
        if found != row.warnings {
            differences.push(format!("expected {:?}\nfound {found:?}\n{}", row.warnings, row.dockerfile));
        }
    }
    assert!(table.lines().count() > 100 && rules.len() >= 21, "the table is short: {rules:?}");
    assert!(differences.is_empty(), "{} differ\n\n{}", differences.len(), differences.join("\n\n"));
}

fn line_of(diagnostic: &Diagnostic) -> Option<usize> {
    let label = diagnostic.labels.first()?;
    Some(label.source.position(label.span.start as usize).0)
}

/// Lines that are put together at random: each rule meets each other rule, and letters of several bytes.
const LINES: [&str; 36] = [
    "FROM scratch AS a",
    "FROM busybox AS b",
    "FROM a",
    "FROM b AS é",
    "FROM $A",
    "FROM --platform=$P b AS c",
    "ARG A=é",
    "ARG A",
    "ARG P=linux/arm64 Q=${A}$B",
    "ENV A=${A:-ü} B=$A",
    "ENV $A=1",
    "ENV é ${X^é} b",
    "LABEL \"é\"=$A é=$é",
    "RUN echo \"$A\" '$é' ${é \\$é",
    "RUN --mount=from=c,target=é$A --mount=type=cache,\"id=é\"\"$A\" x",
    "RUN --mount=\"target=é\"é",
    "RUN --mount=type=é,é=é,size=é x",
    "RUN --mount=type=secret,id=é,env=A,mode=é echo $A",
    "RUN <<é cat\né $A\né",
    "RUN <<é\n#!é\né",
    "RUN [\"é\"]",
    "COPY --from=a é $A /é/",
    "COPY --from=0 --chown=$A --chmod=é a .",
    "COPY --from=c . ..",
    "COPY <<é <<-E $A /é\n$A ${é\né\n\t${A^}\nE",
    "ADD --checksum=é https://é/é.git é /",
    "WORKDIR é/$A/../",
    "USER $é",
    "EXPOSE $A é 80/é 7000-7001",
    "VOLUME $A \"é\"",
    "STOPSIGNAL é$A",
    "CMD [\"é\\u0007\"]",
    "ENTRYPOINT é",
    "ONBUILD COPY --from=c é /",
    "ONBUILD RUN $é",
    "SHELL [\"é\"]",
];

proptest::proptest! {
    #[test]
    fn any_file_is_planned_or_refused(lines in proptest::collection::vec(proptest::sample::select(&LINES[..]), 1..6)) {
        let text = format!("ARG A=b\nARG P=linux/amd64\nFROM scratch AS a\n{}\n", lines.join("\n"));
        // Points at every place it names, so each must be a range of characters.
        let first = dump(&text, &Settings::default());
        proptest::prop_assert_eq!(first, dump(&text, &Settings::default()));
    }
}
