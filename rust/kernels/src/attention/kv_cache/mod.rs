//! The KV cache: storage of keys and values, its layouts, and its writers.

mod float_blocks;
mod int8_blocks;
mod latent;
mod layer;
mod quantize;
mod view;
mod write;

pub(super) use float_blocks::{FloatBlocks, key_block, value_block};
pub(super) use float_blocks::{HALVES, KvElement, MATRIX_DEPTH, padded};
pub(super) use int8_blocks::{
    Int8Blocks, Int8Head, UNIT, UNIT_BYTES, bytes_per_head, nibble, plane, value_bytes_per_head,
};
pub(super) use latent::LatentStore;
pub use latent::MlaCache;
pub(super) use layer::KvStore;
pub use layer::{KvDtype, KvLayer, OpenDtype};
pub use quantize::SealedBlock;
pub(super) use view::{BlockView, KvSource, PrefetchPtrs};
pub use write::{seal_blocks, write_kv};
