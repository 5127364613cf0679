//! An adapter's folder: opened, checked against the model, read into memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use octavo_kernels::{GROUP, WeightDtype};
use sha2::{Digest, Sha256};

use super::config::{AdapterConfig, MAX_RANK};
use super::keys::{self, AdapterTensor};
use super::sites::{Place, Site, Sites};
use crate::ModelError;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::families::TensorNames;
use crate::file_words::named;
use crate::layout::module_name;
use crate::mmap::read_file;
use crate::nonfinite::not_finite;
use crate::spec::ModelSpec;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
/// Largest file of tensors, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// What the digest covers; another text for another meaning of the same files.
const DIGEST_OF: &[u8] = b"octavo adapter 1";

/// An adapter on disk that fits the model. Nothing of it is packed.
pub struct AdapterFile {
    tensors: Checkpoint,
    file: String,
    modules: Vec<AdapterModule>,
    digest: String,
    packed_bytes: usize,
    warnings: Vec<String>,
}

/// What an adapter changes in one module.
#[derive(Clone, Debug)]
pub struct AdapterModule {
    /// The family's name of the module.
    pub name: String,
    /// Number of the layer.
    pub layer: usize,
    /// The projection that the module lies in.
    pub site: Site,
    /// Number of the module in its site.
    pub part: usize,
    /// First of its outputs in the site.
    pub column: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Number of inputs.
    pub inputs: usize,
    /// Rows of A.
    pub rank: usize,
    /// Factor on B A.
    pub scale: f32,
    /// Names of its tensors in the file.
    keys: BTreeMap<AdapterTensor, String>,
}

/// Tensors of one module: the name that PEFT has for it, and theirs.
struct Found {
    path: String,
    keys: BTreeMap<AdapterTensor, String>,
}

impl AdapterFile {
    /// Opens an adapter for the model that `spec` and `names` describe; `dtype` is the element type of a projection.
    ///
    /// # Errors
    /// `NoAdapter`, `UnsupportedAdapter`, `CorruptAdapter`, `ForeignAdapter` or `BadConfig`: with the file and the field or
    /// tensor.
    pub fn open(
        folder: &Path,
        spec: &ModelSpec,
        names: &TensorNames,
        dtype: &dyn Fn(usize, Site) -> WeightDtype,
    ) -> Result<Self, ModelError> {
        let (config, path) = find(folder)?;
        let config = AdapterConfig::open(&config)?;
        let tensors = read(&path)?;
        let file = path.display().to_string();
        let sites = Sites::of(spec, names);
        let found = group(&tensors, &file)?;
        let check = Check { config: &config, tensors: &tensors, file: &file };
        let mut modules = Vec::with_capacity(found.len());
        for (name, found) in &found {
            let place = sites.get(name).ok_or_else(|| no_place(&file, name, found))?;
            modules.push(check.module(name, found, place)?);
        }
        modules.sort_by_key(|m| (m.layer, m.site, m.part));
        let warnings = check.warnings(&found, &sites);
        let packed_bytes = packed_bytes(&modules, dtype);
        let digest = digest(&modules, tensors.whole());
        Ok(Self { tensors, file, modules, digest, packed_bytes, warnings })
    }

    /// SHA-256 of everything that its effect depends on, in hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The largest rank of its modules.
    pub fn rank(&self) -> usize {
        self.modules.iter().map(|m| m.rank).max().unwrap_or(0)
    }

    /// Memory that it takes when it is packed for the CPU, in bytes.
    pub fn packed_bytes(&self) -> usize {
        self.packed_bytes
    }

    /// The modules that it changes, by layer and site.
    pub fn modules(&self) -> &[AdapterModule] {
        &self.modules
    }

    /// Sentences about what is odd, though the adapter can be used.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The file of tensors, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// A tensor of a module; None: it has none of this kind. B and the bias are without the scale.
    ///
    /// # Errors
    /// None for modules of this file.
    pub fn tensor(&self, m: &AdapterModule, tensor: AdapterTensor) -> Result<Option<Tensor<'_>>, ModelError> {
        let shape: &[usize] = match tensor {
            AdapterTensor::A => &[m.rank, m.inputs],
            AdapterTensor::B => &[m.outputs, m.rank],
            AdapterTensor::Bias | AdapterTensor::Magnitude => &[m.outputs],
        };
        m.keys.get(&tensor).map(|key| self.tensors.tensor(key, shape)).transpose()
    }
}

/// The two files of the folder.
fn find(folder: &Path) -> Result<(PathBuf, PathBuf), ModelError> {
    let none = |path: &Path, what: String| Err(ModelError::NoAdapter { path: path.to_path_buf(), what });
    if !folder.is_dir() {
        let what = if folder.exists() { "it is no folder" } else { "there is no such folder" };
        return none(folder, what.into());
    }
    let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
    if !config.is_file() {
        return none(folder, format!("{CONFIG} is missing"));
    }
    if !tensors.is_file() {
        let what = match folder.join(PICKLE).exists() {
            true => format!("{TENSORS} is missing, and {PICKLE} is not read, since it can hold programs"),
            false => format!("{TENSORS} is missing"),
        };
        return none(folder, what);
    }
    Ok((config, tensors))
}

