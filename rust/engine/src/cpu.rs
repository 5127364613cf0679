//! The CPU executor: octavo-model over the octavo-kernels.

use std::sync::Arc;

use octavo_kernels::{BLOCK_SIZE, Kernels, SeqView};
use octavo_model::{Batch, KvPool, Model, Scratch};
use octavo_scheduler::{Logits, PlanSeq, StepPlan};

use crate::executor::{Executor, RowSink, StepError};

/// Rows of logits that are held at once.
pub(crate) const LOGIT_ROWS: usize = 32;

/// Runs steps on the cores of this machine.
pub struct CpuExecutor {
    kernels: Arc<Kernels>,
    model: Model,
    kv: KvPool,
    scratch: Scratch,
    logits: Vec<f32>,
    /// (sequence, row of its chunk, row of the batch) of the logits that the plan asks for.
    wanted: Vec<(usize, u32, u32)>,
}

impl CpuExecutor {
    /// An executor for `model` with the pool `kv`.
    pub fn new(kernels: Kernels, model: Model, kv: KvPool) -> Self {
        Self {
            kernels: Arc::new(kernels),
            model,
            kv,
            scratch: Scratch::default(),
            logits: Vec::new(),
            wanted: Vec::new(),
        }
    }
}

/// Rows of its chunk for which `seq` wants logits.
pub(crate) fn wanted_rows(seq: &PlanSeq) -> std::ops::Range<u32> {
    match seq.logits {
        Logits::None => 0..0,
        Logits::Last => seq.query_len - 1..seq.query_len,
        Logits::All => 0..seq.query_len,
    }
}

impl Executor for CpuExecutor {
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
                }
            })
            .collect();
        let batch =
            Batch { tokens: &plan.tokens, positions: &plan.positions, slots: &plan.slots, seqs: &seqs };
        self.model.forward(&self.kernels, &mut self.kv, &batch, &mut self.scratch);
        self.wanted.clear();
        for (i, seq) in plan.seqs.iter().enumerate() {
            self.wanted.extend(wanted_rows(seq).map(|row| (i, row, seq.query_start + row)));
        }
        let vocab = self.model.spec().vocab;
        for part in self.wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<u32> = part.iter().map(|w| w.2).collect();
            if self.logits.len() < part.len() * vocab {
                self.logits.resize(part.len() * vocab, 0.0);
            }
            let logits = &mut self.logits[..part.len() * vocab];
            self.model.logits(&self.kernels, &rows, &mut self.scratch, logits);
            let rows: Vec<(usize, u32)> = part.iter().map(|w| (w.0, w.1)).collect();
            sink(&rows, logits);
        }
        Ok(())
    }

    fn kernels(&self) -> Arc<Kernels> {
        Arc::clone(&self.kernels)
    }
}
