//! The KV pool: one paged store per layer, laid out from the spec.

use octavo_kernels::{KvDtype, KvLayer, LatentKv};

use crate::ModelError;
use crate::spec::{AttentionSpec, Dtype, LayerSpec, ModelSpec};

/// Keys and values of all layers. Block ids are those of the scheduler.
pub struct KvPool {
    pub(crate) layers: Vec<LayerStore>,
    blocks: usize,
}

/// What one layer keeps of past tokens.
pub(crate) enum LayerStore {
    /// Keys and values of each KV head.
    Heads(KvLayer),
    /// One latent for all heads.
    Latent(LatentKv),
}

/// Bytes that one block of 32 tokens takes in all layers together, padding included.
///
/// # Errors
/// `BadOption` for a dtype that the cache cannot hold on the CPU.
pub fn block_bytes(spec: &ModelSpec, dtype: Dtype) -> Result<usize, ModelError> {
    let dtype = kv_dtype(dtype)?;
    let bytes = |l: &LayerSpec| match &l.attention {
        AttentionSpec::Heads(a) => KvLayer::bytes_per_block(a.kv_heads, a.head_dim, dtype),
        AttentionSpec::Latent(a) => LatentKv::bytes_per_block(a.kv_rank + a.rope_dim, dtype),
    };
    Ok(spec.layers.iter().map(bytes).sum())
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
        let layer = |l: &LayerSpec| match &l.attention {
            AttentionSpec::Heads(a) => LayerStore::Heads(KvLayer::new(blocks, a.kv_heads, a.head_dim, dtype)),
            AttentionSpec::Latent(a) => {
                LayerStore::Latent(LatentKv::new(blocks, a.kv_rank + a.rope_dim, dtype))
            }
        };
        Ok(Self { layers: spec.layers.iter().map(layer).collect(), blocks })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Copies a block in every layer.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        for layer in &mut self.layers {
            match layer {
                LayerStore::Heads(layer) => layer.copy_block(from as usize, to as usize),
                LayerStore::Latent(layer) => layer.copy_block(from as usize, to as usize),
            }
        }
    }
}
