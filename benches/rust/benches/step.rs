//! Time of the core: a step of running decodes, a prefix lookup with its hashing, an admission of many prompts.
//!
//! `cargo bench -p octavo-bench --bench step` prints p20 / p50 / p80 / p99 in microseconds of the
//! fastest round, and the median of the slowest round. `OCTAVO_BENCH_RESULT=<file>` (relative to this crate) writes them
//! as JSON with the date and the machine's name.
//!
//! Criterion times many calls together and reports their mean. Here the tail of single steps matters.

use std::time::Instant;

use octavo_cache::{Cache, CacheConfig, PrefixMatch};
use octavo_scheduler::{
    Actions, AttentionPolicy, Event, NO_ADAPTER, NewRequest, NextToken, Output, Scheduler, SchedulerConfig,
    SeqResult, StepPlan,
};

const CONFIG: SchedulerConfig = SchedulerConfig {
    num_blocks: 16_384,
    block_size: 32,
    max_num_seqs: 1024,
    max_adapters: 8,
    max_num_batched_tokens: 8192,
    max_model_len: 16_384,
    max_queue: 1024,
    enable_prefix_caching: true,
    prefill_chunk: None,
    hash_seed: 1,
    hash_bits: 128,
    open_blocks: false,
};

/// Measurements a round.
const SAMPLES: usize = 3000;
/// Rounds of a row. The round with the smallest p99 counts: other load disturbed the others.
const ROUNDS: usize = 7;

/// One line of the table, in microseconds.
struct Row {
    name: String,
    p20: f64,
    p50: f64,
    p80: f64,
    p99: f64,
    /// p50 of the slowest round.
    slowest_p50: f64,
}

impl Row {
    fn new(name: String, mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        Self { name, p20: at(20), p50: at(50), p80: at(80), p99: at(99), slowest_p50: at(50) }
    }
}

fn quietest(measure: impl Fn() -> Row) -> Row {
    let rounds: Vec<Row> = std::iter::repeat_with(measure).take(ROUNDS).collect();
    let slowest_p50 = rounds.iter().map(|row| row.p50).fold(0.0, f64::max);
    let quietest = rounds.into_iter().min_by(|a, b| a.p99.total_cmp(&b.p99)).expect("there are rounds");
    let row = Row { slowest_p50, ..quietest };
    let Row { name, p20, p50, p80, p99, .. } = &row;
    println!("{name:<44} {p20:>8.1} {p50:>8.1} {p80:>8.1} {p99:>8.1} {slowest_p50:>12.1}");
    row
}

fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

fn request(id: u64, prompt_len: u32, max_tokens: u32) -> NewRequest {
    NewRequest {
        id,
        prompt: (0..prompt_len).map(|i| i * 7 + id as u32).collect(),
        n: 1,
        max_tokens,
        priority: 0,
        deadline_us: None,
        salt: None,
        adapter: NO_ADAPTER,
        held: false,
        attention: AttentionPolicy::DENSE,
        pack: None,
        prompt_logits: false,
        output: Output::Tokens,
    }
}

fn done(plan: &StepPlan) -> Event {
    let results = plan.seqs.iter().map(|seq| match seq.num_samples {
        0 => SeqResult::Prefilled,
        n => SeqResult::Tokens((0..n).map(|_| NextToken { token: seq.context_len, stop: false }).collect()),
    });
    Event::StepDone { step: plan.step, results: results.collect() }
}

/// A step (commit of the last one, schedule, plan) of `batch` decodes that start with about `context` tokens each.
/// Their lengths differ by up to `spread`: with 32 the same share of them needs a new block in every step, with 1 all
/// of them in every 32nd step.
fn decodes(batch: u64, context: u32, spread: u32) -> Row {
    let mut scheduler = Scheduler::new(CONFIG).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    let tokens = CONFIG.num_blocks * CONFIG.block_size / batch as u32 - context - 3 * CONFIG.block_size;
    let samples = SAMPLES.min(tokens as usize - 50);
    events.extend((0..batch).map(|id| Event::Submit(request(id, context + id as u32 % spread, 10_000))));
    scheduler.step(0, &mut events, &mut actions);
    while actions.plan.tokens.len() as u64 != batch || actions.plan.seqs.iter().any(|s| s.query_len > 1) {
        events.push(done(&actions.plan));
        scheduler.step(0, &mut events, &mut actions);
    }
    let mut times = Vec::new();
    for _ in 0..samples {
        events.push(done(&actions.plan));
        let start = Instant::now();
        scheduler.step(0, &mut events, &mut actions);
        times.push(micros(start));
        assert_eq!(actions.plan.tokens.len() as u64, batch);
    }
    let lengths = if spread == 1 { ", all alike" } else { "" };
    Row::new(format!("step, {batch} decodes, context {context}{lengths}"), times)
}

