//! A device of tests. An adapter is a file with a number, its bytes and its rank. Tokens depend on that number, and on the
//! numbers of the adapters that wrote the cache.

use std::any::Any;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octavo_scheduler::{NO_ADAPTER, Output, PlanSeq, StepPlan};

use crate::test_engine::{VOCAB, engine_over, executor_info};
use crate::*;

/// The number of rows without an adapter.
pub const NONE: u64 = 0;
/// Width of a hidden state.
const WIDTH: usize = 2;

/// A packed adapter; `alive` counts those that are not freed.
pub struct MockAdapter {
    pub number: u64,
    alive: Arc<AtomicUsize>,
}

impl Drop for MockAdapter {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What tests see of the device.
#[derive(Clone, Default)]
pub struct Seen {
    /// Packed adapters that are not freed.
    pub alive: Arc<AtomicUsize>,
    /// Adapters packed in all.
    pub packs: Arc<AtomicUsize>,
    /// Most distinct adapters in one step.
    pub most: Arc<AtomicUsize>,
    /// Held by a test: steps wait, or packing does.
    pub step_gate: Arc<Mutex<()>>,
    pub pack_gate: Arc<Mutex<()>>,
}

pub struct MockBackend(Seen);

/// Number, bytes, rank of the adapter of a folder.
fn read(folder: &Path) -> Result<(String, Vec<u64>), EngineError> {
    let path = folder.join("adapter.txt");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| EngineError::ModelNotFound(format!("{}: {e}", path.display())))?;
    let numbers = text.split(' ').map(|n| n.parse().map_err(|_| EngineError::CorruptModel(text.clone())));
    let numbers = numbers.collect::<Result<Vec<u64>, _>>()?;
    Ok((text, numbers))
}

