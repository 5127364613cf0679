//! From a model folder to a running engine, on the CPU or over an executor that was made elsewhere.

use std::path::Path;
use std::time::Instant;

use octavo_kernels::{Kernels, WeightDtype};
use octavo_model::{KeptInBf16, KvPool, Model, ModelFolder, open, open_tokenizer, read_family};
use serde_json::{Value, json};

use crate::EngineError;
use crate::config::EngineConfig;
use crate::cpu::CpuExecutor;
use crate::engine::{Engine, EngineParts};
use crate::error::panic_text;
use crate::executor::Executor;
use crate::generation::GenerationDefaults;
use crate::memory::{self, Limits};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// As much as a main thread has: files of strangers may nest.
const TEXT_STACK_BYTES: usize = 8 << 20;

impl Engine {
    /// Loads the model of `folder` on the CPU and starts the engine thread.
    ///
    /// # Errors
    /// `ModelNotFound`, `UnsupportedModel`, `CorruptModel`, or `InvalidRequest` for options that do not fit.
    pub fn load(folder: &Path, options: &EngineConfig) -> Result<Self, EngineError> {
        let folder = &*open(folder)?;
        let family = read_family(folder)?;
        let float = options.float_dtype(family.spec.checkpoint_dtype)?;
        let format = options.weight_format(float)?;
        let weight_dtype = format.dtype;
        let kv_format = options.kv_format(float)?;
        options.check_threads()?;
        let isa = options.isa_level()?;
        let kernels = Kernels::new(options.threads.unwrap_or(0), Some(isa))
            .map_err(|e| EngineError::InvalidRequest(e.to_string()))?;
        let text_folder = &*open_tokenizer(options.tokenizer.as_deref().unwrap_or(folder.path()));
        text_folder.check_tokenizer()?;
        let begin = Instant::now();
        // A large vocabulary takes longer to read than mapped weights do: side by side.
        let (text, mut model) = std::thread::scope(|scope| {
            let load = || Text::load(folder, text_folder, options.chat_template.as_deref());
            let thread = std::thread::Builder::new().name("octavo-text".into()).stack_size(TEXT_STACK_BYTES);
            let failed = |why: String| EngineError::CorruptModel(format!("cannot read the tokenizer: {why}"));
            let thread = thread.spawn_scoped(scope, load).map_err(|e| failed(e.to_string()))?;
            let model = Model::load(&kernels, folder, family, format);
            // The tokenizer's fault first: it is the one that costs least to mend.
            let text = thread.join().unwrap_or_else(|panic| Err(failed(panic_text(panic))))?;
            Ok::<_, EngineError>((text, model?))
        })?;
        let Text { tokenizer, generation, template } = text;
        let (limits, parts) = memory::plan(&model, options, kv_format, kernels.threads())?;
        model.set_context(limits.max_model_len as usize);
        let kv = KvPool::new(model.spec(), limits.num_blocks as usize, kv_format)?;
        let spec = model.spec().clone();
        let budget = model.origin().map_or(format.error_budget, |origin| origin.error_budget);
        let info = json!({
            "model": {
                "path": folder.path().display().to_string(),
                "architecture": spec.architecture,
                "parameters": spec.parameters(),
                "layers": spec.layers.len(),
                "hidden": spec.hidden,
                "vocab": spec.vocab,
                "checkpoint_dtype": model.stored_dtype().name(),
                "dtype": float.name(),
                "quantization": if weight_dtype == WeightDtype::Int8 { "int8" } else { "none" },
                "kept_in_bf16": kept_in_bf16_sentences(model.kept_in_bf16(), budget),
                "quantized_file": model.origin(),
                "kv_cache_dtype": kv_format.name(),
                "chat_template": template.as_ref().is_some_and(Result::is_ok),
                "load_seconds": begin.elapsed().as_secs_f64(),
            },
            "warnings": model.warnings(),
            "memory": parts,
            "kernels": {
                "matmul": format!("{weight_dtype:?} weights, {}", isa.name()),
                "attention": format!(
                    "{}, paged, {} KV, {}",
                    if options.attention.is_some() { "dynamic" } else { "dense" },
                    kv_format.name(),
                    isa.name()
                ),
                "norm, rope, activation": format!("float32, {}", isa.name()),
                "threads": kernels.threads(),
            },
        });
        Self::start(EngineParts {
            vocab: spec.vocab,
            spec: Some(spec),
            executor: Box::new(CpuExecutor::new(kernels, model, kv, options.attention)),
            tokenizer,
            template,
            generation,
            limits,
            prefix_caching: options.enable_prefix_caching,
            prefill_chunk: options.prefill_chunk.map(|n| n as u32),
            seed: options.seed,
            info,
        })
    }
}

impl Engine {
    /// Starts the engine thread over an executor that was made elsewhere for the model of `folder`. `info` is what
    /// `Engine::info` tells of it; of `options`, those count that are not the executor's.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_over(
        folder: &Path,
        options: &EngineConfig,
        executor: Box<dyn Executor>,
        limits: Limits,
        mut info: Value,
    ) -> Result<Self, EngineError> {
        let folder = &*open(folder)?;
        let spec = read_family(folder)?.spec;
        let Text { tokenizer, generation, template } = Text::load(
            folder,
            &*open_tokenizer(options.tokenizer.as_deref().unwrap_or(folder.path())),
            options.chat_template.as_deref(),
        )?;
        if let Some(Value::Object(model)) = info.get_mut("model") {
            model.insert("chat_template".into(), template.as_ref().is_some_and(Result::is_ok).into());
        }
        Self::start(EngineParts {
            vocab: spec.vocab,
            spec: Some(spec),
            executor,
            tokenizer,
            template,
            generation,
            limits,
            prefix_caching: options.enable_prefix_caching,
            prefill_chunk: options.prefill_chunk.map(|n| n as u32),
            seed: options.seed,
            info,
        })
    }
}

/// What turns text into tokens and back.
struct Text {
    tokenizer: Tokenizer,
    generation: GenerationDefaults,
    template: Option<Result<ChatTemplate, EngineError>>,
}

impl Text {
    fn load(
        folder: &dyn ModelFolder,
        tokenizer: &dyn ModelFolder,
        template: Option<&str>,
    ) -> Result<Self, EngineError> {
        let tokenizer = Tokenizer::load(tokenizer)?;
        let generation = GenerationDefaults::read(folder, &tokenizer)?;
        // A given template must compile. The model's own need not: generating needs none.
        let template = match template {
            Some(text) => Some(Ok(ChatTemplate::new(text, &tokenizer)?)),
            None => ChatTemplate::named(&ChatTemplate::find(folder, &tokenizer)?, &tokenizer),
        };
        Ok(Self { tokenizer, generation, template })
    }
}

/// A sentence for each tensor that int8 would change too much, for `info`.
pub(crate) fn kept_in_bf16_sentences(kept_in_bf16: &[KeptInBf16], budget: Option<f64>) -> Vec<String> {
    let share = |x: f64| format!("{:.2} %", 100.0 * x);
    let limit = share(budget.unwrap_or(f64::INFINITY));
    let sentence = |t: &KeptInBf16| match Some(t.error) > budget {
        true => format!(
            "{} (bfloat16: int8 would be {} off, at most {limit} is allowed)",
            t.tensor,
            share(t.error)
        ),
        false => format!("{} (bfloat16: packed together with one that is)", t.tensor),
    };
    kept_in_bf16.iter().map(sentence).collect()
}
