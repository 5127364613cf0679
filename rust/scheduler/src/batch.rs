//! The batch of a step: while it is planned, and while it is in flight.

use std::ops::Range;

use octavo_cache::{BlockTable, Cache, OpenWrites};

use crate::plan::{Output, PlanSeq, StepPlan};
use crate::request::{Request, Sequence};

/// One sequence of a step, in the order of the plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchSeq {
    pub(crate) sequence: u32,
    pub(crate) query_len: u32,
    pub(crate) num_samples: u32,
    /// Whether its rows are prompt rows whose logits were asked for.
    pub(crate) reports: bool,
}

/// A step that was planned and is not done.
#[derive(Debug)]
pub(crate) struct StepInFlight {
    pub(crate) step: u64,
    /// Whether the next step may be planned before this one is done.
    pub(crate) async_next: bool,
    pub(crate) seqs: Vec<BatchSeq>,
}

/// The batch being planned.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    plan: StepPlan,
    seqs: Vec<BatchSeq>,
    block_size: u32,
    /// Tokens that the step has left.
    budget: u32,
    /// Whether a running sequence got no block.
    pub(crate) stalled: bool,
    /// Whether a running prefill waits for its turn.
    pub(crate) prefills: bool,
}

impl BatchBuilder {
    /// An empty batch of step `step` with room for `budget` tokens. The lists of `plan` and `seqs` are reused.
    pub(crate) fn new(
        mut plan: StepPlan,
        seqs: Vec<BatchSeq>,
        step: u64,
        budget: u32,
        block_size: u32,
    ) -> Self {
        debug_assert!(plan.is_empty() && seqs.is_empty());
        plan.step = step;
        Self { plan, seqs, block_size, budget, stalled: false, prefills: false }
    }

    /// Tokens that the step has left.
    pub(crate) fn budget(&self) -> u32 {
        self.budget
    }

    /// Whether `sequence` is in the batch.
    pub(crate) fn contains(&self, sequence: &Sequence) -> bool {
        sequence.last_step == self.plan.step
    }

    /// Appends the next `chunk` tokens of a sequence. `false` and no change if blocks are lacking.
    pub(crate) fn push(
        &mut self,
        cache: &mut Cache,
        index: u32,
        sequence: &mut Sequence,
        request: &Request,
        chunk: u32,
    ) -> bool {
        let start = sequence.scheduled();
        let end = start + chunk;
        let open_block_start = self.plan.open_blocks.len() as u32;
        if !self.reserve(cache, &mut sequence.table, start..end) {
            return false;
        }
        let completes = end == sequence.len();
        let reports = request.owes_prompt_rows() && start < request.prompt_len && start >= request.reported;
        let samples = completes && request.output == Output::Tokens;
        let seq = PlanSeq {
            request: sequence.id,
            sample: sequence.key.sample,
            num_samples: if samples { sequence.num_samples } else { 0 },
            query_start: self.plan.tokens.len() as u32,
            query_len: chunk,
            context_len: end,
            block_table_start: self.plan.block_tables.len() as u32,
            open_block_start,
            adapter: request.adapter,
            attention: request.attention,
            output: request.output,
            sample_rows: match (reports, completes) {
                (true, _) => [0, chunk],
                (false, true) => [chunk - 1, chunk],
                (false, false) => [0, 0],
            },
        };
        self.push_rows(sequence, start..end);
        sequence.in_flight += 1;
        sequence.computing += chunk;
        sequence.last_step = self.plan.step;
        sequence.place = self.seqs.len() as u32;
        self.plan.seqs.push(seq);
        self.seqs.push(BatchSeq { sequence: index, query_len: chunk, num_samples: seq.num_samples, reports });
        self.budget -= chunk;
        true
    }

    /// Reserves slots, with the copies on write and the writes of open blocks.
    fn reserve(&mut self, cache: &mut Cache, table: &mut BlockTable, positions: Range<u32>) -> bool {
        let plan = &mut self.plan;
        let copies = plan.copies.len();
        if cache.reserve(table, positions.end, &mut plan.copies).is_err() {
            return false;
        }
        let writes = OpenWrites {
            blocks: &mut plan.open_blocks,
            slots: &mut plan.open_slots,
            sealed: &mut plan.sealed,
            copies: &mut plan.open_copies,
        };
        cache.write_open_blocks(table, positions, &plan.copies[copies..], writes);
        true
    }

    /// Appends tokens, positions and slots, and the block table up to the last position.
    fn push_rows(&mut self, sequence: &Sequence, positions: Range<u32>) {
        let (plan, block_size) = (&mut self.plan, self.block_size);
        let blocks = &sequence.table.blocks()[..positions.end.div_ceil(block_size) as usize];
        plan.block_tables.extend_from_slice(blocks);
        let sampled = sequence.tokens.len().min(positions.end as usize);
        plan.tokens.extend_from_slice(&sequence.tokens[positions.start as usize..sampled]);
        if sampled < positions.end as usize {
            plan.placeholders.push([plan.tokens.len() as u32, sequence.place]);
            plan.tokens.push(0);
        }
        plan.positions.extend(positions.clone());
        let mut position = positions.start;
        while position < positions.end {
            let (block, offset) = (position / block_size, position % block_size);
            let len = (block_size - offset).min(positions.end - position);
            let slot = blocks[block as usize] * block_size + offset;
            plan.slots.extend(slot..slot + len);
            position += len;
        }
    }

    /// The plan, and what is in flight from now on.
    pub(crate) fn finish(mut self, num_open_blocks: u32) -> (StepPlan, StepInFlight) {
        let step = self.plan.step;
        if self.seqs.is_empty() {
            self.plan.clear();
        } else {
            self.plan.num_open_blocks = num_open_blocks;
        }
        (self.plan, StepInFlight { step, async_next: false, seqs: self.seqs })
    }
}
