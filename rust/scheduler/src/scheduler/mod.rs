//! The state machine: its state, the order of a step, and the ways out of it.

mod admission;
mod invariants;
mod packs;
mod planning;
mod preemption;
mod results;

use std::collections::{BTreeSet, VecDeque};

use octavo_cache::{BlockTable, Cache, Namespace, PrefixMatch};
use rustc_hash::FxHashMap;
use smallvec::smallvec;

use crate::RequestId;
use crate::batch::{BatchBuilder, BatchSeq, StepInFlight};
use crate::config::{ConfigError, SchedulerConfig};
use crate::event::{Actions, EndReason, Event, Finished, NewRequest};
use crate::plan::Output;
use crate::queue::Queue;
use crate::rejection::Rejection;
use crate::request::{Key, Request, SeqState, Sequence};
use crate::slab::Slab;
use crate::stats::SchedulerStats;

pub use packs::{PackRefusal, PackTerms};

/// Turns requests into step plans; see the crate's text.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    cache: Cache,
    requests: Slab<Request>,
    ids: FxHashMap<RequestId, u32>,
    sequences: Slab<Sequence>,
    waiting: Queue,
    /// Sequences that hold blocks, sorted by key: the first one is served first and never preempted.
    running: Vec<u32>,
    /// `(deadline_us, request)`.
    deadlines: BTreeSet<(u64, u32)>,
    /// At most two, the oldest first.
    in_flight: VecDeque<StepInFlight>,
    /// Memory for the next steps.
    spare: Vec<Vec<BatchSeq>>,
    /// A sequence got no block in a step planned while another was in flight. The next plan waits until nothing is in
    /// flight: only then may it preempt.
    draining_pipeline: bool,
    /// Requests in the queue or held that never ran.
    unstarted: u32,
    /// Sequences that are held.
    held: u32,
    draining: bool,
    arrivals: u64,
    counters: SchedulerStats,
    /// Memory for look-ups at admission.
    found: PrefixMatch,
    /// Where a block of a pack is computed again.
    checking: Option<BlockTable>,
}

