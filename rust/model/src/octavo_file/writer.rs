//! Writes a model's weights as a file that is loaded by mapping it (see `format`).
//!
//! The weights pass through one matrix at a time: memory holds the largest of them, and the scales of all (a 64th of the file),
//! which come behind the codes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use octavo_kernels::{Kernels, Linear, QuantScheme, WeightDtype};
use serde_json::{Map, Value, json};

use crate::ModelError;
use crate::checkpoint_source::CheckpointSource;
use crate::families::Family;
use crate::folder::ModelFolder;
use crate::layout::{open_fitted, warn_of_unused};
use crate::octavo_file::format::{ALIGNMENT, MatrixEntry, Origin, key_of, metadata, name_of};
use crate::source::{Absorbed, WeightSource, stand_in};
use crate::spec::MlaSpec;
use crate::walk::walk;
use crate::weight_format::{KeptInBf16, WeightFormat};

/// Bytes of one write, at multiples of itself: the page cache then takes the file in large pages, where it has them.
const WRITE_BYTES: usize = 2 << 20;
/// Data begins at a multiple of this.
const PAGE_BYTES: usize = 4096;
/// Extra room in the header for the numbers of each tensor.
const SLACK_BYTES: usize = 96;

/// The result of `quantize`.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Bytes of the file.
    pub bytes: u64,
    /// The tensors that stayed in bfloat16.
    pub kept_in_bf16: Vec<KeptInBf16>,
    /// Oddities of the model's files.
    pub warnings: Vec<String>,
    /// Origin, as the file has it.
    pub origin: Origin,
    /// Scheme of the matrices.
    pub scheme: QuantScheme,
}

/// Quantises the weights of `folder` into the new file `output`, as they are held when the folder is loaded in `format`.
/// `source` and `made_by` are for the file's metadata.
///
/// # Errors
/// As `Model::load`; `BadOption` for a format other than int8 or a folder that is quantised already; `Write` if `output` exists or
/// cannot be written. What was written before a failure stays.
pub fn quantize(
    kernels: &Kernels,
    folder: &dyn ModelFolder,
    family: &Family,
    format: WeightFormat,
    output: &Path,
    source: &str,
    made_by: &str,
) -> Result<Quantized, ModelError> {
    if family.packed.is_some() {
        let what =
            format!("{} is quantised already: give the model that it was made from", folder.path().display());
        return Err(ModelError::BadOption(what));
    }
    let (WeightDtype::Quantized(scheme), true) = (format.dtype, cfg!(target_endian = "little")) else {
        let what = "only int8 can be written, and on little-endian machines";
        return Err(ModelError::BadOption(what.into()));
    };
    let mut family = family.clone();
    let checkpoint = open_fitted(folder, &mut family)?;
    let (family, spec) = (&family, &family.spec);
    let stored = checkpoint.tensor(family.names.embed, &[spec.vocab, spec.hidden])?.dtype;
    let origin = Origin {
        source: source.into(),
        made_by: made_by.into(),
        stored_dtype: stored.name().into(),
        error_budget: format.error_budget,
    };
    // First without weights: the header stands in front, so its size must be known.
    let plan = HeaderPlan { kernels, dtype: format.dtype, layout: RefCell::default() };
    walk(&plan, family)?;
    let room = plan.layout.into_inner().room(&origin, scheme);
    let io = |e| ModelError::write(output, e);
    let file = File::create_new(output).map_err(io)?;
    let writer = OctavoFileWriter {
        floats: CheckpointSource::new(kernels, &checkpoint, format),
        kernels,
        path: output,
        layout: RefCell::default(),
        file: RefCell::new(Blocks::new(file)),
        late: RefCell::default(),
    };
    writer.file.borrow_mut().write(&vec![b' '; room]).map_err(io)?;
    walk(&writer, family)?;
    let OctavoFileWriter { floats, layout, file, late, .. } = writer;
    let (nonfinite, kept_in_bf16) = floats.findings();
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(warn_of_unused(&checkpoint, family));
    warnings.extend(nonfinite);
    let mut file = file.into_inner();
    file.write(&late.into_inner()).map_err(io)?;
    let header = layout.into_inner().header(&origin, scheme, &kept_in_bf16);
    if header.len() > room - 8 {
        let what = format!("a header of {} bytes, {} were foreseen", header.len(), room - 8);
        return Err(ModelError::write(output, std::io::Error::other(what)));
    }
    let bytes = file.finish(&((room - 8) as u64).to_le_bytes(), header.as_bytes()).map_err(io)?;
    Ok(Quantized { bytes, kept_in_bf16, warnings, origin, scheme })
}

