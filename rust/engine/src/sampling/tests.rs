//! The sampler against plain definitions of each rule.

use super::exact::Exact;
use super::*;
use proptest::prelude::*;

fn rules(change: impl FnOnce(&mut SamplingParams)) -> SamplingRules {
    let mut params = SamplingParams { temperature: Some(1.0), ..SamplingParams::default() };
    change(&mut params);
    SamplingRules::new(&params, &SamplingDefaults::default(), 1, vec![0], Vec::new())
}

/// Draws with kernels of this machine's best level.
fn sample(
    sampler: &mut Sampler,
    rules: &SamplingRules,
    row: &[f32],
    history: &History,
    output: &[u32],
    allowed: Option<&[u32]>,
) -> u32 {
    let kernels = Kernels::single();
    sampler.sample(&kernels, rules, row, peak(&kernels, row), history, output, 0, allowed)
}

/// Frequencies of each token over many seeds.
fn frequencies(logits: &[f32], change: impl Fn(&mut SamplingParams)) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    let mut sampler = Sampler::default();
    let draws = 20_000;
    for seed in 0..draws {
        let rules = rules(|p| {
            change(p);
            p.seed = Some(seed);
        });
        counts[sample(&mut sampler, &rules, logits, &History::default(), &[], None) as usize] +=
            1.0 / draws as f64;
    }
    counts
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let e: Vec<f64> = logits.iter().map(|x| (f64::from(*x) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|x| x / sum).collect()
}

fn close(found: &[f64], wanted: &[f64]) {
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() < 0.012, "token {i}: drawn {f}, probability {w}");
    }
}

const ROW: [f32; 5] = [1.0, 0.0, 2.0, -1.0, 0.5];

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    close(&frequencies(&ROW, |_| {}), &softmax(&ROW, 1.0));
    close(&frequencies(&ROW, |p| p.temperature = Some(0.5)), &softmax(&ROW, 0.5));
}

