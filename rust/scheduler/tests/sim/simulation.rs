//! One run of one seed: random arrivals and disturbances until everything has ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use octavo_scheduler::{
    Actions, EndReason, Event, NewRequest, Scheduler, SchedulerConfig, SchedulerStats, SeqResult, StepPlan,
};

use super::adapters::SimAdapters;
use super::executor::{Executor, Fail};
use super::intervention::Intervention;
use super::packs::Packs;
use super::random::{Random, mix};
use super::workload::{self, Features};

/// A sample: (request, sample).
pub type Name = (u64, u32);

pub struct Simulation {
    pub config: SchedulerConfig,
    pub(super) features: Features,
    pub(super) scheduler: Scheduler,
    pub(super) packs: Packs,
    pub(super) executor: Executor,
    /// None: adapters are numbers that never change.
    pub(super) adapters: Option<SimAdapters>,
    random: Random,
    /// When async scheduling is allowed. A generator of its own: the workload of a seed does not depend on it.
    timing: Random,
    /// Steps in flight, the oldest first.
    pub(super) in_flight: VecDeque<StepPlan>,
    /// The next step may be planned before this one is done.
    pub(super) ahead_of: Option<u64>,
    pub(super) now_us: u64,
    pub(super) requests: BTreeMap<u64, NewRequest>,
    /// Tokens received.
    pub(super) received: BTreeMap<Name, Vec<u32>>,
    pub(super) finished: BTreeMap<Name, EndReason>,
    pub(super) rejected: BTreeSet<u64>,
    /// The order of submission.
    pub(super) arrivals: BTreeMap<u64, usize>,
    /// Requests that were cancelled after their submission.
    pub(super) cancelled: BTreeSet<u64>,
    /// Requests of which a sequence failed.
    pub(super) failed: BTreeSet<u64>,
    pub(super) started: BTreeSet<u64>,
    /// How often a request that never ran was overtaken.
    pub(super) bypassed: BTreeMap<u64, u32>,
    drained: bool,
    /// Keep all actions in `log`.
    pub record: bool,
    pub log: Vec<Actions>,
    /// Copies on write planned.
    pub copies: u64,
    /// Copies of open blocks, and seals, planned.
    pub open_copies: u64,
    pub sealed: u64,
    /// Turns taken.
    pub turns: u32,
    /// Tokens received in all.
    pub tokens: u64,
    /// Steps planned while another was in flight, and tokens sampled there for sequences that had ended by then.
    pub ahead: u64,
    pub in_vain: u64,
    pub intervention: Option<Intervention>,
    /// Whether an allocation was made to fail since the last call, if a test does that.
    pub allocation_failed: Option<fn() -> bool>,
    /// An allocation was made to fail.
    pub denied: bool,
}

