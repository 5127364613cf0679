//! How requests end: once, for the right reason, and without hurting others.

use octavo_scheduler::{EndReason, Event, NewRequest, NextToken, SchedulerConfig, SeqResult};

use crate::harness::{CONFIG, Harness, request};

fn ends(h: &Harness) -> Vec<(u64, u32, EndReason)> {
    h.actions.finished.iter().map(|f| (f.request, f.sample, f.reason)).collect()
}

#[test]
fn length_is_max_tokens_or_the_models_limit() {
    let mut h = Harness::new(SchedulerConfig { max_model_len: 6, ..CONFIG });
    h.submit([request(1, 4, 1), request(2, 4, 50)]);
    h.advance();
    assert_eq!(ends(&h), [(1, 0, EndReason::Length)]);
    h.advance();
    assert_eq!(ends(&h), [(2, 0, EndReason::Length)], "4 + 2 tokens are 6");
    assert!(h.scheduler.is_idle());
    assert_eq!(h.scheduler.stats().decoded_tokens, 3);
}

#[test]
fn a_stop_at_the_last_token_is_a_stop() {
    let mut h = Harness::new(CONFIG);
    h.submit([request(1, 4, 1)]);
    let done = Harness::done_with(&h.plan, |_, _| NextToken { token: 0, stop: true });
    h.step(vec![done]);
    assert_eq!(ends(&h), [(1, 0, EndReason::Stop)]);
}

#[test]
fn nothing_is_planned_while_a_step_is_in_flight() {
    let mut h = Harness::new(CONFIG);
    h.submit([request(1, 4, 3)]);
    let plan = h.plan.clone();
    assert!(h.submit([request(2, 4, 3)]).plan.is_empty());
    assert!(h.step(vec![Event::Tick]).plan.is_empty());
    assert!(h.step(vec![Event::StepDone { step: plan.step + 1, results: vec![] }]).plan.is_empty());
    h.step(vec![Harness::done(&plan)]);
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 4)]);
    assert!(h.step(vec![Harness::done(&plan)]).plan.is_empty(), "a step is done once");
}

#[test]
fn a_cancelled_sequence_keeps_its_blocks_until_its_step_is_done() {
    let mut h = Harness::new(CONFIG);
    h.submit([request(1, 8, 3)]);
    let plan = h.plan.clone();
    h.step(vec![Event::Cancel { request: 1 }, Event::Cancel { request: 1 }]);
    assert_eq!(ends(&h), [(1, 0, EndReason::Abort)]);
    assert_eq!(h.scheduler.stats().cache.live_blocks, 2);
    assert!(!h.scheduler.is_idle());
    h.submit([request(1, 4, 1)]);
    h.step(vec![Harness::done(&plan)]);
    assert!(h.actions.finished.is_empty(), "the result was not for the new request");
    assert_eq!((h.batch(), h.scheduler.stats().cache.live_blocks), (vec![(1, 0, 4)], 1));
}

#[test]
fn cancelling_ends_every_sample_waiting_or_running() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 2, ..CONFIG });
    let two = |id| NewRequest { n: 2, ..request(id, 4, 5) };
    h.submit([two(1), two(2)]);
    h.advance();
    let plan = h.plan.clone();
    h.step(vec![Event::Cancel { request: 2 }, Event::Cancel { request: 1 }, Event::Cancel { request: 9 }]);
    let abort = EndReason::Abort;
    assert_eq!(ends(&h), [(2, 0, abort), (2, 1, abort), (1, 0, abort), (1, 1, abort)]);
    h.step(vec![Harness::done(&plan)]);
    assert!(h.scheduler.is_idle());
}

#[test]
fn a_failure_ends_all_samples_of_its_request_and_nothing_else() {
    let mut h = Harness::new(CONFIG);
    h.submit([NewRequest { n: 2, ..request(1, 4, 5) }, request(2, 4, 2)]);
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (1, 1, 1), (2, 0, 1)]);
    let results = vec![SeqResult::token(9, false), SeqResult::Failed, SeqResult::token(9, false)];
    let step = h.plan.step;
    h.step(vec![Event::StepDone { step, results }]);
    let error = EndReason::Error;
    assert_eq!(ends(&h), [(1, 0, error), (1, 1, error), (2, 0, EndReason::Length)]);
    assert!(h.scheduler.is_idle());
}

#[test]
fn results_that_do_not_fit_the_plan_are_failures() {
    let one = || SeqResult::token(1, false);
    let two =
        || SeqResult::Tokens([1, 2].map(|token| NextToken { token, stop: false }).into_iter().collect());
    for results in [vec![], vec![SeqResult::Prefilled], vec![two()]] {
        let mut h = Harness::new(CONFIG);
        h.submit([request(1, 4, 5)]);
        h.step(vec![Event::StepDone { step: 1, results }]);
        assert_eq!(ends(&h), [(1, 0, EndReason::Error)]);
    }
    let mut h = Harness::new(SchedulerConfig { prefill_chunk: Some(2), ..CONFIG });
    h.submit([request(1, 4, 5)]);
    h.step(vec![Event::StepDone { step: 1, results: vec![one()] }]);
    assert_eq!(ends(&h), [(1, 0, EndReason::Error)], "an inner chunk has no token");
}

#[test]
fn what_failed_is_not_found_in_the_cache() {
    let mut h = Harness::new(CONFIG);
    h.submit([request(1, 9, 5)]);
    h.step(vec![Event::StepDone { step: 1, results: vec![SeqResult::Failed] }]);
    h.submit([NewRequest { id: 2, ..request(1, 9, 5) }]);
    assert_eq!(h.actions.started[0].cached_tokens, 0);
}

#[test]
fn a_deadline_ends_waiting_and_running_requests() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 1, ..CONFIG });
    let by = |id, deadline_us| NewRequest { deadline_us: Some(deadline_us), ..request(id, 4, 9) };
    h.submit([by(1, 100), by(2, 50), by(3, 1000)]);
    let plan = h.plan.clone();
    h.now_us = 49;
    assert!(h.step(vec![Event::Tick]).finished.is_empty());
    h.now_us = 50;
    h.step(vec![Event::Tick]);
    assert_eq!(ends(&h), [(2, 0, EndReason::Timeout)]);
    h.now_us = 100;
    h.step(vec![Harness::done(&plan)]);
    assert_eq!(ends(&h), [(1, 0, EndReason::Timeout)]);
    assert_eq!(h.batch(), [(3, 0, 4)], "its place is taken at once");
}

#[test]
fn a_result_counts_even_if_the_deadline_has_come() {
    let mut h = Harness::new(CONFIG);
    h.submit([NewRequest { deadline_us: Some(10), ..request(1, 4, 1) }]);
    h.now_us = 10;
    h.advance();
    assert_eq!(ends(&h), [(1, 0, EndReason::Length)]);
}
