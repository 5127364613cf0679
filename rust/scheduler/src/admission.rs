//! Who is accepted, and who leaves the queue.
//!
//! Accepted is what could run if it were alone. The queue is served in order of (priority, arrival). A request that
//! does not fit now may be overtaken by later ones that do, but only [`MAX_BYPASS`] times; a preempted one never.

use octavo_cache::PrefixMatch;
use octavo_cache::faults::{Fault, allocation_failed, planted};

use crate::config::SchedulerConfig;
use crate::event::{Actions, NewRequest, Started};
use crate::plan::Output;
use crate::rejection::Rejection;
use crate::request::{Key, Sequence};
use crate::scheduler::Scheduler;

/// How often a waiting request may be overtaken because it does not fit.
pub(crate) const MAX_BYPASS: u32 = 8;
/// How many waiting requests that do not fit are passed over in one step; bounds the look-ups.
pub(crate) const MAX_SKIPPED: usize = 4;

impl SchedulerConfig {
    /// Whether a request of this size could ever run; says what is wrong if not.
    ///
    /// The worst case counts a full-length table for each of the `n` samples, with the full blocks of the prompt
    /// shared; the copies of a partly filled prompt block are among them.
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
        let shared = u64::from(prompt_len / self.block_size);
        let each = u64::from(self.max_len(prompt_len, max_tokens).div_ceil(self.block_size));
        let needed_blocks = shared + u64::from(n) * (each - shared);
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

    /// Most tokens, prompt included, that a sample can reach.
    pub(crate) fn max_len(&self, prompt_len: u32, max_tokens: u32) -> u32 {
        prompt_len.saturating_add(max_tokens).min(self.max_model_len)
    }
}

impl Scheduler {
    /// Whether this request may enter the queue now.
    pub(crate) fn validate(&self, new: &NewRequest) -> Result<(), Rejection> {
        if self.draining {
            return Err(Rejection::Draining);
        }
        if self.ids.contains_key(&new.id) {
            return Err(Rejection::DuplicateId { id: new.id });
        }
        let prompt_len = u32::try_from(new.prompt.len()).unwrap_or(u32::MAX);
        match new.output {
            Output::Tokens => self.config.check(prompt_len, new.n, new.max_tokens)?,
            Output::Hidden if new.n != 1 => {
                return Err(Rejection::TooManySamples { n: new.n, max_num_seqs: 1 });
            }
            Output::Hidden => self.config.check_hidden(prompt_len)?,
        }
        if self.unstarted >= self.config.max_queue {
            return Err(Rejection::QueueFull { waiting: self.unstarted, max_queue: self.config.max_queue });
        }
        Ok(())
    }

    /// Starts waiting sequences with what is left of the step's `budget` of tokens.
    pub(crate) fn admit(&mut self, mut budget: u32, actions: &mut Actions) {
        // The usual step: nobody waits, or nobody can start. Spare it the walk over what runs.
        if self.waiting.len() == 0 || self.running.len() >= self.config.max_num_seqs as usize {
            return;
        }
        let mut owed = 0;
        let mut slots = 0;
        for &index in &self.running {
            let sequence = &self.sequences[index];
            slots += sequence.num_samples;
            owed += self.prefill_blocks(index).saturating_sub(sequence.table.blocks().len() as u32);
        }
        let mut found = std::mem::take(&mut self.found);
        let mut skipped: smallvec::SmallVec<[u32; MAX_SKIPPED]> = smallvec::smallvec![];
        let mut place: Option<Key> = None;
        while budget > 0
            && slots < self.config.max_num_seqs
            && let Some((key, index)) = self.waiting.next(place)
        {
            place = Some(key);
            let num_samples = self.sequences[index].num_samples;
            if slots + num_samples <= self.config.max_num_seqs && self.fits(index, owed, &mut found) {
                for &other in &skipped {
                    self.sequences[other].bypassed += u32::from(!planted(Fault::UnboundedBypass));
                }
                self.start(index, &found, actions);
                let chunk = self.schedule_prefill(index, budget, self.cache.available(), actions);
                debug_assert!(chunk > 0 || allocation_failed(), "an admitted sequence has room");
                budget -= chunk;
                slots += num_samples;
                let held = self.sequences[index].table.blocks().len() as u32;
                owed += self.prefill_blocks(index).saturating_sub(held);
                // The next one would overtake somebody once too often.
                if skipped.iter().any(|&s| self.sequences[s].bypassed >= MAX_BYPASS)
                    && !planted(Fault::BypassBoundedTooLate)
                {
                    break;
                }
            } else {
                let sequence = &self.sequences[index];
                if planted(Fault::HeadOfLineBlocking)
                    || sequence.preempted
                    || sequence.bypassed >= MAX_BYPASS
                    || skipped.len() == MAX_SKIPPED
                {
                    break;
                }
                skipped.push(index);
            }
        }
        self.found = found;
    }

