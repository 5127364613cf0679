//! Weights from a file of `octavo quantize`. Kernels read the mapped file; only norms and biases are copied.
//!
//! Every name, type, shape and size is checked against the spec before use. A scan of all bytes checks their values, and
//! loads their pages before the first step.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_kernels::{ArrayDtype, Kernels, Linear, Region, WeightDtype};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::families::Family;
use crate::nonfinite::NonFinite;
use crate::octavo_file::format::{METHOD, MatrixEntry, Metadata, check_layout, key_of, read_metadata};
use crate::source::{Absorbed, WeightSource};
use crate::spec::{Dtype, MlaSpec};
use crate::weight_format::WeightFormat;
use crate::weights::{Loaded, ModelWeights};

/// Bytes of one task.
const PART_BYTES: usize = 1 << 20;

/// A mapped file of packed weights.
pub(crate) struct OctavoFileReader<'a> {
    kernels: &'a Kernels,
    checkpoint: &'a Checkpoint,
    metadata: Metadata,
    nonfinite: RefCell<NonFinite>,
    /// Tensors that the model has requested.
    used: RefCell<HashSet<String>>,
}

impl<'a> OctavoFileReader<'a> {
    /// A reader of the checkpoint; None if it is not a file of `octavo quantize`.
    ///
    /// # Errors
    /// `Unsupported` for another version, `Corrupt` for bad metadata, `BadOption` for a format that it does not hold.
    pub fn of(
        kernels: &'a Kernels,
        checkpoint: &'a Checkpoint,
        family: &Family,
        format: WeightFormat,
    ) -> Result<Option<Self>, ModelError> {
        let metadata = checkpoint.metadata();
        let corrupt = |what: &str| ModelError::corrupt(checkpoint.files(), what);
        match (metadata.get("format").map(String::as_str) == Some(METHOD), family.packed.is_some()) {
            (true, true) => {}
            (false, false) => return Ok(None),
            (true, false) => {
                return Err(corrupt(
                    "it holds weights of `octavo quantize`, and quantization_config of config.json does not say so",
                ));
            }
            (false, true) => {
                return Err(corrupt(
                    "config.json says that it comes from `octavo quantize`, and its metadata does not",
                ));
            }
        }
        let text = |key: &str| metadata.get(key).map(String::as_str);
        check_layout(text("version"), text("layout"), &checkpoint.files())?;
        if cfg!(target_endian = "big") {
            let what = "files of `octavo quantize` are read on little-endian machines only";
            return Err(ModelError::Unsupported(what.into()));
        }
        let metadata = read_metadata(metadata).map_err(|what| corrupt(&what))?;
        if let Some(scheme) = family.packed.filter(|scheme| *scheme != metadata.scheme) {
            let what = format!("its metadata says {}, and config.json says {scheme}", metadata.scheme);
            return Err(corrupt(&what));
        }
        check_format(format, &metadata)?;
        let (nonfinite, used) = (RefCell::default(), RefCell::default());
        Ok(Some(Self { kernels, checkpoint, metadata, nonfinite, used }))
    }

    /// The result. The model must have requested every tensor of the file.
    pub fn finish(self, weights: ModelWeights) -> Result<Loaded, ModelError> {
        let used = self.used.into_inner();
        if let Some(name) = self.checkpoint.names().find(|name| !used.contains(*name)) {
            let what = format!("tensor {name} is not one of the model that config.json describes");
            return Err(ModelError::corrupt(self.checkpoint.files(), what));
        }
        let stored = [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16];
        let stored =
            stored.into_iter().find(|d| d.name() == self.metadata.origin.stored_dtype).ok_or_else(|| {
                let what = format!("stored_dtype in its metadata: {:?}", self.metadata.origin.stored_dtype);
                ModelError::corrupt(self.checkpoint.files(), what)
            })?;
        let mut warnings = self.checkpoint.warnings().to_vec();
        warnings.extend(self.nonfinite.into_inner().warnings());
        Ok(Loaded {
            weights,
            stored,
            warnings,
            kept_in_bf16: self.metadata.kept_in_bf16,
            origin: Some(self.metadata.origin),
        })
    }

