//! The keys and values of one layer, in blocks of 32 tokens.

use half::bf16;

use super::BLOCK_SIZE;
use crate::context::Kernels;
use crate::pages::{Pages, Plain};
use crate::parallel::Shared;
use crate::simd::LANES;

/// Values below which a write stays on the calling thread.
const VALUES_PER_TASK: usize = 16 << 10;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvDtype {
    /// f32.
    F32,
    /// bf16, rounded to nearest, ties to even.
    Bf16,
}

impl KvDtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
        }
    }
}

/// The stored keys and values of one layer.
///
/// Keys lie channel-major, `[block][kv head][head_dim][32 tokens]`: scores of 32 keys come from a broadcast per
/// channel. Values lie token-major, `[block][kv head][32 tokens][padded head_dim]`, padded to whole vectors.
#[derive(Debug)]
pub struct KvLayer {
    pub(super) num_blocks: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) store: Store,
}

#[derive(Debug)]
pub(super) enum Store {
    F32(Pair<f32>),
    Bf16(Pair<u16>),
}

/// Keys and values of one element type.
#[derive(Debug)]
pub(super) struct Pair<T> {
    pub(super) keys: Pages<T>,
    pub(super) values: Pages<T>,
}

impl<T: Plain> Pair<T> {
    fn new(keys: usize, values: usize) -> Pair<T> {
        Pair { keys: Pages::zeroed(keys), values: Pages::zeroed(values) }
    }

    fn copy_block(&mut self, from: usize, to: usize, key_size: usize, value_size: usize) {
        self.keys.copy_within(from * key_size..(from + 1) * key_size, to * key_size);
        self.values.copy_within(from * value_size..(from + 1) * value_size, to * value_size);
    }
}

impl KvLayer {
    /// Storage for `num_blocks` blocks. Memory is taken from the system as blocks are first written.
    pub fn new(num_blocks: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> KvLayer {
        assert!(kv_heads > 0 && head_dim > 0, "{kv_heads} KV heads of {head_dim}");
        let keys = num_blocks * kv_heads * key_block(head_dim);
        let values = num_blocks * kv_heads * value_block(head_dim);
        let store = match dtype {
            KvDtype::F32 => Store::F32(Pair::new(keys, values)),
            KvDtype::Bf16 => Store::Bf16(Pair::new(keys, values)),
        };
        KvLayer { num_blocks, kv_heads, head_dim, store }
    }

    /// Bytes that one block of such a layer takes.
    pub fn bytes_per_block(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> usize {
        kv_heads * (key_block(head_dim) + value_block(head_dim)) * dtype.bytes()
    }

    /// Bytes of the whole layer.
    pub fn bytes(&self) -> usize {
        self.num_blocks * KvLayer::bytes_per_block(self.kv_heads, self.head_dim, self.dtype())
    }

    /// The number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// How keys and values are stored.
    pub fn dtype(&self) -> KvDtype {
        match self.store {
            Store::F32(_) => KvDtype::F32,
            Store::Bf16(_) => KvDtype::Bf16,
        }
    }

    /// Copies block `from` onto block `to`.
    pub fn copy_block(&mut self, from: usize, to: usize) {
        assert!(
            from < self.num_blocks && to < self.num_blocks,
            "copy {from} -> {to} of {} blocks",
            self.num_blocks
        );
        let (keys, values) =
            (self.kv_heads * key_block(self.head_dim), self.kv_heads * value_block(self.head_dim));
        match &mut self.store {
            Store::F32(pair) => pair.copy_block(from, to, keys, values),
            Store::Bf16(pair) => pair.copy_block(from, to, keys, values),
        }
    }
}

/// Key values of one block and head.
pub(super) fn key_block(head_dim: usize) -> usize {
    head_dim * BLOCK_SIZE
}

/// Stored values of one token and head: whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Stored values of one block and head.
pub(super) fn value_block(head_dim: usize) -> usize {
    BLOCK_SIZE * padded(head_dim)
}

/// Writes the keys and values of new tokens: row t of `k` begins at `t * k_stride` (`v` alike) and holds
/// `[kv_heads, head_dim]`; it goes to slot `slots[t]` = block * 32 + place in the block.
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
    for &slot in slots {
        assert!(
            (slot as usize) < layer.num_blocks * BLOCK_SIZE,
            "slot {slot} of {} blocks",
            layer.num_blocks
        );
    }
    let rows =
        NewRows { k, k_stride, v, v_stride, slots, kv_heads: layer.kv_heads, head_dim: layer.head_dim };
    match &mut layer.store {
        Store::F32(pair) => rows.write(kernels, pair, |x| x),
        Store::Bf16(pair) => rows.write(kernels, pair, |x| bf16::from_f32(x).to_bits()),
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
    /// A task is a KV head, so that no two tasks write the same block of a head.
    fn write<T: Plain>(&self, kernels: &Kernels, pair: &mut Pair<T>, convert: impl Fn(f32) -> T + Sync) {
        let (head_dim, kv_heads) = (self.head_dim, self.kv_heads);
        let (keys, values) = (Shared::new(&mut pair.keys), Shared::new(&mut pair.values));
        let heads_per_task = VALUES_PER_TASK.div_ceil(self.slots.len() * head_dim).min(kv_heads);
        kernels.pool().run(kv_heads.div_ceil(heads_per_task), &|task| {
            let heads = task * heads_per_task..kv_heads.min((task + 1) * heads_per_task);
            for (row, &slot) in self.slots.iter().enumerate() {
                let (block, token) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
                for head in heads.clone() {
                    let place = block * kv_heads + head;
                    let k = &self.k[row * self.k_stride + head * head_dim..][..head_dim];
                    let v = &self.v[row * self.v_stride + head * head_dim..][..head_dim];
                    let value = place * value_block(head_dim) + token * padded(head_dim);
                    // SAFETY: a head's part of any block belongs to one task, which holds one part of each at a time.
                    let (keys, values) = unsafe {
                        let keys = keys.part(place * key_block(head_dim)..(place + 1) * key_block(head_dim));
                        (keys, values.part(value..value + head_dim))
                    };
                    for (tokens, &x) in keys.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().zip(k) {
                        tokens[token] = convert(x);
                    }
                    values.iter_mut().zip(v).for_each(|(to, &x)| *to = convert(x));
                }
            }
        });
    }
}
