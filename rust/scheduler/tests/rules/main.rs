//! The scheduler's rules, one test each.

mod adapters;
mod admission;
mod async_scheduling;
mod ends;
mod harness;
mod plan;
mod preemption;
