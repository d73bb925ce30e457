//! The command line: the only place that reads arguments and the environment, prints, and picks an
//! exit code: 0 done, 1 something failed, 2 a wrong command line, 130 and 143 stopped by a signal.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod args;
mod build;
mod cache;
mod call;
mod doctor;
mod context;
mod deferred;
mod entrance;
mod history;
mod images;
mod interrupt;
mod limits;
mod output;
mod parcel;
mod packing;
mod registry;
mod room;
mod shell;
mod stdin;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;

use crate::container::Spawner;
use crate::diag::{Diagnostic, Severity};
use entrance::Entrance;

/// Why a command did not succeed.
pub(crate) enum Failure {
    /// The user's Dockerfile, files or system.
    Failed(Vec<Diagnostic>),
    /// The command line itself.
    Usage(Diagnostic),
}

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::Failed(vec![diagnostic])
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self::Failed(diagnostics)
    }
}

/// A value of the command line that is not what it should be.
fn usage(message: impl Into<String>) -> Failure {
    Failure::Usage(Diagnostic::error(message))
}

/// The program. Called through a link called `build` it takes what `wythe build` takes.
pub fn main() -> ExitCode {
    let mut argv: Vec<OsString> = std::env::args_os().collect();
    let called = argv.first().map(PathBuf::from);
    if called.as_deref().and_then(Path::file_name).is_some_and(|name| name == "build") {
        argv.splice(0..1, ["wythe".into(), "build".into()]);
    }
    let start = Start::new(&argv);
    let arguments = match args::Arguments::try_parse_from(argv) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(arguments, start) {
        Ok(code) => code,
        Err(Failure::Failed(diagnostics)) => {
            print_diagnostics(&diagnostics);
            ExitCode::from(1)
        }
        Err(Failure::Usage(diagnostic)) => {
            print_diagnostics(&[diagnostic]);
            ExitCode::from(2)
        }
    }
}

/// What comes before the command line is read: the spawner is a copy of this process, and both pay for every page
/// that one of them writes to.
struct Start {
    default_root: Result<PathBuf, Failure>,
    entrance: crate::diag::Result<Entrance>,
    /// If this may be a build, unless it has to enter its namespaces first.
    spawner: Option<crate::diag::Result<Spawner>>,
}

impl Start {
    fn new(argv: &[OsString]) -> Self {
        crate::container::raise_open_files();
        // While this process still is the user's.
        let default_root = default_root();
        let entrance = Entrance::find(default_root.as_ref().ok().cloned());
        let is_inside = entrance.as_ref().is_ok_and(|entrance| !entrance.is_outside());
        let spawner = (is_inside && argv.iter().any(|word| word == "build")).then(Spawner::fork);
        Self { default_root, entrance, spawner }
    }
}

fn run(arguments: args::Arguments, start: Start) -> Result<ExitCode, Failure> {
    let Start { default_root, entrance, spawner } = start;
    let entrance = entrance?;
    let root = match arguments.root {
        Some(root) => root,
        None => default_root?,
    };
    let open = || entrance.open(&root, || Ok(()));
    match arguments.command {
        args::Command::Build(build) => build::build(&root, &entrance, *build.0, spawner),
        args::Command::Cache(cache) => match *cache.0 {
            args::Cache::Explain(build) => build::explain(&root, &entrance, &build),
            args::Cache::Ls { json } => cache::ls(&open()?, json),
            args::Cache::Du(du) => room::du(&open()?, &du),
            args::Cache::Prune(prune) => room::prune(&open()?, &prune),
            args::Cache::Export { output, filters } => parcel::export(&open()?, output.as_deref(), &filters),
            args::Cache::Import { input } => parcel::import(&open()?, input.as_deref()),
            args::Cache::Gc { cap, has_lock } => room::collect(&open()?, cap.as_deref(), has_lock),
        },
        args::Command::Doctor { format } => doctor::doctor(&root, &entrance, format.as_deref() == Some("json")),
        args::Command::Pull(pull) => registry::pull(&root, &entrance, &pull),
        args::Command::Push(push) => registry::push(&root, &entrance, &push),
        args::Command::Load { input } => registry::load(&open()?, input.as_deref()),
        args::Command::Save(save) => registry::save(&root, &entrance, &save),
        args::Command::Images(images) => images::list(&open()?, &images),
        args::Command::Tag { image, name } => images::tag(&open()?, &image, &name),
        args::Command::Rmi { images } => images::remove(&open()?, &images),
        args::Command::History(history) => history::history(&open()?, &history),
        args::Command::Logs(logs) => history::logs(&open()?, &logs),
        args::Command::Inspect { images } => images::inspect(&open()?, &images),
    }
}

fn default_root() -> Result<PathBuf, Failure> {
    if let Some(root) = std::env::var_os("WYTHE_ROOT").filter(|root| !root.is_empty()) {
        return Ok(root.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/wythe".into());
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").filter(|data| Path::new(data).is_absolute()) {
        return Ok(PathBuf::from(data).join("wythe"));
    }
    match std::env::var_os("HOME").filter(|home| Path::new(home).is_absolute()) {
        Some(home) => Ok(PathBuf::from(home).join(".local/share/wythe")),
        None => Err(usage("there is no place for the store: HOME is not set; give `--root DIR`")),
    }
}

/// Whether standard error takes colours.
fn has_color() -> bool {
    takes_color(&std::io::stderr())
}

fn takes_color(stream: &impl std::io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Warnings first, then errors, in their order.
fn print_diagnostics(diagnostics: &[Diagnostic]) {
    use std::io::Write as _;
    let color = has_color();
    let mut stderr = std::io::stderr().lock();
    for severity in [Severity::Warning, Severity::Error] {
        for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity) {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(stderr, "{}", diagnostic.render(color));
        }
    }
}

/// Writes to standard error what is no diagnostic.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
