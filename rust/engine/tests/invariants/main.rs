//! Invariants of the engine, shown on the real engine: results that do not depend on company or machine, faults that stay
//! with their request, bad input that is refused by name.

mod bad_folders;
mod bad_requests;
mod batch_invariance;
mod closing;
mod corpora;
mod faults;
mod folder;
mod gather;
mod oracle;
mod random;
#[path = "../../../../fuzz/targets.rs"]
mod targets;
