//! The scheduler and the cache under random workloads on tiny pools, against a content oracle.
//!
//! A failure prints the seed; `OCTAVO_SIM_SEED=<seed>` runs that one alone, `OCTAVO_SIM_SEEDS=<count>` runs more.

mod executor;
mod oracle;
mod random;
mod workload;

use std::collections::BTreeMap;

use executor::Executor;
use octavo_scheduler::{
    Actions, Event, FinishReason, Logits, NewRequest, Scheduler, SchedulerConfig, SchedulerStats, SeqResult,
    StepPlan,
};
use random::{Random, mix};
use workload::Features;

/// Names the seed when a run panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with OCTAVO_SIM_SEED={}", self.0);
        }
    }
}

struct Simulation {
    config: SchedulerConfig,
    features: Features,
    scheduler: Scheduler,
    executor: Executor,
    random: Random,
    now_us: u64,
    requests: BTreeMap<u64, NewRequest>,
    /// Tokens received, by (request, sample).
    received: BTreeMap<(u64, u32), Vec<u32>>,
    finished: BTreeMap<(u64, u32), FinishReason>,
    refused: BTreeMap<u64, ()>,
    drained: bool,
    /// Hash of all actions, to compare two runs of one seed.
    trace: u64,
    /// Copies on write planned.
    copies: u64,
    /// Cancel all requests at this turn.
    cancel_at: Option<u32>,
    /// Fail a whole step, this one.
    fail_at: Option<u64>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let config = workload::config(&mut random);
        Self {
            features: Features::draw(&mut random),
            scheduler: Scheduler::new(config.clone()).expect("the limits are sound"),
            executor: Executor::new(config.num_blocks, config.block_size),
            config,
            random,
            now_us: 0,
            requests: BTreeMap::new(),
            received: BTreeMap::new(),
            finished: BTreeMap::new(),
            refused: BTreeMap::new(),
            drained: false,
            trace: 0,
            copies: 0,
            cancel_at: None,
            fail_at: None,
        }
    }

    fn run(&mut self) -> (u64, SchedulerStats) {
        let total = self.random.range(1, 24);
        let (mut events, mut actions) = (Vec::new(), Actions::default());
        let mut in_flight: Option<StepPlan> = None;
        let mut submitted = 0;
        for turn in 0u32.. {
            assert!(turn < 20_000, "no end in sight: {:?}", self.scheduler.stats());
            self.now_us += 1;
            let arrivals = if self.random.one_in(3) { self.random.range(0, 6) } else { 0 };
            for _ in 0..arrivals.min(total - submitted) {
                submitted += 1;
                events.push(Event::Submit(self.new_request(u64::from(submitted))));
            }
            self.disturb(submitted, &mut events);
            if self.cancel_at == Some(turn) {
                events.extend(self.requests.keys().map(|&request| Event::Cancel { request }));
            }
            // Now and then the step takes a few calls longer.
            if let Some(plan) = in_flight.take_if(|_| self.random.range(0, 3) > 0) {
                let fail_one_in = match self.fail_at {
                    Some(step) if step == plan.step => 1,
                    _ if self.features.failures => 40,
                    _ => 0,
                };
                let results = self.executor.run(&plan, &self.requests, &mut self.random, fail_one_in);
                self.receive(&plan, &results);
                events.push(Event::StepDone { step: plan.step, results });
            }
            let shuffle = events.len().min(2);
            if shuffle == 2 && self.random.one_in(2) {
                events.swap(0, 1);
            }
            self.scheduler.step(self.now_us, &mut events, &mut actions);
            assert!(events.is_empty());
            self.scheduler.check_invariants();
            self.check(&actions, in_flight.is_some());
            if !actions.plan.is_empty() {
                in_flight = Some(actions.plan.clone());
            }
            if submitted == total && in_flight.is_none() && self.scheduler.is_idle() {
                break;
            }
        }
        self.check_end();
        (self.trace, self.scheduler.stats())
    }

    fn new_request(&mut self, id: u64) -> NewRequest {
        let request = workload::request(id, self.now_us, self.features, &self.config, &mut self.random);
        self.requests.insert(id, request.clone());
        request
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

    /// Collects tokens the way an engine does.
    fn receive(&mut self, plan: &StepPlan, results: &[SeqResult]) {
        for (seq, result) in plan.seqs.iter().zip(results) {
            let SeqResult::Tokens(tokens) = result else { continue };
            for (i, next) in tokens.iter().enumerate() {
                let name = (seq.request, seq.sample + i as u32);
                if !self.finished.contains_key(&name) {
                    self.received.entry(name).or_default().push(next.token);
                }
            }
        }
    }

    fn check(&mut self, actions: &Actions, was_in_flight: bool) {
        let plan = &actions.plan;
        assert!(!was_in_flight || plan.is_empty(), "a plan came while a step was in flight");
        assert!(plan.tokens.len() as u32 <= self.config.max_num_batched_tokens, "the step is over budget");
        assert!(plan.seqs.len() as u32 <= self.config.max_num_seqs, "too many sequences in the step");
        let cap = self.config.prefill_chunk.unwrap_or(u32::MAX);
        assert!(plan.seqs.iter().all(|s| s.query_len >= 1 && s.query_len <= cap), "a chunk is over its cap");
        for finished in &actions.finished {
            let name = (finished.request, finished.sample);
            assert!(finished.sample < self.requests[&finished.request].n, "{name:?} was never asked for");
            assert!(self.finished.insert(name, finished.reason).is_none(), "{name:?} ended twice");
        }
        for (id, _) in &actions.refused {
            assert!(self.refused.insert(*id, ()).is_none(), "{id} was refused twice");
        }
        for started in &actions.started {
            let request = &self.requests[&started.request];
            assert!((started.cached_tokens as usize) < request.prompt.len(), "the last token is computed");
            assert!(!request.prompt_logits || started.cached_tokens == 0, "prompt logits need every row");
        }
        self.copies += plan.copies.len() as u64;
        for seq in &plan.seqs {
            let name = (seq.request, seq.sample);
            assert!(!self.finished.contains_key(&name), "{name:?} runs after its end");
            assert!(seq.logits != Logits::All || self.requests[&seq.request].prompt_logits);
        }
        for byte in format!("{actions:?}").bytes() {
            self.trace = mix(self.trace, u64::from(byte));
        }
    }

    fn check_end(&self) {
        for (&id, request) in &self.requests {
            if self.refused.contains_key(&id) {
                assert!(
                    (0..request.n).all(|s| !self.finished.contains_key(&(id, s))),
                    "{id} was refused and ran"
                );
                continue;
            }
            for sample in 0..request.n {
                let name = (id, sample);
                let reason = self.finished.get(&name).unwrap_or_else(|| panic!("{name:?} never ended"));
                let received = self.received.get(&name).map_or(&[][..], Vec::as_slice);
                let (tokens, end) = oracle::answer(request, sample, self.config.max_model_len);
                match reason {
                    FinishReason::Stop | FinishReason::Length => {
                        assert_eq!(
                            (received, *reason),
                            (&tokens[..], end),
                            "{name:?} differs from its answer alone"
                        );
                        let reported = self.executor.reported.get(&id).copied().unwrap_or(0);
                        let expected = if request.prompt_logits { request.prompt.len() as u32 } else { 0 };
                        assert_eq!(reported, expected, "prompt rows reported for {id}");
                    }
                    FinishReason::Abort | FinishReason::Timeout | FinishReason::Error => {
                        assert!(tokens.starts_with(received), "{name:?} left the path of its answer");
                    }
                }
            }
        }
        let cache = self.scheduler.stats().cache;
        assert_eq!(cache.free_blocks + cache.cached_blocks, cache.num_blocks, "blocks are held at the end");
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[test]
fn random_workloads_keep_every_promise() {
    let seeds = match environment("OCTAVO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..environment("OCTAVO_SIM_SEEDS").unwrap_or(4000),
    };
    let many = seeds.end - seeds.start >= 1000;
    let mut sum = SchedulerStats::default();
    let mut copies = 0;
    for seed in seeds {
        let _name = Seed(seed);
        let mut simulation = Simulation::new(seed);
        let (trace, stats) = simulation.run();
        copies += simulation.copies;
        if seed % 10 == 0 {
            assert_eq!(trace, Simulation::new(seed).run().0, "the same events give the same actions");
        }
        sum.steps += stats.steps;
        sum.preemptions += stats.preemptions;
        sum.decoded_tokens += stats.decoded_tokens;
        sum.cache.hit_tokens += stats.cache.hit_tokens;
        sum.cache.evictions += stats.cache.evictions;
    }
    println!("{copies} copies, {sum:?}");
    if many {
        // The workloads are worth something only if they reach the hard paths.
        assert!(sum.preemptions > 1000, "preemptions: {}", sum.preemptions);
        assert!(copies > 1000, "copies on write: {copies}");
        assert!(sum.cache.hit_tokens > 10_000, "prefix hits: {}", sum.cache.hit_tokens);
        assert!(sum.cache.evictions > 10_000, "evictions: {}", sum.cache.evictions);
    }
}

#[test]
fn a_cancellation_at_any_call_and_a_failure_at_any_step_leave_nothing_behind() {
    for seed in 0..30 {
        let _name = Seed(seed);
        let (_, stats) = Simulation::new(seed).run();
        for at in 0..stats.steps + 4 {
            let mut cancelled = Simulation::new(seed);
            cancelled.cancel_at = Some(at as u32);
            cancelled.run();
            let mut failed = Simulation::new(seed);
            failed.fail_at = Some(at + 1);
            failed.run();
        }
    }
}
