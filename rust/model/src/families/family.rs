//! The result of reading config.json.

use octavo_kernels::QuantScheme;

use super::names::TensorNames;
use crate::spec::ModelSpec;

/// A spec with the names under which the checkpoint stores its tensors.
#[derive(Clone)]
pub struct Family {
    /// The decoder.
    pub spec: ModelSpec,
    /// Where its weights are.
    pub names: TensorNames,
    /// Scheme of the file of `octavo quantize` that holds the weights; None: config.json names no such file.
    pub packed: Option<QuantScheme>,
    /// config.json names a model without an output head.
    pub base: bool,
    /// What is odd about config.json, though the model loads.
    pub warnings: Vec<String>,
}
