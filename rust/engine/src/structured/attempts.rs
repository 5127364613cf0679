//! Work with grammars of strangers: on a thread of its own, against the clock, and not too much at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use crate::EngineError;

/// Attempts that may still run after their deadline; more are refused until one of them has ended.
const MAX_RUNNING: usize = 4;

/// What became of an attempt.
pub(super) enum Attempt<T> {
    Done(T),
    TooLong,
    /// It panicked.
    Broken,
}

/// Counts attempts that run.
#[derive(Default)]
pub(super) struct Attempts(Arc<AtomicUsize>);

/// Counts a running attempt, whatever becomes of it.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Attempts {
    /// Runs `work` on a thread, and waits for at most `deadline`.
    ///
    /// # Errors
    /// `QueueFull` while too many others take too long.
    pub fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Attempt<T>, EngineError> {
        if self.0.fetch_add(1, Ordering::SeqCst) >= MAX_RUNNING {
            self.0.fetch_sub(1, Ordering::SeqCst);
            return Err(EngineError::QueueFull("too many grammars are being compiled: try again".into()));
        }
        let running = Running(Arc::clone(&self.0));
        let (done, inbox) = crossbeam_channel::bounded(1);
        let job = move || {
            let _running = running;
            // The caller may have stopped waiting.
            let _ = done.send(work());
        };
        let thread = std::thread::Builder::new().name("octavo-grammar".into()).spawn(job);
        thread.map_err(|e| EngineError::EngineDead(format!("no thread to compile a grammar: {e}")))?;
        Ok(match inbox.recv_timeout(deadline) {
            Ok(result) => Attempt::Done(result),
            Err(RecvTimeoutError::Timeout) => Attempt::TooLong,
            Err(RecvTimeoutError::Disconnected) => Attempt::Broken,
        })
    }
}
