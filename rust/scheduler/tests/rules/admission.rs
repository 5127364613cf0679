//! Who is accepted, and who leaves the queue when.

use octavo_scheduler::{
    ConfigError, Event, NewRequest, Output, Rejection, Scheduler, SchedulerConfig, Started,
};

use crate::harness::{CONFIG, Harness, request};

fn rejection(config: SchedulerConfig, new: NewRequest) -> Rejection {
    let mut h = Harness::new(config);
    h.submit([new]).rejected.first().expect("a rejection").1
}

#[test]
fn limits_that_cannot_work_are_named() {
    let fault = |config| Scheduler::new(config).expect_err("a fault").to_string();
    assert_eq!(fault(SchedulerConfig { max_num_seqs: 0, ..CONFIG }), "max_num_seqs is 0; use 1 or more");
    assert_eq!(
        fault(SchedulerConfig { prefill_chunk: Some(0), ..CONFIG }),
        "prefill_chunk is 0; use 1 or more"
    );
    assert!(fault(SchedulerConfig { num_blocks: 0, ..CONFIG }).starts_with("num_blocks is 0"));
    let short = SchedulerConfig { max_model_len: 1, ..CONFIG };
    assert_eq!(Scheduler::new(short).expect_err("a fault"), ConfigError::ModelLen { max_model_len: 1 });
}

#[test]
fn what_can_never_run_is_rejected_with_numbers() {
    assert_eq!(rejection(CONFIG, request(1, 0, 1)), Rejection::EmptyPrompt);
    assert_eq!(rejection(CONFIG, request(1, 1, 0)), Rejection::ZeroTokens { name: "max_tokens" });
    assert_eq!(
        rejection(CONFIG, NewRequest { n: 0, ..request(1, 1, 1) }),
        Rejection::ZeroTokens { name: "n" }
    );
    let too_many = rejection(CONFIG, NewRequest { n: 9, ..request(1, 1, 1) });
    assert_eq!(too_many, Rejection::TooManySamples { n: 9, max_num_seqs: 8 });
    let too_long = rejection(CONFIG, request(1, 64, 1));
    assert_eq!(too_long, Rejection::TooLong { prompt_len: 64, max_model_len: 64 });
    assert_eq!(
        too_long.to_string(),
        "the prompt has 64 tokens and max_model_len is 64, prompt and answer together; shorten the prompt to 63 \
         tokens or fewer, or raise max_model_len"
    );
    assert!(Harness::new(CONFIG).submit([request(1, 63, 9)]).rejected.is_empty());
}

#[test]
fn a_prompt_for_hidden_states_may_fill_the_context_and_the_cache() {
    let config = SchedulerConfig { num_blocks: 16, ..CONFIG };
    let hidden = |len| NewRequest { output: Output::Hidden, ..request(1, len, 0) };
    let mut h = Harness::new(config.clone());
    assert!(h.submit([hidden(64)]).rejected.is_empty());
    assert_eq!(h.run().len(), 1);
    let too_long = Rejection::PromptTooLong { prompt_len: 65, max_model_len: 64 };
    assert_eq!(rejection(config.clone(), hidden(65)), too_long);
    assert_eq!(rejection(config.clone(), hidden(0)), Rejection::EmptyPrompt);
    let small = SchedulerConfig { num_blocks: 15, ..config };
    assert_eq!(rejection(small, hidden(64)), Rejection::NeverFits { needed_blocks: 16, num_blocks: 15 });
}

#[test]
fn the_worst_case_counts_full_prompt_blocks_once() {
    let scheduler = Harness::new(SchedulerConfig { num_blocks: 10, ..CONFIG }).scheduler;
    // 9 tokens: 2 full blocks shared; 9 + 7 tokens: 4 blocks, so 2 of its own for each sample.
    assert_eq!(scheduler.check(9, 4, 7), Ok(()));
    assert_eq!(scheduler.check(9, 4, 8), Err(Rejection::NeverFits { needed_blocks: 14, num_blocks: 10 }));
    assert_eq!(
        scheduler.check(9, 1, u32::MAX),
        Err(Rejection::NeverFits { needed_blocks: 16, num_blocks: 10 })
    );
}

