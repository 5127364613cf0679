//! Dynamic attention against exact attention in f64: omitted masses and errors stay within the reported bounds.
//!
//! Each block's values have a channel of their own, so an output shows the weight of each block. Half the sum of the
//! weights' errors is the omitted mass. `OCTAVO_DYNAMIC_CASES=n` runs n random cases.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rng, int8, kernels};
use octavo_kernels::{
    AttentionParams, AttentionReport, BLOCK_SIZE, DynamicParams, Isa, Kernels, KvDtype, KvLayer, Mode,
    OpenDtype, SealedBlock, Selection, SeqView, paged_attention, seal_blocks, write_kv,
};

/// How keys are made; each is hard for a bound in its own way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Keys {
    /// Little differs: most of the mass is spread.
    Diffuse,
    /// Few directions, which queries share.
    Clustered,
    /// Some keys are many times longer than others.
    HeavyTailed,
    /// One key agrees with the query, hidden anywhere.
    Needle,
    /// All the same.
    Equal,
    /// The first token takes nearly all.
    Sink,
    /// One token of a block widens the ranges of all its channels.
    Outlier,
    /// Channels far from zero.
    Offsets,
}

const KEYS: [Keys; 8] = [
    Keys::Diffuse,
    Keys::Clustered,
    Keys::HeavyTailed,
    Keys::Needle,
    Keys::Equal,
    Keys::Sink,
    Keys::Outlier,
    Keys::Offsets,
];

/// One sequence of one KV head and the queries of its last positions.
struct Case {
    params: AttentionParams,
    choice: DynamicParams,
    tokens: usize,
    queries: usize,
    /// `[tokens][heads][head_dim]`, of the queries.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    what: String,
}

