//! An adapter's matrices for one projection, packed.
//!
//! ```text
//! panels of a module [panels][ceil(rank / 2)] of one pair of ranks of 16 columns, bf16 or f32
//!
//! columns of y   |0 .. 15|16 .. 31|32 .. 47|     its panels are those of y: a module may begin and end inside of one
//! a module             [..........]             two panels, zero outside of the module
//! ```

use std::ops::Range;

use half::bf16;

use super::LoraModule;
use crate::matmul::{Linear, WeightDtype};
use crate::pages::{Pages, Plain};
use crate::simd::{LANES, Simd};

/// An adapter's matrices for one projection, packed.
#[derive(Debug, Clone)]
pub struct LoraStack {
    pub(super) down: Linear,
    pub(super) parts: Vec<Part>,
}

/// B of one module.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// First of its values in a row of h.
    pub(super) first: usize,
    pub(super) rank: usize,
    /// Its columns of y.
    pub(super) columns: Range<usize>,
    pub(super) up: Up,
    /// `[panels]`, zero outside of its columns.
    pub(super) bias: Option<Vec<[f32; LANES]>>,
    pub(super) gain: Option<Vec<[f32; LANES]>>,
}

#[derive(Debug, Clone)]
pub(super) enum Up {
    Bf16(Pages<[u16; 2 * LANES]>),
    F32(Pages<[[f32; LANES]; 2]>),
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
            assert!(parts.last().is_none_or(|p| p.columns.end <= column), "columns of modules overlap");
            let by_panel = |values: &[f32]| {
                assert_eq!(values.len(), columns, "values of a module");
                let mut panels = vec![[0.0; LANES]; panels_of(&(column..column + columns)).len()];
                panels.as_flattened_mut()[column % LANES..][..columns].copy_from_slice(values);
                panels
            };
            parts.push(Part {
                first,
                rank,
                columns: column..column + columns,
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

    /// Columns of y up to the last one that changes.
    pub(super) fn columns(&self) -> usize {
        self.parts.last().map_or(0, |part| part.columns.end)
    }

    /// The modules with columns in the panels `panels` of y, and those of their panels.
    pub(super) fn parts_in(&self, panels: &Range<usize>) -> impl Iterator<Item = (&Part, Range<usize>)> {
        let Range { start, end } = *panels;
        self.parts.iter().filter_map(move |part| {
            let own = panels_of(&part.columns);
            let (first, last) = (start.max(own.start), end.min(own.end));
            (first < last).then_some((part, first..last))
        })
    }
}

/// The panels of y that hold `columns`.
pub(super) fn panels_of(columns: &Range<usize>) -> Range<usize> {
    columns.start / LANES..columns.end.div_ceil(LANES)
}

/// Values of two ranks of 16 columns.
pub(super) trait Pair: Plain {
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
    let (pairs, shift) = (module.rank.div_ceil(2), module.column % LANES);
    let mut panels = Pages::<T>::zeroed((shift + columns).div_ceil(LANES) * pairs);
    for (column, row) in module.b.chunks_exact(module.rank).enumerate() {
        let at = shift + column;
        for (j, &value) in row.iter().enumerate() {
            panels[at / LANES * pairs + j / 2].set(j % 2 == 1, at % LANES, value);
        }
    }
    panels
}
