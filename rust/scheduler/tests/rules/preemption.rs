//! Who gives up blocks, and what it costs them.

use octavo_scheduler::{NewRequest, SchedulerConfig};

use crate::harness::{CONFIG, Harness, request};

/// 6 blocks of 4 tokens: three prompts of 7 tokens fill them, and at the ninth token each needs a third block.
const TIGHT: SchedulerConfig = SchedulerConfig { num_blocks: 6, ..CONFIG };

#[test]
fn the_latest_of_the_lowest_priority_gives_way() {
    let mut h = Harness::new(TIGHT);
    let with = |id, priority| NewRequest { priority, ..request(id, 7, 6) };
    h.submit([with(1, 1), with(2, 0), with(3, 0)]);
    assert_eq!(h.batch().len(), 3);
    h.advance();
    h.advance();
    assert_eq!(h.actions.preempted, 1);
    assert_eq!(h.batch(), [(2, 0, 1), (3, 0, 1)], "request 1 came first but matters least");
    assert_eq!(h.run().len(), 3);
}

#[test]
fn the_first_in_the_order_is_never_preempted() {
    let mut h = Harness::new(TIGHT);
    h.submit((1..=3).map(|id| request(id, 7, 14)));
    let mut batches = Vec::new();
    while !h.plan.is_empty() && h.scheduler.stats().running > 0 {
        batches.push(h.batch());
        h.advance();
        if h.actions.finished.iter().any(|f| f.request == 1) {
            break;
        }
    }
    assert!(batches.iter().all(|b| b.iter().any(|s| s.0 == 1)), "{batches:?}");
    assert_eq!(batches.len(), 14, "request 1 ran in every step");
    assert!(h.scheduler.stats().preemptions > 0);
}

#[test]
fn a_preempted_sequence_is_recomputed_without_a_second_answer() {
    let mut h =
        Harness::new(SchedulerConfig { enable_prefix_caching: false, prefill_chunk: Some(5), ..TIGHT });
    h.submit((1..=3).map(|id| request(id, 7, 6)));
    let mut seen = Vec::new();
    let mut tokens = [0; 4];
    while !h.plan.is_empty() {
        for seq in &h.plan.seqs {
            tokens[seq.request as usize] += seq.num_samples;
            if seq.request == 3 {
                seen.push((seq.context_len, seq.query_len, seq.sample_rows, seq.num_samples));
            }
        }
        h.advance();
    }
    assert_eq!(tokens, [0, 6, 6, 6], "every request got its tokens once");
    // 7 prompt tokens and 2 generated ones, in two chunks, after the others ended.
    let again = seen.iter().rposition(|s| s.0 == 5).expect("it ran again");
    assert!(again > 0, "{seen:?}");
    assert_eq!(seen[again..again + 3], [(5, 5, [0, 0], 0), (9, 4, [3, 4], 1), (10, 1, [0, 1], 1)]);
}

#[test]
fn nobody_starts_in_a_step_that_preempts_nor_before_the_preempted() {
    let mut h = Harness::new(TIGHT);
    h.submit((1..=3).map(|id| request(id, 7, 6)));
    h.advance();
    let done = Harness::done(&h.plan);
    h.step(vec![done, octavo_scheduler::Event::Submit(request(4, 1, 1))]);
    assert_eq!(h.actions.preempted, 1);
    assert!(h.actions.started.is_empty());
    while h.scheduler.stats().waiting == 2 {
        h.advance();
    }
    assert_eq!(h.batch().last().map(|s| s.0), h.actions.started.first().map(|s| s.request).or(Some(3)));
    assert!(h.batch().iter().any(|s| s.0 == 3), "request 3 is back before or with request 4");
}

#[test]
fn cached_blocks_make_the_return_cheap() {
    let mut h = Harness::new(SchedulerConfig { num_blocks: 7, ..TIGHT });
    h.submit([request(1, 8, 4), request(2, 7, 4), request(3, 7, 4)]);
    let mut preempted_at = None;
    let mut back = None;
    while !h.plan.is_empty() {
        if h.actions.preempted > 0 {
            preempted_at = Some(h.plan.step);
        } else if preempted_at.is_some() && back.is_none() {
            back = h.plan.seqs.iter().find(|s| s.request == 3).copied();
        }
        h.advance();
    }
    let back = back.expect("request 3 came back");
    assert!(back.query_len < back.context_len, "it started from cached blocks: {back:?}");
}

#[test]
fn prompt_rows_are_reported_once_in_spite_of_a_preemption() {
    let mut h = Harness::new(SchedulerConfig { num_blocks: 8, max_num_batched_tokens: 5, ..CONFIG });
    h.submit([request(1, 3, 20)]);
    h.submit([NewRequest { prompt_logits: true, ..request(2, 21, 2) }]);
    let mut rows = Vec::new();
    while !h.plan.is_empty() {
        for seq in h.plan.seqs.iter().filter(|s| s.request == 2) {
            let first = seq.context_len - seq.query_len;
            rows.extend(seq.sample_rows().map(|row| first + row).filter(|&position| position < 21));
        }
        h.advance();
    }
    assert_eq!(rows, (0..21).collect::<Vec<_>>());
    assert!(h.scheduler.stats().preemptions > 0);
}

#[test]
fn a_sequence_that_finds_no_victim_waits_with_its_blocks() {
    let mut h = Harness::new(TIGHT);
    h.submit([request(1, 6, 4), request(2, 6, 4), request(3, 7, 4)]);
    h.advance();
    h.advance();
    assert_eq!(h.batch(), [(1, 0, 1), (2, 0, 1)], "request 3 needs a block and comes last");
    assert_eq!((h.actions.preempted, h.scheduler.stats().running), (0, 3));
    assert_eq!(h.run().len(), 3);
}

#[test]
fn the_other_reader_of_a_shared_block_gives_way_instead_of_a_copy() {
    // The prompt of 9 tokens takes three steps; meanwhile request 1 takes the block that was meant for the copy.
    let mut h = Harness::new(SchedulerConfig { num_blocks: 5, prefill_chunk: Some(3), ..CONFIG });
    h.submit([request(1, 3, 9), NewRequest { n: 2, ..request(2, 9, 2) }]);
    for _ in 0..3 {
        h.advance();
    }
    assert_eq!((h.batch(), h.actions.preempted), (vec![(1, 0, 1), (2, 0, 1)], 1));
    assert!(h.plan.copies.is_empty());
    assert_eq!(h.run().len(), 3);
}
