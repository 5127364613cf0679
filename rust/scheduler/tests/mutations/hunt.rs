//! Runs in the mutated copy of the core: the simulation must catch each mutation. The table names the check that caught it,
//! and the number of seeds.
//!
//! `OCTAVO_MUTATIONS_RESULT=<file>` writes the table as JSON, with the date `OCTAVO_MUTATIONS_DATE`.
#![allow(missing_docs)]

#[path = "../sim/mod.rs"]
mod sim;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_cache::mutation;
use sim::simulation::Simulation;

/// Seeds after which a mutation counts as missed.
const MAX_SEEDS: u64 = 10_000;
/// Seeds that must pass without a mutation.
const CONTROL_SEEDS: u64 = 1_000;

thread_local! {
    /// Panic of this thread's last run: message, and file of the check.
    static CAUGHT_BY: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

struct Catch {
    name: &'static str,
    what: &'static str,
    /// Seeds it took, the catching one included.
    seeds: u64,
    message: String,
    file: String,
}

/// Runs one seed; the check that failed, if one did.
fn broken_promise(seed: u64) -> Option<(String, String)> {
    CAUGHT_BY.set(None);
    match catch_unwind(AssertUnwindSafe(|| Simulation::new(seed).run())) {
        Ok(_) => None,
        Err(_) => Some(CAUGHT_BY.take().unwrap_or_default()),
    }
}

fn hunt(index: usize) -> Option<Catch> {
    let (name, what) = mutation::ALL[index];
    mutation::switch(Some(index));
    let catch = (0..MAX_SEEDS).find_map(|seed| {
        let (message, file) = broken_promise(seed)?;
        Some(Catch { name, what, seeds: seed + 1, message, file })
    });
    mutation::switch(None);
    catch
}

/// Keeps the message of a panic in place of printing it.
fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("").lines().next().unwrap_or("").to_owned();
        let path = info.location().map_or("", |l| l.file());
        let file = path.rsplit('/').next().unwrap_or("").to_owned();
        CAUGHT_BY.set(Some((message, file)));
    }));
}

#[test]
fn every_mutation_is_caught() {
    let default_hook = std::panic::take_hook();
    keep_panics_quiet();
    let control = (0..CONTROL_SEEDS).find_map(|seed| Some((seed, broken_promise(seed)?)));
    let (next, caught) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut index = next.fetch_add(1, Ordering::Relaxed);
                while index < mutation::ALL.len() {
                    // That one is no fault: `each_allocation_fails_once` is for it.
                    if mutation::ALL[index].0 != "AllocationFails" {
                        let catch = hunt(index);
                        caught.lock().expect("no panic while held").push((index, catch));
                    }
                    index = next.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    std::panic::set_hook(default_hook);
    assert_eq!(control, None, "without a mutation every seed passes");

    let mut caught = caught.into_inner().expect("no panic while held");
    caught.sort_by_key(|&(index, _)| index);
    println!("{:<28} {:>6}  {:<16} caught by", "mutation", "seeds", "in");
    for catch in caught.iter().filter_map(|(_, catch)| catch.as_ref()) {
        let Catch { name, seeds, message, file, .. } = catch;
        println!("{:<28} {seeds:>6}  {file:<16} {message}", name);
    }
    let missed = caught.iter().filter(|(_, c)| c.is_none()).map(|&(index, _)| mutation::ALL[index].0);
    let missed: Vec<&str> = missed.collect();
    println!("{} of {} caught", caught.len() - missed.len(), caught.len());
    if let Ok(path) = std::env::var("OCTAVO_MUTATIONS_RESULT") {
        std::fs::write(&path, json(&caught)).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
    assert!(caught.len() >= 20, "there are at least twenty mutations");
    assert!(missed.is_empty(), "{MAX_SEEDS} seeds do not show {missed:?}");
}

fn json(caught: &[(usize, Option<Catch>)]) -> String {
    let date = std::env::var("OCTAVO_MUTATIONS_DATE").unwrap_or_default();
    let rows: Vec<_> = caught.iter().filter_map(|(_, catch)| catch.as_ref()).map(row).collect();
    format!(
        "{{\n  \"date\": \"{date}\",\n  \"command\": \"cargo test -p octavo-scheduler --test mutations -- \
         --ignored\",\n  \"mutations\": {},\n  \"caught\": {},\n  \"rows\": [\n{}\n  ]\n}}\n",
        caught.len(),
        rows.len(),
        rows.join(",\n"),
    )
}

fn row(catch: &Catch) -> String {
    let text = |s: &str| format!("\"{}\"", s.trim().replace('\\', "\\\\").replace('"', "\\\""));
    format!(
        "    {{\"mutation\": \"{}\", \"what\": {}, \"seeds\": {}, \"caught_by\": {}}}",
        catch.name,
        text(catch.what),
        catch.seeds,
        text(&catch.message)
    )
}

/// An allocation that is denied once, though there are blocks, delays a sequence and changes no answer.
#[test]
fn each_allocation_fails_once() {
    let mut runs = 0;
    for workload in 0..40 {
        for k in 0.. {
            let mut simulation = Simulation::new(workload);
            simulation.allocation_failed = Some(mutation::take_allocation_failure);
            mutation::fail_allocation(Some(k));
            simulation.run();
            mutation::fail_allocation(None);
            if !simulation.denied {
                break;
            }
            runs += 1;
        }
    }
    println!("{runs} runs");
    assert!(runs >= 500, "the workloads are too small: {runs} runs");
}
