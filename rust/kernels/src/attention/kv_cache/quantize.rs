//! Quantisation of full blocks to int8.

use half::bf16;

use super::super::params::BLOCK_SIZE;
use super::float_blocks::{FloatBlocks, KvElement, padded, value_block};
use super::int8_blocks::{Int8Blocks, nibble, plane};
use crate::context::Kernels;
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Largest code of a key.
const MAX_KEY_CODE: f32 = 255.0;
/// Largest code of a value.
const MAX_VALUE_CODE: f32 = 127.0;
/// Factor above the rounding errors of a norm's sum, root and product.
const NORM_SLACK: f32 = 1.0 + 1e-5;

/// A block that a step fills: its open block is quantised into its int8 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedBlock {
    /// The block.
    pub block: u32,
    /// The open block that holds its tokens.
    pub open: u32,
}

/// Writes the int8 form of sealed blocks from their open blocks. A task is a block and a head.
pub(super) fn seal<E: KvElement>(
    into: &mut Int8Blocks,
    kernels: &Kernels,
    open_blocks: &[FloatBlocks<E>],
    sealed: &[SealedBlock],
    kv_heads: usize,
    head_dim: usize,
) {
    let (plane, padded, value_block) = (plane(head_dim), padded(head_dim), value_block(head_dim));
    let planes = Shared::new(&mut into.planes);
    let (key_lo, key_step) = (Shared::new(&mut into.key_lo), Shared::new(&mut into.key_step));
    let (values, value_scale) = (Shared::new(&mut into.values), Shared::new(&mut into.value_scale));
    let (max_value_norm, key_reach) =
        (Shared::new(&mut into.max_value_norm), Shared::new(&mut into.key_reach));
    let key_step_peaks = Shared::new(&mut into.key_step_peaks);
    kernels.pool().run(sealed.len() * kv_heads, &|task| {
        let (SealedBlock { block, open }, head) = (sealed[task / kv_heads], task % kv_heads);
        let (open, block_head) = (&open_blocks[open as usize], block as usize * kv_heads + head);
        // SAFETY: the caller names no block twice, and a block and head is one task.
        let quantizer = unsafe {
            let (high, low) =
                planes.part(2 * block_head * plane..2 * (block_head + 1) * plane).split_at_mut(plane);
            BlockQuantizer {
                open: open.head(head, head_dim),
                head_dim,
                high,
                low,
                lo: key_lo.part(block_head * padded..(block_head + 1) * padded),
                step: key_step.part(block_head * padded..(block_head + 1) * padded),
                step_peaks: key_step_peaks.part(block_head * LANES..(block_head + 1) * LANES),
                values: values.part(block_head * value_block..(block_head + 1) * value_block),
                scale: value_scale.part(block_head * BLOCK_SIZE..(block_head + 1) * BLOCK_SIZE),
                norm: &mut max_value_norm.part(block_head..block_head + 1)[0],
                reach: &mut key_reach.part(block_head..block_head + 1)[0],
            }
        };
        dispatch(kernels, quantizer);
    });
}

/// Quantises one block and head.
struct BlockQuantizer<'a, E> {
    /// Its keys and values.
    open: (&'a [[E; LANES]], &'a [[E; LANES]]),
    head_dim: usize,
    high: &'a mut [u8],
    low: &'a mut [u8],
    lo: &'a mut [u16],
    step: &'a mut [u16],
    step_peaks: &'a mut [u16],
    values: &'a mut [i8],
    scale: &'a mut [u16],
    norm: &'a mut f32,
    reach: &'a mut f32,
}

impl<E: KvElement> Op for BlockQuantizer<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BlockQuantizer { open, head_dim, high, low, lo, step, step_peaks, values, scale, norm, reach } =
            self;
        let (open_keys, open_values) = open;
        high.fill(0);
        low.fill(0);
        for channel in 0..head_dim {
            let keys = [E::key(s, open_keys, channel, 0), E::key(s, open_keys, channel, 1)];
            let (channel_lo, channel_step) = key_range(s, keys);
            (lo[channel], step[channel]) = (channel_lo.to_bits(), channel_step.to_bits());
            for (part, keys) in keys.into_iter().enumerate() {
                let codes = key_codes(s, keys, channel_lo.to_f32(), channel_step.to_f32());
                for (token, code) in codes.into_iter().enumerate() {
                    let (byte, shift) = nibble(channel, part * LANES + token);
                    high[byte] |= (code >> 4) << shift;
                    low[byte] |= (code & 0x0f) << shift;
                }
            }
        }
        *reach = key_reach(s, lo, step);
        step_peaks.fill(0);
        for (vector, step) in step.chunks(LANES).enumerate() {
            // Steps are not negative: the larger the bits, the larger the number.
            let peak = &mut step_peaks[vector % LANES];
            *peak = step.iter().fold(*peak, |a, &b| a.max(b));
        }
        *norm = 0.0;
        let vectors = padded(head_dim) / LANES;
        for (token, codes) in values.chunks_exact_mut(vectors * LANES).enumerate() {
            let token_scale = value_scale(s, open_values, token, vectors);
            scale[token] = token_scale.to_bits();
            let squares = value_codes(s, open_values, token, token_scale.to_f32(), codes.as_chunks_mut().0);
            *norm = norm.max((squares as f32).sqrt() * token_scale.to_f32() * NORM_SLACK);
        }
    }
}

