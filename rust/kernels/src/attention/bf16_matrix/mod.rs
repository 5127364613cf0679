//! Dense attention over bf16 keys and values on a matrix unit: the sums of [`dense`](super::dense), sixteen rows at a
//! time.
//!
//! All rows of a task pass over two blocks at a time. The unit and the vectors work on three consecutive tiles of
//! sixteen rows at the same time:
//!
//! ```text
//!     unit      qk 0   qk 1         qk 2   pv 0   qk 3   pv 1   ...
//!     vectors          softmax 0    softmax 1     softmax 2     ...
//! ```

mod amx;
mod avx512_bf16;
mod block_pair;
mod buffers;
mod products;

use std::cell::RefCell;

use super::kv_cache::padded;
use super::params::{BLOCK_SIZE, first_visible};
use super::state::SoftmaxState;
use super::task::AttentionTask;
use crate::amx::ROWS;
use crate::bf16_dot;
use crate::context::Kernels;
use crate::isa::Isa;
use crate::simd::{Avx512, LANES, Simd};
use amx::AmxProducts;
use avx512_bf16::{Avx512Bf16Products, DotPanels};
use block_pair::BlockPair;
use buffers::MatrixBuffers;
use products::{BlockProducts, PAIR_BLOCKS};

/// Rows of a task at most: their sums stay in the caches, and the cost of reading a block is small.
pub(super) const MATRIX_ROWS_PER_TASK: usize = 256;

thread_local! {
    /// Kept between tasks to spare allocations.
    static BUFFERS: RefCell<(SoftmaxState, MatrixBuffers, DotPanels)> = RefCell::default();
}

/// A unit of this machine for products of bf16 pairs.
#[derive(Clone, Copy)]
pub(super) struct MatrixUnit(UnitKind);

#[derive(Clone, Copy)]
enum UnitKind {
    /// AMX.
    Tiles,
    /// AVX-512 BF16.
    Dots,
}

impl MatrixUnit {
    /// The unit of the kernels' level, if it has one.
    pub(super) fn of(kernels: &Kernels) -> Option<MatrixUnit> {
        match kernels.isa() {
            Isa::Amx => Some(MatrixUnit(UnitKind::Tiles)),
            isa => bf16_dot::available(isa).then_some(MatrixUnit(UnitKind::Dots)),
        }
    }

    /// Rows below which a task is computed by products in f32: with four rows, vectors keep up with memory; and dots
    /// first copy each block.
    pub(super) fn min_rows(self) -> usize {
        match self.0 {
            UnitKind::Tiles => 6,
            UnitKind::Dots => ROWS,
        }
    }

    /// Dense attention of a task whose source is bf16 blocks.
    pub(super) fn attend(self, task: &AttentionTask<'_, u16>) {
        // Taken out rather than borrowed in a closure: a closure might not be inlined into the entry.
        let (mut state, mut buffers, mut panels) = BUFFERS.take();
        match self.0 {
            // SAFETY: a `Kernels` value exists only for a level that the machine has, and `of` takes the unit from it.
            UnitKind::Tiles => unsafe { run_on_tiles(task, &mut state, &mut buffers) },
            // SAFETY: as above.
            UnitKind::Dots => unsafe { run_by_dots(task, &mut state, &mut buffers, &mut panels) },
        }
        BUFFERS.set((state, buffers, panels));
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_on_tiles(task: &AttentionTask<'_, u16>, state: &mut SoftmaxState, buffers: &mut MatrixBuffers) {
    // SAFETY: this function's own features; and the level has tiles, of which a task holds no others.
    unsafe { attend(Avx512::new(), AmxProducts::new(), task, state, buffers) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
fn run_by_dots(
    task: &AttentionTask<'_, u16>,
    state: &mut SoftmaxState,
    buffers: &mut MatrixBuffers,
    panels: &mut DotPanels,
) {
    // SAFETY: this function's own features.
    unsafe { attend(Avx512::new(), Avx512Bf16Products::new(panels), task, state, buffers) }
}

/// Dense attention of a task on a matrix unit.
#[inline(always)]
fn attend<'a, S: Simd>(
    s: S,
    mut products: impl BlockProducts<'a>,
    task: &'a AttentionTask<'a, u16>,
    state: &mut SoftmaxState,
    buffers: &mut MatrixBuffers,
) {
    let rows = task.num_rows();
    let vectors = padded(task.params.head_dim) / LANES;
    state.start(task);
    state.acc.resize(rows.next_multiple_of(ROWS) * vectors, [0.0; LANES]);
    buffers.start(&mut products, task.params.head_dim, rows, state);
    let first_block = first_visible(task.position(0), task.params.window) / BLOCK_SIZE;
    let last_block = task.position(task.count - 1) / BLOCK_SIZE;
    for block in (first_block..=last_block).step_by(PAIR_BLOCKS) {
        let blocks = block..(block + PAIR_BLOCKS).min(last_block + 1);
        // SAFETY: the level has AVX-512 (the callers' features).
        let pair = unsafe { BlockPair::new(task, blocks) };
        products.load_blocks(&pair.loaded[..pair.blocks.len()]);
        pair.run(s, &products, state, buffers);
    }
    drop(products);
    task.normalize_and_store(s, state);
}
