//! A scheduler with an executor that never fails and never stops, unless a test says so.

use octavo_scheduler::{
    Actions, AttentionPolicy, EndReason, Event, NO_ADAPTER, NewRequest, NextToken, Output, RequestId,
    Scheduler, SchedulerConfig, SeqResult, StepPlan,
};

pub const CONFIG: SchedulerConfig = SchedulerConfig {
    num_blocks: 64,
    block_size: 4,
    max_num_seqs: 8,
    max_adapters: 8,
    max_num_batched_tokens: 64,
    max_model_len: 64,
    max_queue: 32,
    enable_prefix_caching: true,
    prefill_chunk: None,
    hash_seed: 0,
    hash_bits: 128,
    open_blocks: false,
};

pub struct Harness {
    pub scheduler: Scheduler,
    pub actions: Actions,
    /// The plan in flight; empty if there is none.
    pub plan: StepPlan,
    pub now_us: u64,
}

/// A request with a prompt that shares no block with another id's.
pub fn request(id: RequestId, prompt_len: u32, max_tokens: u32) -> NewRequest {
    NewRequest {
        id,
        prompt: (0..prompt_len).map(|i| 1000 * (id as u32 + 1) + i).collect(),
        n: 1,
        max_tokens,
        priority: 0,
        deadline_us: None,
        salt: None,
        adapter: NO_ADAPTER,
        held: false,
        attention: AttentionPolicy::DENSE,
        pack: None,
        prompt_logits: false,
        output: Output::Tokens,
    }
}

impl Harness {
    pub fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config).expect("sound limits");
        Self { scheduler, actions: Actions::default(), plan: StepPlan::default(), now_us: 0 }
    }

    /// One call with these events.
    pub fn step(&mut self, mut events: Vec<Event>) -> &Actions {
        let in_flight = self.plan.step;
        if events.iter().any(|e| matches!(e, Event::StepDone { step, .. } if *step == in_flight)) {
            self.plan.clear();
        }
        self.scheduler.step(self.now_us, &mut events, &mut self.actions);
        if !self.actions.plan.is_empty() {
            self.plan = self.actions.plan.clone();
        }
        self.scheduler.check_invariants();
        &self.actions
    }

    pub fn submit(&mut self, requests: impl IntoIterator<Item = NewRequest>) -> &Actions {
        self.step(requests.into_iter().map(Event::Submit).collect())
    }

    /// Ends `plan`, every sample with a token of its own and no stop.
    pub fn done(plan: &StepPlan) -> Event {
        Self::done_with(plan, |_, sample| NextToken { token: sample, stop: false })
    }

    /// Ends `plan`; `next` gives the token of a (request, sample).
    pub fn done_with(plan: &StepPlan, next: impl Fn(RequestId, u32) -> NextToken) -> Event {
        let results = plan.seqs.iter().map(|seq| match seq.num_samples {
            0 => SeqResult::Prefilled,
            num_samples => SeqResult::Tokens(
                (seq.sample..seq.sample + num_samples).map(|s| next(seq.request, s)).collect(),
            ),
        });
        Event::StepDone { step: plan.step, results: results.collect() }
    }

    /// Ends the plan in flight and makes the next one.
    pub fn advance(&mut self) -> &Actions {
        assert!(!self.plan.is_empty(), "nothing is in flight");
        let done = Self::done(&self.plan);
        self.step(vec![done])
    }

    /// Advances until nothing is planned; returns the ends as (request, sample, reason) in their order.
    pub fn run(&mut self) -> Vec<(RequestId, u32, EndReason)> {
        let mut ends = Vec::new();
        while !self.plan.is_empty() {
            self.advance();
            ends.extend(self.actions.finished.iter().map(|f| (f.request, f.sample, f.reason)));
        }
        assert!(self.scheduler.is_idle());
        ends
    }

    /// (request, sample, tokens) of the plan in flight.
    pub fn batch(&self) -> Vec<(RequestId, u32, u32)> {
        self.plan.seqs.iter().map(|s| (s.request, s.sample, s.query_len)).collect()
    }
}
