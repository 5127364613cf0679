//! What a step holds.

use octavo_scheduler::{
    AttentionPolicy, EndReason, NO_ADAPTER, NewRequest, NextToken, Output, PlanSeq, SchedulerConfig,
};

use crate::harness::{CONFIG, Harness, request};

#[test]
fn the_plan_names_tokens_positions_slots_and_tables() {
    let mut h = Harness::new(SchedulerConfig { prefill_chunk: Some(3), ..CONFIG });
    h.submit([request(0, 5, 4)]);
    h.advance();
    let plan = &h.plan;
    assert_eq!((plan.step, &plan.tokens[..], &plan.positions[..]), (2, &[1003, 1004][..], &[3, 4][..]));
    let [a, b] = plan.block_tables[..] else { panic!("{plan:?}") };
    assert_eq!(plan.slots, [a * 4 + 3, b * 4]);
    let seq = PlanSeq {
        request: 0,
        sample: 0,
        num_samples: 1,
        query_start: 0,
        query_len: 2,
        context_len: 5,
        block_table_start: 0,
        open_block_start: 0,
        adapter: NO_ADAPTER,
        attention: AttentionPolicy::DENSE,
        output: Output::Tokens,
        sample_rows: [1, 2],
    };
    assert_eq!(plan.seqs, [seq]);
}

#[test]
fn decodes_come_first_and_prefills_share_the_rest() {
    let mut h = Harness::new(SchedulerConfig { max_num_batched_tokens: 10, ..CONFIG });
    h.submit([request(1, 4, 9)]);
    h.submit([request(2, 20, 9), request(3, 8, 9)]);
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 9)]);
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 9)]);
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 2), (3, 0, 7)]);
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 1), (3, 0, 1)]);
}

#[test]
fn an_inner_chunk_asks_for_nothing() {
    let mut h = Harness::new(SchedulerConfig { prefill_chunk: Some(4), ..CONFIG });
    h.submit([request(1, 10, 2)]);
    let mut asked = Vec::new();
    while !h.plan.is_empty() {
        let seq = h.plan.seqs[0];
        asked.push((seq.query_len, seq.sample_rows, seq.num_samples));
        h.advance();
    }
    assert_eq!(asked, [(4, [0, 0], 0), (4, [0, 0], 0), (2, [1, 2], 1), (1, [0, 1], 1)]);
}

#[test]
fn prompt_logits_compute_every_row_in_spite_of_the_cache() {
    let mut h = Harness::new(SchedulerConfig { prefill_chunk: Some(6), ..CONFIG });
    h.submit([request(1, 8, 1)]);
    h.run();
    h.submit([NewRequest { prompt: request(1, 8, 1).prompt, prompt_logits: true, ..request(2, 8, 2) }]);
    let mut asked = Vec::new();
    while !h.plan.is_empty() {
        let seq = h.plan.seqs[0];
        asked.push((seq.query_len, seq.sample_rows, seq.num_samples));
        h.advance();
    }
    assert_eq!(asked, [(6, [0, 6], 0), (2, [0, 2], 1), (1, [0, 1], 1)]);
}

#[test]
fn hidden_states_of_all_rows_compute_every_row_and_of_the_last_row_use_the_cache() {
    let mut h = Harness::new(SchedulerConfig { prefill_chunk: Some(6), ..CONFIG });
    h.submit([request(1, 8, 1)]);
    h.run();
    let hidden = |id, prompt_logits| NewRequest {
        prompt: request(1, 8, 1).prompt,
        prompt_logits,
        output: Output::Hidden,
        ..request(id, 8, 0)
    };
    for (id, all, wanted) in
        [(2, true, &[(6, [0, 6], 0), (2, [0, 2], 0)][..]), (3, false, &[(4, [3, 4], 0)][..])]
    {
        let started = h.submit([hidden(id, all)]).started[0];
        assert_eq!(started.cached_tokens, if all { 0 } else { 4 });
        let (mut asked, mut ends) = (Vec::new(), Vec::new());
        while !h.plan.is_empty() {
            let seq = h.plan.seqs[0];
            assert_eq!(seq.output, Output::Hidden);
            asked.push((seq.query_len, seq.sample_rows, seq.num_samples));
            h.advance();
            ends.extend(h.actions.finished.iter().map(|f| (f.request, f.reason)));
        }
        assert_eq!((&asked[..], &ends[..]), (wanted, &[(id, EndReason::Stop)][..]));
    }
    assert_eq!(h.scheduler.stats().decoded_tokens, 1, "nothing was generated for them");
    assert_eq!(h.scheduler.stats().cache.live_blocks, 0);
}

#[test]
fn samples_share_the_prompt_and_copy_its_last_block_on_write() {
    let mut h = Harness::new(CONFIG);
    h.submit([NewRequest { n: 3, ..request(1, 6, 4) }]);
    assert_eq!((h.batch(), h.plan.seqs[0].num_samples), (vec![(1, 0, 6)], 3));
    h.advance();
    let plan = &h.plan;
    assert_eq!(h.batch(), [(1, 0, 1), (1, 1, 1), (1, 2, 1)]);
    assert_eq!(plan.tokens, [0, 1, 2], "each sample has its own first token");
    let tables: Vec<_> = plan.block_tables.chunks(2).collect();
    assert!(tables.iter().all(|t| t[0] == tables[0][0]), "the full block is shared");
    assert_eq!(plan.copies.len(), 2, "the last sample keeps the original");
    assert!(plan.copies.iter().all(|c| c[0] == tables[2][1]), "{plan:?}");
    h.advance();
    assert!(h.plan.copies.is_empty());
}

#[test]
fn a_sample_may_end_with_its_first_token() {
    let mut h = Harness::new(CONFIG);
    h.submit([NewRequest { n: 3, ..request(1, 6, 4) }]);
    let done = Harness::done_with(&h.plan, |_, s| NextToken { token: s, stop: s != 1 });
    h.step(vec![done]);
    assert_eq!(h.actions.finished.iter().map(|f| f.sample).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(h.batch(), [(1, 1, 1)]);
    assert!(h.plan.copies.is_empty(), "nobody else reads the block");
}

#[test]
fn a_small_budget_serves_the_first_in_the_order() {
    let mut h = Harness::new(SchedulerConfig { max_num_batched_tokens: 2, ..CONFIG });
    h.submit((1..=3).map(|id| request(id, 1, 3)));
    h.advance();
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 1)]);
    assert_eq!(h.run().len(), 3);
}
