//! Results of a step, row by row. Reading a row of logits changes nothing, so the worker threads sample rows in parallel;
//! the results are applied in order on the engine thread.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use octavo_kernels::{Kernels, peak};
use octavo_scheduler::{NextToken, Output, SeqResult, StepPlan};

use crate::EngineError;
use crate::executor::{Executor, ExecutorInfo, ROWS_PER_READ, StepError, StepInput};
use crate::request::RequestState;
use crate::requests::RequestTable;
use crate::sampling::{Logprob, SampledToken, Sampler};

/// Reads rows from the executor and samples them with all threads of the kernels.
pub(crate) struct RowSampler {
    kernels: Arc<Kernels>,
    vocab_size: usize,
    hidden_size: usize,
    /// A block of rows.
    values: Vec<f32>,
    /// Memory of threads, while they do not sample.
    samplers: Mutex<Vec<Sampler>>,
}

/// A step whose results come in, and all that they change.
pub(crate) struct StepResults<'a> {
    pub plan: &'a StepPlan,
    pub requests: &'a mut RequestTable,
    /// One for each sequence of the plan.
    pub results: &'a mut [SeqResult],
}

/// A row of logits that a request asks for.
struct LogitsRequest {
    /// Index of the sequence in the plan.
    index: usize,
    request: u64,
    /// Position of the token that the row follows.
    position: u32,
    /// Samples that take their next token from the row.
    samples: Range<u32>,
}

/// Result of a row of logits.
#[derive(Default)]
struct RowResult {
    /// Log-probabilities of the next token of the prompt, if asked for.
    prompt: Option<Vec<Logprob>>,
    tokens: Vec<Result<SampledToken, EngineError>>,
}

impl StepResults<'_> {
    /// Takes the token that the executor sampled from the last row of sequence `index`; None: the logits were not numbers.
    pub fn take_sampled(&mut self, index: usize, token: Option<SampledToken>) {
        let request = self.logits_request(index, self.plan.seqs[index].query_len - 1);
        self.apply(request, RowResult { prompt: None, tokens: vec![token.ok_or_else(not_numbers)] });
    }

    /// Adds hidden states `[rows, width]` to embeddings, in order.
    fn pool(&mut self, rows: &[(usize, u32)], values: &[f32], width: usize) {
        for (&(index, row), values) in rows.iter().zip(values.chunks_exact(width)) {
            let seq = &self.plan.seqs[index];
            let Some(state) = self.requests.states.get_mut(&seq.request) else { continue };
            let Some(pooler) = &mut state.request.pooler else { continue };
            if let Err(e) = pooler.take(seq.context_len - seq.query_len + row, values) {
                state.error = Some(e);
                self.results[index] = SeqResult::Failed;
            }
        }
    }

    fn logits_request(&self, index: usize, row: u32) -> LogitsRequest {
        let seq = &self.plan.seqs[index];
        let num_samples = if row + 1 == seq.query_len { seq.num_samples } else { 0 };
        LogitsRequest {
            index,
            request: seq.request,
            position: seq.context_len - seq.query_len + row,
            samples: seq.sample..seq.sample + num_samples,
        }
    }

    fn apply(&mut self, row: LogitsRequest, result: RowResult) {
        let RequestTable { states, tokenizer, status, .. } = &mut *self.requests;
        let Some(state) = states.get_mut(&row.request) else { return };
        if let Some(prompt) = result.prompt {
            state.take_prompt_row(tokenizer, prompt);
        }
        // A sample that ended after this step was planned takes no more tokens.
        if row.samples.is_empty() || state.has_ended(row.samples.start) {
            return;
        }
        let now = Instant::now();
        if let Some(gap) = state.gap(row.samples.start, now) {
            status.histograms.gap(gap);
        }
        let tokens = row.samples.zip(result.tokens).map(|(sample, token)| {
            let (token, stop) = state.take(tokenizer, sample, token?, now)?;
            Ok(NextToken { token, stop })
        });
        self.results[row.index] = match tokens.collect() {
            Ok(tokens) => SeqResult::Tokens(tokens),
            Err(e) => {
                state.error = Some(e);
                SeqResult::Failed
            }
        };
    }
}

