//! Low-rank adapters of a projection: y += B (A x), row by row, for rows that have an adapter.
//!
//! ```text
//! shrink  h = A x       one Linear for all modules that read x (as q, k, v): their ranks below each other
//! expand  y += B h      each module adds to its own columns of y
//!
//! panels of a module [ceil(n / 16)][ceil(rank / 2)] of one pair of ranks of 16 columns, bf16 or f32
//! ```
//!
//! Each value of y gets one chain over the rank, which begins at zero, and one sum. Tiles, tasks, threads and other rows
//! change no bit. Rows without an adapter are not touched.

use std::ops::Range;

use half::bf16;

use crate::context::Kernels;
use crate::matmul::{Linear, WeightDtype};
use crate::pages::{Pages, Plain};
use crate::parallel::Shared;
use crate::quantize::QuantizedRows;
use crate::simd::{LANES, Op, Simd, dispatch};

/// Rows of the largest register tile, with two panels: the more rows, the fewer conversions of B.
const TALL: usize = 8;
/// Panels or rows of the other tiles.
const TILE: usize = 4;
/// Panels between the one in use and the one that is fetched.
const AHEAD: usize = 8;
/// Panels of one strip: their B stays in the first-level cache while rows pass.
const STRIP: usize = 16;
/// Minimum vector products of one task.
const MIN_WORK: usize = 1 << 9;
/// Runs of fewer rows are computed side by side, one thread each.
const FEW_ROWS: usize = 32;

/// What an adapter adds to one module.
#[derive(Debug, Clone, Copy)]
pub struct LoraModule<'a> {
    /// B `[columns, rank]`, row-major. It contains the adapter's scale.
    pub b: &'a [f32],
    /// Rows of A that belong to this module.
    pub rank: usize,
    /// The module's first column of y.
    pub column: usize,
    /// Added behind the product `[columns]`. It contains the adapter's scale.
    pub bias: Option<&'a [f32]>,
    /// DoRA: y = gain * (W x + delta) + bias of the base `[columns]`.
    pub gain: Option<&'a [f32]>,
}

/// An adapter's matrices for one projection, packed.
#[derive(Debug, Clone)]
pub struct LoraStack {
    down: Linear,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// First of its values in a row of h.
    first: usize,
    rank: usize,
    /// First of its columns in a row of y.
    column: usize,
    columns: usize,
    up: Up,
    /// `[panels]`, zero beyond the last column.
    bias: Option<Vec<[f32; LANES]>>,
    gain: Option<Vec<[f32; LANES]>>,
}

#[derive(Debug, Clone)]
enum Up {
    Bf16(Pages<[u16; 2 * LANES]>),
    F32(Pages<[[f32; LANES]; 2]>),
}

/// Rows of a step that one adapter changes.
#[derive(Debug, Clone)]
pub struct LoraRun<'a> {
    /// The adapter's matrices for this projection.
    pub stack: &'a LoraStack,
    /// Rows of x and y.
    pub rows: Range<usize>,
}

/// What the base projection has read and added.
#[derive(Debug, Clone, Copy)]
pub struct LoraInput<'a> {
    /// x `[m, in_features]`; read by float matrices.
    pub x: &'a [f32],
    /// The same rows in int8; read by int8 matrices.
    pub quantized: &'a QuantizedRows,
    /// The base projection's bias: DoRA leaves it outside of its gain.
    pub bias: Option<&'a [f32]>,
}

