//! The best few of a row of logits, found by reading little of it.

use octavo_kernels::{Kernels, PEAK_BLOCK, block_peaks};

/// Reusable memory of the search, and what it found: (logit, token).
#[derive(Default)]
pub struct Best {
    pub items: Vec<(f32, u32)>,
    peaks: Vec<f32>,
    order: Vec<f32>,
}

impl Best {
    /// Takes all logits that are not below `limit`, in order of their ids.
    pub fn collect_all(&mut self, logits: &[f32], limit: f32) {
        let all = logits.iter().zip(0..).filter(|(x, _)| **x >= limit);
        self.items.clear();
        self.items.extend(all.map(|(x, i)| (*x, i)));
    }

    /// Takes, in order of their ids, logits not below `limit` that hold the best `count` of these: `count` themselves and some
    /// more, or all there are.
    pub fn collect(&mut self, kernels: &Kernels, logits: &[f32], limit: f32, count: usize) {
        if count == 0 || count >= logits.len().div_ceil(PEAK_BLOCK) {
            return self.collect_all(logits, limit);
        }
        block_peaks(kernels, logits, &mut self.peaks);
        self.order.clone_from(&self.peaks);
        let (_, nth, _) = self.order.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        // So many blocks have a peak of at least the count-th largest, and so there are as many values.
        let least = limit.max(*nth);
        self.items.clear();
        for (index, block) in logits.chunks(PEAK_BLOCK).enumerate().filter(|(i, _)| self.peaks[*i] >= least) {
            let ids = (index * PEAK_BLOCK) as u32..;
            self.items.extend(block.iter().zip(ids).filter(|(x, _)| **x >= least).map(|(x, i)| (*x, i)));
        }
    }

    /// Puts the best `count` first, in order: the larger logit, among equals the lower id.
    pub fn sort_first(&mut self, count: usize) {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if count < self.items.len() {
            self.items.select_nth_unstable_by(count, order);
        }
        self.items[..count].sort_unstable_by(order);
    }
}
