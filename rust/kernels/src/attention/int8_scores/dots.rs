//! Integer products of rounded queries with key codes.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::block_ops::{GROUP_BLOCKS, GROUP_ROWS};
use super::super::kv_cache::{Int8Head, PrefetchPtrs, nibble};
use super::super::params::BLOCK_SIZE;
use super::rounding::{
    CENTRE, Precision, QueryRounding, RoundedQueries, RoundedRow, largest_products, levels, peak_bounds,
    set_units, slots,
};
use crate::isa::Isa;
use crate::simd::{LANES, Simd};

/// Integer products of R rows of queries with the codes of some blocks.
///
/// Three passes over the blocks. Within a block each pass waits for the one before; from block to block none does.
///
/// ```text
///     units       unit = max |q * step| / levels             exact maximum, or a bound from peaks
///     rounding    integers = round(q * step / unit)          and base = q . (lo + 128 step)
///     products    sums = sum of integer * (code - 128)       score = base + unit * sum
/// ```
pub(super) struct IntDots<'a, const R: usize, P: Precision> {
    pub(super) isa: Isa,
    /// `[rows][padded head_dim]`.
    pub(super) q: &'a [[f32; LANES]],
    /// [`peaks_of`](super::peaks_of) each row; unused with [`Precision::LOW_QUERY`].
    pub(super) q_peaks: &'a [[f32; LANES]],
    pub(super) heads: &'a [Int8Head<'a>],
    pub(super) rounded: &'a mut RoundedQueries,
    /// For each block, addresses to prefetch.
    pub(super) prefetch_at: &'a [PrefetchPtrs],
    /// Largest |q * step| of each row, raised.
    pub(super) peaks: &'a mut [f32],
    pub(super) precision: PhantomData<P>,
}

impl<const R: usize, P: Precision> IntDots<'_, R, P> {
    #[inline(always)]
    pub(super) fn run<S: Simd>(self, s: S) {
        let IntDots {
            isa,
            q,
            heads,
            q_peaks,
            rounded: RoundedQueries { whole, rows, sums },
            prefetch_at,
            peaks,
            precision,
        } = self;
        let vectors = heads[0].lo.len();
        let (blocks, slots) = (heads.len(), R * slots(vectors));
        let (q, peaks) = (&q[..R * vectors], &mut peaks[..R]);
        assert!(prefetch_at.len() == blocks && blocks <= GROUP_BLOCKS);
        // Each pass prefetches a part of the next blocks, which keeps memory busy in the first two passes.
        let lines = vectors * if P::LOW_KEY { 2 } else { 1 };
        let prefetch = |block: usize, lines: Range<usize>| {
            for line in lines {
                s.prefetch_l2(prefetch_at[block].keys.wrapping_add(64 * line));
            }
        };
        for (n, head) in heads.iter().enumerate() {
            prefetch(n, 0..lines);
            let peak = if P::LOW_QUERY {
                largest_products::<S, R>(s, q, head.step)
            } else {
                peak_bounds::<S, R>(s, q_peaks, head.step_peaks)
            };
            set_units(&mut rows[n], peak, peaks, levels(vectors * LANES));
        }
        for (n, head) in heads.iter().enumerate() {
            prefetch(n, lines..2 * lines);
            let whole = &mut whole[n * slots..][..slots];
            QueryRounding::<R, P> { q, lo: head.lo, step: head.step, whole, rows: &mut rows[n], precision }
                .run(s, isa);
        }
        for (n, head) in heads.iter().enumerate() {
            let whole = &whole[n * slots..][..slots];
            let prefetch_at = prefetch_at[n].keys.wrapping_add(64 * 2 * lines);
            let products = CodeProducts::<R, P> {
                whole,
                rows: &rows[n],
                high: head.high,
                low: head.low,
                prefetch_at,
                precision,
            };
            products.run(isa, &mut sums[n]);
        }
    }
}

/// Integer products of R rows with the codes of one block.
pub(super) struct CodeProducts<'a, const R: usize, P: Precision> {
    pub(super) whole: &'a [[i16; LANES]],
    pub(super) rows: &'a [RoundedRow; GROUP_ROWS],
    pub(super) high: &'a [u8],
    pub(super) low: &'a [u8],
    /// Address to prefetch from: two lines for each unit of channels, or without [`Precision::LOW_KEY`] one.
    pub(super) prefetch_at: *const u8,
    pub(super) precision: PhantomData<P>,
}

