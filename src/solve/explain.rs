//! For each miss the fact that differs from the nearest earlier record: during a build, or instead of
//! one; then nothing is executed, nothing is recorded, and no server is asked.

use std::collections::BTreeMap;

use super::facts::UNKNOWN;
use super::input::Keeps;
use super::{Keyed, Layers, Lookup, Settings, Solver, is_shown};
use crate::cache::{self, Difference, Facts, Reason};
use crate::context;
use crate::diag::Result;
use crate::digest::Digest;
use crate::host::Host;
use crate::plan::{BaseKey, CopySource, Op, Plan, Root, Step, StepId};
use crate::store::ImageRecord;

/// The most changed files that are named; the rest are counted.
const FILES_NAMED: usize = 5;

/// A step and why it would run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub title: String,
    /// One line a reason; of a hit, what it depends on that was not looked at.
    pub reasons: Vec<String>,
    pub is_hit: bool,
}

/// Explains every step that is shown, in order.
pub fn explain(
    plan: &Plan,
    host: &Host<'_>,
    settings: &Settings,
    bases: &BTreeMap<BaseKey, ImageRecord>,
) -> Result<Vec<Explained>> {
    let layers = Layers::of(host);
    let solver = Solver::new(plan, host, settings, bases, &layers);
    let mut explained = Vec::new();
    for index in 0..plan.steps.len() {
        let id = StepId(index);
        let step = plan.step(id);
        let missed = solver.needs(id).into_iter().filter(|need| solver.get(*need).is_none()).collect::<Vec<_>>();
        let (is_hit, reasons) = if missed.is_empty() {
            match solver.look_up(id)? {
                Lookup::Hit(solved) => {
                    solver.set(id, solved);
                    (true, unasked(&step.op))
                }
                Lookup::Miss(key) => (false, solver.why(id, &key)?),
            }
        } else {
            let key = solver.facts(id, None, Keeps::Listings)?;
            let mut reasons: Vec<_> = missed
                .iter()
                .map(|need| format!("it follows `{}`, which has to run", plan.step(*need).title))
                .collect();
            reasons.dedup();
            if let Reason::Changed(differences) = solver.reason(id, &key.facts, &["parent"])? {
                let known = differences.into_iter().filter(|difference| !is_unknown(difference)).collect();
                reasons.extend(solver.describe(id, &key, &Reason::Changed(known))?);
            }
            (false, reasons)
        };
        if is_shown(&step.op) {
            explained.push(Explained { title: step.title.clone(), reasons, is_hit });
        }
    }
    solver.inputs.save();
    Ok(explained)
}

/// The URLs of an ADD whose servers may have something else by now.
fn unasked(op: &Op) -> Vec<String> {
    let Op::Copy(copy) = op else { return Vec::new() };
    let urls = copy.sources.iter().filter_map(|source| match source {
        CopySource::Url(url) if copy.checksum.is_none() => Some(&url.text),
        _ => None,
    });
    urls.map(|url| format!("if `{url}` is what it was: its server is not asked")).collect()
}

/// What an input decides that is not solved yet cannot be compared.
fn is_unknown(difference: &Difference) -> bool {
    difference.after.as_ref().is_some_and(|after| after.contains(UNKNOWN))
}

impl Solver<'_> {
    /// Why a step misses whose inputs are all known, a line each.
    pub(super) fn why(&self, id: StepId, key: &Keyed) -> Result<Vec<String>> {
        self.describe(id, key, &self.reason(id, &key.facts, &[])?)
    }

    /// Why there is no record of these facts; those named in `unknown` are not known yet.
    fn reason(&self, id: StepId, facts: &Facts, unknown: &[&str]) -> Result<Reason> {
        if !self.asks_cache(id) {
            return Ok(Reason::NoCache);
        }
        let Some(nearest) = self.records.nearest(facts, &self.slot(id))? else {
            return Ok(Reason::NeverBuilt);
        };
        let differences = cache::explain::differences(&nearest.facts, facts, unknown);
        Ok(if differences.is_empty() { Reason::Lost } else { Reason::Changed(differences) })
    }

    fn describe(&self, id: StepId, key: &Keyed, reason: &Reason) -> Result<Vec<String>> {
        Ok(match reason {
            Reason::NeverBuilt => vec!["nothing like it was built here before".into()],
            Reason::NoCache => vec!["the cache is not asked (`--no-cache`)".into()],
            Reason::Lost => vec!["its record or its layer is gone from the store".into()],
            Reason::Changed(differences) => {
                let mut lines = Vec::new();
                for difference in differences {
                    if let Some(files) = self.changed_files(key, difference)? {
                        lines.extend(files);
                    } else if is_unknown(difference) {
                        lines.push("what its URL gives is not known: no server is asked".into());
                    } else if difference.fact == "parent" {
                        lines.push(self.changed_parent(id, difference));
                    } else {
                        lines.push(difference.describe());
                    }
                }
                lines
            }
        })
    }

    /// Whose result changed, when the layers below did.
    fn changed_parent(&self, id: StepId, difference: &Difference) -> String {
        let ancestry = self.plan.ancestry(id);
        let below = ancestry.iter().rev().skip(1).map(|id| self.plan.step(*id)).find(|step| is_shown(&step.op));
        let short = |chain: &Option<String>| match chain.as_deref().and_then(|chain| chain.parse::<Digest>().ok()) {
            Some(digest) => format!("`{}`", &digest.hex()[..12]),
            None => "nothing".to_owned(),
        };
        let (before, after) = (short(&difference.before), short(&difference.after));
        match below {
            Some(Step { op: Op::From(Root::Image(key)), .. }) => {
                format!("the base `{}` changed: its layers were {before}, are {after}", key.name)
            }
            Some(step) => format!("the result of `{}` changed: was {before}, is {after}", step.title),
            None => difference.describe(),
        }
    }

    /// For a difference in `files`, which files; `None` when that is not known.
    fn changed_files(&self, key: &Keyed, difference: &Difference) -> Result<Option<Vec<String>>> {
        if difference.fact != "files" {
            return Ok(None);
        }
        let before = match difference.before.as_deref().and_then(|before| before.parse::<Digest>().ok()) {
            Some(digest) => self
                .host
                .store
                .read_record("files", &digest.hex())?
                .and_then(|bytes| context::lines::from_bytes(&bytes)),
            None => None,
        };
        let Some(before) = before else { return Ok(None) };
        let changes = context::diff(&before, &key.reads.lines());
        if changes.is_empty() {
            return Ok(None);
        }
        let mut lines: Vec<_> = changes.iter().take(FILES_NAMED).map(ToString::to_string).collect();
        if changes.len() > FILES_NAMED {
            lines.push(format!("and {} more files", changes.len() - FILES_NAMED));
        }
        Ok(Some(lines))
    }
}
