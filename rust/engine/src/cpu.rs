//! The CPU executor: octavo-model over the octavo-kernels.

use std::sync::Arc;

use octavo_kernels::{AttentionReport, BLOCK_SIZE, DynamicParams, Kernels, Mode, SeqView};
use octavo_model::{Batch, KvPool, Model, Scratch};
use octavo_scheduler::{Output, StepPlan};

use crate::executor::{AttentionBound, Executor, RowSink, StepError};

/// Rows of logits, or of hidden states, that are held at once.
pub(crate) const LOGIT_ROWS: usize = 32;

/// Runs steps on the cores of this machine.
pub struct CpuExecutor {
    kernels: Arc<Kernels>,
    model: Model,
    kv: KvPool,
    scratch: Scratch,
    /// Rows on their way out.
    out: Vec<f32>,
    /// (sequence, row of its chunk, row of the batch) of the rows of one kind that the plan asks for.
    wanted: Vec<(usize, u32, u32)>,
    /// What queries may leave out; None: dense attention.
    attention: Option<DynamicParams>,
    choices: Vec<DynamicParams>,
}

impl CpuExecutor {
    /// An executor for `model` with the pool `kv`. Queries may leave out what `attention` allows, if the pool is int8.
    pub fn new(kernels: Kernels, model: Model, kv: KvPool, attention: Option<DynamicParams>) -> Self {
        Self {
            kernels: Arc::new(kernels),
            model,
            kv,
            scratch: Scratch::default(),
            out: Vec::new(),
            wanted: Vec::new(),
            attention,
            choices: Vec::new(),
        }
    }

    /// Hands the rows of all sequences with this output to `sink`.
    fn rows_out(&mut self, plan: &StepPlan, output: Output, sink: &mut RowSink<'_>) {
        self.wanted.clear();
        for (i, seq) in plan.seqs.iter().enumerate().filter(|(_, seq)| seq.output == output) {
            self.wanted.extend(seq.sample_rows().map(|row| (i, row, seq.query_start + row)));
        }
        let spec = self.model.spec();
        let width = if output == Output::Hidden { spec.hidden } else { spec.vocab };
        for part in self.wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<u32> = part.iter().map(|w| w.2).collect();
            if self.out.len() < part.len() * width {
                self.out.resize(part.len() * width, 0.0);
            }
            let out = &mut self.out[..part.len() * width];
            match output {
                Output::Tokens => self.model.logits(&self.kernels, &rows, &mut self.scratch, out),
                Output::Hidden => self.model.hidden(&self.kernels, &rows, &mut self.scratch, out),
            }
            let rows: Vec<(usize, u32)> = part.iter().map(|w| (w.0, w.1)).collect();
            sink(&rows, out);
        }
    }
}

impl Executor for CpuExecutor {
    fn hidden_size(&self) -> Option<usize> {
        Some(self.model.spec().hidden)
    }

    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError> {
        for &[from, to] in &plan.copies {
            self.kv.copy_block(from, to);
        }
        let seqs: Vec<SeqView<'_>> = plan
            .seqs
            .iter()
            .map(|s| {
                let start = s.block_table_start as usize;
                let blocks = (s.context_len as usize).div_ceil(BLOCK_SIZE);
                SeqView {
                    query_start: s.query_start as usize,
                    query_len: s.query_len as usize,
                    context_len: s.context_len as usize,
                    block_table: &plan.block_tables[start..start + blocks],
                    open_blocks: &[],
                }
            })
            .collect();
        let mut batch = Batch::new(&plan.tokens, &plan.positions, &plan.slots, &seqs);
        if let Some(attention) = self.attention {
            // In budget mode the number of blocks is limited, not the error: requests have no bound of their own.
            let bounded = attention.mode != Mode::Budget;
            self.choices.clear();
            self.choices.extend(plan.seqs.iter().map(|seq| match bounded {
                true => DynamicParams { error_bound: seq.attention.error_bound, ..attention },
                false => attention,
            }));
            batch.choices = &self.choices;
        }
        self.model.forward(&self.kernels, &mut self.kv, &batch, &mut self.scratch);
        self.rows_out(plan, Output::Tokens, sink);
        self.rows_out(plan, Output::Hidden, sink);
        Ok(())
    }

    fn attention_bound(&self) -> AttentionBound {
        match self.attention {
            None => AttentionBound::Exact,
            Some(attention) if attention.mode == Mode::Budget => AttentionBound::Told,
            Some(attention) => AttentionBound::Within(attention.error_bound),
        }
    }

    fn attention_reports(&self) -> &[AttentionReport] {
        self.scratch.attention_reports()
    }

    fn release_blocks(&mut self, held: &dyn Fn(u32) -> bool) {
        self.kv.release_blocks(held);
    }

    fn kernels(&self) -> Arc<Kernels> {
        Arc::clone(&self.kernels)
    }
}
