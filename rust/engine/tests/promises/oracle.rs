//! An executor whose next token depends on everything that it reads back through the block table, so that a wrong table, a
//! missed copy or a block freed early changes an output. It does wrong what its script says, and keeps a log of that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex};

use octavo_engine::{
    Draw, Engine, EngineParts, Executor, GenerationDefaults, Limits, Logprob, OutcomeSink, RowOutcome,
    RowSink, StepError, Tokenizer,
};
use octavo_scheduler::{PlanSeq, StepPlan};

use crate::folder::{VOCAB, tokenizer_json};

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The step fails before it computes anything.
    Error,
    /// The step fails after half of its rows went out.
    LateError,
    /// Panics before any row.
    Panic,
    /// Panics after half of the rows.
    LatePanic,
    /// A NaN in the logits of one sequence.
    Nan,
    /// Infinite logits for one sequence.
    Infinite,
    /// The last rows never come, though the step says that it went well.
    Silent,
    /// Waits until the script lets it go on.
    Stall,
    /// The executor cannot go on.
    Dead,
}

/// Faults to come, and what came of them. Shared with the test.
#[derive(Default)]
pub struct Script {
    /// By step, counted from 1.
    pub faults: Mutex<HashMap<u64, Fault>>,
    /// Every n-th step has the next of these faults.
    pub every: Option<(u64, Vec<Fault>)>,
    /// Requests that were hit, and so must fail.
    pub hit: Mutex<HashSet<u64>>,
    /// Faults that happened.
    pub happened: Mutex<Vec<Fault>>,
    /// A stalled step waits for true.
    pub go_on: Mutex<bool>,
    pub gate: Condvar,
}

impl Script {
    /// One fault in one step.
    pub fn at(step: u64, fault: Fault) -> Arc<Self> {
        Arc::new(Self { faults: Mutex::new(HashMap::from([(step, fault)])), ..Self::default() })
    }

    /// Ends a stall.
    pub fn release(&self) {
        *self.go_on.lock().expect("lock") = true;
        self.gate.notify_all();
    }

    fn fault_of(&self, step: u64) -> Option<Fault> {
        let planned = self.faults.lock().expect("lock").get(&step).copied();
        let cycle = self.every.as_ref().filter(|(n, _)| step.is_multiple_of(*n));
        planned.or(cycle.map(|(n, faults)| faults[(step / n) as usize % faults.len()]))
    }

    fn hits(&self, fault: Fault, seqs: &[PlanSeq]) {
        self.happened.lock().expect("lock").push(fault);
        self.hit.lock().expect("lock").extend(seqs.iter().map(|s| s.request));
    }
}

/// Tokens are written into `slots`, and the next token is a hash of all that are read back.
struct Oracle {
    slots: Vec<u32>,
    block_size: usize,
    steps: u64,
    script: Arc<Script>,
}

/// An oracle that computes steps as they begin, one behind the other, and draws tokens itself, as a device would.
struct Device {
    oracle: Oracle,
    /// What each sequence of the step that began last draws.
    drawn: Vec<Option<u32>>,
    begun: VecDeque<Begun>,
}

/// A step that has begun: its rows, and how it ends.
struct Begun {
    rows: Vec<((usize, u32), Vec<f32>)>,
    outcome: Result<(), StepError>,
}

/// The token after `context`: a lower-case letter.
fn next_token(context: impl Iterator<Item = u32>) -> u32 {
    let hash =
        context.fold(0xcbf2_9ce4_8422_2325u64, |h, t| (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3));
    97 + (hash >> 33) as u32 % 26
}

/// What a request alone gives: `count` tokens after `prompt`.
pub fn continuation(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..count {
        all.push(next_token(all.iter().copied()));
    }
    all.split_off(prompt.len())
}

impl Oracle {
    /// Tokens of `seq` up to the row `row` of its chunk, read through the block table.
    fn context<'a>(&'a self, plan: &'a StepPlan, seq: &PlanSeq, row: u32) -> impl Iterator<Item = u32> + 'a {
        let table = &plan.block_tables[seq.block_table_start as usize..];
        let end = (seq.context_len - seq.query_len + row + 1) as usize;
        let size = self.block_size;
        (0..end).map(move |p| self.slots[table[p / size] as usize * size + p % size])
    }
}

/// The token drawn from a row, if it holds numbers only.
fn drawn(logits: &[f32]) -> Option<u32> {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.filter(|_| logits.iter().all(|l| l.is_finite())).map(|best| best as u32)
}

/// The token's own log-probability and those of the first `top` tokens in the order of their logits.
fn logprobs(logits: &[f32], token: u32, top: usize) -> Vec<Logprob> {
    let sum = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let entry = |(rank, &id): (usize, &u32)| Logprob {
        token_id: id,
        logprob: logits[id as usize] - sum,
        rank: rank as u32 + 1,
    };
    let own = order.iter().enumerate().filter(|(_, id)| **id == token).map(entry);
    own.chain(order.iter().enumerate().take(top).map(entry)).collect()
}

impl Executor for Device {
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError> {
        self.oracle.execute(plan, sink)
    }