impl AdapterBackend for MockBackend {
    fn open(&self, folder: &Path) -> Result<AdapterInfo, EngineError> {
        let (digest, numbers) = read(folder)?;
        Ok(AdapterInfo {
            folder: folder.to_owned(),
            digest,
            rank: numbers[2] as usize,
            packed_bytes: numbers[1],
            modules: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn pack(&self, info: &AdapterInfo) -> Result<Arc<dyn Any + Send + Sync>, EngineError> {
        drop(self.0.pack_gate.lock());
        let (digest, numbers) = read(&info.folder)?;
        info.check_digest(&digest)?;
        assert!(numbers[0] != 13, "planted panic");
        self.0.packs.fetch_add(1, Ordering::SeqCst);
        self.0.alive.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(MockAdapter { number: numbers[0], alive: Arc::clone(&self.0.alive) }))
    }
}

/// One slot of the cache: the token, and the number of the adapter that wrote it.
type Cell = (u32, u64);

pub struct MockExecutor {
    seen: Seen,
    cells: Vec<Cell>,
    block_size: usize,
    rows: Vec<(Output, Vec<f32>)>,
}

/// The token behind these cells.
fn next(cells: impl Iterator<Item = Cell>, number: u64) -> u32 {
    let mix = |h: u64, x: u64| (h ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
    let hash = cells.fold(mix(1, number), |h, (token, own)| mix(mix(h, u64::from(token)), own));
    97 + (hash % 26) as u32
}

/// What a request must generate, without an engine.
pub fn expected(prompt: &str, number: u64, count: usize) -> String {
    let mut tokens: Vec<u32> = prompt.bytes().map(u32::from).collect();
    for _ in 0..count {
        tokens.push(next(tokens.iter().map(|t| (*t, number)), number));
    }
    tokens[prompt.len()..].iter().map(|t| char::from(*t as u8)).collect()
}

impl MockExecutor {
    fn number(step: &StepInput, seq: &PlanSeq) -> u64 {
        if seq.adapter == NO_ADAPTER {
            return NONE;
        }
        let found = step.adapters.iter().find(|(id, _)| *id == seq.adapter);
        let adapter = found.and_then(|(_, packed)| packed.get::<MockAdapter>());
        adapter.expect("the adapter of each sequence comes with the step").number
    }

    fn write(&mut self, plan: &StepPlan, seq: &PlanSeq, number: u64) {
        for row in seq.query_start..seq.query_start + seq.query_len {
            self.cells[plan.slots[row as usize] as usize] = (plan.tokens[row as usize], number);
        }
    }

    fn read(&self, plan: &StepPlan, seq: &PlanSeq, row: u32) -> impl Iterator<Item = Cell> {
        let context = (seq.context_len - seq.query_len + row + 1) as usize;
        (0..context).map(move |position| {
            let block = plan.block_tables[seq.block_table_start as usize + position / self.block_size];
            self.cells[block as usize * self.block_size + position % self.block_size]
        })
    }
}

impl Executor for MockExecutor {
    fn info(&self) -> ExecutorInfo {
        ExecutorInfo { hidden_size: Some(WIDTH), ..executor_info() }
    }

    fn adapters(&self) -> Option<Arc<dyn AdapterBackend>> {
        Some(Arc::new(MockBackend(self.seen.clone())))
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        drop(self.seen.step_gate.lock());
        let plan = &step.plan;
        self.seen.most.fetch_max(step.adapters.len(), Ordering::SeqCst);
        for &[from, to] in &plan.copies {
            let (from, size) = (from as usize * self.block_size, self.block_size);
            self.cells.copy_within(from..from + size, to as usize * size);
        }
        let numbers: Vec<u64> = plan.seqs.iter().map(|seq| Self::number(step, seq)).collect();
        plan.seqs.iter().zip(&numbers).for_each(|(seq, number)| self.write(plan, seq, *number));
        let row = |(i, row): (usize, u32)| {
            let (seq, number) = (&plan.seqs[i], numbers[i]);
            let token = next(self.read(plan, seq, row), number);
            let mut out = vec![0.0; if seq.output == Output::Hidden { WIDTH } else { VOCAB }];
            match seq.output {
                Output::Hidden => (out[0], out[1]) = (token as f32, number as f32),
                Output::Tokens => out[token as usize] = 20.0,
            }
            (seq.output, out)
        };
        let rows = step.rows().map(row).collect();
        self.rows = rows;
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, StepError> {
        Ok(StepOutput::default())
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        *out = self.rows[rows].iter().flat_map(|(_, row)| row.iter().copied()).collect();
        Ok(())
    }
}

/// Folders of adapters.
pub struct Folders(tempfile::TempDir);

impl Folders {
    /// A folder with an adapter of this number and size.
    pub fn write(&self, name: &str, number: u64, bytes: u64) -> PathBuf {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("adapter.txt"), format!("{number} {bytes} 8")).expect("a file");
        folder
    }
}

/// An engine over the device, what is seen of it, and a place for adapters.
pub fn mock_engine(change: impl FnOnce(&mut Limits)) -> (Engine, Seen, Folders) {
    let seen = Seen::default();
    let mut limits = None;
    let cells = vec![(0, 0); 4 * 1024];
    let executor = MockExecutor { seen: seen.clone(), cells, block_size: 4, rows: Vec::new() };
    let engine = engine_over(executor, |l| {
        (l.max_lora_memory, l.num_blocks) = (1000, 256);
        change(l);
        limits = Some(*l);
    });
    assert!(limits.is_some_and(|l| l.block_size == 4 && l.num_blocks <= 1024));
    (engine, seen, Folders(tempfile::tempdir().expect("a folder")))
}

/// Parameters with an adapter.
pub fn with(lora: &str, max_tokens: u32) -> SamplingParams {
    let lora = (!lora.is_empty()).then(|| lora.to_string());
    SamplingParams { lora, temperature: Some(0.0), max_tokens: Some(max_tokens), ..SamplingParams::default() }
}

/// Everything that a request gave.
pub struct MockAnswer {
    pub texts: Vec<String>,
    pub reason: Option<FinishReason>,
    pub error: Option<EngineError>,
    pub cached: u64,
    pub embedding: Option<Vec<f32>>,
}

/// Reads a stream to its end; fails if that takes too long.
pub fn answer(stream: &RequestStream) -> MockAnswer {
    let mut texts = vec![String::new(); 1];
    let mut reason = None;
    loop {
        let delta = stream.next(Duration::from_secs(120)).expect("the request hangs");
        for news in &delta.outputs {
            texts.resize(texts.len().max(news.index as usize + 1), String::new());
            texts[news.index as usize] += &news.text;
            reason = news.finish_reason.or(reason);
        }
        if delta.finished {
            let cached = delta.metrics.as_ref().map_or(0, |m| m.cached_prompt_tokens);
            return MockAnswer { texts, reason, error: delta.error, cached, embedding: delta.embedding };
        }
    }
}