    /// Blocks that a sequence holds once its tokens are computed, it has one token more, and it is split into its
    /// samples (each then copies the last block, or takes a new one). A request for hidden states gets no token more.
    pub(crate) fn prefill_blocks(&self, index: u32) -> u32 {
        let sequence = &self.sequences[index];
        let grows = u32::from(self.output(sequence) == Output::Tokens);
        (sequence.len() + grows).div_ceil(self.config.block_size) + sequence.num_samples - 1
    }

    /// What a sequence is computed for.
    pub(crate) fn output(&self, sequence: &Sequence) -> Output {
        sequence.request.map_or(Output::Tokens, |request| self.requests[request].output)
    }

    /// Whether the whole of a waiting sequence fits beside the `owed` blocks that running prefills still take. Its
    /// cached blocks are left in `found`.
    pub(crate) fn fits(&self, index: u32, owed: u32, found: &mut PrefixMatch) -> bool {
        let sequence = &self.sequences[index];
        let Some(request) = sequence.request else { return false };
        let request = &self.requests[request];
        // The last token is always computed, for its logits; so are prompt rows that are still to be reported.
        let limit = if request.owes_prompt_rows() {
            request.reported.min(sequence.len() - 1)
        } else {
            sequence.len() - u32::from(!planted(Fault::NothingLeftToCompute))
        };
        self.cache.find_prefix(request.namespace, &sequence.tokens, limit, found);
        let live_hits = found.num_blocks() - found.idle_blocks();
        // Some slack in large pools, so that the next decodes do not preempt at once what starts now.
        let slack = (self.running.len() as u32).min(self.config.num_blocks / 64);
        let needed = self.prefill_blocks(index) - live_hits;
        let owed = if planted(Fault::PartlyReserved) { 0 } else { owed };
        u64::from(needed) + u64::from(owed) + u64::from(slack) <= u64::from(self.cache.available())
    }

    /// Moves a waiting sequence to the running ones, with its cached blocks.
    fn start(&mut self, index: u32, found: &PrefixMatch, actions: &mut Actions) {
        let sequence = &mut self.sequences[index];
        let Some(owner) = sequence.request else { return };
        let request = &mut self.requests[owner];
        sequence.table = self.cache.open(request.namespace, found);
        sequence.table.reserve(request.max_len.div_ceil(self.config.block_size));
        if !request.started {
            request.started = true;
            self.unstarted -= 1;
            actions.started.push(Started { request: request.id, cached_tokens: sequence.table.computed() });
        }
        self.waiting.remove(sequence.key);
        self.run(index);
    }

    /// Puts a sequence into the running list, at its place in the order.
    pub(crate) fn run(&mut self, index: u32) {
        let key = self.sequences[index].key;
        let place = self.running.partition_point(|&other| self.sequences[other].key < key);
        self.running.insert(place, index);
        self.sequences[index].running = true;
    }

    /// Takes a sequence out of the running list.
    pub(crate) fn stop_running(&mut self, index: u32) {
        if let Some(place) = self.running.iter().position(|&other| other == index) {
            self.running.remove(place);
        }
    }
}
