//! `wythe doctor`: what was found out about this machine, a line each, with what to do.

use std::path::Path;
use std::process::ExitCode;

use super::entrance::Entrance;
use super::{Failure, print};
use crate::container::Spawner;
use crate::diag::{Diagnostic, Result};
use crate::doctor::{self, Finding, Trials, Verdict};
use crate::ids;
use crate::store::{Access, Store};

pub fn doctor(root: &Path, entrance: &Entrance, as_json: bool) -> Result<ExitCode, Failure> {
    let findings = find(root, entrance);
    let worst = findings.iter().map(|finding| finding.verdict).max();
    print(&if as_json { json(&findings) } else { table(&findings) });
    Ok(if worst == Some(Verdict::Fatal) { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Enters as a build does, where it has to; this process then stays inside.
fn find(root: &Path, entrance: &Entrance) -> Vec<Finding> {
    let mut findings = vec![doctor::kernel()];
    let is_host_root = ids::are_the_hosts() && !entrance.is_outside();
    let mut ids_inside = 0;
    if let Some(entry) = entrance.outside() {
        let extents = entry.ids.users.extents();
        ids_inside = extents.iter().filter(|extent| extent.inside > 0).map(|extent| u64::from(extent.count)).sum();
        if let Err(error) = entry.enter() {
            findings.push(doctor::ids(false, 0, Some(&error)));
            return findings;
        }
    }
    findings.push(doctor::ids(is_host_root, ids_inside, entrance.poverty.as_ref()));
    match trials(root) {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::told("store", Verdict::Fatal, &error)),
    }
    findings
}

fn trials(root: &Path) -> Result<Vec<Finding>, Diagnostic> {
    // Before the store has a thread that empties its trash.
    let spawner = Spawner::fork()?;
    let store = Store::open_with(root, Access::of_this_process()?)?;
    Ok(doctor::examine(
        &store,
        &Trials {
            store: &store,
            run: &|container, output| spawner.run_into(container, output, &|_| {}),
            footing: Default::default(),
        },
    ))
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!("{:<5}  {:<10}  {}\n", finding.verdict.name(), finding.subject, finding.what));
        for cure in &finding.cures {
            text.push_str(&format!("{:<17}  → {cure}\n", ""));
        }
    }
    text.push_str(match findings.iter().map(|finding| finding.verdict).max() {
        Some(Verdict::Fatal) => "\nnothing can be built here\n",
        Some(Verdict::Bad) => "\nsome builds fail here\n",
        _ => "\nall builds work here\n",
    });
    text
}

fn json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            serde_json::json!({
                "subject": finding.subject,
                "verdict": finding.verdict.name(),
                "what": finding.what,
                "cures": finding.cures,
            })
        })
        .collect();
    format!("{}\n", serde_json::Value::from(list))
}
