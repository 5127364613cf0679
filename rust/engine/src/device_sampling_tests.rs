//! Executors that sample tokens by themselves: the specs they get, and the use of their tokens.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octavo_kernels::{Kernels, peak};
use octavo_scheduler::PlanSeq;

use crate::sampling::Sampler;
use crate::test_engine::{VOCAB, engine_over, executor_info};
use crate::*;

/// Continues "a" with "bcd...": samples where it may, and returns logits where not. Sample i takes every (i + 1)th letter.
struct SamplingExecutor {
    specs: Arc<Mutex<Vec<SampleSpec>>>,
    /// The logits behind this token are not numbers.
    broken_after: Option<u32>,
    /// Steps that are held beyond their end.
    held: Vec<Arc<StepInput>>,
    /// 2: takes a step while another runs.
    max_in_flight: usize,
    /// The steps under way and their tokens.
    running: VecDeque<(Arc<StepInput>, Vec<u32>)>,
    /// The token that each sequence of the last step samples.
    sampled: Vec<u32>,
    /// Logits of the step last waited for.
    rows: Vec<Vec<f32>>,
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

impl Executor for SamplingExecutor {
    fn info(&self) -> ExecutorInfo {
        ExecutorInfo { samples_on_device: true, max_in_flight: self.max_in_flight, ..executor_info() }
    }

