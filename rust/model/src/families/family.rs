//! The result of reading config.json.

use super::names::TensorNames;
use crate::spec::ModelSpec;

/// A spec with the names under which the checkpoint stores its tensors.
pub struct Family {
    /// The decoder.
    pub spec: ModelSpec,
    /// Where its weights are.
    pub names: TensorNames,
    /// config.json says that the weights lie in a file of `octavo quantize`.
    pub packed: bool,
}
