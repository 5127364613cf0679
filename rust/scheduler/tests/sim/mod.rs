//! The simulation: the real scheduler and cache, a random workload on a tiny pool, and an executor that remembers
//! what was written where. Shared by the test programs beside this folder; each uses a part of it.
#![allow(dead_code)]

mod adapters;
mod checks;
mod executor;
pub mod intervention;
mod oracle;
pub mod packs;
pub mod random;
pub mod seeds;
pub mod simulation;
mod workload;
