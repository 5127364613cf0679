//! Loads the weights of a model from its checkpoint, in floats or in the form of `octavo quantize`.

use octavo_kernels::Kernels;

use crate::ModelError;
use crate::checkpoint_source::CheckpointSource;
use crate::families::Family;
use crate::folder::ModelFolder;
use crate::layout::{open_fitted, warn_of_unused};
use crate::octavo_file::reader::OctavoFileReader;
use crate::walk::walk;
use crate::weight_format::WeightFormat;
use crate::weights::Loaded;

/// Loads the weights of `folder` in `format`, layer by layer, and fits `family` to them.
pub(crate) fn load(
    kernels: &Kernels,
    folder: &dyn ModelFolder,
    family: &mut Family,
    format: WeightFormat,
) -> Result<Loaded, ModelError> {
    let checkpoint = open_fitted(folder, family)?;
    let family = &*family;
    if let Some(file) = OctavoFileReader::of(kernels, &checkpoint, family, format)? {
        let weights = walk(&file, family)?;
        return file.finish(weights);
    }
    let names = &family.names;
    let stored = checkpoint.tensor(names.embed, &[family.spec.vocab, family.spec.hidden])?.dtype;
    let source = CheckpointSource::new(kernels, &checkpoint, format);
    let weights = walk(&source, family)?;
    let (nonfinite, kept_in_bf16) = source.findings();
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(warn_of_unused(&checkpoint, family));
    warnings.extend(nonfinite);
    Ok(Loaded { weights, stored, warnings, kept_in_bf16, origin: None })
}
