//! An executor whose next token depends on everything that it reads back through the block table, so that a wrong table, a
//! missed copy or a block freed early changes an output. It does wrong what its script says, and keeps a log of that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use octavo_engine::{
    Engine, EngineParts, Executor, ExecutorInfo, GenerationDefaults, Limits, Logprob, SampledToken,
    StepError, StepInput, StepOutput, Ticket, Tokenizer,
};
use octavo_kernels::Kernels;
use octavo_scheduler::{AttentionPolicy, PlanSeq, StepPlan};

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

/// Tokens are written into `slots`, and the next token is a hash of all that are read back. A device computes steps in
/// `submit`, one behind the other, and samples tokens itself.
struct Oracle {
    slots: Vec<u32>,
    block_size: usize,
    steps: u64,
    script: Arc<Script>,
    is_device: bool,
    /// The token that each sequence of the step submitted last samples on the device.
    sampled: Vec<Option<u32>>,
    running: VecDeque<Computed>,
    /// The step last waited for.
    done: Computed,
}

/// A computed step: its rows by (sequence, row of the chunk), and how it ends.
#[derive(Default)]
struct Computed {
    rows: HashMap<(usize, u32), Vec<f32>>,
    step: Arc<StepInput>,
    /// What happens behind the last of `rows`.
    late: Option<Fault>,
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

/// The token sampled from a row, if it holds numbers only.
fn sampled(logits: &[f32]) -> Option<u32> {
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

impl Oracle {
    /// The fault of this step, noted in the script with the requests that it hits; and the sequence whose logits it spoils.
    fn fault(&mut self, seqs: &[PlanSeq], asking: &[usize]) -> (Option<Fault>, Option<usize>) {
        self.steps += 1;
        let fault = self.script.fault_of(self.steps);
        // Of one sequence: the one in the middle that wants a row. Without one nothing happens.
        let victim = asking.get(asking.len() / 2).copied();
        match fault {
            Some(Fault::Error | Fault::LateError | Fault::Panic | Fault::LatePanic | Fault::Dead) => {
                self.script.hits(fault.expect("fault"), seqs);
            }
            Some(Fault::Nan | Fault::Infinite) => {
                if let Some(i) = victim {
                    self.script.hits(fault.expect("fault"), &seqs[i..=i]);
                }
            }
            Some(Fault::Silent) => {
                let silent: Vec<PlanSeq> = asking[asking.len() / 2..].iter().map(|i| seqs[*i]).collect();
                self.script.hits(Fault::Silent, &silent);
            }
            Some(Fault::Stall) => self.script.hits(Fault::Stall, &[]),
            None => {}
        }
        (fault, victim)
    }

    /// Writes the tokens of a plan and computes the rows that it asks for.
    fn compute(&mut self, plan: &StepPlan, step: &Arc<StepInput>) -> Result<Computed, StepError> {
        let asking: Vec<usize> =
            (0..plan.seqs.len()).filter(|i| !plan.seqs[*i].sample_rows().is_empty()).collect();
        let (fault, victim) = self.fault(&plan.seqs, &asking);
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
        let late = fault.filter(|f| matches!(f, Fault::LateError | Fault::LatePanic | Fault::Silent));
        let computed = if late.is_some() { &asking[..asking.len() / 2] } else { &asking };
        let mut rows = HashMap::new();
        for &i in computed {
            let seq = &plan.seqs[i];
            for row in seq.sample_rows() {
                let mut logits = vec![0.0f32; VOCAB];
                logits[next_token(self.context(plan, seq, row)) as usize] = 20.0;
                match fault {
                    Some(Fault::Nan) if victim == Some(i) => logits[5] = f32::NAN,
                    Some(Fault::Infinite) if victim == Some(i) => logits[5] = f32::INFINITY,
                    _ => {}
                }
                rows.insert((i, row), logits);
            }
        }
        Ok(Computed { rows, step: Arc::clone(step), late })
    }
}

impl Computed {
    /// What a late fault does where a row is missing.
    fn missing(&self) -> Result<(), StepError> {
        match self.late {
            Some(Fault::LateError) => Err(StepError::Step("planted late error".into())),
            Some(Fault::LatePanic) => panic!("planted late panic"),
            _ => Ok(()),
        }
    }
}

impl Executor for Oracle {
    fn info(&self) -> ExecutorInfo {
        ExecutorInfo {
            vocab_size: VOCAB,
            hidden_size: None,
            samples_on_device: self.is_device,
            max_in_flight: if self.is_device { 2 } else { 1 },
            open_blocks: false,
            attention: AttentionPolicy::DENSE,
            bounds_attention: true,
            kernels: Arc::new(Kernels::single()),
        }
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        assert!(self.running.len() < self.info().max_in_flight, "two steps at most are under way");
        let mut plan = step.plan.clone();
        for &[row, seq] in &plan.placeholders {
            assert_eq!(self.running.len(), 1, "a token is awaited of a step that is done");
            plan.tokens[row as usize] = self.sampled[seq as usize].unwrap_or(0);
        }
        self.sampled = vec![None; plan.seqs.len()];
        let computed = self.compute(&plan, step)?;
        for ((seq, row), logits) in &computed.rows {
            if *row + 1 == plan.seqs[*seq].query_len {
                self.sampled[*seq] = sampled(logits);
            }
        }
        self.running.push_back(computed);
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, StepError> {
        self.done = self.running.pop_front().expect("a submitted step");
        let step = Arc::clone(&self.done.step);
        assert_eq!(ticket, Ticket(step.plan.step));
        let mut output = StepOutput::default();
        for spec in &step.samples {
            let seq = spec.seq as usize;
            let Some(logits) = self.done.rows.get(&(seq, step.plan.seqs[seq].query_len - 1)) else {
                self.done.missing()?;
                break;
            };
            let token = sampled(logits).map(|token| {
                let top = usize::try_from(spec.logprobs).ok();
                let logprobs = top.map_or_else(Vec::new, |top| logprobs(logits, token, top));
                SampledToken { token, logprobs }
            });
            output.sampled.push(token);
        }
        Ok(output)
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        out.clear();
        for row in self.done.step.rows().skip(rows.start).take(rows.len()) {
            match self.done.rows.get(&row) {
                Some(logits) => out.extend(logits),
                None => return self.done.missing(),
            }
        }
        Ok(())
    }
}

/// An engine over the oracle. `overlaps`: it takes a step before the one before has ended.
pub fn engine(script: Arc<Script>, limits: Limits, prefix_caching: bool, overlaps: bool) -> Engine {
    let oracle = Oracle {
        slots: vec![0; (limits.num_blocks * limits.block_size) as usize],
        block_size: limits.block_size as usize,
        steps: 0,
        script,
        is_device: overlaps,
        sampled: Vec::new(),
        running: VecDeque::new(),
        done: Computed::default(),
    };
    let tokenizer = Tokenizer::parse(tokenizer_json().to_string().as_bytes(), serde_json::Map::new());
    Engine::start(EngineParts {
        executor: Box::new(oracle),
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
