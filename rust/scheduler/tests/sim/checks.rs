//! What must hold after each call and at the end, seen from outside. The invariants inside are the scheduler's own.

use std::collections::BTreeSet;

use octavo_scheduler::{
    Actions, EndReason, NO_ADAPTER, NewRequest, Output, PlanSeq, Rejection, StepPlan, max_open_blocks,
};

use super::oracle;
use super::simulation::Simulation;

/// How often a request may be overtaken in the queue, as the scheduler promises.
const MAX_BYPASS: u32 = 8;

impl Simulation {
    /// Checks one call's actions. `cancelled`: requests that were told to end in this call.
    pub(super) fn check(&mut self, actions: &Actions, cancelled: &BTreeSet<u64>) {
        let plan = &actions.plan;
        self.check_ahead(plan);
        assert!(plan.tokens.len() as u32 <= self.config.max_num_batched_tokens, "the step is over budget");
        assert!(plan.seqs.len() as u32 <= self.config.max_num_seqs, "too many sequences in the step");
        let adapters = plan.seqs.iter().map(|s| s.adapter).filter(|&a| a != NO_ADAPTER);
        let adapters = adapters.collect::<BTreeSet<_>>().len();
        assert!(adapters <= self.config.max_adapters as usize, "{adapters} adapters in one step");
        let cap = self.config.prefill_chunk.unwrap_or(u32::MAX);
        assert!(plan.seqs.iter().all(|s| s.query_len >= 1 && s.query_len <= cap), "a chunk is over its cap");
        for finished in &actions.finished {
            let name = (finished.request, finished.sample);
            assert!(finished.sample < self.requests[&finished.request].n, "{name:?} was never asked for");
            assert!(self.finished.insert(name, finished.reason).is_none(), "{name:?} ended twice");
        }
        for &(id, rejection) in &actions.rejected {
            assert!(self.rejected.insert(id), "{id} was rejected twice");
            self.check_rejection(id, rejection);
        }
        for started in &actions.started {
            let request = &self.requests[&started.request];
            assert!((started.cached_tokens as usize) < request.prompt.len(), "the last token is computed");
            assert!(!request.prompt_logits || started.cached_tokens == 0, "prompt logits need every row");
            assert!(self.started.insert(started.request), "{} started twice", started.request);
            self.count_bypass(started.request);
        }
        self.copies += plan.copies.len() as u64;
        self.open_copies += plan.open_copies.len() as u64;
        self.sealed += plan.sealed.len() as u64;
        let c = &self.config;
        let max = max_open_blocks(c.max_num_seqs, c.max_num_batched_tokens, c.block_size);
        assert!(plan.num_open_blocks <= max, "{} open blocks, {max} at most", plan.num_open_blocks);
        for seq in &plan.seqs {
            let name = (seq.request, seq.sample);
            assert!(!self.finished.contains_key(&name), "{name:?} runs after its end");
            assert!(seq.sample_rows().len() <= 1 || self.requests[&seq.request].prompt_logits);
            assert_eq!(seq.output, self.requests[&seq.request].output);
        }
        for &id in cancelled {
            assert!(self.has_ended(id), "request {id} goes on after its cancellation");
        }
        for (&id, request) in &self.requests {
            if request.deadline_us.is_some_and(|deadline| deadline <= self.now_us) {
                assert!(self.has_ended(id), "request {id} goes on after its deadline");
            }
        }
    }

    /// A plan comes while a step is in flight only if that was allowed, and awaits tokens only of sequences that draw one.
    fn check_ahead(&self, plan: &StepPlan) {
        assert!(self.in_flight.len() < 2 || plan.is_empty(), "a third step was planned");
        let ahead_of = self.in_flight.back();
        let allowed = ahead_of.is_none_or(|step| self.ahead_of == Some(step.step));
        assert!(allowed || plan.is_empty(), "a plan came while a step was in flight");
        for &[row, place] in &plan.placeholders {
            let before = &ahead_of.expect("a step to await tokens of").seqs[place as usize];
            let ends = |seq: &&PlanSeq| row + 1 == seq.query_start + seq.query_len;
            let seq = plan.seqs.iter().find(ends).expect("the last row of a sequence awaits");
            assert_eq!((seq.request, seq.sample, 1), (before.request, before.sample, before.num_samples));
            assert_eq!(seq.context_len, before.context_len + 1, "a placeholder follows what samples it");
            let request = &self.requests[&seq.request];
            let longest = request.prompt.len() as u32 + request.max_tokens;
            assert!(
                seq.context_len < longest.min(self.config.max_model_len),
                "a placeholder is the last token, and more is computed behind it"
            );
        }
    }

    pub(super) fn has_ended(&self, id: u64) -> bool {
        let n = self.requests[&id].n;
        self.rejected.contains(&id) || (0..n).all(|s| self.finished.contains_key(&(id, s)))
    }

