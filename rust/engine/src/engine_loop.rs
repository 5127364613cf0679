//! The engine thread: receive commands, schedule a step, execute it, send results. It alone owns scheduler, executor and
//! requests.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use octavo_scheduler::{Actions, Event, Scheduler, SeqResult, StepPlan};

use crate::EngineError;
use crate::command::Command;
use crate::error::panic_text;
use crate::executor::{Executor, ExecutorInfo, StepError, StepInput, StepOutput, Ticket};
use crate::inbox::{Inbox, Stopped, Wait};
use crate::packs::BetweenSteps;
use crate::requests::RequestTable;
use crate::sample_step::{RowSampler, StepResults};
use crate::stats::{add, set};
use crate::status::EngineStatus;
use crate::tokenizer::Tokenizer;

/// A submitted step.
struct RunningStep {
    input: Arc<StepInput>,
    ticket: Result<Ticket, StepError>,
    /// The executor samples every token of the step, so the next step can be scheduled before this one ends.
    overlaps: bool,
    submitted: Instant,
}

pub(crate) struct EngineLoop {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    info: ExecutorInfo,
    inbox: Inbox,
    requests: RequestTable,
    sampler: RowSampler,
    actions: Actions,
    status: Arc<EngineStatus>,
    /// When the last step ended.
    last_end: Option<Instant>,
}

