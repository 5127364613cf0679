//! Distributions of times and sizes for monitoring: cumulative buckets that any thread may read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::output::RequestMetrics;
use crate::stats::add;

/// Upper bounds of times, in seconds: from a small model's step to a long answer.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0,
    200.0, 500.0, 1000.0,
];
/// Upper bounds of numbers of tokens.
const TOKENS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
    32768.0, 65536.0, 131_072.0,
];

/// A distribution that one thread writes and any thread reads.
struct Histogram {
    bounds: &'static [f64],
    /// Per bound, and one for what is above the last.
    counts: Vec<AtomicU64>,
    /// Bits of an f64.
    sum: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Name, with the unit at its end.
    pub name: &'static str,
    /// Upper bounds of the buckets; a last one without bound follows.
    pub bounds: &'static [f64],
    /// Observations up to each bound (cumulative); one entry more than `bounds`, the number of all.
    pub counts: Vec<u64>,
    /// Sum of all observations.
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        add(&self.counts[bucket], 1);
        // There is one writer: the sum does not change between the load and the store.
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed)) + value;
        self.sum.store(sum.to_bits(), Ordering::Relaxed);
    }

    fn snapshot(&self, name: &'static str) -> HistogramSnapshot {
        let mut total = 0;
        let cumulative = self.counts.iter().map(|c| {
            total += c.load(Ordering::Relaxed);
            total
        });
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        HistogramSnapshot { name, bounds: self.bounds, counts: cumulative.collect(), sum }
    }
}

macro_rules! histograms {
    ($($name:ident: $bounds:ident),* $(,)?) => {
        /// All distributions of an engine. The engine thread writes.
        pub(crate) struct Histograms { $($name: Histogram),* }

        impl Default for Histograms {
            fn default() -> Self {
                Self { $($name: Histogram::new($bounds)),* }
            }
        }

        impl Histograms {
            /// Reads all of them.
            pub fn snapshot(&self) -> Vec<HistogramSnapshot> {
                vec![$(self.$name.snapshot(stringify!($name))),*]
            }
        }
    };
}

histograms! {
    time_to_first_token_seconds: SECONDS,
    inter_token_latency_seconds: SECONDS,
    request_time_per_output_token_seconds: SECONDS,
    e2e_request_latency_seconds: SECONDS,
    request_queue_time_seconds: SECONDS,
    request_prefill_time_seconds: SECONDS,
    request_decode_time_seconds: SECONDS,
    request_prompt_tokens: TOKENS,
    request_generation_tokens: TOKENS,
    iteration_tokens_total: TOKENS,
}

impl Histograms {
    /// A request has ended.
    pub fn request(&self, m: &RequestMetrics) {
        self.request_queue_time_seconds.observe(m.queue_seconds);
        self.e2e_request_latency_seconds.observe(m.total_seconds);
        self.request_prompt_tokens.observe(m.prompt_tokens as f64);
        self.request_generation_tokens.observe(m.generated_tokens as f64);
        if m.generated_tokens > 0 {
            self.time_to_first_token_seconds.observe(m.ttft_seconds);
            self.request_prefill_time_seconds.observe(m.ttft_seconds - m.queue_seconds);
            self.request_decode_time_seconds.observe(m.total_seconds - m.ttft_seconds);
        }
        if m.tpot_seconds > 0.0 {
            self.request_time_per_output_token_seconds.observe(m.tpot_seconds);
        }
    }

    /// A step over `tokens` tokens begins.
    pub fn step(&self, tokens: usize) {
        self.iteration_tokens_total.observe(tokens as f64);
    }

    /// Time from a token of a sample to its next one.
    pub fn gap(&self, gap: Duration) {
        self.inter_token_latency_seconds.observe(gap.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_closed_above() {
        let h = Histogram::new(&[1.0, 2.0]);
        for x in [0.5, 1.0, 1.5, 2.0, 7.0] {
            h.observe(x);
        }
        let s = h.snapshot("x");
        assert_eq!(s.counts, [2, 4, 5]);
        assert_eq!(s.sum, 12.0);
    }
}
