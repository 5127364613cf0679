//! Engine and Stream as Python classes. The GIL is released wherever the engine works or a caller waits.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use octavo_engine::{AttentionMode, DynamicParams, EngineConfig, Health, Limits, Prompt, RequestStream};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use serde_json::{Map, Value, json};

use crate::errors::{raise, to_python};
use crate::executor::PyExecutor;
use crate::json;
use crate::output::Delta;
use crate::{params, pooling};

/// How long a wait goes without looking for Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);
/// Longest wait, in seconds, that a timeout may ask for.
const MAX_WAIT: f64 = 1e9;

/// The processor's name.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// A list of token ids.
fn token_ids_of(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    ids.extract().map_err(|_| {
        raise(
            ids.py(),
            "InvalidRequestError",
            "token ids: a list of integers from 0 to 4294967295 is expected",
        )
    })
}

/// The text, if it is one that UTF-8 can hold.
fn utf8<'a>(text: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    text.to_str().map_err(|_| {
        raise(text.py(), "InvalidRequestError", "the text has a lone surrogate, which is no character")
    })
}

/// A text or a list of token ids.
fn prompt_of(prompt: &Bound<'_, PyAny>, add_special_tokens: bool) -> PyResult<Prompt> {
    Ok(match prompt.cast::<PyString>() {
        Ok(text) => Prompt::Text(utf8(text)?.to_string(), add_special_tokens),
        Err(_) => Prompt::Tokens(token_ids_of(prompt)?),
    })
}

/// `mode`, `error_bound`, `min_context`, `sink_blocks`, `local_blocks`, `max_blocks`, `audit`.
type AttentionChoice = (String, f32, usize, usize, usize, Option<usize>, usize);

fn dynamic_params(py: Python<'_>, choice: AttentionChoice) -> PyResult<DynamicParams> {
    let (mode, error_bound, min_context, sink_blocks, local_blocks, max_blocks, audit) = choice;
    let Some(mode) = AttentionMode::ALL.into_iter().find(|known| known.name() == mode) else {
        let known = AttentionMode::ALL.map(AttentionMode::name).join(", ");
        let message = format!("attention mode {mode:?} is unknown: one of {known} is expected");
        return Err(raise(py, "InvalidRequestError", &message));
    };
    let max_blocks = max_blocks.unwrap_or(usize::MAX);
    Ok(DynamicParams { mode, error_bound, min_context, sink_blocks, local_blocks, max_blocks, audit })
}

/// One model, its KV cache and the thread that runs it.
#[pyclass(frozen, module = "octavo._core")]
pub struct Engine(octavo_engine::Engine);