/// The look-up of `len` cached tokens, hashing them all.
fn look_up(len: u32) -> Row {
    let SchedulerConfig { num_blocks, block_size, hash_seed, hash_bits, .. } = CONFIG;
    let config = CacheConfig {
        num_blocks,
        block_size,
        prefix_caching: true,
        hash_seed,
        hash_bits,
        open_blocks: false,
    };
    let mut cache = Cache::new(config).expect("sound limits");
    let namespace = cache.intern_namespace(None, 0, 0);
    let tokens = request(0, len, 1).prompt;
    let mut found = PrefixMatch::default();
    let mut table = cache.start_table(namespace, &found);
    cache.reserve(&mut table, len, &mut Vec::new()).expect("the pool is large enough");
    cache.commit(&mut table, &tokens, len);
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let start = Instant::now();
        cache.find_prefix(namespace, std::hint::black_box(&tokens), len, &mut found);
        times.push(micros(start));
        assert_eq!(found.num_blocks(), len / block_size);
    }
    Row::new(format!("look-up, {len} tokens, all cached"), times)
}

/// One request whose prompt of `len` tokens is in the cache: submission, look-up and its short plan.
fn cached_prompt(len: u32) -> Row {
    let mut scheduler = Scheduler::new(CONFIG).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    let mut times = Vec::new();
    for id in 0..1000 {
        events.push(Event::Submit(NewRequest { id, ..request(0, len, 1) }));
        let start = Instant::now();
        scheduler.step(0, &mut events, &mut actions);
        let time = micros(start);
        if id > 0 {
            assert!(actions.started[0].cached_tokens >= len - 32);
            times.push(time);
        }
        while !actions.plan.is_empty() {
            events.push(done(&actions.plan));
            scheduler.step(0, &mut events, &mut actions);
        }
    }
    Row::new(format!("admission, one prompt of {len}, cached"), times)
}

/// `count` new prompts of `len` tokens in one call: submission, look-ups, and the plan of their whole prefill.
fn admissions(count: u64, len: u32) -> Row {
    let config = SchedulerConfig { max_num_batched_tokens: count as u32 * len, ..CONFIG };
    let mut scheduler = Scheduler::new(config).expect("sound limits");
    let (mut events, mut actions) = (Vec::new(), Actions::default());
    let mut times = Vec::new();
    for round in 0..100u32 {
        events.extend((0..count).map(|id| {
            let mut new = request(id, len, 1);
            new.prompt[0] = 1_000_000 + round * count as u32 + id as u32;
            Event::Submit(new)
        }));
        let start = Instant::now();
        scheduler.step(0, &mut events, &mut actions);
        times.push(micros(start));
        assert_eq!(actions.plan.tokens.len() as u64, count * u64::from(len));
        while !actions.plan.is_empty() {
            events.push(done(&actions.plan));
            scheduler.step(0, &mut events, &mut actions);
        }
    }
    Row::new(format!("admission, {count} new prompts of {len}"), times)
}

/// "name: value" from a file of the kernel, where there is one.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let cpu = line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    format!("\"cpu\": \"{cpu}\", \"cores\": {cores}, \"load_average\": \"{load}\"")
}

fn json(rows: &[Row]) -> String {
    let date = std::process::Command::new("date").args(["-u", "+%F"]).output();
    let date =
        date.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    let row = |r: &Row| {
        format!(
            "    {{\"name\": \"{}\", \"p20\": {:.1}, \"p50\": {:.1}, \"p80\": {:.1}, \"p99\": {:.1}, \
             \"p50_of_the_slowest_round\": {:.1}}}",
            r.name, r.p20, r.p50, r.p80, r.p99, r.slowest_p50
        )
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!(
        "{{\n  \"date\": \"{date}\",\n  \"command\": \"OCTAVO_BENCH_RESULT=../results/core.json cargo bench -p octavo-bench --bench step\",\n  \"machine\": {{{}}},\n  \
         \"unit\": \"microseconds\",\n  \"rounds\": {ROUNDS},\n  \"kept\": \"round with the smallest p99\",\n  \"rows\": [\n{}\n  ]\n}}\n",
        machine(),
        rows.join(",\n")
    )
}

fn main() {
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>8} {:>12}",
        "microseconds", "p20", "p50", "p80", "p99", "slowest p50"
    );
    let rows = [
        quietest(|| decodes(8, 1000, 32)),
        quietest(|| decodes(64, 1000, 32)),
        quietest(|| decodes(256, 1000, 32)),
        quietest(|| decodes(256, 1000, 1)),
        quietest(|| decodes(1024, 100, 32)),
        quietest(|| look_up(8000)),
        quietest(|| cached_prompt(8000)),
        quietest(|| admissions(256, 512)),
    ];
    if let Ok(path) = std::env::var("OCTAVO_BENCH_RESULT") {
        std::fs::write(&path, json(&rows)).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}
