//! Temperature, min-p, top-k, top-p and the draw, without sorting the vocabulary.

/// How many candidates the first partial sort takes; grows eightfold until the nucleus is covered.
const FIRST_CUT: usize = 128;

/// Reusable memory of a draw: (logit, token).
#[derive(Default)]
pub struct Candidates {
    items: Vec<(f32, u32)>,
}

impl Candidates {
    /// Draws from softmax(logits / temperature) restricted by min-p, then top-k, then top-p (over what is left).
    ///
    /// `draw` in [0, 1). Candidates are ordered by (logit descending, id ascending), so the result is a function of the
    /// arguments alone. `top_k` 0 means all.
    pub fn draw(
        &mut self,
        logits: &[f32],
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        draw: f64,
    ) -> u32 {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return 0;
        }
        let weight = |x: f32| f64::from(((x - max) / temperature).exp());
        let limit = if min_p > 0.0 { max + temperature * min_p.ln() } else { f32::MIN };
        let top_k = if top_k == 0 { usize::MAX } else { top_k };
        if top_k >= logits.len() && top_p >= 1.0 {
            // No order is needed: walk the vocabulary by id.
            let allowed = || logits.iter().enumerate().filter(|(_, x)| **x >= limit);
            let total: f64 = allowed().map(|(_, x)| weight(*x)).sum();
            return pick(allowed().map(|(i, x)| (i as u32, weight(*x))), draw * total);
        }
        self.items.clear();
        let all = logits.iter().enumerate().filter(|(_, x)| **x >= limit);
        self.items.extend(all.map(|(i, x)| (*x, i as u32)));
        let kept = self.items.len().min(top_k);
        if top_p >= 1.0 {
            self.sort_first(kept);
            let top = &self.items[..kept];
            let total: f64 = top.iter().map(|(x, _)| weight(*x)).sum();
            return pick(top.iter().map(|(x, i)| (*i, weight(*x))), draw * total);
        }
        // The mass that top-p counts in is that of the top-k set, as in vLLM.
        let mut sorted = 0;
        let total: f64 = if kept < self.items.len() {
            self.sort_first(kept);
            sorted = kept;
            self.items[..kept].iter().map(|(x, _)| weight(*x)).sum()
        } else {
            self.items.iter().map(|(x, _)| weight(*x)).sum()
        };
        let goal = total * f64::from(top_p);
        let mut cut = FIRST_CUT.min(kept);
        loop {
            if sorted < cut {
                self.sort_first(cut);
                sorted = cut;
            }
            let mut mass = 0.0;
            let inside = self.items[..cut].iter().position(|(x, _)| {
                mass += weight(*x);
                mass >= goal
            });
            if let Some(last) = inside {
                let nucleus = &self.items[..=last];
                return pick(nucleus.iter().map(|(x, i)| (*i, weight(*x))), draw * mass);
            }
            if cut == kept {
                return pick(self.items[..kept].iter().map(|(x, i)| (*i, weight(*x))), draw * mass);
            }
            cut = (cut * 8).min(kept);
        }
    }

    /// Puts the best `count` candidates first, in order.
    fn sort_first(&mut self, count: usize) {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if count < self.items.len() {
            self.items.select_nth_unstable_by(count, order);
        }
        self.items[..count].sort_unstable_by(order);
    }
}

/// The token at which the running sum of weights passes `target`; the last one with weight if rounding runs past it.
fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
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
