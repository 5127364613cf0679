//! The vector trait: 16 lanes, one implementation per instruction set.

/// Lanes of a vector: 16 of f32 or of i32.
pub(crate) const LANES: usize = 16;

/// A level's vectors. A value of the type is the proof that the machine has the features.
///
/// Every method rounds as IEEE 754 says (once for `fma`), hence all levels agree bit for bit.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 16 x f32.
    type F: Copy;
    /// 16 x i32.
    type I: Copy;
    /// Weight codes of 16 rows x 4 columns, prepared for `dot`.
    type W: Copy;
    /// Four activation codes for all rows, prepared for `dot`.
    type Q: Copy;
    /// Whether there are registers for tiles of 4 x 4 vectors.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    /// Widens 16 bf16 values.
    fn load_bf16(self, x: &[u16; LANES]) -> Self::F;
    /// Widens 32 bf16 values: first the even positions, then the odd positions.
    fn load_bf16_pairs(self, x: &[u16; 2 * LANES]) -> (Self::F, Self::F);
    /// Stores 32 values, all exact in bf16: even positions, odd positions.
    fn store_bf16_pairs(self, pairs: (Self::F, Self::F), to: &mut [u16; 2 * LANES]);
    /// 16 codes with a sign as f32, exact.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a > b ? a : b. The second operand when either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b. The second operand when either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// a < b ? x : y, lane by lane; y where a or b is NaN.
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Whether a < b in any lane; a NaN is in none.
    fn any_lt(self, a: Self::F, b: Self::F) -> bool;
    /// Each lane's partner: lane i gets lane i ^ DISTANCE, for DISTANCE 1, 2, 4 or 8.
    fn partner<const DISTANCE: usize>(self, a: Self::F) -> Self::F;
    /// The largest lane. Lanes are not NaN.
    fn reduce_max(self, a: Self::F) -> f32;
    /// The sum, halves added to halves: lanes i and i + 8, then i + 4, i + 2, i + 1.
    fn reduce_add(self, a: Self::F) -> f32;

    /// `reduce_max` of each.
    #[inline(always)]
    fn reduce_max_each<const N: usize>(self, a: [Self::F; N]) -> [f32; N] {
        a.map(|a| self.reduce_max(a))
    }
    /// `reduce_add` of each.
    #[inline(always)]
    fn reduce_add_each<const N: usize>(self, a: [Self::F; N]) -> [f32; N] {
        a.map(|a| self.reduce_add(a))
    }

    fn to_f32(self, a: Self::I) -> Self::F;
    /// To the nearest integer, ties to even; `i32::MIN` for NaN and values beyond i32.
    fn round(self, a: Self::F) -> Self::I;
    /// To the nearest whole number, ties to even.
    fn nearest(self, a: Self::F) -> Self::F;
    /// a * 2^n, rounded once, for whole n in -126..=127; any value for other n.
    fn times_exp2(self, a: Self::F, n: Self::F) -> Self::F;
    /// The lanes as i8. Lanes are within -128..=127.
    fn store_i8(self, a: Self::I, to: &mut [i8; LANES]);

    /// Weight codes (stored as code + 128), `[16 rows][4 columns]`.
    fn weights(self, codes: &[u8; 4 * LANES]) -> Self::W;
    /// Four activation codes.
    fn quad(self, codes: &[i8; 4]) -> Self::Q;
    /// The accumulator that a chain of `dot` starts from, given the sum of all activation codes of the chain.
    fn dot_start(self, sum: i32) -> Self::I;
    /// acc + the products of four codes, exact. Codes are within -127..=127 on both sides.
    fn dot(self, acc: Self::I, w: Self::W, x: Self::Q) -> Self::I;

    /// Hints that the line at `p` will be read soon. Any address is allowed.
    fn prefetch<T>(self, p: *const T);
    /// As `prefetch`, into the second-level cache.
    fn prefetch_l2<T>(self, p: *const T);

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// The first `x.len()` lanes (at most 16); the others are `fill`.
    #[inline(always)]
    fn load_partial(self, x: &[f32], fill: f32) -> Self::F {
        if let Some(whole) = x.first_chunk::<LANES>() {
            return self.load(whole);
        }
        let mut buffer = [fill; LANES];
        buffer[..x.len()].copy_from_slice(x);
        self.load(&buffer)
    }

    /// Stores the first `to.len()` lanes (at most 16).
    #[inline(always)]
    fn store_partial(self, v: Self::F, to: &mut [f32]) {
        if let Some(whole) = to.first_chunk_mut::<LANES>() {
            return self.store(v, whole);
        }
        let mut buffer = [0.0; LANES];
        self.store(v, &mut buffer);
        to.copy_from_slice(&buffer[..to.len()]);
    }
}
