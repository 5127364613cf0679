//! The int8 form of full KV blocks: the format, its writer, and the unpacking of keys.
//!
//! A full block holds, for each KV head,
//!
//! - keys: per channel of the block `lo` and `step` (bf16) and a code of 8 bits per token, `key = lo + step * code`. The
//!   channel is the unit because keys have channels with large offsets, which a scale per token would spend its codes on;
//! - values: per token `scale` (bf16) and a code in -127..=127 per channel, `value = scale * code`;
//! - for dynamic attention two bounds, on the norm of its values and on the terms of a product with its keys, and a gate.
//!
//! The codes of keys lie in two planes, their high and their low four bits, so that a reader can do with the first
//! half: it fixes each key to `lo + step * (16 * high + 7.5 +- 7.5)`. [`place`] says where in a plane.
//!
//! Scales are bf16, whose range is that of f32, so no key or value overflows them. `lo` is rounded down and the steps
//! up, and codes are made from the rounded numbers. A block with a number that is not finite reads as NaN.

use std::sync::atomic::{AtomicBool, Ordering};

use half::bf16;

use super::BLOCK_SIZE;
use super::key_codes::place;
use super::kv::{Pair, padded, value_block};
use super::rows::Element;
use crate::context::Kernels;
use crate::pages::{Pages, Plain};
use crate::parallel::Shared;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Largest code of a key.
const KEY_CODES: f32 = 255.0;
/// Largest code of a value.
const VALUE_CODES: f32 = 127.0;
/// More than the rounding errors of a norm's sum, root and product.
const NORM_SLACK: f32 = 1.0 + 1e-5;

/// Blocks of one layer in int8, `[block][kv head]` each.
#[derive(Debug)]
pub(super) struct Int8Blocks {
    /// The high four bits of the keys' codes, then the low ones, `[padded head_dim / 8][32][4]` bytes each.
    pub(super) planes: Pages<u8>,
    /// bf16, `[padded head_dim]`.
    pub(super) key_lo: Pages<u16>,
    pub(super) key_step: Pages<u16>,
    /// `[32][padded head_dim]`.
    pub(super) values: Pages<i8>,
    /// bf16, `[32]`.
    pub(super) value_scale: Pages<u16>,
    /// bf16, `[16]`: the largest steps of the vectors of channels, those of vector v and of every sixteenth from there on in place v.
    pub(super) key_step_peaks: Pages<u16>,
    /// At least the norm of every value of the block as it is stored.
    pub(super) value_norm: Pages<f32>,
    /// At least the norm of `|lo| + 255 step` over the channels: times the norm of a query it bounds the sum of the
    /// magnitudes of all terms of a score, and so the score's rounding error.
    pub(super) key_reach: Pages<f32>,
    /// Whether choosing brought nothing at the block's first token; see [`gates`](super::gates).
    gates: Vec<AtomicBool>,
}

/// Bytes of one plane of a block and head.
pub(super) fn plane(head_dim: usize) -> usize {
    padded(head_dim) / 2 * BLOCK_SIZE
}

/// Bytes of one block and head in all parts.
pub(super) fn bytes_per_head(head_dim: usize) -> usize {
    2 * plane(head_dim)
        + 4 * padded(head_dim)
        + 2 * LANES
        + value_block(head_dim)
        + 2 * BLOCK_SIZE
        + 2 * size_of::<f32>()
        + 1
}

/// Those of them that hold values.
pub(super) fn value_bytes_per_head(head_dim: usize) -> usize {
    value_block(head_dim) + 2 * BLOCK_SIZE
}

/// A block that a step fills: its open block is quantised into its int8 form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedBlock {
    /// The block.
    pub block: u32,
    /// The open block that holds its tokens.
    pub open: u32,
}