impl LoraStack {
    /// Packs `down`, which holds A of the modules below each other, and B of `modules`, in the same order.
    ///
    /// B is held in f32 where A is, else in bf16.
    ///
    /// # Panics
    /// When ranks do not add up to the outputs of `down`, or columns of modules overlap.
    pub fn new(down: Linear, modules: &[LoraModule<'_>]) -> LoraStack {
        let exact = down.dtype() == WeightDtype::F32;
        let mut first = 0;
        let mut parts: Vec<Part> = Vec::with_capacity(modules.len());
        for module in modules {
            assert!(
                module.rank > 0 && module.b.len().is_multiple_of(module.rank),
                "B of rank {}",
                module.rank
            );
            let columns = module.b.len() / module.rank;
            let (column, rank) = (module.column, module.rank);
            assert!(
                parts.last().is_none_or(|p| p.column + p.columns <= column),
                "columns of modules overlap"
            );
            let by_panel = |values: &[f32]| {
                assert_eq!(values.len(), columns, "values of a module");
                values
                    .chunks(LANES)
                    .map(|x| std::array::from_fn(|i| x.get(i).copied().unwrap_or(0.0)))
                    .collect()
            };
            parts.push(Part {
                first,
                rank,
                column,
                columns,
                up: if exact { Up::F32(pack(module, columns)) } else { Up::Bf16(pack(module, columns)) },
                bias: module.bias.map(by_panel),
                gain: module.gain.map(by_panel),
            });
            first += rank;
        }
        assert_eq!(first, down.out_features(), "sum of the ranks");
        LoraStack { down, parts }
    }

    /// The sum of the ranks of the modules: values of a row of h.
    pub fn rank(&self) -> usize {
        self.down.out_features()
    }

    /// Memory of the packed matrices, in bytes.
    pub fn bytes(&self) -> usize {
        let part = |p: &Part| {
            let vectors = p.bias.as_ref().map_or(0, Vec::len) + p.gain.as_ref().map_or(0, Vec::len);
            let up = match &p.up {
                Up::Bf16(panels) => size_of_val(&**panels),
                Up::F32(panels) => size_of_val(&**panels),
            };
            up + vectors * size_of::<[f32; LANES]>()
        };
        self.down.bytes() + self.parts.iter().map(part).sum::<usize>()
    }

    fn panels(&self) -> usize {
        self.parts.iter().map(Part::panels).sum()
    }
}

impl Part {
    fn panels(&self) -> usize {
        self.columns.div_ceil(LANES)
    }
}

/// Adds the adapters of `runs` to y, whose row `r` begins at `r * stride`, after the base projection has written it.
///
/// `runs` are in order of their rows and do not overlap. `h` is reused memory.
///
/// # Panics
/// When rows lie outside of x or y, or runs overlap.
pub fn lora_add(
    kernels: &Kernels,
    runs: &[LoraRun<'_>],
    input: LoraInput<'_>,
    y: &mut [f32],
    stride: usize,
    h: &mut Vec<f32>,
) {
    let mut end = 0;
    for LoraRun { stack, rows } in runs {
        assert!(end <= rows.start && rows.start <= rows.end, "runs of rows overlap");
        end = rows.end;
        let last = stack.parts.last().map_or(0, |p| p.column + p.columns);
        assert!(
            rows.is_empty() || (rows.end - 1) * stride + last <= y.len() && last <= stride,
            "y is too small"
        );
    }
    shrink(kernels, runs, input, h);
    let jobs = |run: &LoraRun<'_>| {
        let panels = run.stack.panels();
        let work = panels * run.rows.len() * run.stack.rank() / run.stack.parts.len().max(1);
        let count = (work / MIN_WORK).clamp(1, 2 * kernels.threads());
        let size = panels.div_ceil(count).next_multiple_of(TILE);
        (if run.rows.is_empty() { 0 } else { panels.div_ceil(size) }, size)
    };
    let tasks = runs.iter().map(|run| jobs(run).0).sum();
    let y = Shared::new(y);
    kernels.pool().run(tasks, &|mut task| {
        let mut h = &h[..];
        for run in runs {
            let (count, size) = jobs(run);
            if task < count {
                let panels = task * size..run.stack.panels().min((task + 1) * size);
                return dispatch(kernels, Expand { run, panels, h, bias: input.bias, y: &y, stride });
            }
            task -= count;
            h = &h[run.rows.len() * run.stack.rank()..];
        }
    });
}

/// Fills `h` with A x of each run, one after the other.
fn shrink(kernels: &Kernels, runs: &[LoraRun<'_>], input: LoraInput<'_>, h: &mut Vec<f32>) {
    let size = |run: &LoraRun<'_>| run.rows.len() * run.stack.rank();
    let len = runs.iter().map(size).sum();
    if h.len() < len {
        h.resize(len, 0.0);
    }
    let few = |run: &LoraRun<'_>| runs.len() > 1 && run.rows.len() < FEW_ROWS;
    let one = |run: &LoraRun<'_>, h: &mut [f32]| {
        run.stack.down.forward_rows(kernels, input.x, input.quantized, run.rows.clone(), h);
    };
    let mut rest = &mut h[..len];
    for run in runs {
        let (own, others) = rest.split_at_mut(size(run));
        if !few(run) {
            one(run, own);
        }
        rest = others;
    }
    let shared = Shared::new(&mut h[..len]);
    let start = |index: usize| runs[..index].iter().map(size).sum::<usize>();
    let tasks = if runs.iter().any(few) { runs.len() } else { 0 };
    kernels.pool().run(tasks, &|index| {
        if few(&runs[index]) {
            let start = start(index);
            // SAFETY: each run has its own part of h, and no two tasks have the same run.
            one(&runs[index], unsafe { shared.part(start..start + size(&runs[index])) });
        }
    });
}

/// One task: some panels of a stack for all rows of a run.
struct Expand<'a> {
    run: &'a LoraRun<'a>,
    /// Panels, counted through all parts.
    panels: Range<usize>,
    /// `[rows][rank]`, and more.
    h: &'a [f32],
    bias: Option<&'a [f32]>,
    y: &'a Shared<'a, f32>,
    stride: usize,
}

