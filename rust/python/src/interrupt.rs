//! Work that Ctrl-C ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::prelude::*;

use crate::errors::raise;

/// How long a wait goes without looking for Ctrl-C.
pub const SIGNAL_CHECK: Duration = Duration::from_millis(50);
/// Stack of the worker: that of a main thread.
const STACK_BYTES: usize = 8 << 20;

/// Runs `work` in a thread of its own, while this one looks for Ctrl-C. `work` asks its argument, some ten times a second,
/// whether to go on.
///
/// # Errors
/// What a signal raises, after `work` has ended.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&(dyn Fn() -> bool + Sync)) -> T + Send,
) -> PyResult<T> {
    let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let waiting = std::thread::current();
    let broken = || raise(py, "EngineDeadError", "there is no thread for a long text");
    std::thread::scope(|scope| {
        let body = || {
            let made = work(&|| !stop.load(Ordering::Relaxed));
            done.store(true, Ordering::SeqCst);
            waiting.unpark();
            made
        };
        let thread = std::thread::Builder::new().name("octavo-work".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, body).map_err(|_| broken())?;
        let mut raised = Ok(());
        while raised.is_ok() && !done.load(Ordering::SeqCst) && !thread.is_finished() {
            py.detach(|| std::thread::park_timeout(SIGNAL_CHECK));
            raised = py.check_signals();
        }
        stop.store(raised.is_err(), Ordering::Relaxed);
        let made = py.detach(|| thread.join());
        raised.and_then(|()| made.map_err(|_| broken()))
    })
}
