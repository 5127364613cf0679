//! Deltas as Python objects.

use std::sync::Arc;

use octavo_engine::{StopReason, TokenLogprob};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyBytes, PyDict};

/// A candidate token of a position.
#[pyclass(frozen, module = "octavo._core")]
#[derive(Clone)]
pub struct Logprob(TokenLogprob);

#[pymethods]
impl Logprob {
    #[getter]
    fn token_id(&self) -> u32 {
        self.0.token_id
    }
    #[getter]
    fn logprob(&self) -> f32 {
        self.0.logprob
    }
    #[getter]
    fn rank(&self) -> u32 {
        self.0.rank
    }
    #[getter]
    fn token(&self) -> &str {
        self.0.token.text()
    }
    #[getter]
    fn bytes(&self) -> &[u8] {
        self.0.token.bytes()
    }
}

fn wrap(row: &[TokenLogprob]) -> Vec<Logprob> {
    row.iter().cloned().map(Logprob).collect()
}

/// New output of one sample: a delta and the sample's index in it.
#[pyclass(frozen, module = "octavo._core")]
pub struct SampleDelta(Arc<octavo_engine::Delta>, usize);

impl SampleDelta {
    fn get(&self) -> &octavo_engine::SampleDelta {
        &self.0.outputs[self.1]
    }
}

#[pymethods]
impl SampleDelta {
    #[getter]
    fn index(&self) -> u32 {
        self.get().index
    }
    #[getter]
    fn text(&self) -> &str {
        &self.get().text
    }
    #[getter]
    fn num_tokens(&self) -> usize {
        self.get().token_ids.len()
    }
    #[getter]
    fn token_ids(&self) -> Vec<u32> {
        self.get().token_ids.clone()
    }
    #[getter]
    fn logprobs(&self) -> Option<Vec<Vec<Logprob>>> {
        self.get().logprobs.as_ref().map(|rows| rows.iter().map(|r| wrap(r)).collect())
    }
    #[getter]
    fn cumulative_logprob(&self) -> Option<f64> {
        self.get().cumulative_logprob
    }
    #[getter]
    fn finish_reason(&self) -> Option<&'static str> {
        self.get().finish_reason.map(|r| r.name())
    }
    #[getter]
    fn stop_reason<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(match &self.get().stop_reason {
            None => None,
            Some(StopReason::Token(id)) => Some(id.into_pyobject(py)?.into_any()),
            Some(StopReason::Text(text)) => Some(text.into_pyobject(py)?.into_any()),
        })
    }
}

/// Output since the last delta.
#[pyclass(frozen, module = "octavo._core")]
pub struct Delta(Arc<octavo_engine::Delta>);

impl From<octavo_engine::Delta> for Delta {
    fn from(delta: octavo_engine::Delta) -> Self {
        Self(Arc::new(delta))
    }
}

#[pymethods]
impl Delta {
    #[getter]
    fn outputs(&self) -> Vec<SampleDelta> {
        (0..self.0.outputs.len()).map(|i| SampleDelta(Arc::clone(&self.0), i)).collect()
    }
    #[getter]
    fn num_tokens(&self) -> usize {
        self.0.outputs.iter().map(|o| o.token_ids.len()).sum()
    }
    #[getter]
    fn finished(&self) -> bool {
        self.0.finished
    }
    #[getter]
    fn prompt_logprobs(&self) -> Option<Vec<Option<Vec<Logprob>>>> {
        let rows = self.0.prompt_logprobs.as_ref()?;
        Some(rows.iter().map(|row| row.as_ref().map(|r| wrap(r))).collect())
    }
    #[getter]
    fn embedding<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let values = self.0.embedding.as_ref()?;
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Some(PyBytes::new(py, &bytes))
    }
    #[getter]
    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(m) = &self.0.metrics else { return Ok(None) };
        let dict = PyDict::new(py);
        dict.set_item("queue_seconds", m.queue_seconds)?;
        dict.set_item("ttft_seconds", m.ttft_seconds)?;
        dict.set_item("tpot_seconds", m.tpot_seconds)?;
        dict.set_item("total_seconds", m.total_seconds)?;
        dict.set_item("prompt_tokens", m.prompt_tokens)?;
        dict.set_item("cached_prompt_tokens", m.cached_prompt_tokens)?;
        dict.set_item("generated_tokens", m.generated_tokens)?;
        let report = m.report.as_ref().map(|report| report.iter().into_py_dict(py));
        dict.set_item("attention", report.transpose()?)?;
        Ok(Some(dict))
    }
    #[getter]
    fn error(&self) -> Option<(&'static str, String)> {
        self.0.error.as_ref().map(|e| (e.class_name(), e.to_string()))
    }
}