impl Op for Expand<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut before = 0;
        for part in &self.run.stack.parts {
            let count = part.panels();
            let (start, end) = (self.panels.start.max(before), self.panels.end.min(before + count));
            if start < end {
                let panels = start - before..end - before;
                match &part.up {
                    Up::Bf16(up) => self.part(s, part, up, panels),
                    Up::F32(up) => self.part(s, part, up, panels),
                }
            }
            before += count;
        }
    }
}

impl Expand<'_> {
    #[inline(always)]
    fn part<S: Simd, T: Pair>(&self, s: S, part: &Part, up: &[T], panels: Range<usize>) {
        let rows = self.run.rows.len();
        for start in panels.clone().step_by(STRIP) {
            let end = panels.end.min(start + STRIP);
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    TALL.. if S::WIDE => self.strip::<S, T, TALL, 2>(s, part, up, row, start..end),
                    TILE.. if S::WIDE => self.strip::<S, T, TILE, TILE>(s, part, up, row, start..end),
                    TILE.. => self.strip::<S, T, TILE, 1>(s, part, up, row, start..end),
                    2.. if S::WIDE => self.strip::<S, T, 2, TILE>(s, part, up, row, start..end),
                    _ => self.strip::<S, T, 1, TILE>(s, part, up, row, start..end),
                };
            }
        }
    }

    /// MR rows times some panels. Returns MR.
    #[inline(always)]
    fn strip<S: Simd, T: Pair, const MR: usize, const NP: usize>(
        &self,
        s: S,
        part: &Part,
        up: &[T],
        row: usize,
        panels: Range<usize>,
    ) -> usize {
        let mut panel = panels.start;
        while panel + NP <= panels.end {
            self.tile::<S, T, MR, NP>(s, part, up, row, panel);
            panel += NP;
        }
        for panel in panel..panels.end {
            self.tile::<S, T, MR, 1>(s, part, up, row, panel);
        }
        MR
    }

    #[inline(always)]
    fn tile<S: Simd, T: Pair, const MR: usize, const NP: usize>(
        &self,
        s: S,
        part: &Part,
        up: &[T],
        row: usize,
        panel: usize,
    ) {
        let (rank, pairs, width) = (part.rank, part.rank.div_ceil(2), self.run.stack.rank());
        let ahead = up.as_ptr().wrapping_add((panel + AHEAD) * pairs);
        let up = &up[panel * pairs..(panel + NP) * pairs];
        let h = &self.h[row * width + part.first..][..(MR - 1) * width + rank];
        let mut acc = [[s.zero(); NP]; MR];
        for pair in 0..pairs {
            let both = 2 * pair + 1 < rank;
            let mut vectors = [(s.zero(), s.zero()); NP];
            for p in 0..NP {
                if MR < TILE {
                    s.prefetch(ahead.wrapping_add(p * pairs + pair));
                }
                // SAFETY: `up` holds NP panels of `pairs` pairs.
                vectors[p] = unsafe { up.get_unchecked(p * pairs + pair) }.load(s);
            }
            for r in 0..MR {
                let at = r * width + 2 * pair;
                // SAFETY: `h` ends behind value `rank - 1` of the last row, and 2 * pair < rank.
                let even = s.splat(unsafe { *h.get_unchecked(at) });
                for p in 0..NP {
                    acc[r][p] = s.fma(even, vectors[p].0, acc[r][p]);
                }
                if both {
                    // SAFETY: as above, 2 * pair + 1 < rank.
                    let odd = s.splat(unsafe { *h.get_unchecked(at + 1) });
                    for p in 0..NP {
                        acc[r][p] = s.fma(odd, vectors[p].1, acc[r][p]);
                    }
                }
            }
        }
        for r in 0..MR {
            for p in 0..NP {
                self.finish(s, part, self.run.rows.start + row + r, panel + p, acc[r][p]);
            }
        }
    }

    /// Adds `delta` to a panel of a row of y.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, part: &Part, row: usize, panel: usize, delta: S::F) {
        let column = part.column + panel * LANES;
        let count = LANES.min(part.columns - panel * LANES);
        let start = row * self.stride + column;
        // SAFETY: runs have different rows and tasks of a run different panels; a task holds one part at a time.
        let y = unsafe { self.y.part(start..start + count) };
        let mut value = s.load_partial(y, 0.0);
        let base = self.bias.filter(|_| part.gain.is_some());
        let base = base.map(|bias| s.load_partial(&bias[column..column + count], 0.0));
        if let Some(base) = base {
            value = s.sub(value, base);
        }
        value = s.add(value, delta);
        if let Some(bias) = &part.bias {
            value = s.add(value, s.load(&bias[panel]));
        }
        if let Some(gain) = &part.gain {
            let gain = s.load(&gain[panel]);
            value = base.map_or_else(|| s.mul(gain, value), |base| s.fma(gain, value, base));
        }
        s.store_partial(value, y);
    }
}

