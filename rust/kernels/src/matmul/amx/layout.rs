//! Sizes and layouts of the AMX product.
//!
//! ```text
//! x        [ceil(m / 16)][groups] PackedGroup   codes [2][16 rows][64]: two tiles, scales [16], excess [16]
//!
//! weights  [panels][groups][32] Quad            one group of a panel = 128 k x 16 outputs = two tiles
//!
//! A tile (16 rows of x, 64 k)       B tile (64 k, 16 outputs)           C tile (i32)
//!
//!   r0   k0 k1 ... k63                k0..3    n0:4 n1:4 ... n15:4        r0   n0 n1 ... n15
//!
//!   r15  k0 k1 ... k63                k60..63  n0:4 n1:4 ... n15:4        r15  n0 n1 ... n15
//! ```
//!
//! B is a half of one group of packed codes, without any conversion. The codes of weights are unsigned (code + 128):
//! each product is too large by `excess` = 128 * (sum of the codes of the row).

use crate::amx::{ROWS, TILE};

/// Rows of x in two tiles.
pub(super) const PAIR_ROWS: usize = 2 * ROWS;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// Bytes of one group of a panel: two tiles.
pub(super) const GROUP_BYTES: usize = 2 * TILE;

/// A block of rows of x times some panels.
#[derive(Clone, Copy)]
pub(super) struct PanelBlock {
    pub(super) row: usize,
    pub(super) rows: usize,
    pub(super) panel: usize,
    /// First panel of this thread's next block.
    pub(super) next: Option<usize>,
}
