//! Executors that draw tokens by themselves: what they are asked, and what becomes of their answers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octavo_kernels::{Kernels, peak};
use octavo_scheduler::{PlanSeq, StepPlan};

use crate::sampling::Sampler;
use crate::test_engine::{VOCAB, engine_over};
use crate::*;

/// Continues "a" with "bcd...": draws where it may, and gives logits where not. Sample i draws every (i + 1)th letter.
struct Drawing {
    asked: Arc<Mutex<Vec<Draw>>>,
    /// Draws nothing for this token: its logits are not numbers.
    broken_after: Option<u32>,
    /// Plans that are held beyond their step.
    held: Vec<Arc<StepPlan>>,
    /// Takes a step while another runs.
    overlaps: bool,
    /// The tokens of the rows of the steps under way.
    begun: VecDeque<Vec<u32>>,
    /// The token that each sequence of the last step drew.
    drawn: Vec<u32>,
    /// Tokens that were taken from the step before.
    awaited: Arc<AtomicUsize>,
}

fn next_letter(token: u32, sample: u32) -> u32 {
    (token + 1 + sample) % 256
}

fn logits_after(token: u32) -> Vec<f32> {
    let mut row = vec![0.0; VOCAB];
    row[(token as usize + 1) % 256] = 20.0;
    row
}

impl Executor for Drawing {
    fn execute(&mut self, _: &StepPlan, _: &mut RowSink<'_>) -> Result<(), StepError> {
        Err(StepError::Dead("the engine must call begin and finish".into()))
    }

    fn draws(&self) -> bool {
        true
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn begin(&mut self, plan: &Arc<StepPlan>, draws: &Arc<Vec<Draw>>) -> Result<(), StepError> {
        self.held.push(Arc::clone(plan));
        self.asked.lock().expect("asked").extend(draws.iter());
        let mut tokens = plan.tokens.clone();
        for &[row, seq] in &plan.placeholders {
            tokens[row as usize] = self.drawn[seq as usize];
        }
        self.awaited.fetch_add(plan.placeholders.len(), Ordering::SeqCst);
        let last = |seq: &PlanSeq| tokens[(seq.query_start + seq.query_len - 1) as usize];
        self.drawn = plan.seqs.iter().map(|seq| next_letter(last(seq), seq.sample)).collect();
        self.begun.push_back(tokens);
        Ok(())
    }

    fn finish(
        &mut self,
        plan: &Arc<StepPlan>,
        draws: &Arc<Vec<Draw>>,
        sink: &mut OutcomeSink<'_>,
    ) -> Result<(), StepError> {
        let tokens = self.begun.pop_front().expect("a step that has begun");
        for (i, seq) in plan.seqs.iter().enumerate() {
            let draw = draws.iter().find(|d| d.seq as usize == i);
            for row in seq.sample_rows() {
                let token = tokens[(seq.query_start + row) as usize];
                let logits = logits_after(token);
                let Some(draw) = draw else {
                    sink(RowOutcome::Rows(&[(i, row)], &logits));
                    continue;
                };
                let next = next_letter(token, draw.sample);
                let top = usize::try_from(draw.logprobs).ok();
                let (kernels, mut sampler) = (Kernels::single(), Sampler::default());
                let raw = peak(&kernels, &logits);
                let of = |top| sampler.logprobs(&kernels, &logits, raw, next, top);
                let logprobs = top.map_or_else(Vec::new, of);
                let drawn = (self.broken_after != Some(token)).then_some(next);
                sink(RowOutcome::Drawn { seq: i, token: drawn, logprobs });
            }
        }
        Ok(())
    }
}

/// What a `Drawing` was asked to draw, and how many tokens it took from the step before.
#[derive(Clone, Default)]
struct Asked {
    draws: Arc<Mutex<Vec<Draw>>>,
    awaited: Arc<AtomicUsize>,
}

impl Asked {
    fn take(&self) -> Vec<Draw> {
        std::mem::take(&mut self.draws.lock().expect("asked"))
    }
}

fn engine(broken_after: Option<u32>, overlaps: bool) -> (Engine, Asked) {
    let asked = Asked::default();
    let executor = Drawing {
        asked: Arc::clone(&asked.draws),
        broken_after,
        held: Vec::new(),
        overlaps,
        begun: VecDeque::new(),
        drawn: Vec::new(),
        awaited: Arc::clone(&asked.awaited),
    };
    (engine_over(executor, |_| {}), asked)
}

/// The tokens, log-probabilities and error of a request.
fn run(engine: &Engine, params: &SamplingParams) -> (Vec<u32>, Vec<Vec<TokenLogprob>>, Option<EngineError>) {
    let stream = engine.submit(Prompt::Tokens(vec![97]), params).expect("submitted");
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    loop {
        let delta = stream.next(Duration::from_secs(20)).expect("the request hangs");
        for news in delta.outputs {
            tokens.extend(&news.token_ids);
            logprobs.extend(news.logprobs.unwrap_or_default());
        }
        if delta.finished {
            return (tokens, logprobs, delta.error);
        }
    }
}

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params =
        SamplingParams { temperature: Some(0.0), max_tokens: Some(3), ..SamplingParams::default() };
    change(&mut params);
    params
}

