//! Packs: texts whose blocks stay in the cache, beside the requests that begin with them.
//!
//! What packs hold is lost to requests. A pack is refused if with it an accepted request, or one of `max_model_len`,
//! could no longer run alone. From then on a request counts the pinned blocks when it is checked. The blocks of the pack
//! that it begins with are no cost to it.
//!
//! Packs are held and released between steps. If running sequences hold the blocks that a pack needs, the last ones in
//! the order are preempted.

use thiserror::Error;

use super::Scheduler;
use crate::batch::BatchBuilder;
use crate::event::{Actions, NewRequest};
use crate::plan::{AttentionPolicy, NO_ADAPTER, Output, StepPlan};
use crate::rejection::Rejection;
use crate::request::{Key, Request, Sequence};

/// Why a pack is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PackRefusal {
    /// Requests could no longer run beside it.
    #[error(
        "the pack needs {needed} KV blocks of {num_blocks}; packs hold {pinned}, and a request may need {longest}; unload \
         a pack, lower max_model_len, or give the cache more memory"
    )]
    NoRoom {
        /// Blocks of the pack.
        needed: u32,
        /// Blocks of the cache.
        num_blocks: u32,
        /// Blocks that other packs hold.
        pinned: u32,
        /// Blocks that a request may need.
        longest: u32,
    },
    /// A step is in flight.
    #[error("a step in flight may use the KV blocks that the pack needs; try again when it is done")]
    Busy,
}

/// How a pack's content is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackTerms {
    /// The adapter, or [`NO_ADAPTER`].
    pub adapter: u32,
    /// What attention may omit.
    pub attention: AttentionPolicy,
}

impl Default for PackTerms {
    fn default() -> Self {
        Self { adapter: NO_ADAPTER, attention: AttentionPolicy::DENSE }
    }
}

impl Scheduler {
    /// Takes blocks for a pack of these `tokens`, whole blocks of them. Their content is to be written to
    /// [`Scheduler::pack_blocks`]; [`Scheduler::finish_pack`] ends that. `id` is never used for another pack.
    ///
    /// # Errors
    /// `NoRoom`, and `Busy` while a step is in flight. Nothing has changed then.
    pub fn hold_pack(&mut self, id: u32, tokens: Vec<u32>) -> Result<(), PackRefusal> {
        let needed = tokens.len() as u32 / self.config.block_size;
        self.check_pack(needed, self.config.max_model_len.div_ceil(self.config.block_size))?;
        self.gain(needed)?;
        self.cache.hold_pack(id, tokens).map_err(|_| PackRefusal::Busy)
    }

    /// The content of a pack is there: requests can begin with it.
    pub fn finish_pack(&mut self, id: u32) {
        self.cache.finish_pack(id);
    }

    /// Lets a pack go. Requests that begin with it go on, and compute what is no longer in the cache.
    pub fn release_pack(&mut self, id: u32) {
        self.cache.release_pack(id);
    }

    /// The blocks of a pack, in order; empty if it is not held.
    pub fn pack_blocks(&self, id: u32) -> &[u32] {
        self.cache.pack_blocks(id)
    }

    /// Holds the cached blocks of `tokens`, whole blocks that a request with these `terms` has computed, under `id`.
    /// `false`: some of them have left the cache.
    ///
    /// # Errors
    /// `NoRoom` if an accepted request could no longer run. New requests find less room until the blocks are released.
    pub fn hold_cached(&mut self, id: u32, tokens: &[u32], terms: PackTerms) -> Result<bool, PackRefusal> {
        self.check_pack(tokens.len() as u32 / self.config.block_size, 0)?;
        let namespace = self.cache.intern_namespace(None, terms.adapter, terms.attention.bits());
        let held = self.cache.hold_cached(id, namespace, tokens);
        self.cache.release_namespace(namespace);
        Ok(held)
    }

