//! Blocks out of a layer as bytes, and bytes into a block: for caches that are kept in files.
//!
//! The bytes of a block are its arrays one after the other, each for all KV heads, numbers in little-endian order:
//!
//! ```text
//!     floats     keys, values
//!     int8       planes, key_lo, key_step, values, value_scale, key_step_peaks, max_value_norm, key_reach, gates
//!     latents    rows
//! ```
//!
//! They hold what later queries read, and nothing beside it. An open block is no part of a block's bytes: only full
//! blocks leave a layer.

use super::super::params::BLOCK_SIZE;
use super::float_blocks::{FloatBlocks, KvElement, key_block, padded, value_block};
use super::int8_blocks::{Int8Blocks, plane};
use super::latent::{LatentStore, MlaCache};
use super::layer::{KvDtype, KvLayer, KvStore, OpenDtype};
use crate::simd::LANES;

/// Numbers of one array in the bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNumbers {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// Integers: any byte is one.
    Bytes,
    /// 0 or 1.
    Flags,
}

/// One array in the bytes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockPart {
    /// What it holds.
    pub numbers: BlockNumbers,
    /// Its size.
    pub bytes: usize,
}

impl BlockPart {
    fn new(numbers: BlockNumbers, count: usize) -> BlockPart {
        let size = match numbers {
            BlockNumbers::F32 => 4,
            BlockNumbers::Bf16 => 2,
            BlockNumbers::Bytes | BlockNumbers::Flags => 1,
        };
        BlockPart { numbers, bytes: count * size }
    }

    /// Whether `bytes` of this part are values that a layer can hold: finite numbers, and flags that are flags.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        match self.numbers {
            BlockNumbers::Bytes => true,
            BlockNumbers::Flags => bytes.iter().all(|&flag| flag <= 1),
            // All bits of the exponent are set in what is not finite, and in nothing else.
            BlockNumbers::Bf16 => {
                let all = |at: &u16| at & 0x7f80 == 0x7f80;
                !words16(bytes).fold(false, |bad, x| bad | all(&x))
            }
            BlockNumbers::F32 => {
                let words = bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
                !words.fold(false, |bad, x| bad | (x & 0x7f80_0000 == 0x7f80_0000))
            }
        }
    }
}

fn words16(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|&word| u16::from_le_bytes(word))
}

/// A number as bytes in little-endian order.
pub(crate) trait Stored: Copy {
    fn put(values: &[Self], out: &mut Vec<u8>);
    fn get(bytes: &[u8], values: &mut [Self]);
}

macro_rules! stored {
    ($($number:ty),*) => { $(
        impl Stored for $number {
            fn put(values: &[Self], out: &mut Vec<u8>) {
                out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            }

            fn get(bytes: &[u8], values: &mut [Self]) {
                let words = bytes.as_chunks::<{ size_of::<$number>() }>().0;
                values.iter_mut().zip(words).for_each(|(to, &word)| *to = <$number>::from_le_bytes(word));
            }
        }
    )* };
}

stored!(f32, u16, u8, i8);

/// The part of `array` that belongs to a block, where each block has `size` numbers.
fn put<T: Stored>(array: &[T], block: usize, size: usize, out: &mut Vec<u8>) {
    T::put(&array[block * size..(block + 1) * size], out);
}

/// Fills that part from the beginning of `bytes`, and moves on behind it.
fn get<T: Stored>(array: &mut [T], block: usize, size: usize, bytes: &mut &[u8]) {
    let (own, rest) = bytes.split_at(size * size_of::<T>());
    T::get(own, &mut array[block * size..(block + 1) * size]);
    *bytes = rest;
}

impl<T: KvElement + Stored> FloatBlocks<T> {
    fn put(&self, block: usize, heads: usize, head_dim: usize, out: &mut Vec<u8>) {
        put(&self.keys, block, heads * key_block::<T>(head_dim), out);
        put(&self.values, block, heads * value_block(head_dim), out);
    }

    fn get(&mut self, block: usize, heads: usize, head_dim: usize, mut bytes: &[u8]) {
        get(&mut self.keys, block, heads * key_block::<T>(head_dim), &mut bytes);
        get(&mut self.values, block, heads * value_block(head_dim), &mut bytes);
    }
}

impl Int8Blocks {
    fn put(&self, block: usize, heads: usize, head_dim: usize, out: &mut Vec<u8>) {
        put(&self.planes, block, heads * 2 * plane(head_dim), out);
        put(&self.key_lo, block, heads * padded(head_dim), out);
        put(&self.key_step, block, heads * padded(head_dim), out);
        put(&self.values, block, heads * value_block(head_dim), out);
        put(&self.value_scale, block, heads * BLOCK_SIZE, out);
        put(&self.key_step_peaks, block, heads * LANES, out);
        put(&self.max_value_norm, block, heads, out);
        put(&self.key_reach, block, heads, out);
        out.extend((0..heads).map(|head| u8::from(self.gate(block * heads + head))));
    }

