//! An executor that is a Python object, called twice a step.
//!
//! `object.begin(plan)` begins a step. `object.finish()` waits for the oldest one that has begun and returns, for its
//! plan's draws in order, `(tokens, logprobs)`: tokens u32 (`NOT_NUMBERS` where the logits were none), logprobs None or
//! `(ids u32, values f32, ranks u32)`, each `[draws, columns]`, the token's own entry first. `object.logits(first, count)`
//! then gives rows of logits, f32 `[count, vocab]`, of the other rows that the plan asks for, in the plan's order.
//!
//! If the object has a true attribute `overlaps`, a second step may begin before the first is finished; the tokens in
//! its rows `placeholders` are those that the first draws.
//!
//! An object that keeps something beside its KV blocks says so by a true attribute `keeps_blocks`. It has `kept_blocks()`,
//! the blocks for which it does (u32 `[n]`), and `release_blocks(blocks)`, which takes those of them (a list) that nobody
//! holds any more. One whose attention leaves something out has a true `reports_attention` and `attention_reports()`: for
//! each sequence of the last step, in order, the fields of `AttentionReport` as f64 `[seqs, 9]`.

use std::sync::Arc;

use octavo_engine::{AttentionReport, Draw, Executor, Logprob, OutcomeSink, RowOutcome, RowSink, StepError};
use octavo_scheduler::StepPlan;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

use crate::plan::Plan;

/// Rows of logits that are fetched at once.
const LOGIT_ROWS: usize = 32;
/// Stands for a token where logits were not numbers.
const NOT_NUMBERS: u32 = u32::MAX;
/// Numbers of a report.
const REPORT_FIELDS: usize = 9;

/// Runs steps by calling a Python object.
pub struct PyExecutor {
    object: Option<Py<PyAny>>,
    vocab: usize,
    logits: Vec<f32>,
    /// The object's attributes of these names.
    keeps_blocks: bool,
    overlaps: bool,
    reports_attention: bool,
    reports: Vec<AttentionReport>,
    /// Of releasing blocks; the next step fails with it.
    fault: Option<StepError>,
}

/// What `object.step` gave for the draws.
struct Drawn {
    tokens: Vec<u32>,
    /// Ids, values and ranks, in rows of `columns`.
    logprobs: Option<(Vec<u32>, Vec<f32>, Vec<u32>)>,
    columns: usize,
    /// Reports of attention, in rows of `REPORT_FIELDS`.
    reports: Vec<f64>,
}

