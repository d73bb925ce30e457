//! What a walk is about to ask for, done by other threads ahead of it.
//!
//! ```text
//! walk enters a directory ──▶ what there is to ask about it, to the front of the queue
//! walk needs an answer    ◀── which is there, or on its way, or has to be found by the walk itself
//! ```
//!
//! An answer counts when the walk comes to it, errors included: nothing depends on who found it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::Scope;

/// Something to ask the kernel.
pub trait Question: Send + Sync {
    type Answer: Send;

    /// How much it is to ask, in system calls.
    fn weight(&self) -> usize;

    /// Asks; `is_ahead` of the walk, or in it.
    fn ask(&self, is_ahead: bool) -> Self::Answer;
}

/// A question of a walk's. Nobody asks it when the walk has dropped it.
pub struct Pending<Q: Question> {
    question: Q,
    state: Mutex<State<Q::Answer>>,
    answered: Condvar,
}

enum State<A> {
    Waiting,
    /// By another thread.
    Asked,
    /// The same, and the walk waits.
    Awaited,
    Answered(A),
    /// By the walk.
    Taken,
}

/// Answers that are waited for hold descriptors and memory: there are not more of them.
const MAX_ANSWERS: usize = 32;
/// So many system calls ahead another thread pays.
const MUCH: usize = 256;

/// The questions of the walks of one selection, and the threads that ask them.
pub struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: Arc<Shared<'scope>>,
    idle_threads: Cell<usize>,
    /// Of all questions so far.
    weight: Cell<usize>,
}

struct Shared<'scope> {
    queue: Mutex<Queue<'scope>>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue<'scope> {
    waiting: VecDeque<Weak<dyn Asked + 'scope>>,
    /// How many questions are being asked, or answered and not taken.
    answers: usize,
    sleeping: usize,
    is_closed: bool,
}

trait Asked: Send + Sync {
    /// Whether nobody else did, nor will.
    fn claim(&self) -> bool;
    fn ask_ahead(&self);
}

impl<Q: Question> Pending<Q> {
    fn lock(&self) -> MutexGuard<'_, State<Q::Answer>> {
        // A thread that panics takes the scope, and so the build, with it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// For another thread's answer.
    fn wait(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Asked) {
            *state = State::Awaited;
        }
        let waited = self.answered.wait_while(state, |state| matches!(state, State::Awaited));
        drop(waited.unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl<Q: Question> Asked for Pending<Q> {
    fn claim(&self) -> bool {
        let mut state = self.lock();
        let is_free = matches!(*state, State::Waiting);
        if is_free {
            *state = State::Asked;
        }
        is_free
    }

    fn ask_ahead(&self) {
        let answer = self.question.ask(true);
        let before = std::mem::replace(&mut *self.lock(), State::Answered(answer));
        // Else the kernel would be called for nobody.
        if matches!(before, State::Awaited) {
            self.answered.notify_one();
        }
    }
}

impl<'scope, 'env> Ahead<'scope, 'env> {
    /// `threads` counts the one that walks, too.
    pub fn new(scope: &'scope Scope<'scope, 'env>, threads: usize) -> Self {
        let shared = Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new() });
        Self { scope, shared, idle_threads: Cell::new(threads.saturating_sub(1)), weight: Cell::new(0) }
    }

    /// Whether there is anybody to ask.
    pub fn is_of_use(&self) -> bool {
        self.idle_threads.get() > 0 || self.weight.get() > 0
    }

    /// What the walk will [take](Self::take), in this order and before all it expected earlier.
    pub fn expect<Q: Question + 'scope>(&self, questions: Vec<Q>) -> VecDeque<Arc<Pending<Q>>> {
        if questions.is_empty() {
            return VecDeque::new();
        }
        let pending = |question| Pending { question, state: Mutex::new(State::Waiting), answered: Condvar::new() };
        let pending: VecDeque<_> = questions.into_iter().map(|question| Arc::new(pending(question))).collect();
        self.weight.set(self.weight.get() + pending.iter().map(|pending| pending.question.weight()).sum::<usize>());
        let mut queue = self.shared.lock();
        for pending in pending.iter().rev() {
            let pending: Weak<Pending<Q>> = Arc::downgrade(pending);
            queue.waiting.push_front(pending);
        }
        let is_anybody_asleep = queue.sleeping > 0;
        drop(queue);
        if is_anybody_asleep {
            self.shared.changed.notify_one();
        }
        if self.weight.get() >= MUCH && self.idle_threads.get() > 0 {
            self.idle_threads.set(self.idle_threads.get() - 1);
            let shared = Arc::clone(&self.shared);
            self.scope.spawn(move || shared.work());
        }
        pending
    }

    /// The answer. While another thread finds it, this one asks what is next.
    pub fn take<Q: Question>(&self, pending: &Pending<Q>) -> Q::Answer {
        loop {
            let mut state = pending.lock();
            match std::mem::replace(&mut *state, State::Taken) {
                State::Answered(answer) => {
                    drop(state);
                    self.shared.release();
                    return answer;
                }
                State::Asked | State::Awaited => {
                    *state = State::Asked;
                    drop(state);
                    let next = self.shared.lock().claim();
                    match next {
                        Some(question) => question.ask_ahead(),
                        None => pending.wait(),
                    }
                }
                State::Waiting | State::Taken => {
                    drop(state);
                    return pending.question.ask(false);
                }
            }
        }
    }
}

impl<'scope> Shared<'scope> {
    fn lock(&self) -> MutexGuard<'_, Queue<'scope>> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn release(&self) {
        let mut queue = self.lock();
        queue.answers -= 1;
        let wakes = queue.sleeping > 0 && queue.answers == MAX_ANSWERS / 2;
        drop(queue);
        if wakes {
            self.changed.notify_all();
        }
    }

    /// The life of a thread: until the selection is over.
    fn work(&self) {
        let mut queue = self.lock();
        while !queue.is_closed {
            match queue.claim() {
                Some(question) => {
                    drop(queue);
                    question.ask_ahead();
                    // Before the lock: it may be the last to hold the question, and a directory with it.
                    drop(question);
                    queue = self.lock();
                }
                None => {
                    queue.sleeping += 1;
                    queue = self.changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
                    queue.sleeping -= 1;
                }
            }
        }
    }
}

impl<'scope> Queue<'scope> {
    /// The first question that nobody asks.
    fn claim(&mut self) -> Option<Arc<dyn Asked + 'scope>> {
        while self.answers < MAX_ANSWERS {
            let question = self.waiting.pop_front()?.upgrade();
            if let Some(question) = question.filter(|question| question.claim()) {
                self.answers += 1;
                return Some(question);
            }
        }
        None
    }
}

impl Drop for Ahead<'_, '_> {
    /// Lets the threads end.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.is_closed = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.changed.notify_all();
    }
}