impl Int8Blocks {
    pub(super) fn new(num_blocks: usize, kv_heads: usize, head_dim: usize) -> Int8Blocks {
        let heads = num_blocks * kv_heads;
        Int8Blocks {
            planes: Pages::zeroed(heads * 2 * plane(head_dim)),
            key_lo: Pages::zeroed(heads * padded(head_dim)),
            key_step: Pages::zeroed(heads * padded(head_dim)),
            values: Pages::zeroed(heads * value_block(head_dim)),
            value_scale: Pages::zeroed(heads * BLOCK_SIZE),
            key_step_peaks: Pages::zeroed(heads * LANES),
            value_norm: Pages::zeroed(heads),
            key_reach: Pages::zeroed(heads),
            gates: (0..heads).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// The gate of block and head `place`.
    pub(super) fn gate(&self, place: usize) -> bool {
        self.gates[place].load(Ordering::Relaxed)
    }

    /// Sets it. The end of the pool's run orders this before whoever reads it.
    pub(super) fn set_gate(&self, place: usize, dense: bool) {
        self.gates[place].store(dense, Ordering::Relaxed);
    }

    /// Copies the gates of block `from` to block `to`.
    pub(super) fn copy_gates(&self, from: usize, to: usize, kv_heads: usize) {
        for head in 0..kv_heads {
            self.set_gate(to * kv_heads + head, self.gate(from * kv_heads + head));
        }
    }

    pub(super) fn copy_block(&mut self, from: usize, to: usize, kv_heads: usize, head_dim: usize) {
        fn copy<T: Plain>(pages: &mut Pages<T>, from: usize, to: usize, size: usize) {
            pages.copy_within(from * size..(from + 1) * size, to * size);
        }
        copy(&mut self.planes, from, to, kv_heads * 2 * plane(head_dim));
        copy(&mut self.key_lo, from, to, kv_heads * padded(head_dim));
        copy(&mut self.key_step, from, to, kv_heads * padded(head_dim));
        copy(&mut self.values, from, to, kv_heads * value_block(head_dim));
        copy(&mut self.value_scale, from, to, kv_heads * BLOCK_SIZE);
        copy(&mut self.key_step_peaks, from, to, kv_heads * LANES);
        copy(&mut self.value_norm, from, to, kv_heads);
        copy(&mut self.key_reach, from, to, kv_heads);
        self.copy_gates(from, to, kv_heads);
    }

    /// The part of block and head `place` that attention reads.
    #[inline(always)]
    pub(super) fn head(&self, place: usize, head_dim: usize) -> Int8Head<'_> {
        let (plane, padded, values) = (plane(head_dim), padded(head_dim), value_block(head_dim));
        let (high, low) = self.planes[2 * place * plane..2 * (place + 1) * plane].split_at(plane);
        Int8Head {
            high,
            low,
            lo: self.key_lo[place * padded..(place + 1) * padded].as_chunks().0,
            step: self.key_step[place * padded..(place + 1) * padded].as_chunks().0,
            step_peaks: &self.key_step_peaks.as_chunks().0[place],
            values: self.values[place * values..(place + 1) * values].as_chunks().0,
            scale: self.value_scale[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE].as_chunks().0,
        }
    }

    /// Writes blocks from their open blocks; a task is a block and a head.
    pub(super) fn seal<E: Element + Plain>(
        &mut self,
        kernels: &Kernels,
        open_blocks: &[Pair<E>],
        sealed: &[SealedBlock],
        kv_heads: usize,
        head_dim: usize,
    ) {
        let (plane, padded, value_block) = (plane(head_dim), padded(head_dim), value_block(head_dim));
        let planes = Shared::new(&mut self.planes);
        let (key_lo, key_step) = (Shared::new(&mut self.key_lo), Shared::new(&mut self.key_step));
        let (values, value_scale) = (Shared::new(&mut self.values), Shared::new(&mut self.value_scale));
        let (value_norm, key_reach) = (Shared::new(&mut self.value_norm), Shared::new(&mut self.key_reach));
        let key_step_peaks = Shared::new(&mut self.key_step_peaks);
        kernels.pool().run(sealed.len() * kv_heads, &|task| {
            let (SealedBlock { block, open }, head) = (sealed[task / kv_heads], task % kv_heads);
            let (open, place) = (&open_blocks[open as usize], block as usize * kv_heads + head);
            // SAFETY: the caller names no block twice, and a block and head is one task.
            let filler = unsafe {
                let (high, low) = planes.part(2 * place * plane..2 * (place + 1) * plane).split_at_mut(plane);
                Filler {
                    open: open.head(head, head_dim),
                    head_dim,
                    high,
                    low,
                    lo: key_lo.part(place * padded..(place + 1) * padded),
                    step: key_step.part(place * padded..(place + 1) * padded),
                    step_peaks: key_step_peaks.part(place * LANES..(place + 1) * LANES),
                    values: values.part(place * value_block..(place + 1) * value_block),
                    scale: value_scale.part(place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE),
                    norm: &mut value_norm.part(place..place + 1)[0],
                    reach: &mut key_reach.part(place..place + 1)[0],
                }
            };
            dispatch(kernels, filler);
        });
    }
}

/// One block and head as attention reads it.
#[derive(Clone, Copy)]
pub(super) struct Int8Head<'a> {
    pub(super) high: &'a [u8],
    pub(super) low: &'a [u8],
    pub(super) lo: &'a [[u16; LANES]],
    pub(super) step: &'a [[u16; LANES]],
    pub(super) step_peaks: &'a [u16; LANES],
    pub(super) values: &'a [[i8; LANES]],
    scale: &'a [[u16; LANES]],
}

