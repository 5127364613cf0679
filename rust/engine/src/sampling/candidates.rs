//! The draw that reads few candidates: the same token as [`super::exact`] for every seed.
//!
//! What top-k or top-p keeps lies in the blocks with the largest peaks, so only these are read. Sums over the whole
//! vocabulary are taken with the kernels' exponential, whose error is bounded; where a decision is so close that the error
//! could turn it, the definition decides.

use octavo_kernels::{Kernels, SUM_BLOCK, Weighting, weight_sums, weights};

use super::exact::{Cuts, Exact, pick};

/// Bound of the difference between a sum here and by the definition, relative to the whole: twice that of the two
/// exponentials (2e-7 and 1e-7) and room to spare.
const MARGIN: f64 = 1e-6;
/// Sizes of the nucleus that are tried before the definition's way.
const NUCLEI: [usize; 2] = [128, 1024];
/// How much more the second holds than the first.
const GROWTH: f64 = 8.0;

/// Reusable memory of a draw.
#[derive(Default)]
pub struct Candidates {
    exact: Exact,
    sums: Vec<f64>,
    weights: Vec<f32>,
}

impl Candidates {
    /// As [`Exact::draw`].
    pub fn draw(&mut self, kernels: &Kernels, logits: &[f32], max: f32, cuts: Cuts, draw: f64) -> u32 {
        let all = cuts.most() >= logits.len();
        let found = match (all, cuts.top_p >= 1.0) {
            (true, true) => self.walk(kernels, logits, max, cuts, draw),
            (true, false) => self.nucleus(kernels, logits, max, cuts, draw),
            (false, _) => self.best(kernels, logits, max, cuts, draw),
        };
        found.unwrap_or_else(|| self.exact.draw(logits, max, cuts, draw))
    }

    /// Over the whole vocabulary by id: the block first, then the place in it.
    fn walk(&mut self, kernels: &Kernels, logits: &[f32], max: f32, cuts: Cuts, draw: f64) -> Option<u32> {
        let weighting = weighting(max, cuts);
        weight_sums(kernels, logits, weighting, &mut self.sums);
        let total: f64 = self.sums.iter().sum();
        let (target, margin) = (draw * total, MARGIN * total);
        let mut before = 0.0;
        let index = self.sums.iter().position(|sum| {
            let inside = before + sum > target;
            before += if inside { 0.0 } else { *sum };
            inside
        })?;
        let start = index * SUM_BLOCK;
        let block = &logits[start..logits.len().min(start + SUM_BLOCK)];
        weights(kernels, block, weighting, &mut self.weights);
        for (token, &weight) in (start as u32..).zip(&self.weights) {
            let after = before + f64::from(weight);
            if after > target {
                return (target - before > margin && after - target > margin).then_some(token);
            }
            before = after;
        }
        None
    }

    /// Top-k, and top-p among what it keeps.
    fn best(&mut self, kernels: &Kernels, logits: &[f32], max: f32, cuts: Cuts, draw: f64) -> Option<u32> {
        // One more than top-k keeps: whether there are others decides in which order top-p sums.
        self.exact.best.collect(kernels, logits, cuts.limit(max), cuts.top_k + 1);
        Some(self.exact.draw_from_items(max, cuts, draw))
    }

    /// Top-p alone: the whole is summed, the best are looked at one by one.
    fn nucleus(&mut self, kernels: &Kernels, logits: &[f32], max: f32, cuts: Cuts, draw: f64) -> Option<u32> {
        weight_sums(kernels, logits, weighting(max, cuts), &mut self.sums);
        let total: f64 = self.sums.iter().sum();
        let (goal, margin) = (total * f64::from(cuts.top_p), MARGIN * total);
        for count in NUCLEI {
            let best = &mut self.exact.best;
            best.collect(kernels, logits, cuts.limit(max), count);
            let count = count.min(best.items.len());
            best.sort_first(count);
            let best = &best.items[..count];
            let mut mass = 0.0;
            let reaches = best.iter().position(|(x, _)| {
                mass += cuts.weight(*x, max);
                mass > goal - margin
            });
            if let Some(last) = reaches {
                let nucleus = best[..=last].iter().map(|(x, i)| (*i, cuts.weight(*x, max)));
                return (mass > goal + margin).then(|| pick(nucleus, draw * mass));
            }
            if mass * GROWTH < goal - margin {
                // No further candidate has more weight than these: the next size would not reach the goal either.
                return None;
            }
        }
        None
    }
}

fn weighting(max: f32, cuts: Cuts) -> Weighting {
    Weighting { largest: max, temperature: cuts.temperature, limit: cuts.limit(max) }
}
