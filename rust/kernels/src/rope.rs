//! Rotary position embedding, in place, from a table of cosines and sines.

use crate::context::Kernels;
use crate::parallel::for_row_runs;
use crate::simd::{Op, Simd, dispatch};

/// Minimum values of one task.
const VALUES_PER_TASK: usize = 16 << 10;

/// Which values of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Values i and i + rotary_dim / 2 (as in NeoX and Llama in the Hugging Face layout).
    Half,
    /// Values 2 i and 2 i + 1 (as in GPT-J).
    Interleaved,
}

/// Cosines and sines, `[positions, rotary_dim / 2]` each; any scaling of frequencies or lengths is already in them.
#[derive(Debug, Clone, Copy)]
pub struct RopeTable<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Number of leading values of a head to rotate; even, at most head_dim.
    pub rotary_dim: usize,
    /// Which values pair up.
    pub style: RopeStyle,
}

/// Layout of the heads in the rows of x.
#[derive(Debug, Clone, Copy)]
pub struct RopeLayout {
    /// Values from one row to the next.
    pub stride: usize,
    /// Heads in a row, from its first value on.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

/// Rotates each pair (a, b) of the row at position p to (a cos - b sin, b cos + a sin). One row per position.
pub fn rope(kernels: &Kernels, x: &mut [f32], layout: RopeLayout, positions: &[u32], table: RopeTable<'_>) {
    let RopeLayout { stride, heads, head_dim } = layout;
    let width = heads * head_dim;
    let half = table.rotary_dim / 2;
    assert!(
        table.rotary_dim.is_multiple_of(2) && table.rotary_dim <= head_dim,
        "rotary_dim {} in heads of {head_dim}",
        table.rotary_dim
    );
    assert!(width <= stride, "{heads} heads of {head_dim} in rows of {stride}");
    assert_eq!(table.cos.len(), table.sin.len(), "cosines and sines");
    if positions.is_empty() || width == 0 || half == 0 {
        return;
    }
    assert!(
        x.len() >= (positions.len() - 1) * stride + width,
        "{} values for {} rows",
        x.len(),
        positions.len()
    );
    let num_positions = table.cos.len() / half;
    for &position in positions {
        assert!(
            (position as usize) < num_positions,
            "position {position} beyond the table's {num_positions}"
        );
    }
    let end = x.len().min(positions.len() * stride);
    let grain = VALUES_PER_TASK.div_ceil(width);
    for_row_runs(kernels.pool(), &mut x[..end], positions.len(), stride, grain, |first, count, x| {
        let positions = &positions[first..first + count];
        dispatch(kernels, RotateRows { x, layout, positions, table });
    });
}

struct RotateRows<'a> {
    x: &'a mut [f32],
    layout: RopeLayout,
    positions: &'a [u32],
    table: RopeTable<'a>,
}

impl Op for RotateRows<'_> {
    type Output = ();

    /// Scalar code: products and sums are rounded one by one on every level, and the compiler vectorises the loop.
    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let half = self.table.rotary_dim / 2;
        let RopeLayout { stride, heads, head_dim } = self.layout;
        for (row, &position) in self.x.chunks_mut(stride).zip(self.positions) {
            let cos = &self.table.cos[position as usize * half..][..half];
            let sin = &self.table.sin[position as usize * half..][..half];
            for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                match self.table.style {
                    RopeStyle::Half => {
                        let (a, b) = head[..2 * half].split_at_mut(half);
                        for i in 0..half {
                            (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
                        }
                    }
                    RopeStyle::Interleaved => {
                        for (i, pair) in head[..2 * half].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                            let [a, b] = *pair;
                            *pair = [a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]];
                        }
                    }
                }
            }
        }
    }
}
