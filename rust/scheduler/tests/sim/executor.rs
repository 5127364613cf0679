//! An executor that stores what it is told where it is told, and derives tokens from what it reads back.
//!
//! A wrong table, a block freed too early, a missed copy or a stale prefix hit changes what it reads.

use std::collections::{BTreeMap, BTreeSet};

use octavo_scheduler::{NewRequest, NextTokens, Output, PlanSeq, SeqResult, StepPlan};

use super::oracle::next_token;
use super::random::{Random, mix};

/// What one slot holds: everything that the keys and values of a token depend on, except the tokens before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    token: u32,
    position: u32,
    /// Salt, adapter and attention policy of the request that wrote it.
    owner: u64,
}

/// Which sequences of a step fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fail {
    Nothing,
    /// Each with this chance.
    OneIn(u32),
    /// The one at this place.
    One(usize),
    /// All: there are no results.
    All,
}

impl Fail {
    fn hits(self, place: usize, random: &mut Random) -> bool {
        match self {
            Self::Nothing => false,
            Self::OneIn(n) => random.one_in(n),
            Self::One(one) => one == place,
            Self::All => true,
        }
    }
}

/// A request's salt, adapter and attention policy in one word.
fn owner(request: &NewRequest) -> u64 {
    let name = |name: &Option<Box<str>>| match name {
        Some(text) => text.bytes().fold(1, |hash, byte| mix(hash, u64::from(byte))),
        None => 0,
    };
    let policy = mix(u64::from(request.adapter), u64::from(request.attention.error_bound.to_bits()));
    mix(name(&request.salt), policy)
}

/// Whether the rows of this chunk are prompt rows whose logits the request wants.
fn reports(seq: &PlanSeq, request: &NewRequest) -> bool {
    let first = seq.context_len - seq.query_len + seq.sample_rows[0];
    request.prompt_logits && !seq.sample_rows().is_empty() && (first as usize) < request.prompt.len()
}

pub struct Executor {
    block_size: usize,
    stop_one_in: u64,
    slots: Vec<Option<Cell>>,
    /// The token that each sequence of the last step drew, if it was one.
    drawn: Vec<Option<u32>>,
    /// Prompt rows reported so far, for requests with `prompt_logits`.
    pub reported: BTreeMap<u64, u32>,
    /// How often the last prompt row was reported, for requests for hidden states.
    pub last_rows: BTreeMap<u64, u32>,
}

impl Executor {
    pub fn new(num_blocks: u32, block_size: u32, stop_one_in: u64) -> Self {
        let slots = vec![None; (num_blocks * block_size) as usize];
        Self {
            block_size: block_size as usize,
            stop_one_in,
            slots,
            drawn: Vec::new(),
            reported: BTreeMap::new(),
            last_rows: BTreeMap::new(),
        }
    }

    /// Runs a plan. Of a sequence that fails some rows are written and others are left undefined; if a sequence of a request
    /// in `failed` is here, it was planned before that came out, and nobody reads what it gives.
    pub fn run(
        &mut self,
        plan: &StepPlan,
        requests: &BTreeMap<u64, NewRequest>,
        failed: &BTreeSet<u64>,
        random: &mut Random,
        fail: Fail,
    ) -> Vec<SeqResult> {
        let plan = &self.with_tokens(plan);
        let results = self.results(plan, requests, failed, random, fail);
        self.drawn.clear();
        self.drawn.extend(results.iter().map(|result| match result {
            SeqResult::Tokens(tokens) if tokens.len() == 1 => Some(tokens[0].token),
            _ => None,
        }));
        self.drawn.resize(plan.seqs.len(), None);
        results
    }

    /// The plan with the tokens that it awaits from the step before.
    fn with_tokens(&self, plan: &StepPlan) -> StepPlan {
        let mut plan = plan.clone();
        for &[row, seq] in &plan.placeholders {
            assert_eq!(plan.tokens[row as usize], 0);
            plan.tokens[row as usize] = self.drawn[seq as usize].unwrap_or(0);
        }
        plan
    }

