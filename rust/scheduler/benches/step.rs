//! What the core costs: a step of running decodes, and the admission of a long prompt found in the cache.
//!
//! `cargo bench -p octavo-scheduler` prints p20 / p50 / p80 in microseconds.

use std::time::Instant;

use octavo_scheduler::{
    Actions, Event, NewRequest, NextToken, Scheduler, SchedulerConfig, SeqResult, StepPlan,
};

const CONFIG: SchedulerConfig = SchedulerConfig {
    num_blocks: 16_384,
    block_size: 32,
    max_num_seqs: 256,
    max_num_batched_tokens: 8192,
    max_model_len: 16_384,
    max_queue: 1024,
    enable_prefix_caching: true,
    prefill_chunk: None,
    hash_seed: 1,
    hash_bits: 128,
};

fn request(id: u64, prompt_len: u32, max_tokens: u32) -> NewRequest {
    NewRequest {
        id,
        prompt: (0..prompt_len).map(|i| i * 7 + id as u32).collect(),
        n: 1,
        max_tokens,
        priority: 0,
        deadline_us: None,
        salt: None,
        adapter: None,
        prompt_logits: false,
    }
}

fn done(plan: &StepPlan) -> Event {
    let results = plan.seqs.iter().map(|seq| match seq.forks {
        0 => SeqResult::Prefilled,
        n => SeqResult::Tokens((0..n).map(|_| NextToken { token: seq.context_len, stop: false }).collect()),
    });
    Event::StepDone { step: plan.step, results: results.collect() }
}

fn report(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{name:<44} {:>8.1} {:>8.1} {:>8.1}", at(20), at(50), at(80));
}

/// `batch` decodes with about `context` tokens each.
fn decodes(batch: u64, context: u32) {
    let mut scheduler = Scheduler::new(CONFIG).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    events.extend((0..batch).map(|id| Event::Submit(request(id, context, 2000))));
    scheduler.step(0, &mut events, &mut actions);
    while actions.plan.tokens.len() as u64 != batch {
        events.push(done(&actions.plan));
        scheduler.step(0, &mut events, &mut actions);
    }
    let mut times = Vec::new();
    for _ in 0..800 {
        events.push(done(&actions.plan));
        let start = Instant::now();
        scheduler.step(0, &mut events, &mut actions);
        times.push(start.elapsed().as_secs_f64() * 1e6);
        assert_eq!(actions.plan.tokens.len() as u64, batch);
    }
    report(&format!("step, {batch} decodes, context {context}"), times);
}

/// One request whose prompt of `len` tokens is in the cache: submission, look-up and its short plan.
fn cached_prompt(len: u32) {
    let mut scheduler = Scheduler::new(CONFIG).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    let mut times = Vec::new();
    for id in 0..1000 {
        events.push(Event::Submit(NewRequest { id, ..request(0, len, 1) }));
        let start = Instant::now();
        scheduler.step(0, &mut events, &mut actions);
        let time = start.elapsed().as_secs_f64() * 1e6;
        if id > 0 {
            assert!(actions.started[0].cached_tokens >= len - 32);
            times.push(time);
        }
        while !actions.plan.is_empty() {
            events.push(done(&actions.plan));
            scheduler.step(0, &mut events, &mut actions);
        }
    }
    report(&format!("admission, {len} prompt tokens in the cache"), times);
}

fn main() {
    println!("{:<44} {:>8} {:>8} {:>8}", "microseconds", "p20", "p50", "p80");
    decodes(256, 100);
    decodes(256, 1000);
    decodes(32, 1000);
    cached_prompt(8000);
}
