//! An executor that stores what it is told where it is told, and derives tokens from what it reads back.
//!
//! A wrong table, a block freed too early, a missed copy or a stale prefix hit changes what it reads.

use std::collections::{BTreeMap, BTreeSet};

use octavo_scheduler::{Logits, NewRequest, NextTokens, PlanSeq, SeqResult, StepPlan};

use crate::oracle::next_token;
use crate::random::Random;

/// What one slot holds: everything that the keys and values of a token depend on, except the tokens before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    token: u32,
    position: u32,
    salt: Option<Box<str>>,
    adapter: Option<Box<str>>,
}

pub struct Executor {
    block_size: usize,
    slots: Vec<Option<Cell>>,
    /// Prompt rows reported so far, for requests with `prompt_logits`.
    pub reported: BTreeMap<u64, u32>,
}

impl Executor {
    pub fn new(num_blocks: u32, block_size: u32) -> Self {
        let slots = vec![None; (num_blocks * block_size) as usize];
        Self { block_size: block_size as usize, slots, reported: BTreeMap::new() }
    }

    /// Runs a plan. One sequence in `fail_one_in` fails (0: none), some rows of it written or not.
    pub fn run(
        &mut self,
        plan: &StepPlan,
        requests: &BTreeMap<u64, NewRequest>,
        random: &mut Random,
        fail_one_in: u32,
    ) -> Vec<SeqResult> {
        let size = self.block_size;
        let sources: BTreeSet<u32> = plan.copies.iter().map(|c| c[0]).collect();
        let destinations: BTreeSet<u32> = plan.copies.iter().map(|c| c[1]).collect();
        assert_eq!(destinations.len(), plan.copies.len(), "a block is copied to twice");
        assert!(sources.is_disjoint(&destinations), "a block is copied from and to");
        for &[source, destination] in plan.copies.iter().rev() {
            for offset in 0..size {
                self.slots[destination as usize * size + offset] =
                    self.slots[source as usize * size + offset].clone();
            }
        }
        assert_eq!(
            plan.slots.iter().collect::<BTreeSet<_>>().len(),
            plan.slots.len(),
            "a slot is written twice"
        );
        let mut rows = 0;
        for seq in &plan.seqs {
            assert_eq!(seq.query_start, rows, "queries lie one behind the other");
            rows += seq.query_len;
            let request = &requests[&seq.request];
            for row in seq.query_start as usize..rows as usize {
                self.slots[plan.slots[row] as usize] = Some(Cell {
                    token: plan.tokens[row],
                    position: plan.positions[row],
                    salt: request.salt.clone(),
                    adapter: request.adapter.clone(),
                });
            }
        }
        assert_eq!([plan.tokens.len(), plan.positions.len(), plan.slots.len()], [rows as usize; 3]);
        let results = plan.seqs.iter().map(|seq| {
            if fail_one_in > 0 && random.one_in(fail_one_in) {
                return SeqResult::Failed;
            }
            self.result(plan, seq, &requests[&seq.request])
        });
        // `result` counts rows, so it runs on a copy of the counter.
        let results: Vec<_> = results.collect();
        for (seq, result) in plan.seqs.iter().zip(&results) {
            if seq.logits == Logits::All && *result != SeqResult::Failed {
                let reported = self.reported.entry(seq.request).or_default();
                assert_eq!(
                    *reported,
                    seq.context_len - seq.query_len,
                    "prompt rows come in order, each once"
                );
                *reported = seq.context_len;
            }
        }
        results
    }

    fn result(&self, plan: &StepPlan, seq: &PlanSeq, request: &NewRequest) -> SeqResult {
        let size = self.block_size;
        let table = &plan.block_tables[seq.block_table_start as usize..];
        let context: Vec<u32> = (0..seq.context_len as usize)
            .map(|position| {
                let slot = table[position / size] as usize * size + position % size;
                let cell = self.slots[slot].as_ref().expect("reads a slot that was written");
                let expected = (position as u32, &request.salt, &request.adapter);
                let read = (cell.position, &cell.salt, &cell.adapter);
                assert_eq!(read, expected, "request {} reads another's slot", seq.request);
                cell.token
            })
            .collect();
        let start = (seq.context_len - seq.query_len) as usize;
        let query = &plan.tokens[seq.query_start as usize..][..seq.query_len as usize];
        assert_eq!(&context[start..], query, "the query is written at the end of the context");
        let positions = &plan.positions[seq.query_start as usize..][..seq.query_len as usize];
        assert!(positions.iter().copied().eq(start as u32..seq.context_len), "positions run on");
        assert!(seq.forks > 0 || seq.logits != Logits::Last, "logits are wanted for a sample");
        assert!(seq.forks == 0 || seq.logits != Logits::None, "a sample needs logits");
        let prompt = context.len().min(request.prompt.len());
        assert_eq!(context[..prompt], request.prompt[..prompt], "request {} reads its prompt", seq.request);
        if seq.forks == 0 {
            return SeqResult::Prefilled;
        }
        let tokens: NextTokens =
            (seq.sample..seq.sample + seq.forks).map(|s| next_token(seq.request, s, &context)).collect();
        SeqResult::Tokens(tokens)
    }
}
