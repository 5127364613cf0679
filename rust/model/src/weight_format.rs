//! How weights are held in memory, and which of them are an exception.

use octavo_kernels::WeightDtype;

/// How weights are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightFormat {
    /// Element type of all projections.
    pub dtype: WeightDtype,
    /// When quantised: maximum relative RMS error of a projection's outputs. A projection above it stays in bfloat16. None: no limit.
    pub error_budget: Option<f64>,
}

impl From<WeightDtype> for WeightFormat {
    fn from(dtype: WeightDtype) -> Self {
        Self { dtype, error_budget: None }
    }
}

/// A tensor that stays in bfloat16 because int8 would change it too much.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptInBf16 {
    /// Name in the checkpoint.
    pub tensor: String,
    /// Relative RMS error of its outputs in int8, estimated from the weights and the norm before them. Tensors that are
    /// packed together stay together, so the error of one of them may be small.
    pub error: f64,
}