    /// The matrices under `key`, checked against the spec.
    fn matrices(
        &self,
        key: &str,
        rows: &[usize],
        columns: usize,
        count: Option<usize>,
        allowed: &[WeightDtype],
    ) -> Result<Vec<Linear>, ModelError> {
        let corrupt = |what: String| ModelError::corrupt(self.checkpoint.files(), what);
        let Some(entry) = self.metadata.matrices.get(key) else {
            return Err(corrupt(format!("tensor {key} is missing")));
        };
        let dtype = entry.weight_dtype(self.metadata.scheme).filter(|dtype| allowed.contains(dtype));
        let Some(dtype) = dtype else {
            return Err(corrupt(format!("tensor {key} is held as {:?}, which is not expected", entry.dtype)));
        };
        let asked = MatrixEntry { rows: rows.to_vec(), columns, dtype: entry.dtype.clone(), count };
        if *entry != asked {
            let what = format!("tensor {key} is {entry:?}, config.json asks for {asked:?}");
            return Err(corrupt(what));
        }
        let mut names = Vec::new();
        let mut parts: Vec<Vec<Region>> = vec![Vec::new(); count.unwrap_or(1)];
        for (name, array) in asked.arrays(key, dtype) {
            let region = self.checkpoint.region(&name, array.dtype, &array.shape)?;
            self.scan(&name, array.dtype, &region)?;
            let split = region.split(parts.len());
            let split = split.ok_or_else(|| corrupt(format!("tensor {name} cannot be divided")))?;
            parts.iter_mut().zip(split).for_each(|(part, region)| part.push(region));
            self.used.borrow_mut().insert(name.clone());
            names.push(name);
        }
        let total = rows.iter().sum();
        let linear = |arrays: Vec<Region>| {
            Linear::mapped(dtype, total, columns, arrays)
                .map_err(|(number, error)| corrupt(format!("tensor {}: {error}", names[number])))
        };
        parts.into_iter().map(linear).collect()
    }

    fn one(
        &self,
        key: &str,
        rows: &[usize],
        columns: usize,
        allowed: &[WeightDtype],
    ) -> Result<Linear, ModelError> {
        let missing = || ModelError::corrupt(self.checkpoint.files(), format!("tensor {key} is missing"));
        self.matrices(key, rows, columns, None, allowed)?.pop().ok_or_else(missing)
    }

    /// Reads an array once. A byte that is no code is an error: instruction sets would compute different results.
    fn scan(&self, name: &str, element: ArrayDtype, region: &Region) -> Result<(), ModelError> {
        let pool = self.kernels.pool();
        let dtype = match element {
            ArrayDtype::F32 => Dtype::Float32,
            ArrayDtype::Bf16 => Dtype::Bfloat16,
            ArrayDtype::U8 => {
                let wrong = AtomicUsize::new(0);
                let parts: Vec<&[u8]> = region.chunks(PART_BYTES).collect();
                pool.run(parts.len(), &|i| {
                    // The lowest of a run first: a loop without branches.
                    if parts[i].iter().copied().min() == Some(0) {
                        wrong
                            .fetch_add(parts[i].iter().filter(|code| **code == 0).count(), Ordering::Relaxed);
                    }
                });
                return match wrong.into_inner() {
                    0 => Ok(()),
                    n => Err(ModelError::corrupt(
                        self.checkpoint.files(),
                        format!("tensor {name} has {n} bytes that are no codes"),
                    )),
                };
            }
        };
        self.nonfinite.borrow_mut().scan(pool, name, dtype, region, &|_| ());
        Ok(())
    }
}

/// Refuses a format that is not the file's.
fn check_format(format: WeightFormat, metadata: &Metadata) -> Result<(), ModelError> {
    let source = &metadata.origin.source;
    if !format.dtype.is_quantized() {
        return Err(ModelError::BadOption(format!(
            "quantization is None, and this model is already quantised to {}: leave quantization at \"auto\", or load the model that it was \
             made from ({source})",
            metadata.scheme.name()
        )));
    }
    if format.error_budget.is_none() && !metadata.kept_in_bf16.is_empty() {
        return Err(ModelError::BadOption(format!(
            "quantization is \"int8\", and {} tensors of this quantised model are held in bfloat16: leave quantization at \"auto\", or \
             make an int8 copy of {source} with `octavo quantize --quantization int8`",
            metadata.kept_in_bf16.len()
        )));
    }
    Ok(())
}

impl WeightSource for OctavoFileReader<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let region = self.checkpoint.region(name, ArrayDtype::F32, &[len])?;
        self.scan(name, ArrayDtype::F32, &region)?;
        self.used.borrow_mut().insert(name.to_string());
        Ok(region.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        _inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError> {
        let rows = parts.iter().map(|(_, rows)| *rows).collect::<Vec<_>>();
        let key = key_of(parts.iter().map(|(name, _)| name.as_str()));
        let int8 = [WeightDtype::Quantized(self.metadata.scheme), WeightDtype::INT8_UNROTATED];
        self.one(&key, &rows, columns, &[int8[0], int8[1], WeightDtype::Bf16])
    }

    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        self.one(name, &[rows], columns, &[WeightDtype::F32])
    }

    fn absorbed(&self, name: &str, a: &MlaSpec) -> Result<Absorbed, ModelError> {
        let allowed = [WeightDtype::Quantized(self.metadata.scheme)];
        let of = |part: &str, rows, columns| {
            self.matrices(&format!("{name}.{part}"), &[rows], columns, Some(a.heads), &allowed)
        };
        Ok(Absorbed {
            to_latent: of("to_latent", a.kv_lora_rank, a.qk_nope_head_dim)?,
            to_value: of("to_value", a.v_head_dim, a.kv_lora_rank)?,
        })
    }
}
