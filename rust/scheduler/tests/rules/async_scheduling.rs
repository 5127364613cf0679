//! Async scheduling: plans that are made before the step in flight is done.

use octavo_scheduler::{Actions, EndReason, Event, NewRequest, NextToken, SchedulerConfig, StepPlan};

use crate::harness::{CONFIG, Harness, request};

/// Allows the next plan while `plan`, the only one, is in flight.
fn ahead(h: &mut Harness, plan: &StepPlan) -> Actions {
    h.step(vec![Event::ScheduleAsync { step: plan.step }]).clone()
}

/// Starts `requests` and returns their first plan.
fn start(h: &mut Harness, requests: impl IntoIterator<Item = NewRequest>) -> StepPlan {
    h.submit(requests).plan.clone()
}

#[test]
fn decodes_await_tokens_and_prompts_go_on() {
    let mut h = Harness::new(SchedulerConfig { max_num_batched_tokens: 8, ..CONFIG });
    let first = start(&mut h, [request(0, 3, 4), request(1, 9, 4)]);
    assert_eq!(h.batch(), [(0, 0, 3), (1, 0, 5)]);
    let second = ahead(&mut h, &first).plan;
    assert_eq!(h.batch(), [(0, 0, 1), (1, 0, 4)]);
    // Only the first of them draws a token in the first step.
    assert_eq!(
        (&second.placeholders[..], &second.tokens[1..]),
        (&[[0, 0]][..], &[2005, 2006, 2007, 2008][..])
    );
    assert_eq!(&second.positions[..2], [3, 5]);
    assert!(
        h.step(vec![Event::ScheduleAsync { step: second.step }]).plan.is_empty(),
        "two steps are in flight"
    );
    // With the first step's results its successor allows the next plan.
    let third = h.step(vec![Harness::done(&first), Event::ScheduleAsync { step: second.step }]).plan.clone();
    assert_eq!(third.placeholders, [[0, 0], [1, 1]]);
    assert_eq!(third.seqs.iter().map(|s| s.context_len).collect::<Vec<_>>(), [5, 10]);
}

#[test]
fn a_token_that_is_known_by_then_is_not_awaited() {
    let mut h = Harness::new(CONFIG);
    let first = start(&mut h, [request(0, 3, 4)]);
    let second = h.step(vec![Harness::done(&first)]).plan.clone();
    assert!(second.placeholders.is_empty() && second.tokens == [0]);
}

#[test]
fn nothing_is_planned_behind_a_last_token() {
    let mut h = Harness::new(CONFIG);
    let first = start(&mut h, [request(0, 3, 1), request(1, 3, 2)]);
    assert_eq!(ahead(&mut h, &first).plan.seqs.iter().map(|s| s.request).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_a_stop_leaves_in_flight_is_freed_with_its_step() {
    let mut h = Harness::new(CONFIG);
    let first = start(&mut h, [request(0, 3, 9)]);
    let second = ahead(&mut h, &first).plan;
    let stop = |_, _| NextToken { token: 7, stop: true };
    let actions = h.step(vec![Harness::done_with(&first, stop)]);
    assert_eq!(actions.finished[0].reason, EndReason::Stop);
    assert!(actions.plan.is_empty());
    assert_eq!(h.scheduler.stats().cache.live_blocks, 1, "the second step still writes there");
    assert!(!h.scheduler.is_idle());
    let actions = h.step(vec![Harness::done(&second)]);
    assert!(actions.finished.is_empty(), "it has ended once");
    assert_eq!(h.scheduler.stats().cache.live_blocks, 0);
    assert!(h.scheduler.is_idle());
}

#[test]
fn new_requests_are_admitted_into_a_plan_made_ahead() {
    let mut h = Harness::new(CONFIG);
    let first = start(&mut h, [request(0, 3, 9)]);
    h.step(vec![Event::Submit(request(1, 5, 4))]);
    let second = ahead(&mut h, &first);
    assert_eq!(h.batch(), [(0, 0, 1), (1, 0, 5)]);
    assert_eq!(second.started.iter().map(|s| s.request).collect::<Vec<_>>(), [1]);
}

#[test]
fn samples_are_split_before_anything_is_planned_behind_them() {
    let mut h = Harness::new(CONFIG);
    let first = start(&mut h, [NewRequest { n: 2, ..request(0, 3, 4) }]);
    assert!(ahead(&mut h, &first).plan.is_empty());
    h.step(vec![Harness::done(&first)]);
    assert_eq!(h.batch(), [(0, 0, 1), (0, 1, 1)]);
}

/// Two sequences of two blocks each fill the pool; each needs a third one.
#[test]
fn nobody_is_preempted_for_a_plan_made_ahead() {
    let mut h = Harness::new(SchedulerConfig { num_blocks: 4, max_model_len: 16, ..CONFIG });
    let first = start(&mut h, [request(0, 7, 8), request(1, 7, 8)]);
    let second = ahead(&mut h, &first).plan;
    assert_eq!(h.batch(), [(0, 0, 1), (1, 0, 1)], "their second blocks have room for one token");
    let third = h.step(vec![Harness::done(&first), Event::ScheduleAsync { step: second.step }]);
    assert!(third.plan.is_empty() && third.preempted == 0);
    let third = h.step(vec![Harness::done(&second)]);
    assert_eq!((third.preempted, third.plan.seqs[0].request), (1, 0), "the first in the order goes on");
    assert_eq!(h.run().len(), 2);
}
