//! An executor that is a Python object.
//!
//! ```text
//! object.max_in_flight          1 or 2: steps that may be submitted before the oldest one is waited for
//! object.open_blocks            whether plans name open blocks: for an int8 cache
//! object.submit(plan)           starts a step
//! object.wait()                 waits for the oldest step -> (tokens, logprobs, report)
//!     tokens                    u32 [D], one for each of `plan.samples`; NOT_NUMBERS: the logits were not numbers
//!     logprobs                  None, or (ids u32, values f32, ranks u32), each [D, columns], the token's own entry first
//!     report                    None, or a dict of named numbers, f64 [S] each
//! object.read_rows(first, n)    logits f32 [n, vocab] of the step last waited for, in plan order, without the sampled rows
//! ```
//!
//! The methods of an executor that takes adapters: `adapter_backend.rs`.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use octavo_engine::{
    AdapterBackend, Executor, ExecutorInfo, Logprob, Report, SampleSpec, SampledToken, StepError, StepInput,
    StepOutput, Ticket,
};
use octavo_kernels::Kernels;
use octavo_model::families::Family;
use octavo_scheduler::AttentionPolicy;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::adapter_backend::PyAdapters;
use crate::plan::Plan;

/// Stands for a token where logits were not numbers.
const NOT_NUMBERS: u32 = u32::MAX;

/// Runs steps by calling a Python object.
pub struct PyExecutor {
    object: Option<Py<PyAny>>,
    vocab_size: usize,
    max_in_flight: usize,
    open_blocks: bool,
    /// None: it takes none.
    adapters: Option<Arc<PyAdapters>>,
    /// Submitted steps, oldest first.
    submitted: VecDeque<Arc<StepInput>>,
}

impl PyExecutor {
    /// # Errors
    /// What reading the object's attributes raises.
    pub fn new(object: Bound<'_, PyAny>, family: Family) -> PyResult<Self> {
        let vocab_size = family.spec.vocab;
        Ok(Self {
            max_in_flight: object.getattr("max_in_flight")?.extract()?,
            open_blocks: object.getattr("open_blocks")?.is_truthy()?,
            adapters: PyAdapters::of(&object, family)?,
            object: Some(object.unbind()),
            vocab_size,
            submitted: VecDeque::new(),
        })
    }

    /// Calls `f` with the GIL held.
    fn attached<T>(
        &self,
        f: impl FnOnce(Python<'_>, &Bound<'_, PyAny>) -> PyResult<T>,
    ) -> Result<T, StepError> {
        let gone = || StepError::Dead("the Python interpreter is shutting down".into());
        let object = self.object.as_ref().ok_or_else(gone)?;
        Python::try_attach(|py| f(py, object.bind(py)).map_err(|e| fault(py, &e))).ok_or_else(gone)?
    }
}

