//! The context that every op takes: instruction set and threads.

use crate::isa::{Isa, IsaError};
use crate::threads::{ThreadPool, default_threads};

/// The instruction set and the thread pool that ops run with.
///
/// One value serves one model; it may be shared between threads, whose parallel ops then run one after the other.
#[derive(Debug)]
pub struct Kernels {
    /// Always available on this machine: `new` checks it, and unsafe code relies on that.
    isa: Isa,
    pool: ThreadPool,
}

impl Kernels {
    /// A context of `threads` threads, the caller included (0: one per core), on the given level (None: the best).
    ///
    /// # Errors
    /// [`IsaError::Unavailable`] when this machine lacks the level.
    pub fn new(threads: usize, isa: Option<Isa>) -> Result<Kernels, IsaError> {
        let isa = isa.unwrap_or_else(Isa::detect).check()?;
        let threads = if threads == 0 { default_threads() } else { threads };
        Ok(Kernels { isa, pool: ThreadPool::new(threads) })
    }

    /// One thread, on the best level: for work beside an executor that has no kernels of its own.
    pub fn single() -> Kernels {
        Kernels { isa: Isa::detect(), pool: ThreadPool::new(1) }
    }

    /// The level in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The number of threads in use, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The thread pool, for other parallel work of the same model.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }
}
