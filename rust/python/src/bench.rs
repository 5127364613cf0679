//! `bench_kernels` and `bench_attention`: the readings of octavo-bench as dicts.

use std::ops::ControlFlow;
use std::time::Duration;

use octavo_bench::{AttentionBenchPlan, AttentionReading, KernelBenchPlan, KernelReading, PeakRate};
use octavo_kernels::{Isa, Kernels};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::errors::raise;
use crate::json::to_python;

/// Measures the kernels whose line contains each of `words` and calls `on_row` with each row. Returns the limits of the
/// machine, or None when no line matches.
#[pyfunction]
#[pyo3(signature = (on_row, *, words = Vec::new(), isa = None, threads = None, seconds = 0.3))]
pub fn bench_kernels<'py>(
    py: Python<'py>,
    on_row: &Bound<'py, PyAny>,
    words: Vec<String>,
    isa: Option<String>,
    threads: Option<usize>,
    seconds: f64,
) -> PyResult<Bound<'py, PyAny>> {
    let (kernels, time) = prepare(py, isa, threads, seconds)?;
    let mut outcome = Ok(());
    let each = on_row.clone().unbind();
    let limits = py.detach(|| {
        octavo_bench::bench_kernels(&kernels, &KernelBenchPlan { words, time }, &mut |reading| {
            hand_on(&each, &row(&reading), &mut outcome)
        })
    })?;
    outcome?;
    let Some(limits) = limits else { return Ok(py.None().into_bound(py)) };
    let peak =
        |peak: Option<PeakRate>| peak.map(|p| json!({"rate": p.rate.best, "instruction": p.instruction}));
    to_python(
        py,
        &json!({
            "isa": kernels.isa().name(),
            "threads": limits.threads,
            "read": limits.read.best,
            "int8": peak(limits.int8),
            "bf16": peak(limits.bf16),
            "f32": peak(limits.f32),
        }),
    )
}

/// Kernels and time of a measurement.
fn prepare(
    py: Python<'_>,
    isa: Option<String>,
    threads: Option<usize>,
    seconds: f64,
) -> PyResult<(Kernels, Duration)> {
    let refuse = |what: &dyn std::fmt::Display| raise(py, "InvalidRequestError", &what.to_string());
    let isa = isa.map(|name| name.parse::<Isa>()).transpose().map_err(|e| refuse(&e))?;
    if let Some(n) = threads.filter(|n| !(1..=1024).contains(n)) {
        return Err(refuse(&format!("threads is {n}: a number from 1 to 1024 is expected")));
    }
    let time = Duration::try_from_secs_f64(seconds).map_err(|e| refuse(&format!("seconds: {e}")))?;
    Ok((Kernels::new(threads.unwrap_or(0), isa).map_err(|e| refuse(&e))?, time))
}

/// Calls `each` with a row. An exception (also of a signal) goes to `outcome` and ends the measurement.
fn hand_on(each: &Py<PyAny>, row: &Value, outcome: &mut PyResult<()>) -> ControlFlow<()> {
    *outcome = Python::attach(|py| {
        py.check_signals()?;
        each.call1(py, (to_python(py, row)?,)).map(drop)
    });
    if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// Measures attention with and without selection of blocks over `contexts` tokens; calls `on_row` with each row.
#[pyfunction]
#[pyo3(signature = (on_row, contexts, *, isa = None, threads = None, seconds = 1.0))]
pub fn bench_attention(
    py: Python<'_>,
    on_row: &Bound<'_, PyAny>,
    contexts: Vec<usize>,
    isa: Option<String>,
    threads: Option<usize>,
    seconds: f64,
) -> PyResult<()> {
    let (kernels, time) = prepare(py, isa, threads, seconds)?;
    if let Some(bad) = contexts.iter().find(|tokens| !(64..=1 << 20).contains(*tokens)) {
        let what = format!("context is {bad}: a number of tokens from 64 to 1048576 is expected");
        return Err(raise(py, "InvalidRequestError", &what));
    }
    let mut outcome = Ok(());
    let each = on_row.clone().unbind();
    py.detach(|| {
        octavo_bench::bench_attention(&kernels, &AttentionBenchPlan { contexts, time }, &mut |reading| {
            hand_on(&each, &attention_row(&reading), &mut outcome)
        });
    });
    outcome
}

fn attention_row(r: &AttentionReading) -> Value {
    json!({
        "heads": r.shape[0],
        "kv_heads": r.shape[1],
        "head_dim": r.shape[2],
        "context": r.context,
        "looks": r.heads,
        "way": r.way,
        "seconds_p20": r.seconds[0],
        "seconds_p50": r.seconds[1],
        "seconds_p80": r.seconds[2],
        "bytes": r.bytes,
        "relative_error": r.error,
        "max_omitted_mass": r.report.map(|report| report.max_omitted_mass),
        "max_output_error": r.report.map(|report| report.max_output_error),
        "dense_head_fraction": r.report.map(|report| report.dense_calls as f64 / report.calls as f64),
    })
}

fn row(r: &KernelReading) -> Value {
    json!({
        "kernel": r.kernel,
        "dtype": r.dtype,
        "shape": r.shape,
        "sizes": r.sizes,
        "seconds_p20": r.seconds[0],
        "seconds_p50": r.seconds[1],
        "seconds_p80": r.seconds[2],
        "bytes_per_second": r.bytes_per_second,
        "operations_per_second": r.operations_per_second,
        "share": r.share,
        "bound": r.bound,
    })
}
