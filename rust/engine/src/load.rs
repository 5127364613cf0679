//! From a model folder to a running engine, on the CPU or over an executor in Python.

use std::path::Path;
use std::time::Instant;

use octavo_kernels::{Kernels, Selector, WeightDtype};
use octavo_model::{
    KvPool, Model, ModelError, ModelFolder, ModelSpec, open, open_model, open_tokenizer, read_family,
};
use serde_json::{Map, Value, json};

use crate::EngineError;
use crate::config::EngineConfig;
use crate::cpu::CpuExecutor;
use crate::cpu_memory::{memory_facts, memory_parts};
use crate::engine::{Engine, EngineParts};
use crate::error::panic_text;
use crate::executor::Executor;
use crate::generation::GenerationDefaults;
use crate::info::{ExecutorFacts, info, kept_in_bf16_sentences};
use crate::limits::Device;
use crate::memory::MemoryFacts;
use crate::packs::PackFacts;
use crate::resolve::{ResolvedConfig, isa_level, resolve, resolve_for_gpu};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// Stack of the thread that reads texts, as large as a main thread's: untrusted files may nest.
const TEXT_STACK_BYTES: usize = 8 << 20;

impl Engine {
    /// Loads the model of `folder` on the CPU and starts the engine thread.
    ///
    /// # Errors
    /// `ModelNotFound`, `UnsupportedModel`, `CorruptModel`, or `InvalidRequest` for options that do not fit.
    pub fn load(folder: &Path, config: &EngineConfig) -> Result<Self, EngineError> {
        let folder = &*open(folder)?;
        let family = read_family(folder)?;
        let mut resolved = resolve(config, &family.spec, Device::Cpu)?;
        let kernels = kernels(config)?;
        let begin = Instant::now();
        let (text, mut model) =
            load_side_by_side(folder, config, || Model::load(&kernels, folder, family, resolved.weights))?;
        let facts = memory_facts(&model, &resolved)?;
        let kv_reason = resolved.fit_kv_cache(config, &facts)?;
        resolved.memory = memory_parts(&model, &resolved, &facts, kernels.threads(), &kv_reason)?;
        model.set_context(resolved.limits.max_model_len as usize);
        let kv = KvPool::new(model.spec(), resolved.limits.num_blocks as usize, resolved.kv_format)?;
        let spec = model.spec().clone();
        let facts = cpu_facts(&model, &resolved, &kernels, facts, begin.elapsed().as_secs_f64());
        let held = format!("{} {:?}", facts.quantization, facts.kept_in_bf16);
        let packs = PackFacts::new(folder.path(), &spec, config, &resolved, kv.block_layout(), held);
        let executor = Box::new(CpuExecutor::new(kernels, model, kv, resolved.attention.map(Selector::new)));
        let engine = start(folder, spec, config, &resolved, text, executor, facts)?;
        Ok(engine.with_packs(Some(packs)))
    }

    /// Starts the engine thread over an executor that was made elsewhere for the model of `folder` on a GPU. The executor's
    /// sizes are those of `resolve_for_gpu` with the same memory figures.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_over(
        folder: &Path,
        config: &EngineConfig,
        executor: Box<dyn Executor>,
        facts: ExecutorFacts,
    ) -> Result<Self, EngineError> {
        let resolved = resolve_for_gpu(folder, config, Some(&facts.memory))?;
        let folder = &*open(folder)?;
        let spec = open_model(folder)?.0.spec;
        let text = Text::load(folder, config)?;
        start(folder, spec, config, &resolved, text, executor, facts)
    }
}

fn start(
    folder: &dyn ModelFolder,
    spec: ModelSpec,
    config: &EngineConfig,
    resolved: &ResolvedConfig,
    text: Text,
    executor: Box<dyn Executor>,
    mut facts: ExecutorFacts,
) -> Result<Engine, EngineError> {
    facts.warnings.extend(text.tokenizer.warnings(spec.vocab));
    facts.warnings.extend_from_slice(&text.generation.warnings);
    let has_template = text.template.as_ref().is_some_and(Result::is_ok);
    let info = info(folder.path(), &spec, resolved, has_template, facts);
    Engine::start(EngineParts {
        vocab: spec.vocab,
        spec: Some(spec),
        executor,
        tokenizer: text.tokenizer,
        template: text.template,
        generation: text.generation,
        limits: resolved.limits,
        prefix_caching: config.enable_prefix_caching,
        prefill_chunk: config.prefill_chunk.map(|n| n as u32),
        seed: config.seed as u64,
        info,
    })
}

