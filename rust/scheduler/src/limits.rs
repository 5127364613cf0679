//! Which requests could ever run within the limits.

use crate::config::SchedulerConfig;
use crate::event::NewRequest;
use crate::plan::Output;
use crate::rejection::Rejection;

impl SchedulerConfig {
    /// Whether a request of this size could ever run, alone.
    ///
    /// The worst case counts a full-length table for each of the `n` samples, with the full blocks of the prompt shared. The
    /// copies of a partly filled prompt block are among them.
    pub fn check(&self, prompt_len: u32, n: u32, max_tokens: u32) -> Result<(), Rejection> {
        let (max_model_len, max_num_seqs) = (self.max_model_len, self.max_num_seqs);
        if prompt_len == 0 {
            return Err(Rejection::EmptyPrompt);
        }
        if n == 0 {
            return Err(Rejection::ZeroTokens { name: "n" });
        }
        if max_tokens == 0 {
            return Err(Rejection::ZeroTokens { name: "max_tokens" });
        }
        if prompt_len >= max_model_len {
            return Err(Rejection::TooLong { prompt_len, max_model_len });
        }
        if n > max_num_seqs {
            return Err(Rejection::TooManySamples { n, max_num_seqs });
        }
        let needed_blocks = self.most_blocks(prompt_len, n, max_tokens);
        if needed_blocks > u64::from(self.num_blocks) {
            return Err(Rejection::NeverFits { needed_blocks, num_blocks: self.num_blocks });
        }
        Ok(())
    }

    /// [`Self::check`] for a request for hidden states: its prompt may fill the context.
    pub fn check_hidden(&self, prompt_len: u32) -> Result<(), Rejection> {
        let max_model_len = self.max_model_len;
        if prompt_len == 0 {
            return Err(Rejection::EmptyPrompt);
        }
        if prompt_len > max_model_len {
            return Err(Rejection::PromptTooLong { prompt_len, max_model_len });
        }
        let needed_blocks = u64::from(prompt_len.div_ceil(self.block_size));
        if needed_blocks > u64::from(self.num_blocks) {
            return Err(Rejection::NeverFits { needed_blocks, num_blocks: self.num_blocks });
        }
        Ok(())
    }

    /// Blocks that a request with tokens for output may need, alone.
    fn most_blocks(&self, prompt_len: u32, n: u32, max_tokens: u32) -> u64 {
        let shared = u64::from(prompt_len / self.block_size);
        let each = u64::from(self.max_len(prompt_len, max_tokens).div_ceil(self.block_size));
        shared + u64::from(n) * (each - shared)
    }

    /// Blocks that a request may need, alone.
    pub(crate) fn needed_blocks(&self, new: &NewRequest) -> u64 {
        let prompt_len = new.prompt.len() as u32;
        match new.output {
            Output::Tokens => self.most_blocks(prompt_len, new.n, new.max_tokens),
            Output::Hidden => u64::from(prompt_len.div_ceil(self.block_size)),
        }
    }

    /// Maximum length of a sample, prompt included.
    pub(crate) fn max_len(&self, prompt_len: u32, max_tokens: u32) -> u32 {
        prompt_len.saturating_add(max_tokens).min(self.max_model_len)
    }
}