    fn draws(&self) -> bool {
        true
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn begin(&mut self, plan: &Arc<StepPlan>, _: &Arc<Vec<Draw>>) -> Result<(), StepError> {
        assert!(self.begun.len() < 2, "two steps at most are under way");
        let mut plan = StepPlan::clone(plan);
        for &[row, seq] in &plan.placeholders {
            assert_eq!(self.begun.len(), 1, "a token is awaited of a step that is done");
            plan.tokens[row as usize] = self.drawn[seq as usize].unwrap_or(0);
        }
        self.drawn = vec![None; plan.seqs.len()];
        let mut rows = Vec::new();
        let outcome = self.execute(&plan, &mut |of, logits| rows.push((of[0], logits.to_vec())));
        for ((seq, row), logits) in &rows {
            if *row + 1 == plan.seqs[*seq].query_len {
                self.drawn[*seq] = drawn(logits);
            }
        }
        self.begun.push_back(Begun { rows, outcome });
        Ok(())
    }

    fn finish(
        &mut self,
        _: &Arc<StepPlan>,
        draws: &Arc<Vec<Draw>>,
        sink: &mut OutcomeSink<'_>,
    ) -> Result<(), StepError> {
        let Begun { rows, outcome } = self.begun.pop_front().expect("a step that has begun");
        for ((seq, row), logits) in &rows {
            let Some(draw) = draws.iter().find(|draw| draw.seq as usize == *seq) else {
                sink(RowOutcome::Rows(&[(*seq, *row)], logits));
                continue;
            };
            let token = drawn(logits);
            let top = usize::try_from(draw.logprobs).ok();
            let logprobs = top.zip(token).map_or_else(Vec::new, |(top, token)| logprobs(logits, token, top));
            sink(RowOutcome::Drawn { seq: *seq, token, logprobs });
        }
        outcome
    }
}

impl Executor for Oracle {
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError> {
        self.steps += 1;
        let fault = self.script.fault_of(self.steps);
        // Of one sequence: the one in the middle that wants a row. Without one nothing happens.
        let asking: Vec<usize> =
            (0..plan.seqs.len()).filter(|i| !plan.seqs[*i].sample_rows().is_empty()).collect();
        let victim = asking.get(asking.len() / 2).copied();
        match fault {
            Some(Fault::Error | Fault::LateError | Fault::Panic | Fault::LatePanic | Fault::Dead) => {
                self.script.hits(fault.expect("fault"), &plan.seqs);
            }
            Some(Fault::Nan | Fault::Infinite) => {
                if let Some(i) = victim {
                    self.script.hits(fault.expect("fault"), &plan.seqs[i..=i]);
                }
            }
            Some(Fault::Silent) => {
                let silent: Vec<PlanSeq> = asking[asking.len() / 2..].iter().map(|i| plan.seqs[*i]).collect();
                self.script.hits(Fault::Silent, &silent);
            }
            Some(Fault::Stall) => self.script.hits(Fault::Stall, &[]),
            None => {}
        }
        match fault {
            Some(Fault::Error) => return Err(StepError::Step("planted error".into())),
            Some(Fault::Dead) => return Err(StepError::Dead("planted death".into())),
            Some(Fault::Panic) => panic!("planted panic"),
            Some(Fault::Stall) => {
                let open = self.script.go_on.lock().expect("lock");
                drop(self.script.gate.wait_while(open, |open| !*open).expect("lock"));
            }
            _ => {}
        }
        for &[from, to] in &plan.copies {
            let (from, to) = (from as usize * self.block_size, to as usize * self.block_size);
            self.slots.copy_within(from..from + self.block_size, to);
        }
        for (slot, token) in plan.slots.iter().zip(&plan.tokens) {
            self.slots[*slot as usize] = *token;
        }
        let mut logits = vec![0.0f32; VOCAB];
        for (place, &i) in asking.iter().enumerate() {
            let seq = &plan.seqs[i];
            let half = place >= asking.len() / 2;
            match fault {
                Some(Fault::LateError) if half => return Err(StepError::Step("planted late error".into())),
                Some(Fault::LatePanic) if half => panic!("planted late panic"),
                Some(Fault::Silent) if half => return Ok(()),
                _ => {}
            }
            for row in seq.sample_rows() {
                logits.fill(0.0);
                logits[next_token(self.context(plan, seq, row)) as usize] = 20.0;
                match fault {
                    Some(Fault::Nan) if victim == Some(i) => logits[5] = f32::NAN,
                    Some(Fault::Infinite) if victim == Some(i) => logits[5] = f32::INFINITY,
                    _ => {}
                }
                sink(&[(i, row)], &logits);
            }
        }
        Ok(())
    }
}

/// An engine over the oracle. `overlaps`: it begins a step before the one before has ended.
pub fn engine(script: Arc<Script>, limits: Limits, prefix_caching: bool, overlaps: bool) -> Engine {
    let oracle = Oracle {
        slots: vec![0; (limits.num_blocks * limits.block_size) as usize],
        block_size: limits.block_size as usize,
        steps: 0,
        script,
    };
    let executor: Box<dyn Executor> = match overlaps {
        true => Box::new(Device { oracle, drawn: Vec::new(), begun: VecDeque::new() }),
        false => Box::new(oracle),
    };
    let tokenizer = Tokenizer::parse(tokenizer_json().to_string().as_bytes(), serde_json::Map::new());
    Engine::start(EngineParts {
        executor,
        tokenizer: tokenizer.expect("tokenizer"),
        template: None,
        vocab: VOCAB,
        spec: None,
        generation: GenerationDefaults { eos: vec![256], ..GenerationDefaults::default() },
        limits,
        prefix_caching,
        prefill_chunk: Some(5),
        seed: 0,
        info: serde_json::json!({}),
    })
    .expect("engine")
}
