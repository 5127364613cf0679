//! The KV pool: one paged store per layer, laid out from the spec.

use octavo_kernels::{BlockPart, KvDtype, KvLayer, MlaCache, OpenDtype};

use crate::ModelError;
use crate::spec::{AttentionSpec, Dtype, LayerSpec, ModelSpec};

/// Keys and values of all layers. Block ids are those of the scheduler.
pub struct KvPool {
    pub(crate) layers: Vec<LayerStore>,
    int8: bool,
    blocks: usize,
    layout: BlockLayout,
}

/// The arrays in the bytes of a block, layer by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayout {
    layers: Vec<Vec<BlockPart>>,
}

impl BlockLayout {
    /// Bytes of a block in each layer.
    pub fn block_bytes(&self) -> Vec<usize> {
        self.layers.iter().map(|parts| parts.iter().map(|part| part.bytes).sum()).collect()
    }

    /// Whether `bytes` are values that a block of layer `layer` can hold: finite numbers.
    pub fn holds(&self, layer: usize, mut bytes: &[u8]) -> bool {
        self.layers[layer].iter().all(|part| {
            let Some((own, rest)) = bytes.split_at_checked(part.bytes) else { return false };
            bytes = rest;
            part.holds(own)
        })
    }
}

/// What one layer keeps of past tokens.
pub(crate) enum LayerStore {
    /// Keys and values of each KV head.
    Gqa(Box<KvLayer>),
    /// One latent for all heads.
    Mla(MlaCache),
}

/// How a pool keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvFormat {
    /// The type of what is held as floats: everything, or what is not in int8.
    pub float: Dtype,
    /// Whether full blocks are held in int8; see `octavo_kernels::KvLayer`.
    pub int8: bool,
}

impl From<Dtype> for KvFormat {
    fn from(float: Dtype) -> Self {
        KvFormat { float, int8: false }
    }
}

impl KvFormat {
    /// Its name as an option: "int8", or that of the float type.
    pub fn name(self) -> &'static str {
        if self.int8 { "int8" } else { self.float.name() }
    }

    /// The kernels' name of it, for `spec`.
    fn dtype(self, spec: &ModelSpec) -> Result<KvDtype, ModelError> {
        let latent = spec.layers.iter().any(|l| matches!(l.attention, AttentionSpec::Mla(_)));
        match (self.float, self.int8) {
            (Dtype::Float16, _) => Err(ModelError::BadOption(
                "kv_cache_dtype float16 is not available on the CPU: use \"bfloat16\" or \"float32\"".into(),
            )),
            (_, true) if latent => Err(ModelError::BadOption(format!(
                "kv_cache_dtype int8 is not available for {}: its latent attention caches one compressed row a token \
                 already. Use \"auto\"",
                spec.architecture
            ))),
            (Dtype::Float32, false) => Ok(KvDtype::F32),
            (Dtype::Bfloat16, false) => Ok(KvDtype::Bf16),
            (Dtype::Float32, true) => Ok(KvDtype::Int8(OpenDtype::F32)),
            (Dtype::Bfloat16, true) => Ok(KvDtype::Int8(OpenDtype::Bf16)),
        }
    }
}

/// Bytes of one block of 32 tokens, all layers together, padding included.
///
/// # Errors
/// `BadOption` for a format that the cache cannot have on the CPU.
pub fn block_bytes(spec: &ModelSpec, format: KvFormat) -> Result<usize, ModelError> {
    let dtype = format.dtype(spec)?;
    let bytes = |l: &LayerSpec| match &l.attention {
        AttentionSpec::Gqa(a) => KvLayer::bytes_per_block(a.kv_heads, a.head_dim, dtype),
        AttentionSpec::Mla(a) => MlaCache::bytes_per_block(a.kv_lora_rank + a.qk_rope_head_dim, dtype),
    };
    Ok(spec.layers.iter().map(bytes).sum())
}