impl Engine {
    /// The engine that `load` makes.
    fn started(
        py: Python<'_>,
        load: impl FnOnce() -> Result<octavo_engine::Engine, octavo_engine::EngineError> + Send,
    ) -> PyResult<Self> {
        py.detach(load).map(Self).map_err(|e| to_python(py, &e))
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (model, *, dtype="auto", quantization="auto", kv_cache_dtype="auto", attention=None, kv_cache_bytes=None,
        kv_cache_fraction=None, max_model_len=None, max_num_seqs=None, max_num_batched_tokens=None, max_queue=None,
        enable_prefix_caching=true, threads=None, seed=0, tokenizer=None, chat_template=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        model: PathBuf,
        dtype: &str,
        quantization: &str,
        kv_cache_dtype: &str,
        attention: Option<AttentionChoice>,
        kv_cache_bytes: Option<u64>,
        kv_cache_fraction: Option<f64>,
        max_model_len: Option<usize>,
        max_num_seqs: Option<usize>,
        max_num_batched_tokens: Option<usize>,
        max_queue: Option<usize>,
        enable_prefix_caching: bool,
        threads: Option<usize>,
        seed: i64,
        tokenizer: Option<PathBuf>,
        chat_template: Option<String>,
    ) -> PyResult<Self> {
        let options = EngineConfig {
            dtype: dtype.into(),
            quantization: quantization.into(),
            kv_cache_dtype: kv_cache_dtype.into(),
            attention: attention.map(|choice| dynamic_params(py, choice)).transpose()?,
            kv_cache_bytes,
            kv_cache_fraction,
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            max_queue,
            enable_prefix_caching,
            threads,
            seed: seed as u64,
            tokenizer,
            chat_template,
            ..EngineConfig::default()
        };
        Self::started(py, || octavo_engine::Engine::load(&model, &options))
    }

    #[staticmethod]
    #[pyo3(signature = (model, executor, *, vocab, info, num_blocks, max_model_len, max_num_seqs, max_num_batched_tokens,
        max_queue, enable_prefix_caching=true, prefill_chunk=None, seed=0, tokenizer=None, chat_template=None))]
    #[allow(clippy::too_many_arguments)]
    fn over(
        py: Python<'_>,
        model: PathBuf,
        executor: Bound<'_, PyAny>,
        vocab: usize,
        info: &str,
        num_blocks: u32,
        max_model_len: u32,
        max_num_seqs: u32,
        max_num_batched_tokens: u32,
        max_queue: u32,
        enable_prefix_caching: bool,
        prefill_chunk: Option<usize>,
        seed: i64,
        tokenizer: Option<PathBuf>,
        chat_template: Option<String>,
    ) -> PyResult<Self> {
        let options = EngineConfig {
            enable_prefix_caching,
            prefill_chunk,
            seed: seed as u64,
            tokenizer,
            chat_template,
            ..EngineConfig::default()
        };
        let block_size = octavo_kernels::BLOCK_SIZE as u32;
        let limits =
            Limits { max_model_len, max_num_seqs, max_num_batched_tokens, max_queue, block_size, num_blocks };
        let info = serde_json::from_str(info)
            .map_err(|e| raise(py, "InvalidRequestError", &format!("info: not JSON: {e}")))?;
        let executor = Box::new(PyExecutor::new(executor, vocab)?);
        Self::started(py, || octavo_engine::Engine::load_over(&model, &options, executor, limits, info))
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true))]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
        add_special_tokens: bool,
    ) -> PyResult<Stream> {
        let params = params::read(params)?;
        let prompt = prompt_of(prompt, add_special_tokens)?;
        py.detach(|| self.0.submit(prompt, &params)).map(Stream).map_err(|e| to_python(py, &e))
    }

    fn check(
        &self,
        py: Python<'_>,
        prompt_token_ids: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let params = params::read(params)?;
        self.0.check(&token_ids_of(prompt_token_ids)?, &params).map(|_| ()).map_err(|e| to_python(py, &e))
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true))]
    fn embed(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
        add_special_tokens: bool,
    ) -> PyResult<Stream> {
        let (prompt, params) = (prompt_of(prompt, add_special_tokens)?, pooling::read(params)?);
        py.detach(|| self.0.embed(prompt, &params)).map(Stream).map_err(|e| to_python(py, &e))
    }

    fn check_embed(
        &self,
        py: Python<'_>,
        prompt_token_ids: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let params = pooling::read(params)?;
        self.0.check_embed(&token_ids_of(prompt_token_ids)?, &params).map_err(|e| to_python(py, &e))
    }

    fn wait_ready(&self, py: Python<'_>, timeout: f64) -> Vec<u64> {
        let timeout = Duration::from_secs_f64(timeout.clamp(0.0, MAX_WAIT));
        py.detach(|| self.0.wait_ready(timeout))
    }

    fn render_chat(&self, py: Python<'_>, request: &str) -> PyResult<String> {
        let render = || {
            let request: Map<String, Value> = serde_json::from_str(request).map_err(|e| {
                octavo_engine::EngineError::InvalidRequest(format!("messages: not a JSON object: {e}"))
            })?;
            self.0.render_chat(&request)
        };
        py.detach(render).map_err(|e| to_python(py, &e))
    }

    #[pyo3(signature = (text, *, add_special_tokens=true))]
    fn tokenize(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyString>,
        add_special_tokens: bool,
    ) -> PyResult<Vec<u32>> {
        let text = utf8(text)?;
        py.detach(|| self.0.tokenize(text, add_special_tokens)).map_err(|e| to_python(py, &e))
    }

    #[pyo3(signature = (token_ids, *, skip_special_tokens=true))]
    fn detokenize(
        &self,
        py: Python<'_>,
        token_ids: &Bound<'_, PyAny>,
        skip_special_tokens: bool,
    ) -> PyResult<String> {
        let ids = token_ids_of(token_ids)?;
        py.detach(|| self.0.detokenize(&ids, skip_special_tokens)).map_err(|e| to_python(py, &e))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let s = self.0.stats();
        let value = json!({
            "requests": {"running": s.requests_running, "waiting": s.requests_waiting.max(self.0.queued() as u64),
                         "finished": s.requests_finished},
            "blocks": {"total": s.blocks_total, "free": s.blocks_free, "cached": s.blocks_cached, "live": s.blocks_live},
            "steps": s.steps,
            "mixed_steps": s.mixed_steps,
            "failed_steps": s.failed_steps,
            "max_batch": s.max_batch,
            "max_batch_tokens": s.max_batch_tokens,
            "prompt_tokens": s.prompt_tokens,
            "cached_prompt_tokens": s.cached_prompt_tokens,
            "generated_tokens": s.generated_tokens,
            "finished": {"stop": s.finished_stop, "length": s.finished_length, "abort": s.finished_abort,
                         "error": s.finished_error},
            "preemptions": s.preemptions,
            "evictions": s.evictions,
            "step_seconds": s.step_us as f64 / 1e6,
            "attention": self.0.report().iter().map(|(name, x)| (name.to_string(), x.into())).collect::<Map<_, _>>(),
        });
        json::to_python(py, &value)
    }

    fn histograms<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let of = |h: octavo_engine::HistogramSnapshot| {
            (h.name.to_string(), json!({"bounds": h.bounds, "counts": h.counts, "sum": h.sum}))
        };
        let all: Map<String, Value> = self.0.histograms().into_iter().map(of).collect();
        json::to_python(py, &Value::Object(all))
    }

    fn health(&self, limit_seconds: f64) -> (&'static str, String) {
        match self.0.health(Duration::from_secs_f64(limit_seconds.clamp(0.0, MAX_WAIT))) {
            Health::Ready => ("ready", String::new()),
            Health::Stalled { seconds } => ("stalled", format!("a step has taken {seconds:.1} s so far")),
            Health::Dead(cause) => ("dead", cause.to_string()),
        }
    }

    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let info = json::to_python(py, self.0.info())?;
        let spec = serde_json::to_value(self.0.spec()).unwrap_or(Value::Null);
        let dict = info.cast::<PyDict>()?;
        dict.set_item("spec", json::to_python(py, &spec)?)?;
        Ok(info)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The engine thread may need the GIL for its last step.
        Python::try_attach(|py| py.detach(|| self.0.close()));
    }
}

