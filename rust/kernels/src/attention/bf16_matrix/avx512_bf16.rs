//! Products by the dot instruction of AVX-512 BF16.
//!
//! The instruction adds two products to a lane, one after the other. A chain of sums here is over one side of the
//! pairs, even or odd numbers. So two lines of a block are first interleaved into a line of even numbers and a line
//! of odd ones; queries and weights are reordered alike.
//!
//! ```text
//!     line 0   a0 a1 | a2 a3 | ...        even   b0 a0 | b2 a2 | ...
//!     line 1   b0 b1 | b2 b3 | ...        odd    b1 a1 | b3 a3 | ...
//! ```

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::kv_cache::{HALVES, MATRIX_DEPTH};
use super::products::{Bf16Block, BlockProducts, PAIR_BLOCKS, PairLine, ScoreLine};
use crate::amx::ROWS;
use crate::bf16_dot::dot;
use crate::simd::LANES;

/// Steps of a chain over 32 numbers: two products each.
const STEPS: usize = MATRIX_DEPTH / 4;
/// Chains of a sum: over the even and over the odd numbers of pairs.
const SIDES: usize = 2;
/// Lines of 32 numbers deep and one vector wide.
const LINES: usize = STEPS * SIDES;
/// Rows that are computed together.
const GROUP: usize = 4;
/// Odd numbers of a line.
const ODD: __mmask32 = 0xaaaa_aaaa;
/// Order of [`pick`]: for each step the even numbers of two pairs, then for each step the odd ones. The instruction
/// begins with the upper number of two.
static ORDER: PairLine = {
    let mut order = [0; MATRIX_DEPTH];
    let mut step = 0;
    while step < STEPS {
        let (even, odd) = (2 * step, 2 * (STEPS + step));
        let pair = 4 * step as u16;
        (order[even], order[even + 1]) = (pair + 2, pair);
        (order[odd], order[odd + 1]) = (pair + 3, pair + 1);
        step += 1;
    }
    PairLine(order)
};

/// Interleaved blocks.
#[derive(Default)]
pub(super) struct DotPanels {
    /// `[chunks of 32 channels][step][side][block][half]`
    keys: Vec<PairLine>,
    /// `[block][step][side][padded head_dim / 16]`
    values: Vec<PairLine>,
    /// Loaded blocks.
    count: usize,
}

/// Products with [`DotPanels`].
pub(super) struct Avx512Bf16Products<'a>(&'a mut DotPanels);

impl<'a> Avx512Bf16Products<'a> {
    /// # Safety
    /// The machine has AVX-512 BF16.
    #[inline(always)]
    pub(super) unsafe fn new(panels: &'a mut DotPanels) -> Self {
        Avx512Bf16Products(panels)
    }
}

