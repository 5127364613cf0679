//! Output of the engine loop: decisions of the scheduler and results of steps become deltas of requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use octavo_scheduler::{Actions, EndReason as Ended, Finished, NO_ADAPTER, PlanSeq, Started, StepPlan};
use rustc_hash::FxHashMap;

use crate::EngineError;
use crate::adapters::{AdapterClaim, PackedAdapter};
use crate::executor::StepError;
use crate::output::FinishReason;
use crate::report::Report;
use crate::request::{EngineRequest, RequestState};
use crate::sampling::SampleSpec;
use crate::stats::add;
use crate::status::EngineStatus;
use crate::tokenizer::Tokenizer;

/// All requests that have not ended.
pub(crate) struct RequestTable {
    pub states: FxHashMap<u64, RequestState>,
    pub tokenizer: Arc<Tokenizer>,
    pub status: Arc<EngineStatus>,
    /// Requests with deltas since the last flush.
    touched: Vec<u64>,
}

impl RequestTable {
    pub fn new(tokenizer: Arc<Tokenizer>, status: Arc<EngineStatus>) -> Self {
        Self { states: FxHashMap::default(), tokenizer, status, touched: Vec::new() }
    }

    pub fn insert(&mut self, request: EngineRequest) {
        self.states.insert(request.id, RequestState::new(request));
    }

    pub fn contains(&self, request: u64) -> bool {
        self.states.contains_key(&request)
    }

    /// Gives a held request its adapter. `false`: it has ended.
    pub fn take_adapter(&mut self, request: u64, packed: PackedAdapter) -> bool {
        let claim = self.states.get_mut(&request).and_then(|state| state.request.adapter.as_mut());
        claim.map(|claim| claim.take(packed)).is_some()
    }

    /// Sets the error of a request that cannot run. `false`: it has ended.
    pub fn refuse(&mut self, request: u64, error: EngineError) -> bool {
        self.states.get_mut(&request).map(|state| state.error = Some(error)).is_some()
    }

    /// The distinct adapters of a plan, each once.
    pub fn adapters(&self, plan: &StepPlan) -> Vec<(u32, PackedAdapter)> {
        let mut found: Vec<(u32, PackedAdapter)> = Vec::new();
        for seq in plan.seqs.iter().filter(|seq| seq.adapter != NO_ADAPTER) {
            let claim = self.states.get(&seq.request).and_then(|state| state.request.adapter.as_ref());
            let packed = claim.and_then(AdapterClaim::packed);
            if let Some(packed) = packed.filter(|_| found.iter().all(|(id, _)| *id != seq.adapter)) {
                found.push((seq.adapter, packed.clone()));
            }
        }
        found
    }

    /// Sampling specs of the sequences whose token the executor can sample by itself.
    pub fn sample_specs(&self, plan: &StepPlan) -> Vec<SampleSpec> {
        let spec = |(i, seq): (usize, &PlanSeq)| {
            let one_row = seq.num_samples == 1 && seq.sample_rows().len() == 1;
            let last = seq.query_start + seq.query_len - 1;
            let placeholder = plan.placeholders.binary_search_by_key(&last, |&[row, _]| row).is_ok();
            let state = self.states.get(&seq.request).filter(|_| one_row)?;
            let spec = state.sample_spec(seq.sample, u32::from(placeholder))?;
            Some(SampleSpec { seq: i as u32, ..spec })
        };
        plan.seqs.iter().enumerate().filter_map(spec).collect()
    }

    /// Applies the scheduler's decisions.
    pub fn apply(&mut self, actions: &Actions) {
        let now = Instant::now();
        actions.started.iter().for_each(|started| self.start(started, now));
        for (id, rejection) in &actions.rejected {
            let Some(state) = self.states.get_mut(id) else { continue };
            state.error = Some(EngineError::from(*rejection));
            add(&self.status.counters.finished_error, u64::from(state.request.n));
            state.end_all(FinishReason::Error, now);
            self.touched.push(*id);
        }
        actions.finished.iter().for_each(|finished| self.finish(finished, now));
    }

    fn start(&mut self, started: &Started, now: Instant) {
        let Some(state) = self.states.get_mut(&started.request) else { return };
        state.start(now, started.cached_tokens);
        self.status.queued.fetch_sub(1, Ordering::SeqCst);
        let counters = &self.status.counters;
        add(&counters.prompt_tokens, state.request.prompt.len() as u64);
        add(&counters.cached_prompt_tokens, u64::from(started.cached_tokens));
    }

    fn finish(&mut self, finished: &Finished, now: Instant) {
        let Some(state) = self.states.get_mut(&finished.request) else { return };
        let counters = &self.status.counters;
        let (reason, counter) = match finished.reason {
            Ended::Stop => (FinishReason::Stop, &counters.finished_stop),
            Ended::Length => (FinishReason::Length, &counters.finished_length),
            Ended::Abort => (FinishReason::Abort, &counters.finished_abort),
            Ended::Timeout | Ended::Error => (FinishReason::Error, &counters.finished_error),
        };
        if finished.reason == Ended::Timeout {
            state.error = Some(EngineError::Timeout(
                "the request's timeout passed before it ended. Raise timeout, or lower max_tokens".into(),
            ));
        } else if reason == FinishReason::Error && state.error.is_none() {
            state.error = Some(EngineError::Execution("a step failed while this request was in it".into()));
        }
        state.end_sample(finished.sample, reason, now);
        add(counter, 1);
        self.touched.push(finished.request);
    }

    /// Merges the reports of a step, one for each sequence of its plan.
    pub fn merge_reports(&mut self, plan: &StepPlan, reports: &[Report]) {
        if reports.is_empty() {
            return;
        }
        let mut total = self.status.report.lock().unwrap_or_else(|e| e.into_inner());
        for (seq, report) in plan.seqs.iter().zip(reports) {
            total.merge(report);
            if let Some(state) = self.states.get_mut(&seq.request) {
                state.report.get_or_insert_default().merge(report);
            }
        }
    }

    /// Sets the error of all requests of a failed step.
    pub fn fail_step(&mut self, plan: &StepPlan, error: &StepError) {
        for seq in &plan.seqs {
            let state = self.states.get_mut(&seq.request);
            if let Some(state) = state.filter(|s| !s.has_ended(seq.sample)) {
                state.error = Some(EngineError::Execution(format!("a step failed: {error}")));
            }
        }
    }

    /// The requests that a step gave results to have deltas to send.
    pub fn touch(&mut self, plan: &StepPlan) {
        let answered = plan.seqs.iter().filter(|s| !s.sample_rows().is_empty());
        self.touched.extend(answered.map(|s| s.request));
    }

    /// Sends deltas, and removes requests that have ended.
    pub fn flush(&mut self) {
        for id in self.touched.drain(..) {
            let Some(state) = self.states.get_mut(&id) else { continue };
            state.flush_counted(&self.status);
            if state.is_over() {
                self.states.remove(&id);
            }
        }
    }

    /// Gives every request its last delta. After a close, requests are aborted; after any other cause, they fail.
    pub fn end_all(&mut self, cause: &EngineError) {
        let now = Instant::now();
        let closed = *cause == EngineError::closed();
        let reason = if closed { FinishReason::Abort } else { FinishReason::Error };
        for state in self.states.values_mut() {
            state.error = if closed { None } else { Some(cause.clone()) };
            state.end_all(reason, now);
            state.flush();
        }
    }
}
