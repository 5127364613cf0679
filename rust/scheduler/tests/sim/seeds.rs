//! Runs of many seeds: in parallel, with the failing seed named.

use std::sync::atomic::{AtomicU64, Ordering};

use octavo_scheduler::SchedulerStats;

use super::simulation::Simulation;

/// Names the seed when a run panics.
pub struct NamedSeed(pub u64);

impl Drop for NamedSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "replay: OCTAVO_SIM_SEED={} cargo test -p octavo-scheduler --test simulation random",
                self.0
            );
        }
    }
}

/// What many runs did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    pub seeds: u64,
    pub steps: u64,
    pub tokens: u64,
    pub preemptions: u64,
    pub copies: u64,
    pub open_copies: u64,
    pub sealed: u64,
    pub hit_tokens: u64,
    pub evictions: u64,
    pub overtaken: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    pub ahead: u64,
    pub in_vain: u64,
    pub reloads: u64,
    pub packs: u64,
    pub holds: u64,
}

impl Sum {
    pub fn add(&mut self, stats: &SchedulerStats, simulation: &Simulation) {
        self.seeds += 1;
        self.steps += stats.steps;
        self.tokens += stats.decoded_tokens;
        self.preemptions += stats.preemptions;
        self.copies += simulation.copies;
        self.open_copies += simulation.open_copies;
        self.sealed += simulation.sealed;
        self.hit_tokens += stats.cache.hit_tokens;
        self.evictions += stats.cache.evictions;
        self.overtaken += simulation.overtaken();
        let [failed, cancelled, timed_out] = simulation.ends();
        self.failed += failed;
        self.cancelled += cancelled;
        self.timed_out += timed_out;
        self.ahead += simulation.ahead;
        self.in_vain += simulation.in_vain;
        if let Some(adapters) = &simulation.adapters {
            self.reloads += adapters.reloads;
            self.packs += adapters.packs;
            self.holds += adapters.holds;
        }
    }

    pub fn join(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.preemptions += other.preemptions;
        self.copies += other.copies;
        self.open_copies += other.open_copies;
        self.sealed += other.sealed;
        self.hit_tokens += other.hit_tokens;
        self.evictions += other.evictions;
        self.overtaken += other.overtaken;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.timed_out += other.timed_out;
        self.ahead += other.ahead;
        self.in_vain += other.in_vain;
        self.reloads += other.reloads;
        self.packs += other.packs;
        self.holds += other.holds;
    }
}

/// Runs all seeds of a range on `threads` threads, every tenth one twice, and stops after `limit`.
///
/// A seed whose promise breaks panics, and so does this.
pub fn run(seeds: std::ops::Range<u64>, threads: usize, limit: std::time::Duration) -> Sum {
    let start = std::time::Instant::now();
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut sum = Sum::default();
        while start.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let _name = NamedSeed(seed);
            let mut simulation = Simulation::new(seed);
            let twice = seed.is_multiple_of(10);
            simulation.record = twice;
            let stats = simulation.run();
            if twice {
                let mut again = Simulation::new(seed);
                again.record = true;
                again.run();
                assert!(simulation.log == again.log, "the same events gave other actions");
            }
            sum.add(&stats, &simulation);
        }
        sum
    };
    let mut sum = Sum::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => sum.join(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    sum
}

/// A number from an environment variable.
pub fn environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}
