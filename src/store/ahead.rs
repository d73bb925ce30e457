//! Blobs that an export is going to ask for, made before it does: a layer is compressed while later steps run, by
//! threads that leave the processors to them.
//!
//! ```text
//! a layer is committed ──▶ waiting ──▶ compressed, patiently ──▶ form
//! the export begins    ──▶ what is being compressed is waited for, and hurries; what waits is the export's
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Store;
use crate::diag::{Diagnostic, Result};
use crate::digest::{ChainId, DiffId};
use crate::layer::{Compression, Workers};
use crate::parallel;
use crate::progress::{Audience, Event, Reporter};

/// What is made ahead in one build. Dropping it gives up what is not done.
pub struct Ahead {
    store: Store,
    compressions: Vec<Compression>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody waits.
    is_wanted: AtomicBool,
    is_abandoned: AtomicBool,
    /// Of what is being compressed.
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Expected>,
    is_working: bool,
    is_closed: bool,
}

struct Expected {
    diff_id: DiffId,
    id: ChainId,
}

impl Ahead {
    pub fn new(store: &Store, compressions: Vec<Compression>) -> Self {
        Self { store: store.clone(), compressions, shared: Arc::default(), thread: Mutex::default() }
    }

    /// A layer that was made here, and that an export is going to ask for if there is no such blob yet. `id` names its
    /// directory.
    pub fn expect(&self, diff_id: DiffId, id: ChainId) {
        let mut state = self.shared.lock();
        if state.is_closed {
            return;
        }
        state.waiting.push_back(Expected { diff_id, id });
        drop(state);
        self.shared.changed.notify_all();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (store, compressions) = (self.store.clone(), self.compressions.clone());
            let shared = Arc::clone(&self.shared);
            let work = move || shared.work(&store, &compressions);
            // Without a thread the export does it all.
            *thread = std::thread::Builder::new().name("ahead".into()).spawn(work).ok();
        }
    }

    /// Waits for the layer that is being compressed, and takes no other.
    pub fn finish(&self, audience: Audience<'_>) -> Result<()> {
        let shared = &self.shared;
        shared.is_wanted.store(true, Ordering::Relaxed);
        let mut state = shared.close();
        if !state.is_working {
            return Ok(());
        }
        audience.show("[export] finish a layer that is being packed", |meter| {
            const STEP: Duration = Duration::from_millis(50);
            meter.expect(shared.total_bytes.load(Ordering::Relaxed));
            let mut told_bytes = 0;
            while state.is_working {
                if audience.canceled.load(Ordering::Relaxed) {
                    shared.is_abandoned.store(true, Ordering::Relaxed);
                    return Err(Diagnostic::error("the build was canceled"));
                }
                let (after, _) = shared.changed.wait_timeout(state, STEP).unwrap_or_else(PoisonError::into_inner);
                state = after;
                let done_bytes = shared.done_bytes.load(Ordering::Relaxed);
                meter.add(done_bytes.saturating_sub(told_bytes));
                told_bytes = done_bytes.max(told_bytes);
            }
            Ok(())
        })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.is_abandoned.store(true, Ordering::Relaxed);
        drop(self.shared.close());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // What it has begun it removes.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.waiting.clear();
        state.is_closed = true;
        self.changed.notify_all();
        state
    }

    /// The life of the thread.
    fn work(&self, store: &Store, compressions: &[Compression]) {
        let audience = Audience { reporter: self, canceled: &self.is_abandoned, ..Audience::nobody() };
        let mut state = self.lock();
        loop {
            let Some(expected) = state.waiting.pop_front() else {
                if state.is_closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.is_working = true;
            drop(state);
            for compression in compressions {
                let workers = Workers::patient(parallel::processors(), &self.is_wanted);
                // What goes wrong goes wrong once more when the export does it, and is told then.
                let Expected { diff_id, id } = &expected;
                let _ = audience.show("", |meter| store.pack_ahead(diff_id, id, *compression, meter, workers));
            }
            state = self.lock();
            state.is_working = false;
            self.changed.notify_all();
        }
    }
}

impl Reporter for Shared {
    fn report(&self, event: Event<'_>) {
        let (done_bytes, total_bytes) = match event {
            Event::Started { .. } => (0, None),
            Event::Progress { done_bytes, total_bytes, .. } => (done_bytes, total_bytes),
            _ => return,
        };
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
        self.total_bytes.store(total_bytes.unwrap_or(0), Ordering::Relaxed);
    }
}
