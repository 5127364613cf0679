//! The scheduler's rules, one test each.

mod admission;
mod ahead;
mod ends;
mod harness;
mod plan;
mod preemption;
