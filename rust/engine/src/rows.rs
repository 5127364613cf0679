//! Rows of logits on their way to tokens. Reading a row changes nothing, so all threads read; what they find is applied in
//! order on the engine thread.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use octavo_kernels::{Kernels, peak};
use octavo_scheduler::{NextToken, Output, SeqResult, StepPlan};
use rustc_hash::FxHashMap;

use crate::EngineError;
use crate::metrics::Histograms;
use crate::request::Active;
use crate::sampling::{Logprob, Sampler};
use crate::tokenizer::Tokenizer;

/// Reads rows with all threads of the kernels.
pub(crate) struct RowReader {
    kernels: Arc<Kernels>,
    /// Memory of threads, while they do not read.
    samplers: Mutex<Vec<Sampler>>,
}

/// A step whose rows come in, and all that they change.
pub(crate) struct StepRows<'a> {
    pub plan: &'a StepPlan,
    pub requests: &'a mut FxHashMap<u64, Active>,
    pub tokenizer: &'a Tokenizer,
    pub histograms: &'a Histograms,
    /// One for each sequence of the plan.
    pub results: &'a mut [SeqResult],
}

/// Who asks for a row, and what for.
struct Ask {
    /// The place of the sequence in the plan.
    index: usize,
    request: u64,
    /// Position of the token that the row follows.
    position: u32,
    /// The samples that draw from it.
    samples: Range<u32>,
}

/// What a row says.
#[derive(Default)]
struct RowNews {
    /// Of the next token of the prompt, if that was asked for.
    prompt: Option<Vec<Logprob>>,
    tokens: Vec<Result<Drawn, EngineError>>,
}

/// A token that was drawn.
pub(crate) struct Drawn {
    pub token: u32,
    pub logprobs: Option<Vec<Logprob>>,
}

impl StepRows<'_> {
    /// Takes the values `[rows, vocab]`, or `[rows, hidden]`, of `rows`: (index into `plan.seqs`, row of its chunk).
    pub fn take(&mut self, reader: &RowReader, rows: &[(usize, u32)], values: &[f32]) {
        match rows.first().map(|&(index, _)| self.plan.seqs[index].output) {
            Some(Output::Tokens) => self.take_logits(reader, rows, values),
            Some(Output::Hidden) => self.pool(rows, values),
            None => {}
        }
    }

    /// Takes a token that the executor drew from the last row of sequence `index` of the plan.
    pub fn take_drawn(&mut self, index: usize, token: Option<u32>, logprobs: Vec<Logprob>) {
        let ask = self.ask(index, self.plan.seqs[index].query_len - 1);
        let logprobs = Some(logprobs).filter(|row| !row.is_empty());
        let drawn = token.map(|token| Drawn { token, logprobs }).ok_or_else(not_numbers);
        self.apply(ask, RowNews { prompt: None, tokens: vec![drawn] });
    }

    /// Hidden states on their way into embeddings, in order.
    fn pool(&mut self, rows: &[(usize, u32)], values: &[f32]) {
        for (&(index, row), values) in rows.iter().zip(values.chunks_exact(values.len() / rows.len())) {
            let seq = &self.plan.seqs[index];
            let Some(active) = self.requests.get_mut(&seq.request) else { continue };
            let Some(pooler) = &mut active.request.pooler else { continue };
            if let Err(e) = pooler.take(seq.context_len - seq.query_len + row, values) {
                active.error = Some(e);
                self.results[index] = SeqResult::Failed;
            }
        }
    }

    fn take_logits(&mut self, reader: &RowReader, rows: &[(usize, u32)], logits: &[f32]) {
        let asks: Vec<Ask> = rows.iter().map(|&(index, row)| self.ask(index, row)).collect();
        for ask in &asks {
            if let Some(active) = self.requests.get_mut(&ask.request) {
                active.prepare(ask.samples.clone());
            }
        }
        let news = reader.read(self.requests, &asks, logits);
        for (ask, news) in asks.into_iter().zip(news) {
            self.apply(ask, news);
        }
    }

    fn ask(&self, index: usize, row: u32) -> Ask {
        let seq = &self.plan.seqs[index];
        let num_samples = if row + 1 == seq.query_len { seq.num_samples } else { 0 };
        Ask {
            index,
            request: seq.request,
            position: seq.context_len - seq.query_len + row,
            samples: seq.sample..seq.sample + num_samples,
        }
    }

    fn apply(&mut self, ask: Ask, news: RowNews) {
        let Some(active) = self.requests.get_mut(&ask.request) else { return };
        if let Some(row) = news.prompt {
            active.take_prompt_row(self.tokenizer, row);
        }
        // One that ended while this step was planned behind it gets no more tokens.
        if ask.samples.is_empty() || active.has_ended(ask.samples.start) {
            return;
        }
        let now = Instant::now();
        if let Some(gap) = active.gap(ask.samples.start, now) {
            self.histograms.gap(gap);
        }
        let tokens = ask.samples.zip(news.tokens).map(|(sample, drawn)| {
            let (token, stop) = active.take(self.tokenizer, sample, drawn?, now)?;
            Ok(NextToken { token, stop })
        });
        self.results[ask.index] = match tokens.collect() {
            Ok(tokens) => SeqResult::Tokens(tokens),
            Err(e) => {
                active.error = Some(e);
                SeqResult::Failed
            }
        };
    }
}

impl RowReader {
    pub fn new(kernels: Arc<Kernels>) -> Self {
        Self { kernels, samplers: Mutex::default() }
    }

    /// What each row says, in their order.
    fn read(&self, requests: &FxHashMap<u64, Active>, asks: &[Ask], logits: &[f32]) -> Vec<RowNews> {
        let vocab = logits.len() / asks.len().max(1);
        let news: Vec<OnceLock<RowNews>> = asks.iter().map(|_| OnceLock::new()).collect();
        let samplers = || self.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        self.kernels.pool().run(asks.len(), &|i| {
            let Some(active) = requests.get(&asks[i].request) else { return };
            let mut sampler = samplers().pop().unwrap_or_default();
            let row = &logits[i * vocab..(i + 1) * vocab];
            let _ = news[i].set(read(&self.kernels, &mut sampler, active, &asks[i], row));
            samplers().push(sampler);
        });
        news.into_iter().map(|row| row.into_inner().unwrap_or_default()).collect()
    }
}

fn read(kernels: &Kernels, sampler: &mut Sampler, active: &Active, ask: &Ask, logits: &[f32]) -> RowNews {
    let wanted = active.wants_prompt_row(ask.position);
    if wanted.is_none() && ask.samples.is_empty() {
        return RowNews::default();
    }
    let raw = peak(kernels, logits);
    let prompt = wanted.map(|(next, top)| sampler.logprobs(kernels, logits, raw, next, top));
    let draw = |sample| match raw.sound {
        true => active.draw(kernels, sampler, sample, logits, raw),
        false => Err(not_numbers()),
    };
    RowNews { prompt, tokens: ask.samples.clone().map(draw).collect() }
}

fn not_numbers() -> EngineError {
    EngineError::Execution(
        "the model produced logits that are not numbers for this request. Its weights may be damaged, or a value \
         overflowed: try dtype=\"float32\" and quantization=None"
            .into(),
    )
}
