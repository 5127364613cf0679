//! The latent cache: one latent per token, for all heads.
//!
//! ```text
//!     cache    [block][32 tokens][padded width]
//!     key      [ channel 0 ............................. width - 1 ]  padding
//!     value    [ channel 0 ..... value_width - 1 ]
//! ```

use half::bf16;

use super::super::params::BLOCK_SIZE;
use super::float_blocks::padded;
use super::layer::KvDtype;

/// Latent cache of one layer.
#[derive(Debug)]
pub struct MlaCache {
    num_blocks: usize,
    pub(crate) width: usize,
    pub(crate) store: LatentStore,
}

#[derive(Debug)]
pub(crate) enum LatentStore {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl MlaCache {
    /// Storage for `num_blocks` blocks of tokens of `width` channels. The system assigns memory when blocks are first
    /// written.
    pub fn new(num_blocks: usize, width: usize, dtype: KvDtype) -> MlaCache {
        assert!(width > 0, "latents of no values");
        let values = num_blocks * BLOCK_SIZE * padded(width);
        let store = match dtype {
            KvDtype::F32 => LatentStore::F32(vec![0.0; values]),
            KvDtype::Bf16 => LatentStore::Bf16(vec![0; values]),
            KvDtype::Int8(_) => panic!("latents are held as floats, not in {dtype:?}"),
        };
        MlaCache { num_blocks, width, store }
    }

    /// Bytes of one block of such a layer.
    pub fn bytes_per_block(width: usize, dtype: KvDtype) -> usize {
        BLOCK_SIZE * padded(width) * dtype.float_bytes()
    }

    /// Copies block `from` onto block `to`.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        assert!(
            from < self.num_blocks && to < self.num_blocks,
            "copy {from} -> {to} of {} blocks",
            self.num_blocks
        );
        let size = BLOCK_SIZE * padded(self.width);
        match &mut self.store {
            LatentStore::F32(values) => values.copy_within(from * size..(from + 1) * size, to * size),
            LatentStore::Bf16(values) => values.copy_within(from * size..(from + 1) * size, to * size),
        }
    }

    /// Writes `rows` `[T, width]` into `slots` `[T]` (block * 32 + offset).
    pub fn write(&mut self, rows: &[f32], slots: &[u32]) {
        assert_eq!(rows.len(), slots.len() * self.width, "length of rows");
        let stride = padded(self.width);
        for (row, &slot) in rows.chunks_exact(self.width).zip(slots) {
            let slot = slot as usize;
            assert!(slot < self.num_blocks * BLOCK_SIZE, "slot {slot} of {} blocks", self.num_blocks);
            let token = slot * stride..slot * stride + self.width;
            match &mut self.store {
                LatentStore::F32(values) => values[token].copy_from_slice(row),
                LatentStore::Bf16(values) => {
                    values[token].iter_mut().zip(row).for_each(|(to, &x)| *to = bf16::from_f32(x).to_bits());
                }
            }
        }
    }
}
