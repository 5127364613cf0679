//! Adapters as names and numbers: which id a name stands for, and which adapters are in memory. Pure, like the scheduler.

mod names;
mod pool;

pub use names::{AdapterName, AdapterNames, LoadedName, NameError};
pub use pool::{AdapterPool, Grant, PoolKey};
