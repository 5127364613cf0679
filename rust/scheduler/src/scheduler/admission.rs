//! Admission: which requests enter the queue, and which sequences leave it.
//!
//! A request is accepted if it could run alone. The queue is served in order of (priority, arrival). A sequence that does
//! not fit now may be overtaken by later ones that do, up to [`MAX_BYPASS`] times; a preempted one never.

use octavo_cache::PrefixMatch;
use smallvec::SmallVec;

use super::Scheduler;
use crate::batch::BatchBuilder;
use crate::event::{Actions, NewRequest, Started};
use crate::plan::{NO_ADAPTER, Output};
use crate::rejection::Rejection;
use crate::request::{Key, SeqState, Sequence};

/// How often a waiting sequence that does not fit may be overtaken.
pub(super) const MAX_BYPASS: u32 = 8;
/// Maximum number of waiting sequences that are passed over in one step; bounds the look-ups.
pub(super) const MAX_SKIPPED: usize = 4;

impl Scheduler {
    /// Whether this request may enter the queue now.
    pub(super) fn validate(&self, new: &NewRequest) -> Result<(), Rejection> {
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
        self.check_beside_packs(new)?;
        if self.unstarted >= self.config.max_queue {
            return Err(Rejection::QueueFull { waiting: self.unstarted, max_queue: self.config.max_queue });
        }
        Ok(())
    }

    /// Starts waiting sequences with the tokens that the step has left.
    pub(super) fn admit(&mut self, batch: &mut BatchBuilder, actions: &mut Actions) {
        // Running sequences that lack blocks come before new ones. And in the usual step no sequence waits, or none can
        // start: no pass over the running list then.
        let full = self.running.len() >= self.config.max_num_seqs as usize;
        if batch.stalled || actions.preempted > 0 || self.waiting.len() == 0 || full {
            return;
        }
        let (mut samples, mut owed) = self.reserved();
        let mut found = std::mem::take(&mut self.found);
        let mut skipped: SmallVec<[u32; MAX_SKIPPED]> = SmallVec::new();
        let mut place: Option<Key> = None;
        while batch.budget() > 0
            && samples < self.config.max_num_seqs
            && let Some((key, index)) = self.waiting.next(place)
        {
            place = Some(key);
            let num_samples = self.sequences[index].num_samples;
            let may_run = samples + num_samples <= self.config.max_num_seqs && self.adapter_fits(index);
            if may_run && self.fits(index, owed, &mut found) {
                self.count_bypass(&skipped);
                self.start(index, &found, actions);
                let pushed = self.push_prefill(batch, index, batch.budget(), self.cache.available());
                debug_assert!(pushed, "an admitted sequence has room");
                samples += num_samples;
                owed += self.owed_blocks(index);
                // The next one would overtake another sequence once too often.
                if skipped.iter().any(|&s| !self.may_be_overtaken(s)) {
                    break;
                }
            } else {
                if !self.may_be_overtaken(index) || skipped.len() == MAX_SKIPPED {
                    break;
                }
                skipped.push(index);
            }
        }
        self.found = found;
    }

    /// Samples that run, and blocks that running prefills still take.
    pub(super) fn reserved(&self) -> (u32, u32) {
        let add = |(samples, owed): (u32, u32), &index: &u32| {
            (samples + self.sequences[index].num_samples, owed + self.owed_blocks(index))
        };
        self.running.iter().fold((0, 0), add)
    }

    /// Blocks that a running sequence takes until its prefill is complete.
    fn owed_blocks(&self, index: u32) -> u32 {
        self.prefill_blocks(index).saturating_sub(self.sequences[index].table.blocks().len() as u32)
    }

    /// Whether a waiting sequence that does not fit may be overtaken.
    pub(super) fn may_be_overtaken(&self, index: u32) -> bool {
        let state = self.sequences[index].state;
        matches!(state, SeqState::Waiting { preempted: false, bypassed } if bypassed < MAX_BYPASS)
    }

    fn count_bypass(&mut self, overtaken: &[u32]) {
        for &index in overtaken {
            if let SeqState::Waiting { bypassed, .. } = &mut self.sequences[index].state {
                *bypassed += 1;
            }
        }
    }

    /// Blocks that a sequence holds once its tokens are computed, it has one token more, and it is split into samples. Each
    /// sample then copies the last block, or takes a new one. A request for hidden states gets no token more.
    pub(super) fn prefill_blocks(&self, index: u32) -> u32 {
        let sequence = &self.sequences[index];
        let grows = u32::from(self.output(sequence) == Output::Tokens);
        (sequence.len() + grows).div_ceil(self.config.block_size) + sequence.num_samples - 1
    }

    /// What a sequence is computed for.
    pub(super) fn output(&self, sequence: &Sequence) -> Output {
        sequence.request().map_or(Output::Tokens, |request| self.requests[request].output)
    }

    /// Whether a waiting sequence's adapter may run beside those of the running ones.
    pub(super) fn adapter_fits(&self, index: u32) -> bool {
        match self.adapter(index) {
            NO_ADAPTER => true,
            own => {
                let adapters = self.running_adapters();
                adapters.contains(&own) || adapters.len() < self.config.max_adapters as usize
            }
        }
    }

    /// The distinct adapters of running sequences.
    pub(super) fn running_adapters(&self) -> SmallVec<[u32; 16]> {
        let mut found = SmallVec::new();
        for adapter in self.running.iter().map(|&index| self.adapter(index)) {
            if adapter != NO_ADAPTER && !found.contains(&adapter) {
                found.push(adapter);
            }
        }
        found
    }

    fn adapter(&self, index: u32) -> u32 {
        let request = self.sequences[index].request();
        request.map_or(NO_ADAPTER, |request| self.requests[request].adapter)
    }

    /// Whether the whole of a waiting sequence fits beside the `owed` blocks that running prefills still take. Its
    /// cached blocks are left in `found`.
    pub(super) fn fits(&self, index: u32, owed: u32, found: &mut PrefixMatch) -> bool {
        let sequence = &self.sequences[index];
        let Some(request) = sequence.request() else { return false };
        let request = &self.requests[request];
        // The last token is always computed, for its logits; so are prompt rows that are still to be reported.
        let limit = if request.owes_prompt_rows() {
            request.reported.min(sequence.len() - 1)
        } else {
            sequence.len() - 1
        };
        self.cache.find_prefix(request.namespace, &sequence.tokens, limit, found);
        let live_hits = found.num_blocks() - found.idle_blocks();
        // Slack in large pools: else the next decodes could preempt at once what starts now.
        let slack = (self.running.len() as u32).min(self.config.num_blocks / 64);
        let needed = self.prefill_blocks(index) - live_hits;
        u64::from(needed) + u64::from(owed) + u64::from(slack) <= u64::from(self.cache.available())
    }

    /// Moves a waiting sequence to the running ones, with its cached blocks.
    fn start(&mut self, index: u32, found: &PrefixMatch, actions: &mut Actions) {
        let sequence = &mut self.sequences[index];
        let Some(owner) = sequence.request() else { return };
        let request = &mut self.requests[owner];
        sequence.table = self.cache.start_table(request.namespace, found);
        sequence.table.reserve(request.max_len.div_ceil(self.config.block_size));
        if !request.started {
            request.started = true;
            self.unstarted -= 1;
            actions.started.push(Started { request: request.id, cached_tokens: sequence.table.computed() });
        }
        self.waiting.remove(sequence.key);
        self.run(index);
    }
}