impl Case {
    fn random(seed: u64) -> Case {
        let mut rng = Rng(seed);
        let keys = KEYS[rng.below(KEYS.len())];
        let head_dim = [64, 80, 96, 128, 256, 67][rng.below(6)];
        let heads = 1 + rng.below(8);
        let tokens = 40 + rng.below(BLOCK_SIZE * head_dim.min(40) - 40);
        let queries = 1 + rng.below(4);
        let window = (rng.below(4) == 0).then(|| 40 + rng.below(tokens) as u32);
        let softcap = (rng.below(6) == 0).then_some(20.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let params = AttentionParams { heads, kv_heads: 1, head_dim, scale, window, softcap };
        let choice = DynamicParams {
            error_bound: [1e-1, 1e-2, 1e-3, 1e-5][rng.below(4)],
            min_context: 33 + rng.below(60),
            sink_blocks: rng.below(2),
            local_blocks: rng.below(3),
            max_blocks: usize::MAX,
            mode: Mode::Certified,
            audit: 1,
        };
        let strength = [1.0, 4.0, 12.0][rng.below(3)];
        let mut q = rng.floats(queries * heads * head_dim);
        q.iter_mut().for_each(|x| *x *= strength);
        let k = make_keys(&mut rng, keys, tokens, head_dim, &q);
        // One channel a block identifies the block.
        let mut v = vec![0.0; tokens * head_dim];
        for t in 0..tokens {
            v[t * head_dim + t / BLOCK_SIZE] = 1.0;
        }
        let what = format!(
            "seed {seed}: {keys:?}, {tokens} tokens, {heads} heads of {head_dim}, {choice:?}, {window:?}"
        );
        Case { params, choice, tokens, queries, q, k, v, what }
    }

    /// Outputs and the report of a step with the last tokens.
    fn run(&self, kernels: &Kernels) -> (Vec<f32>, AttentionReport) {
        let AttentionParams { heads, head_dim, .. } = self.params;
        let blocks = self.tokens.div_ceil(BLOCK_SIZE);
        let mut layer = KvLayer::new(blocks, 1, head_dim, KvDtype::Int8(OpenDtype::F32));
        layer.grow_open_blocks(blocks);
        let table: Vec<u32> = (0..blocks as u32).rev().collect();
        let slot = |t: usize| table[t / BLOCK_SIZE] * BLOCK_SIZE as u32 + (t % BLOCK_SIZE) as u32;
        let slots: Vec<u32> = (0..self.tokens).map(slot).collect();
        write_kv(kernels, &mut layer, &self.k, head_dim, &self.v, head_dim, &slots);
        let full = &table[..self.tokens / BLOCK_SIZE];
        let sealed: Vec<_> = full.iter().map(|&block| SealedBlock { block, open: block }).collect();
        seal_blocks(kernels, &mut layer, &sealed);
        let open_blocks = &table[(self.tokens - self.queries) / BLOCK_SIZE..];
        let (query_len, context_len) = (self.queries, self.tokens);
        let seq = SeqView { query_start: 0, query_len, context_len, block_table: &table, open_blocks };
        let mut out = vec![f32::NAN; self.q.len()];
        let mut report = [AttentionReport::default()];
        let (params, width) = (&self.params, heads * head_dim);
        let selection = Selection { choices: &[self.choice], reports: &mut report };
        paged_attention(kernels, &layer, &self.q, width, &[seq], params, Some(selection), &mut out);
        (out, report[0])
    }

    /// How far weights of a dense query may be off: sums round, and scores in proportion to their terms; and queries
    /// are rounded to 16 bits, against keys whose codes spread evenly over 256 (five standard deviations).
    fn rounding(&self) -> f64 {
        let head_dim = self.params.head_dim;
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let longest = |rows: &[f32]| rows.chunks(head_dim).map(norm).fold(0.0, f64::max);
        let column = |rows: &[f32], j: usize, f: fn(f32, f32) -> f32, start: f32| {
            f64::from(rows.iter().skip(j).step_by(head_dim).fold(start, |a, &b| f(a, b)))
        };
        let peak = |j: usize| {
            let q = column(&self.q, j, |a, b| a.max(b.abs()), 0.0);
            let range = column(&self.k, j, f32::max, f32::MIN) - column(&self.k, j, f32::min, f32::MAX);
            q * range / 255.0
        };
        let unit = (0..head_dim).map(peak).fold(0.0, f64::max) * f64::from(self.params.scale) / 32_767.0;
        let rounded = 5.0 * unit * 74.0 * (head_dim as f64 / 12.0).sqrt();
        2e-5 + 1e-6 * longest(&self.q) * longest(&self.k) * f64::from(self.params.scale) + rounded
    }

    /// True omitted masses of all calls, and the largest error of an output.
    fn truth(&self, out: &[f32]) -> (Vec<f64>, f64) {
        let AttentionParams { heads, head_dim, scale, window, softcap, .. } = self.params;
        let (past_k, past_v) = (int8::keys(&self.k, head_dim), int8::values(&self.v, head_dim));
        let (mut masses, mut largest) = (Vec::new(), 0.0_f64);
        for (row, out) in out.chunks(head_dim).enumerate() {
            let position = self.tokens - self.queries + row / heads;
            let first = window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
            let own = position / BLOCK_SIZE * BLOCK_SIZE;
            let q = &self.q[row * head_dim..(row + 1) * head_dim];
            let scores: Vec<f64> = (first..=position)
                .map(|t| {
                    let k = &(if t < own { &past_k } else { &self.k })[t * head_dim..][..head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    let score = dot * f64::from(scale);
                    softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            let mut exact = vec![0.0; head_dim];
            let mut weights = vec![0.0; head_dim];
            let mut sizes = vec![1.0; head_dim];
            for (t, s) in (first..=position).zip(&scores) {
                let block = t / BLOCK_SIZE;
                let value = if t < own { past_v[t * head_dim + block] } else { 1.0 };
                weights[block] += (s - top).exp() / sum;
                exact[block] += (s - top).exp() / sum * f64::from(value);
                sizes[block] = f64::from(value);
            }
            // Values are 1 but for the rounding of their scales: divide it out to see the weights.
            let apart = |b: usize| (f64::from(out[b]) / sizes[b] - weights[b]).abs();
            masses.push(0.5 * (0..head_dim).map(apart).sum::<f64>());
            let squares = |b: usize| (f64::from(out[b]) - exact[b]).powi(2);
            largest = largest.max((0..head_dim).map(squares).sum::<f64>().sqrt());
        }
        (masses, largest)
    }
}

fn make_keys(rng: &mut Rng, keys: Keys, tokens: usize, head_dim: usize, q: &[f32]) -> Vec<f32> {
    let towards = |k: &mut [f32], size: f32| k.iter_mut().zip(q).for_each(|(k, q)| *k += size * q);
    let mut k = rng.floats(tokens * head_dim);
    let centres: Vec<Vec<f32>> = (0..5).map(|_| rng.floats(head_dim)).collect();
    for (t, k) in k.chunks_mut(head_dim).enumerate() {
        match keys {
            Keys::Diffuse => k.iter_mut().for_each(|x| *x *= 0.1),
            Keys::Clustered => {
                let centre = &centres[(t / 20 * 7) % 5];
                k.iter_mut().zip(centre).for_each(|(x, c)| *x = 0.2 * *x + 2.0 * c);
            }
            Keys::HeavyTailed => {
                let size = (1.0 / (0.02 + rng.float().abs())).sqrt();
                k.iter_mut().for_each(|x| *x *= size);
            }
            Keys::Needle if t == tokens / 3 => towards(k, 2.0),
            Keys::Sink if t == 0 => towards(k, 3.0),
            Keys::Outlier if t % 90 == 17 => k.iter_mut().for_each(|x| *x *= 60.0),
            Keys::Offsets => {
                k.iter_mut().enumerate().for_each(|(j, x)| *x += if j % 7 == 0 { 300.0 } else { 0.0 })
            }
            Keys::Equal => k.fill(0.7),
            Keys::Needle | Keys::Sink | Keys::Outlier => {}
        }
    }
    k
}

/// Checks one case. Returns whether any block was omitted.
fn check(kernels: &Kernels, seed: u64, mode: Mode) -> bool {
    let mut case = Case::random(seed);
    case.choice.mode = mode;
    let (out, report) = case.run(kernels);
    let (masses, error) = case.truth(&out);
    let what = &case.what;
    let rounding = case.rounding();
    let largest = masses.iter().fold(0.0_f64, |a, &b| a.max(b));
    if mode == Mode::Certified {
        let bound = case.choice.error_bound;
        assert!(report.max_omitted_mass <= bound, "{what}: {report:?} is above the caller's bound");
    }
    assert!(report.max_estimated_mass <= report.max_omitted_mass, "{what}: {report:?}");
    assert!(report.sum_estimated_mass <= report.sum_omitted_mass, "{what}: {report:?}");
    assert!(
        largest <= f64::from(report.max_omitted_mass) + rounding,
        "{what}: omitted {largest:e}, {report:?}"
    );
    assert!(
        masses.iter().sum::<f64>() <= report.sum_omitted_mass + rounding * masses.len() as f64,
        "{what}: {report:?}"
    );
    assert!(
        error <= f64::from(report.max_output_error) + rounding,
        "{what}: output off by {error:e}, {report:?}"
    );
    assert_eq!(report.calls as usize, masses.len(), "{what}");
    assert!(report.value_blocks <= report.blocks && report.dense_calls <= report.calls, "{what}: {report:?}");
    assert_eq!(report.violations, 0, "{what}: {report:?}");
    assert!(report.audited_calls + report.dense_calls >= report.calls, "{what}: {report:?}");
    let audited = f64::from(report.max_audited_mass);
    assert!((audited - largest).abs() <= rounding.max(2e-3 * largest), "{what}: {largest:e}, {report:?}");
    report.value_blocks < report.blocks
}

/// A limit on blocks: it is kept, and what is left out is still within what is reported.
#[test]
fn a_limit_on_blocks_is_kept_and_its_cost_is_told() {
    let kernels = kernels(Isa::detect(), 2);
    let (mut bit, mut above) = (0, 0);
    for seed in 0..600 {
        let mut case = Case::random(seed);
        case.queries = 1;
        case.q.truncate(case.params.heads * case.params.head_dim);
        let most = seed as usize % 4;
        case.choice = DynamicParams {
            mode: Mode::Budget,
            max_blocks: most,
            sink_blocks: 0,
            local_blocks: 0,
            ..case.choice
        };
        let (out, report) = case.run(&kernels);
        let (masses, error) = case.truth(&out);
        let largest = masses.iter().fold(0.0_f64, |a, &b| a.max(b));
        let (what, rounding) = (&case.what, case.rounding());
        if report.dense_calls < report.calls {
            assert!(report.value_blocks as usize <= most, "{what}: {report:?}");
            bit += 1;
        }
        above += u32::from(report.max_omitted_mass > case.choice.error_bound);
        assert!(largest <= f64::from(report.max_omitted_mass) + rounding, "{what}: {largest:e}, {report:?}");
        assert!(error <= f64::from(report.max_output_error) + rounding, "{what}: {error:e}, {report:?}");
        assert_eq!(report.violations, 0, "{what}: {report:?}");
    }
    assert!(bit > 200 && above > 100, "{bit} cases were limited, {above} of them beyond their bound");
}

/// How many of the seeds below `cases` are `chosen`, on all cores.
fn count(cases: u64, chosen: impl Fn(u64) -> bool + Sync) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let part =
        |first: u64| (first..cases).step_by(threads as usize).filter(|&seed| chosen(seed)).count() as u64;
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum()
    })
}

/// `OCTAVO_DYNAMIC_CASES=<count>` for more cases, `OCTAVO_DYNAMIC_RESULT=<file>` writes what was found as JSON.
#[test]
fn bounds_hold_in_random_and_hard_cases() {
    let cases = std::env::var("OCTAVO_DYNAMIC_CASES").ok().map_or(2000, |n| n.parse().unwrap());
    let mut levels = Vec::new();
    for isa in Isa::available().into_iter().filter(|&isa| isa != Isa::Portable) {
        let kernels = kernels(isa, 1);
        for (mode, least) in [(Mode::Certified, 5), (Mode::Estimated, 6)] {
            let chosen = count(cases, |seed| check(&kernels, seed, mode));
            let name = mode.name();
            assert!(
                chosen * least > cases,
                "{name}: only in {chosen} of {cases} cases was anything left out"
            );
            println!(
                "{isa}, {name}: {cases} cases, {chosen} of them left something out, no bound was broken"
            );
            levels.push(format!("\"{isa} {name}\": {chosen}"));
        }
    }
    if let Ok(path) = std::env::var("OCTAVO_DYNAMIC_RESULT") {
        let date = std::process::Command::new("date").args(["-u", "+%F"]).output().unwrap().stdout;
        let date = String::from_utf8(date).unwrap();
        let command = "OCTAVO_DYNAMIC_CASES=<count> cargo test -p octavo-kernels --test dynamic bounds_hold";
        let text = format!(
            "{{\n  \"date\": \"{}\",\n  \"command\": \"{command}\",\n  \"result\": \"no bound was broken\",\n  \
             \"cases\": {cases},\n  \"left_something_out\": {{{}}}\n}}\n",
            date.trim(),
            levels.join(", ")
        );
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}

/// A key that is not finite makes a query read everything, and its output is NaN.
#[test]
fn what_is_not_a_number_is_never_left_out() {
    for isa in Isa::available() {
        let kernels = kernels(isa, 1);
        for seed in 0..40 {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut case = Case::random(seed);
                case.params.window = None;
                case.params.softcap = None;
                let head_dim = case.params.head_dim;
                case.k[head_dim * (case.tokens / 4) + 1] = bad;
                let (out, report) = case.run(&kernels);
                assert!(out.chunks(head_dim).all(|row| row[0].is_nan()), "{}", case.what);
                assert_eq!(report.dense_calls, report.calls, "{}", case.what);
            }
        }
    }
}

/// One tight cluster: nearly all blocks are left out, and the answer hardly moves.
#[test]
fn a_needle_is_found_and_the_rest_left_out() {
    let kernels = kernels(Isa::detect(), 2);
    let mut seeds = (0..).map(Case::random).filter(|case| case.what.contains("Needle") && case.tokens > 900);
    let mut case = seeds.next().unwrap();
    case.params = AttentionParams { window: None, softcap: None, ..case.params };
    case.choice =
        DynamicParams { error_bound: 1e-2, min_context: 64, sink_blocks: 1, local_blocks: 1, ..case.choice };
    let head_dim = case.params.head_dim;
    // All queries ask for the same.
    let wanted: Vec<f32> = case.q[..head_dim].to_vec();
    case.q.chunks_mut(head_dim).for_each(|q| q.copy_from_slice(&wanted));
    let length: f32 = wanted.iter().map(|x| x * x).sum::<f32>().sqrt();
    let needle = &mut case.k[case.tokens / 3 * head_dim..][..head_dim];
    needle
        .iter_mut()
        .zip(&wanted)
        .for_each(|(k, q)| *k = 30.0 * (head_dim as f32).sqrt() * q / (length * length));
    let (_, report) = case.run(&kernels);
    assert!(report.value_blocks * 3 < report.blocks, "{}: {report:?}", case.what);
}

/// A sequence of two KV heads, of which the first looks everywhere and the second at one token.
struct TwoHeads {
    layer: KvLayer,
    table: Vec<u32>,
    q: Vec<f32>,
    tokens: usize,
}

impl TwoHeads {
    const HEAD_DIM: usize = 64;
    const PARAMS: AttentionParams =
        AttentionParams { heads: 4, kv_heads: 2, head_dim: 64, scale: 0.125, window: None, softcap: None };
    const CHOICE: DynamicParams = DynamicParams {
        error_bound: 1e-2,
        min_context: 200,
        sink_blocks: 1,
        local_blocks: 1,
        max_blocks: usize::MAX,
        mode: Mode::Certified,
        audit: 0,
    };