    fn check_rejection(&self, id: u64, rejection: Rejection) {
        let request = &self.requests[&id];
        let prompt_len = request.prompt.len() as u32;
        let alone = match request.output {
            Output::Tokens => self.config.check(prompt_len, request.n, request.max_tokens),
            Output::Hidden => self.config.check_hidden(prompt_len),
        };
        match rejection {
            Rejection::QueueFull { waiting, max_queue } => {
                let unstarted = |id: &&u64| !self.started.contains(id) && !self.rejected.contains(id);
                let most = self.requests.keys().filter(unstarted).count() as u32;
                assert!(waiting >= max_queue && waiting <= most, "{waiting} cannot wait, {most} could");
            }
            Rejection::Draining => {}
            Rejection::NoRoomBesidePacks { needed_blocks, num_blocks, pinned_blocks } => {
                assert!(alone.is_ok(), "{id} could never run");
                assert!(needed_blocks + u64::from(pinned_blocks) > u64::from(num_blocks), "{id} fits");
            }
            other => assert_eq!(Err(other), alone, "{id} is rejected for no reason of its own"),
        }
    }

    /// Counts the requests that `id` overtakes at its start: earlier ones that wait.
    fn count_bypass(&mut self, id: u64) {
        let order = |r: &NewRequest| Some((r.priority, *self.arrivals.get(&r.id)?));
        let own = order(&self.requests[&id]);
        let held = |id: u64| self.adapters.as_ref().is_some_and(|a| a.held.contains(&id));
        let waits = |r: &&NewRequest| !self.started.contains(&r.id) && !self.has_ended(r.id) && !held(r.id);
        let before = |r: &&NewRequest| order(r).is_some_and(|o| Some(o) < own);
        let overtaken: Vec<u64> = self.requests.values().filter(before).filter(waits).map(|r| r.id).collect();
        for other in overtaken {
            let count = self.bypassed.entry(other).or_insert(0);
            *count += 1;
            assert!(*count <= MAX_BYPASS, "request {other} is overtaken for ever");
        }
    }

    /// Times that a waiting request was overtaken.
    pub fn overtaken(&self) -> u64 {
        self.bypassed.values().map(|&count| u64::from(count)).sum()
    }

    /// Samples that ended with an error, an abort, a timeout.
    pub fn ends(&self) -> [u64; 3] {
        let count = |reason| self.finished.values().filter(|&&r| r == reason).count() as u64;
        [count(EndReason::Error), count(EndReason::Abort), count(EndReason::Timeout)]
    }

    /// The ids of all requests submitted.
    pub fn request_ids(&self) -> Vec<u64> {
        self.requests.keys().copied().collect()
    }

    pub(super) fn check_end(&mut self) {
        for (&id, request) in &self.requests {
            if self.rejected.contains(&id) {
                let ran = (0..request.n).any(|s| self.finished.contains_key(&(id, s)));
                assert!(!ran, "{id} was rejected and ran");
                continue;
            }
            for sample in 0..request.n {
                self.check_sample(request, sample);
            }
        }
        if let Some(adapters) = &mut self.adapters {
            adapters.check_end();
        }
        let stats = self.scheduler.stats();
        let cache = stats.cache;
        assert_eq!(cache.free_blocks + cache.cached_blocks, cache.num_blocks, "blocks are held at the end");
        assert!(
            self.features.preemption || self.denied || stats.preemptions == 0,
            "preempted though all fit"
        );
    }

    /// The sample has what it must generate, or was told to end early and has a beginning of that.
    fn check_sample(&self, request: &NewRequest, sample: u32) {
        let id = request.id;
        let name = (id, sample);
        let reason = *self.finished.get(&name).unwrap_or_else(|| panic!("{name:?} never ended"));
        let received = self.received.get(&name).map_or(&[][..], Vec::as_slice);
        let (tokens, end) =
            oracle::answer(request, sample, self.config.max_model_len, self.features.stop_one_in);
        let excused = match reason {
            EndReason::Stop | EndReason::Length => {
                let (got, expected) = ((received, reason), (&tokens[..], end));
                assert_eq!(got, expected, "{name:?} differs from its answer alone");
                let reported = self.executor.reported.get(&id).copied().unwrap_or(0);
                let rows = if request.prompt_logits { request.prompt.len() as u32 } else { 0 };
                assert_eq!(reported, rows, "prompt rows reported for {id}");
                let last_rows = self.executor.last_rows.get(&id).copied().unwrap_or(0);
                let hidden = u32::from(request.output == Output::Hidden);
                assert_eq!(last_rows, hidden, "hidden states of the last prompt token of {id}");
                return;
            }
            EndReason::Abort => self.cancelled.contains(&id),
            EndReason::Timeout => request.deadline_us.is_some_and(|deadline| deadline <= self.now_us),
            EndReason::Error => self.failed.contains(&id),
        };
        assert!(excused, "{name:?} ended with {reason:?} and had no part in it");
        assert!(tokens.starts_with(received), "{name:?} left the path of its answer");
    }
}
