//! Everything outside a build that a build may touch: the store, the executor of RUNs, named
//! contexts, secrets, the clock, and who is told. The pipeline gets the world as `&Host`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::container::{Container, Exit, Expectation, Moment, Spawner};
use crate::diag::{Diagnostic, Result};
use crate::git;
use crate::image::archive::Selector;
use crate::location::Location;
use crate::progress::{Audience, Numbers, Reporter};
use crate::registry;
use crate::ssh::Agent;
use crate::store::{Layer, Scratch, Store};

pub use crate::secret::Secret;

pub struct Host<'a> {
    pub store: &'a Store,
    pub executor: &'a dyn Executor,
    pub reporter: &'a dyn Reporter,
    /// The numbers of what is reported.
    pub numbers: Numbers,
    pub registry: &'a registry::Client,
    pub pulls: Pulls,
    /// Whether what was learned of servers in earlier builds is not enough.
    pub asks_servers: bool,
    /// When the build began, in seconds since the epoch.
    pub clock: i64,
    /// `SOURCE_DATE_EPOCH`, once the Dockerfile is read: it is taken for the time when the build began.
    pub epoch: OnceLock<i64>,
    /// The clock that stamps files (`CLOCK_REALTIME_COARSE`) when the build began, in seconds since the
    /// epoch: a file whose ctime is younger may change again without a trace.
    pub files_now: i64,
    pub git: &'a git::Client,
    pub context: Origin,
    /// What came by standard input, if it is the context.
    pub input: Option<File>,
    /// `--build-context`, by lower-cased name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    pub opened: Opened,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, Secret>,
    /// `--ssh`, by id.
    pub agents: BTreeMap<String, Arc<Agent>>,
    /// Set once when the build is to stop (Ctrl-C, the first failure).
    pub canceled: &'a AtomicBool,
    /// `--on-failure`: looks at what a RUN that failed left, before it is gone.
    pub on_failure: Option<&'a Inspect<'a>>,
}

/// Gets the fault and the container of the step, which can be run once more, with another command: its
/// files are as the failed one left them. An error says why that is not possible. Nothing else runs
/// meanwhile.
pub type Inspect<'a> = dyn Fn(&Diagnostic, Result<&Container>) + Sync + 'a;

/// `--pull`: when a registry is asked for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pulls {
    Never,
    /// When the local store has none of that name.
    #[default]
    Missing,
    /// In every build; what is there already is not fetched again.
    Always,
}

/// Where the files of the build context come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Directory(LocalContext),
    /// There are none.
    Empty,
    /// A tar, in [`Host::input`].
    Archive,
    Remote(Location),
}

/// A directory of this machine as the build context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalContext {
    /// Absolute.
    pub path: PathBuf,
    /// Name and text of the ignore file beside the Dockerfile, which wins over the context's own.
    pub ignore: Option<(String, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    Directory(PathBuf),
    /// No files.
    Empty,
    /// A git repository or the URL of a tar or another file.
    Remote(Location),
    /// An OCI layout, a directory or a tar, and the tag or digest wanted from it.
    Layout {
        path: PathBuf,
        wanted: Selector,
    },
    /// An image reference, to be found like one in FROM.
    Image(String),
}

/// A context, ready to be read.
pub struct Directory {
    /// Absolute.
    pub path: PathBuf,
    /// For messages.
    pub name: String,
    /// Name and text of its ignore file. Only directories of this machine have one: it says what is not
    /// to be read of them, not what somebody else put into an archive.
    pub ignore: Option<(String, Vec<u8>)>,
    /// The next build finds it at the same path.
    pub is_lasting: bool,
    /// Keeps it from being pruned or deleted.
    pub held: Held,
}

/// What a [`Directory`] is in the store.
pub enum Held {
    /// Not there.
    Nothing,
    Layer(Layer),
    /// Gone after the build.
    Scratch(Scratch),
}

/// What was opened in this build, so that everything in it sees the same.
#[derive(Default)]
pub struct Opened {
    /// By name; the build context has none.
    pub contexts: Mutex<BTreeMap<Option<String>, Arc<Directory>>>,
    /// What names of git repositories stand for, by remote, name and checksum, one a line.
    pub commits: Mutex<BTreeMap<String, git::Commit>>,
    /// Contexts and Dockerfiles that were downloaded, by URL.
    pub files: Mutex<BTreeMap<String, registry::Download>>,
}

impl Host<'_> {
    /// The only time that gets into an image, in seconds since the epoch.
    pub fn now(&self) -> i64 {
        self.epoch().unwrap_or(self.clock)
    }

    pub fn epoch(&self) -> Option<i64> {
        self.epoch.get().copied()
    }

    pub fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Relaxed)
    }

    /// Who is told of a transfer.
    pub fn audience(&self) -> Audience<'_> {
        Audience { reporter: self.reporter, numbers: &self.numbers, canceled: self.canceled }
    }
}

/// Runs containers.
pub trait Executor: Send + Sync {
    /// Runs one to its end; what it writes goes to `output` as it comes. Returns when its upper is
    /// quiescent. `told` is called at each moment once, on this thread.
    fn execute(&self, container: &Container, output: &mut dyn Write, told: &dyn Fn(Moment)) -> Result<Exit>;

    /// Says what is about to be executed, so that what it needs is made meanwhile.
    fn expect(&self, expectation: &Expectation);

    /// Ends everything that runs.
    fn cancel(&self);

    /// Says that nothing is going to be executed any more.
    fn rest(&self);
}

impl Executor for Spawner {
    fn execute(&self, container: &Container, output: &mut dyn Write, told: &dyn Fn(Moment)) -> Result<Exit> {
        self.run_into(container, output, told)
    }

    fn expect(&self, expectation: &Expectation) {
        // What goes wrong now goes wrong again when it is needed.
        let _ = Spawner::expect(self, expectation);
    }

    fn cancel(&self) {
        // When the spawner is gone, so is everything it ran.
        let _ = self.kill_all(rustix::process::Signal::KILL);
    }

    fn rest(&self) {
        self.leave();
    }
}

/// Seconds since the epoch as RFC 3339 in UTC, as image configs have it.
pub fn rfc3339(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    // Civil date from days since 1970-01-01, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The inverse of [`rfc3339`], fractions of a second and offsets ignored; `None` for anything that
/// is no such date. For showing ages.
pub fn seconds(date: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| date.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_577_934_245), "2020-01-02T03:04:05Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
        for time in [0, 951_782_400, 1_577_934_245, -1, 4_102_444_799] {
            assert_eq!(seconds(&rfc3339(time)), Some(time));
        }
        assert_eq!(seconds("yesterday"), None);
    }
}
