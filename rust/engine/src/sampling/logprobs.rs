//! Log-probabilities of a row of raw logits (before any processor, as in vLLM).

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

/// The chosen token first, then the best `top` candidates by rank (which may hold the chosen one again).
///
/// `logits` `[vocab]`, f32. Ties rank by id.
pub fn row_logprobs(logits: &[f32], chosen: u32, top: usize) -> Vec<Logprob> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let mine = logits[chosen as usize];
    let better =
        logits.iter().enumerate().filter(|(i, x)| **x > mine || (**x == mine && (*i as u32) < chosen));
    let rank = better.count() as u32 + 1;
    let mut out = vec![Logprob { token_id: chosen, logprob: logprob(chosen), rank }];
    let top = top.min(logits.len());
    if top > 0 {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top < ids.len() {
            ids.select_nth_unstable_by(top, order);
            ids.truncate(top);
        }
        ids.sort_unstable_by(order);
        let ranked = ids.iter().zip(1..);
        out.extend(ranked.map(|(&id, rank)| Logprob { token_id: id, logprob: logprob(id), rank }));
    }
    out
}
