//! Adapters on the CPU: octavo-model opens and packs them.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use octavo_kernels::{Isa, Kernels};
use octavo_model::{Adapter, AdapterFile, AdapterRows, Model};
use octavo_scheduler::NO_ADAPTER;

use crate::EngineError;
use crate::adapters::{AdapterBackend, AdapterInfo};
use crate::executor::{StepError, StepInput};

/// Opens and packs adapters of one model, beside the engine thread.
pub(crate) struct CpuAdapters {
    pub model: Arc<Model>,
    pub isa: Isa,
}

impl CpuAdapters {
    fn info(folder: &Path, file: &AdapterFile) -> AdapterInfo {
        AdapterInfo {
            folder: folder.to_owned(),
            digest: file.digest().to_owned(),
            rank: file.rank(),
            packed_bytes: file.packed_bytes() as u64,
            modules: file.modules().iter().map(|module| module.name.clone()).collect(),
            warnings: file.warnings().to_vec(),
        }
    }
}

impl AdapterBackend for CpuAdapters {
    fn open(&self, folder: &Path) -> Result<AdapterInfo, EngineError> {
        Ok(Self::info(folder, &self.model.open_adapter(folder)?))
    }

    fn pack(&self, info: &AdapterInfo) -> Result<Arc<dyn Any + Send + Sync>, EngineError> {
        // Opened again: the files may be others by now, and an adapter id stands for one content.
        let file = self.model.open_adapter(&info.folder)?;
        info.check_digest(file.digest())?;
        // One thread of its own: steps do not wait for it.
        let kernels =
            Kernels::new(1, Some(self.isa)).map_err(|e| EngineError::InvalidRequest(e.to_string()))?;
        Ok(Arc::new(self.model.pack_adapter(&kernels, &file)?))
    }
}

/// The rows of each adapter of a step, in the order of rows.
///
/// # Errors
/// `Step` if an adapter is missing, which is a fault of the engine.
pub(crate) fn adapter_rows(step: &StepInput) -> Result<Vec<AdapterRows<'_>>, StepError> {
    let mut all: Vec<AdapterRows<'_>> = Vec::new();
    for seq in step.plan.seqs.iter().filter(|seq| seq.adapter != NO_ADAPTER) {
        let found = step.adapters.iter().find(|(id, _)| *id == seq.adapter);
        let adapter = found.and_then(|(_, packed)| packed.get::<Adapter>());
        let missing = || StepError::Step(format!("adapter {} did not come with the step", seq.adapter));
        let adapter = adapter.ok_or_else(missing)?;
        let rows = seq.query_start as usize..(seq.query_start + seq.query_len) as usize;
        match all.last_mut() {
            // Sequences that follow each other are computed together.
            Some(last) if std::ptr::eq(last.adapter, adapter) && last.rows.end == rows.start => {
                last.rows.end = rows.end;
            }
            _ => all.push(AdapterRows { adapter, rows }),
        }
    }
    Ok(all)
}