/// The sampled tokens of a step, from what `object.wait()` returned for `specs`.
fn sampled_tokens(
    py: Python<'_>,
    specs: &[SampleSpec],
    tokens: &Bound<'_, PyAny>,
    logprobs: Option<[Bound<'_, PyAny>; 3]>,
) -> PyResult<Vec<Option<SampledToken>>> {
    let count = specs.len();
    let tokens: Vec<u32> = read(py, tokens, count, "tokens")?;
    let (mut columns, mut ids, mut values, mut ranks) = (0, Vec::new(), Vec::new(), Vec::new());
    if let Some(table) = logprobs {
        columns = if count > 0 { table[0].get_item(0)?.len()? } else { 0 };
        ids = read::<u32>(py, &table[0], count * columns, "ids")?;
        values = read::<f32>(py, &table[1], count * columns, "logprobs")?;
        ranks = read::<u32>(py, &table[2], count * columns, "ranks")?;
    }
    let token = |(i, (spec, &token)): (usize, (&SampleSpec, &u32))| {
        let wanted = usize::try_from(spec.logprobs + 1).unwrap_or(0).min(columns);
        let entries = i * columns..i * columns + wanted;
        let entry = |at: usize| Logprob { token_id: ids[at], logprob: values[at], rank: ranks[at] };
        (token != NOT_NUMBERS).then(|| SampledToken { token, logprobs: entries.map(entry).collect() })
    };
    Ok(specs.iter().zip(&tokens).enumerate().map(token).collect())
}

/// One report for each of `seqs` sequences, from a dict of arrays.
fn reports(py: Python<'_>, report: Option<Bound<'_, PyDict>>, seqs: usize) -> PyResult<Vec<Report>> {
    let Some(report) = report else { return Ok(Vec::new()) };
    let mut columns = Vec::with_capacity(report.len());
    for (name, values) in report {
        let name: String = name.extract()?;
        let values: Vec<f64> = read(py, &values, seqs, &name)?;
        columns.push((name, values));
    }
    let row = |i: usize| columns.iter().map(|(name, values)| (name.clone(), values[i])).collect();
    Ok((0..seqs).map(row).collect())
}

/// A contiguous array of `len` elements.
fn read<T: Element + Copy + Default>(
    py: Python<'_>,
    array: &Bound<'_, PyAny>,
    len: usize,
    name: &str,
) -> PyResult<Vec<T>> {
    let mut out = vec![T::default(); len];
    read_into(py, array, &mut out, name)?;
    Ok(out)
}

fn read_into<T: Element + Copy>(
    py: Python<'_>,
    array: &Bound<'_, PyAny>,
    out: &mut [T],
    name: &str,
) -> PyResult<()> {
    let buffer = PyBuffer::<T>::get(array)?;
    if buffer.item_count() != out.len() {
        return Err(pyo3::exceptions::PyValueError::new_err(format!(
            "{name}: {} values, {} are expected",
            buffer.item_count(),
            out.len()
        )));
    }
    buffer.copy_to_slice(py, out)
}

/// The error of an exception: one with a true attribute `fatal` ends the engine, any other the step.
fn fault(py: Python<'_>, error: &PyErr) -> StepError {
    let value = error.value(py);
    let class = value.get_type().qualname().map_or_else(|_| "exception".into(), |n| n.to_string());
    let text = format!("{class}: {value}");
    let fatal = value.getattr("fatal").and_then(|f| f.is_truthy()).unwrap_or(false);
    if fatal { StepError::Dead(text) } else { StepError::Step(text) }
}

impl Executor for PyExecutor {
    fn info(&self) -> ExecutorInfo {
        ExecutorInfo {
            vocab_size: self.vocab_size,
            hidden_size: None,
            samples_on_device: true,
            max_in_flight: self.max_in_flight,
            open_blocks: self.open_blocks,
            attention: AttentionPolicy::DENSE,
            bounds_attention: true,
            kernels: Arc::new(Kernels::single()),
        }
    }

    fn adapters(&self) -> Option<Arc<dyn AdapterBackend>> {
        self.adapters.as_ref().map(|adapters| Arc::clone(adapters) as _)
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        let plan = Plan(Arc::clone(step));
        self.attached(|_, object| object.call_method1("submit", (plan,)).map(drop))?;
        self.submitted.push_back(Arc::clone(step));
        Ok(Ticket(step.plan.step))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, StepError> {
        let gone = || StepError::Dead("no step was submitted".into());
        let step = self.submitted.pop_front().ok_or_else(gone)?;
        self.attached(|py, object| {
            let (tokens, logprobs, report): (Bound<'_, PyAny>, _, _) =
                object.call_method0("wait")?.extract()?;
            Ok(StepOutput {
                sampled: sampled_tokens(py, &step.samples, &tokens, logprobs)?,
                reports: reports(py, report, step.plan.seqs.len())?,
            })
        })
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        out.resize(rows.len() * self.vocab_size, 0.0);
        self.attached(|py, object| {
            let logits = object.call_method1("read_rows", (rows.start, rows.len()))?;
            read_into(py, &logits, out, "read_rows")
        })
    }
}

impl Drop for PyExecutor {
    fn drop(&mut self) {
        // The object holds the device's memory: it goes now, not when some thread next takes the GIL.
        let object = self.object.take();
        Python::try_attach(|_| drop(object));
    }
}
