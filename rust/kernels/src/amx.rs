//! AMX tiles (Intel SDM volume 1 chapter 18; volume 2, TDPBUSD): eight registers of 16 rows x 64 bytes, and tile products.
//!
//! ```text
//!        A [16][64 i8]  x  B [16][16][4 u8]  -> C [16][16] i32     c[r][n] += sum over i, j of a[r][4 i + j] * b[i][n][j]
//!        A [16][32 bf16] x B [16][16][2 bf16] -> C [16][16] f32
//! ```
//!
//! The intrinsics are not stable: each instruction is one `asm!`. None is reordered against another or against memory.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Rows of a tile, and columns of an accumulator.
pub const ROWS: usize = 16;
/// Bytes of a tile's row.
pub const ROW: usize = 64;
/// Bytes of a tile.
pub const TILE: usize = ROWS * ROW;

/// Whether the machine has tiles with products of int8 and bfloat16, and the system lets this process use them.
///
/// Asks the system once: Linux grants the state of tiles to processes that ask for it (arch_prctl(2)).
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| cfg!(target_os = "linux") && in_hardware() && permitted())
}

fn in_hardware() -> bool {
    if !is_x86_feature_detected!("xsave") || __cpuid_count(0, 0).eax < 7 {
        return false;
    }
    // Tiles, int8, bfloat16; state of their configuration and data saved by the system.
    let features = 1 << 24 | 1 << 25 | 1 << 22;
    let states = 1 << 17 | 1 << 18;
    // SAFETY: the machine has xsave, and the system uses it: the standard library says so only then.
    __cpuid_count(7, 0).edx & features == features && unsafe { _xgetbv(0) } & states == states
}

/// Requests the state of tile data; false when the system does not support it or refuses.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that reads no memory of ours; it overwrites rcx and r11 alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shape of each tile: rows, all of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The configured tiles of this thread. Their content is undefined at first; `drop` releases the state.
pub struct Tiles(());

impl Tiles {
    /// Tiles of `rows[t]` rows (1..=16) of 64 bytes.
    ///
    /// # Safety
    /// [`available`], and this thread holds no other `Tiles`.
    #[inline(always)]
    pub unsafe fn new(rows: [u8; 8]) -> Tiles {
        let tiles = Tiles(());
        tiles.configure(rows);
        tiles
    }

    /// Changes the shapes; contents are undefined afterwards.
    #[inline(always)]
    pub fn configure(&self, rows: [u8; 8]) {
        debug_assert!(rows.iter().all(|&rows| (1..=ROWS as u8).contains(&rows)), "rows of tiles: {rows:?}");
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(ROW as u16);
        config.rows[..8].copy_from_slice(&rows);
        // SAFETY: the machine has tiles (promised to `new`), and 64 bytes are read.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags))
        }
    }

    /// Zeros tile T.
    #[inline(always)]
    pub fn zero<const T: u8>(&self) {
        // SAFETY: the tiles are configured.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
    }

    /// Loads tile T; its row r begins at `from + r * stride`.
    ///
    /// # Safety
    /// 64 bytes can be read at each of the tile's rows.
    #[inline(always)]
    pub unsafe fn load<const T: u8>(&self, from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{from} + {stride}*1]",
                t = const T,
                from = in(reg) from,
                stride = in(reg) stride,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// Stores tile T; its row r goes to `to + r * stride`.
    ///
    /// # Safety
    /// 64 bytes can be written at each of the tile's rows.
    #[inline(always)]
    pub unsafe fn store<const T: u8>(&self, to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}*1], tmm{t}",
                t = const T,
                to = in(reg) to,
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    /// C += A B in i32, exact but for wrapping: A `[rows][64]` i8, B `[64 / 4][16][4]` u8, C `[rows][16]`.
    #[inline(always)]
    pub fn dot_i8_u8<const C: u8, const A: u8, const B: u8>(&self) {
        // SAFETY: the tiles are configured, with shapes that agree: all rows are 64 bytes, and B has 16 of them.
        unsafe {
            asm!(
                "tdpbsud tmm{c}, tmm{a}, tmm{b}",
                c = const C,
                a = const A,
                b = const B,
                options(nostack, nomem, preserves_flags),
            );
        }
    }

    /// C + (sum over even k, then over odd k, of A B in order of k), each product and sum rounded once to f32:
    /// A `[rows][32]` bf16, B `[32 / 2][16][2]` bf16, C `[rows][16]`. Denormal numbers count as zero.
    ///
    /// The order is not in the manual; it was found by experiment, and a test holds it true.
    #[inline(always)]
    pub fn dot_bf16<const C: u8, const A: u8, const B: u8>(&self) {
        // SAFETY: as for `dot_i8_u8`.
        unsafe {
            asm!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C,
                a = const A,
                b = const B,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the machine has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::bf16_dot::numbers;

    fn widen(bits: u16) -> f32 {
        bf16::from_bits(bits).to_f32()
    }

    #[test]
    fn products_of_bf16_add_even_places_then_odd_ones() {
        if !available() {
            eprintln!("skipped: this machine lacks amx");
            return;
        }
        for seed in 0..500 {
            let mut random = numbers(seed * 7919 + 1);
            let a: Vec<u16> = random.by_ref().take(16 * 32).collect();
            let b: Vec<u16> = random.by_ref().take(16 * 32).collect();
            let before: Vec<f32> = random.take(256).map(|x| widen(x) * 1.234_567).collect();
            let mut after = vec![0.0_f32; 256];
            // SAFETY: the machine has tiles, and all arrays are whole tiles.
            unsafe {
                let tiles = Tiles::new([ROWS as u8; 8]);
                tiles.load::<0>(before.as_ptr().cast(), ROW);
                tiles.load::<1>(a.as_ptr().cast(), ROW);
                tiles.load::<2>(b.as_ptr().cast(), ROW);
                tiles.dot_bf16::<0, 1, 2>();
                tiles.store::<0>(after.as_mut_ptr().cast(), ROW);
            }
            for row in 0..16 {
                for column in 0..16 {
                    let mut sums = [0.0_f32; 2];
                    for k in 0..32 {
                        let (x, y) = (a[row * 32 + k], b[k / 2 * 32 + 2 * column + k % 2]);
                        sums[k % 2] = widen(x).mul_add(widen(y), sums[k % 2]);
                    }
                    let index = row * 16 + column;
                    let want = before[index] + (sums[0] + sums[1]);
                    assert_eq!(
                        after[index].to_bits(),
                        want.to_bits(),
                        "seed {seed} row {row} column {column}"
                    );
                }
            }
        }
    }
}