    fn get(&mut self, block: usize, heads: usize, head_dim: usize, mut bytes: &[u8]) {
        let from = &mut bytes;
        get(&mut self.planes, block, heads * 2 * plane(head_dim), from);
        get(&mut self.key_lo, block, heads * padded(head_dim), from);
        get(&mut self.key_step, block, heads * padded(head_dim), from);
        get(&mut self.values, block, heads * value_block(head_dim), from);
        get(&mut self.value_scale, block, heads * BLOCK_SIZE, from);
        get(&mut self.key_step_peaks, block, heads * LANES, from);
        get(&mut self.max_value_norm, block, heads, from);
        get(&mut self.key_reach, block, heads, from);
        for head in 0..heads {
            self.set_gate(block * heads + head, from[head] != 0);
        }
    }
}

impl KvLayer {
    /// The arrays in the bytes of a block of such a layer.
    pub fn block_parts(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> Vec<BlockPart> {
        let part = |numbers, count| BlockPart::new(numbers, kv_heads * count);
        let floats = |numbers, keys| vec![part(numbers, keys), part(numbers, value_block(head_dim))];
        match dtype {
            KvDtype::F32 => floats(BlockNumbers::F32, key_block::<f32>(head_dim)),
            KvDtype::Bf16 => floats(BlockNumbers::Bf16, key_block::<u16>(head_dim)),
            KvDtype::Int8(OpenDtype::F32 | OpenDtype::Bf16) => vec![
                part(BlockNumbers::Bytes, 2 * plane(head_dim)),
                part(BlockNumbers::Bf16, padded(head_dim)),
                part(BlockNumbers::Bf16, padded(head_dim)),
                part(BlockNumbers::Bytes, value_block(head_dim)),
                part(BlockNumbers::Bf16, BLOCK_SIZE),
                part(BlockNumbers::Bf16, LANES),
                part(BlockNumbers::F32, 1),
                part(BlockNumbers::F32, 1),
                part(BlockNumbers::Flags, 1),
            ],
        }
    }

    /// Appends the bytes of a full block to `out`.
    pub fn export_block(&self, block: usize, out: &mut Vec<u8>) {
        assert!(block < self.num_blocks, "export of block {block} of {}", self.num_blocks);
        let (heads, head_dim) = (self.kv_heads, self.head_dim);
        match &self.store {
            KvStore::F32(blocks) => blocks.put(block, heads, head_dim, out),
            KvStore::Bf16(blocks) => blocks.put(block, heads, head_dim, out),
            KvStore::Int8F32(blocks, _) | KvStore::Int8Bf16(blocks, _) => {
                blocks.put(block, heads, head_dim, out);
            }
        }
    }

    /// Fills a block with bytes that [`Self::export_block`] gave, of a layer of the same sizes and type.
    pub fn import_block(&mut self, block: usize, bytes: &[u8]) {
        assert!(block < self.num_blocks, "import of block {block} of {}", self.num_blocks);
        let (heads, head_dim) = (self.kv_heads, self.head_dim);
        assert_eq!(bytes.len(), KvLayer::bytes_per_block(heads, head_dim, self.dtype()), "bytes of a block");
        match &mut self.store {
            KvStore::F32(blocks) => blocks.get(block, heads, head_dim, bytes),
            KvStore::Bf16(blocks) => blocks.get(block, heads, head_dim, bytes),
            KvStore::Int8F32(blocks, _) | KvStore::Int8Bf16(blocks, _) => {
                blocks.get(block, heads, head_dim, bytes);
            }
        }
    }
}

impl MlaCache {
    /// The arrays in the bytes of a block of such a layer.
    pub fn block_parts(width: usize, dtype: KvDtype) -> Vec<BlockPart> {
        let numbers = if dtype.float_bytes() == 4 { BlockNumbers::F32 } else { BlockNumbers::Bf16 };
        vec![BlockPart::new(numbers, BLOCK_SIZE * padded(width))]
    }

    /// Appends the bytes of a full block to `out`.
    pub fn export_block(&self, block: usize, out: &mut Vec<u8>) {
        let size = BLOCK_SIZE * padded(self.width);
        match &self.store {
            LatentStore::F32(values) => put(values, block, size, out),
            LatentStore::Bf16(values) => put(values, block, size, out),
        }
    }