impl Scheduler {
    /// A scheduler with an empty cache.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let cache = Cache::new(config.cache())?;
        Ok(Self {
            config,
            cache,
            requests: Slab::new(),
            ids: FxHashMap::default(),
            sequences: Slab::new(),
            waiting: Queue::default(),
            running: Vec::new(),
            deadlines: BTreeSet::new(),
            in_flight: VecDeque::with_capacity(2),
            spare: Vec::with_capacity(2),
            draining_pipeline: false,
            unstarted: 0,
            held: 0,
            draining: false,
            arrivals: 0,
            counters: SchedulerStats::default(),
            found: PrefixMatch::default(),
            checking: None,
        })
    }

    /// The limits it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// [`SchedulerConfig::check`] of its limits.
    pub fn check(&self, prompt_len: u32, n: u32, max_tokens: u32) -> Result<(), crate::Rejection> {
        self.config.check(prompt_len, n, max_tokens)
    }

    /// Applies the events since the last call and the deadlines, and plans the next step if [`Event::ScheduleAsync`] or
    /// an idle executor allows it. Drains `events`; clears and fills `actions`.
    ///
    /// `now_us` is any clock that does not run backwards; only deadlines are compared with it.
    pub fn step(&mut self, now_us: u64, events: &mut Vec<Event>, actions: &mut Actions) {
        actions.clear();
        for event in events.drain(..) {
            self.apply(event, actions);
        }
        self.expire(now_us, actions);
        if self.may_plan() {
            let mut batch = self.begin_batch(actions);
            self.plan_first_prefill(&mut batch, actions);
            self.plan_decodes(&mut batch, actions);
            self.plan_prefills(&mut batch);
            self.admit(&mut batch, actions);
            self.finish_batch(batch, actions);
        }
    }

    /// Applies the events since the last call, and plans nothing. For work between two steps: behind the results of the
    /// last step nothing is in flight.
    pub fn settle(&mut self, events: &mut Vec<Event>, actions: &mut Actions) {
        actions.clear();
        for event in events.drain(..) {
            self.apply(event, actions);
        }
    }

    fn apply(&mut self, event: Event, actions: &mut Actions) {
        match event {
            Event::Submit(new) => {
                let id = new.id;
                if let Err(rejection) = self.submit(new) {
                    actions.rejected.push((id, rejection));
                }
            }
            Event::Cancel { request } => {
                if let Some(&request) = self.ids.get(&request) {
                    self.end_request(request, EndReason::Abort, actions);
                }
            }
            Event::Release { request } => self.release(request),
            Event::Fail { request } => {
                if let Some(&request) = self.ids.get(&request) {
                    self.end_request(request, EndReason::Error, actions);
                }
            }
            Event::StepDone { step, results } => self.apply_results(step, results, actions),
            Event::ScheduleAsync { step } => self.allow_async(step),
            Event::Tick => {}
            Event::Drain => self.draining = true,
        }
    }

    /// Whether nothing is left: no request, and no step in flight.
    pub fn is_idle(&self) -> bool {
        self.requests.len() == 0 && self.in_flight.is_empty()
    }

    /// Counters and the cache's state.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            waiting: self.waiting.len() + self.held,
            running: self.running.len() as u32,
            cache: self.cache.stats(),
            ..self.counters
        }
    }

    fn submit(&mut self, new: NewRequest) -> Result<(), Rejection> {
        self.validate(&new)?;
        let prompt_len = new.prompt.len() as u32;
        let (shared, needed) = (self.shared_blocks(&new), self.config.needed_blocks(&new) as u32);
        let namespace = self.intern_namespace(&new);
        let key = Key { priority: new.priority, arrival: self.arrivals, sample: 0 };
        self.arrivals += 1;
        let request = self.requests.insert(Request {
            id: new.id,
            prompt_len,
            max_len: match new.output {
                Output::Tokens => self.config.max_len(prompt_len, new.max_tokens),
                // Never reached: it ends with its prompt.
                Output::Hidden => prompt_len + 1,
            },
            deadline_us: new.deadline_us,
            namespace,
            pack: new.pack,
            needed,
            shared,
            adapter: new.adapter,
            attention: new.attention,
            prompt_logits: new.prompt_logits,
            output: new.output,
            reported: 0,
            started: false,
            sequences: smallvec![],
        });
        let mut sequence = Sequence::new(request, new.id, key, new.prompt, new.n);
        if new.held {
            sequence.state = SeqState::Held;
        }
        let sequence = self.sequences.insert(sequence);
        self.requests[request].sequences.push(sequence);
        self.ids.insert(new.id, request);
        if let Some(deadline_us) = new.deadline_us {
            self.deadlines.insert((deadline_us, request));
        }
        if new.held {
            self.held += 1;
        } else {
            self.waiting.insert(key, sequence);
        }
        self.unstarted += 1;
        Ok(())
    }

    /// Puts a held request into the queue, at the place of its submission.
    fn release(&mut self, request: RequestId) {
        let Some(&request) = self.ids.get(&request) else { return };
        for &index in &self.requests[request].sequences {
            let sequence = &mut self.sequences[index];
            if sequence.state == SeqState::Held {
                sequence.state = SeqState::Waiting { preempted: false, bypassed: 0 };
                self.held -= 1;
                self.waiting.insert(sequence.key, index);
            }
        }
    }

    /// The namespace of a request's cached blocks, held until the request ends.
    fn intern_namespace(&mut self, new: &NewRequest) -> Namespace {
        let attention = new.attention.bits();
        if let Some(pack) = new.pack.filter(|&pack| self.cache.pack_begins(pack, &new.prompt)) {
            return self.cache.attach_namespace(pack, new.salt.as_deref(), new.adapter, attention);
        }
        self.cache.intern_namespace(new.salt.as_deref(), new.adapter, attention)
    }

    /// Ends the requests whose deadline has come.
    fn expire(&mut self, now_us: u64, actions: &mut Actions) {
        while let Some(&(deadline_us, request)) = self.deadlines.first()
            && deadline_us <= now_us
        {
            self.end_request(request, EndReason::Timeout, actions);
        }
    }

    /// Ends all samples of a request that have not ended yet.
    fn end_request(&mut self, request: u32, reason: EndReason, actions: &mut Actions) {
        let sequences = std::mem::take(&mut self.requests[request].sequences);
        for sequence in sequences {
            for sample in self.sequences[sequence].samples() {
                actions.finished.push(Finished { request: self.requests[request].id, sample, reason });
            }
            self.drop_sequence(sequence);
        }
        self.forget(request);
    }

    /// Ends one sample, and its request if it was the last one.
    fn end_sample(&mut self, sequence: u32, reason: EndReason, actions: &mut Actions) {
        let Sequence { id, key, .. } = self.sequences[sequence];
        let Some(request) = self.sequences[sequence].request() else { return };
        actions.finished.push(Finished { request: id, sample: key.sample, reason });
        self.drop_sequence(sequence);
        self.requests[request].sequences.retain(|&mut s| s != sequence);
        if self.requests[request].sequences.is_empty() {
            self.forget(request);
        }
    }

    /// Takes a sequence out of its list. Its blocks are freed when no step in flight uses them.
    fn drop_sequence(&mut self, index: u32) {
        let sequence = &mut self.sequences[index];
        match std::mem::replace(&mut sequence.state, SeqState::Ended) {
            SeqState::Running => self.stop_running(index),
            SeqState::Waiting { .. } => self.waiting.remove(sequence.key),
            SeqState::Held => self.held -= 1,
            SeqState::Ended => {}
        }
        self.free_unless_in_flight(index);
    }

    /// Frees the blocks and the record of an ended sequence once no step uses them.
    fn free_unless_in_flight(&mut self, index: u32) {
        if self.sequences[index].in_flight == 0
            && let Some(mut sequence) = self.sequences.remove(index)
        {
            self.cache.release(&mut sequence.table);
        }
    }

    /// Allows the next plan while this step is in flight, unless the step splits a sequence into samples.
    fn allow_async(&mut self, step: u64) {
        if let [only] = self.in_flight.make_contiguous()
            && only.step == step
            && only.seqs.iter().all(|seq| seq.num_samples <= 1)
        {
            only.async_next = true;
            for seq in &only.seqs {
                self.sequences[seq.sequence].placeholders = seq.num_samples;
            }
        }
    }

    fn may_plan(&self) -> bool {
        match self.in_flight.len() {
            0 => true,
            1 => self.in_flight[0].async_next && !self.draining_pipeline,
            _ => false,
        }
    }

    /// An empty batch. Open blocks that the last plan gave back are available to it.
    fn begin_batch(&mut self, actions: &mut Actions) -> BatchBuilder {
        self.cache.recycle_open_blocks();
        let seqs = self.spare.pop().unwrap_or_default();
        let plan = std::mem::take(&mut actions.plan);
        let step = self.counters.steps + 1;
        BatchBuilder::new(plan, seqs, step, self.config.max_num_batched_tokens, self.config.block_size)
    }

    /// Hands the plan out and puts the step in flight, if the batch has sequences.
    fn finish_batch(&mut self, batch: BatchBuilder, actions: &mut Actions) {
        let stalled = batch.stalled;
        self.draining_pipeline = stalled && !self.in_flight.is_empty();
        let (plan, step) = batch.finish(self.cache.num_open_blocks());
        actions.plan = plan;
        if cfg!(debug_assertions) {
            self.check_plan(!stalled && actions.preempted == 0, actions);
        }
        if step.seqs.is_empty() {
            self.spare.push(step.seqs);
            return;
        }
        let sampling = step.seqs.iter().filter(|seq| seq.num_samples > 0).count() as u64;
        self.in_flight.push_back(step);
        let (seqs, tokens) = (actions.plan.seqs.len() as u32, actions.plan.tokens.len() as u32);
        let counters = &mut self.counters;
        counters.steps += 1;
        counters.prefilled_tokens += u64::from(tokens) - sampling;
        counters.max_batch_seqs = counters.max_batch_seqs.max(seqs);
        counters.max_batch_tokens = counters.max_batch_tokens.max(tokens);
    }

    /// Puts a sequence into the running list, at its place in the order.
    fn run(&mut self, index: u32) {
        let key = self.sequences[index].key;
        let place = self.running.partition_point(|&other| self.sequences[other].key < key);
        self.running.insert(place, index);
        self.sequences[index].state = SeqState::Running;
    }

    /// Takes a sequence out of the running list.
    fn stop_running(&mut self, index: u32) {
        if let Some(place) = self.running.iter().position(|&other| other == index) {
            self.running.remove(place);
        }
    }

    /// Drops the record of a request without sequences.
    fn forget(&mut self, index: u32) {
        let Some(request) = self.requests.remove(index) else { return };
        self.ids.remove(&request.id);
        self.cache.release_namespace(request.namespace);
        if let Some(deadline_us) = request.deadline_us {
            self.deadlines.remove(&(deadline_us, index));
        }
        self.unstarted -= u32::from(!request.started);
    }
}
