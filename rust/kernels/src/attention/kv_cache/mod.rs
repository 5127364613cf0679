//! The KV cache: storage of keys and values, its layouts, and its writers.

mod float_blocks;
mod int8_blocks;
mod latent;
mod layer;
mod quantize;
mod transfer;
mod view;
mod write;

#[cfg(target_arch = "x86_64")]
pub(super) use float_blocks::FloatBlocks;
pub(super) use float_blocks::{HALVES, KvElement, MATRIX_DEPTH, key_block, padded, value_block};
pub(super) use int8_blocks::{Int8Blocks, Int8Head, bytes_per_head, nibble, plane, value_bytes_per_head};
#[cfg(target_arch = "x86_64")]
pub(super) use int8_blocks::{UNIT, UNIT_BYTES};
pub(super) use latent::LatentStore;
pub use latent::MlaCache;
pub(super) use layer::KvStore;
pub use layer::{KvDtype, KvLayer, OpenDtype};
pub use quantize::SealedBlock;
pub use transfer::{BlockNumbers, BlockPart};
pub(super) use view::{BlockView, KvSource, PrefetchPtrs};
pub use write::{seal_blocks, write_kv};