impl Simulation {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut timing = Random::new(mix(seed, 2));
        let (ahead, open_blocks) = (timing.one_in(2), mix(seed, 3).is_multiple_of(2));
        // Seeds that found something once go without: their workloads stay as they were.
        let adapters = mix(seed, 284).is_multiple_of(6);
        let features = Features { ahead, open_blocks, adapters, ..Features::draw(&mut random) };
        let max_adapters = if adapters { 1 + (mix(seed, 6) % 3) as u32 } else { 8 };
        let config = SchedulerConfig { max_adapters, ..workload::config(features, &mut random) };
        let packs = Packs::new(mix(seed, 5), features.preemption && mix(seed, 4).is_multiple_of(3));
        Self {
            features,
            scheduler: Scheduler::new(config.clone()).expect("the limits are sound"),
            executor: Executor::new(&config, features.stop_one_in),
            adapters: features.adapters.then(|| SimAdapters::new(seed)),
            config,
            packs,
            random,
            timing,
            in_flight: VecDeque::new(),
            ahead_of: None,
            now_us: 0,
            requests: BTreeMap::new(),
            received: BTreeMap::new(),
            finished: BTreeMap::new(),
            rejected: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            failed: BTreeSet::new(),
            started: BTreeSet::new(),
            bypassed: BTreeMap::new(),
            drained: false,
            record: false,
            log: Vec::new(),
            copies: 0,
            open_copies: 0,
            sealed: 0,
            turns: 0,
            tokens: 0,
            ahead: 0,
            in_vain: 0,
            intervention: None,
            allocation_failed: None,
            denied: false,
        }
    }

    /// The same with one thing going wrong.
    pub fn with(seed: u64, intervention: Intervention) -> Self {
        Self { intervention: Some(intervention), ..Self::new(seed) }
    }

    /// Runs to the end. Panics where a promise is broken.
    pub fn run(&mut self) -> SchedulerStats {
        let total = self.random.range(1, if self.features.crowd { 72 } else { 24 });
        let (mut events, mut actions) = (Vec::new(), Actions::default());
        let mut submitted = 0;
        let most = if self.features.crowd { 12 } else { 6 };
        loop {
            assert!(self.turns < 20_000, "no end in sight: {:?}", self.scheduler.stats());
            self.now_us += 1;
            self.load_adapters(&mut events);
            self.packs.disturb(&self.config, &mut self.scheduler, &mut self.executor);
            let arrivals = if self.random.one_in(3) { self.random.range(0, most) } else { 0 };
            for _ in 0..arrivals.min(total - submitted) {
                submitted += 1;
                events.push(Event::Submit(self.new_request(u64::from(submitted))));
            }
            self.disturb(submitted, &mut events);
            self.intervene(&mut events);
            // Now and then the step takes a few calls longer.
            let waits = self.features.ahead && self.in_flight.len() == 1 && self.timing.one_in(2);
            if !waits
                && !self.in_flight.is_empty()
                && self.random.range(0, 3) > 0
                && let Some(plan) = self.in_flight.pop_front()
            {
                let results = self.execute(&plan);
                self.receive(&plan, &results, &mut events);
                events.push(Event::StepDone { step: plan.step, results });
            }
            if let [plan] = self.in_flight.make_contiguous()
                && self.features.ahead
                && self.timing.range(0, 3) > 0
            {
                self.ahead_of = Some(plan.step);
                events.push(Event::ScheduleAsync { step: plan.step });
            }
            if events.len() >= 2 && self.random.one_in(2) {
                events.swap(0, 1);
            }
            let cancelled = self.note_events(&events);
            self.scheduler.step(self.now_us, &mut events, &mut actions);
            assert!(events.is_empty());
            // A denied allocation may leave a turn without a plan; the next one makes up for it.
            if self.undisturbed() {
                self.scheduler.check_invariants();
            }
            self.check(&actions, &cancelled);
            if self.record {
                self.log.push(actions.clone());
            }
            if !actions.plan.is_empty() {
                self.ahead += self.in_flight.len() as u64;
                self.in_flight.push_back(actions.plan.clone());
            }
            self.release_adapters();
            self.turns += 1;
            if submitted == total && self.in_flight.is_empty() && self.scheduler.is_idle() {
                break;
            }
        }
        self.packs.release_all(&mut self.scheduler);
        self.scheduler.check_invariants();
        self.check_end();
        self.scheduler.stats()
    }

    /// Whether no allocation was made to fail in this turn.
    fn undisturbed(&mut self) -> bool {
        let failed = self.allocation_failed.is_some_and(|failed| failed());
        self.denied |= failed;
        !failed
    }

    fn new_request(&mut self, id: u64) -> NewRequest {
        let mut request = workload::request(id, self.now_us, self.features, &self.config, &mut self.random);
        if let Some(adapters) = &mut self.adapters {
            adapters.choose(&mut request);
        }
        let request = self.packs.attach(request);
        self.requests.insert(id, request.clone());
        request
    }

    fn load_adapters(&mut self, events: &mut Vec<Event>) {
        if let Some(adapters) = &mut self.adapters {
            adapters.change_names();
            self.failed.extend(adapters.load(events));
        }
    }

    /// A request holds its adapter until it has ended, and the steps with it.
    fn release_adapters(&mut self) {
        let Some(mut adapters) = self.adapters.take() else { return };
        let runs = |id| self.in_flight.iter().any(|plan| plan.seqs.iter().any(|seq| seq.request == id));
        adapters.release(|id| self.arrivals.contains_key(&id) && self.has_ended(id) && !runs(id));
        self.adapters = Some(adapters);
    }

    fn disturb(&mut self, submitted: u32, events: &mut Vec<Event>) {
        if self.features.cancels && self.random.one_in(8) {
            events.push(Event::Cancel { request: u64::from(self.random.range(0, submitted + 1)) });
        }
        if self.random.one_in(10) {
            events.push(Event::Tick);
        }
        if self.random.one_in(20) {
            events.push(Event::StepDone { step: 1 << 60, results: vec![SeqResult::Failed] });
        }
        if self.features.drain && self.random.one_in(60) && !self.drained {
            self.drained = true;
            events.push(Event::Drain);
        }
    }

    fn intervene(&mut self, events: &mut Vec<Event>) {
        match self.intervention {
            Some(Intervention::Cancel { request, turn }) if turn == self.turns => {
                events.push(Event::Cancel { request });
            }
            Some(Intervention::CancelAll { turn }) if turn == self.turns => {
                events.extend(self.requests.keys().map(|&request| Event::Cancel { request }));
            }
            Some(Intervention::Drain { turn }) if turn == self.turns => events.push(Event::Drain),
            _ => {}
        }
    }

    fn execute(&mut self, plan: &StepPlan) -> Vec<SeqResult> {
        let fail = match self.intervention {
            Some(Intervention::FailSequence { step }) if step == plan.step => {
                Fail::One((plan.step % plan.seqs.len() as u64) as usize)
            }
            Some(Intervention::FailStep { step }) if step == plan.step => Fail::All,
            _ if self.features.failures => Fail::OneIn(40),
            _ => Fail::Nothing,
        };
        let results = self.executor.run(
            plan,
            &self.requests,
            &self.failed,
            &mut self.random,
            fail,
            self.adapters.as_ref(),
        );
        for (i, seq) in plan.seqs.iter().enumerate() {
            let failed = match results.get(i) {
                Some(SeqResult::Prefilled) => seq.num_samples > 0,
                Some(SeqResult::Tokens(_)) => false,
                Some(SeqResult::Failed) | None => true,
            };
            if failed {
                self.failed.insert(seq.request);
            }
        }
        results
    }

    /// Collects tokens the way an engine does.
    fn receive(&mut self, plan: &StepPlan, results: &[SeqResult], events: &mut Vec<Event>) {
        for (seq, result) in plan.seqs.iter().zip(results) {
            let SeqResult::Tokens(tokens) = result else { continue };
            for (i, next) in tokens.iter().enumerate() {
                let name = (seq.request, seq.sample + i as u32);
                if let Some(reason) = self.finished.get(&name) {
                    self.in_vain += u64::from(*reason == EndReason::Stop);
                    continue;
                }
                self.received.entry(name).or_default().push(next.token);
                if self.intervention == Some(Intervention::StopReading { token: self.tokens }) {
                    events.push(Event::Cancel { request: seq.request });
                }
                self.tokens += 1;
            }
        }
    }

    /// Packs that were held, and requests that began with one.
    pub fn pack_counts(&self) -> [u64; 2] {
        [self.packs.holds, self.packs.attached]
    }

    /// Notes who arrives. Returns the requests that these events cancel, without those cancelled before they arrive.
    fn note_events(&mut self, events: &[Event]) -> BTreeSet<u64> {
        let mut cancelled = BTreeSet::new();
        for event in events {
            match event {
                Event::Submit(new) => drop(self.arrivals.insert(new.id, self.arrivals.len())),
                Event::Cancel { request } if self.arrivals.contains_key(request) => {
                    cancelled.insert(*request);
                }
                _ => {}
            }
        }
        self.cancelled.extend(&cancelled);
        cancelled
    }
}
