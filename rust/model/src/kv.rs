//! The KV pool: one paged store per layer, laid out from the spec.

use octavo_kernels::{KvDtype, KvLayer};

use crate::ModelError;
use crate::spec::{Dtype, ModelSpec};

/// Keys and values of all layers. Block ids are those of the scheduler.
pub struct KvPool {
    pub(crate) layers: Vec<KvLayer>,
    blocks: usize,
}

/// Bytes that one block of 32 tokens takes in all layers together, padding included.
///
/// # Errors
/// `BadOption` for a dtype that the cache cannot hold on the CPU.
pub fn block_bytes(spec: &ModelSpec, dtype: Dtype) -> Result<usize, ModelError> {
    let dtype = kv_dtype(dtype)?;
    let layers = spec.layers.iter().map(|l| &l.attention);
    Ok(layers.map(|a| KvLayer::bytes_per_block(a.kv_heads, a.head_dim, dtype)).sum())
}

fn kv_dtype(dtype: Dtype) -> Result<KvDtype, ModelError> {
    match dtype {
        Dtype::Float32 => Ok(KvDtype::F32),
        Dtype::Bfloat16 => Ok(KvDtype::Bf16),
        Dtype::Float16 => Err(ModelError::BadOption(
            "kv_cache_dtype float16 is not available on the CPU: use \"bfloat16\" or \"float32\"".into(),
        )),
    }
}

impl KvPool {
    /// A pool of `blocks` blocks. Memory is taken from the system as blocks are first written.
    ///
    /// # Errors
    /// `BadOption` for a dtype that the cache cannot hold on the CPU.
    pub fn new(spec: &ModelSpec, blocks: usize, dtype: Dtype) -> Result<Self, ModelError> {
        let dtype = kv_dtype(dtype)?;
        let layer =
            |l: &crate::LayerSpec| KvLayer::new(blocks, l.attention.kv_heads, l.attention.head_dim, dtype);
        Ok(Self { layers: spec.layers.iter().map(layer).collect(), blocks })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies a block in every layer.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        for layer in &mut self.layers {
            layer.copy_block(from as usize, to as usize);
        }
    }
}
