//! Which tokens a sequence has seen, and the penalties on them.

use rustc_hash::FxHashMap;

/// Tokens of the prompt and counts of the output. Kept only for requests with penalties.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Occurrences in the output; 0 for tokens of the prompt alone.
    seen: FxHashMap<u32, u32>,
}

impl History {
    /// Starts from a prompt.
    pub fn new(prompt: &[u32]) -> Self {
        Self { seen: prompt.iter().map(|&t| (t, 0)).collect() }
    }

    /// Counts a generated token.
    pub fn push(&mut self, token: u32) {
        *self.seen.entry(token).or_insert(0) += 1;
    }

    /// Repetition over prompt and output (Keskar et al., CTRL, arXiv 1909.05858), presence and frequency over the output.
    /// Each token is changed once, so the order of the map does not matter.
    pub fn apply(&self, logits: &mut [f32], repetition: f32, presence: f32, frequency: f32) {
        for (&token, &count) in &self.seen {
            let Some(x) = logits.get_mut(token as usize) else { continue };
            *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
            if count > 0 {
                *x -= frequency * count as f32 + presence;
            }
        }
    }
}
