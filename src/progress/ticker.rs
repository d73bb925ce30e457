//! A thread that calls a function again and again until it is dropped: what keeps elapsed times
//! moving while every step is silent.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub struct Ticker {
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Without a thread (the system refuses one) nothing ticks and nothing else is wrong.
    pub fn start(period: Duration, mut tick: impl FnMut() + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let body = move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                tick();
            }
        };
        Self { stop: Some(stop), thread: thread::Builder::new().name("progress".into()).spawn(body).ok() }
    }
}

impl Drop for Ticker {
    /// Returns when the last call is over.
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of `tick` was already told of by the panic hook.
            let _ = thread.join();
        }
    }
}
