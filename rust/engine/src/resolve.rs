//! From a configuration to the one that an engine runs with, for both devices: data types, limits, the memory plan.

use std::path::Path;

use octavo_kernels::{Isa, Mode, QuantScheme, WeightDtype};
use octavo_model::{AttentionSpec, Dtype, KvFormat, ModelSpec, WeightFormat, open, read_family};

use crate::EngineError;
use crate::attention::{self, AttentionConfig};
use crate::config::EngineConfig;
use crate::limits::{Device, Limits};
use crate::memory::{self, MemoryFacts, MemoryPart};

/// Relative root mean square error of a projection's outputs above which `quantization="auto"` keeps it in bfloat16.
///
/// docs/fidelity.md has the measurement: were every projection of the embedded model off by this much, the mean KL to
/// float32 would stay below the 0.005 nats that int8 is allowed. Weights without outliers are off by about 0.01.
const INT8_ERROR_BUDGET: f64 = 0.05;

/// A checked configuration without open choices.
#[derive(Clone, Debug)]
pub struct ResolvedConfig {
    /// The device.
    pub device: Device,
    /// Type of computation, and of storage where not quantised.
    pub dtype: Dtype,
    /// Format of the weights on the CPU; a GPU executor reads `quantization` itself.
    pub weights: WeightFormat,
    /// Format of the KV cache.
    pub kv_format: KvFormat,
    /// What attention may omit; None: nothing.
    pub attention: Option<AttentionConfig>,
    /// Limits; `num_blocks` is set by `plan_memory`.
    pub limits: Limits,
    /// The memory plan; empty before `plan_memory`.
    pub memory: Vec<MemoryPart>,
}

/// Checks `config` for a model and a device, and takes every choice that needs no memory figures.
///
/// # Errors
/// `InvalidRequest` names the option, its value and the expected values.
pub fn resolve(
    config: &EngineConfig,
    spec: &ModelSpec,
    device: Device,
) -> Result<ResolvedConfig, EngineError> {
    let dtype = float_dtype(config, spec.checkpoint_dtype, device)?;
    let weights = weight_format(config, dtype)?;
    let kv_format = kv_format(config, dtype, device)?;
    check_latent(spec, kv_format)?;
    check_attention(config, device)?;
    check_threads(config)?;
    let limits = Limits::resolve(config, spec, device)?;
    let attention = config.attention;
    Ok(ResolvedConfig { device, dtype, weights, kv_format, attention, limits, memory: Vec::new() })
}

/// `resolve` for an executor in Python, with the memory plan where `memory` is measured.
///
/// # Errors
/// As `resolve`, and those of the model folder.
pub fn resolve_for_gpu(
    folder: &Path,
    config: &EngineConfig,
    memory: Option<&MemoryFacts>,
) -> Result<ResolvedConfig, EngineError> {
    let mut resolved = resolve(config, &read_family(&*open(folder)?)?.spec, Device::Gpu)?;
    if let Some(facts) = memory {
        let reason = resolved.fit_kv_cache(config, facts)?;
        resolved.memory = memory::gpu_parts(resolved.dtype, resolved.limits, facts, reason);
    }
    Ok(resolved)
}

impl ResolvedConfig {
    /// Sets the number of KV blocks and the context that they allow. Returns the reason of that number.
    ///
    /// # Errors
    /// `InvalidRequest` or `DeviceMemory`, with the options to change.
    pub(crate) fn fit_kv_cache(
        &mut self,
        config: &EngineConfig,
        facts: &MemoryFacts,
    ) -> Result<String, EngineError> {
        let (limits, reason) = memory::fit_kv_cache(config, self.limits, self.device, facts)?;
        self.limits = limits;
        Ok(reason)
    }
}

fn refuse<T>(name: &str, value: &str, expected: &str) -> Result<T, EngineError> {
    Err(EngineError::InvalidRequest(format!("{name} is '{value}': {expected}")))
}

/// The float type of weights and KV cache, for a checkpoint that declares `declared`.
fn float_dtype(config: &EngineConfig, declared: Option<Dtype>, device: Device) -> Result<Dtype, EngineError> {
    match (config.dtype.as_str(), device) {
        // float16 checkpoints are held in bfloat16, which the CPU reads as fast; float32 keeps every bit of them.
        ("auto", Device::Cpu) => Ok(match declared {
            Some(Dtype::Float32) => Dtype::Float32,
            _ => Dtype::Bfloat16,
        }),
        ("auto", Device::Gpu) => Ok(declared.unwrap_or(Dtype::Bfloat16)),
        ("float32", _) => Ok(Dtype::Float32),
        ("bfloat16", _) => Ok(Dtype::Bfloat16),
        ("float16", Device::Gpu) => Ok(Dtype::Float16),
        ("float16", Device::Cpu) => {
            refuse("dtype", "float16", "on the CPU use \"bfloat16\", or \"float32\" to keep every bit")
        }
        (other, Device::Cpu) => refuse("dtype", other, "\"auto\", \"float32\" or \"bfloat16\" is expected"),
        (other, Device::Gpu) => {
            let expected = "on a GPU one of \"auto\", \"float32\", \"bfloat16\", \"float16\" is expected";
            refuse("dtype", other, expected)
        }
    }
}

