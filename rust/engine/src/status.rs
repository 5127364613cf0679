//! State of an engine that callers and the engine thread share, besides their queues.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::EngineError;
use crate::health::Heartbeat;
use crate::metrics::Histograms;
use crate::report::Report;
use crate::stats::Counters;

/// Counters, heartbeat, and the end of the engine.
#[derive(Default)]
pub(crate) struct EngineStatus {
    pub counters: Counters,
    pub histograms: Histograms,
    /// Reports of all steps, merged.
    pub report: Mutex<Report>,
    /// Requests submitted that have not started: the length of the bounded input queue.
    pub queued: AtomicUsize,
    pub heartbeat: Heartbeat,
    /// New requests are rejected.
    pub draining: AtomicBool,
    /// The engine thread has a command to close.
    pub closing: AtomicBool,
    pub dead: AtomicBool,
    /// Error of every later call; written once, before `dead` is set.
    pub cause: Mutex<Option<EngineError>>,
}

impl EngineStatus {
    /// Marks the engine as dead; the first cause stays.
    pub fn die(&self, cause: EngineError) {
        let mut slot = self.cause.lock().unwrap_or_else(|e| e.into_inner());
        slot.get_or_insert(cause);
        drop(slot);
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Fails once the engine has ended.
    pub fn check_alive(&self) -> Result<(), EngineError> {
        if !self.dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        let slot = self.cause.lock().unwrap_or_else(|e| e.into_inner());
        Err(slot.clone().unwrap_or_else(EngineError::closed))
    }

    /// Fails once the engine has ended or drains.
    pub fn check_open(&self) -> Result<(), EngineError> {
        self.check_alive()?;
        if self.draining.load(Ordering::SeqCst) || self.closing.load(Ordering::SeqCst) {
            Err(EngineError::closed())
        } else {
            Ok(())
        }
    }
}