impl EngineLoop {
    pub fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        tokenizer: Arc<Tokenizer>,
        commands: Receiver<Command>,
        status: Arc<EngineStatus>,
    ) -> Self {
        let info = executor.info();
        Self {
            scheduler,
            executor,
            inbox: Inbox::new(commands),
            requests: RequestTable::new(tokenizer, Arc::clone(&status)),
            sampler: RowSampler::new(&info),
            info,
            actions: Actions::default(),
            status,
            last_end: None,
        }
    }

    /// Runs until closed. Whatever happens inside, every request gets its last delta.
    pub fn run(mut self) {
        // The counters are right before the first request.
        self.update_counters();
        let overlaps = self.info.max_in_flight > 1;
        let run = || if overlaps { self.overlapped_loop() } else { self.normal_loop() };
        let cause = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(_) => EngineError::closed(),
            Err(p) => EngineError::EngineDead(format!(
                "the engine stopped on an internal fault: {}. Make a new LLM, and please report this",
                panic_text(p)
            )),
        };
        self.end_everything(cause);
    }

    /// One step at a time.
    fn normal_loop(&mut self) -> Result<Infallible, Stopped> {
        loop {
            self.receive(false)?;
            self.run_jobs();
            if let Some(plan) = self.schedule() {
                let step = self.submit(plan);
                self.finish(step)?;
            }
        }
    }

    /// Schedules and submits step n + 1 while the executor runs step n.
    fn overlapped_loop(&mut self) -> Result<Infallible, Stopped> {
        let mut running: Option<RunningStep> = None;
        loop {
            self.receive(running.is_some())?;
            if !self.inbox.jobs.is_empty() {
                if let Some(step) = running.take() {
                    self.finish(step)?;
                }
                self.run_jobs();
            }
            let mut next = self.schedule().map(|plan| self.submit(plan));
            if let Some(step) = running.take().or_else(|| next.take_if(|next| !next.overlaps)) {
                self.finish(step)?;
            }
            running = next;
            if let Some(RunningStep { overlaps: true, input, .. }) = &running {
                self.inbox.events.push(Event::ScheduleAsync { step: input.plan.step });
            }
        }
    }

    /// Takes commands; waits for one if there is nothing to compute.
    fn receive(&mut self, in_flight: bool) -> Result<(), Stopped> {
        let wait = if in_flight || !self.inbox.events.is_empty() {
            Wait::No
        } else if self.scheduler.is_idle() {
            self.status.heartbeat.rest();
            Wait::Forever
        } else {
            Wait::Briefly
        };
        self.inbox.receive(wait, &mut self.requests)
    }

    /// Runs jobs of callers. No step is in flight.
    fn run_jobs(&mut self) {
        if self.inbox.jobs.is_empty() {
            return;
        }
        // The results of the last step first: until then the scheduler counts it as in flight.
        self.scheduler.settle(&mut self.inbox.events, &mut self.actions);
        self.requests.apply(&self.actions);
        for job in std::mem::take(&mut self.inbox.jobs) {
            self.status.heartbeat.beat();
            let answer =
                job.run(&mut BetweenSteps { scheduler: &mut self.scheduler, executor: &mut *self.executor });
            // A caller that has its result sees it in the counters, too.
            self.update_counters();
            answer();
        }
        self.requests.flush();
    }

    /// Hands the events to the scheduler and applies its decisions. None: there is nothing to run.
    fn schedule(&mut self) -> Option<StepPlan> {
        self.status.heartbeat.beat();
        let now_us = self.inbox.now_us();
        self.scheduler.step(now_us, &mut self.inbox.events, &mut self.actions);
        self.requests.apply(&self.actions);
        self.update_counters();
        self.requests.flush();
        Some(std::mem::take(&mut self.actions.plan)).filter(|plan| !plan.is_empty())
    }

    fn submit(&mut self, plan: StepPlan) -> RunningStep {
        self.status.histograms.step(plan.tokens.len());
        let samples =
            if self.info.samples_on_device { self.requests.sample_specs(&plan) } else { Vec::new() };
        // Tokens that are sampled here, from rows, come too late for a step behind this one.
        let answered = plan.seqs.iter().filter(|s| !s.sample_rows().is_empty()).count();
        let all_sampled = answered == samples.len();
        let input = Arc::new(StepInput { adapters: self.requests.adapters(&plan), plan, samples });
        let submitted = Instant::now();
        let ticket = caught(|| self.executor.submit(&input));
        RunningStep { overlaps: all_sampled && ticket.is_ok(), input, ticket, submitted }
    }

    /// Waits for a step, applies its results, and reports it to the scheduler.
    fn finish(&mut self, step: RunningStep) -> Result<(), Stopped> {
        let RunningStep { input, ticket, submitted, .. } = step;
        let plan = &input.plan;
        let unanswered =
            |num_samples| if num_samples == 0 { SeqResult::Prefilled } else { SeqResult::Failed };
        let mut results: Vec<SeqResult> = plan.seqs.iter().map(|s| unanswered(s.num_samples)).collect();
        let outcome = ticket.and_then(|ticket| caught(|| self.read_step(ticket, &input, &mut results)));
        self.count_step(plan, submitted);
        if let Err(error) = outcome {
            add(&self.status.counters.failed_steps, 1);
            // The step failed as a whole: tokens that came before the fault are dropped.
            results.iter_mut().for_each(|r| *r = SeqResult::Failed);
            self.requests.fail_step(plan, &error);
            if let StepError::Dead(cause) = error {
                self.status.die(EngineError::EngineDead(format!(
                    "the engine cannot go on: {cause}. Make a new LLM"
                )));
                return Err(Stopped);
            }
        }
        self.requests.touch(plan);
        self.inbox.events.push(Event::StepDone { step: plan.step, results });
        // The plan's memory is reused, unless the executor still holds it.
        self.actions.plan = Arc::try_unwrap(input).map(|input| input.plan).unwrap_or_default();
        self.actions.plan.clear();
        Ok(())
    }

    /// Waits for a step and samples its rows.
    fn read_step(
        &mut self,
        ticket: Ticket,
        step: &StepInput,
        results: &mut [SeqResult],
    ) -> Result<(), StepError> {
        let StepOutput { sampled, reports } = self.executor.wait(ticket)?;
        let mut results = StepResults { plan: &step.plan, requests: &mut self.requests, results };
        for (spec, token) in step.samples.iter().zip(sampled) {
            results.take_sampled(spec.seq as usize, token);
        }
        self.sampler.read_rows(&mut *self.executor, step, &mut results)?;
        self.requests.merge_reports(&step.plan, &reports);
        Ok(())
    }

    fn count_step(&mut self, plan: &StepPlan, submitted: Instant) {
        let c = &self.status.counters;
        add(&c.steps, 1);
        // The time of a step that was submitted behind another counts from the end of that one.
        let begin = self.last_end.map_or(submitted, |end| end.max(submitted));
        let end = *self.last_end.insert(Instant::now());
        add(&c.step_us, end.saturating_duration_since(begin).as_micros() as u64);
        let decodes = plan.seqs.iter().filter(|s| s.query_len == 1).count();
        if decodes > 0 && decodes < plan.seqs.len() {
            add(&c.mixed_steps, 1);
        }
    }

    fn update_counters(&self) {
        let (s, c) = (self.scheduler.stats(), &self.status.counters);
        set(&c.requests_running, u64::from(s.running));
        set(&c.requests_waiting, u64::from(s.waiting));
        set(&c.blocks_total, u64::from(s.cache.num_blocks));
        set(&c.blocks_free, u64::from(s.cache.free_blocks));
        set(&c.blocks_cached, u64::from(s.cache.cached_blocks));
        set(&c.blocks_pinned, u64::from(s.cache.pinned_blocks));
        set(&c.blocks_live, u64::from(s.cache.live_blocks));
        set(&c.max_batch, u64::from(s.max_batch_seqs));
        set(&c.max_batch_tokens, u64::from(s.max_batch_tokens));
        set(&c.generated_tokens, s.decoded_tokens);
        set(&c.preemptions, s.preemptions);
        set(&c.evictions, s.cache.evictions);
    }

    /// Gives every request its last delta.
    fn end_everything(mut self, cause: EngineError) {
        self.status.die(cause);
        let cause = self.status.check_alive().err().unwrap_or_else(EngineError::closed);
        self.inbox.receive_last(&mut self.requests);
        self.requests.end_all(&cause);
    }
}

/// A panic of the executor as an error of its step.
fn caught<T>(f: impl FnOnce() -> Result<T, StepError>) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|p| Err(StepError::Step(format!("internal fault: {}", panic_text(p)))))
}
