//! Adapters on a projection against plain loops, bit by bit, on every instruction set and for every number of threads.

#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;

use common::{Rng, bits, every_context};
use octavo_kernels::{
    Activation, Kernels, Linear, LoraModule, LoraRows, LoraRun, LoraStack, QuantScheme, QuantizedRows,
    WeightDtype, WeightRows, activate_and_mul, bf16, forward_gated, forward_lora,
};
use proptest::prelude::*;

const DTYPES: [WeightDtype; 4] =
    [WeightDtype::F32, WeightDtype::Bf16, WeightDtype::INT8, WeightDtype::INT8_UNROTATED];

/// One module of an adapter, unpacked.
struct Module {
    b: Vec<f32>,
    rank: usize,
    column: usize,
    columns: usize,
    bias: Option<Vec<f32>>,
    gain: Option<Vec<f32>>,
}

struct Adapter {
    a: Vec<f32>,
    modules: Vec<Module>,
}

impl Adapter {
    /// Modules of random ranks on `[column, columns]` of y; some are left out.
    fn random(rng: &mut Rng, places: &[(usize, usize)], k: usize, max_rank: usize) -> Adapter {
        let mut modules = Vec::new();
        for (index, &(column, columns)) in places.iter().enumerate() {
            if index > 0 && rng.below(3) == 0 {
                continue;
            }
            let rank = 1 + rng.below(max_rank);
            let mut vector = |one_of: usize| (rng.below(one_of) == 0).then(|| rng.floats(columns));
            let (bias, gain) = (vector(2), vector(2));
            modules.push(Module { b: rng.floats(columns * rank), rank, column, columns, bias, gain });
        }
        let ranks = modules.iter().map(|m| m.rank).sum::<usize>();
        Adapter { a: rng.floats(ranks * k), modules }
    }

    fn pack(&self, kernels: &Kernels, k: usize, dtype: WeightDtype) -> LoraStack {
        let modules = self.modules.iter().map(|m| LoraModule {
            b: &m.b,
            rank: m.rank,
            column: m.column,
            bias: m.bias.as_deref(),
            gain: m.gain.as_deref(),
        });
        let down = Linear::pack(kernels, &[WeightRows::F32(&self.a)], k, dtype);
        LoraStack::new(down, &modules.collect::<Vec<_>>())
    }

    /// The definition, one value after the other: a chain over the rank from zero, then one sum.
    fn add(&self, h: &[f32], base: Option<&[f32]>, exact: bool, y: &mut [f32]) {
        let mut first = 0;
        for m in &self.modules {
            for column in 0..m.columns {
                let mut delta = 0.0_f32;
                for j in 0..m.rank {
                    let b = m.b[column * m.rank + j];
                    let b = if exact { b } else { bf16::from_f32(b).to_f32() };
                    delta = h[first + j].mul_add(b, delta);
                }
                let y = &mut y[m.column + column];
                let base = base.map(|base| base[m.column + column]).filter(|_| m.gain.is_some());
                let mut value = base.map_or(*y, |base| *y - base) + delta;
                if let Some(bias) = &m.bias {
                    value += bias[column];
                }
                *y = match (&m.gain, base) {
                    (None, _) => value,
                    (Some(gain), None) => gain[column] * value,
                    (Some(gain), Some(base)) => gain[column].mul_add(value, base),
                };
            }
            first += m.rank;
        }
    }
}

/// Adapters on runs of rows of one projection, computed by the kernel on every context and by the definition.
fn check(
    seed: u64,
    dtype: WeightDtype,
    k: usize,
    places: &[(usize, usize)],
    runs: &[Range<usize>],
    max_rank: usize,
) {
    let mut rng = Rng(seed);
    let n = places.last().map_or(0, |p| p.0 + p.1) + rng.below(5);
    let m = runs.last().map_or(0, |r| r.end) + rng.below(3);
    let x = rng.floats(m * k);
    let weights = rng.floats(n * k);
    let base = (rng.below(2) == 0).then(|| rng.floats(n));
    let adapters: Vec<Adapter> = (0..2).map(|_| Adapter::random(&mut rng, places, k, max_rank)).collect();
    let mut expected: Option<Vec<f32>> = None;
    for kernels in every_context() {
        let stacks: Vec<LoraStack> = adapters.iter().map(|a| a.pack(&kernels, k, dtype)).collect();
        let layer = Linear::pack(&kernels, &[WeightRows::F32(&weights)], k, dtype);
        let want = expected.get_or_insert_with(|| {
            let mut y = vec![0.0; m * n];
            layer.forward(&kernels, &x, m, base.as_deref(), &mut y, &mut QuantizedRows::new());
            for (i, run) in runs.iter().enumerate() {
                let down = Linear::pack(&kernels, &[WeightRows::F32(&adapters[i % 2].a)], k, dtype);
                for row in run.clone() {
                    let mut h = vec![0.0; down.out_features()];
                    let x = &x[row * k..(row + 1) * k];
                    down.forward(&kernels, x, 1, None, &mut h, &mut QuantizedRows::new());
                    let y = &mut y[row * n..(row + 1) * n];
                    adapters[i % 2].add(&h, base.as_deref(), dtype == WeightDtype::F32, y);
                }
            }
            y
        });
        let runs: Vec<LoraRun<'_>> = runs
            .iter()
            .enumerate()
            .map(|(i, rows)| LoraRun { stack: &stacks[i % 2], rows: rows.clone() })
            .collect();
        let (mut y, mut h) = (vec![f32::NAN; m * n], vec![f32::NAN; 3]);
        let rows = LoraRows { runs: &runs, h: &mut h };
        forward_lora(&kernels, &layer, &x, base.as_deref(), rows, &mut y, &mut QuantizedRows::new());
        let what = format!("{dtype} k {k} {places:?} {runs:?} on {} x {}", kernels.isa(), kernels.threads());
        assert_eq!(bits(&y), bits(want), "{what}");
    }
}