    /// A plan that computes block `block` of a held pack again, from the blocks before it, and where. Not a step: it
    /// has no results. [`Scheduler::end_check`] gives the block back.
    ///
    /// # Errors
    /// `Busy` while a step is in flight.
    pub fn plan_check(
        &mut self,
        id: u32,
        block: u32,
        terms: PackTerms,
    ) -> Result<(StepPlan, u32), PackRefusal> {
        debug_assert!(self.checking.is_none(), "two checks at once");
        self.gain(1)?;
        let (start, size) = (block * self.config.block_size, self.config.block_size);
        let tokens = self.cache.pack_tokens(id)[..(start + size) as usize].to_vec();
        let key = Key { priority: 0, arrival: 0, sample: 0 };
        let mut sequence = Sequence::new(0, 0, key, tokens, 1);
        sequence.table = self.cache.fork_pack(id, block);
        let request = Request::of_pack(start + size, terms);
        self.cache.recycle_open_blocks();
        let mut batch = BatchBuilder::new(StepPlan::default(), Vec::new(), 0, size, size);
        let pushed = batch.push(&mut self.cache, 0, &mut sequence, &request, size);
        let (mut plan, _) = batch.finish(self.cache.num_open_blocks());
        let last = sequence.table.blocks().last().copied();
        self.checking = Some(sequence.table);
        match last.filter(|_| pushed) {
            Some(last) => {
                // Neither logits nor hidden states are wanted.
                plan.seqs.iter_mut().for_each(|seq| seq.sample_rows = [0, 0]);
                Ok((plan, last))
            }
            None => {
                self.end_check();
                Err(PackRefusal::Busy)
            }
        }
    }

    /// Gives back what [`Scheduler::plan_check`] took.
    pub fn end_check(&mut self) {
        if let Some(mut table) = self.checking.take() {
            self.cache.release(&mut table);
        }
    }

    /// Blocks of its pack that a request begins with; 0 if it has none.
    pub(super) fn shared_blocks(&self, new: &NewRequest) -> u32 {
        let Some(pack) = new.pack.filter(|&pack| self.cache.pack_begins(pack, &new.prompt)) else { return 0 };
        // Prompt rows with logits are all computed, the last row of any prompt as well.
        let most = (new.prompt.len() as u32).saturating_sub(1) / self.config.block_size;
        if new.prompt_logits { 0 } else { most.min(self.cache.pack_blocks(pack).len() as u32) }
    }

    /// Whether a request fits beside what packs hold.
    pub(super) fn check_beside_packs(&self, new: &NewRequest) -> Result<(), Rejection> {
        let pinned_blocks = self.cache.pinned_blocks();
        if pinned_blocks == 0 {
            return Ok(());
        }
        let (num_blocks, all) = (self.config.num_blocks, self.config.needed_blocks(new));
        let needed_blocks = all - u64::from(self.shared_blocks(new));
        if needed_blocks > u64::from(num_blocks - pinned_blocks) {
            return Err(Rejection::NoRoomBesidePacks { needed_blocks, num_blocks, pinned_blocks });
        }
        Ok(())
    }

    /// Whether all that was accepted, and a request of `longest` blocks, could run beside `needed` more pinned blocks.
    fn check_pack(&self, needed: u32, longest: u32) -> Result<(), PackRefusal> {
        let (num_blocks, pinned) = (self.config.num_blocks, self.cache.pinned_blocks());
        let held = |pack: &Option<u32>| pack.is_some_and(|pack| !self.cache.pack_blocks(pack).is_empty());
        let needs = |r: &Request| r.needed - if held(&r.pack) { r.shared } else { 0 };
        let longest = self.requests.values().map(needs).max().unwrap_or(0).max(longest);
        let all = u64::from(needed) + u64::from(pinned) + u64::from(longest);
        if all > u64::from(num_blocks) {
            return Err(PackRefusal::NoRoom { needed, num_blocks, pinned, longest });
        }
        Ok(())
    }

    /// Makes `blocks` blocks available, by preemption from the end of the order. A step in flight may still read blocks that
    /// are free: their content stays until it is done.
    fn gain(&mut self, blocks: u32) -> Result<(), PackRefusal> {
        if !self.in_flight.is_empty() {
            return Err(PackRefusal::Busy);
        }
        let mut actions = Actions::default();
        while self.cache.available() < blocks {
            let Some(&victim) = self.running.last() else { return Err(PackRefusal::Busy) };
            self.preempt(victim, &mut actions);
        }
        Ok(())
    }
}

impl Request {
    /// A stand-in for the request that computes a pack's block.
    fn of_pack(len: u32, terms: PackTerms) -> Self {
        Self {
            id: 0,
            prompt_len: len,
            max_len: len + 1,
            deadline_us: None,
            namespace: Default::default(),
            pack: None,
            needed: 0,
            shared: 0,
            adapter: terms.adapter,
            attention: terms.attention,
            prompt_logits: false,
            output: Output::Hidden,
            reported: 0,
            started: true,
            sequences: Default::default(),
        }
    }
}
