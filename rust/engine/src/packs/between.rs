//! How callers' threads reach the time between two steps.

use crate::EngineError;
use crate::command::Command;
use crate::engine::Engine;
use crate::packs::{BetweenSteps, Job};

impl Engine {
    /// Runs `work` on the engine thread between two steps, and waits for its result.
    ///
    /// # Errors
    /// Those of `work`, and `EngineDead` if the engine ends first.
    pub(crate) fn between_steps<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut BetweenSteps<'_>) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.check_process()?;
        let (job, result) = Job::new(work);
        if self.commands.send(Command::Job(job)).is_ok()
            && let Ok(result) = result.recv()
        {
            return result;
        }
        self.status.check_alive()?;
        Err(EngineError::closed())
    }
}
