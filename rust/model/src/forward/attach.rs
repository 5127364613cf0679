//! Opens and packs adapters for a loaded model.

use std::path::Path;

use octavo_kernels::{Kernels, Linear, WeightDtype};

use super::model::Model;
use crate::ModelError;
use crate::adapter::{Adapter, AdapterFile, base, pack};

impl Model {
    /// Opens the adapter in `folder` and checks it against this model. Nothing is packed.
    ///
    /// # Errors
    /// As [`AdapterFile::open`].
    pub fn open_adapter(&self, folder: &Path) -> Result<AdapterFile, ModelError> {
        let dtype = |layer: usize, site| {
            let base = self.weights.layers.get(layer).and_then(|layer| base(layer, site));
            base.map_or(WeightDtype::Bf16, Linear::dtype)
        };
        AdapterFile::open(folder, &self.spec, &self.names, &dtype)
    }

    /// Packs an adapter of this model.
    ///
    /// Steps of an engine that has the same `kernels` would wait for parts of this work: give others, on the same level.
    ///
    /// # Errors
    /// `ForeignAdapter` for an adapter that was opened for another model, `CorruptAdapter` for one without a result.
    pub fn pack_adapter(&self, kernels: &Kernels, file: &AdapterFile) -> Result<Adapter, ModelError> {
        pack(kernels, file, &self.weights.layers)
    }
}