impl Int8Head<'_> {
    /// Weights of codes of values: the tokens' weights times their scales.
    #[inline(always)]
    pub(super) fn scale_weights<S: Simd>(&self, s: S, weights: &mut [f32; BLOCK_SIZE]) {
        for (weights, scale) in weights.as_chunks_mut::<LANES>().0.iter_mut().zip(self.scale) {
            s.store(s.mul(s.load(weights), s.load_bf16(scale)), weights);
        }
    }
}

/// Writes one block and head.
struct Filler<'a, E> {
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

impl<E: Element> Op for Filler<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Filler { open, head_dim, high, low, lo, step, step_peaks, values, scale, norm, reach } = self;
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
                    let (byte, shift) = place(channel, part * LANES + token);
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
    let step = round_up((0.5 * hi - 0.5 * lo.to_f32()) / (0.5 * KEY_CODES));
    (lo, step)
}

/// Codes of 16 keys of a channel.
#[inline(always)]
fn key_codes<S: Simd>(s: S, keys: S::F, lo: f32, step: f32) -> [u8; LANES] {
    // A step of 0 says that all keys are lo; NaN lanes come out of `max` as 0.
    let step = if step > 0.0 { step } else { 1.0 };
    // Halved, as the step is.
    let offset = s.sub(s.mul(keys, s.splat(0.5)), s.splat(0.5 * lo));
    let code = s.div(offset, s.splat(0.5 * step));
    let code = s.min(s.max(code, s.zero()), s.splat(KEY_CODES));
    let mut codes = [0.0; LANES];
    s.store(s.to_f32(s.round(code)), &mut codes);
    codes.map(|code| code as u8)
}

/// The norm of `|lo| + 255 step`, rounded up.
#[inline(always)]
fn key_reach<S: Simd>(s: S, lo: &[u16], step: &[u16]) -> f32 {
    let mut squares = s.zero();
    for (lo, step) in lo.as_chunks().0.iter().zip(step.as_chunks().0) {
        let reach = s.fma(s.load_bf16(step), s.splat(KEY_CODES), s.abs(s.load_bf16(lo)));
        squares = s.fma(reach, reach, squares);
    }
    s.reduce_add(squares).sqrt() * NORM_SLACK
}

/// The scale of a token's values; padding is 0.
#[inline(always)]
fn value_scale<S: Simd, E: Element>(s: S, values: &[[E; LANES]], token: usize, vectors: usize) -> bf16 {
    let (mut faults, mut largest) = (0.0, s.zero());
    for vector in 0..vectors {
        let value = E::value(s, values, token, vector, vectors);
        faults += fault(s, value);
        largest = s.max(s.abs(value), largest);
    }
    if f32::is_nan(faults) { bf16::NAN } else { round_up(s.reduce_max(largest) / VALUE_CODES) }
}

/// Writes the codes of a token's values and returns the sum of their squares.
#[inline(always)]
fn value_codes<S: Simd, E: Element>(
    s: S,
    values: &[[E; LANES]],
    token: usize,
    scale: f32,
    codes: &mut [[i8; LANES]],
) -> i32 {
    let divisor = s.splat(if scale > 0.0 { scale } else { 1.0 });
    let (low, high) = (s.splat(-VALUE_CODES), s.splat(VALUE_CODES));
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
