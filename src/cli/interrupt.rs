//! Ctrl-C and its kin: the first ends the build gently, the second, or the end of a short grace,
//! at once.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::diag::{Context as _, Diagnostic, Result};
use crate::sys;

/// How long a payload may clean up. One that has no handler for the signal, as a shell has none, is
/// ended at once: nothing of an interrupted step is kept.
const GRACE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    Gently,
    AtOnce,
}

/// The signals that end a build, taken from their default action.
pub struct Interrupts {
    signals: OwnedFd,
    /// Closing the writer ends the watch.
    stop: OwnedFd,
    caught: AtomicI32,
}

/// Ends the watch when dropped.
pub struct Watch<'scope> {
    writer: Option<OwnedFd>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl Interrupts {
    /// From here on SIGINT, SIGTERM and SIGHUP of this thread, and of those it starts, only reach
    /// the watch.
    pub fn block() -> Result<(Self, OwnedFd)> {
        let signals =
            sys::signal_fd(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).context(|| "cannot watch for signals")?;
        let (stop, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "cannot make a pipe")?;
        Ok((Self { signals, stop, caught: AtomicI32::new(0) }, writer))
    }

    /// Calls `act` with how urgent it is: [`Urgency::Gently`] at the first signal, then
    /// [`Urgency::AtOnce`] at the next one or after the grace.
    pub fn watch<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        writer: OwnedFd,
        act: impl Fn(Urgency) + Send + 'scope,
    ) -> Watch<'scope> {
        let thread = scope.spawn(move || {
            let mut grace = None;
            loop {
                let mut fds = [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
                match poll(&mut fds, grace.as_ref()) {
                    Ok(0) => {
                        grace = None;
                        act(Urgency::AtOnce);
                        continue;
                    }
                    Ok(_) => {}
                    Err(_) => continue,
                }
                if !fds[1].revents().is_empty() {
                    return;
                }
                if let Ok(signal) = sys::read_signal(self.signals.as_fd()) {
                    let is_first = self.caught.swap(signal, Ordering::Relaxed) == 0;
                    grace = is_first.then_some(GRACE);
                    act(if is_first { Urgency::Gently } else { Urgency::AtOnce });
                }
            }
        });
        Watch { writer: Some(writer), thread: Some(thread) }
    }

    /// The last signal that came.
    pub fn caught(&self) -> Option<i32> {
        match self.caught.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }
}

/// Says so; what the program then exits with.
pub fn stopped_by(signal: i32) -> ExitCode {
    let name = crate::container::signal::name(signal);
    super::print_diagnostics(&[Diagnostic::error(format!("stopped by {name}"))]);
    ExitCode::from(128 + u8::try_from(signal).unwrap_or(0))
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        drop(self.writer.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