#[test]
fn top_k_keeps_the_best_k() {
    let p = softmax(&[1.0, 2.0], 1.0);
    close(&frequencies(&ROW, |s| s.top_k = Some(2)), &[p[0], 0.0, p[1], 0.0, 0.0]);
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
    // softmax = 0.22 0.08 0.59 0.03 0.13: 0.59 alone misses 0.7, with 0.22 it reaches it.
    let p = softmax(&[1.0, 2.0], 1.0);
    close(&frequencies(&ROW, |s| s.top_p = Some(0.7)), &[p[0], 0.0, p[1], 0.0, 0.0]);
    close(&frequencies(&ROW, |s| s.top_p = Some(0.1)), &[0.0, 0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn min_p_drops_what_is_far_below_the_best() {
    let p = softmax(&[1.0, 2.0], 1.0);
    close(&frequencies(&ROW, |s| s.min_p = Some(0.3)), &[p[0], 0.0, p[1], 0.0, 0.0]);
}

#[test]
fn greedy_ties_go_to_the_lowest_id() {
    let greedy = rules(|p| p.temperature = Some(0.0));
    let row = [0.0, 3.0, 3.0, 1.0];
    assert_eq!(sample(&mut Sampler::default(), &greedy, &row, &History::default(), &[], None), 1);
}

#[test]
fn penalties_bias_and_bans_change_the_choice() {
    let greedy = |f: &dyn Fn(&mut SamplingParams)| {
        rules(|p| {
            p.temperature = Some(0.0);
            f(p);
        })
    };
    let mut sampler = Sampler::default();
    let mut history = History::new(&[2]);
    let row = [1.0, 1.9, 2.0, 0.0, 0.0];
    let r = greedy(&|p| p.repetition_penalty = Some(2.0));
    assert_eq!(sample(&mut sampler, &r, &row, &history, &[], None), 1, "token 2 stands in the prompt");
    history.push(1);
    let r = greedy(&|p| p.presence_penalty = 1.0);
    assert_eq!(
        sample(&mut sampler, &r, &[0.0, 3.0, 2.5, 0.0, 0.0], &history, &[1], None),
        2,
        "presence counts the output"
    );
    let r = greedy(&|p| p.logit_bias = vec![(4, 5.0)]);
    assert_eq!(sample(&mut sampler, &r, &row, &history, &[], None), 4);
    let r = greedy(&|p| p.min_tokens = 2);
    assert_eq!(
        sample(&mut sampler, &r, &[9.0, 1.0, 0.0], &history, &[1], None),
        1,
        "token 0 ends the output: too early"
    );
    assert_eq!(sample(&mut sampler, &r, &[9.0, 1.0, 0.0], &history, &[1, 1], None), 0);
    let mut banned = greedy(&|_| {});
    banned.bad_words = vec![vec![3, 2]];
    assert_eq!(sample(&mut sampler, &banned, &row, &history, &[3], None), 1, "2 may not follow 3");
    assert_eq!(sample(&mut sampler, &banned, &row, &history, &[1], None), 2);
}

#[test]
fn a_row_of_minus_infinity_still_gives_a_token() {
    let row = [f32::NEG_INFINITY; 4];
    assert!(sample(&mut Sampler::default(), &rules(|_| {}), &row, &History::default(), &[], None) < 4);
}

#[test]
fn a_mask_allows_what_its_bits_say() {
    let greedy = rules(|p| p.temperature = Some(0.0));
    let row: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut sampler = Sampler::default();
    // Tokens 3, 40 and 70; the mask ends before the row does.
    let mask = [1 << 3, 1 << 8, 1 << 6];
    let history = History::default();
    assert_eq!(sample(&mut sampler, &greedy, &row, &history, &[], Some(&mask)), 70);
    assert_eq!(sample(&mut sampler, &greedy, &row, &history, &[], Some(&mask[..2])), 40);
    let mut banned = greedy.clone();
    banned.bad_words = vec![vec![40], vec![70]];
    assert_eq!(sample(&mut sampler, &banned, &row, &history, &[], Some(&mask)), 3);
    banned.bad_words.push(vec![3]);
    assert_eq!(
        sample(&mut sampler, &banned, &row, &history, &[], Some(&mask)),
        70,
        "the rules yield to the mask"
    );
}

proptest! {
    /// The partial sorts choose exactly the set that a full sort chooses.
    #[test]
    fn the_drawn_token_is_in_the_reference_nucleus(
        row in prop::collection::vec(-8.0f32..8.0, 1..600), seed: u64, top_k in 0u32..40, top_p in 0.01f32..1.0,
        temperature in 0.1f32..3.0,
    ) {
        let rules = rules(|p| {
            *p = SamplingParams { temperature: Some(temperature), top_k: Some(top_k), top_p: Some(top_p),
                                  seed: Some(seed), ..p.clone() };
        });
        let token = sample(&mut Sampler::default(), &rules, &row, &History::default(), &[], None) as usize;
        let scaled: Vec<f32> = row.iter().map(|x| x / temperature).collect();
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        order.truncate(if top_k == 0 { row.len() } else { top_k as usize });
        let kept: Vec<f32> = order.iter().map(|i| scaled[*i]).collect();
        let p = softmax(&kept, 1.0);
        let before: f64 = p[..order.iter().position(|i| *i == token).expect("inside top-k")].iter().sum();
        prop_assert!(before < f64::from(top_p) + 1e-5, "mass before the token: {before}");
    }

    #[test]
    fn logprobs_match_the_definition(row in prop::collection::vec(-20.0f32..20.0, 1..300), top in 0usize..12) {
        let chosen = (row.len() / 2) as u32;
        let kernels = Kernels::single();
        let found = Sampler::default().logprobs(&kernels, &row, peak(&kernels, &row), chosen, top);
        let p = softmax(&row, 1.0);
        prop_assert_eq!(found.len(), 1 + top.min(row.len()));
        for l in &found {
            prop_assert!((f64::from(l.logprob) - p[l.token_id as usize].ln()).abs() < 1e-4);
        }
        prop_assert!(found[1..].iter().zip(1..).all(|(l, r)| l.rank == r));
        if let Some(again) = found[1..].iter().find(|l| l.token_id == chosen) {
            prop_assert_eq!(again.rank, found[0].rank);
        }
    }

    /// What reads less comes to the same tokens as the definition, whatever the shape of the row: flat, peaked, with ties,
    /// with tokens that cannot come.
    #[test]
    fn the_fast_draw_is_the_definition(
        seed: u64, width in 1usize..20_000, spread in prop::sample::select(vec![0.01f32, 1.0, 6.0, 40.0]),
        step in prop::sample::select(vec![0.0f32, 0.5]), banned in 0u64..4,
        temperature in prop::sample::select(vec![0.05f32, 0.7, 1.0, 4.0]),
        top_k in prop::sample::select(vec![0usize, 1, 5, 50, 64, 1000, 100_000]),
        top_p in prop::sample::select(vec![0.05f32, 0.5, 0.9, 0.999, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.02, 1.0]),
    ) {
        let cuts = Cuts { temperature, top_k, top_p, min_p };
        let row: Vec<f32> = (0..width as u32).map(|i| {
            let [a, b, c, _] = rng::philox([i, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
            let x = ((a >> 8) as f32 + (b >> 8) as f32 - (1 << 24) as f32) / (1 << 24) as f32 * spread;
            let x = if step > 0.0 { (x / step).round() * step } else { x };
            if u64::from(c % 8) < banned { f32::NEG_INFINITY } else { x }
        }).collect();
        let kernels = Kernels::single();
        let max = peak(&kernels, &row).value;
        prop_assume!(max > f32::NEG_INFINITY);
        let (mut fast, mut exact) = (Candidates::default(), Exact::default());
        for position in 0..20 {
            let draw = rng::uniform(seed, 1, position);
            let found = fast.draw(&kernels, &row, max, cuts, draw);
            prop_assert_eq!(found, exact.draw(&row, max, cuts, draw), "{:?}, draw {}", cuts, draw);
        }
    }

    /// Counting and choosing without a sort gives the ranks that a sort gives, ties and infinities included.
    #[test]
    fn ranks_are_those_of_a_sort(
        row in prop::collection::vec(prop::sample::select(vec![-1.0f32, 0.0, 0.5, 2.0, f32::NEG_INFINITY]), 1..2000),
        place in 0.0f64..1.0, top in 0usize..200,
    ) {
        let chosen = (place * row.len() as f64) as usize;
        let kernels = Kernels::single();
        let found = Sampler::default().logprobs(&kernels, &row, peak(&kernels, &row), chosen as u32, top);
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        prop_assert_eq!(found[0].rank as usize, order.iter().position(|i| *i == chosen).expect("it is there") + 1);
        let best: Vec<usize> = found[1..].iter().map(|l| l.token_id as usize).collect();
        prop_assert_eq!(&best[..], &order[..top.min(row.len())]);
    }
}
