//! The state machine: its state, the order of a step, and the ways out of it.

use std::collections::{BTreeSet, VecDeque};

use octavo_cache::faults::{Fault, planted};
use octavo_cache::{BlockTable, Cache, Namespace, PrefixMatch};
use rustc_hash::FxHashMap;
use smallvec::smallvec;

use crate::RequestId;
use crate::config::{ConfigError, SchedulerConfig};
use crate::event::{Actions, Event, FinishReason, Finished, NewRequest};
use crate::plan::Output;
use crate::queue::Queue;
use crate::rejection::Rejection;
use crate::request::{Key, Request, Sequence};
use crate::results::{Flight, StepInFlight};
use crate::slab::Slab;
use crate::stats::SchedulerStats;

/// Turns requests into step plans; see the crate's text.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) cache: Cache,
    pub(crate) requests: Slab<Request>,
    pub(crate) ids: FxHashMap<RequestId, u32>,
    pub(crate) sequences: Slab<Sequence>,
    pub(crate) waiting: Queue,
    /// Sequences that hold blocks, sorted by key: the first one is served first and never preempted.
    pub(crate) running: Vec<u32>,
    /// `(deadline_us, request)`.
    pub(crate) deadlines: BTreeSet<(u64, u32)>,
    /// At most two, the oldest first.
    pub(crate) in_flight: VecDeque<StepInFlight>,
    /// What the plan being made holds so far.
    pub(crate) planned: Vec<Flight>,
    /// Memory for the next steps.
    pub(crate) spare: Vec<Vec<Flight>>,
    /// Somebody got no block in a step that was planned ahead: the next plan waits until nothing is in flight, so that it
    /// may take blocks from others.
    pub(crate) settling: bool,
    /// Requests in the queue that never ran.
    pub(crate) unstarted: u32,
    pub(crate) draining: bool,
    arrivals: u64,
    pub(crate) counters: SchedulerStats,
    /// Memory for look-ups at admission.
    pub(crate) found: PrefixMatch,
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
            planned: Vec::new(),
            spare: Vec::with_capacity(2),
            settling: false,
            unstarted: 0,
            draining: false,
            arrivals: 0,
            counters: SchedulerStats::default(),
            found: PrefixMatch::default(),
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

    /// Takes the events since the last call (`events` is drained), applies deadlines, and plans the next step unless
    /// one is in flight that is not to be planned ahead of, or two are. `actions` is cleared and filled.
    ///
    /// `now_us` is any clock that does not run backwards; only deadlines are compared with it.
    pub fn step(&mut self, now_us: u64, events: &mut Vec<Event>, actions: &mut Actions) {
        actions.clear();
        for event in events.drain(..) {
            match event {
                Event::Submit(new) => {
                    let id = new.id;
                    if let Err(rejection) = self.submit(new) {
                        actions.rejected.push((id, rejection));
                    }
                }
                Event::Cancel { .. } if !self.in_flight.is_empty() && planted(Fault::CancelLostInFlight) => {}
                Event::Cancel { request } => {
                    if let Some(&request) = self.ids.get(&request) {
                        self.end_request(request, FinishReason::Abort, actions);
                    }
                }
                Event::StepDone { step, results } => self.apply_results(step, results, actions),
                Event::ScheduleAsync { step } => self.allow_ahead(step),
                Event::Tick => {}
                Event::Drain => self.draining = true,
            }
        }
        self.expire(now_us, actions);
        if self.may_plan() {
            self.plan_step(actions);
        }
    }

    /// Whether a sequence holds this block of the cache.
    pub fn holds(&self, block: u32) -> bool {
        self.cache.refs(block) > 0
    }

    /// Whether nothing is left: no request, and no step in flight.
    pub fn is_idle(&self) -> bool {
        self.requests.len() == 0 && self.in_flight.is_empty()
    }

    /// Counters and the cache's state.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            waiting: self.waiting.len(),
            running: self.running.len() as u32,
            cache: self.cache.stats(),
            ..self.counters
        }
    }

    fn submit(&mut self, new: NewRequest) -> Result<(), Rejection> {
        if planted(Fault::NamespaceLeakedByRejection) && self.validate(&new).is_err() {
            self.intern_namespace(&new);
        }
        self.validate(&new)?;
        let prompt_len = new.prompt.len() as u32;
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
            adapter: new.adapter,
            attention: new.attention,
            prompt_logits: new.prompt_logits,
            output: new.output,
            reported: 0,
            started: false,
            sequences: smallvec![],
        });
        let sequence = Sequence::new(request, new.id, key, new.prompt, new.n, BlockTable::default());
        let sequence = self.sequences.insert(sequence);
        self.requests[request].sequences.push(sequence);
        self.ids.insert(new.id, request);
        if let Some(deadline_us) = new.deadline_us {
            self.deadlines.insert((deadline_us, request));
        }
        self.waiting.insert(key, sequence);
        self.unstarted += 1;
        Ok(())
    }

    /// The namespace of a request's cached blocks, held until the request ends.
    fn intern_namespace(&mut self, new: &NewRequest) -> Namespace {
        let attention = new.attention.error_bound.to_bits();
        self.cache.intern_namespace(new.salt.as_deref(), new.adapter, attention)
    }

    /// Ends the requests whose deadline has come.
    fn expire(&mut self, now_us: u64, actions: &mut Actions) {
        while let Some(&(deadline_us, request)) = self.deadlines.first()
            && deadline_us <= now_us
        {
            if planted(Fault::DeadlineIgnoredInQueue) && !self.requests[request].started {
                break;
            }
            if planted(Fault::StaleDeadline) {
                self.deadlines.pop_first();
                if !self.requests.contains(request) {
                    continue;
                }
            }
            self.end_request(request, FinishReason::Timeout, actions);
        }
    }

    /// Ends all samples of a request that have not ended yet.
    pub(crate) fn end_request(&mut self, request: u32, reason: FinishReason, actions: &mut Actions) {
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
    pub(crate) fn end_sample(&mut self, sequence: u32, reason: FinishReason, actions: &mut Actions) {
        let Sequence { id, key, request, .. } = self.sequences[sequence];
        actions.finished.push(Finished { request: id, sample: key.sample, reason });
        self.drop_sequence(sequence);
        let Some(request) = request else { return };
        if planted(Fault::DoubledTerminalEvent) && self.requests[request].sequences.len() > 1 {
            actions.finished.push(Finished { request: id, sample: key.sample, reason });
        }
        self.requests[request].sequences.retain(|&mut s| s != sequence);
        if self.requests[request].sequences.is_empty() {
            self.forget(request);
        }
    }

    /// Takes a sequence out of all lists. If a step in flight uses its blocks, they are freed when that is done.
    fn drop_sequence(&mut self, index: u32) {
        let sequence = &mut self.sequences[index];
        sequence.request = None;
        if std::mem::take(&mut sequence.running) {
            self.stop_running(index);
        } else if !planted(Fault::CancelledGhostInQueue) {
            self.waiting.remove(sequence.key);
        }
        if self.sequences[index].flights > 0 && planted(Fault::FreedWhileInFlight) {
            self.cache.release(&mut self.sequences[index].table);
        }
        self.free_unless_in_flight(index);
    }

    /// Frees the blocks of a sequence that is in no list any more, and its record, once no step uses them.
    pub(crate) fn free_unless_in_flight(&mut self, index: u32) {
        if self.sequences[index].flights == 0
            && let Some(mut sequence) = self.sequences.remove(index)
        {
            self.cache.release(&mut sequence.table);
        }
    }

    /// The next plan need not wait for this step.
    fn allow_ahead(&mut self, step: u64) {
        if let [only] = self.in_flight.make_contiguous()
            && only.step == step
        {
            let single = |flight: &Flight| flight.num_samples <= 1;
            only.ahead = only.flights.iter().all(single) || planted(Fault::AheadOfForks);
            for flight in only.flights.iter().filter(|_| only.ahead) {
                self.sequences[flight.sequence].placeholders = flight.num_samples;
            }
        }
    }

    fn may_plan(&self) -> bool {
        match self.in_flight.len() {
            0 => true,
            1 => self.in_flight[0].ahead && !self.settling,
            _ => false,
        }
    }

    /// Drops the record of a request without sequences.
    fn forget(&mut self, index: u32) {
        let Some(request) = self.requests.remove(index) else { return };
        self.ids.remove(&request.id);
        self.cache.release_namespace(request.namespace);
        if let Some(deadline_us) = request.deadline_us
            && !planted(Fault::StaleDeadline)
        {
            self.deadlines.remove(&(deadline_us, index));
        }
        self.unstarted -= u32::from(!request.started && !planted(Fault::QueueCountDrift));
    }
}