/// Format of the weights.
fn weight_format(config: &EngineConfig, float: Dtype) -> Result<WeightFormat, EngineError> {
    let expected = "\"auto\", \"int8\" or None is expected";
    match (config.quantization.as_str(), float) {
        ("auto", _) => Ok(WeightFormat { dtype: WeightDtype::INT8, error_budget: Some(INT8_ERROR_BUDGET) }),
        ("none", Dtype::Float32) => Ok(WeightDtype::F32.into()),
        ("none", _) => Ok(WeightDtype::Bf16.into()),
        (name, _) => match QuantScheme::from_name(name).map(QuantScheme::check) {
            Some(Ok(scheme)) => Ok(WeightDtype::Quantized(scheme).into()),
            Some(Err(error)) => refuse("quantization", name, &format!("{error}; {expected}")),
            None => refuse("quantization", name, expected),
        },
    }
}

/// Format of the KV cache.
fn kv_format(config: &EngineConfig, float: Dtype, device: Device) -> Result<KvFormat, EngineError> {
    let name = config.kv_cache_dtype.as_str();
    let int8 = KvFormat { float, int8: true };
    match (name, device) {
        ("int8", _) => Ok(int8),
        ("auto", _) => Ok(KvFormat { float, int8: config.attention.is_some() }),
        ("float32" | "bfloat16", Device::Cpu) => Ok(match name {
            "float32" => Dtype::Float32.into(),
            _ => Dtype::Bfloat16.into(),
        }),
        (_, Device::Gpu) if name == float.name() => Ok(float.into()),
        (_, Device::Cpu) => {
            let expected = "\"auto\", \"float32\", \"bfloat16\" or \"int8\" is expected";
            refuse("kv_cache_dtype", name, expected)
        }
        (_, Device::Gpu) => {
            let expected = format!(
                "on a GPU keys and values are cached in the model's dtype ({}) or in int8; give \"auto\", that dtype, or \
                 \"int8\"",
                float.name()
            );
            refuse("kv_cache_dtype", name, &expected)
        }
    }
}

/// Refuses an int8 cache for multi-head latent attention.
fn check_latent(spec: &ModelSpec, format: KvFormat) -> Result<(), EngineError> {
    let latent = spec.layers.iter().any(|l| matches!(l.attention, AttentionSpec::Mla(_)));
    if format.int8 && latent {
        return Err(EngineError::InvalidRequest(format!(
            "kv_cache_dtype int8 is not available for {}: its latent attention caches one compressed row a token \
             already. Use \"auto\"",
            spec.architecture
        )));
    }
    Ok(())
}

/// Checks the options of attention, alone and against the others.
fn check_attention(config: &EngineConfig, device: Device) -> Result<(), EngineError> {
    let Some(a) = &config.attention else { return Ok(()) };
    let invalid = |text: String| Err(EngineError::InvalidRequest(text));
    attention::check(a)?;
    if !matches!(config.kv_cache_dtype.as_str(), "auto" | "int8") {
        return invalid(format!(
            "attention is dynamic and kv_cache_dtype '{}': give \"auto\" or \"int8\"",
            config.kv_cache_dtype
        ));
    }
    if device == Device::Gpu && (a.mode != Mode::Certified || a.audit != 0) {
        return invalid(format!(
            "attention has mode '{}' and audit {}: on a GPU the mode is 'certified' and nothing is audited; leave these \
             two out",
            a.mode.name(),
            a.audit
        ));
    }
    if device == Device::Gpu && config.deterministic {
        return invalid(
            "attention is dynamic and deterministic True: on a GPU decodes then choose what they read and prompts do \
             not, so that a request's bits depend on its chunks. Give one of the two up"
                .into(),
        );
    }
    Ok(())
}

/// Refuses an impossible number of threads.
pub(crate) fn check_threads(config: &EngineConfig) -> Result<(), EngineError> {
    match config.threads {
        None | Some(1..=1024) => Ok(()),
        Some(n) => {
            Err(EngineError::InvalidRequest(format!("threads is {n}: a number from 1 to 1024 is expected")))
        }
    }
}

/// The instruction-set level of the kernels.
///
/// # Errors
/// `InvalidRequest` for a level that this machine does not have.
pub(crate) fn isa_level(config: &EngineConfig) -> Result<Isa, EngineError> {
    let (name, level) = match &config.isa {
        Some(name) => ("isa", name.parse()),
        None => ("OCTAVO_ISA", Isa::from_env()),
    };
    level.map_err(|e| EngineError::InvalidRequest(format!("{name}: {e}")))
}
