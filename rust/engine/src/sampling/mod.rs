//! From a row of logits to a token: processors in vLLM's order, then a draw.
//!
//! The draw depends on the row, the parameters, the seed, the sample and the position only.

mod allowed;
mod best;
mod candidates;
mod exact;
mod logprobs;
mod penalties;
mod rng;
mod spec;

pub(crate) use allowed::{AllowedTokens, intersection};
pub use exact::{Cuts, Exact};
pub use logprobs::Logprob;
pub use penalties::History;
pub use spec::{SampleSpec, SampledToken};

use octavo_kernels::{Kernels, Peak, peak};

use crate::params::{SamplingDefaults, SamplingParams};
use candidates::Candidates;
use logprobs::{LogprobMemory, row_logprobs};

/// The resolved rules of one request.
#[derive(Clone, Debug)]
pub struct SamplingRules {
    /// Temperature 0 is greedy.
    cuts: Cuts,
    repetition: f32,
    presence: f32,
    frequency: f32,
    min_tokens: u32,
    seed: u64,
    logit_bias: Vec<(u32, f32)>,
    /// Tokens that may not come before `min_tokens`.
    stop_ids: Vec<u32>,
    /// Token sequences that may not be produced.
    bad_words: Vec<Vec<u32>>,
    /// The only tokens that may come.
    allowed: Option<AllowedTokens>,
}

impl SamplingRules {
    /// Completes `params` with the model's defaults. `stop_ids` are all tokens that end the output.
    pub fn new(
        params: &SamplingParams,
        defaults: &SamplingDefaults,
        seed: u64,
        stop_ids: Vec<u32>,
        bad_words: Vec<Vec<u32>>,
    ) -> Self {
        let temperature = params.temperature.unwrap_or(defaults.temperature);
        Self {
            cuts: Cuts {
                // Below this a softmax in f32 is one-hot anyway, and dividing would overflow.
                temperature: if temperature < 1e-5 { 0.0 } else { temperature },
                top_p: params.top_p.unwrap_or(defaults.top_p),
                top_k: params.top_k.unwrap_or(defaults.top_k) as usize,
                min_p: params.min_p.unwrap_or(defaults.min_p),
            },
            repetition: params.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            min_tokens: params.min_tokens,
            seed: params.seed.unwrap_or(seed),
            logit_bias: params.logit_bias.clone(),
            stop_ids,
            bad_words,
            allowed: params.allowed_token_ids.as_deref().map(AllowedTokens::new),
        }
    }

    /// A bit per token that may come; None: all may.
    pub(crate) fn allowed(&self) -> Option<&[u32]> {
        self.allowed.as_ref().map(AllowedTokens::mask)
    }

    /// True if the history of a sequence is needed to sample.
    pub fn needs_history(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }

    fn greedy(&self) -> bool {
        self.cuts.temperature == 0.0
    }

    /// Spec of a sample's token after `generated` others; None: the logits must be processed first.
    pub fn sample_spec(&self, sample: u32, generated: u32) -> Option<SampleSpec> {
        self.plain(generated).then(|| SampleSpec {
            seq: 0,
            sample,
            position: generated,
            top_k: self.cuts.top_k.min(u32::MAX as usize) as u32,
            seed: self.seed,
            uniform: rng::uniform(self.seed, sample, generated),
            temperature: self.cuts.temperature,
            top_p: self.cuts.top_p,
            min_p: self.cuts.min_p,
            logprobs: -1,
        })
    }

    /// True if the logits are used as they come.
    fn plain(&self, generated: u32) -> bool {
        !self.needs_history()
            && self.logit_bias.is_empty()
            && self.bad_words.is_empty()
            && self.allowed.is_none()
            && generated >= self.min_tokens
    }
}

/// Reusable memory of the sampler. One serves one thread.
#[derive(Default)]
pub struct Sampler {
    logits: Vec<f32>,
    candidates: Candidates,
    logprobs: LogprobMemory,
}

impl Sampler {
    /// Draws the next token of one sequence.
    ///
    /// `logits` `[vocab]`, f32, and `raw` their peak, which is sound; `output` the tokens generated so far; `sample` the index
    /// among the `n` samples. `allowed` has a bit per token, None: all may come. Equal arguments give equal tokens. Greedy
    /// ties go to the lowest id.
    #[allow(clippy::too_many_arguments)]
    pub fn sample(
        &mut self,
        kernels: &Kernels,
        rules: &SamplingRules,
        logits: &[f32],
        raw: Peak,
        history: &History,
        output: &[u32],
        sample: u32,
        allowed: Option<&[u32]>,
    ) -> u32 {
        let generated = output.len() as u32;
        let (row, largest) = if rules.plain(generated) && allowed.is_none() {
            (logits, raw)
        } else {
            self.logits.clear();
            self.logits.extend_from_slice(logits);
            process(rules, &mut self.logits, history, output);
            if let Some(allowed) = allowed {
                keep_allowed(&mut self.logits, logits, allowed);
            }
            (&self.logits[..], peak(kernels, &self.logits))
        };
        // Where every token is banned, the first.
        if rules.greedy() || largest.value == f32::NEG_INFINITY {
            return largest.index as u32;
        }
        let draw = rng::uniform(rules.seed, sample, generated);
        self.candidates.draw(kernels, row, largest.value, rules.cuts, draw)
    }

    /// The log-probability of `chosen`, then those of the best `top` candidates; `raw` is the row's peak.
    pub fn logprobs(
        &mut self,
        kernels: &Kernels,
        logits: &[f32],
        raw: Peak,
        chosen: u32,
        top: usize,
    ) -> Vec<Logprob> {
        row_logprobs(kernels, &mut self.logprobs, logits, raw.value, chosen, top)
    }
}

/// Bad words, stop tokens before `min_tokens`, bias, penalties: the order of vLLM.
fn process(rules: &SamplingRules, logits: &mut [f32], history: &History, output: &[u32]) {
    for word in &rules.bad_words {
        let Some((last, before)) = word.split_last() else { continue };
        if output.ends_with(before) {
            logits[*last as usize] = f32::NEG_INFINITY;
        }
    }
    if (output.len() as u32) < rules.min_tokens {
        for &id in &rules.stop_ids {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }
    for &(id, bias) in &rules.logit_bias {
        logits[id as usize] += bias;
    }
    if rules.needs_history() {
        history.apply(logits, rules.repetition, rules.presence, rules.frequency);
    }
}

/// Leaves only the allowed tokens. Where the other rules have banned all of these, they yield: what must be valid is.
fn keep_allowed(row: &mut [f32], raw: &[f32], allowed: &[u32]) {
    let mut any = false;
    for (index, x) in row.chunks_mut(32).enumerate() {
        // Most words of a mask say the same of all their tokens.
        match allowed.get(index).copied().unwrap_or(0) {
            0 => x.fill(f32::NEG_INFINITY),
            word => {
                for (bit, x) in x.iter_mut().enumerate() {
                    *x = if word >> bit & 1 == 1 { *x } else { f32::NEG_INFINITY };
                    any |= *x > f32::NEG_INFINITY;
                }
            }
        }
    }
    if !any {
        let may = |id: usize| allowed.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
        for (id, x) in row.iter_mut().enumerate().filter(|(id, _)| may(*id)) {
            // Of tokens that the model itself rules out each is as good.
            *x = raw[id].max(f32::MIN / 2.0);
        }
    }
}

#[cfg(test)]
mod tests;