impl<'a> BlockProducts<'a> for Avx512Bf16Products<'_> {
    #[inline(always)]
    fn start(&mut self, queries: &mut [PairLine]) {
        queries.iter_mut().for_each(|line| *line = pick(line));
    }

    #[inline(always)]
    fn load_blocks(&mut self, blocks: &[Bf16Block<'a>]) {
        let DotPanels { keys, values, count } = &mut *self.0;
        *count = blocks.len();
        let (key_lines, value_lines) = (blocks[0].keys.len() / 2, blocks[0].values.len() / 2);
        let vectors = value_lines / LANES;
        keys.resize(key_lines * blocks.len(), PairLine::ZERO);
        values.resize(value_lines * blocks.len(), PairLine::ZERO);
        for (index, block) in blocks.iter().enumerate() {
            assert!(block.keys.len() == 2 * key_lines && block.values.len() == 2 * value_lines);
            interleave(block.keys, HALVES, keys, index * HALVES, blocks.len() * HALVES);
            interleave(block.values, vectors, &mut values[index * value_lines..], 0, vectors);
        }
    }

    #[inline(always)]
    fn qk(&self, queries: &[PairLine], rows: usize, count: usize, to: &mut [ScoreLine]) {
        let loaded = self.0.count * HALVES;
        assert!(count <= self.0.count && to.len() == count * HALVES * ROWS);
        let (queries, panels) = (queries.as_chunks::<ROWS>().0, self.0.keys.chunks_exact(LINES * loaded));
        assert!(queries.len() == panels.len());
        for first in (0..rows).step_by(GROUP) {
            for block in 0..count {
                let mut sums = [[zero(); HALVES]; GROUP];
                for (queries, panel) in queries.iter().zip(panels.clone()) {
                    add(&queries[first..first + GROUP], panel, loaded, block * HALVES, &mut sums);
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (half, sums) in sums.iter().enumerate() {
                        store(*sums, &mut to[(block * HALVES + half) * ROWS + first + r].0);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn accumulate_pv(
        &self,
        weights: &[PairLine],
        rows: usize,
        blocks: Range<usize>,
        acc: &mut [[f32; LANES]],
    ) {
        let vectors = acc.len() / ROWS;
        let panels = LINES * vectors;
        let panels = &self.0.values[blocks.start * panels..blocks.end * panels];
        assert!(weights.len() == blocks.len() * ROWS);
        let mut picked = [[PairLine::ZERO; ROWS]; PAIR_BLOCKS];
        for (to, from) in picked.as_flattened_mut().iter_mut().zip(weights) {
            *to = pick(from);
        }
        for first in (0..rows).step_by(GROUP) {
            let mut vector = 0;
            while vector < vectors {
                vector += match vectors - vector {
                    2.. => columns::<2>(&picked, first, panels, vector, acc),
                    _ => columns::<1>(&picked, first, panels, vector, acc),
                };
            }
        }
    }
}

/// The part of [`BlockProducts::accumulate_pv`] for four rows and N vectors from `vector` on. Returns N.
#[inline(always)]
fn columns<const N: usize>(
    weights: &[[PairLine; ROWS]; PAIR_BLOCKS],
    first: usize,
    panels: &[PairLine],
    vector: usize,
    acc: &mut [[f32; LANES]],
) -> usize {
    let vectors = acc.len() / ROWS;
    let mut sums = [[zero(); N]; GROUP];
    for r in 0..GROUP {
        for n in 0..N {
            sums[r][n] = load(&acc[(first + r) * vectors + vector + n]);
        }
    }
    for (weights, panel) in weights.iter().zip(panels.chunks_exact(LINES * vectors)) {
        add(&weights[first..first + GROUP], panel, vectors, vector, &mut sums);
    }
    for r in 0..GROUP {
        for n in 0..N {
            store(sums[r][n], &mut acc[(first + r) * vectors + vector + n]);
        }
    }
    N
}

/// sums + (even products + odd products) over 32 numbers: `rows` has four lines, `panel` `[step][side][width]`, of
/// which N lines from `at` on.
#[inline(always)]
fn add<const N: usize>(
    rows: &[PairLine],
    panel: &[PairLine],
    width: usize,
    at: usize,
    sums: &mut [[__m512; N]; GROUP],
) {
    assert!(rows.len() == GROUP && panel.len() == LINES * width && at + N <= width);
    let mut sides = [[[zero(); N]; GROUP]; SIDES];
    for step in 0..STEPS {
        for side in 0..SIDES {
            let from = panel.as_ptr().wrapping_add((step * SIDES + side) * width + at);
            // SAFETY: the machine as below.
            let mut lines = [unsafe { _mm512_setzero_si512() }; N];
            for n in 0..N {
                // SAFETY: below the length that is asserted; and the machine has AVX-512 BF16, as
                // `Avx512Bf16Products::new` was promised.
                lines[n] = unsafe { _mm512_load_si512(from.add(n).cast()) };
            }
            for r in 0..GROUP {
                let pairs = rows[r].0.as_ptr().cast::<i32>();
                // SAFETY: sixteen pairs a line; the machine as above.
                unsafe {
                    let pair = _mm512_set1_epi32(*pairs.add(side * STEPS + step));
                    for n in 0..N {
                        sides[side][r][n] = dot(sides[side][r][n], lines[n], pair);
                    }
                }
            }
        }
    }
    for r in 0..GROUP {
        for n in 0..N {
            // SAFETY: the machine as above.
            sums[r][n] = unsafe { _mm512_add_ps(sums[r][n], _mm512_add_ps(sides[0][r][n], sides[1][r][n])) };
        }
    }
}

/// Interleaves pairs of lines, `[pairs][width]`, into `[steps][side][to_width]` from line `at` on.
#[inline(always)]
fn interleave(from: &[[u16; LANES]], width: usize, to: &mut [PairLine], at: usize, to_width: usize) {
    let from = from.as_chunks::<2>().0;
    assert!(at + width <= to_width && to.len() >= from.len() / width * to_width);
    for (step, lines) in from.chunks_exact(2 * width).enumerate() {
        for i in 0..width {
            let (first, second) = (&lines[i], &lines[width + i]);
            let to = &mut to[step * SIDES * to_width..][..SIDES * to_width];
            // SAFETY: lines of 64 bytes; the machine has AVX-512 BW, as `Avx512Bf16Products::new` was promised.
            unsafe {
                let first = _mm512_loadu_si512(first.as_ptr().cast());
                let second = _mm512_loadu_si512(second.as_ptr().cast());
                let even = _mm512_mask_blend_epi16(ODD, second, _mm512_slli_epi32::<16>(first));
                let odd = _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(second), first);
                _mm512_store_si512((&raw mut to[at + i]).cast(), even);
                _mm512_store_si512((&raw mut to[to_width + at + i]).cast(), odd);
            }
        }
    }
}

/// A line of queries or weights in the order of [`add`].
#[inline(always)]
fn pick(line: &PairLine) -> PairLine {
    let mut to = PairLine::ZERO;
    // SAFETY: lines of 64 bytes; the machine has AVX-512 BW, as `Avx512Bf16Products::new` was promised.
    unsafe {
        let order = _mm512_load_si512((&raw const ORDER).cast());
        let numbers = _mm512_permutexvar_epi16(order, _mm512_load_si512((&raw const *line).cast()));
        _mm512_store_si512((&raw mut to).cast(), numbers);
    }
    to
}

#[inline(always)]
fn zero() -> __m512 {
    // SAFETY: the machine has AVX-512, as `Avx512Bf16Products::new` was promised.
    unsafe { _mm512_setzero_ps() }
}

#[inline(always)]
fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen numbers; the machine as above.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline(always)]
fn store(sums: __m512, to: &mut [f32; LANES]) {
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) }
}