    fn new(kernels: &Kernels) -> TwoHeads {
        let (tokens, head_dim, mut rng) = (830, Self::HEAD_DIM, Rng(5));
        let mut q = rng.floats(4 * head_dim);
        let (first, second) = q.split_at_mut(2 * head_dim);
        let wanted = rng.floats(head_dim);
        first.iter_mut().for_each(|x| *x *= 0.1);
        second.iter_mut().enumerate().for_each(|(i, x)| *x = 2.0 * wanted[i % head_dim] + 0.1 * *x);
        let mut k = rng.floats(tokens * 2 * head_dim);
        k.iter_mut().for_each(|x| *x *= 0.2);
        k[(40 * 2 + 1) * head_dim..][..head_dim].iter_mut().zip(&wanted).for_each(|(k, w)| *k = 4.0 * w);
        let v = rng.floats(tokens * 2 * head_dim);
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let mut layer = KvLayer::new(blocks + 1, 2, head_dim, KvDtype::Int8(OpenDtype::Bf16));
        layer.grow_open_blocks(blocks);
        let table: Vec<u32> = (0..blocks as u32).collect();
        let slots: Vec<u32> = (0..tokens as u32).collect();
        write_kv(kernels, &mut layer, &k, 2 * head_dim, &v, 2 * head_dim, &slots);
        let full = (0..(tokens / BLOCK_SIZE) as u32).map(|block| SealedBlock { block, open: block });
        seal_blocks(kernels, &mut layer, &full.collect::<Vec<_>>());
        TwoHeads { layer, table, q, tokens }
    }

