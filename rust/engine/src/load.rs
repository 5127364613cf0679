//! From a model folder to a running engine, on the CPU or over an executor that was made elsewhere.

use std::path::Path;
use std::time::Instant;

use octavo_kernels::{Kernels, WeightDtype};
use octavo_model::{KvPool, Model, Spared, read_family};
use serde_json::{Value, json};

use crate::EngineError;
use crate::cpu::CpuExecutor;
use crate::engine::{Engine, EngineParts};
use crate::executor::Executor;
use crate::generation::GenerationDefaults;
use crate::memory::{self, Limits};
use crate::options::EngineOptions;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

impl Engine {
    /// Loads the model of `folder` on the CPU and starts the engine thread.
    ///
    /// # Errors
    /// `ModelNotFound`, `UnsupportedModel`, `CorruptModel`, or `InvalidRequest` for options that do not fit.
    pub fn load(folder: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let family = read_family(folder)?;
        let float = options.float_dtype(family.spec.checkpoint_dtype)?;
        let format = options.weight_format(float)?;
        let weight_dtype = format.dtype;
        let kv_dtype = options.kv_dtype(float)?;
        if options.threads == Some(0) || options.threads.is_some_and(|t| t > 1024) {
            return Err(EngineError::InvalidRequest("threads: a number from 1 to 1024 is expected".into()));
        }
        let Words { tokenizer, generation, template } = Words::read(folder, options)?;
        let isa = options.isa_level()?;
        let kernels = Kernels::new(options.threads.unwrap_or(0), Some(isa))
            .map_err(|e| EngineError::InvalidRequest(e.to_string()))?;
        let begin = Instant::now();
        let mut model = Model::load(&kernels, folder, family, format)?;
        let (limits, parts) = memory::plan(&model, options, kv_dtype)?;
        model.set_context(limits.max_model_len as usize);
        let kv = KvPool::new(model.spec(), limits.num_blocks as usize, kv_dtype)?;
        let spec = model.spec().clone();
        let info = json!({
            "model": {
                "path": folder.display().to_string(),
                "architecture": spec.architecture,
                "parameters": spec.parameters(),
                "layers": spec.layers.len(),
                "hidden": spec.hidden,
                "vocab": spec.vocab,
                "checkpoint_dtype": model.stored_dtype().name(),
                "dtype": float.name(),
                "quantization": if weight_dtype == WeightDtype::Int8 { "int8" } else { "none" },
                "spared": spared_tensors(&model, format.error_budget),
                "kv_cache_dtype": kv_dtype.name(),
                "chat_template": template.as_ref().is_some_and(Result::is_ok),
                "load_seconds": begin.elapsed().as_secs_f64(),
            },
            "warnings": model.warnings(),
            "memory": parts,
            "kernels": {
                "matmul": format!("{weight_dtype:?} weights, {}", isa.name()),
                "attention": format!("paged, {} KV, {}", kv_dtype.name(), isa.name()),
                "norm, rope, activation": format!("float32, {}", isa.name()),
                "threads": kernels.threads(),
            },
        });
        Self::start(EngineParts {
            vocab: spec.vocab,
            spec: Some(spec),
            executor: Box::new(CpuExecutor::new(kernels, model, kv)),
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
        options: &EngineOptions,
        executor: Box<dyn Executor>,
        limits: Limits,
        mut info: Value,
    ) -> Result<Self, EngineError> {
        let spec = read_family(folder)?.spec;
        let Words { tokenizer, generation, template } = Words::read(folder, options)?;
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

/// What a model folder holds beside the model.
struct Words {
    tokenizer: Tokenizer,
    generation: GenerationDefaults,
    template: Option<Result<ChatTemplate, EngineError>>,
}

impl Words {
    fn read(folder: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        let tokenizer = Tokenizer::load(options.tokenizer.as_deref().unwrap_or(folder))?;
        let generation = GenerationDefaults::read(folder, &tokenizer)?;
        // A given template must compile. The model's own need not: generating needs none.
        let template = match &options.chat_template {
            Some(text) => Some(Ok(ChatTemplate::new(text, &tokenizer)?)),
            None => ChatTemplate::named(&ChatTemplate::find(folder, &tokenizer)?, &tokenizer),
        };
        Ok(Self { tokenizer, generation, template })
    }
}

/// A sentence for each tensor that int8 would change too much, for `info`.
fn spared_tensors(model: &Model, budget: Option<f64>) -> Vec<String> {
    let share = |x: f64| format!("{:.2} %", 100.0 * x);
    let limit = share(budget.unwrap_or(f64::INFINITY));
    let sentence = |t: &Spared| match Some(t.error) > budget {
        true => format!(
            "{} (bfloat16: int8 would be {} off, at most {limit} is allowed)",
            t.tensor,
            share(t.error)
        ),
        false => format!("{} (bfloat16: packed together with one that is)", t.tensor),
    };
    model.spared().iter().map(sentence).collect()
}
