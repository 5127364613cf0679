//! The scheduler's invariants, checked in full. Costs O(everything); for tests and simulations.

use octavo_cache::PrefixMatch;

use crate::admission::{MAX_BYPASS, MAX_SKIPPED};
use crate::event::Actions;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Checks every invariant between two calls of [`Scheduler::step`].
    ///
    /// # Panics
    /// With the broken invariant, if there is one.
    pub fn check_invariants(&self) {
        self.cache.check_invariants(self.sequences.values().map(|s| &s.table));
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
                assert!(sequence.len() < request.max_len, "request {} should have ended", request.id);
                assert!(sequence.remaining() >= 1, "request {} has nothing to compute", request.id);
            }
        }
        assert_eq!(unstarted, self.unstarted, "requests that never ran are counted");
        let ended = self.sequences.values().filter(|s| s.request.is_none()).count();
        assert_eq!(owned + ended, self.sequences.len(), "each sequence has a request or is about to go");
        assert!(
            self.sequences.values().all(|s| s.request.is_some() || s.in_flight),
            "a sequence outlived its request and its step"
        );
        self.check_lists(owned);
        if self.is_idle() {
            assert_eq!(self.cache.stats().live_blocks, 0, "idle, and blocks are held");
        }
    }

    fn check_lists(&self, owned: usize) {
        assert_eq!(self.running.len() + self.waiting.len() as usize, owned, "each sequence is in one list");
        for pair in self.running.windows(2) {
            assert!(
                self.sequences[pair[0]].key < self.sequences[pair[1]].key,
                "the running list is in order"
            );
        }
        let slots: u32 = self.running.iter().map(|&s| self.sequences[s].forks).sum();
        assert!(slots <= self.config.max_num_seqs, "{slots} sequences run, {} may", self.config.max_num_seqs);
        assert!(
            self.running.iter().all(|&s| self.sequences[s].running && self.sequences[s].request.is_some())
        );
        for (key, index) in self.waiting.iter() {
            let sequence = &self.sequences[index];
            assert!(key == sequence.key && !sequence.running && !sequence.in_flight);
            assert!(sequence.table.blocks().is_empty(), "a waiting sequence holds blocks");
        }
        for flight in &self.in_flight {
            let table = &self.sequences[flight.sequence].table;
            let needed = (table.computed() + flight.query_len).div_ceil(self.config.block_size);
            assert!(
                table.blocks().len() as u32 >= needed,
                "a step in flight writes into blocks that were given back"
            );
        }
        assert!(
            self.deadlines.len() == self.requests.values().filter(|r| r.deadline_us.is_some()).count(),
            "a deadline outlived its request"
        );
        let in_flight = self.sequences.values().filter(|s| s.in_flight).count();
        assert_eq!(in_flight, self.in_flight.len(), "the step in flight is known");
        assert_eq!(self.in_flight_step.is_some(), in_flight > 0, "a step is in flight or not");
        // Without this, waiting requests could wait for ever.
        assert!(
            self.in_flight_step.is_some() || self.requests.len() == 0,
            "requests are here and no step was planned"
        );
    }

    /// Checks a plan just made: the first in the order gets on, whoever is new fits whole, and nobody waits who could
    /// be started. `admitted`:
    /// admission had its turn.
    ///
    /// # Panics
    /// With the broken promise, if there is one.
    pub(crate) fn check_plan(&self, admitted: bool, actions: &Actions) {
        let first = self.running.first();
        assert!(first.is_none_or(|&s| self.sequences[s].in_flight), "the first in the order stands still");
        if !admitted {
            return;
        }
        let (mut slots, mut owed) = (0, 0);
        for &index in &self.running {
            let sequence = &self.sequences[index];
            slots += sequence.forks;
            owed += self.prefill_blocks(index).saturating_sub(sequence.table.blocks().len() as u32);
        }
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
            let starts = slots + sequence.forks <= self.config.max_num_seqs;
            assert!(
                !(starts && self.fits(index, owed, &mut found)),
                "request {} fits and waits",
                sequence.id
            );
            if sequence.preempted || sequence.bypassed >= MAX_BYPASS {
                break;
            }
        }
    }
}
