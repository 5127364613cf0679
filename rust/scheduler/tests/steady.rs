//! A step of running decodes takes no memory from the system: its time does not depend on the allocator's mood.

use octavo_scheduler::{
    Actions, AttentionPolicy, Event, NO_ADAPTER, NewRequest, Output, Scheduler, SchedulerConfig, SeqResult,
    StepPlan,
};

const BATCH: u64 = 64;
const PROMPT: u32 = 80;

const CONFIG: SchedulerConfig = SchedulerConfig {
    num_blocks: 4096,
    block_size: 4,
    max_num_seqs: 64,
    max_adapters: 8,
    max_num_batched_tokens: 8192,
    max_model_len: 2048,
    max_queue: 128,
    enable_prefix_caching: true,
    prefill_chunk: None,
    hash_seed: 1,
    hash_bits: 128,
    open_blocks: false,
};

fn submit(id: u64) -> Event {
    Event::Submit(NewRequest {
        id,
        prompt: (0..PROMPT).map(|i| i * 7 + id as u32).collect(),
        n: 1,
        max_tokens: 1000,
        priority: 0,
        deadline_us: None,
        salt: None,
        adapter: NO_ADAPTER,
        held: false,
        attention: AttentionPolicy::DENSE,
        pack: None,
        prompt_logits: false,
        output: Output::Tokens,
    })
}

fn done(plan: &StepPlan) -> Event {
    let results = plan.seqs.iter().map(|seq| SeqResult::token(seq.context_len, false));
    Event::StepDone { step: plan.step, results: results.collect() }
}

/// Decodes while others wait that cannot start: new blocks, full blocks into the prefix index, and no allocation. Only
/// a token list that outgrows its memory takes twice as much; between 81 and 160 tokens none does.
fn decode_steadily(ahead: bool, open_blocks: bool) {
    let mut scheduler = Scheduler::new(SchedulerConfig { open_blocks, ..CONFIG }).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    let (mut running, mut before) = (StepPlan::default(), StepPlan::default());
    events.extend((0..BATCH + 10).map(submit));
    scheduler.step(0, &mut events, &mut actions);
    // The plans' lists get the size that they need at the end.
    for plan in [&mut actions.plan, &mut running, &mut before] {
        plan.block_tables.reserve(8192);
        plan.sealed.reserve(BATCH as usize);
    }
    let free = scheduler.stats().cache.free_blocks;
    for step in 0..73 {
        std::mem::swap(&mut before, &mut running);
        std::mem::swap(&mut running, &mut actions.plan);
        if ahead && step > 0 {
            events.push(done(&before));
        }
        events.push(if ahead { Event::ScheduleAsync { step: running.step } } else { done(&running) });
        let taken = allocation_counter::measure(|| scheduler.step(0, &mut events, &mut actions));
        // The first steps take what the next ones use again.
        assert!(step < 3 || taken.count_total == 0, "{} allocations in step {step}", taken.count_total);
        assert_eq!((actions.plan.tokens.len() as u64, scheduler.stats().waiting), (BATCH, 10));
        assert_eq!(actions.plan.placeholders.len() as u64, if ahead { BATCH } else { 0 });
    }
    assert!(free - scheduler.stats().cache.free_blocks >= 1000, "the sequences grew");
}

#[test]
fn a_step_of_decodes_allocates_nothing() {
    decode_steadily(false, false);
    decode_steadily(false, true);
}

#[test]
fn nor_does_one_that_is_planned_ahead() {
    decode_steadily(true, false);
    decode_steadily(true, true);
}
