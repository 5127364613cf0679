//! int8 weights: symmetric, one bf16 scale per row and group of 128 columns, each group rotated or not.
//!
//! ```text
//! codes [ceil(n / 16) panels][groups][32] Quad       Quad = 64 bytes, one cache line:
//!                                                      n0:k0 k1 k2 k3  n1:k0 k1 k2 k3  ...  n15:k0 k1 k2 k3
//! scales [panels][groups][16] bf16                   each code stored as code + 128 (u8)
//! ```
//!
//! y = sum over groups, in order, of (sum of code products, exact in i32) * (scale of x * scale of w).

use half::bf16;

use super::driver::TileKernel;
use super::prefetch::Prefetch;
use crate::context::Kernels;
use crate::packed::Packed;
use crate::pages::Plain;
use crate::quant_scheme::{GROUP, Rotation};
use crate::quantize::QuantizedRows;
use crate::rotation::rotate_back;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Quads of a group: steps of four columns.
pub(super) const QUADS: usize = GROUP / 4;
/// Codes of 16 rows x 4 columns as code + 128: one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Quad(pub(super) [u8; 4 * LANES]);

// SAFETY: 64 bytes, any of them a value, no padding.
unsafe impl Plain for Quad {}

/// A packed int8 matrix.
#[derive(Debug, Clone)]
pub(super) struct MatmulInt8 {
    /// `[ceil(N / 16)][groups][32]`, code 0 beyond N and K.
    pub(super) codes: Packed<Quad>,
    /// `[ceil(N / 16)][groups]` of 16 bf16 scales.
    pub(super) scales: Packed<[u16; LANES]>,
    pub(super) columns: usize,
    pub(super) rotation: Rotation,
}

impl MatmulInt8 {
    pub(super) fn row(&self, kernels: &Kernels, row: usize, out: &mut [f32]) {
        dispatch(kernels, ReadRow { weights: self, row, out });
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.scales)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn groups(&self) -> usize {
        self.columns.div_ceil(GROUP)
    }

    /// The product with x, which is rotated alike.
    pub(super) fn with<'a>(&'a self, x: &'a QuantizedRows) -> impl TileKernel + 'a {
        assert_eq!(x.rotation(), self.rotation, "rotation of x");
        Int8Product { weights: self, x }
    }
}

/// Op: one row as f32.
struct ReadRow<'a> {
    weights: &'a MatmulInt8,
    row: usize,
    out: &'a mut [f32],
}

impl Op for ReadRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let weights = self.weights;
        let (panel, lane) = (self.row / LANES, self.row % LANES);
        for (group, out) in self.out.chunks_mut(GROUP).enumerate() {
            let index = panel * weights.groups() + group;
            let scale = bf16::from_bits(weights.scales[index][lane]).to_f32();
            let mut values = [0.0; GROUP];
            for (column, to) in values.iter_mut().enumerate() {
                let code = weights.codes[index * QUADS + column / 4].0[4 * lane + column % 4];
                *to = (f32::from(code) - 128.0) * scale;
            }
            if weights.rotation == Rotation::Hadamard {
                values = rotate_back(s, &values);
            }
            out.copy_from_slice(&values[..out.len()]);
        }
    }
}

struct Int8Product<'a> {
    weights: &'a MatmulInt8,
    x: &'a QuantizedRows,
}

impl TileKernel for Int8Product<'_> {
    fn row_bytes(&self) -> usize {
        self.weights.groups() * GROUP
    }

    fn panel(&self, panel: usize) -> *const u8 {
        self.weights.codes.as_ptr().wrapping_add(panel * self.weights.groups() * QUADS).cast()
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize, const NEAR: bool>(
        &self,
        s: S,
        row: usize,
        panel: usize,
        mut prefetch: Prefetch,
    ) -> [[S::F; NP]; MR] {
        let groups = self.weights.groups();
        let first = row * groups;
        let x = self.x.codes().as_ptr().wrapping_add(first * GROUP);
        let sums = self.x.sums().as_ptr().wrapping_add(first);
        let x_scales = self.x.scales().as_ptr().wrapping_add(first);
        let codes = self.weights.codes.as_ptr().wrapping_add(panel * groups * QUADS);
        let scales = self.weights.scales.as_ptr().wrapping_add(panel * groups);
        let mut total = [[s.zero(); NP]; MR];
        for group in 0..groups {
            let mut acc = [[s.dot_start(0); NP]; MR];
            for r in 0..MR {
                // SAFETY: row + r exists (the caller's promise), group < groups.
                acc[r] = [s.dot_start(unsafe { *sums.wrapping_add(r * groups + group) }); NP];
            }
            if !NEAR {
                prefetch.next_lines(s);
            }
            for quad in 0..QUADS {
                if NEAR {
                    prefetch.ahead::<S, NP>(s, group * QUADS + quad);
                }
                let mut vectors = [s.weights(&[0; 4 * LANES]); NP];
                for p in 0..NP {
                    let at = codes.wrapping_add((p * groups + group) * QUADS + quad);
                    // SAFETY: panel + p exists (the caller's promise), group < groups, quad < 32.
                    vectors[p] = s.weights(unsafe { &(*at).0 });
                }
                for r in 0..MR {
                    let at = x.wrapping_add((r * groups + group) * GROUP + 4 * quad);
                    // SAFETY: row + r exists (the caller's promise) with `groups` groups of 128 codes.
                    let value = s.quad(unsafe { &*at.cast::<[i8; 4]>() });
                    for p in 0..NP {
                        acc[r][p] = s.dot(acc[r][p], vectors[p], value);
                    }
                }
            }
            for p in 0..NP {
                // SAFETY: panel + p exists (the caller's promise), group < groups.
                let scale = s.load_bf16(unsafe { &*scales.wrapping_add(p * groups + group) });
                for r in 0..MR {
                    // SAFETY: row + r exists (the caller's promise), group < groups.
                    let x_scale = s.splat(unsafe { *x_scales.wrapping_add(r * groups + group) });
                    total[r][p] = s.fma(s.to_f32(acc[r][p]), s.mul(x_scale, scale), total[r][p]);
                }
            }
        }
        total
    }
}
