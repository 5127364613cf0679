//! The draw by its definition: temperature, min-p, top-k, top-p over all candidates. [`super::candidates`] comes to the same
//! token by reading less, and asks here where it cannot be certain.

use super::best::Best;

/// How many candidates the first partial sort takes; grows eightfold until the nucleus is covered.
const FIRST_CUT: usize = 128;

/// Restrictions of a draw.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// Above 0.
    pub temperature: f32,
    /// 0 means all.
    pub top_k: usize,
    /// 1 means all.
    pub top_p: f32,
    /// 0 means all.
    pub min_p: f32,
}

impl Cuts {
    /// The weight of a logit; `max` is the row's largest.
    pub fn weight(&self, x: f32, max: f32) -> f64 {
        f64::from(((x - max) / self.temperature).exp())
    }

    /// The logit that min-p asks for at least.
    pub fn limit(&self, max: f32) -> f32 {
        if self.min_p > 0.0 { max + self.temperature * self.min_p.ln() } else { f32::MIN }
    }

    /// The number that top-k lets through.
    pub fn most(&self) -> usize {
        if self.top_k == 0 { usize::MAX } else { self.top_k }
    }
}

/// Reusable memory of a draw.
#[derive(Default)]
pub struct Exact {
    /// The candidates.
    pub(super) best: Best,
}

impl Exact {
    /// Draws from softmax(logits / temperature) restricted by min-p, then top-k, then top-p (over what is left).
    ///
    /// `max` is the largest logit, above -inf; `draw` in [0, 1). Candidates are ordered by (logit descending, id ascending),
    /// so the result is a function of the arguments alone.
    pub fn draw(&mut self, logits: &[f32], max: f32, cuts: Cuts, draw: f64) -> u32 {
        let (limit, top_k) = (cuts.limit(max), cuts.most());
        if top_k >= logits.len() && cuts.top_p >= 1.0 {
            // No order is needed: walk the vocabulary by id.
            let allowed = || logits.iter().enumerate().filter(|(_, x)| **x >= limit);
            let weight = |x| cuts.weight(x, max);
            let total: f64 = allowed().map(|(_, x)| weight(*x)).sum();
            return pick(allowed().map(|(i, x)| (i as u32, weight(*x))), draw * total);
        }
        self.best.collect_all(logits, limit);
        self.draw_from_items(max, cuts, draw)
    }

    /// Draws from what `best` holds; its items are in order of their ids and not below the limit.
    pub fn draw_from_items(&mut self, max: f32, cuts: Cuts, draw: f64) -> u32 {
        let best = &mut self.best;
        let weight = |x| cuts.weight(x, max);
        let kept = best.items.len().min(cuts.most());
        if cuts.top_p >= 1.0 {
            best.sort_first(kept);
            let top = &best.items[..kept];
            let total: f64 = top.iter().map(|(x, _)| weight(*x)).sum();
            return pick(top.iter().map(|(x, i)| (*i, weight(*x))), draw * total);
        }
        // The mass that top-p counts in is that of the top-k set, as in vLLM.
        let mut sorted = 0;
        let total: f64 = if kept < best.items.len() {
            best.sort_first(kept);
            sorted = kept;
            best.items[..kept].iter().map(|(x, _)| weight(*x)).sum()
        } else {
            best.items.iter().map(|(x, _)| weight(*x)).sum()
        };
        let goal = total * f64::from(cuts.top_p);
        let mut cut = FIRST_CUT.min(kept);
        loop {
            if sorted < cut {
                best.sort_first(cut);
                sorted = cut;
            }
            let mut mass = 0.0;
            let inside = best.items[..cut].iter().position(|(x, _)| {
                mass += weight(*x);
                mass >= goal
            });
            if let Some(last) = inside {
                let nucleus = &best.items[..=last];
                return pick(nucleus.iter().map(|(x, i)| (*i, weight(*x))), draw * mass);
            }
            if cut == kept {
                return pick(best.items[..kept].iter().map(|(x, i)| (*i, weight(*x))), draw * mass);
            }
            cut = (cut * 8).min(kept);
        }
    }
}

/// The token at which the running sum of weights passes `target`; the last one with weight if rounding runs past it.
pub fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in weights {
        if weight > 0.0 {
            last = token;
        }
        sum += weight;
        if sum > target {
            return token;
        }
    }
    last
}
