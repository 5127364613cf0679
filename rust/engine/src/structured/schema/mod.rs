//! JSON schemas in the words of the grammar compiler.
//!
//! `Normalizer` rewrites what has the same meaning, and reports what no grammar holds. `closing` closes objects.
//! `Loosener` asks the compiler itself, and loosens the parts that it does not take.

mod closing;
mod equal;
mod formats;
mod keywords;
mod loosen;
mod loss;
mod names;
mod normal;

pub(super) use closing::close;
pub use loosen::{FittedSchema, fit_schema};
pub use loss::SchemaLoss;
pub(super) use normal::normalize;

#[cfg(test)]
mod tests;
