//! Progress of the engine, which any thread may read while a step runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::EngineError;

/// The state of an engine, as `Engine::health` sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Health {
    /// Idle, or working within the limit.
    Ready,
    /// One step has taken longer than the limit. It may still end.
    Stalled {
        /// Since when, in seconds.
        seconds: f64,
    },
    /// Closed, or ended by a fault; the error is that of every later call.
    Dead(EngineError),
}

/// When the engine thread last began a round of work.
pub(crate) struct Heartbeat {
    epoch: Instant,
    /// Microseconds since `epoch`, plus 1; 0 while the thread waits for commands.
    began: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { epoch: Instant::now(), began: AtomicU64::new(0) }
    }
}

impl Heartbeat {
    /// A round of work begins. Relaxed, as for all that is read for display: nothing is ordered by it.
    pub fn beat(&self) {
        self.began.store(self.epoch.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
    }

    /// There is no work: the thread waits.
    pub fn rest(&self) {
        self.began.store(0, Ordering::Relaxed);
    }

    /// Age of the round in progress; None at rest.
    pub fn busy_for(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.epoch.elapsed().saturating_sub(Duration::from_micros(began)))
    }
}
