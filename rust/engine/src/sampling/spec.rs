//! What an executor samples by itself, and what it returns.

use super::logprobs::Logprob;

/// Sampling rules of one sequence whose logits need no other processing. C layout without gaps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SampleSpec {
    /// Index into `plan.seqs`.
    pub seq: u32,
    /// Sample of the request.
    pub sample: u32,
    /// Tokens that the sample has so far.
    pub position: u32,
    /// Number of candidates; 0: all.
    pub top_k: u32,
    /// Seed of the request.
    pub seed: u64,
    /// Random number in [0, 1); depends on seed, sample and position only.
    pub uniform: f64,
    /// 0: greedy.
    pub temperature: f32,
    /// Smallest set of tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Candidates have at least this share of the best one's probability.
    pub min_p: f32,
    /// Number of candidates to report beside the token's own log-probability; below 0: none, and not its own either.
    pub logprobs: i32,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Its log-probability, then those of the best candidates; empty if not asked for.
    pub logprobs: Vec<Logprob>,
}