/// The tensors, in memory.
fn read(path: &Path) -> Result<Checkpoint, ModelError> {
    let file = path.display().to_string();
    let bytes = std::fs::metadata(path).map_err(|e| ModelError::io(path, e))?.len();
    if bytes > MAX_FILE_BYTES {
        let what = format!("{bytes} bytes, at most {MAX_FILE_BYTES} can be attached");
        return Err(ModelError::unsupported_adapter(file, what));
    }
    if bytes == 0 {
        return Err(ModelError::corrupt_adapter(file, "the file is empty"));
    }
    let mut tensors = Checkpoint::default();
    // A training run may write the file again at any time.
    tensors.add_map(path.to_path_buf(), read_file(path)?).map_err(|e| match e {
        ModelError::Corrupt { file, what } => ModelError::corrupt_adapter(file, what),
        ModelError::NotFound { path, what } => ModelError::NoAdapter { path, what },
        other => other,
    })?;
    Ok(tensors)
}

/// The tensors by the family's names of their modules.
fn group(tensors: &Checkpoint, file: &str) -> Result<BTreeMap<String, Found>, ModelError> {
    let mut found = BTreeMap::<String, Found>::new();
    for key in tensors.names() {
        let Some((path, tensor)) = keys::parse(key) else {
            let what = format!(
                "tensor {key} is none of lora_A, lora_B and lora_magnitude_vector: only these can be attached to requests"
            );
            return Err(ModelError::unsupported_adapter(file, what));
        };
        let name = module_name(path).unwrap_or_else(|| path.to_string());
        let module =
            found.entry(name).or_insert_with(|| Found { path: path.to_string(), keys: BTreeMap::new() });
        if let Some(other) = module.keys.insert(tensor, key.to_string()) {
            let what = format!("tensors {other} and {key} are for the same module");
            return Err(ModelError::corrupt_adapter(file, what));
        }
    }
    if found.is_empty() {
        return Err(ModelError::corrupt_adapter(file, "it holds no tensors"));
    }
    Ok(found)
}

/// A module that requests cannot have an adapter on, with the reason.
fn no_place(file: &str, name: &str, found: &Found) -> ModelError {
    let key = found.keys.values().next().map_or(name, String::as_str);
    let last = name.rsplit('.').next().unwrap_or(name);
    let reason = match last {
        "kv_b_proj" => "this projection is part of attention over latents, and is not computed by itself",
        "embed_tokens" | "lm_head" => "an adapter on the embedding or the output head",
        _ if name.contains(".experts") => "an adapter on experts",
        "gate" => "an adapter on the router of experts",
        _ => {
            let what = format!("tensor {key}: the model has no module {name}");
            return ModelError::ForeignAdapter { file: file.into(), what };
        }
    };
    ModelError::unsupported_adapter(file, format!("tensor {key}: {reason}"))
}

struct Check<'a> {
    config: &'a AdapterConfig,
    tensors: &'a Checkpoint,
    file: &'a str,
}