/// The largest lane of -x.
#[inline(always)]
fn reduce_min<S: Simd>(s: S, x: S::F) -> f32 {
    -s.reduce_max(s.sub(s.zero(), x))
}

/// NaN if any lane is not finite, else 0.
#[inline(always)]
fn fault<S: Simd>(s: S, x: S::F) -> f32 {
    s.reduce_add(s.mul(x, s.zero()))
}

/// `lo` and `step` of a channel's 32 keys.
#[inline(always)]
fn key_range<S: Simd>(s: S, keys: [S::F; 2]) -> (bf16, bf16) {
    if (fault(s, keys[0]) + fault(s, keys[1])).is_nan() {
        return (bf16::NAN, bf16::NAN);
    }
    let lo = round_down(reduce_min(s, s.min(keys[0], keys[1])));
    let hi = s.reduce_max(s.max(keys[0], keys[1]));
    // Halved: the difference of two finite numbers may be infinite.
    let step = round_up((0.5 * hi - 0.5 * lo.to_f32()) / (0.5 * MAX_KEY_CODE));
    (lo, step)
}

/// Codes of 16 keys of a channel.
#[inline(always)]
fn key_codes<S: Simd>(s: S, keys: S::F, lo: f32, step: f32) -> [u8; LANES] {
    // A step of 0 means that all keys are lo; NaN lanes come out of `max` as 0.
    let step = if step > 0.0 { step } else { 1.0 };
    // Halved, as the step is.
    let offset = s.sub(s.mul(keys, s.splat(0.5)), s.splat(0.5 * lo));
    let code = s.div(offset, s.splat(0.5 * step));
    let code = s.min(s.max(code, s.zero()), s.splat(MAX_KEY_CODE));
    let mut codes = [0.0; LANES];
    s.store(s.to_f32(s.round(code)), &mut codes);
    codes.map(|code| code as u8)
}

/// The norm of `|lo| + 255 step`, rounded up.
#[inline(always)]
fn key_reach<S: Simd>(s: S, lo: &[u16], step: &[u16]) -> f32 {
    let mut squares = s.zero();
    for (lo, step) in lo.as_chunks().0.iter().zip(step.as_chunks().0) {
        let reach = s.fma(s.load_bf16(step), s.splat(MAX_KEY_CODE), s.abs(s.load_bf16(lo)));
        squares = s.fma(reach, reach, squares);
    }
    s.reduce_add(squares).sqrt() * NORM_SLACK
}

/// The scale of a token's values; padding is 0.
#[inline(always)]
fn value_scale<S: Simd, E: KvElement>(s: S, values: &[[E; LANES]], token: usize, vectors: usize) -> bf16 {
    let (mut faults, mut largest) = (0.0, s.zero());
    for vector in 0..vectors {
        let value = E::value(s, values, token, vector, vectors);
        faults += fault(s, value);
        largest = s.max(s.abs(value), largest);
    }
    if f32::is_nan(faults) { bf16::NAN } else { round_up(s.reduce_max(largest) / MAX_VALUE_CODE) }
}

/// Writes the codes of a token's values and returns the sum of their squares.
#[inline(always)]
fn value_codes<S: Simd, E: KvElement>(
    s: S,
    values: &[[E; LANES]],
    token: usize,
    scale: f32,
    codes: &mut [[i8; LANES]],
) -> i32 {
    let divisor = s.splat(if scale > 0.0 { scale } else { 1.0 });
    let (low, high) = (s.splat(-MAX_VALUE_CODE), s.splat(MAX_VALUE_CODE));
    let vectors = codes.len();
    for (vector, codes) in codes.iter_mut().enumerate() {
        let code = s.div(E::value(s, values, token, vector, vectors), divisor);
        s.store_i8(s.round(s.min(s.max(code, low), high)), codes);
    }
    codes.as_flattened().iter().map(|&code| i32::from(code) * i32::from(code)).sum()
}

/// The largest bf16 that is not above `x`.
fn round_down(x: f32) -> bf16 {
    -round_up(-x)
}

/// The smallest bf16 that is not below `x`.
fn round_up(x: f32) -> bf16 {
    let near = bf16::from_f32(x);
    if near.to_f32() >= x {
        return near;
    }
    // One place up: away from zero for positive numbers, towards it for negative ones.
    if near.to_bits() >> 15 == 0 {
        bf16::from_bits(near.to_bits() + 1)
    } else if near.to_bits() == 0x8000 {
        bf16::from_bits(1)
    } else {
        bf16::from_bits(near.to_bits() - 1)
    }
}