/// Bytes of one open block of an int8 pool, all layers together. 0 for other pools.
///
/// # Errors
/// As [`block_bytes`].
pub fn open_block_bytes(spec: &ModelSpec, format: KvFormat) -> Result<usize, ModelError> {
    let dtype = format.dtype(spec)?;
    let bytes = |l: &LayerSpec| match &l.attention {
        AttentionSpec::Gqa(a) => KvLayer::bytes_per_open_block(a.kv_heads, a.head_dim, dtype),
        AttentionSpec::Mla(_) => 0,
    };
    Ok(spec.layers.iter().map(bytes).sum())
}

impl KvPool {
    /// A pool of `blocks` blocks. Memory is taken from the system as blocks are first written.
    ///
    /// # Errors
    /// `BadOption` for a format that the cache cannot have on the CPU.
    pub fn new(spec: &ModelSpec, blocks: usize, format: KvFormat) -> Result<Self, ModelError> {
        let dtype = format.dtype(spec)?;
        let layer = |l: &LayerSpec| match &l.attention {
            AttentionSpec::Gqa(a) => {
                LayerStore::Gqa(Box::new(KvLayer::new(blocks, a.kv_heads, a.head_dim, dtype)))
            }
            AttentionSpec::Mla(a) => {
                LayerStore::Mla(MlaCache::new(blocks, a.kv_lora_rank + a.qk_rope_head_dim, dtype))
            }
        };
        let parts = |l: &LayerSpec| match &l.attention {
            AttentionSpec::Gqa(a) => KvLayer::block_parts(a.kv_heads, a.head_dim, dtype),
            AttentionSpec::Mla(a) => MlaCache::block_parts(a.kv_lora_rank + a.qk_rope_head_dim, dtype),
        };
        let layout = BlockLayout { layers: spec.layers.iter().map(parts).collect() };
        Ok(Self { layers: spec.layers.iter().map(layer).collect(), int8: format.int8, blocks, layout })
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// How the bytes of a block are laid out.
    pub fn block_layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// Appends the bytes of a full block to `out`, layer by layer.
    pub fn export_block(&self, block: u32, out: &mut [Vec<u8>]) {
        for (layer, out) in self.layers.iter().zip(out) {
            match layer {
                LayerStore::Gqa(layer) => layer.export_block(block as usize, out),
                LayerStore::Mla(layer) => layer.export_block(block as usize, out),
            }
        }
    }

    /// Fills blocks of one layer with bytes that [`Self::export_block`] gave, one block after the other, of a pool with the
    /// same layout.
    pub fn import_blocks(&mut self, layer: usize, blocks: &[u32], bytes: &[u8]) {
        let store = &mut self.layers[layer];
        let size = bytes.len() / blocks.len().max(1);
        for (&block, bytes) in blocks.iter().zip(bytes.chunks_exact(size.max(1))) {
            match store {
                LayerStore::Gqa(layer) => layer.import_block(block as usize, bytes),
                LayerStore::Mla(layer) => layer.import_block(block as usize, bytes),
            }
        }
    }

    /// Whether full blocks are held in int8, and the others in open blocks.
    pub fn is_int8(&self) -> bool {
        self.int8
    }

    /// Makes room for `count` open blocks.
    pub fn grow_open_blocks(&mut self, count: usize) {
        for layer in &mut self.layers {
            if let LayerStore::Gqa(layer) = layer {
                layer.grow_open_blocks(count);
            }
        }
    }

    /// Copies a block in every layer; in an int8 pool, what belongs to it beside its open block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        for layer in &mut self.layers {
            match layer {
                LayerStore::Gqa(layer) => layer.copy_block(from as usize, to as usize),
                LayerStore::Mla(layer) => layer.copy_block(from as usize, to as usize),
            }
        }
    }

    /// Copies an open block of an int8 pool in every layer.
    pub fn copy_open_block(&mut self, from: u32, to: u32) {
        for layer in &mut self.layers {
            if let LayerStore::Gqa(layer) = layer {
                layer.copy_open_block(from as usize, to as usize);
            }
        }
    }
}