impl Check<'_> {
    fn module(&self, name: &str, found: &Found, place: &Place) -> Result<AdapterModule, ModelError> {
        let corrupt = |what: String| ModelError::corrupt_adapter(self.file, what);
        let key = |tensor| found.keys.get(&tensor);
        let (Some(a), Some(b)) = (key(AdapterTensor::A), key(AdapterTensor::B)) else {
            let half = if key(AdapterTensor::A).is_none() { "lora_A" } else { "lora_B" };
            return Err(corrupt(format!("module {} has no {half}.weight", found.path)));
        };
        for (tensor, field, meant) in [
            (AdapterTensor::Magnitude, "use_dora", self.config.dora),
            (AdapterTensor::Bias, "lora_bias", self.config.bias),
        ] {
            let there = key(tensor).is_some();
            if there != meant {
                let (has, what) = if there { ("has", "false") } else { ("has no", "true") };
                let kind =
                    if tensor == AdapterTensor::Bias { "lora_B.bias" } else { "lora_magnitude_vector" };
                let what = format!("module {} {has} {kind}, and {field} of {CONFIG} is {what}", found.path);
                return Err(corrupt(what));
            }
        }
        let rank = match self.tensors.shape(a) {
            Some(&[rank, _]) if rank > 0 => rank,
            other => {
                let what =
                    format!("tensor {a} has shape {:?}, [rank, inputs] is expected", other.unwrap_or(&[]));
                return Err(corrupt(what));
            }
        };
        let said = self.config.scale(&found.path, place.layer, rank);
        let scale = said.map_err(|what| corrupt(format!("module {} and {CONFIG}: {what}", found.path)))?;
        if rank > MAX_RANK {
            let what = format!("tensor {a} has rank {rank}: ranks up to {MAX_RANK} can be attached");
            return Err(ModelError::unsupported_adapter(self.file, what));
        }
        let (outputs, inputs) = (place.outputs, place.inputs);
        for (tensor, key) in &found.keys {
            let shape: &[usize] = match tensor {
                AdapterTensor::A => &[rank, inputs],
                AdapterTensor::B => &[outputs, rank],
                AdapterTensor::Bias | AdapterTensor::Magnitude => &[outputs],
            };
            self.tensor(key, shape)?;
        }
        self.scaled(b, &[outputs, rank], scale)?;
        Ok(AdapterModule {
            name: name.to_string(),
            layer: place.layer,
            site: place.site,
            part: place.part,
            column: place.column,
            outputs,
            inputs,
            rank,
            scale: scale as f32,
            keys: found.keys.clone(),
        })
    }

    /// Checks the shape, the element type and the values of a tensor.
    fn tensor(&self, key: &str, shape: &[usize]) -> Result<(), ModelError> {
        let stored = self.tensors.shape(key).unwrap_or_default();
        if stored != shape {
            let what = format!("tensor {key} has shape {stored:?}, and the model asks for {shape:?}");
            return Err(ModelError::ForeignAdapter { file: self.file.into(), what });
        }
        let tensor = self.tensors.tensor(key, shape).map_err(|e| match e {
            ModelError::Corrupt { file, what } => ModelError::corrupt_adapter(file, what),
            other => other,
        })?;
        match not_finite(&tensor.data, tensor.dtype) {
            0 => Ok(()),
            n => {
                let what = format!("tensor {key} has {n} values that are NaN or infinite");
                Err(ModelError::corrupt_adapter(self.file, what))
            }
        }
    }

    /// Checks that the scale leaves B finite.
    fn scaled(&self, key: &str, shape: &[usize], scale: f64) -> Result<(), ModelError> {
        let largest = self.tensors.tensor(key, shape)?.to_f32().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        // A bf16 above this one is infinite.
        if (scale * f64::from(largest)).abs() <= 3.3e38 && (scale as f32).is_finite() {
            return Ok(());
        }
        let what =
            format!("tensor {key} times its scale {scale} (lora_alpha and rank) is beyond all numbers");
        Err(ModelError::corrupt_adapter(self.file, what))
    }

    /// What the config asks for and the file does not hold.
    fn warnings(&self, found: &BTreeMap<String, Found>, sites: &Sites) -> Vec<String> {
        let paths = found.values().map(|found| found.path.as_str()).collect::<Vec<_>>();
        let unmatched = self.config.unmatched(&paths);
        // Names that the model does not have are those of other families, in a list for many.
        let meant = |end: &&str| sites.names().any(|name| super::patterns::is_end(name, end));
        let missing = unmatched.into_iter().filter(meant).map(String::from).collect::<Vec<_>>();
        let warning = |missing: &[String]| {
            format!(
                "{}: target_modules of {CONFIG} names {}, and no tensor is for it",
                self.file,
                named(missing)
            )
        };
        (!missing.is_empty()).then(|| warning(&missing)).into_iter().collect()
    }
}

/// Bytes of the packed matrices (see `octavo_kernels::LoraStack`).
fn packed_bytes(modules: &[AdapterModule], dtype: &dyn Fn(usize, Site) -> WeightDtype) -> usize {
    const LANES: usize = 16;
    let of_site = |site: &[AdapterModule]| {
        let (inputs, dtype) = (site[0].inputs, dtype(site[0].layer, site[0].site));
        let down = match dtype {
            WeightDtype::F32 => 4 * inputs * LANES,
            WeightDtype::Bf16 => 4 * inputs.div_ceil(2) * LANES,
            WeightDtype::Quantized(_) => (GROUP + 2) * inputs.div_ceil(GROUP) * LANES,
        };
        let element = if dtype == WeightDtype::F32 { 4 } else { 2 };
        let up = |m: &AdapterModule| {
            let vectors = 4 * m.keys.keys().filter(|t| **t >= AdapterTensor::Bias).count();
            m.outputs.div_ceil(LANES) * LANES * (2 * element * m.rank.div_ceil(2) + vectors)
        };
        let rank: usize = site.iter().map(|m| m.rank).sum();
        rank.div_ceil(LANES) * down + site.iter().map(up).sum::<usize>()
    };
    by_site(modules).map(of_site).sum()
}

/// The modules of each site together.
pub(super) fn by_site(modules: &[AdapterModule]) -> impl Iterator<Item = &[AdapterModule]> {
    modules.chunk_by(|a, b| (a.layer, a.site) == (b.layer, b.site))
}

fn digest(modules: &[AdapterModule], file: &[u8]) -> String {
    let mut sha = Sha256::new();
    sha.update(DIGEST_OF);
    for m in modules {
        sha.update(format!("\n{} {} {:08x}", m.name, m.rank, m.scale.to_bits()));
    }
    sha.update(b"\n\n");
    sha.update(file);
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
