//! Which step next, and on which thread.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{Solver, canceled};
use crate::diag::{Diagnostic, Result};
use crate::plan::StepId;

/// What the threads share.
struct Board {
    /// Inputs solved, not begun.
    ready: BTreeSet<StepId>,
    /// Not begun, some input unsolved.
    waiting: BTreeSet<StepId>,
    running: usize,
    failure: Option<Diagnostic>,
}

/// Brings every unsolved step to its end. The first failure stops the rest.
pub(super) fn run(solver: &Solver<'_>) -> Result<()> {
    let unsolved: BTreeSet<_> =
        (0..solver.plan.steps.len()).map(StepId).filter(|id| solver.get(*id).is_none()).collect();
    if unsolved.is_empty() {
        return Ok(());
    }
    let stages: BTreeSet<_> = unsolved.iter().map(|id| &solver.plan.step(*id).stage).collect();
    let threads = solver.settings.jobs.clamp(1, stages.len());
    let mut board = Board { ready: BTreeSet::new(), waiting: unsolved, running: 0, failure: None };
    board.promote(solver);
    let bases = solver.bases_ahead(&board.waiting)?;
    let (board, changed) = (Mutex::new(board), Condvar::new());
    if threads == 1 && bases.is_empty() {
        work(solver, &board, &changed);
    } else {
        std::thread::scope(|scope| {
            if !bases.is_empty() {
                scope.spawn(|| solver.prefetch(&bases));
            }
            for _ in 0..threads {
                scope.spawn(|| work(solver, &board, &changed));
            }
        });
    }
    match board.into_inner().unwrap_or_else(PoisonError::into_inner).failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

impl Board {
    /// Moves the steps whose inputs are solved from waiting to ready.
    fn promote(&mut self, solver: &Solver<'_>) {
        let ready = |id: &StepId| solver.needs(*id).iter().all(|need| solver.get(*need).is_some());
        let (now, later) = std::mem::take(&mut self.waiting).into_iter().partition(ready);
        self.waiting = later;
        let now: BTreeSet<_> = now;
        self.ready.extend(now);
    }
}

fn work(solver: &Solver<'_>, board: &Mutex<Board>, changed: &Condvar) {
    let mut guard = lock(board);
    loop {
        if guard.failure.is_none() && solver.host.is_canceled() {
            guard.failure = Some(canceled());
        }
        if guard.failure.is_some() || (guard.running == 0 && guard.ready.is_empty()) {
            changed.notify_all();
            return;
        }
        let Some(id) = guard.ready.pop_first() else {
            guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        guard.running += 1;
        drop(guard);
        let result = solver.bring(id);
        guard = lock(board);
        guard.running -= 1;
        match result {
            Ok(()) => guard.promote(solver),
            Err(failure) => {
                // The first failure is the cause; what fails after it fails because of it.
                if guard.failure.is_none() {
                    guard.failure = Some(failure);
                    solver.host.canceled.store(true, Ordering::Relaxed);
                    solver.host.executor.cancel();
                    solver.host.registry.cancel();
                }
            }
        }
        changed.notify_all();
    }
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
