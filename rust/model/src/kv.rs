//! The KV pool: one paged store per layer, laid out from the spec.

use octavo_kernels::{BLOCK_SIZE, KvDtype, KvLayer};

use crate::ModelError;
use crate::spec::{Dtype, ModelSpec};

/// Keys and values of all layers. Block ids are those of the scheduler.
pub struct KvPool {
    pub(crate) layers: Vec<KvLayer>,
    blocks: usize,
}

/// Bytes that one block of `BLOCK_SIZE` tokens takes in all layers together.
pub fn block_bytes(spec: &ModelSpec, dtype: Dtype) -> usize {
    spec.kv_elements_per_token() * BLOCK_SIZE * dtype.bytes()
}

impl KvPool {
    /// A pool of `blocks` blocks. Memory is taken from the system as blocks are first written.
    ///
    /// # Errors
    /// `BadOption` for a dtype that the cache cannot hold on the CPU.
    pub fn new(spec: &ModelSpec, blocks: usize, dtype: Dtype) -> Result<Self, ModelError> {
        let dtype = match dtype {
            Dtype::Float32 => KvDtype::F32,
            Dtype::Bfloat16 => KvDtype::Bf16,
            Dtype::Float16 => {
                return Err(ModelError::BadOption(
                    "kv_cache_dtype float16 is not available on the CPU: use \"bfloat16\" or \"float32\""
                        .into(),
                ));
            }
        };
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