#[test]
fn the_queue_is_bounded_by_requests_that_never_ran() {
    let mut h = Harness::new(SchedulerConfig { max_queue: 2, max_num_seqs: 1, ..CONFIG });
    h.submit([request(1, 4, 4)]);
    let actions = h.submit([2, 3, 4].map(|id| request(id, 4, 4)));
    assert_eq!(actions.rejected, [(4, Rejection::QueueFull { waiting: 2, max_queue: 2 })]);
    assert_eq!(h.run().len(), 3);
}

#[test]
fn an_id_is_free_again_after_its_end() {
    let mut h = Harness::new(CONFIG);
    let actions = h.submit([request(7, 4, 1), request(7, 4, 1)]);
    assert_eq!(actions.rejected, [(7, Rejection::DuplicateId { id: 7 })]);
    assert_eq!(h.run().len(), 1);
    assert!(h.submit([request(7, 4, 1)]).rejected.is_empty());
}

#[test]
fn draining_finishes_the_rest_and_refuses_the_new() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 1, ..CONFIG });
    let actions = h.step(vec![
        Event::Submit(request(1, 4, 2)),
        Event::Submit(request(2, 4, 2)),
        Event::Drain,
        Event::Submit(request(3, 4, 2)),
    ]);
    assert_eq!(actions.rejected, [(3, Rejection::Draining)]);
    assert_eq!(h.run().len(), 2);
}

#[test]
fn lower_priority_numbers_start_first_and_equals_in_order_of_arrival() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 1, ..CONFIG });
    let with = |id, priority| NewRequest { priority, ..request(id, 4, 1) };
    h.submit([with(1, 5), with(2, 0), with(3, -1), with(4, 0)]);
    assert_eq!(h.run().iter().map(|end| end.0).collect::<Vec<_>>(), [3, 2, 4, 1]);
}

#[test]
fn all_samples_of_a_request_have_room_before_it_starts() {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs: 3, ..CONFIG });
    h.submit([request(1, 4, 9), NewRequest { n: 3, ..request(2, 4, 2) }, request(3, 4, 2)]);
    assert_eq!(h.batch(), [(1, 0, 4), (3, 0, 4)], "request 2 has to wait and 3 passes it");
    while h.scheduler.stats().waiting > 0 {
        h.advance();
    }
    assert_eq!(h.batch(), [(2, 0, 4)]);
}

#[test]
fn a_request_that_does_not_fit_is_overtaken_a_bounded_number_of_times() {
    // One by one, and three in each step.
    overtakes_eight_times(2);
    overtakes_eight_times(4);
}

fn overtakes_eight_times(max_num_seqs: u32) {
    let mut h = Harness::new(SchedulerConfig { max_num_seqs, ..CONFIG });
    h.submit([request(1, 4, 40), NewRequest { n: max_num_seqs, ..request(2, 4, 2) }]);
    h.submit((3..30).map(|id| request(id, 4, 2)));
    let mut started = Vec::new();
    while !h.plan.is_empty() {
        h.advance();
        started.extend(h.actions.started.iter().map(|s| s.request));
    }
    let place = started.iter().position(|&id| id == 2).expect("it ran");
    assert_eq!(place, 8, "{started:?}");
}

#[test]
fn a_prompt_starts_only_if_the_running_prompts_still_fit() {
    // Request 1 holds 1 of its 10 blocks after the first chunk; request 2 would fit beside that, but not beside all 10.
    let config = SchedulerConfig { num_blocks: 12, prefill_chunk: Some(4), ..CONFIG };
    let mut h = Harness::new(config);
    h.submit([request(1, 36, 2)]);
    h.submit([request(2, 8, 2)]);
    while h.actions.started.is_empty() {
        assert!(h.scheduler.stats().cache.live_blocks <= 10);
        h.advance();
    }
    assert_eq!(h.scheduler.stats().preemptions, 0);
    assert_eq!(h.run().len(), 1, "request 1 had ended before request 2 started");
}

#[test]
fn a_start_names_its_cached_tokens() {
    let mut h = Harness::new(CONFIG);
    h.submit([request(1, 8, 1)]);
    h.run();
    let same_prompt = |id| NewRequest { prompt: request(1, 8, 1).prompt, ..request(id, 8, 1) };
    let actions = h.submit([same_prompt(2), NewRequest { salt: Some("s".into()), ..same_prompt(3) }]);
    let started = [Started { request: 2, cached_tokens: 4 }, Started { request: 3, cached_tokens: 0 }];
    assert_eq!(actions.started, started, "the last prompt token is always computed; a salt hits only itself");
    assert_eq!(h.batch(), [(2, 0, 4), (3, 0, 8)]);
}
