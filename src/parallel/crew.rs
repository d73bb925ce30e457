//! Jobs that come one by one, done by other threads once there is enough to do.
//!
//! Who brings them helps when the queue is full, so no more is held open than the queue has places, and the
//! results do not depend on who did what.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::Scope;

use crate::diag::{Diagnostic, Result};

/// Something to be done.
pub trait Job: Send {
    type Output: Send;

    /// Its number: of several errors the one with the lowest is reported.
    fn slot(&self) -> usize;

    /// How much there is to read or write, in bytes.
    fn size_bytes(&self) -> u64;

    /// Does it. `buffer` is this thread's own, see [`buffer_bytes`].
    fn run(&self, buffer: &mut [u8]) -> Result<Self::Output>;
}

/// How large a buffer at least is for something of this size: never empty, and no larger than pays. Each page of it
/// that is touched for the first time costs as much as reading it.
pub fn buffer_bytes(size_bytes: u64) -> usize {
    const ENOUGH: u64 = 128 << 10;
    size_bytes.clamp(1, ENOUGH) as usize
}

/// So many jobs wait at most, each with a file or directory open: several crews work at the same time, and a
/// process may have 1024 files open.
const QUEUE_JOBS: usize = 128;
/// From here on another thread pays.
const MUCH_JOBS: usize = 64;
const MUCH_BYTES: u64 = 2 << 20;

/// A queue of jobs and the threads that do them.
pub struct Crew<'scope, 'env, J: Job> {
    scope: &'scope Scope<'scope, 'env>,
    shared: Arc<Shared<J>>,
    idle_threads: Cell<usize>,
    buffer: Cell<Vec<u8>>,
}

struct Shared<J: Job> {
    state: Mutex<State<J>>,
    /// There is a job, or there will be none.
    changed: Condvar,
    /// No job is being done by another thread.
    rests: Condvar,
}

struct State<J: Job> {
    jobs: VecDeque<J>,
    waiting_bytes: u64,
    /// How many jobs threads of the crew are doing.
    running: usize,
    /// How many threads have nothing to do.
    sleeping: usize,
    is_closed: bool,
    done: Vec<J::Output>,
    error: Option<(usize, Box<Diagnostic>)>,
}

impl<J: Job> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // A thread that panics here takes the scope, and so the build, with it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn run(&self, job: J, buffer: &mut Vec<u8>) -> MutexGuard<'_, State<J>> {
        let slot = job.slot();
        let wanted = buffer_bytes(job.size_bytes());
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        let result = job.run(buffer);
        // Closes what it held.
        drop(job);
        let mut state = self.lock();
        match result {
            Ok(output) => state.done.push(output),
            Err(error) if state.error.as_ref().is_none_or(|(first, _)| slot < *first) => {
                state.error = Some((slot, Box::new(error)));
            }
            Err(_) => {}
        }
        state
    }

    /// The life of a thread: until the queue is closed and empty.
    fn work(&self) {
        let mut buffer = Vec::new();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take() {
                state.running += 1;
                drop(state);
                state = self.run(job, &mut buffer);
                state.running -= 1;
                if state.running == 0 && state.jobs.is_empty() {
                    self.rests.notify_all();
                }
            } else if state.is_closed {
                return;
            } else {
                state.sleeping += 1;
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                state.sleeping -= 1;
            }
        }
    }
}

impl<J: Job> State<J> {
    fn take(&mut self) -> Option<J> {
        let job = self.jobs.pop_front()?;
        self.waiting_bytes -= job.size_bytes();
        Some(job)
    }
}

impl<'scope, 'env, J: Job + 'scope> Crew<'scope, 'env, J> {
    /// `threads` counts the one that brings the jobs, too.
    pub fn new(scope: &'scope Scope<'scope, 'env>, threads: usize) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            waiting_bytes: 0,
            running: 0,
            sleeping: 0,
            is_closed: false,
            done: Vec::new(),
            error: None,
        };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), rests: Condvar::new() };
        Self {
            scope,
            shared: Arc::new(shared),
            idle_threads: Cell::new(threads.saturating_sub(1)),
            buffer: Cell::default(),
        }
    }

    pub fn push(&self, job: J) {
        let mut state = self.shared.lock();
        state.waiting_bytes += job.size_bytes();
        state.jobs.push_back(job);
        let is_much = state.jobs.len() >= MUCH_JOBS || state.waiting_bytes >= MUCH_BYTES;
        let overflow = if state.jobs.len() > QUEUE_JOBS { state.take() } else { None };
        // Threads sleep until it pays to wake them, and then work until nothing is left.
        let wakes = is_much && state.sleeping > 0;
        drop(state);
        if wakes {
            self.shared.changed.notify_one();
        }
        if is_much && self.idle_threads.get() > 0 {
            self.idle_threads.set(self.idle_threads.get() - 1);
            let shared = Arc::clone(&self.shared);
            self.scope.spawn(move || shared.work());
        }
        if let Some(job) = overflow {
            self.run(job);
        }
    }

    /// Whether a job has failed, so that others are of no use.
    pub fn has_failed(&self) -> bool {
        self.shared.lock().error.is_some()
    }

    /// Does what is left, together with the other threads. All results so far, in no order, or an error and its slot.
    pub fn finish(&self) -> Result<Vec<J::Output>, (usize, Box<Diagnostic>)> {
        loop {
            let job = self.shared.lock().take();
            let Some(job) = job else { break };
            self.run(job);
        }
        let state = self.shared.rests.wait_while(self.shared.lock(), |state| state.running > 0);
        let mut state = state.unwrap_or_else(|poisoned| poisoned.into_inner());
        match state.error.take() {
            None => Ok(std::mem::take(&mut state.done)),
            Some(error) => Err(error),
        }
    }

    fn run(&self, job: J) {
        let mut buffer = self.buffer.take();
        drop(self.shared.run(job, &mut buffer));
        self.buffer.set(buffer);
    }
}

impl<J: Job> Drop for Crew<'_, '_, J> {
    /// Lets the threads end; what still waits is of no use, as who brought it has failed.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.jobs.clear();
        state.waiting_bytes = 0;
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Squaring(usize);

    impl Job for Squaring {
        type Output = usize;

        fn slot(&self) -> usize {
            self.0
        }

        fn size_bytes(&self) -> u64 {
            1
        }

        fn run(&self, _buffer: &mut [u8]) -> Result<usize> {
            match self.0 {
                number @ (300 | 700) => Err(Diagnostic::error(number.to_string())),
                number => Ok(number * number),
            }
        }
    }

    fn finish(numbers: std::ops::Range<usize>, threads: usize) -> Result<Vec<usize>, (usize, Box<Diagnostic>)> {
        std::thread::scope(|scope| {
            let crew = Crew::new(scope, threads);
            numbers.for_each(|number| crew.push(Squaring(number)));
            crew.finish()
        })
    }

    #[test]
    fn every_job_is_done_and_the_first_that_fails_is_told() {
        for threads in [1, 2, 5] {
            let mut done = finish(0..300, threads).unwrap();
            done.sort_unstable();
            assert!(done.into_iter().eq((0..300).map(|number| number * number)));
            let (slot, error) = finish(0..1000, threads).unwrap_err();
            assert_eq!((slot, error.message.as_str()), (300, "300"));
        }
    }
}