    fn results(
        &mut self,
        plan: &StepPlan,
        requests: &BTreeMap<u64, NewRequest>,
        failed: &BTreeSet<u64>,
        random: &mut Random,
        fail: Fail,
    ) -> Vec<SeqResult> {
        let size = self.block_size;
        let sources: BTreeSet<u32> = plan.copies.iter().map(|c| c[0]).collect();
        let destinations: BTreeSet<u32> = plan.copies.iter().map(|c| c[1]).collect();
        assert_eq!(destinations.len(), plan.copies.len(), "a block is copied to twice");
        assert!(sources.is_disjoint(&destinations), "a block is copied from and to");
        for &[source, destination] in plan.copies.iter().rev() {
            for offset in 0..size {
                self.slots[destination as usize * size + offset] =
                    self.slots[source as usize * size + offset];
            }
        }
        let mut slots = plan.slots.clone();
        slots.sort_unstable();
        assert!(slots.windows(2).all(|pair| pair[0] != pair[1]), "a slot is written twice");
        let mut rows = 0;
        let mut failing = Vec::with_capacity(plan.seqs.len());
        for (place, seq) in plan.seqs.iter().enumerate() {
            let fails = fail.hits(place, random);
            failing.push(fails);
            assert_eq!(seq.query_start, rows, "queries lie one behind the other");
            rows += seq.query_len;
            let request = &requests[&seq.request];
            let owner = owner(request);
            for row in seq.query_start as usize..rows as usize {
                let cell = Cell { token: plan.tokens[row], position: plan.positions[row], owner };
                self.slots[plan.slots[row] as usize] = (!fails || random.one_in(2)).then_some(cell);
            }
        }
        assert_eq!([plan.tokens.len(), plan.positions.len(), plan.slots.len()], [rows as usize; 3]);
        if fail == Fail::All {
            return Vec::new();
        }
        let results = plan.seqs.iter().zip(failing).map(|(seq, fails)| match (fails, seq.num_samples) {
            _ if failed.contains(&seq.request) => SeqResult::Failed,
            (false, _) => self.result(plan, seq, &requests[&seq.request]),
            // A result of the wrong kind counts as a failure.
            (true, 1..) if random.one_in(2) => SeqResult::Prefilled,
            (true, _) => SeqResult::Failed,
        });
        let results: Vec<_> = results.collect();
        for (seq, result) in plan.seqs.iter().zip(&results) {
            let fits = matches!(result, SeqResult::Tokens(_))
                || (*result == SeqResult::Prefilled && seq.num_samples == 0);
            let whole = seq.context_len as usize == requests[&seq.request].prompt.len();
            if seq.output == Output::Hidden && !seq.sample_rows().is_empty() && whole && fits {
                *self.last_rows.entry(seq.request).or_default() += 1;
            }
            if fits && reports(seq, &requests[&seq.request]) {
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
        let owner = owner(request);
        let context: Vec<u32> = (0..seq.context_len as usize)
            .map(|position| {
                let slot = table[position / size] as usize * size + position % size;
                let cell = self.slots[slot].as_ref().expect("reads a slot that was written");
                let read = (cell.position, cell.owner);
                assert_eq!(read, (position as u32, owner), "request {} reads another's slot", seq.request);
                cell.token
            })
            .collect();
        let start = (seq.context_len - seq.query_len) as usize;
        let query = &plan.tokens[seq.query_start as usize..][..seq.query_len as usize];
        assert_eq!(&context[start..], query, "the query is written at the end of the context");
        let positions = &plan.positions[seq.query_start as usize..][..seq.query_len as usize];
        assert!(positions.iter().copied().eq(start as u32..seq.context_len), "positions run on");
        let completes = seq.context_len as usize == request.prompt.len();
        let samples = seq.num_samples > 0 || (seq.output == Output::Hidden && completes);
        let rows = seq.sample_rows();
        assert!(rows.end <= seq.query_len && (rows.is_empty() || rows.end == seq.query_len), "{seq:?}");
        assert_eq!(
            rows.len() as u32,
            if reports(seq, request) { seq.query_len } else { u32::from(samples) },
            "{seq:?}"
        );
        assert_eq!((seq.adapter, seq.attention), (request.adapter, request.attention));
        assert!(seq.num_samples == 0 || seq.output == Output::Tokens, "hidden states draw nothing");
        assert!(seq.num_samples == 0 || !rows.is_empty(), "a sample needs logits");
        let prompt = context.len().min(request.prompt.len());
        assert_eq!(context[..prompt], request.prompt[..prompt], "request {} reads its prompt", seq.request);
        if seq.num_samples == 0 {
            return SeqResult::Prefilled;
        }
        let tokens: NextTokens = (seq.sample..seq.sample + seq.num_samples)
            .map(|s| next_token(seq.request, s, &context, self.stop_one_in))
            .collect();
        SeqResult::Tokens(tokens)
    }
}