impl<const R: usize, P: Precision> CodeProducts<'_, R, P> {
    /// to = sums of integer * (code - 128); without [`Precision::LOW_KEY`] the low nibble of a code counts 0.
    #[inline(always)]
    fn run(self, isa: Isa, to: &mut [[f32; BLOCK_SIZE]; GROUP_ROWS]) {
        let vectors = self.high.len() / (LANES / 2 * BLOCK_SIZE);
        assert!(self.high.len() == vectors * (LANES / 2 * BLOCK_SIZE) && self.low.len() == self.high.len());
        assert!(self.whole.len() == R * slots(vectors));
        match isa {
            Isa::Portable => self.portable(vectors, to),
            // SAFETY: a `Kernels` value exists only for a level that the machine has; lengths were checked.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { self.avx2(vectors, to) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { self.avx512(vectors, to) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.portable(vectors, to),
        }
    }

    /// Reference: the other levels agree with it bit for bit.
    fn portable(&self, vectors: usize, to: &mut [[f32; BLOCK_SIZE]; GROUP_ROWS]) {
        for (r, to) in to.iter_mut().enumerate().take(R) {
            let whole = &self.whole[r * slots(vectors)..][..vectors];
            for (token, to) in to.iter_mut().enumerate() {
                let mut sum = 0_i32;
                for (channel, &x) in whole.as_flattened().iter().enumerate() {
                    let (byte, shift) = nibble(channel, token);
                    let low = if P::LOW_KEY { self.low[byte] >> shift & 15 } else { 0 };
                    let code = (self.high[byte] >> shift & 15) << 4 | low;
                    sum = sum.wrapping_add(i32::from(x) * (i32::from(code) - CENTRE as i32));
                }
                *to = sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::super::rounding::{AllBits, HighQuery, HighQueryHighKey, RoundedRow};
    use super::*;
    use crate::Kernels;
    use crate::simd::{Op, dispatch};

    /// A stream of bits.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u32
    }

    struct Round<'a, const R: usize, P: Precision>(Isa, QueryRounding<'a, R, P>);

    impl<const R: usize, P: Precision> Op for Round<'_, R, P> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            self.1.run(s, self.0);
        }
    }

    /// What R rows of q, with steps of 1, come to on every level, against sums of 64 bits.
    fn agree<const R: usize, P: Precision>(vectors: usize, seed: u64, extreme: bool) {
        let mut state = seed;
        let bytes = vectors * LANES / 2 * BLOCK_SIZE;
        let mut plane =
            || (0..bytes).map(|_| if extreme { 0xff } else { random(&mut state) as u8 }).collect();
        let (high, low): (Vec<u8>, Vec<u8>) = (plane(), plane());
        let levels = levels(vectors * LANES);
        let mut q = vec![[0.0_f32; LANES]; R * vectors];
        for x in q.as_flattened_mut() {
            *x =
                if extreme { levels } else { random(&mut state) as f32 / 2.0_f32.powi(30) * levels - levels };
        }
        let step = vec![[bf16::ONE.to_bits(); LANES]; vectors];
        let lo = vec![[bf16::from_f32(-128.0).to_bits(); LANES]; vectors];
        let mut want_rows = Vec::new();
        let mut want = vec![[0.0; BLOCK_SIZE]; R];
        for (want, q) in want.iter_mut().zip(q.chunks(vectors)) {
            let whole: Vec<i32> = q.as_flattened().iter().map(|x| x.round_ties_even() as i32).collect();
            let high_part = |x: i32| (x + 128).div_euclid(256);
            let taken = |x: i32| if P::LOW_QUERY { x } else { 256 * high_part(x) };
            want_rows.push([
                whole.iter().map(|&x| taken(x)).sum::<i32>(),
                whole.iter().map(|&x| if P::LOW_QUERY { 0 } else { (x - 256 * high_part(x)).abs() }).sum(),
                whole.iter().map(|&x| if P::LOW_KEY { 0 } else { high_part(x).abs() }).sum(),
            ]);
            for (token, want) in want.iter_mut().enumerate() {
                let product = |(channel, &x): (usize, &i32)| {
                    let (byte, shift) = nibble(channel, token);
                    let low = if P::LOW_KEY { (low[byte] >> shift) & 15 } else { 0 };
                    let code = i64::from((high[byte] >> shift) & 15) * 16 + i64::from(low);
                    i64::from(taken(x)) * (code - 128)
                };
                *want = whole.iter().enumerate().map(product).sum::<i64>() as f32;
            }
        }
        for isa in Isa::available() {
            let mut rows = [RoundedRow { inverse: 1.0, ..RoundedRow::default() }; GROUP_ROWS];
            let mut whole = vec![[0; LANES]; R * slots(vectors)];
            let mut got = [[f32::NAN; BLOCK_SIZE]; GROUP_ROWS];
            let rounding = QueryRounding::<R, P> {
                q: &q,
                lo: &lo,
                step: &step,
                whole: &mut whole,
                rows: &mut rows,
                precision: PhantomData,
            };
            dispatch(&Kernels::new(1, Some(isa)).unwrap(), Round(isa, rounding));
            let products = CodeProducts::<R, P> {
                whole: &whole,
                rows: &rows,
                high: &high,
                low: &low,
                prefetch_at: std::ptr::null(),
                precision: PhantomData,
            };
            products.run(isa, &mut got);
            let what = format!("{isa}: {R} rows of {vectors} vectors, seed {seed}, extreme: {extreme}");
            assert_eq!(got[..R], want[..], "{what}");
            let rows: Vec<_> = rows[..R].iter().map(|row| [row.sum, row.low, row.high]).collect();
            assert_eq!(rows, want_rows, "{what}");
        }
    }

    #[test]
    fn products_are_exact_on_every_level() {
        fn of_rows<const R: usize>(vectors: usize, seed: u64, extreme: bool) {
            agree::<R, AllBits>(vectors, seed, extreme);
            agree::<R, HighQuery>(vectors, seed, extreme);
            agree::<R, HighQueryHighKey>(vectors, seed, extreme);
        }
        for vectors in [1, 2, 3, 5, 8, 16, 17, 32] {
            for seed in 0..4 {
                for extreme in [false, true] {
                    of_rows::<1>(vectors, seed, extreme);
                    of_rows::<2>(vectors, seed, extreme);
                    of_rows::<3>(vectors, seed, extreme);
                    of_rows::<4>(vectors, seed, extreme);
                }
            }
        }
    }
}
