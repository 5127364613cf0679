//! The CPU executor: octavo-model over the octavo-kernels.

use std::ops::Range;
use std::sync::Arc;

use octavo_kernels::{BLOCK_SIZE, Kernels, SealedBlock, Selector, SeqView};
use octavo_model::{Batch, BlockLayout, KvPool, Model, Scratch};
use octavo_scheduler::{AttentionPolicy, Output, PlanSeq, StepPlan};

use crate::adapters::AdapterBackend;
use crate::cpu_adapters::{CpuAdapters, adapter_rows};
use crate::executor::{Executor, ExecutorInfo, StepError, StepInput, StepOutput, Ticket};
use crate::report::Report;

/// Runs steps on the cores of this machine.
pub struct CpuExecutor {
    kernels: Arc<Kernels>,
    model: Arc<Model>,
    kv: KvPool,
    scratch: Scratch,
    /// Requested rows of the last step: what is wanted of them, and their rows of the batch.
    rows: Vec<(Output, u32)>,
}

impl CpuExecutor {
    /// An executor for `model` with the pool `kv`. `selector`: selects the blocks that queries read, from an int8 pool only.
    pub fn new(kernels: Kernels, model: Model, kv: KvPool, selector: Option<Selector>) -> Self {
        let (kernels, model) = (Arc::new(kernels), Arc::new(model));
        Self { kernels, model, kv, scratch: Scratch::new(selector), rows: Vec::new() }
    }
}

/// Views of the plan's sequences, as kernels take them.
fn seq_views(plan: &StepPlan) -> Vec<SeqView<'_>> {
    let view = |s: &PlanSeq| {
        let start = s.block_table_start as usize;
        let blocks = (s.context_len as usize).div_ceil(BLOCK_SIZE);
        // The blocks that receive new tokens; a plan for a float pool names none.
        let open_start = s.open_block_start as usize;
        let open_blocks = blocks - (s.context_len - s.query_len) as usize / BLOCK_SIZE;
        SeqView {
            query_start: s.query_start as usize,
            query_len: s.query_len as usize,
            context_len: s.context_len as usize,
            block_table: &plan.block_tables[start..start + blocks],
            open_blocks: plan.open_blocks.get(open_start..open_start + open_blocks).unwrap_or_default(),
        }
    };
    plan.seqs.iter().map(view).collect()
}

impl Executor for CpuExecutor {
    fn info(&self) -> ExecutorInfo {
        let (spec, selector) = (self.model.spec(), self.scratch.selector.as_ref());
        ExecutorInfo {
            vocab_size: spec.vocab,
            hidden_size: Some(spec.hidden),
            samples_on_device: false,
            max_in_flight: 1,
            open_blocks: self.kv.is_int8(),
            attention: selector.map_or(AttentionPolicy::DENSE, |s| AttentionPolicy::new(s.bound())),
            bounds_attention: selector.is_none_or(Selector::is_bounded),
            kernels: Arc::clone(&self.kernels),
        }
    }

    fn adapters(&self) -> Option<Arc<dyn AdapterBackend>> {
        Some(Arc::new(CpuAdapters { model: Arc::clone(&self.model), isa: self.kernels.isa() }))
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        let plan = &step.plan;
        plan.copies.iter().for_each(|&[from, to]| self.kv.copy_block(from, to));
        let (seqs, adapters) = (seq_views(plan), adapter_rows(step)?);
        let mut batch = Batch::new(&plan.tokens, &plan.positions, &plan.slots, &seqs);
        batch.adapters = &adapters;
        let sealed: Vec<SealedBlock>;
        if self.kv.is_int8() {
            self.kv.grow_open_blocks(plan.num_open_blocks as usize);
            plan.open_copies.iter().for_each(|&[from, to]| self.kv.copy_open_block(from, to));
            sealed = plan.sealed.iter().map(|&[block, open]| SealedBlock { block, open }).collect();
            (batch.slots, batch.sealed) = (&plan.open_slots, &sealed);
        }
        if let Some(selector) = &mut self.scratch.selector {
            selector.begin(plan.seqs.iter().map(|seq| seq.attention.bound()));
        }
        self.model.forward(&self.kernels, &mut self.kv, &batch, &mut self.scratch);
        self.rows.clear();
        self.rows.extend(step.rows().map(|(i, row)| (plan.seqs[i].output, plan.seqs[i].query_start + row)));
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, StepError> {
        let reports =
            self.scratch.selector.iter().flat_map(Selector::reports).map(Report::from_iter).collect();
        Ok(StepOutput { sampled: Vec::new(), reports })
    }

    fn block_layout(&self) -> Option<BlockLayout> {
        Some(self.kv.block_layout().clone())
    }

    fn export_block(&mut self, block: u32, layers: &mut [Vec<u8>]) -> Result<(), StepError> {
        self.kv.export_block(block, layers);
        Ok(())
    }

    fn import_blocks(&mut self, layer: usize, blocks: &[u32], bytes: &[u8]) -> Result<(), StepError> {
        self.kv.import_blocks(layer, blocks, bytes);
        Ok(())
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        let Some(&(output, _)) = self.rows.get(rows.start) else {
            out.clear();
            return Ok(());
        };
        let spec = self.model.spec();
        let width = if output == Output::Hidden { spec.hidden } else { spec.vocab };
        let rows: Vec<u32> = self.rows[rows].iter().map(|(_, row)| *row).collect();
        out.resize(rows.len() * width, 0.0);
        match output {
            Output::Tokens => self.model.logits(&self.kernels, &rows, &mut self.scratch, out),
            Output::Hidden => self.model.hidden(&self.kernels, &rows, &mut self.scratch, out),
        }
        Ok(())
    }
}
