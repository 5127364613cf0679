//! Log-probabilities of a row of raw logits (before any processor, as in vLLM).

use octavo_kernels::{Kernels, Weighting, weight_sums};

use super::best::Best;

/// One candidate token of a position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 is the most likely token.
    pub rank: u32,
}

/// Reusable memory of [`row_logprobs`].
#[derive(Default)]
pub struct LogprobMemory {
    best: Best,
    sums: Vec<f64>,
}

/// The chosen token first, then the best `top` candidates by rank (which may hold the chosen one again).
///
/// `logits` `[vocab]`, f32, and `max` the largest of them. Ties rank by id.
pub fn row_logprobs(
    kernels: &Kernels,
    LogprobMemory { best, sums }: &mut LogprobMemory,
    logits: &[f32],
    max: f32,
    chosen: u32,
    top: usize,
) -> Vec<Logprob> {
    // The kernel sums blocks in one fixed order with a bounded error: the result has the same bits on every machine.
    let all = Weighting { largest: max, temperature: 1.0, limit: f32::NEG_INFINITY };
    weight_sums(kernels, logits, all, sums);
    let sum: f64 = sums.iter().sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let mine = logits[chosen as usize];
    // Ahead of the chosen token are the larger ones, and equal ones with lower ids; counted without branches.
    let (before, after) = logits.split_at(chosen as usize);
    let ahead = before.iter().map(|x| u32::from(*x >= mine)).sum::<u32>();
    let rank = ahead + after.iter().map(|x| u32::from(*x > mine)).sum::<u32>() + 1;
    let mut out = vec![Logprob { token_id: chosen, logprob: logprob(chosen), rank }];
    let top = top.min(logits.len());
    if top > 0 {
        best.collect(kernels, logits, f32::NEG_INFINITY, top);
        if best.items.len() < top {
            // Some are no numbers; they are shown as such.
            best.items.clear();
            best.items.extend(logits.iter().copied().zip(0..));
        }
        best.sort_first(top);
        let ranked = best.items[..top].iter().zip(1..);
        out.extend(ranked.map(|(&(_, id), rank)| Logprob { token_id: id, logprob: logprob(id), rank }));
    }
    out
}