/// One tensor of the file.
struct PlannedTensor {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: usize,
}

/// Content of the file, in order.
#[derive(Default)]
struct Layout {
    /// Arrays that are multiples of `ALIGNMENT`.
    first: Vec<PlannedTensor>,
    /// The others, behind them.
    late: Vec<PlannedTensor>,
    matrices: BTreeMap<String, MatrixEntry>,
}

impl Layout {
    fn matrix(&mut self, key: &str, entry: MatrixEntry, dtype: WeightDtype) {
        for (name, array) in entry.arrays(key, dtype) {
            let bytes = array.bytes();
            let aligned = is_first(array.name, bytes);
            let entry = PlannedTensor { name, dtype: array.dtype.to_string(), shape: array.shape, bytes };
            if aligned { self.first.push(entry) } else { self.late.push(entry) }
        }
        self.matrices.insert(key.to_string(), entry);
    }

    fn vector(&mut self, name: &str, len: usize) {
        let entry =
            PlannedTensor { name: name.into(), dtype: "F32".into(), shape: vec![len], bytes: 4 * len };
        self.late.push(entry);
    }

    fn header(&self, origin: &Origin, scheme: QuantScheme, kept_in_bf16: &[KeptInBf16]) -> String {
        let mut header = Map::new();
        header.insert("__metadata__".into(), metadata(origin, scheme, kept_in_bf16, &self.matrices));
        let mut at = 0;
        for t in self.first.iter().chain(&self.late) {
            let offsets = [at, at + t.bytes];
            at = offsets[1];
            header
                .insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}));
        }
        Value::Object(header).to_string()
    }

    /// Bytes before the data, enough for any choice of bfloat16 tensors.
    fn room(&self, origin: &Origin, scheme: QuantScheme) -> usize {
        let names = self
            .matrices
            .keys()
            .map(|key| KeptInBf16 { tensor: key.clone(), error: 0.012_345_678_901_234_5 });
        let kept_in_bf16 = names.collect::<Vec<_>>();
        let parts: usize = self.matrices.values().map(|entry| entry.rows.len()).sum();
        let tensors = self.first.len() + self.late.len() + parts;
        let longest = self.matrices.keys().map(String::len).max().unwrap_or(0);
        let foreseen = self.header(origin, scheme, &kept_in_bf16).len() + (SLACK_BYTES + longest) * tensors;
        (8 + foreseen).next_multiple_of(PAGE_BYTES)
    }
}

/// Scales are only multiples of 32 bytes.
fn is_first(array: &str, bytes: usize) -> bool {
    array != "scales" && bytes.is_multiple_of(ALIGNMENT)
}

/// First pass: collects the layout without weights.
struct HeaderPlan<'a> {
    kernels: &'a Kernels,
    dtype: WeightDtype,
    layout: RefCell<Layout>,
}

impl HeaderPlan<'_> {
    fn add(&self, key: &str, rows: Vec<usize>, columns: usize, dtype: WeightDtype, count: Option<usize>) {
        let entry = MatrixEntry { rows, columns, dtype: name_of(dtype), count };
        self.layout.borrow_mut().matrix(key, entry, dtype);
    }
}

impl WeightSource for HeaderPlan<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.layout.borrow_mut().vector(name, len);
        Ok(vec![0.0; len])
    }

    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        _inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError> {
        let key = key_of(parts.iter().map(|(name, _)| name.as_str()));
        self.add(&key, parts.iter().map(|(_, rows)| *rows).collect(), columns, self.dtype, None);
        Ok(stand_in(self.kernels))
    }

    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        self.add(name, vec![rows], columns, WeightDtype::F32, None);
        Ok(stand_in(self.kernels))
    }

    fn absorbed(&self, name: &str, a: &MlaSpec) -> Result<Absorbed, ModelError> {
        let (latent, value) = (format!("{name}.to_latent"), format!("{name}.to_value"));
        self.add(&latent, vec![a.kv_lora_rank], a.qk_nope_head_dim, self.dtype, Some(a.heads));
        self.add(&value, vec![a.v_head_dim], a.kv_lora_rank, self.dtype, Some(a.heads));
        Ok(Absorbed { to_latent: Vec::new(), to_value: Vec::new() })
    }
}

