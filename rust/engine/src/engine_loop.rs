//! The engine thread: commands in, steps executed, deltas out. It alone owns scheduler, executor and requests.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use octavo_scheduler::{
    Actions, AttentionPolicy, Event, FinishReason as Ended, NO_ADAPTER, NewRequest, Output, PlanSeq,
    Rejection, Scheduler, SeqResult, StepPlan,
};
use rustc_hash::FxHashMap;

use crate::EngineError;
use crate::error::panic_text;
use crate::executor::{AttentionBound, Draw, Executor, RowOutcome, StepError};
use crate::health::Pulse;
use crate::metrics::Histograms;
use crate::output::FinishReason;
use crate::request::{Active, Prepared};
use crate::rows::{RowReader, StepRows};
use crate::stats::{Counters, add, set};
use crate::tokenizer::Tokenizer;

/// What callers send to the engine thread.
pub(crate) enum Command {
    Submit(Box<Prepared>),
    Cancel(u64),
    /// Take no more requests, and close when nothing runs.
    Drain,
    Close,
}

/// What callers and the engine thread share besides queues: counters and one flag.
#[derive(Default)]
pub(crate) struct Shared {
    pub counters: Counters,
    pub histograms: Histograms,
    /// Requests submitted that have not started: the length of the bounded queue in.
    pub queued: AtomicUsize,
    /// When the engine thread last began a round of work.
    pub pulse: Pulse,
    /// No more requests are taken.
    pub draining: AtomicBool,
    pub dead: AtomicBool,
    /// Why, written once before `dead` is set.
    pub cause: Mutex<Option<EngineError>>,
}

impl Shared {
    /// Marks the engine as dead; the first cause stays.
    pub fn die(&self, cause: EngineError) {
        let mut slot = self.cause.lock().unwrap_or_else(|e| e.into_inner());
        slot.get_or_insert(cause);
        drop(slot);
        self.dead.store(true, Ordering::SeqCst);
    }

    /// The error of every call after the end, if it has come.
    pub fn check_alive(&self) -> Result<(), EngineError> {
        if !self.dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        let slot = self.cause.lock().unwrap_or_else(|e| e.into_inner());
        Err(slot.clone().unwrap_or_else(EngineError::closed))
    }

    /// The error of a request that comes after the end, or while the engine drains.
    pub fn check_open(&self) -> Result<(), EngineError> {
        self.check_alive()?;
        if self.draining.load(Ordering::SeqCst) { Err(EngineError::closed()) } else { Ok(()) }
    }
}

/// A step that the executor has begun.
struct RunningStep {
    plan: Arc<StepPlan>,
    draws: Arc<Vec<Draw>>,
    begun: Result<(), StepError>,
    /// The next step may be planned before this one ends.
    ahead: bool,
    since: Instant,
}

pub(crate) struct EngineLoop {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    tokenizer: Arc<Tokenizer>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    requests: FxHashMap<u64, Active>,
    reader: RowReader,
    events: Vec<Event>,
    actions: Actions,
    /// Requests with news since the last flush.
    touched: Vec<u64>,
    /// Steps that have begun and not ended, the oldest first: two at most.
    in_flight: VecDeque<RunningStep>,
    /// When the last step ended.
    last_end: Option<Instant>,
    /// Attention policy of requests without a bound of their own.
    attention: AttentionPolicy,
    /// Closes when nothing runs.
    draining: bool,
    epoch: Instant,
}

