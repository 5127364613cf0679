//! Adapters attached to rows of a step: what they compute, and what is refused.

mod folders;
mod random;
mod rows;
