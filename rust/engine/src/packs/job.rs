//! Jobs of callers that the engine thread runs between steps.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::Receiver;
use octavo_scheduler::Scheduler;

use crate::EngineError;
use crate::error::panic_text;
use crate::executor::Executor;

/// What a job may use. No step is in flight.
pub(crate) struct BetweenSteps<'a> {
    pub scheduler: &'a mut Scheduler,
    pub executor: &'a mut dyn Executor,
}

/// Sends a job's result.
type Reply = Box<dyn FnOnce() + Send>;

/// A job, and the way of its result.
pub(crate) struct Job(Box<dyn FnOnce(&mut BetweenSteps<'_>) -> Reply + Send>);

impl Job {
    pub fn new<T: Send + 'static>(
        work: impl FnOnce(&mut BetweenSteps<'_>) -> Result<T, EngineError> + Send + 'static,
    ) -> (Self, Receiver<Result<T, EngineError>>) {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let run = move |between: &mut BetweenSteps<'_>| -> Reply {
            let result = catch_unwind(AssertUnwindSafe(|| work(between))).unwrap_or_else(|panic| {
                Err(EngineError::Execution(format!("internal fault: {}", panic_text(panic))))
            });
            // A caller that has gone needs no result.
            Box::new(move || drop(sender.send(result)))
        };
        (Self(Box::new(run)), receiver)
    }

    /// Does the work. The caller gets the result when the answer is called.
    pub fn run(self, between: &mut BetweenSteps<'_>) -> Reply {
        (self.0)(between)
    }
}