    /// The outputs and the report of a step of all queries in `range`, each the same.
    fn step(
        &self,
        kernels: &Kernels,
        range: std::ops::Range<usize>,
        dense: bool,
    ) -> (Vec<f32>, AttentionReport) {
        self.step_by(kernels, range, (!dense).then_some(Self::CHOICE))
    }

    /// The same, with a choice or without.
    fn step_by(
        &self,
        kernels: &Kernels,
        range: std::ops::Range<usize>,
        choice: Option<DynamicParams>,
    ) -> (Vec<f32>, AttentionReport) {
        let q: Vec<f32> = range.clone().flat_map(|_| self.q.iter().copied()).collect();
        let seq = SeqView {
            query_start: 0,
            query_len: range.len(),
            context_len: range.end,
            block_table: &self.table,
            open_blocks: &self.table[range.start / BLOCK_SIZE..],
        };
        let (mut out, mut report) = (vec![f32::NAN; q.len()], [AttentionReport::default()]);
        let (width, params) = (self.q.len(), &Self::PARAMS);
        let choices = choice.as_slice();
        let selection = choice.is_some().then_some(Selection { choices, reports: &mut report });
        paged_attention(kernels, &self.layer, &q, width, &[seq], params, selection, &mut out);
        (out, report[0])
    }
}

/// Where choosing brought nothing at the first token of a block, the block's other queries read everything, to the
/// bit of dense attention; a head for which it did goes on choosing.
#[test]
fn the_gate_closes_for_heads_that_look_everywhere_and_for_no_other() {
    for isa in Isa::available() {
        let kernels = kernels(isa, 2);
        let case = TwoHeads::new(&kernels);
        let half = 2 * TwoHeads::HEAD_DIM;
        let (_, tried) = case.step(&kernels, 768..769, false);
        assert!(tried.calls == 4 && tried.dense_calls >= 2, "{isa}: {tried:?}");
        for position in [769, 780, 799] {
            let (out, report) = case.step(&kernels, position..position + 1, false);
            let (exact, _) = case.step(&kernels, position..position + 1, true);
            assert_eq!(report.dense_calls, 2, "{isa}: {report:?}");
            assert!(
                out[..half] == exact[..half] && out[half..] != exact[half..],
                "{isa}: position {position}"
            );
            assert!(report.value_blocks * 3 < report.blocks * 2, "{isa}: {report:?}");
        }
        // A loose bound omits nearly all blocks unless a gate is closed. The gate of the next block is not set.
        let loose = DynamicParams { error_bound: 0.95, ..TwoHeads::CHOICE };
        for (position, closed) in [(799, true), (801, false)] {
            let (out, _) = case.step_by(&kernels, position..position + 1, Some(loose));
            let (exact, _) = case.step(&kernels, position..position + 1, true);
            assert_eq!(out[..half] == exact[..half], closed, "{isa}: position {position}");
        }
    }
}

/// The same bits and the same reports in one step as one query at a time.
#[test]
fn gates_depend_on_positions_only() {
    let mut first: Option<Vec<u32>> = None;
    for isa in Isa::available() {
        for threads in [1, 3] {
            let kernels = kernels(isa, threads);
            let whole = TwoHeads::new(&kernels);
            let (all, total) = whole.step(&kernels, 150..whole.tokens, false);
            for cuts in [1, 7, 32] {
                let case = TwoHeads::new(&kernels);
                let (mut outs, mut report) = (Vec::new(), AttentionReport::default());
                for start in (150..case.tokens).step_by(cuts) {
                    let (out, part) = case.step(&kernels, start..case.tokens.min(start + cuts), false);
                    outs.extend(out);
                    report.add(&part);
                }
                assert!(outs == all, "{isa}, {threads} threads: {cuts} queries a step");
                let counts =
                    |r: &AttentionReport| [r.calls, r.dense_calls, r.blocks, r.value_blocks, r.bytes_read];
                assert_eq!(
                    counts(&report),
                    counts(&total),
                    "{isa}, {threads} threads: {cuts} queries a step"
                );
                assert_eq!(report.max_omitted_mass, total.max_omitted_mass);
            }
            let bits: Vec<u32> = all.iter().map(|x| x.to_bits()).collect();
            assert!(
                *first.get_or_insert_with(|| bits.clone()) == bits,
                "{isa}: other bits than the first level"
            );
        }
    }
}

/// A copy of a block that is not full has its gate.
#[test]
fn gates_are_copied_with_their_block() {
    let kernels = kernels(Isa::detect(), 1);
    let mut case = TwoHeads::new(&kernels);
    case.step(&kernels, 800..801, false);
    let copy = case.table.len() as u32;
    case.layer.grow_open_blocks(copy as usize + 1);
    case.layer.copy_block(25, copy as usize);
    case.layer.copy_open_block(25, copy as usize);
    let (before, report) = case.step(&kernels, 810..811, false);
    case.table[25] = copy;
    let seq = SeqView {
        query_start: 0,
        query_len: 1,
        context_len: 811,
        block_table: &case.table,
        open_blocks: &[copy],
    };
    let (mut out, mut copied) = (vec![f32::NAN; case.q.len()], [AttentionReport::default()]);
    let (width, params) = (case.q.len(), &TwoHeads::PARAMS);
    let selection = Selection { choices: &[TwoHeads::CHOICE], reports: &mut copied };
    paged_attention(&kernels, &case.layer, &case.q, width, &[seq], params, Some(selection), &mut out);
    assert!(report.dense_calls == 2 && copied[0] == report && out == before, "{report:?}, {:?}", copied[0]);
}
