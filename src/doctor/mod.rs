//! What this machine allows, found out as a build would: by doing it. Every trial goes the way of a
//! build, so that what is said here is what a build will meet.

mod disk;
mod footing;
mod program;
mod trial;

use crate::diag::{Diagnostic, Severity};
use crate::image::platform::Platform;
use crate::store::Store;

pub use disk::{reflinks, room, slow_creation};
pub use footing::{footings, lesser};
pub use trial::Trials;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A word or two.
    pub subject: &'static str,
    pub verdict: Verdict,
    /// What is there or what is missing, and what that means.
    pub what: String,
    /// What could be done about it; each alone helps.
    pub cures: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Good,
    /// Builds work, and could do better.
    Note,
    /// Some builds fail.
    Bad,
    /// Nothing can be built.
    Fatal,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Note => "note",
            Self::Bad => "bad",
            Self::Fatal => "fatal",
        }
    }
}

impl Finding {
    pub fn good(subject: &'static str, what: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, what: what.into(), cures: Vec::new() }
    }

    pub fn of(subject: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { verdict, ..Self::good(subject, what) }
    }

    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cures.push(cure.into());
        self
    }

    /// What a build would be told, with its hints as cures.
    pub fn told(subject: &'static str, verdict: Verdict, diagnostic: &Diagnostic) -> Self {
        let what = match &diagnostic.cause {
            Some(cause) => format!("{}: {cause}", diagnostic.message),
            None => diagnostic.message.clone(),
        };
        Self { subject, verdict, what, cures: diagnostic.hints.clone() }
    }
}

pub fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let what = format!("Linux {release} on {}", Platform::host());
    // Overlays of user namespaces are of 5.11, maps of ids of their mounts of 5.19, layers by name of 6.7.
    let is_old = version(&release).is_some_and(|version| version < (6, 7));
    match is_old {
        true => Finding::of("kernel", Verdict::Note, format!("{what}; builds are made for 6.7 and later")),
        false => Finding::good("kernel", what),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Who builds: `poverty` as a build tells it, `count` of the ids that images can have.
pub fn ids(is_host_root: bool, count: u64, poverty: Option<&Diagnostic>) -> Finding {
    match poverty {
        Some(poverty) => {
            let verdict = if poverty.severity == Severity::Error { Verdict::Fatal } else { Verdict::Note };
            Finding::told("ids", verdict, poverty)
        }
        None if is_host_root => Finding::good("ids", "root: images have all ids, and root in a RUN is nobody outside"),
        None => Finding::good("ids", format!("a user with {count} subordinate ids, in a user namespace of its own")),
    }
}

/// All that takes an open store, and a process that is privileged over its files.
pub fn examine(store: &Store, trials: &Trials<'_>) -> Vec<Finding> {
    let mut findings = vec![room(store), trials.layers()];
    let container = trials.container();
    let can_run = container.verdict == Verdict::Good;
    findings.push(container);
    if can_run {
        findings.extend(trials.networks());
        findings.push(trials.filters());
        findings.extend(trials.limits());
        findings.push(trials.platforms());
    }
    findings.extend([reflinks(store), slow_creation(store)].into_iter().flatten());
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_numbers() {
        for (release, expected) in [
            ("6.18.44", Some((6, 18))),
            ("5.4.0-187-generic", Some((5, 4))),
            ("6.7-rc1", Some((6, 7))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
