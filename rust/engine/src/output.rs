//! Output of a request, delta by delta.

use crate::EngineError;
use crate::report::Report;
use crate::token_text::TokenText;

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// End of sequence, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the context is reached.
    Length,
    /// Cancelled by the caller, or the engine was closed.
    Abort,
    /// A typed error ended the request.
    Error,
}

impl FinishReason {
    /// The name in the public API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What stopped a sample, other than end of sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// A candidate token of a position, with its text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Natural logarithm of its probability under the raw logits.
    pub logprob: f32,
    /// 1 is the most likely token.
    pub rank: u32,
    /// Its text and bytes.
    pub token: TokenText,
}

/// New output of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleDelta {
    /// Which of the `n` samples.
    pub index: u32,
    /// New text.
    pub text: String,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// Candidates of each new token, if asked for: the chosen one first.
    pub logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// Sum of the log-probabilities of all tokens so far, if logprobs were asked for.
    pub cumulative_logprob: Option<f64>,
    /// Set in the last delta of the sample.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it, other than end of sequence.
    pub stop_reason: Option<StopReason>,
}

impl SampleDelta {
    /// Appends a later delta.
    fn merge(&mut self, later: SampleDelta) {
        self.text.push_str(&later.text);
        self.token_ids.extend(later.token_ids);
        match (&mut self.logprobs, later.logprobs) {
            (Some(mine), Some(theirs)) => mine.extend(theirs),
            (mine @ None, theirs) => *mine = theirs,
            _ => {}
        }
        self.cumulative_logprob = later.cumulative_logprob.or(self.cumulative_logprob);
        self.finish_reason = later.finish_reason.or(self.finish_reason);
        self.stop_reason = later.stop_reason.or(self.stop_reason.take());
    }
}

/// Times and counts of one request. Times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMetrics {
    /// From submission to the first step.
    pub queue_seconds: f64,
    /// From submission to the first token (TTFT).
    pub ttft_seconds: f64,
    /// Mean time between tokens after the first (TPOT).
    pub tpot_seconds: f64,
    /// From submission to the end.
    pub total_seconds: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Of these, tokens found in the prefix cache.
    pub cached_prompt_tokens: u64,
    /// Tokens generated, all samples together.
    pub generated_tokens: u64,
    /// Merged reports of the executor; None if it made none.
    pub report: Option<Report>,
}

/// Candidates per prompt token; None for the first one, which nothing predicts.
pub type PromptLogprobs = Vec<Option<Vec<TokenLogprob>>>;

/// Output since the last delta.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Samples with new output.
    pub outputs: Vec<SampleDelta>,
    /// The last delta of the request.
    pub finished: bool,
    /// Once, if asked for.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// In the last delta of a request for an embedding.
    pub embedding: Option<Vec<f32>>,
    /// In the last delta.
    pub metrics: Option<RequestMetrics>,
    /// The error that ended the request.
    pub error: Option<EngineError>,
}

impl Delta {
    /// True if there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty() && !self.finished && self.prompt_logprobs.is_none()
    }

    /// Appends a later delta.
    pub fn merge(&mut self, later: Delta) {
        later.outputs.into_iter().for_each(|delta| self.add(delta));
        self.finished |= later.finished;
        self.prompt_logprobs = later.prompt_logprobs.or(self.prompt_logprobs.take());
        self.embedding = later.embedding.or(self.embedding.take());
        self.metrics = later.metrics.or(self.metrics.take());
        self.error = later.error.or(self.error.take());
    }

    /// Adds output of a sample.
    pub fn add(&mut self, delta: SampleDelta) {
        match self.outputs.iter_mut().find(|o| o.index == delta.index) {
            Some(mine) => mine.merge(delta),
            None => self.outputs.push(delta),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_of_a_sample_merge_in_order() {
        let mut delta = Delta::default();
        let piece = |text: &str, id, reason| SampleDelta {
            text: text.into(),
            token_ids: vec![id],
            finish_reason: reason,
            ..SampleDelta::default()
        };
        delta.add(piece("a", 1, None));
        delta.add(SampleDelta { index: 1, ..piece("x", 9, None) });
        delta.add(piece("b", 2, Some(FinishReason::Stop)));
        assert_eq!(delta.outputs.len(), 2);
        assert_eq!(delta.outputs[0].text, "ab");
        assert_eq!(delta.outputs[0].token_ids, [1, 2]);
        assert_eq!(delta.outputs[0].finish_reason, Some(FinishReason::Stop));
    }
}
