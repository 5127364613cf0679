//! Writers of the KV cache: new tokens, and blocks to seal.

use half::bf16;

use super::super::params::BLOCK_SIZE;
use super::float_blocks::{FloatBlocks, KvElement, key_block, padded, value_block};
use super::layer::{KvDtype, KvLayer, KvStore};
use super::quantize::{SealedBlock, seal};
use crate::context::Kernels;
use crate::parallel::Shared;

/// Values below which a write stays on the calling thread.
const VALUES_PER_TASK: usize = 16 << 10;

/// Writes the keys and values of new tokens. Row t of `k` begins at `t * k_stride` (`v` alike), holds `[kv_heads,
/// head_dim]` and goes to `slots[t]` = block * 32 + offset, or open block * 32 + offset in an int8 layer.
pub fn write_kv(
    kernels: &Kernels,
    layer: &mut KvLayer,
    k: &[f32],
    k_stride: usize,
    v: &[f32],
    v_stride: usize,
    slots: &[u32],
) {
    let Some(last) = slots.len().checked_sub(1) else { return };
    let width = layer.kv_heads * layer.head_dim;
    assert!(
        k_stride >= width && v_stride >= width,
        "row strides {k_stride}, {v_stride} below the {width} of a row"
    );
    assert!(
        k.len() >= last * k_stride + width,
        "k holds {} values, {} rows are written",
        k.len(),
        slots.len()
    );
    assert!(
        v.len() >= last * v_stride + width,
        "v holds {} values, {} rows are written",
        v.len(),
        slots.len()
    );
    let (blocks, what) = match layer.dtype() {
        KvDtype::Int8(_) => (layer.num_open_blocks(), "open blocks"),
        KvDtype::F32 | KvDtype::Bf16 => (layer.num_blocks, "blocks"),
    };
    for &slot in slots {
        assert!((slot as usize) < blocks * BLOCK_SIZE, "slot {slot} of {blocks} {what}");
    }
    let rows =
        NewRows { k, k_stride, v, v_stride, slots, kv_heads: layer.kv_heads, head_dim: layer.head_dim };
    let narrow = |x| bf16::from_f32(x).to_bits();
    match &mut layer.store {
        KvStore::F32(floats) => rows.write(kernels, std::slice::from_mut(floats), blocks, |x| x),
        KvStore::Bf16(floats) => rows.write(kernels, std::slice::from_mut(floats), blocks, narrow),
        KvStore::Int8F32(_, open_blocks) => rows.write(kernels, open_blocks, 1, |x| x),
        KvStore::Int8Bf16(_, open_blocks) => rows.write(kernels, open_blocks, 1, narrow),
    }
}

/// Seals blocks that are full, each named once: writes their int8 form from their open blocks.
pub fn seal_blocks(kernels: &Kernels, layer: &mut KvLayer, sealed: &[SealedBlock]) {
    for &SealedBlock { block, open } in sealed {
        assert!((block as usize) < layer.num_blocks, "block {block} of {}", layer.num_blocks);
        assert!(
            (open as usize) < layer.num_open_blocks(),
            "open block {open} of {}",
            layer.num_open_blocks()
        );
    }
    let mut blocks: Vec<u32> = sealed.iter().map(|sealed| sealed.block).collect();
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0] != pair[1]), "a block is sealed twice in {sealed:?}");
    let (kv_heads, head_dim) = (layer.kv_heads, layer.head_dim);
    match &mut layer.store {
        KvStore::F32(_) | KvStore::Bf16(_) => panic!("only int8 layers have blocks to fill"),
        KvStore::Int8F32(blocks, open_blocks) => {
            seal(blocks, kernels, open_blocks, sealed, kv_heads, head_dim)
        }
        KvStore::Int8Bf16(blocks, open_blocks) => {
            seal(blocks, kernels, open_blocks, sealed, kv_heads, head_dim)
        }
    }
}

struct NewRows<'a> {
    k: &'a [f32],
    k_stride: usize,
    v: &'a [f32],
    v_stride: usize,
    slots: &'a [u32],
    kv_heads: usize,
    head_dim: usize,
}

impl NewRows<'_> {
    /// Writes into `pairs` of `blocks` blocks each. A task is some KV heads: no two tasks write the same block of a
    /// head.
    fn write<T: KvElement>(
        &self,
        kernels: &Kernels,
        pairs: &mut [FloatBlocks<T>],
        blocks: usize,
        convert: impl Fn(f32) -> T + Sync,
    ) {
        let (head_dim, kv_heads) = (self.head_dim, self.kv_heads);
        let pairs: Vec<_> =
            pairs.iter_mut().map(|p| (Shared::new(&mut p.keys), Shared::new(&mut p.values))).collect();
        let heads_per_task = VALUES_PER_TASK.div_ceil(self.slots.len() * head_dim).min(kv_heads);
        kernels.pool().run(kv_heads.div_ceil(heads_per_task), &|task| {
            let heads = task * heads_per_task..kv_heads.min((task + 1) * heads_per_task);
            for (row, &slot) in self.slots.iter().enumerate() {
                let (block, token) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
                let (keys, values) = &pairs[block / blocks];
                for head in heads.clone() {
                    let block_head = block % blocks * kv_heads + head;
                    let k = &self.k[row * self.k_stride + head * head_dim..][..head_dim];
                    let v = &self.v[row * self.v_stride + head * head_dim..][..head_dim];
                    // SAFETY: a head's part of any block belongs to one task, which holds one part of each at a time.
                    let (keys, values) = unsafe {
                        let part = |size| block_head * size..(block_head + 1) * size;
                        (keys.part(part(key_block::<T>(head_dim))), values.part(part(value_block(head_dim))))
                    };
                    for (channel, (&key, &value)) in k.iter().zip(v).enumerate() {
                        keys[T::key_index(channel, token)] = convert(key);
                        values[T::value_index(token, channel, padded(head_dim))] = convert(value);
                    }
                }
            }
        });
    }
}
