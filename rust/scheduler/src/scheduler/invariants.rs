//! The scheduler's invariants, checked in full. Costs O(everything); for tests and simulations.

use std::collections::BTreeMap;

use octavo_cache::PrefixMatch;

use super::Scheduler;
use super::admission::MAX_SKIPPED;
use crate::event::Actions;
use crate::request::SeqState;

impl Scheduler {
    /// Checks every invariant between two calls of [`Scheduler::step`].
    ///
    /// # Panics
    /// With the broken invariant, if there is one.
    pub fn check_invariants(&self) {
        let tables = |ended: bool| {
            let sequences = self.sequences.values().filter(move |s| (s.state == SeqState::Ended) == ended);
            sequences.map(|s| &s.table)
        };
        self.cache.check_tables(tables(false).chain(&self.checking), tables(true));
        for request in self.requests.values() {
            let held = request.pack.is_some_and(|pack| !self.cache.pack_blocks(pack).is_empty());
            let needed = request.needed - if held { request.shared } else { 0 };
            let most = self.config.num_blocks - self.cache.pinned_blocks();
            assert!(needed <= most, "request {} cannot run beside the packs", request.id);
        }
        self.cache.check_namespaces(self.requests.values().map(|r| r.namespace));
        assert_eq!(self.ids.len(), self.requests.len(), "each id names a request");
        let mut owned = 0;
        let mut unstarted = 0;
        for request in self.requests.values() {
            assert!(self.ids.contains_key(&request.id));
            assert!(!request.sequences.is_empty(), "request {} has ended and is still here", request.id);
            owned += request.sequences.len();
            unstarted += u32::from(!request.started);
            for &index in &request.sequences {
                let sequence = &self.sequences[index];
                assert_eq!(sequence.id, request.id);
                let len = sequence.tokens.len() as u32;
                assert!(len < request.max_len, "request {} should have ended", request.id);
                let idle = sequence.remaining() == 0 && sequence.in_flight == 0;
                assert!(!idle, "request {} has nothing to compute", request.id);
            }
        }
        assert_eq!(unstarted, self.unstarted, "requests that never ran are counted");
        let ended = self.sequences.values().filter(|s| s.state == SeqState::Ended).count();
        assert_eq!(owned + ended, self.sequences.len(), "each sequence has a request or is about to go");
        assert!(
            self.sequences.values().all(|s| s.state != SeqState::Ended || s.in_flight > 0),
            "a sequence outlived its request and its step"
        );
        self.check_lists(owned);
        if self.is_idle() {
            let live = self.cache.stats().live_blocks;
            assert!(live == 0 || self.checking.is_some(), "idle, and blocks are held");
        }
    }

    fn check_lists(&self, owned: usize) {
        let listed = self.running.len() + (self.waiting.len() + self.held) as usize;
        assert_eq!(listed, owned, "each sequence is in one list");
        let held = self.sequences.values().filter(|s| s.state == SeqState::Held).count();
        assert_eq!(held as u32, self.held, "held sequences are counted");
        for pair in self.running.windows(2) {
            assert!(
                self.sequences[pair[0]].key < self.sequences[pair[1]].key,
                "the running list is in order"
            );
        }
        let slots: u32 = self.running.iter().map(|&s| self.sequences[s].num_samples).sum();
        assert!(slots <= self.config.max_num_seqs, "{slots} sequences run, {} may", self.config.max_num_seqs);
        assert!(self.running.iter().all(|&s| self.sequences[s].state == SeqState::Running));
        let adapters = self.running_adapters().len();
        assert!(adapters <= self.config.max_adapters as usize, "{adapters} adapters run at once");
        for (key, index) in self.waiting.iter() {
            let sequence = &self.sequences[index];
            assert!(key == sequence.key && matches!(sequence.state, SeqState::Waiting { .. }));
            assert_eq!(sequence.in_flight, 0);
            assert!(sequence.table.blocks().is_empty(), "a waiting sequence holds blocks");
        }
        self.check_in_flight();
        assert!(
            self.deadlines.len() == self.requests.values().filter(|r| r.deadline_us.is_some()).count(),
            "a deadline outlived its request"
        );
        // Without this, waiting requests could wait for ever.
        assert!(
            !self.in_flight.is_empty() || self.requests.len() == self.held as usize,
            "requests are here and no step was planned"
        );
    }

    fn check_in_flight(&self) {
        assert!(self.in_flight.len() <= 2);
        let steps = self.in_flight.iter().map(|s| s.step);
        assert!(steps.is_sorted_by(|a, b| a < b), "steps are in flight in their order");
        let ahead = self.in_flight.front().is_some_and(|s| s.async_next);
        assert!(self.in_flight.len() < 2 || ahead, "a plan came while a step was in flight");
        let mut sums: BTreeMap<u32, (u32, u32, u32)> = BTreeMap::new();
        for step in &self.in_flight {
            assert!(!step.seqs.is_empty(), "a step without sequences is in flight");
            for seq in &step.seqs {
                let (steps, computing, placeholders) = sums.entry(seq.sequence).or_default();
                (*steps, *computing) = (*steps + 1, *computing + seq.query_len);
                *placeholders += if step.async_next { seq.num_samples } else { 0 };
            }
        }
        let mut flying = 0;
        for (index, sequence) in self.sequences.iter() {
            let sum = sums.get(&index).copied().unwrap_or_default();
            let own = (sequence.in_flight, sequence.computing, sequence.placeholders);
            assert_eq!(own, sum, "what is in flight of request {}", sequence.id);
            flying += usize::from(sequence.in_flight > 0);
            let needed = sequence.scheduled().div_ceil(self.config.block_size);
            assert!(
                sequence.in_flight == 0 || sequence.table.blocks().len() as u32 >= needed,
                "a step in flight writes into blocks that were given back"
            );
        }
        assert_eq!(flying, sums.len(), "a step in flight computes a sequence that is gone");
    }

    /// Checks a plan just made: the first sequence in the order progresses, each started request fits whole, and no
    /// sequence waits that could start. `admitted`: the plan admitted waiting sequences.
    ///
    /// # Panics
    /// With the broken promise, if there is one.
    pub(super) fn check_plan(&self, admitted: bool, actions: &Actions) {
        let first = self.running.first();
        assert!(
            self.draining_pipeline || first.is_none_or(|&s| self.sequences[s].in_flight > 0),
            "the first in the order stands still"
        );
        if !admitted {
            return;
        }
        let (samples, owed) = self.reserved();
        let available = self.cache.available();
        assert!(
            actions.started.is_empty() || owed <= available,
            "a request is partly reserved: {owed} blocks are owed, {available} are there"
        );
        if actions.plan.tokens.len() as u32 >= self.config.max_num_batched_tokens {
            return;
        }
        let mut found = PrefixMatch::default();
        for (_, index) in self.waiting.iter().take(MAX_SKIPPED) {
            let sequence = &self.sequences[index];
            let starts =
                samples + sequence.num_samples <= self.config.max_num_seqs && self.adapter_fits(index);
            assert!(
                !(starts && self.fits(index, owed, &mut found)),
                "request {} fits and waits",
                sequence.id
            );
            if !self.may_be_overtaken(index) {
                break;
            }
        }
    }
}