/// Inputs, places of modules, begins and ends of runs, the largest rank.
type Shape<'a> = (usize, &'a [(usize, usize)], &'a [(usize, usize)], usize);

#[test]
fn shapes_around_the_borders_of_tiles_strips_and_tasks() {
    let shapes: [Shape<'_>; 7] = [
        (1, &[(0, 1)], &[(0, 1)], 1),
        (130, &[(0, 64), (64, 16), (80, 17)], &[(0, 1), (1, 2), (3, 4)], 16),
        (256, &[(0, 300), (310, 290)], &[(2, 9)], 5),
        // Whole tiles of AMX, with rows of others around.
        (384, &[(0, 70)], &[(0, 40), (40, 45), (50, 90)], 24),
        (64, &[(0, 1100)], &[(1, 1), (1, 6)], 256),
        (200, &[(3, 33)], &[(0, 75)], 65),
        (31, &[(0, 15), (16, 600)], &[(0, 3), (5, 7)], 2),
    ];
    for (seed, (k, places, runs, max_rank)) in shapes.into_iter().enumerate() {
        for dtype in DTYPES {
            let runs: Vec<_> = runs.iter().map(|&(start, end)| start..end).collect();
            check(seed as u64, dtype, k, places, &runs, max_rank);
        }
    }
}

/// Gate and up in one pass, with adapters on some rows, against the steps.
#[test]
fn one_pass_for_gate_and_up_has_the_bits_of_its_steps() {
    // (rows, inputs, gates, runs); jobs end inside of runs, and groups of 128 at the end of the gates.
    let shapes = [
        (70, 64, 400, [0..70, 70..70]),
        (150, 64, 144, [1..2, 60..140]),
        (300, 130, 272, [0..129, 129..260]),
    ];
    for (seed, (m, k, inner, runs)) in shapes.into_iter().enumerate() {
        let mut rng = Rng(70 + seed as u64);
        let (weights, x) = (rng.floats(2 * inner * k), rng.floats(m * k));
        let adapters: Vec<Adapter> =
            (0..2).map(|_| Adapter::random(&mut rng, &[(0, inner), (inner, inner)], k, 20)).collect();
        for kernels in every_context() {
            let layer = Linear::pack(&kernels, &[WeightRows::F32(&weights)], k, WeightDtype::INT8);
            let down =
                Linear::pack(&kernels, &[WeightRows::F32(&weights[..inner])], inner, WeightDtype::INT8);
            let stacks: Vec<LoraStack> =
                adapters.iter().map(|a| a.pack(&kernels, k, WeightDtype::INT8)).collect();
            let of =
                |(i, rows): (usize, &Range<usize>)| LoraRun { stack: &stacks[i % 2], rows: rows.clone() };
            let runs: Vec<LoraRun<'_>> = runs.iter().enumerate().map(of).collect();
            let (mut got, mut want, mut scratch) =
                (QuantizedRows::new(), QuantizedRows::new(), QuantizedRows::new());
            let mut h = Vec::new();
            let rows = LoraRows { runs: &runs, h: &mut h };
            if !forward_gated(&kernels, [&layer, &down], &x, Activation::Silu, rows, &mut got, &mut scratch) {
                assert!(
                    2 * kernels.threads() > inner.div_ceil(128) * m.div_ceil(128),
                    "{m} rows are not taken"
                );
                continue;
            }
            let (mut gate_up, mut activated) = (vec![0.0; m * 2 * inner], vec![0.0; m * inner]);
            let rows = LoraRows { runs: &runs, h: &mut h };
            forward_lora(&kernels, &layer, &x, None, rows, &mut gate_up, &mut scratch);
            activate_and_mul(&kernels, Activation::Silu, &gate_up, inner, &mut activated);
            want.quantize(&kernels, &activated, inner, QuantScheme::INT8.rotation);
            let what = format!("{m} rows, {inner} gates on {} x {}", kernels.isa(), kernels.threads());
            assert_eq!(got.codes(), want.codes(), "{what}");
            assert_eq!(bits(got.scales()), bits(want.scales()), "{what}");
        }
    }
}

#[test]
#[should_panic(expected = "runs of rows overlap")]
fn rows_have_one_adapter() {
    check(1, WeightDtype::F32, 8, &[(0, 20)], &[0..3, 2..4], 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_adapters(
        seed in any::<u64>(),
        dtype in 0..DTYPES.len(),
        k in 1..300_usize,
        widths in prop::collection::vec((0..3_usize, 1..200_usize), 1..4),
        lengths in prop::collection::vec((0..3_usize, 0..20_usize), 1..5),
        max_rank in 1..40_usize,
    ) {
        let mut end = 0;
        let places: Vec<_> = widths.iter().map(|&(gap, width)| {
            end += gap + width;
            (end - width, width)
        }).collect();
        let mut end = 0;
        let runs: Vec<_> = lengths.iter().map(|&(gap, len)| {
            end += gap + len;
            end - len..end
        }).collect();
        check(seed, DTYPES[dtype], k, &places, &runs, max_rank);
    }
}