/// Values of two ranks of 16 columns.
trait Pair: Plain {
    fn set(&mut self, odd: bool, lane: usize, value: f32);
    /// The even rank, the odd rank.
    fn load<S: Simd>(&self, s: S) -> (S::F, S::F);
}

impl Pair for [u16; 2 * LANES] {
    fn set(&mut self, odd: bool, lane: usize, value: f32) {
        self[2 * lane + usize::from(odd)] = bf16::from_f32(value).to_bits();
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> (S::F, S::F) {
        s.load_bf16_pairs(self)
    }
}

impl Pair for [[f32; LANES]; 2] {
    fn set(&mut self, odd: bool, lane: usize, value: f32) {
        self[usize::from(odd)][lane] = value;
    }

    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> (S::F, S::F) {
        (s.load(&self[0]), s.load(&self[1]))
    }
}

fn pack<T: Pair>(module: &LoraModule<'_>, columns: usize) -> Pages<T> {
    let pairs = module.rank.div_ceil(2);
    let mut panels = Pages::<T>::zeroed(columns.div_ceil(LANES) * pairs);
    for (column, row) in module.b.chunks_exact(module.rank).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            panels[column / LANES * pairs + j / 2].set(j % 2 == 1, column % LANES, value);
        }
    }
    panels
}
