//! The scheduler and the cache under random workloads on tiny pools, against a content oracle.
//!
//! A failure prints the command that replays its seed. `OCTAVO_SIM_SEEDS=<count>` runs more seeds, from
//! `OCTAVO_SIM_FIRST=<seed>` on, on `OCTAVO_SIM_THREADS=<count>` threads, for `OCTAVO_SIM_MINUTES=<count>` at most;
//! `OCTAVO_SIM_RESULT=<file>` writes what was reached.
#![allow(missing_docs)]

#[path = "../sim/mod.rs"]
mod sim;

use std::time::{Duration, Instant};

use sim::seeds::{self, Sum, environment};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 10_000;

/// Seeds that found something once, with what it was. A seed means the same workload only as long as the workload's
/// draws stay as they are: a change of those takes new seeds from the table of the mutations.
const KEPT: &[(u64, &str)] = &[
    (59, "one step overtook a waiting request more often than the bound allows"),
    (276, "rows of a failed step entered the prefix index (mutation)"),
    (210, "a preemption gained nothing (mutation)"),
    (85, "prompt rows were reported again after a preemption (mutation)"),
    (13, "one failure ended the whole batch (mutation)"),
    (25, "blocks were freed while a step wrote them (mutation)"),
    (5, "the salt was left out of the prefix key (mutation)"),
    (22, "copy on write left an open block out (mutation)"),
];

#[test]
fn random_workloads_keep_every_promise() {
    if let Some(seed) = environment("OCTAVO_SIM_SEED") {
        seeds::run(seed..seed + 1, 1, Duration::MAX);
        return;
    }
    let count = environment("OCTAVO_SIM_SEEDS").unwrap_or(SEEDS);
    let first = environment("OCTAVO_SIM_FIRST").unwrap_or(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = environment("OCTAVO_SIM_THREADS").map_or(cores, |n| n as usize);
    let limit = environment("OCTAVO_SIM_MINUTES").map_or(Duration::MAX, |m| Duration::from_secs(60 * m));
    let start = Instant::now();
    let sum = seeds::run(first..first + count, threads, limit);
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds:.1} s on {threads} threads: {sum:?}");
    if sum.seeds >= 1000 {
        // The workloads are worth something only if they reach the hard paths.
        let reached = |name, value: u64, least: u64| {
            assert!(value * 1000 >= least * sum.seeds, "too few {name}: {value} in {} seeds", sum.seeds);
        };
        reached("preemptions", sum.preemptions, 250);
        reached("copies on write", sum.copies, 250);
        reached("copies of open blocks", sum.open_copies, 125);
        reached("sealed blocks", sum.sealed, 5_000);
        reached("prefix hits", sum.hit_tokens, 5_000);
        reached("evictions", sum.evictions, 5_000);
        reached("overtaken requests", sum.overtaken, 50);
        reached("failures", sum.failed, 50);
        reached("cancellations", sum.cancelled, 250);
        reached("timeouts", sum.timed_out, 250);
        reached("steps planned ahead", sum.ahead, 5_000);
        reached("tokens drawn in vain", sum.in_vain, 250);
        reached("contents replaced under a name", sum.reloads, 500);
        reached("adapters packed", sum.packs, 100);
        reached("requests held for their adapter", sum.holds, 200);
    }
    if let Ok(path) = std::env::var("OCTAVO_SIM_RESULT") {
        write_result(&path, first, seconds, threads, &sum);
    }
}

#[test]
fn seeds_that_found_a_bug_stay_green() {
    for &(seed, what) in KEPT {
        println!("{seed}: {what}");
        seeds::run(seed..seed + 1, 1, Duration::MAX);
    }
}

/// Writes what a long run reached, as JSON. The date is the caller's matter: `OCTAVO_SIM_DATE`.
fn write_result(path: &str, first: u64, seconds: f64, threads: usize, sum: &Sum) {
    let date = std::env::var("OCTAVO_SIM_DATE").unwrap_or_default();
    let command = "OCTAVO_SIM_SEEDS=<count> cargo test -p octavo-scheduler --test simulation random";
    let numbers = [
        ("first_seed", first),
        ("seeds", sum.seeds),
        ("seconds", seconds as u64),
        ("threads", threads as u64),
        ("steps", sum.steps),
        ("tokens", sum.tokens),
        ("preemptions", sum.preemptions),
        ("copies_on_write", sum.copies),
        ("open_copies", sum.open_copies),
        ("sealed_blocks", sum.sealed),
        ("prefix_hit_tokens", sum.hit_tokens),
        ("evictions", sum.evictions),
        ("overtaken", sum.overtaken),
        ("failed", sum.failed),
        ("cancelled", sum.cancelled),
        ("timed_out", sum.timed_out),
        ("planned_ahead", sum.ahead),
        ("drawn_in_vain", sum.in_vain),
        ("reloads", sum.reloads),
        ("adapters_packed", sum.packs),
        ("held", sum.holds),
    ];
    let texts = [("date", date.as_str()), ("command", command), ("result", "every promise kept")];
    let rows = texts.map(|(name, text)| format!("  \"{name}\": \"{text}\"")).into_iter();
    let rows: Vec<_> = rows.chain(numbers.map(|(name, value)| format!("  \"{name}\": {value}"))).collect();
    let text = format!("{{\n{}\n}}\n", rows.join(",\n"));
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
}