impl EngineLoop {
    pub fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        tokenizer: Arc<Tokenizer>,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
    ) -> Self {
        let reader = RowReader::new(executor.kernels());
        let attention = match executor.attention_bound() {
            AttentionBound::Within(error_bound) => AttentionPolicy { error_bound },
            AttentionBound::Exact | AttentionBound::Told => AttentionPolicy::DENSE,
        };
        Self {
            scheduler,
            executor,
            tokenizer,
            commands,
            shared,
            requests: FxHashMap::default(),
            reader,
            events: Vec::new(),
            actions: Actions::default(),
            touched: Vec::new(),
            in_flight: VecDeque::with_capacity(2),
            last_end: None,
            attention,
            draining: false,
            epoch: Instant::now(),
        }
    }

    /// Runs until closed. Whatever happens inside, every request gets its last delta.
    pub fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let cause = match outcome {
            Ok(()) => EngineError::closed(),
            Err(p) => EngineError::EngineDead(format!(
                "the engine stopped on an internal fault: {}. Make a new LLM, and please report this",
                panic_text(p)
            )),
        };
        self.end_everything(cause);
    }

    fn serve(&mut self) {
        // So that the books are right before the first request.
        self.update_counters();
        loop {
            if !self.take_commands() {
                return;
            }
            self.shared.pulse.beat();
            let now_us = self.epoch.elapsed().as_micros() as u64;
            self.scheduler.step(now_us, &mut self.events, &mut self.actions);
            self.apply_actions();
            self.update_counters();
            self.flush();
            if !self.actions.plan.is_empty() {
                self.begin();
                if self.plan_ahead() {
                    continue;
                }
            }
            if let Some(step) = self.in_flight.pop_front() {
                if !self.finish(step) {
                    return;
                }
                self.plan_ahead();
            }
        }
    }

    /// Takes what callers sent; waits while there is nothing to compute. False: close.
    fn take_commands(&mut self) -> bool {
        let planned = !self.events.is_empty() || !self.in_flight.is_empty();
        if !planned && self.scheduler.is_idle() {
            if self.draining {
                return false;
            }
            self.shared.pulse.rest();
            match self.commands.recv() {
                Ok(command) => {
                    if !self.command(command) {
                        return false;
                    }
                }
                // Every handle is gone.
                Err(_) => return false,
            }
        } else if !planned {
            // Requests wait but nothing can run: only time or a command changes that.
            match self.commands.recv_timeout(Duration::from_millis(1)) {
                Ok(command) => {
                    if !self.command(command) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            if !self.command(command) {
                return false;
            }
        }
        true
    }

    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(prepared) => {
                let micros = |t: Instant| t.saturating_duration_since(self.epoch).as_micros() as u64;
                self.events.push(Event::Submit(NewRequest {
                    id: prepared.id,
                    prompt: prepared.prompt.to_vec(),
                    n: prepared.n,
                    max_tokens: prepared.max_tokens,
                    priority: prepared.priority,
                    deadline_us: prepared.deadline.map(micros),
                    salt: prepared.salt.clone(),
                    adapter: NO_ADAPTER,
                    attention: prepared
                        .error_bound
                        .map_or(self.attention, |error_bound| AttentionPolicy { error_bound }),
                    prompt_logits: match &prepared.pooler {
                        Some(pooler) => pooler.needs_all(),
                        None => prepared.prompt_logprobs.is_some(),
                    },
                    output: if prepared.pooler.is_some() { Output::Hidden } else { Output::Tokens },
                }));
                self.requests.insert(prepared.id, Active::new(*prepared));
                true
            }
            Command::Cancel(request) => {
                if self.requests.contains_key(&request) {
                    self.events.push(Event::Cancel { request });
                }
                true
            }
            Command::Drain => {
                self.events.push(Event::Drain);
                self.draining = true;
                true
            }
            Command::Close => false,
        }
    }

    /// Turns the scheduler's decisions into news of requests.
    fn apply_actions(&mut self) {
        let now = Instant::now();
        let counters = &self.shared.counters;
        for started in &self.actions.started {
            let Some(active) = self.requests.get_mut(&started.request) else { continue };
            active.start(now, started.cached_tokens);
            self.shared.queued.fetch_sub(1, Ordering::SeqCst);
            add(&counters.prompt_tokens, active.request.prompt.len() as u64);
            add(&counters.cached_prompt_tokens, u64::from(started.cached_tokens));
        }
        for (id, rejection) in &self.actions.rejected {
            let Some(active) = self.requests.get_mut(id) else { continue };
            active.error = Some(match rejection {
                Rejection::Draining => EngineError::closed(),
                _ => EngineError::QueueFull(rejection.to_string()),
            });
            add(&counters.finished_error, u64::from(active.request.n));
            active.end_all(&self.tokenizer, FinishReason::Error, now);
            self.touched.push(*id);
        }
        for finished in &self.actions.finished {
            let Some(active) = self.requests.get_mut(&finished.request) else { continue };
            let reason = match finished.reason {
                Ended::Stop => FinishReason::Stop,
                Ended::Length => FinishReason::Length,
                Ended::Abort => FinishReason::Abort,
                Ended::Timeout | Ended::Error => FinishReason::Error,
            };
            if finished.reason == Ended::Timeout {
                active.error = Some(EngineError::Timeout(
                    "the request's timeout passed before it ended. Raise timeout, or lower max_tokens".into(),
                ));
            } else if reason == FinishReason::Error && active.error.is_none() {
                active.error =
                    Some(EngineError::Execution("a step failed while this request was in it".into()));
            }
            active.end_sample(&self.tokenizer, finished.sample, reason, now);
            let counter = match reason {
                FinishReason::Stop => &counters.finished_stop,
                FinishReason::Length => &counters.finished_length,
                FinishReason::Abort => &counters.finished_abort,
                FinishReason::Error => &counters.finished_error,
            };
            add(counter, 1);
            self.touched.push(finished.request);
        }
    }

    /// Sends news, and forgets requests that have ended.
    fn flush(&mut self) {
        for id in self.touched.drain(..) {
            let Some(active) = self.requests.get_mut(&id) else { continue };
            active.flush_counted(&self.shared);
            if active.is_over() {
                self.requests.remove(&id);
            }
        }
    }

    fn update_counters(&self) {
        let (s, c) = (self.scheduler.stats(), &self.shared.counters);
        set(&c.requests_running, u64::from(s.running));
        set(&c.requests_waiting, u64::from(s.waiting));
        set(&c.blocks_total, u64::from(s.cache.num_blocks));
        set(&c.blocks_free, u64::from(s.cache.free_blocks));
        set(&c.blocks_cached, u64::from(s.cache.cached_blocks));
        set(&c.blocks_live, u64::from(s.cache.live_blocks));
        set(&c.max_batch, u64::from(s.max_batch_seqs));
        set(&c.max_batch_tokens, u64::from(s.max_batch_tokens));
        set(&c.generated_tokens, s.decoded_tokens);
        set(&c.preemptions, s.preemptions);
        set(&c.evictions, s.cache.evictions);
    }

    /// Begins the step that was just planned.
    fn begin(&mut self) {
        let plan = Arc::new(std::mem::take(&mut self.actions.plan));
        self.shared.histograms.step(plan.tokens.len());
        let draws = if self.executor.draws() { draws(&plan, &self.requests) } else { Vec::new() };
        let draws = Arc::new(draws);
        let since = Instant::now();
        let executor = &mut self.executor;
        let begun = caught(|| executor.begin(&plan, &draws));
        // Tokens that are drawn here, from rows, come too late for a step behind this one.
        let asking = plan.seqs.iter().filter(|s| !s.sample_rows().is_empty()).count();
        let ahead = self.executor.overlaps() && begun.is_ok() && asking == draws.len();
        self.in_flight.push_back(RunningStep { plan, draws, begun, ahead, since });
    }

    /// Lets the scheduler plan behind the only step in flight, if that is of use. False: it has to end first.
    fn plan_ahead(&mut self) -> bool {
        let [only] = self.in_flight.make_contiguous() else { return false };
        if only.ahead {
            self.events.push(Event::ScheduleAsync { step: only.plan.step });
        }
        only.ahead
    }

    /// Waits for a step and reports it to the scheduler. False: the executor cannot go on.
    fn finish(&mut self, step: RunningStep) -> bool {
        let RunningStep { plan, draws, begun, since, .. } = step;
        let mut results: Vec<SeqResult> = plan
            .seqs
            .iter()
            .map(|s| if s.num_samples == 0 { SeqResult::Prefilled } else { SeqResult::Failed })
            .collect();
        let outcome = begun.and_then(|()| {
            let mut step = StepRows {
                plan: &plan,
                requests: &mut self.requests,
                tokenizer: &self.tokenizer,
                histograms: &self.shared.histograms,
                results: &mut results,
            };
            let reader = &self.reader;
            let mut sink = |outcome: RowOutcome<'_>| match outcome {
                RowOutcome::Rows(rows, values) => step.take(reader, rows, values),
                RowOutcome::Drawn { seq, token, logprobs } => step.take_drawn(seq, token, logprobs),
            };
            let executor = &mut self.executor;
            caught(|| executor.finish(&plan, &draws, &mut sink))
        });
        // After a fault the reports may still be those of an earlier step, of other sequences.
        let reports = if outcome.is_ok() { self.executor.attention_reports() } else { &[] };
        for (seq, report) in plan.seqs.iter().zip(reports) {
            self.shared.counters.attention(report);
            if let Some(active) = self.requests.get_mut(&seq.request) {
                active.attention.get_or_insert_default().add(report);
            }
        }
        let scheduler = &self.scheduler;
        self.executor.release_blocks(&|block| scheduler.holds(block));
        let c = &self.shared.counters;
        add(&c.steps, 1);
        // A step that began behind another is counted from the end of that one.
        let begin = self.last_end.map_or(since, |end| end.max(since));
        let end = *self.last_end.insert(Instant::now());
        add(&c.step_us, end.saturating_duration_since(begin).as_micros() as u64);
        let decodes = plan.seqs.iter().filter(|s| s.query_len == 1).count();
        if decodes > 0 && decodes < plan.seqs.len() {
            add(&c.mixed_steps, 1);
        }
        if let Err(error) = outcome {
            add(&c.failed_steps, 1);
            // Tokens that were drawn before the fault are not kept: the step is failed as a whole.
            results.iter_mut().for_each(|r| *r = SeqResult::Failed);
            for seq in &plan.seqs {
                let active = self.requests.get_mut(&seq.request);
                if let Some(active) = active.filter(|a| !a.has_ended(seq.sample)) {
                    active.error = Some(EngineError::Execution(format!("a step failed: {error}")));
                }
            }
            if let StepError::Dead(cause) = error {
                self.shared.die(EngineError::EngineDead(format!(
                    "the engine cannot go on: {cause}. Make a new LLM"
                )));
                return false;
            }
        }
        self.touched.extend(plan.seqs.iter().filter(|s| !s.sample_rows().is_empty()).map(|s| s.request));
        self.events.push(Event::StepDone { step: plan.step, results });
        // Its memory is used again, unless the executor still holds on to it.
        self.actions.plan = Arc::try_unwrap(plan).unwrap_or_default();
        self.actions.plan.clear();
        true
    }

    /// Gives every request its last delta.
    fn end_everything(mut self, cause: EngineError) {
        self.shared.die(cause);
        let cause = self.shared.check_alive().err().unwrap_or_else(EngineError::closed);
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit(prepared) = command {
                self.requests.insert(prepared.id, Active::new(*prepared));
            }
        }
        let now = Instant::now();
        let closed = cause == EngineError::closed();
        for active in self.requests.values_mut() {
            // Closing is the caller's own wish: what ran is aborted, not failed.
            let reason = if closed { FinishReason::Abort } else { FinishReason::Error };
            active.error = if closed { None } else { Some(cause.clone()) };
            active.end_all(&self.tokenizer, reason, now);
            active.flush();
        }
    }
}

/// The sequences whose token the executor may draw by itself.
fn draws(plan: &StepPlan, requests: &FxHashMap<u64, Active>) -> Vec<Draw> {
    let of = |(i, seq): (usize, &PlanSeq)| {
        let alone = seq.num_samples == 1 && seq.sample_rows().len() == 1;
        let last = seq.query_start + seq.query_len - 1;
        let awaited = plan.placeholders.binary_search_by_key(&last, |&[row, _]| row).is_ok();
        let draw =
            requests.get(&seq.request).filter(|_| alone)?.plain_draw(seq.sample, u32::from(awaited))?;
        Some(Draw { seq: i as u32, ..draw })
    };
    plan.seqs.iter().enumerate().filter_map(of).collect()
}

/// A panic of the executor as an error of its step.
fn caught(f: impl FnOnce() -> Result<(), StepError>) -> Result<(), StepError> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|p| Err(StepError::Step(format!("internal fault: {}", panic_text(p)))))
}