impl RowSampler {
    pub fn new(info: &ExecutorInfo) -> Self {
        Self {
            kernels: Arc::clone(&info.kernels),
            vocab_size: info.vocab_size,
            hidden_size: info.hidden_size.unwrap_or(1),
            values: Vec::new(),
            samplers: Mutex::default(),
        }
    }

    /// Reads the rows of a step in blocks, and samples them. Rows that the executor does not return stay without a result.
    pub fn read_rows(
        &mut self,
        executor: &mut dyn Executor,
        step: &StepInput,
        results: &mut StepResults<'_>,
    ) -> Result<(), StepError> {
        let rows: Vec<(usize, u32)> = step.rows().collect();
        let output = |row: &(usize, u32)| step.plan.seqs[row.0].output;
        let same_output = rows.chunk_by(|a, b| output(a) == output(b));
        let mut first = 0;
        for block in same_output.flat_map(|rows| rows.chunks(ROWS_PER_READ)) {
            executor.read_rows(first..first + block.len(), &mut self.values)?;
            first += block.len();
            match output(&block[0]) {
                Output::Tokens => self.sample_block(block, results),
                Output::Hidden => results.pool(block, &self.values, self.hidden_size),
            }
        }
        Ok(())
    }

    /// Samples a block of rows of logits, and applies the results.
    fn sample_block(&self, rows: &[(usize, u32)], results: &mut StepResults<'_>) {
        let rows = rows.iter().take(self.values.len() / self.vocab_size);
        let rows: Vec<_> = rows.map(|&(index, row)| results.logits_request(index, row)).collect();
        for row in &rows {
            if let Some(state) = results.requests.states.get_mut(&row.request) {
                state.prepare(row.samples.clone());
            }
        }
        let sampled = self.sample_rows(results.requests, &rows);
        for (row, result) in rows.into_iter().zip(sampled) {
            results.apply(row, result);
        }
    }

    /// The result of each row, in order.
    fn sample_rows(&self, requests: &RequestTable, rows: &[LogitsRequest]) -> Vec<RowResult> {
        let results: Vec<OnceLock<RowResult>> = rows.iter().map(|_| OnceLock::new()).collect();
        let samplers = || self.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        self.kernels.pool().run(rows.len(), &|i| {
            let Some(state) = requests.states.get(&rows[i].request) else { return };
            let mut sampler = samplers().pop().unwrap_or_default();
            let logits = &self.values[i * self.vocab_size..(i + 1) * self.vocab_size];
            let _ = results[i].set(sample_row(&self.kernels, &mut sampler, state, &rows[i], logits));
            samplers().push(sampler);
        });
        results.into_iter().map(|row| row.into_inner().unwrap_or_default()).collect()
    }
}

fn sample_row(
    kernels: &Kernels,
    sampler: &mut Sampler,
    state: &RequestState,
    row: &LogitsRequest,
    logits: &[f32],
) -> RowResult {
    let wanted = state.wants_prompt_row(row.position);
    if wanted.is_none() && row.samples.is_empty() {
        return RowResult::default();
    }
    let raw = peak(kernels, logits);
    let prompt = wanted.map(|(next, top)| sampler.logprobs(kernels, logits, raw, next, top));
    let sample = |sample| match raw.sound {
        true => state.sample(kernels, sampler, sample, logits, raw),
        false => Err(not_numbers()),
    };
    RowResult { prompt, tokens: row.samples.clone().map(sample).collect() }
}

fn not_numbers() -> EngineError {
    EngineError::Execution(
        "the model produced logits that are not numbers for this request. Its weights may be damaged, or a value \
         overflowed: try dtype=\"float32\" and quantization=None"
            .into(),
    )
}