#[test]
fn plain_requests_are_drawn_by_the_executor() {
    for overlaps in [false, true] {
        let (engine, asked) = engine(None, overlaps);
        let drawn = params(|p| {
            (p.temperature, p.top_k, p.top_p, p.min_p) = (Some(0.5), Some(1), Some(0.9), Some(0.1));
            (p.seed, p.logprobs) = (Some(u64::MAX), Some(2));
        });
        let (tokens, logprobs, error) = run(&engine, &drawn);
        assert_eq!((tokens, error), (vec![98, 99, 100], None));
        let row = |row: &Vec<TokenLogprob>| row.iter().map(|l| l.token_id).collect();
        let ids: Vec<Vec<u32>> = logprobs.iter().map(row).collect();
        assert_eq!(ids, [[98, 98, 0], [99, 99, 0], [100, 100, 0]]);
        assert!(logprobs.iter().all(|row| row[0].rank == 1 && row[0].logprob > -1e-3));
        let draws = asked.take();
        assert_eq!(draws.iter().map(|d| d.position).collect::<Vec<_>>(), [0, 1, 2]);
        for d in &draws {
            assert_eq!((d.temperature, d.top_k, d.top_p, d.min_p), (0.5, 1, 0.9, 0.1));
            assert_eq!((d.seed, d.sample, d.logprobs), (u64::MAX, 0, 2));
            assert!((0.0..1.0).contains(&d.uniform));
        }
        assert!(draws[0].uniform != draws[1].uniform && draws[1].uniform != draws[2].uniform);
        // Every token but the first was planned before the one before it was known; the last one ends the request.
        assert_eq!(asked.awaited.load(Ordering::SeqCst), if overlaps { 2 } else { 0 });
    }
}

#[test]
fn rules_beyond_a_draw_get_logits() {
    let ruled: [&dyn Fn(&mut SamplingParams); 7] = [
        &|p| p.repetition_penalty = Some(1.5),
        &|p| p.presence_penalty = 0.5,
        &|p| p.logit_bias = vec![(5, 1.0)],
        &|p| p.bad_words = vec!["z".into()],
        &|p| p.prompt_logprobs = Some(1),
        &|p| p.logprobs = Some(21),
        &|p| p.structured = Some(Structure::Regex("[a-z]+".into())),
    ];
    for (change, overlaps) in ruled.iter().flat_map(|rule| [(rule, false), (rule, true)]) {
        let (engine, asked) = engine(None, overlaps);
        let (tokens, _, error) = run(&engine, &params(change));
        assert_eq!((tokens[0], error), (98, None));
        assert!(asked.take().is_empty());
        assert_eq!(asked.awaited.load(Ordering::SeqCst), 0, "a step waits for what is drawn here");
    }
}

#[test]
fn min_tokens_needs_logits_until_it_is_reached_and_forks_for_their_first_token() {
    for overlaps in [false, true] {
        let (engine, asked) = engine(None, overlaps);
        run(&engine, &params(|p| p.min_tokens = 2));
        assert_eq!(asked.take().iter().map(|d| d.position).collect::<Vec<_>>(), [2]);
        run(&engine, &params(|p| p.n = 2));
        let mut found: Vec<_> = asked.take().iter().map(|d| (d.sample, d.position)).collect();
        found.sort_unstable();
        assert_eq!(found, [(0, 1), (0, 2), (1, 1), (1, 2)]);
    }
}

#[test]
fn what_is_no_number_fails_its_request_and_a_plan_may_be_held() {
    for overlaps in [false, true] {
        let (engine, _) = engine(Some(98), overlaps);
        let (tokens, _, error) = run(&engine, &params(|_| {}));
        assert_eq!(tokens, [98]);
        assert!(matches!(error, Some(EngineError::Execution(text)) if text.contains("not numbers")));
        // The executor still holds every plan: the engine has made new ones.
        assert_eq!(run(&engine, &params(|p| p.max_tokens = Some(1))).0, [98]);
    }
}

/// One sample stops, and its request goes on: what was drawn behind the stop is not heard of.
#[test]
fn a_sample_that_stopped_gets_no_token_that_is_being_drawn() {
    let (engine, _) = engine(None, true);
    let params = params(|p| (p.n, p.stop_token_ids, p.max_tokens) = (2, vec![99], Some(9)));
    let stream = engine.submit(Prompt::Tokens(vec![97]), &params).expect("submitted");
    let mut tokens: [Vec<u32>; 2] = Default::default();
    loop {
        let delta = stream.next(Duration::from_secs(20)).expect("the request hangs");
        for news in delta.outputs {
            tokens[news.index as usize].extend(&news.token_ids);
        }
        if delta.finished {
            break;
        }
    }
    assert_eq!(tokens, [vec![98, 99], (0..9).map(|i| 98 + 2 * i).collect()]);
}

/// The executor is a step ahead when a token ends the request: what it drew for that step is nobody's.
#[test]
fn a_stop_ends_a_request_though_its_next_token_is_being_drawn() {
    let (engine, asked) = engine(None, true);
    let stops = params(|p| (p.stop_token_ids, p.max_tokens) = (vec![99], Some(9)));
    let (tokens, _, error) = run(&engine, &stops);
    assert_eq!((tokens, error), (vec![98, 99], None));
    // A later request ends behind the step in vain.
    assert_eq!(run(&engine, &params(|p| p.max_tokens = Some(1))).0, [98]);
    let positions: Vec<_> = asked.take().iter().map(|d| d.position).collect();
    assert_eq!(positions, [0, 1, 2, 0]);
    assert_eq!(engine.stats().blocks_live, 0);
}
