//! Adapters in the forward pass: what they add to a projection, for the rows that have one.

use std::ops::Range;

use octavo_kernels::{LoraRun, QuantizedRows};

use crate::adapter::{Adapter, Site};

/// Rows of a step that one adapter changes.
#[derive(Clone)]
pub struct AdapterRows<'a> {
    /// The adapter, packed for this model.
    pub adapter: &'a Adapter,
    /// Rows of the batch: whole sequences.
    pub rows: Range<usize>,
}

/// The adapters of a step at one projection.
#[derive(Clone, Copy)]
pub(super) struct AtSite<'a> {
    adapters: &'a [AdapterRows<'a>],
    layer: usize,
    site: Site,
    /// First row of the step that is meant, and how many are.
    first: usize,
    rows: usize,
}

impl<'a> AtSite<'a> {
    pub(super) fn new(adapters: &'a [AdapterRows<'a>], layer: usize, site: Site) -> Self {
        Self { adapters, layer, site, first: 0, rows: usize::MAX }
    }

    /// A projection without adapters.
    pub(super) fn none() -> Self {
        Self::new(&[], 0, Site::O)
    }

    /// The adapters of the rows `first .. first + rows`, counted from there.
    pub(super) fn of_rows(self, first: usize, rows: usize) -> Self {
        Self { first: self.first + first, rows, ..self }
    }

    fn iter(self) -> impl Iterator<Item = LoraRun<'a>> {
        let (first, end) = (self.first, self.first.saturating_add(self.rows));
        self.adapters.iter().filter_map(move |AdapterRows { adapter, rows }| {
            let (start, end) = (rows.start.max(first), rows.end.min(end));
            let stack = adapter.stack(self.layer, self.site).filter(|_| start < end)?;
            Some(LoraRun { stack, rows: start - first..end - first })
        })
    }

    /// The rows that adapters change, with their matrices.
    pub(super) fn runs(self) -> Vec<LoraRun<'a>> {
        self.iter().collect()
    }

    /// True if no adapter changes this projection.
    pub(super) fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }
}

/// Memory that projections share.
#[derive(Default)]
pub(super) struct ProjectionBuffers {
    /// The input in int8.
    pub(super) quantized: QuantizedRows,
    /// The inputs of adapters' second matrices.
    pub(super) low_rank: Vec<f32>,
}
