//! An executor that stores what it is told where it is told, and derives tokens from what it reads back.
//!
//! A wrong table, a block freed too early, a missed copy or a stale prefix hit changes what it reads.

use std::collections::{BTreeMap, BTreeSet};

use octavo_scheduler::{
    NO_ADAPTER, NewRequest, NextTokens, Output, PlanSeq, SchedulerConfig, SeqResult, StepPlan,
    max_open_blocks,
};

use super::adapters::SimAdapters;
use super::oracle::next_token;
use super::random::{Random, mix};

/// What one slot holds: everything that the keys and values of a token depend on, except the tokens before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    token: u32,
    position: u32,
    /// The pack, or salt, adapter and attention policy of the request that wrote it.
    owner: u64,
}

/// The owner of a pack's tokens.
fn pack_owner(id: u32) -> u64 {
    mix(u64::from(id), 0x7061_636b)
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
fn owner(seq: &PlanSeq, request: &NewRequest, adapters: Option<&SimAdapters>) -> u64 {
    let name = |name: &Option<Box<str>>| match name {
        Some(text) => text.bytes().fold(1, |hash, byte| mix(hash, u64::from(byte))),
        None => 0,
    };
    let adapter = adapters.map_or(u64::from(request.adapter), |adapters| content(seq, adapters));
    let policy = mix(adapter, u64::from(request.attention.bits()));
    mix(name(&request.salt), policy)
}

/// The content that the rows of a sequence run with, which must be its request's.
fn content(seq: &PlanSeq, adapters: &SimAdapters) -> u64 {
    let found = match seq.adapter {
        NO_ADAPTER => 0,
        id => *adapters.memory.get(&id).unwrap_or_else(|| panic!("adapter {id} runs and is not in memory")),
    };
    assert_eq!(found, adapters.contents[&seq.request], "request {} runs with another adapter", seq.request);
    found
}

/// Whether the rows of this chunk are prompt rows whose logits the request wants.
fn reports(seq: &PlanSeq, request: &NewRequest) -> bool {
    let first = seq.context_len - seq.query_len + seq.sample_rows[0];
    request.prompt_logits && !seq.sample_rows().is_empty() && (first as usize) < request.prompt.len()
}

/// Makes block copies, last one first: their order is free.
fn copy_blocks(slots: &mut [Option<Cell>], size: usize, copies: &[[u32; 2]]) {
    let sources: BTreeSet<u32> = copies.iter().map(|c| c[0]).collect();
    let destinations: BTreeSet<u32> = copies.iter().map(|c| c[1]).collect();
    assert_eq!(destinations.len(), copies.len(), "a block is copied to twice");
    assert!(sources.is_disjoint(&destinations), "a block is copied from and to");
    for copy in copies.iter().rev() {
        let [source, destination] = copy.map(|block| block as usize * size);
        slots.copy_within(source..source + size, destination);
    }
}

pub struct Executor {
    block_size: usize,
    stop_one_in: u64,
    slots: Vec<Option<Cell>>,
    /// Slots of open blocks; none unless the cache is like an int8 one. `slots` then holds sealed blocks only.
    open_slots: Option<Vec<Option<Cell>>>,
    /// Of each sequence of the step: salt, adapter and attention policy.
    owners: Vec<u64>,
    /// The token that each sequence of the last step drew, if it was one.
    drawn: Vec<Option<u32>>,
    /// Tokens of each pack that there has been.
    packs: BTreeMap<u32, usize>,
    /// Prompt rows reported so far, for requests with `prompt_logits`.
    pub reported: BTreeMap<u64, u32>,
    /// How often the last prompt row was reported, for requests for hidden states.
    pub last_rows: BTreeMap<u64, u32>,
}

impl Executor {
    pub fn new(config: &SchedulerConfig, stop_one_in: u64) -> Self {
        let c = config;
        let open = max_open_blocks(c.max_num_seqs, c.max_num_batched_tokens, c.block_size);
        Self {
            block_size: c.block_size as usize,
            stop_one_in,
            slots: vec![None; (c.num_blocks * c.block_size) as usize],
            open_slots: c.open_blocks.then(|| vec![None; (open * c.block_size) as usize]),
            owners: Vec::new(),
            drawn: Vec::new(),
            packs: BTreeMap::new(),
            reported: BTreeMap::new(),
            last_rows: BTreeMap::new(),
        }
    }

    /// Runs a plan. A sequence that fails writes some rows and leaves others undefined. Sequences of requests in `failed`
    /// were planned before the failure was reported; their results are not used.
    pub fn run(
        &mut self,
        plan: &StepPlan,
        requests: &BTreeMap<u64, NewRequest>,
        failed: &BTreeSet<u64>,
        random: &mut Random,
        fail: Fail,
        adapters: Option<&SimAdapters>,
    ) -> Vec<SeqResult> {
        let plan = &self.with_tokens(plan);
        self.owners.clear();
        self.owners.extend(plan.seqs.iter().map(|seq| owner(seq, &requests[&seq.request], adapters)));
        let results = self.results(plan, requests, failed, random, fail);
        self.drawn.clear();
        self.drawn.extend(results.iter().map(|result| match result {
            SeqResult::Tokens(tokens) if tokens.len() == 1 => Some(tokens[0].token),
            _ => None,
        }));
        self.drawn.resize(plan.seqs.len(), None);
        results
    }

    /// Writes a pack's tokens into its blocks.
    pub fn import_pack(&mut self, id: u32, blocks: &[u32], tokens: &[u32]) {
        self.packs.insert(id, tokens.len());
        for (position, &token) in tokens.iter().enumerate() {
            let (block, offset) = (position / self.block_size, position % self.block_size);
            let cell = Cell { token, position: position as u32, owner: pack_owner(id) };
            self.slots[blocks[block] as usize * self.block_size + offset] = Some(cell);
        }
    }

    /// Runs the plan of a check, and compares what it reads.
    pub fn write_check(&mut self, plan: &StepPlan, id: u32) {
        self.check_lists(plan);
        let seq = &plan.seqs[0];
        for (row, &position) in plan.positions.iter().enumerate() {
            let cell = Some(Cell { token: plan.tokens[row], position, owner: pack_owner(id) });
            match &mut self.open_slots {
                Some(open_slots) => open_slots[plan.open_slots[row] as usize] = cell,
                None => self.slots[plan.slots[row] as usize] = cell,
            }
        }
        for position in 0..seq.context_len {
            let cell = self.read(plan, seq, position as usize).expect("reads a slot that was written");
            assert_eq!((cell.position, cell.owner), (position, pack_owner(id)), "a check reads the pack");
        }
    }

    /// The owner of a request's token at this position. `own`: that of the request without its pack.
    fn owner_at(&self, request: &NewRequest, position: u32, own: u64) -> u64 {
        match request.pack {
            Some(pack) if (position as usize) < self.packs[&pack] => pack_owner(pack),
            Some(pack) => mix(own, pack_owner(pack)),
            None => own,
        }
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
        copy_blocks(&mut self.slots, self.block_size, &plan.copies);
        if let Some(open_slots) = &mut self.open_slots {
            copy_blocks(open_slots, self.block_size, &plan.open_copies);
        }
        self.check_lists(plan);
        let mut rows = 0;
        let mut failing = Vec::with_capacity(plan.seqs.len());
        for (place, seq) in plan.seqs.iter().enumerate() {
            let fails = fail.hits(place, random);
            failing.push(fails);
            assert_eq!(seq.query_start, rows, "queries lie one behind the other");
            rows += seq.query_len;
            let request = &requests[&seq.request];
            let own = self.owners[place];
            for row in seq.query_start as usize..rows as usize {
                let position = plan.positions[row];
                let owner = self.owner_at(request, position, own);
                let cell = Cell { token: plan.tokens[row], position, owner };
                let slot = match &mut self.open_slots {
                    Some(open_slots) => &mut open_slots[plan.open_slots[row] as usize],
                    None => &mut self.slots[plan.slots[row] as usize],
                };
                *slot = (!fails || random.one_in(2)).then_some(cell);
            }
        }
        if let Some(open_slots) = &self.open_slots {
            for &[block, open] in &plan.sealed {
                let [block, open] = [block, open].map(|b| b as usize * self.block_size);
                self.slots[block..block + self.block_size]
                    .copy_from_slice(&open_slots[open..open + self.block_size]);
            }
        }
        assert_eq!([plan.tokens.len(), plan.positions.len(), plan.slots.len()], [rows as usize; 3]);
        if fail == Fail::All {
            return Vec::new();
        }
        let seqs = plan.seqs.iter().zip(&self.owners);
        let results = seqs.zip(failing).map(|((seq, &owner), fails)| match (fails, seq.num_samples) {
            _ if failed.contains(&seq.request) => SeqResult::Failed,
            (false, _) => self.result(plan, seq, &requests[&seq.request], owner),
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

    /// What a query of `seq` reads at `position`: blocks with new tokens are open, earlier ones are sealed.
    fn read(&self, plan: &StepPlan, seq: &PlanSeq, position: usize) -> Option<Cell> {
        let (size, block) = (self.block_size, position / self.block_size);
        let first_open = (seq.context_len - seq.query_len) as usize / size;
        match &self.open_slots {
            Some(open_slots) if block >= first_open => {
                let open = plan.open_blocks[seq.open_block_start as usize + block - first_open];
                open_slots[open as usize * size + position % size]
            }
            _ => {
                let block = plan.block_tables[seq.block_table_start as usize + block];
                self.slots[block as usize * size + position % size]
            }
        }
    }

    /// Checks that no slot is written twice, and that the lists of open blocks have their lengths.
    fn check_lists(&self, plan: &StepPlan) {
        for (slots, name) in [(&plan.slots, "slot"), (&plan.open_slots, "slot of an open block")] {
            let mut slots = slots.clone();
            slots.sort_unstable();
            assert!(slots.windows(2).all(|pair| pair[0] != pair[1]), "a {name} is written twice");
        }
        if self.open_slots.is_none() {
            let lens =
                [plan.open_blocks.len(), plan.open_slots.len(), plan.sealed.len(), plan.open_copies.len()];
            assert_eq!(lens, [0; 4], "a cache without open blocks");
            return;
        }
        assert_eq!(plan.open_slots.len(), plan.tokens.len(), "each token has a slot in an open block");
        assert_eq!(plan.open_copies.len(), plan.copies.len(), "a copied block is open");
        assert!(plan.open_blocks.iter().all(|&open| open < plan.num_open_blocks), "open blocks are counted");
        let (mut blocks, mut full) = (0, 0);
        for seq in &plan.seqs {
            assert_eq!(seq.open_block_start as usize, blocks, "open blocks lie one behind the other");
            let (size, first) = (self.block_size as u32, seq.context_len - seq.query_len);
            blocks += (seq.context_len.div_ceil(size) - first / size) as usize;
            full += (seq.context_len / size - first / size) as usize;
        }
        assert_eq!([plan.open_blocks.len(), plan.sealed.len()], [blocks, full], "open and sealed blocks");
    }

    fn result(&self, plan: &StepPlan, seq: &PlanSeq, request: &NewRequest, own: u64) -> SeqResult {
        let context: Vec<u32> = (0..seq.context_len as usize)
            .map(|position| {
                let cell = self.read(plan, seq, position).expect("reads a slot that was written");
                let read = (cell.position, cell.owner);
                let owner = self.owner_at(request, position as u32, own);
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
