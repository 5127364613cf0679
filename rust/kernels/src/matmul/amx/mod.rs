//! int8 products on AMX tiles: the sums of [`super::int8`], 16 rows of x at a time.

mod epilogue;
mod layout;
mod steps;
mod worker;

pub(super) use worker::{run, run_gated};
