//! Kernel benchmark: runs the wanted cases and returns their readings.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use octavo_kernels::Kernels;

use super::cases::{self, ComputeLimit};
use super::limits::MachineLimits;

/// Minimum number of runs of a case. The first run only warms up.
const MIN_RUNS: usize = 4;
/// Readings of each limit.
const LIMIT_READINGS: usize = 3;
const MAX_RUNS: usize = 200;

/// Cases to measure.
#[derive(Debug, Clone)]
pub struct KernelBenchPlan {
    /// Cases whose line "kernel dtype shape sizes" holds each of these words; none: all.
    pub words: Vec<String>,
    /// Time for each case. Each case has at least `MIN_RUNS` runs.
    pub time: Duration,
}

/// Speed of one case.
#[derive(Debug, Clone)]
pub struct KernelReading {
    /// The kernel, such as "matmul".
    pub kernel: &'static str,
    /// Element type of its data.
    pub dtype: &'static str,
    /// The model whose shape it is.
    pub shape: &'static str,
    /// The sizes, such as "qkv m=8 k=2048 n=3072".
    pub sizes: String,
    /// Time of one run in seconds: p20, p50, p80.
    pub seconds: [f64; 3],
    /// Bytes per second that are read from memory or written to it.
    pub bytes_per_second: f64,
    /// Operations per second; 0 where they are not counted.
    pub operations_per_second: f64,
    /// Minimum time by the limits (their best readings), divided by the measured time. None without a known limit.
    pub share: Option<f64>,
    /// "reading" or "computing": the tighter limit.
    pub bound: &'static str,
}

/// Measures the limits of the machine and the cases of `plan`. Calls `each` with each reading; it may stop the run.
/// Returns the limits, or None when no case matches.
///
/// All data comes from memory: each run reads more than caches hold.
///
/// # Errors
/// When there is no memory to measure the limits.
pub fn bench_kernels(
    kernels: &Kernels,
    plan: &KernelBenchPlan,
    each: &mut dyn FnMut(KernelReading) -> ControlFlow<()>,
) -> std::io::Result<Option<MachineLimits>> {
    let wanted = |case: &cases::KernelCase| {
        let line = format!("{} {} {} {}", case.kernel, case.dtype, case.shape, case.sizes);
        plan.words.iter().all(|word| line.contains(word.as_str()))
    };
    let mut cases = cases::all().filter(wanted).peekable();
    if cases.peek().is_none() {
        return Ok(None);
    }
    let limits = MachineLimits::measure(kernels.threads(), LIMIT_READINGS)?;
    for case in cases {
        let mut work = (case.prepare)(kernels);
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < MIN_RUNS || (start.elapsed() < plan.time && times.len() < MAX_RUNS) {
            let begin = Instant::now();
            (work.run)(kernels);
            times.push(begin.elapsed().as_secs_f64());
        }
        times.remove(0);
        times.sort_by(f64::total_cmp);
        let at = |tenths: usize| times[(times.len() - 1) * tenths / 10];
        let peak = match case.limit {
            ComputeLimit::Int8 => limits.int8,
            ComputeLimit::F32 => limits.f32,
            ComputeLimit::Memory => None,
        };
        let reading = work.bytes / limits.read.best;
        let computing = peak.map(|p| work.operations / p.rate.best);
        let known = case.limit == ComputeLimit::Memory || computing.is_some();
        let min_seconds = computing.unwrap_or(0.0).max(reading);
        let stop = each(KernelReading {
            kernel: case.kernel,
            dtype: case.dtype,
            shape: case.shape,
            sizes: case.sizes,
            seconds: [at(2), at(5), at(8)],
            bytes_per_second: work.bytes / at(5),
            operations_per_second: work.operations / at(5),
            share: known.then_some(min_seconds / at(5)),
            bound: if computing.is_some_and(|c| c > reading) { "computing" } else { "reading" },
        });
        if stop.is_break() {
            break;
        }
    }
    Ok(Some(limits))
}
