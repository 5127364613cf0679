//! Engine and Stream as Python classes. The GIL is released wherever the engine works or a caller waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use octavo_engine::{EngineConfig, EngineError, Health, OnFull, Prompt, RequestStream};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use serde_json::{Map, Value, json};

use crate::adapters;
use crate::errors::to_python;
use crate::executor::PyExecutor;
use crate::interrupt::{SIGNAL_CHECK, interruptible};
use crate::json;
use crate::output::Delta;
use crate::params::SamplingParams;
use crate::pooling;
use crate::prompt::{prompt_of, token_ids_of, utf8};
use crate::stats;

/// Texts of more bytes in all are tokenised where Ctrl-C can end it.
const LONG_TEXT: usize = 64 << 10;
/// Longest wait, in seconds, that a timeout may ask for.
const MAX_WAIT: f64 = 1e9;

/// The processor's name.
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    let name = line.and_then(|l| l.split_once(':')).map(|(_, name)| name.trim().to_string());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

fn read_config(config: &Bound<'_, PyAny>) -> PyResult<EngineConfig> {
    json::read_fields(config, octavo_engine::read_fields)
}

/// The configuration with which an engine on a GPU runs: data types, limits and, once `memory` is measured, its plan.
#[pyfunction]
#[pyo3(signature = (model, config, memory=None))]
pub fn resolve<'py>(
    py: Python<'py>,
    model: PathBuf,
    config: &Bound<'py, PyAny>,
    memory: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let config = read_config(config)?;
    let memory = memory.map(|facts| json::read_fields(facts, octavo_engine::read_fields)).transpose()?;
    let resolved = octavo_engine::resolve_for_gpu(&model, &config, memory.as_ref());
    let r = resolved.map_err(|e| to_python(py, &e))?;
    let value = json!({"dtype": r.dtype.name(), "quantization": config.quantization, "kv_cache_dtype": r.kv_format.name(),
                       "limits": r.limits, "max_open_blocks": r.limits.max_open_blocks(), "memory": r.memory});
    json::to_python(py, &value)
}