/// The kernels of `config`.
///
/// # Errors
/// `InvalidRequest` for options that do not fit this machine.
pub(crate) fn kernels(config: &EngineConfig) -> Result<Kernels, EngineError> {
    let isa = isa_level(config)?;
    Kernels::new(config.threads.unwrap_or(0), Some(isa))
        .map_err(|e| EngineError::InvalidRequest(e.to_string()))
}

/// Loads texts and weights in parallel: a large vocabulary takes longer to read than mapped weights.
fn load_side_by_side(
    folder: &dyn ModelFolder,
    config: &EngineConfig,
    load_model: impl FnOnce() -> Result<Model, ModelError>,
) -> Result<(Text, Model), EngineError> {
    open_tokenizer(config.tokenizer.as_deref().unwrap_or(folder.path())).check_tokenizer()?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("octavo-text".into()).stack_size(TEXT_STACK_BYTES);
        let failed = |why: String| EngineError::CorruptModel(format!("cannot read the tokenizer: {why}"));
        let load = || Text::load(folder, config);
        let thread = thread.spawn_scoped(scope, load).map_err(|e| failed(e.to_string()))?;
        let model = load_model();
        // The tokenizer's error first: it is the one that costs least to mend.
        let text = thread.join().unwrap_or_else(|panic| Err(failed(panic_text(panic))))?;
        Ok((text, model?))
    })
}

fn cpu_facts(
    model: &Model,
    resolved: &ResolvedConfig,
    kernels: &Kernels,
    memory: MemoryFacts,
    load_seconds: f64,
) -> ExecutorFacts {
    let (weights, isa) = (resolved.weights, kernels.isa().name());
    let budget = model.origin().map_or(weights.error_budget, |origin| origin.error_budget);
    let way = if resolved.attention.is_some() { "dynamic" } else { "dense" };
    let rows = [
        ("matmul", json!(format!("{} weights, {isa}", weights.dtype))),
        ("attention", json!(format!("{way}, paged, {} KV, {isa}", resolved.kv_format.name()))),
        ("norm, rope, activation", json!(format!("float32, {isa}"))),
        ("threads", json!(kernels.threads())),
    ];
    ExecutorFacts {
        memory,
        quantization: match weights.dtype {
            WeightDtype::Quantized(scheme) => scheme.name(),
            WeightDtype::F32 | WeightDtype::Bf16 => "none".into(),
        },
        checkpoint_dtype: Some(model.stored_dtype().name().into()),
        kept_in_bf16: kept_in_bf16_sentences(model.kept_in_bf16(), budget),
        quantized_file: json!(model.origin()),
        warnings: model.warnings().to_vec(),
        kernels: rows
            .map(|(name, value)| (name.to_string(), value))
            .into_iter()
            .collect::<Map<String, Value>>(),
        load_seconds,
    }
}

/// Tokenizer, chat template and generation defaults.
struct Text {
    tokenizer: Tokenizer,
    generation: GenerationDefaults,
    template: Option<Result<ChatTemplate, EngineError>>,
}

impl Text {
    fn load(folder: &dyn ModelFolder, config: &EngineConfig) -> Result<Self, EngineError> {
        let files = open_tokenizer(config.tokenizer.as_deref().unwrap_or(folder.path()));
        let tokenizer = Tokenizer::load(&*files)?;
        let generation = GenerationDefaults::read(folder, &tokenizer)?;
        // A given template must compile. The model's own need not: generating needs none.
        let template = match &config.chat_template {
            Some(text) => Some(Ok(ChatTemplate::new(text, &tokenizer)?)),
            None => ChatTemplate::named(&ChatTemplate::find(folder, &tokenizer)?, &tokenizer),
        };
        Ok(Self { tokenizer, generation, template })
    }
}