/// The outputs of one request, in order.
#[pyclass(frozen, module = "octavo._core")]
pub struct Stream(RequestStream);

#[pymethods]
impl Stream {
    #[getter]
    fn request_id(&self) -> u64 {
        self.0.id()
    }

    #[getter]
    fn prompt_token_ids(&self) -> Vec<u32> {
        self.0.prompt().to_vec()
    }

    #[getter]
    fn num_prompt_tokens(&self) -> usize {
        self.0.prompt().len()
    }

    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Delta>> {
        let begin = Instant::now();
        let limit = timeout.map(|t| Duration::from_secs_f64(t.clamp(0.0, MAX_WAIT)));
        loop {
            let left = limit.map_or(SIGNAL_CHECK, |l| l.saturating_sub(begin.elapsed()).min(SIGNAL_CHECK));
            if let Some(delta) = py.detach(|| self.0.next(left)) {
                return Ok(Some(delta.into()));
            }
            py.check_signals()?;
            if self.0.is_done() || limit.is_some_and(|l| begin.elapsed() >= l) {
                return Ok(None);
            }
        }
    }

    fn poll(&self) -> Option<Delta> {
        self.0.poll().map(Delta::from)
    }

    #[pyo3(signature = (*, only_end=false))]
    fn subscribe(&self, only_end: bool) {
        self.0.subscribe(only_end);
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}
