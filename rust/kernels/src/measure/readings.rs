//! Measuring: which cases, how long, and what came of them.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::cases::{self, Against};
use super::limits::Limits;
use crate::context::Kernels;

/// Runs of a case at least, the first of which only warms up.
const LEAST_RUNS: usize = 4;
/// Readings of each limit.
const LIMIT_READINGS: usize = 3;
const MOST_RUNS: usize = 200;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Cases whose line "kernel dtype shape sizes" holds each of these words; none: all.
    pub words: Vec<String>,
    /// How long each case is measured, apart from the runs that each has at least.
    pub time: Duration,
}

/// How fast a case ran.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The kernel, such as "matmul".
    pub kernel: &'static str,
    /// How its data is stored.
    pub dtype: &'static str,
    /// The model whose shape it is.
    pub shape: &'static str,
    /// The sizes, in words.
    pub sizes: String,
    /// A run's time: the fifth, the half and the four fifths of all runs are below.
    pub seconds: [f64; 3],
    /// Bytes a second that must come from memory or go there.
    pub bytes_per_second: f64,
    /// Operations a second; 0 where they are not counted.
    pub operations_per_second: f64,
    /// The time that the limits (their best readings) allow at least, relative to the time that it took. None where no limit
    /// is known.
    pub share: Option<f64>,
    /// Whether reading or computing limits it.
    pub bound: &'static str,
}

/// Measures the machine's limits and the cases of `plan`, and hands each reading to `each`, which may end it. Gives the limits;
/// None where the plan holds no case.
///
/// All data comes from memory: each run goes over more of it than caches hold.
///
/// # Errors
/// When there is no memory to measure the limits.
pub fn read(
    kernels: &Kernels,
    plan: &Plan,
    each: &mut dyn FnMut(Reading) -> ControlFlow<()>,
) -> std::io::Result<Option<Limits>> {
    let wanted = |case: &cases::Case| {
        let line = format!("{} {} {} {}", case.kernel, case.dtype, case.shape, case.sizes);
        plan.words.iter().all(|word| line.contains(word.as_str()))
    };
    let mut cases = cases::all().filter(wanted).peekable();
    if cases.peek().is_none() {
        return Ok(None);
    }
    let limits = Limits::measure(kernels.threads(), LIMIT_READINGS)?;
    for case in cases {
        let mut work = (case.prepare)(kernels);
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < LEAST_RUNS || (start.elapsed() < plan.time && times.len() < MOST_RUNS) {
            let begin = Instant::now();
            (work.run)(kernels);
            times.push(begin.elapsed().as_secs_f64());
        }
        times.remove(0);
        times.sort_by(f64::total_cmp);
        let at = |tenths: usize| times[(times.len() - 1) * tenths / 10];
        let peak = match case.against {
            Against::Int8 => limits.int8,
            Against::F32 => limits.f32,
            Against::Memory => None,
        };
        let reading = work.bytes / limits.read.best;
        let computing = peak.map(|p| work.operations / p.rate.best);
        let known = case.against == Against::Memory || computing.is_some();
        let least = computing.unwrap_or(0.0).max(reading);
        let stop = each(Reading {
            kernel: case.kernel,
            dtype: case.dtype,
            shape: case.shape,
            sizes: case.sizes,
            seconds: [at(2), at(5), at(8)],
            bytes_per_second: work.bytes / at(5),
            operations_per_second: work.operations / at(5),
            share: known.then_some(least / at(5)),
            bound: if computing.is_some_and(|c| c > reading) { "computing" } else { "reading" },
        });
        if stop.is_break() {
            break;
        }
    }
    Ok(Some(limits))
}
