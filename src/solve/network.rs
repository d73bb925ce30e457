//! What is said of the network of steps before and after they run.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Solver;
use crate::container::{self, Exit, Expectation};
use crate::digest::Digest;
use crate::plan::{Network, Op, StepId};
use crate::progress::Event;

/// Where it is kept what was found out about the network of a host.
const DIRECTORY: &str = "files/network";

impl Solver<'_> {
    pub(super) fn wants_network(&self, id: StepId) -> bool {
        matches!(&self.plan.step(id).op, Op::Run(run) if run.network == Network::Default)
    }

    /// Has networks made ahead for the unsolved steps among `ids`.
    pub(super) fn expect_networks(&self, ids: impl Iterator<Item = StepId>) {
        let unsolved = ids.filter(|id| self.get(*id).is_none() && self.wants_network(*id));
        let stages: BTreeSet<_> = unsolved.map(|id| &self.plan.step(id).stage).collect();
        if stages.is_empty() {
            return;
        }
        self.host.executor.expect(&Expectation {
            lanes: stages.len().min(self.settings.jobs),
            dns: self.settings.dns.clone(),
            shm_size_bytes: self.settings.shm_size_bytes,
            memory: memo().and_then(|memo| self.host.store.read_record(DIRECTORY, &memo).unwrap_or_default()),
        });
    }

    /// Keeps what a step found out, and tells what its user is to know, once for the build.
    pub(super) fn note_network(&self, exit: &Exit) {
        if let Some(learned) = &exit.learned
            && let Some(memo) = memo()
        {
            // The next build finds it out again.
            let _ = self.host.store.write_record(DIRECTORY, &memo, learned);
        }
        if let Some(warning) = &exit.warning
            && !self.is_network_told.swap(true, Ordering::Relaxed)
        {
            self.host.reporter.report(Event::Warning(warning));
        }
    }
}

/// The name of the record about this host.
fn memo() -> Option<String> {
    container::network_of_host().map(|host| Digest::of(host.as_bytes()).hex())
}
