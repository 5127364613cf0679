//! Who gets tokens of the next step.
//!
//! Decodes first, then prefills that already run, then admissions, each in the order of (priority, arrival). One
//! exception keeps the promise that the first sequence in the order always gets on: if it is a prefill, it gets its
//! chunk before the decodes, which keep a token and a block each as far as there are any.
//!
//! A step may be planned ahead, while the one before it is in flight. A sequence of that step goes on where it will be
//! then, with a token that is not known yet if one is drawn; one that ends by its length does not. One that ends by a stop
//! has been planned for nothing, which is found out with the results. Nobody is preempted for such a plan: if blocks
//! are lacking, the next one waits until nothing is in flight, so the first in the order waits for one step at most.

use octavo_cache::OpenWrites;
use octavo_cache::faults::{Fault, allocation_failed, planted};

use crate::event::Actions;
use crate::plan::{AttentionPolicy, NO_ADAPTER, Output, PlanSeq};
use crate::results::{Flight, StepInFlight};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Fills `actions.plan`; leaves it empty if nothing can run.
    pub(crate) fn plan_step(&mut self, actions: &mut Actions) {
        self.cache.recycle_open_blocks();
        let mut budget = self.config.max_num_batched_tokens;
        budget -= self.schedule_first_prefill(budget, actions);
        let mut stalled = self.running.first().is_some_and(|&first| self.is_prefill(first));
        let mut prefills = false;
        let mut place = 0;
        while place < self.running.len() && budget > 0 {
            let index = self.running[place];
            if self.is_prefill(index) {
                prefills = true;
            } else if self.is_decode(index) {
                let scheduled = self.schedule_decode(place, actions);
                budget -= u32::from(scheduled && !planted(Fault::BudgetOverrun));
                stalled |= !scheduled;
            }
            place += 1;
        }
        place = 0;
        while prefills && place < self.running.len() && budget > 0 {
            let index = self.running[place];
            if self.is_prefill(index) {
                let chunk = self.schedule_prefill(index, budget, self.cache.available(), actions);
                budget -= chunk;
                stalled |= chunk == 0;
            }
            place += 1;
        }
        // Who lacks blocks comes before whoever is new.
        if !stalled && actions.preempted == 0 {
            self.admit(budget, actions);
        }
        self.settling = stalled && !self.in_flight.is_empty() && !planted(Fault::AheadForEver);
        if cfg!(debug_assertions) && !allocation_failed() {
            self.check_plan(!stalled && actions.preempted == 0, actions);
        }
        if actions.plan.is_empty() {
            return;
        }
        self.counters.steps += 1;
        actions.plan.step = self.counters.steps;
        actions.plan.num_open_blocks = self.cache.num_open_blocks();
        let flights = std::mem::replace(&mut self.planned, self.spare.pop().unwrap_or_default());
        self.in_flight.push_back(StepInFlight { step: actions.plan.step, ahead: false, flights });
        let (seqs, tokens) = (actions.plan.seqs.len() as u32, actions.plan.tokens.len() as u32);
        self.counters.max_batch_seqs = self.counters.max_batch_seqs.max(seqs);
        self.counters.max_batch_tokens = self.counters.max_batch_tokens.max(tokens);
    }

    /// Whether a running sequence takes more than one token in the plan being made, and is not in it yet.
    fn is_prefill(&self, index: u32) -> bool {
        self.sequences[index].remaining() > 1 && !self.is_planned(index)
    }

    /// Whether a running sequence takes one token in the plan being made, and is not in it yet. One whose
    /// placeholder is its last token takes none.
    fn is_decode(&self, index: u32) -> bool {
        let sequence = &self.sequences[index];
        let goes_on = sequence.request.is_some_and(|r| sequence.len() < self.requests[r].max_len)
            || planted(Fault::AheadOfTheEnd);
        sequence.remaining() == 1 && goes_on && !self.is_planned(index)
    }

    fn is_planned(&self, index: u32) -> bool {
        self.sequences[index].last_step == self.counters.steps + 1
    }

    /// A chunk for the first sequence in the order, if it is a prefill. Returns its tokens.
    fn schedule_first_prefill(&mut self, budget: u32, actions: &mut Actions) -> u32 {
        let Some(&first) = self.running.first() else { return 0 };
        if !self.is_prefill(first) {
            return 0;
        }
        loop {
            let decodes = self.running.iter().filter(|&&s| self.is_decode(s)).count() as u32;
            let available = self.cache.available();
            let spare = available.saturating_sub(decodes).max(available.min(1));
            let chunk = self.schedule_prefill(first, budget.saturating_sub(decodes).max(1), spare, actions);
            if chunk > 0 || !self.make_room(0, actions) {
                return chunk;
            }
        }
    }

    /// The next token of the running sequence at `place`, with preemption if need be. `false`: no block for it.
    fn schedule_decode(&mut self, place: usize, actions: &mut Actions) -> bool {
        let index = self.running[place];
        loop {
            if self.schedule(index, 1, actions) {
                return true;
            }
            if !self.make_room(place, actions) {
                return false;
            }
        }
    }

    /// As long a chunk as `budget` tokens and `spare` blocks allow. Returns its tokens.
    pub(crate) fn schedule_prefill(
        &mut self,
        index: u32,
        budget: u32,
        spare: u32,
        actions: &mut Actions,
    ) -> u32 {
        let sequence = &self.sequences[index];
        let room = self.cache.room(&sequence.table, spare).saturating_sub(sequence.computing);
        let cap = self.config.prefill_chunk.unwrap_or(u32::MAX);
        let mut chunk = sequence.remaining().min(budget).min(cap).min(room);
        // Rows reported before a preemption are computed again in a chunk of their own, without logits.
        if let Some(request) = sequence.request.map(|r| &self.requests[r])
            && request.owes_prompt_rows()
            && sequence.scheduled() < request.reported
        {
            chunk = chunk.min(request.reported - sequence.scheduled());
        }
        if chunk > 0 && self.schedule(index, chunk, actions) { chunk } else { 0 }
    }

    /// Appends the next `chunk` tokens of a sequence to the plan. `false` and no change if blocks are lacking.
    fn schedule(&mut self, index: u32, chunk: u32, actions: &mut Actions) -> bool {
        let plan = &mut actions.plan;
        let output = self.output(&self.sequences[index]);
        let sequence = &mut self.sequences[index];
        let start = sequence.scheduled();
        let end = start + chunk;
        let copies = plan.copies.len();
        if self.cache.reserve(&mut sequence.table, end, &mut plan.copies).is_err() {
            return false;
        }
        let open_block_start = plan.open_blocks.len() as u32;
        let writes = OpenWrites {
            blocks: &mut plan.open_blocks,
            slots: &mut plan.open_slots,
            sealed: &mut plan.sealed,
            copies: &mut plan.open_copies,
        };
        self.cache.write_open_blocks(&sequence.table, start..end, &plan.copies[copies..], writes);
        let mut completes = end == sequence.len();
        if planted(Fault::SampledBeforeRecomputed)
            && let Some(request) = sequence.request
        {
            completes = end >= self.requests[request].prompt_len;
        }
        let reports = sequence.request.is_some_and(|request| {
            let request = &self.requests[request];
            request.owes_prompt_rows()
                && start < request.prompt_len
                && (start >= request.reported || planted(Fault::PromptRowsReportedTwice))
        });
        let sample_rows = match (reports, completes) {
            (true, _) => [0, chunk],
            (false, true) => [chunk - 1, chunk],
            (false, false) => [0, 0],
        };
        let request = sequence.request.map(|request| &self.requests[request]);
        let num_samples = if completes && output == Output::Tokens { sequence.num_samples } else { 0 };
        plan.seqs.push(PlanSeq {
            request: sequence.id,
            sample: sequence.key.sample,
            num_samples,
            query_start: plan.tokens.len() as u32,
            query_len: chunk,
            context_len: end,
            block_table_start: plan.block_tables.len() as u32,
            open_block_start,
            adapter: request.map_or(NO_ADAPTER, |request| request.adapter),
            attention: request.map_or(AttentionPolicy::DENSE, |request| request.attention),
            output,
            sample_rows,
        });
        let block_size = self.config.block_size;
        let blocks = &sequence.table.blocks()[..end.div_ceil(block_size) as usize];
        plan.block_tables.extend_from_slice(blocks);
        let known = sequence.tokens.len().min(end as usize);
        plan.tokens.extend_from_slice(&sequence.tokens[start as usize..known]);
        if known < end as usize {
            let place = if planted(Fault::AheadOfAnother) { 0 } else { sequence.place };
            plan.placeholders.push([plan.tokens.len() as u32, place]);
            plan.tokens.push(0);
        }
        plan.positions.extend(start..end);
        let mut position = start;
        while position < end {
            let (block, offset) = (position / block_size, position % block_size);
            let len = (block_size - offset).min(end - position);
            let mut slot = blocks[block as usize] * block_size + offset;
            if planted(Fault::SlotsRunOverBlockBorder) {
                slot = blocks[(start / block_size) as usize] * block_size + start % block_size + position
                    - start;
                slot %= self.config.num_blocks * block_size;
            }
            plan.slots.extend(slot..slot + len);
            position += len;
        }
        sequence.flights += 1;
        sequence.computing += chunk;
        sequence.last_step = self.counters.steps + 1;
        sequence.place = plan.seqs.len() as u32 - 1;
        self.planned.push(Flight { sequence: index, query_len: chunk, num_samples, reports });
        self.counters.prefilled_tokens += u64::from(chunk - u32::from(num_samples > 0));
        true
    }
}