    /// Fills a block with bytes that [`Self::export_block`] gave, of a layer of the same size and type.
    pub fn import_block(&mut self, block: usize, mut bytes: &[u8]) {
        let size = BLOCK_SIZE * padded(self.width);
        match &mut self.store {
            LatentStore::F32(values) => get(values, block, size, &mut bytes),
            LatentStore::Bf16(values) => get(values, block, size, &mut bytes),
        }
        assert!(bytes.is_empty(), "{} bytes more than a block has", bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::attention::{SealedBlock, seal_blocks, write_kv};
    use crate::context::Kernels;

    const DTYPES: [KvDtype; 4] =
        [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8(OpenDtype::F32), KvDtype::Int8(OpenDtype::Bf16)];

    /// The bytes of a block.
    fn exported(layer: &KvLayer, block: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        layer.export_block(block, &mut bytes);
        bytes
    }

    /// A layer of 3 blocks of which block 1 is full.
    fn filled(dtype: KvDtype, kv_heads: usize, head_dim: usize) -> KvLayer {
        let kernels = Kernels::single();
        let mut layer = KvLayer::new(3, kv_heads, head_dim, dtype);
        let row = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 9.0;
        let values: Vec<f32> = (0..BLOCK_SIZE * kv_heads * head_dim).map(row).collect();
        let keys: Vec<f32> = values.iter().rev().copied().collect();
        let int8 = matches!(dtype, KvDtype::Int8(_));
        layer.grow_open_blocks(if int8 { 1 } else { 0 });
        let first = if int8 { 0 } else { BLOCK_SIZE as u32 };
        let slots: Vec<u32> = (first..first + BLOCK_SIZE as u32).collect();
        let width = kv_heads * head_dim;
        write_kv(&kernels, &mut layer, &keys, width, &values, width, &slots);
        if int8 {
            seal_blocks(&kernels, &mut layer, &[SealedBlock { block: 1, open: 0 }]);
        }
        layer
    }

    #[test]
    fn a_block_has_its_bytes_in_another_place_of_another_layer() {
        for dtype in DTYPES {
            for (kv_heads, head_dim) in [(1, 16), (2, 24), (3, 64)] {
                let from = filled(dtype, kv_heads, head_dim);
                let bytes = exported(&from, 1);
                assert!(bytes.iter().any(|&x| x != 0), "{dtype:?}");
                assert_eq!(bytes.len(), KvLayer::bytes_per_block(kv_heads, head_dim, dtype));
                let parts = KvLayer::block_parts(kv_heads, head_dim, dtype);
                assert_eq!(bytes.len(), parts.iter().map(|part| part.bytes).sum::<usize>());
                let mut to = KvLayer::new(2, kv_heads, head_dim, dtype);
                to.import_block(0, &bytes);
                assert_eq!(exported(&to, 0), bytes, "{dtype:?} {kv_heads} x {head_dim}");
                assert!(exported(&to, 1).iter().all(|&x| x == 0), "the neighbour is untouched");
            }
        }
    }

    #[test]
    fn gates_travel_with_an_int8_block() {
        let dtype = KvDtype::Int8(OpenDtype::Bf16);
        let from = filled(dtype, 2, 16);
        let KvStore::Int8Bf16(blocks, _) = &from.store else { panic!("an int8 layer") };
        blocks.set_gate(3, true);
        let mut to = KvLayer::new(1, 2, 16, dtype);
        to.import_block(0, &exported(&from, 1));
        let KvStore::Int8Bf16(blocks, _) = &to.store else { panic!("an int8 layer") };
        assert_eq!([blocks.gate(0), blocks.gate(1)], [false, true]);
    }

    #[test]
    fn latents_travel() {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            let mut from = MlaCache::new(2, 20, dtype);
            let rows: Vec<f32> = (0..BLOCK_SIZE * 20).map(|i| i as f32 / 7.0).collect();
            let slots: Vec<u32> = (BLOCK_SIZE as u32..2 * BLOCK_SIZE as u32).collect();
            from.write(&rows, &slots);
            let mut bytes = Vec::new();
            from.export_block(1, &mut bytes);
            assert_eq!(bytes.len(), MlaCache::bytes_per_block(20, dtype));
            assert_eq!(bytes.len(), MlaCache::block_parts(20, dtype)[0].bytes);
            let mut to = MlaCache::new(3, 20, dtype);
            to.import_block(2, &bytes);
            let mut again = Vec::new();
            to.export_block(2, &mut again);
            assert_eq!(again, bytes);
        }
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let f32s = BlockPart::new(BlockNumbers::F32, 3);
        let bytes = |values: [f32; 3]| values.map(f32::to_le_bytes).concat();
        assert!(f32s.holds(&bytes([f32::MAX, -0.0, f32::MIN_POSITIVE / 2.0])));
        let halves = BlockPart::new(BlockNumbers::Bf16, 3);
        let halved = |values: [f32; 3]| values.map(|x| bf16::from_f32(x).to_le_bytes()).concat();
        assert!(halves.holds(&halved([3e38, -0.0, 1e-39])));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!f32s.holds(&bytes([1.0, bad, 2.0])));
            assert!(!halves.holds(&halved([1.0, 2.0, bad])));
        }
        let flags = BlockPart::new(BlockNumbers::Flags, 2);
        assert!(flags.holds(&[0, 1]) && !flags.holds(&[0, 2]));
        assert!(BlockPart::new(BlockNumbers::Bytes, 2).holds(&[0, 255]));
    }
}
