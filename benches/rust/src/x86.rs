//! Loops for the limits of x86-64: reads in several streams, and independent chains of one instruction.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::mem::transmute;

use octavo_kernels::amx::{ROW, ROWS, Tiles};

/// Bytes of a cache line, and of an AVX-512 register.
pub(super) const LINE: usize = 64;
/// Turns of the inner loops that only compute: some milliseconds.
pub(super) const TURNS: usize = 1 << 20;
/// Independent sums: more than latency times issue width, fewer than registers.
pub(super) const CHAINS: usize = 12;

/// 1.0 in bfloat16.
const ONE: i16 = 0x3f80;

/// Prefetches the line `ahead` lines after `line`.
#[inline(always)]
fn prefetch(line: *const u8, ahead: usize) {
    if ahead > 0 {
        // SAFETY: a prefetch of any address is harmless, and the address is only computed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(ahead * LINE).cast()) };
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn read_avx512<const STREAMS: usize>(part: &[u8], ahead: usize) -> u64 {
    let piece = part.len() / STREAMS / LINE * LINE;
    let mut sums = [_mm512_setzero_si512(); STREAMS];
    for offset in (0..piece).step_by(LINE) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            // SAFETY: offset + LINE <= piece, and STREAMS pieces fit into the part.
            let line = unsafe { part.as_ptr().add(stream * piece + offset) };
            prefetch(line, ahead);
            // SAFETY: as above; the load needs no alignment.
            *sum = _mm512_add_epi64(*sum, unsafe { _mm512_loadu_si512(line.cast()) });
        }
    }
    sums.iter().fold(0, |all: u64, &sum| all.wrapping_add(_mm512_reduce_add_epi64(sum) as u64))
}

#[target_feature(enable = "avx2")]
pub(super) fn read_avx2<const STREAMS: usize>(part: &[u8], ahead: usize) -> u64 {
    let piece = part.len() / STREAMS / LINE * LINE;
    let mut sums = [_mm256_setzero_si256(); STREAMS];
    for offset in (0..piece).step_by(LINE) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            // SAFETY: offset + LINE <= piece, and STREAMS pieces fit into the part.
            let line = unsafe { part.as_ptr().add(stream * piece + offset) };
            prefetch(line, ahead);
            // SAFETY: as above; the loads need no alignment and cover one line.
            let (low, high) =
                unsafe { (_mm256_loadu_si256(line.cast()), _mm256_loadu_si256(line.add(32).cast())) };
            *sum = _mm256_add_epi64(*sum, _mm256_add_epi64(low, high));
        }
    }
    let all = sums.iter().fold(_mm256_setzero_si256(), |all, &sum| _mm256_add_epi64(all, sum));
    _mm256_extract_epi64::<0>(all) as u64
}

/// A function that runs [`CHAINS`] chains of one instruction from registers, [`TURNS`] times.
macro_rules! chains {
    ($name:ident, $features:literal, $zero:expr, $operand:expr, $step:expr) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name() {
            let mut sums = [$zero; CHAINS];
            let (a, b) = (black_box($operand), black_box($operand));
            for _ in 0..TURNS {
                for sum in &mut sums {
                    *sum = $step(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}

chains!(int8_avx512, "avx512f,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi8(1), |sum, a, b| {
    _mm512_dpbusd_epi32(sum, a, b)
});
chains!(int8_avx2, "avx2", _mm256_setzero_si256(), _mm256_set1_epi8(1), |sum, a, b| {
    // As a kernel must: products of pairs in 16 bits, widened to 32 and added. The exclusive-or, cheap beside the
    // rest, keeps the products inside the loop.
    let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(b, sum));
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, a))
});
chains!(bf16_avx512, "avx512f,avx512bf16", _mm512_setzero_ps(), _mm512_set1_epi16(ONE), |sum, a, b| {
    // SAFETY: both types are 512 bits, and any bits are bfloat16 numbers.
    let (a, b) = unsafe { (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) };
    _mm512_dpbf16_ps(sum, a, b)
});
chains!(f32_avx512, "avx512f", _mm512_setzero_ps(), _mm512_set1_ps(1.0), |sum, a, b| _mm512_fmadd_ps(
    a, b, sum
));
chains!(f32_avx2, "avx2,fma", _mm256_setzero_ps(), _mm256_set1_ps(1.0), |sum, a, b| _mm256_fmadd_ps(
    a, b, sum
));

/// Operations of a product of two tiles of int8; one of bfloat16 has half as many.
pub(super) const TILE_OPERATIONS: usize = 2 * ROWS * ROWS * ROW;
/// Products a turn: accumulators enough to hide the latency of each.
pub(super) const TILE_CHAINS: usize = 4;

/// A function that multiplies tiles of zeros, four chains, [`TURNS`] times. The machine has tiles.
macro_rules! tile_chains {
    ($name:ident, $dot:ident) => {
        pub(super) fn $name() {
            // SAFETY: the caller has checked `amx::available`, and this thread holds none.
            let tiles = unsafe { Tiles::new([ROWS as u8; 8]) };
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
            tiles.zero::<4>();
            tiles.zero::<5>();
            for _ in 0..TURNS {
                tiles.$dot::<0, 4, 5>();
                tiles.$dot::<1, 4, 5>();
                tiles.$dot::<2, 4, 5>();
                tiles.$dot::<3, 4, 5>();
            }
        }
    };
}

tile_chains!(int8_amx, dot_i8_u8);
tile_chains!(bf16_amx, dot_bf16);
