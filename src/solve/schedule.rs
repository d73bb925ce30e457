//! Which step next, and on which thread.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

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
    std::thread::scope(|scope| {
        let hands = Threads { scope, solver, board: &board, changed: &changed };
        if threads == 1 && bases.is_empty() {
            hands.work();
            return;
        }
        if !bases.is_empty() {
            scope.spawn(|| solver.prefetch(&bases));
        }
        for _ in 0..threads {
            scope.spawn(move || hands.work());
        }
    });
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

/// The threads that bring steps to their ends.
#[derive(Clone, Copy)]
struct Threads<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    solver: &'scope Solver<'scope>,
    board: &'scope Mutex<Board>,
    changed: &'scope Condvar,
}

impl<'scope> Threads<'scope, '_> {
    fn work(self) {
        let mut guard = lock(self.board);
        loop {
            if guard.failure.is_none() && self.solver.host.is_canceled() {
                guard.failure = Some(canceled());
            }
            if guard.failure.is_some() || (guard.running == 0 && guard.ready.is_empty()) {
                self.changed.notify_all();
                return;
            }
            let Some(id) = guard.ready.pop_first() else {
                guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            guard.running += 1;
            drop(guard);
            self.bring(id);
            guard = lock(self.board);
        }
    }

    /// Brings a step to its end, and the next ones that run while it is hashed.
    fn bring(self, id: StepId) {
        let mut next = Some(id);
        while let Some(id) = next.take() {
            match self.solver.bring(id, &|follower| self.claim(follower)) {
                Ok(Some((executed, follower))) => {
                    next = Some(follower);
                    self.scope.spawn(move || self.end(self.solver.finish(executed)));
                }
                Ok(None) => self.end(Ok(())),
                Err(failure) => self.end(Err(failure)),
            }
        }
    }

    /// Takes a step whose input is not solved yet.
    fn claim(self, id: StepId) -> bool {
        let mut board = lock(self.board);
        let is_taken = board.failure.is_none() && !self.solver.host.is_canceled() && board.waiting.remove(&id);
        board.running += usize::from(is_taken);
        is_taken
    }

    /// Notes how a step ended.
    fn end(self, result: Result<()>) {
        let mut board = lock(self.board);
        board.running -= 1;
        match result {
            Ok(()) => board.promote(self.solver),
            Err(failure) => {
                // The first failure is the cause; what fails after it fails because of it.
                if board.failure.is_none() {
                    board.failure = Some(failure);
                    self.solver.host.canceled.store(true, Ordering::Relaxed);
                    self.solver.host.executor.cancel();
                    self.solver.host.registry.cancel();
                }
            }
        }
        self.changed.notify_all();
    }
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
