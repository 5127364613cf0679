//! One thing that goes wrong at a chosen moment, on top of what the seed brings.

/// What happens when. Moments count from 0 (steps from 1) and may lie behind the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intervention {
    /// Cancel this request in this turn (a turn is one call of `Scheduler::step` with its events).
    Cancel { request: u64, turn: u32 },
    /// Cancel every request in this turn.
    CancelAll { turn: u32 },
    /// One sequence of this step fails.
    FailSequence { step: u64 },
    /// The whole step fails: the executor has no results.
    FailStep { step: u64 },
    /// Drain in this turn.
    Drain { turn: u32 },
    /// Whoever receives token number `token` of the run stops reading: its request is cancelled.
    StopReading { token: u64 },
}
