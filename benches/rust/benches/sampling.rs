//! Time to sample one row of logits on one thread: the sampler and a plain implementation, in turn.
//!
//! `cargo bench -p octavo-bench --bench sampling` prints, for each sampling method, the microseconds of the fastest rounds of
//! both, and their ratio. Rounds are short and alternate: other load disturbs both alike. The plain implementation reads the
//! row once per value. Its draw is the definition that the sampler falls back to.

use std::hint::black_box;
use std::time::Instant;

use octavo_engine::SamplingParams;
use octavo_engine::internals::{Cuts, Exact, History, Sampler, SamplingRules, rules};
use octavo_kernels::{Kernels, peak};

const ROUNDS: u32 = 40;
/// Calls that are timed together.
const CALLS: u32 = 5;

/// Logits with a few likely tokens (`peaked`), or without.
fn row(vocab: usize, peaked: bool) -> Vec<f32> {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut row: Vec<f32> = (0..vocab).map(|_| 3.0 * (0..6).map(|_| uniform() - 0.5).sum::<f32>()).collect();
    if peaked {
        for i in 0..40 {
            row[(i * 7919) % vocab] += 14.0 - 0.25 * i as f32;
        }
    }
    row
}

/// The plain way: (token, log-probabilities asked for).
struct Plain {
    exact: Exact,
    logits: Vec<f32>,
}

impl Plain {
    fn sample(&mut self, logits: &[f32], cuts: Cuts, history: Option<&History>, draw: f64) -> u32 {
        assert!(logits.iter().all(|x| *x < f32::INFINITY), "logits that are not numbers");
        let row = match history {
            None => logits,
            Some(history) => {
                self.logits.clear();
                self.logits.extend_from_slice(logits);
                history.apply(&mut self.logits, 1.1, 0.5, 0.1);
                &self.logits
            }
        };
        if cuts.temperature == 0.0 {
            let mut best = 0;
            for (i, &x) in row.iter().enumerate() {
                if x > row[best] {
                    best = i;
                }
            }
            return best as u32;
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.exact.draw(row, max, cuts, draw)
    }
}

/// The rank of `chosen` and the best `top`, by a partial sort of all ids.
fn plain_logprobs(logits: &[f32], chosen: u32, top: usize) -> (f64, usize, Vec<u32>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    let mine = logits[chosen as usize];
    let better = logits
        .iter()
        .enumerate()
        .filter(|(i, x)| **x > mine || (**x == mine && (*i as u32) < chosen))
        .count();
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    ids.select_nth_unstable_by(top, order);
    ids.truncate(top);
    ids.sort_unstable_by(order);
    (sum, better, ids)
}

/// Prints the best times of both ways and their ratio.
fn compare(name: &str, mut plain: impl FnMut(u32), mut fast: impl FnMut(u32)) {
    let time = |round: u32, f: &mut dyn FnMut(u32)| {
        let start = Instant::now();
        (round * CALLS..(round + 1) * CALLS).for_each(f);
        start.elapsed().as_secs_f64() / f64::from(CALLS) * 1e6
    };
    let (mut best_plain, mut best_fast) = (f64::INFINITY, f64::INFINITY);
    for round in 0..ROUNDS {
        best_plain = best_plain.min(time(round, &mut plain));
        best_fast = best_fast.min(time(round, &mut fast));
    }
    println!("{name:<44} {best_plain:10.1} {best_fast:10.1} {:8.2}", best_plain / best_fast);
}

fn main() {
    // `cargo test --benches` and friends pass flags; only a real bench run measures.
    if !std::env::args().any(|flag| flag == "--bench") {
        return;
    }
    let kernels = &Kernels::single();
    println!(
        "{:<44} {:>10} {:>10} {:>8}",
        format!("microseconds a row, {}", kernels.isa()),
        "plain",
        "octavo",
        "ratio"
    );
    for (vocab, peaked) in [(32_000, true), (32_000, false), (151_936, true), (151_936, false)] {
        let logits = &row(vocab, peaked);
        let shape = format!("vocab={vocab} {}", if peaked { "peaked" } else { "flat" });
        let ways: [(&str, f32, u32, f32, bool); 6] = [
            ("greedy", 0.0, 0, 1.0, false),
            ("temperature", 1.0, 0, 1.0, false),
            ("top_k=50", 0.8, 50, 1.0, false),
            ("top_p=0.9", 0.8, 0, 0.9, false),
            ("top_k=50 top_p=0.9", 0.8, 50, 0.9, false),
            ("greedy, penalties", 0.0, 0, 1.0, true),
        ];
        for (name, temperature, top_k, top_p, penalties) in ways {
            let cuts = Cuts { temperature, top_k: top_k as usize, top_p, min_p: 0.0 };
            let history = History::new(&(0..500).map(|i| i * 61 % vocab as u32).collect::<Vec<_>>());
            let mut params = SamplingParams {
                temperature: Some(temperature),
                top_k: Some(top_k),
                top_p: Some(top_p),
                ..SamplingParams::default()
            };
            if penalties {
                params.repetition_penalty = Some(1.1);
                (params.presence_penalty, params.frequency_penalty) = (0.5, 0.1);
            }
            let rules: SamplingRules = rules(&params);
            let mut plain = Plain { exact: Exact::default(), logits: Vec::new() };
            let mut sampler = Sampler::default();
            compare(
                &format!("{shape} {name}"),
                |i| {
                    let seen = penalties.then_some(&history);
                    black_box(plain.sample(black_box(logits), cuts, seen, f64::from(i % 20) / 20.0 + 0.013));
                },
                |i| {
                    let raw = peak(kernels, black_box(logits));
                    assert!(raw.sound);
                    black_box(sampler.sample(kernels, &rules, logits, raw, &history, &[], i, None));
                },
            );
        }
        let mut sampler = Sampler::default();
        compare(
            &format!("{shape} log-probabilities of 5"),
            |_| drop(black_box(plain_logprobs(black_box(logits), 17, 5))),
            |_| {
                let raw = peak(kernels, black_box(logits));
                drop(black_box(sampler.logprobs(kernels, logits, raw, 17, 5)));
            },
        );
    }
}