/// Second pass: writes the matrices that `floats` packs.
struct OctavoFileWriter<'a> {
    floats: CheckpointSource<'a>,
    kernels: &'a Kernels,
    path: &'a Path,
    layout: RefCell<Layout>,
    file: RefCell<Blocks>,
    /// The bytes behind the aligned arrays.
    late: RefCell<Vec<u8>>,
}

impl OctavoFileWriter<'_> {
    fn write(
        &self,
        key: &str,
        rows: Vec<usize>,
        count: Option<usize>,
        all: &[Linear],
    ) -> Result<(), ModelError> {
        let Some(first) = all.first() else { return Ok(()) };
        let (columns, dtype) = (first.in_features(), first.dtype());
        let entry = MatrixEntry { rows, columns, dtype: name_of(dtype), count };
        for (number, (_, array)) in entry.arrays(key, dtype).iter().enumerate() {
            for linear in all {
                let bytes = linear.arrays()[number];
                if is_first(array.name, array.bytes()) {
                    self.file.borrow_mut().write(bytes).map_err(|e| ModelError::write(self.path, e))?;
                } else {
                    self.late.borrow_mut().extend_from_slice(bytes);
                }
            }
        }
        self.layout.borrow_mut().matrix(key, entry, dtype);
        Ok(())
    }
}

impl WeightSource for OctavoFileWriter<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let values = self.floats.vector(name, len)?;
        self.late.borrow_mut().extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.layout.borrow_mut().vector(name, len);
        Ok(values)
    }

    fn matrix(
        &self,
        parts: &[(String, usize)],
        columns: usize,
        inputs: Option<&[f32]>,
    ) -> Result<Linear, ModelError> {
        let key = key_of(parts.iter().map(|(name, _)| name.as_str()));
        let rows = parts.iter().map(|(_, rows)| *rows).collect();
        self.write(&key, rows, None, &[self.floats.matrix(parts, columns, inputs)?])?;
        Ok(stand_in(self.kernels))
    }

    fn exact(&self, name: &str, rows: usize, columns: usize) -> Result<Linear, ModelError> {
        self.write(name, vec![rows], None, &[self.floats.exact(name, rows, columns)?])?;
        Ok(stand_in(self.kernels))
    }

    fn absorbed(&self, name: &str, a: &MlaSpec) -> Result<Absorbed, ModelError> {
        let Absorbed { to_latent, to_value } = self.floats.absorbed(name, a)?;
        self.write(&format!("{name}.to_latent"), vec![a.kv_lora_rank], Some(a.heads), &to_latent)?;
        self.write(&format!("{name}.to_value"), vec![a.v_head_dim], Some(a.heads), &to_value)?;
        Ok(Absorbed { to_latent: Vec::new(), to_value: Vec::new() })
    }
}

/// A file that is written in whole blocks.
struct Blocks {
    file: File,
    block: Vec<u8>,
    written: u64,
}

impl Blocks {
    fn new(file: File) -> Self {
        Self { file, block: Vec::with_capacity(WRITE_BYTES), written: 0 }
    }

    fn write(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let whole = bytes.len() / WRITE_BYTES * WRITE_BYTES;
            if self.block.is_empty() && whole > 0 {
                self.file.write_all(&bytes[..whole])?;
                self.written += whole as u64;
                bytes = &bytes[whole..];
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = rest;
            if self.block.len() == WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all(&self.block)?;
        self.written += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    /// Writes `start` and `header` over the beginning, and all of it to the disk. Gives the size.
    fn finish(mut self, start: &[u8], header: &[u8]) -> std::io::Result<u64> {
        self.flush()?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(start)?;
        self.file.write_all(header)?;
        self.file.sync_all()?;
        Ok(self.written)
    }
}
