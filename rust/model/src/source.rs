//! The source of a model's weights, as `walk` uses it: a checkpoint, a file of `octavo quantize`, or a writer of one.

use octavo_kernels::{Linear, WeightDtype, WeightRows};

use crate::ModelError;
use crate::spec::MlaSpec;

/// Gives weights by the names that the checkpoint has for them.
pub(crate) trait WeightSource {
    /// A tensor of `len` values in f32.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError>;

    /// Matrices `(name, rows)` of the same input, packed below each other in the format of the model. `inputs`: the typical
    /// magnitude of each column's input, if a norm precedes.
    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError>;

    /// A matrix that every format holds in f32.
    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError>;

    /// The matrix of latent attention that makes keys and values, taken apart.
    fn absorbed(&self, name: &str, a: &MlaSpec) -> Result<Absorbed, ModelError>;
}

/// The projection from the latent to keys and values in its absorbed form, head by head.
pub(crate) struct Absorbed {
    /// Queries to the space of the latent, each `[kv_lora_rank, qk_nope_head_dim]`.
    pub to_latent: Vec<Linear>,
    /// Latents to values, each `[v_head_dim, kv_lora_rank]`.
    pub to_value: Vec<Linear>,
}

/// A placeholder where weights are only passed on.
pub(crate) fn stand_in(kernels: &octavo_kernels::Kernels) -> Linear {
    Linear::pack(kernels, &[WeightRows::F32(&[0.0])], 1, WeightDtype::F32)
}
