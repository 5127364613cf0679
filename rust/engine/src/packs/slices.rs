//! The engine thread's part: blocks are held, and copied in slices that are shorter than a step.

use std::ops::Range;
use std::sync::Arc;

use octavo_scheduler::{PackRefusal, PackTerms};

use crate::EngineError;
use crate::engine::Engine;
use crate::executor::{StepError, StepInput};
use crate::packs::BetweenSteps;
use crate::packs::read::BlocksChunk;

/// Bytes that are copied between two steps.
const SLICE_BYTES: usize = 8 << 20;

/// The bytes of blocks, layer by layer.
pub(crate) type Layers = Vec<Vec<u8>>;

/// Blocks that the scheduler holds under an id; given back when it is dropped, unless they are kept.
pub(crate) struct HeldBlocks<'a> {
    engine: &'a Engine,
    pub id: u32,
    keep: bool,
}

impl HeldBlocks<'_> {
    /// Leaves the blocks with the scheduler.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for HeldBlocks<'_> {
    fn drop(&mut self) {
        if !self.keep {
            let id = self.id;
            // An error means that the engine has ended, and the blocks with it.
            let _ = self.engine.between_steps(move |between| {
                between.scheduler.release_pack(id);
                Ok(())
            });
        }
    }
}

fn refused(refusal: PackRefusal) -> EngineError {
    EngineError::InvalidRequest(refusal.to_string())
}

fn failed(error: StepError) -> EngineError {
    EngineError::Execution(format!("the device cannot copy KV blocks: {error}"))
}

/// Slices of `0..blocks` with at most [`SLICE_BYTES`] each.
pub(crate) fn slices(blocks: u32, block_bytes: &[usize]) -> impl Iterator<Item = Range<u32>> {
    let each = (SLICE_BYTES / block_bytes.iter().sum::<usize>().max(1)).max(1) as u32;
    (0..blocks.div_ceil(each)).map(move |i| i * each..((i + 1) * each).min(blocks))
}

impl Engine {
    /// Takes blocks for these tokens.
    pub(crate) fn hold_blocks(&self, tokens: Vec<u32>) -> Result<HeldBlocks<'_>, EngineError> {
        let id = self.packs.new_id();
        self.between_steps(move |between| between.scheduler.hold_pack(id, tokens).map_err(refused))?;
        Ok(HeldBlocks { engine: self, id, keep: false })
    }

    /// Holds what a request left in the cache; None: some of it is gone.
    pub(crate) fn hold_cached(
        &self,
        tokens: Vec<u32>,
        terms: PackTerms,
    ) -> Result<Option<HeldBlocks<'_>>, EngineError> {
        let id = self.packs.new_id();
        let held = self.between_steps(move |between| {
            between.scheduler.hold_cached(id, &tokens, terms).map_err(refused)
        })?;
        Ok(held.then_some(HeldBlocks { engine: self, id, keep: false }))
    }

    /// The bytes of the blocks `range` of what is held under `id`.
    pub(crate) fn export_blocks(
        &self,
        id: u32,
        range: Range<u32>,
        num_layers: usize,
    ) -> Result<Layers, EngineError> {
        self.between_steps(move |between| {
            let mut layers = vec![Vec::new(); num_layers];
            let blocks = between.scheduler.pack_blocks(id)[range.start as usize..range.end as usize].to_vec();
            for block in blocks {
                between.executor.export_block(block, &mut layers).map_err(failed)?;
            }
            Ok(layers)
        })
    }

    /// Writes a chunk into the blocks of what is held under `id`; the chunk's memory.
    pub(crate) fn import_blocks(&self, id: u32, chunk: BlocksChunk) -> Result<Vec<u8>, EngineError> {
        self.between_steps(move |between| {
            let BlocksChunk { layer, blocks, bytes } = chunk;
            let blocks = &between.scheduler.pack_blocks(id)[blocks.start as usize..blocks.end as usize];
            between.executor.import_blocks(layer, blocks, &bytes).map_err(failed)?;
            Ok(bytes)
        })
    }

    /// Computes block `block` of a held pack again, from the blocks before it. The bytes that are held and those that were
    /// computed, layer by layer.
    pub(crate) fn recompute_block(
        &self,
        id: u32,
        block: u32,
        terms: PackTerms,
        adapter: Option<crate::PackedAdapter>,
        num_layers: usize,
    ) -> Result<(Layers, Layers), EngineError> {
        self.between_steps(move |between| {
            let mut held = vec![Vec::new(); num_layers];
            let own = between.scheduler.pack_blocks(id)[block as usize];
            between.executor.export_block(own, &mut held).map_err(failed)?;
            let (plan, scratch) = between.scheduler.plan_check(id, block, terms).map_err(refused)?;
            let adapters = adapter.map(|packed| (terms.adapter, packed)).into_iter().collect();
            let step = StepInput { plan, adapters, ..StepInput::default() };
            let computed = compute(between, Arc::new(step), scratch, num_layers);
            between.scheduler.end_check();
            computed.map(|computed| (held, computed))
        })
    }

    /// The content of a held pack is complete.
    pub(crate) fn finish_pack(&self, id: u32) -> Result<(), EngineError> {
        self.between_steps(move |between| {
            between.scheduler.finish_pack(id);
            Ok(())
        })
    }
}

fn compute(
    between: &mut BetweenSteps<'_>,
    step: Arc<StepInput>,
    scratch: u32,
    num_layers: usize,
) -> Result<Layers, EngineError> {
    let fault = |e: StepError| EngineError::Execution(format!("a block of the pack cannot be computed: {e}"));
    let ticket = between.executor.submit(&step).map_err(fault)?;
    between.executor.wait(ticket).map_err(fault)?;
    let mut layers = vec![Vec::new(); num_layers];
    between.executor.export_block(scratch, &mut layers).map_err(failed)?;
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_all_blocks_in_order() {
        let all = |blocks, bytes: &[usize]| slices(blocks, bytes).collect::<Vec<_>>();
        assert_eq!(all(5, &[SLICE_BYTES / 2, 1]), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(all(5, &[SLICE_BYTES / 4, SLICE_BYTES / 4]), [0..2, 2..4, 4..5]);
        assert_eq!(all(2, &[SLICE_BYTES * 9]), [0..1, 1..2]);
        assert_eq!(all(0, &[1]), []);
    }
}