    fn submit(&mut self, step: &Arc<StepInput>) -> Result<Ticket, StepError> {
        let plan = &step.plan;
        self.held.push(Arc::clone(step));
        self.specs.lock().expect("specs").extend(step.samples.iter());
        let mut tokens = plan.tokens.clone();
        for &[row, seq] in &plan.placeholders {
            tokens[row as usize] = self.sampled[seq as usize];
        }
        self.awaited.fetch_add(plan.placeholders.len(), Ordering::SeqCst);
        let last = |seq: &PlanSeq| tokens[(seq.query_start + seq.query_len - 1) as usize];
        self.sampled = plan.seqs.iter().map(|seq| next_letter(last(seq), seq.sample)).collect();
        self.running.push_back((Arc::clone(step), tokens));
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, StepError> {
        let (step, tokens) = self.running.pop_front().expect("a submitted step");
        assert_eq!(ticket, Ticket(step.plan.step));
        let token = |i: usize, row| tokens[(step.plan.seqs[i].query_start + row) as usize];
        let sample = |spec: &SampleSpec| {
            let i = spec.seq as usize;
            let token = token(i, step.plan.seqs[i].query_len - 1);
            let (next, logits) = (next_letter(token, spec.sample), logits_after(token));
            let (kernels, mut sampler) = (Kernels::single(), Sampler::default());
            let raw = peak(&kernels, &logits);
            let of = |top| sampler.logprobs(&kernels, &logits, raw, next, top);
            let logprobs = usize::try_from(spec.logprobs).ok().map_or_else(Vec::new, of);
            (self.broken_after != Some(token)).then_some(SampledToken { token: next, logprobs })
        };
        self.rows = step.rows().map(|(i, row)| logits_after(token(i, row))).collect();
        Ok(StepOutput { sampled: step.samples.iter().map(sample).collect(), reports: Vec::new() })
    }

    fn read_rows(&mut self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), StepError> {
        *out = self.rows[rows].concat();
        Ok(())
    }
}

/// The specs that a `SamplingExecutor` got, and how many tokens it took from the step before.
#[derive(Clone, Default)]
struct Recorded {
    specs: Arc<Mutex<Vec<SampleSpec>>>,
    awaited: Arc<AtomicUsize>,
}

impl Recorded {
    fn take(&self) -> Vec<SampleSpec> {
        std::mem::take(&mut self.specs.lock().expect("specs"))
    }
}

fn engine(broken_after: Option<u32>, overlaps: bool) -> (Engine, Recorded) {
    let recorded = Recorded::default();
    let executor = SamplingExecutor {
        specs: Arc::clone(&recorded.specs),
        broken_after,
        held: Vec::new(),
        max_in_flight: if overlaps { 2 } else { 1 },
        running: VecDeque::new(),
        sampled: Vec::new(),
        rows: Vec::new(),
        awaited: Arc::clone(&recorded.awaited),
    };
    (engine_over(executor, |_| {}), recorded)
}

/// The tokens, log-probabilities and error of a request.
fn run(engine: &Engine, params: &SamplingParams) -> (Vec<u32>, Vec<Vec<TokenLogprob>>, Option<EngineError>) {
    let stream = engine.submit(Prompt::Tokens(vec![97]), params).expect("submitted");
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    loop {
        let delta = stream.next(Duration::from_secs(120)).expect("the request hangs");
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
fn plain_requests_are_sampled_by_the_executor() {
    for overlaps in [false, true] {
        let (engine, recorded) = engine(None, overlaps);
        let plain = params(|p| {
            (p.temperature, p.top_k, p.top_p, p.min_p) = (Some(0.5), Some(1), Some(0.9), Some(0.1));
            (p.seed, p.logprobs) = (Some(u64::MAX), Some(2));
        });
        let (tokens, logprobs, error) = run(&engine, &plain);
        assert_eq!((tokens, error), (vec![98, 99, 100], None));
        let row = |row: &Vec<TokenLogprob>| row.iter().map(|l| l.token_id).collect();
        let ids: Vec<Vec<u32>> = logprobs.iter().map(row).collect();
        assert_eq!(ids, [[98, 98, 0], [99, 99, 0], [100, 100, 0]]);
        assert!(logprobs.iter().all(|row| row[0].rank == 1 && row[0].logprob > -1e-3));
        let specs = recorded.take();
        assert_eq!(specs.iter().map(|d| d.position).collect::<Vec<_>>(), [0, 1, 2]);
        for d in &specs {
            assert_eq!((d.temperature, d.top_k, d.top_p, d.min_p), (0.5, 1, 0.9, 0.1));
            assert_eq!((d.seed, d.sample, d.logprobs), (u64::MAX, 0, 2));
            assert!((0.0..1.0).contains(&d.uniform));
        }
        assert!(specs[0].uniform != specs[1].uniform && specs[1].uniform != specs[2].uniform);
        // Every token but the first was planned before the one before it was known; the last one ends the request.
        assert_eq!(recorded.awaited.load(Ordering::SeqCst), if overlaps { 2 } else { 0 });
    }
}

#[test]
fn rules_beyond_a_spec_get_logits() {
    let ruled: [&dyn Fn(&mut SamplingParams); 8] = [
        &|p| p.repetition_penalty = Some(1.5),
        &|p| p.presence_penalty = 0.5,
        &|p| p.logit_bias = vec![(5, 1.0)],
        &|p| p.bad_words = vec!["z".into()],
        &|p| p.allowed_token_ids = Some(vec![98, 99]),
        &|p| p.prompt_logprobs = Some(1),
        &|p| p.logprobs = Some(21),
        &|p| p.structured = Some(Structure::Regex("[a-z]+".into()).into()),
    ];
    for (change, overlaps) in ruled.iter().flat_map(|rule| [(rule, false), (rule, true)]) {
        let (engine, recorded) = engine(None, overlaps);
        let (tokens, _, error) = run(&engine, &params(change));
        assert_eq!((tokens[0], error), (98, None));
        assert!(recorded.take().is_empty());
        assert_eq!(recorded.awaited.load(Ordering::SeqCst), 0, "a step waits for what is sampled here");
    }
}

#[test]
fn min_tokens_needs_logits_until_it_is_reached_and_forks_for_their_first_token() {
    for overlaps in [false, true] {
        let (engine, recorded) = engine(None, overlaps);
        run(&engine, &params(|p| p.min_tokens = 2));
        assert_eq!(recorded.take().iter().map(|d| d.position).collect::<Vec<_>>(), [2]);
        run(&engine, &params(|p| p.n = 2));
        let mut found: Vec<_> = recorded.take().iter().map(|d| (d.sample, d.position)).collect();
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

/// One sample stops, and its request goes on: the token sampled behind the stop is dropped.
#[test]
fn a_sample_that_stopped_gets_no_token_that_is_being_sampled() {
    let (engine, _) = engine(None, true);
    let params = params(|p| (p.n, p.stop_token_ids, p.max_tokens) = (2, vec![99], Some(9)));
    let stream = engine.submit(Prompt::Tokens(vec![97]), &params).expect("submitted");
    let mut tokens: [Vec<u32>; 2] = Default::default();
    loop {
        let delta = stream.next(Duration::from_secs(120)).expect("the request hangs");
        for news in delta.outputs {
            tokens[news.index as usize].extend(&news.token_ids);
        }
        if delta.finished {
            break;
        }
    }
    assert_eq!(tokens, [vec![98, 99], (0..9).map(|i| 98 + 2 * i).collect()]);
}

/// The executor is a step ahead when a token ends the request: its token for that step is dropped.
#[test]
fn a_stop_ends_a_request_though_its_next_token_is_being_sampled() {
    let (engine, recorded) = engine(None, true);
    let stops = params(|p| (p.stop_token_ids, p.max_tokens) = (vec![99], Some(9)));
    let (tokens, _, error) = run(&engine, &stops);
    assert_eq!((tokens, error), (vec![98, 99], None));
    // A later request ends behind the step in vain.
    assert_eq!(run(&engine, &params(|p| p.max_tokens = Some(1))).0, [98]);
    let positions: Vec<_> = recorded.take().iter().map(|d| d.position).collect();
    assert_eq!(positions, [0, 1, 2, 0]);
    assert_eq!(engine.stats().blocks_live, 0);
}