/// Runs `submit` without the GIL. While the queue is full, `on_full` gets the streams and waits; without it the wait is here.
fn submit_with(
    py: Python<'_>,
    on_full: Option<Py<PyAny>>,
    submit: impl FnOnce(&mut OnFull<'_>) -> Result<Vec<RequestStream>, EngineError> + Send,
) -> PyResult<Vec<Stream>> {
    let mut raised = None;
    let mut wait = |streams: &mut Vec<RequestStream>| {
        let waited = Python::attach(|py| match &on_full {
            Some(on_full) => {
                let streams: Vec<Stream> = streams.drain(..).map(Stream).collect();
                on_full.call1(py, (streams,)).map(drop)
            }
            None => {
                py.detach(|| std::thread::sleep(SIGNAL_CHECK));
                py.check_signals()
            }
        });
        waited.map_err(|error| {
            raised = Some(error);
            EngineError::closed()
        })
    };
    let streams = py.detach(|| submit(&mut wait));
    match raised {
        Some(error) => Err(error),
        None => Ok(streams.map_err(|e| to_python(py, &e))?.into_iter().map(Stream).collect()),
    }
}

/// One model, its KV cache and the thread that runs it.
#[pyclass(frozen, module = "octavo._core")]
pub struct Engine(octavo_engine::Engine);

impl Engine {
    /// The engine that `load` makes.
    fn started(
        py: Python<'_>,
        load: impl FnOnce() -> Result<octavo_engine::Engine, EngineError> + Send,
    ) -> PyResult<Self> {
        py.detach(load).map(Self).map_err(|e| to_python(py, &e))
    }

    /// The prompts, tokenised if they are long.
    fn tokenised(&self, py: Python<'_>, prompts: Vec<Prompt>) -> PyResult<Vec<Prompt>> {
        let bytes = prompts.iter().map(|prompt| match prompt {
            Prompt::Text(text, _) => text.len(),
            Prompt::Tokens(_) => 0,
        });
        if bytes.sum::<usize>() <= LONG_TEXT {
            return Ok(prompts);
        }
        let tokens = interruptible(py, |go_on| {
            let tokens = |prompt| self.0.prompt_tokens_while(prompt, go_on).map(Prompt::Tokens);
            prompts.into_iter().map(tokens).collect::<Result<Vec<_>, _>>()
        });
        tokens?.map_err(|e| to_python(py, &e))
    }

    /// `tokenised` for one.
    fn tokenised_one(&self, py: Python<'_>, prompt: Prompt) -> PyResult<Prompt> {
        let prompts = self.tokenised(py, vec![prompt])?;
        Ok(prompts.into_iter().next().unwrap_or_else(|| Prompt::Tokens(Vec::new())))
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, model: PathBuf, config: &Bound<'_, PyAny>) -> PyResult<Self> {
        let config = read_config(config)?;
        Self::started(py, || octavo_engine::Engine::load(&model, &config))
    }

    #[staticmethod]
    fn over(
        py: Python<'_>,
        model: PathBuf,
        config: &Bound<'_, PyAny>,
        executor: Bound<'_, PyAny>,
        facts: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let config = read_config(config)?;
        let facts = json::read_fields(facts, octavo_engine::read_fields)?;
        let family = octavo_model::open(&model).and_then(|folder| octavo_model::read_family(&*folder));
        let family = family.map_err(|e| to_python(py, &e.into()))?;
        let executor = Box::new(PyExecutor::new(executor, family)?);
        Self::started(py, || octavo_engine::Engine::load_over(&model, &config, executor, facts))
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true))]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        params: &SamplingParams,
        add_special_tokens: bool,
    ) -> PyResult<Stream> {
        let prompt = self.tokenised_one(py, prompt_of(prompt, add_special_tokens)?)?;
        py.detach(|| self.0.submit(prompt, &params.0)).map(Stream).map_err(|e| to_python(py, &e))
    }

    #[pyo3(signature = (prompts, params, *, add_special_tokens=true, on_full=None))]
    fn submit_many(
        &self,
        py: Python<'_>,
        prompts: Vec<Bound<'_, PyAny>>,
        params: Vec<PyRef<'_, SamplingParams>>,
        add_special_tokens: bool,
        on_full: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Stream>> {
        let params: Vec<_> = params.iter().map(|p| Arc::clone(&p.0)).collect();
        let prompts =
            prompts.iter().map(|p| prompt_of(p, add_special_tokens)).collect::<PyResult<Vec<_>>>()?;
        let prompts = self.tokenised(py, prompts)?;
        submit_with(py, on_full, |wait| self.0.submit_many(prompts, &params, wait))
    }

    #[pyo3(signature = (prompts, params, *, on_full=None))]
    fn embed_many(
        &self,
        py: Python<'_>,
        prompts: Vec<Bound<'_, PyAny>>,
        params: &Bound<'_, PyAny>,
        on_full: Option<Py<PyAny>>,
    ) -> PyResult<Vec<Stream>> {
        let params = pooling::read(params)?;
        let prompts = prompts.iter().map(|p| prompt_of(p, true)).collect::<PyResult<Vec<_>>>()?;
        let prompts = self.tokenised(py, prompts)?;
        submit_with(py, on_full, |wait| self.0.embed_many(prompts, &params, wait))
    }

    #[pyo3(signature = (prompt, params, *, add_special_tokens=true))]
    fn embed(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        params: &Bound<'_, PyAny>,
        add_special_tokens: bool,
    ) -> PyResult<Stream> {
        let params = pooling::read(params)?;
        let prompt = self.tokenised_one(py, prompt_of(prompt, add_special_tokens)?)?;
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

    #[pyo3(signature = (name, path, expected_generation=None))]
    fn load_adapter<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        path: PathBuf,
        expected_generation: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let loaded = py.detach(|| self.0.load_adapter(name, &path, expected_generation));
        adapters::described(py, &loaded.map_err(|e| to_python(py, &e))?)
    }

    fn unload_adapter(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.0.unload_adapter(name)).map_err(|e| to_python(py, &e))
    }

    fn adapters<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let all = py.detach(|| self.0.adapters()).map_err(|e| to_python(py, &e))?;
        all.iter().map(|adapter| adapters::described(py, adapter)).collect()
    }

    fn pack<'py>(&self, py: Python<'py>, fields: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let call = json::read_fields(fields, octavo_engine::read_fields)?;
        let done = interruptible(py, |go_on| self.0.pack_call(call, go_on))?;
        json::to_python(py, &done.map_err(|e| to_python(py, &e))?)
    }

    fn wait_ready(&self, py: Python<'_>, timeout: f64) -> Vec<u64> {
        let timeout = Duration::from_secs_f64(timeout.clamp(0.0, MAX_WAIT));
        py.detach(|| self.0.wait_ready(timeout))
    }

    fn render_chat(&self, py: Python<'_>, request: &str) -> PyResult<String> {
        py.detach(|| self.0.render_chat(request)).map_err(|e| to_python(py, &e))
    }

    #[pyo3(signature = (text, *, add_special_tokens=true))]
    fn tokenize(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyString>,
        add_special_tokens: bool,
    ) -> PyResult<Vec<u32>> {
        let text = utf8(text)?;
        let ids = match text.len() {
            0..=LONG_TEXT => py.detach(|| self.0.tokenize(text, add_special_tokens)),
            _ => interruptible(py, |go_on| self.0.tokenize_while(text, add_special_tokens, go_on))?,
        };
        ids.map_err(|e| to_python(py, &e))
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

    fn token_bytes<'py>(&self, py: Python<'py>, token_id: u32) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.token_text(token_id).bytes())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, &stats::document(&self.0))
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
