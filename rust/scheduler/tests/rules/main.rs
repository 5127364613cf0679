//! The scheduler's rules, one test each.

mod admission;
mod ends;
mod harness;
mod plan;
mod preemption;