impl PyExecutor {
    /// # Errors
    /// What looking at the object raises.
    pub fn new(object: Bound<'_, PyAny>, vocab: usize) -> PyResult<Self> {
        let flag = |name| object.getattr_opt(name)?.map_or(Ok(false), |value| value.is_truthy());
        Ok(Self {
            keeps_blocks: flag("keeps_blocks")?,
            overlaps: flag("overlaps")?,
            reports_attention: flag("reports_attention")?,
            object: Some(object.unbind()),
            vocab,
            logits: Vec::new(),
            reports: Vec::new(),
            fault: None,
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

    /// What the oldest step draws, when it is done: `count` tokens, and reports of `seqs` sequences.
    fn drawn(&self, count: usize, seqs: usize) -> Result<Drawn, StepError> {
        self.attached(|py, object| {
            let (tokens, logprobs): (Bound<'_, PyAny>, Option<[Bound<'_, PyAny>; 3]>) =
                object.call_method0("finish")?.extract()?;
            let tokens = read(py, &tokens, count, "tokens")?;
            let mut reports = Vec::new();
            if self.reports_attention {
                let rows = object.call_method0("attention_reports")?;
                reports = read(py, &rows, seqs * REPORT_FIELDS, "attention_reports")?;
            }
            let Some([ids, values, ranks]) = logprobs else {
                return Ok(Drawn { tokens, logprobs: None, columns: 0, reports });
            };
            let columns = if count > 0 { ids.get_item(0)?.len()? } else { 0 };
            let len = count * columns;
            let logprobs = (
                read(py, &ids, len, "ids")?,
                read(py, &values, len, "logprobs")?,
                read(py, &ranks, len, "ranks")?,
            );
            Ok(Drawn { tokens, logprobs: Some(logprobs), columns, reports })
        })
    }

    /// Tells the object which of the blocks that it keeps nobody holds.
    fn release(&self, held: &dyn Fn(u32) -> bool) -> Result<(), StepError> {
        self.attached(|py, object| {
            let kept = object.call_method0("kept_blocks")?;
            let mut blocks: Vec<u32> = read(py, &kept, kept.len()?, "kept_blocks")?;
            blocks.retain(|&block| !held(block));
            if !blocks.is_empty() {
                object.call_method1("release_blocks", (blocks,))?;
            }
            Ok(())
        })
    }
}

/// A report from its numbers, in the order of its fields.
fn report(row: &[f64; REPORT_FIELDS]) -> AttentionReport {
    let &[
        calls,
        dense_calls,
        blocks,
        value_blocks,
        bytes_read,
        bytes_dense,
        max_omitted_mass,
        sum_omitted_mass,
        max_output_error,
    ] = row;
    AttentionReport {
        calls: calls as u64,
        dense_calls: dense_calls as u64,
        blocks: blocks as u64,
        value_blocks: value_blocks as u64,
        bytes_read: bytes_read as u64,
        bytes_dense: bytes_dense as u64,
        max_omitted_mass: max_omitted_mass as f32,
        sum_omitted_mass,
        max_output_error: max_output_error as f32,
        // The object knows all scores: what it says it left out is no more than it did, rounding aside.
        max_estimated_mass: max_omitted_mass as f32,
        sum_estimated_mass: sum_omitted_mass,
        // It limits no blocks and audits nothing.
        ..AttentionReport::default()
    }
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

/// What an exception of the object means: one with a true attribute `fatal` ends the engine, any other the step.
fn fault(py: Python<'_>, error: &PyErr) -> StepError {
    let value = error.value(py);
    let class = value.get_type().qualname().map_or_else(|_| "exception".into(), |n| n.to_string());
    let text = format!("{class}: {value}");
    let fatal = value.getattr("fatal").and_then(|f| f.is_truthy()).unwrap_or(false);
    if fatal { StepError::Dead(text) } else { StepError::Step(text) }
}

impl Executor for PyExecutor {
    fn execute(&mut self, plan: &StepPlan, sink: &mut RowSink<'_>) -> Result<(), StepError> {
        let (plan, draws) = (Arc::new(plan.clone()), Arc::default());
        self.begin(&plan, &draws)?;
        self.finish(&plan, &draws, &mut |outcome| {
            if let RowOutcome::Rows(rows, logits) = outcome {
                sink(rows, logits);
            }
        })
    }

    fn attention_reports(&self) -> &[AttentionReport] {
        &self.reports
    }

    fn release_blocks(&mut self, held: &dyn Fn(u32) -> bool) {
        if !self.keeps_blocks {
            return;
        }
        self.fault = self.release(held).err();
    }

    fn draws(&self) -> bool {
        true
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn begin(&mut self, plan: &Arc<StepPlan>, draws: &Arc<Vec<Draw>>) -> Result<(), StepError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let plan = Plan { plan: Arc::clone(plan), draws: Arc::clone(draws) };
        self.attached(|_, object| object.call_method1("begin", (plan,)).map(drop))
    }

    fn finish(
        &mut self,
        plan: &Arc<StepPlan>,
        draws: &Arc<Vec<Draw>>,
        sink: &mut OutcomeSink<'_>,
    ) -> Result<(), StepError> {
        let drawn = self.drawn(draws.len(), plan.seqs.len())?;
        self.reports.clear();
        self.reports.extend(drawn.reports.as_chunks().0.iter().map(report));
        for (i, (draw, &token)) in draws.iter().zip(&drawn.tokens).enumerate() {
            let token = (token != NOT_NUMBERS).then_some(token);
            let (seq, logprobs) = (draw.seq as usize, logprobs_of(&drawn, i, draw));
            sink(RowOutcome::Drawn { seq, token, logprobs });
        }
        let mut rest = Vec::new();
        for (i, seq) in plan.seqs.iter().enumerate() {
            if draws.binary_search_by_key(&(i as u32), |d| d.seq).is_err() {
                rest.extend(seq.sample_rows().map(|row| (i, row)));
            }
        }
        let mut logits = std::mem::take(&mut self.logits);
        for (n, part) in rest.chunks(LOGIT_ROWS).enumerate() {
            logits.resize(part.len() * self.vocab, 0.0);
            self.attached(|py, object| {
                let rows = object.call_method1("logits", (n * LOGIT_ROWS, part.len()))?;
                read_into(py, &rows, &mut logits, "logits")
            })?;
            sink(RowOutcome::Rows(part, &logits));
        }
        self.logits = logits;
        Ok(())
    }
}

/// The log-probabilities that draw `i` asked for.
fn logprobs_of(drawn: &Drawn, i: usize, draw: &Draw) -> Vec<Logprob> {
    let Some((ids, values, ranks)) = &drawn.logprobs else { return Vec::new() };
    let wanted = usize::try_from(draw.logprobs + 1).unwrap_or(0).min(drawn.columns);
    let at = |column: usize| i * drawn.columns + column;
    let entry = |c: usize| Logprob { token_id: ids[at(c)], logprob: values[at(c)], rank: ranks[at(c)] };
    (0..wanted).map(entry).collect()
}

impl Drop for PyExecutor {
    fn drop(&mut self) {
        // The object holds the device's memory: it goes now, not when some thread next takes the GIL.
        let object = self.object.take();
        Python::try_attach(|_| drop(object));
    }
}
