//! Each planted fault must be found by the simulation; the table tells by which check and after how many seeds.
//!
//! `cargo test -p octavo-scheduler --features planted-faults --test bug_zoo -- --nocapture` prints the table;
//! `OCTAVO_ZOO_RESULT=<file>` writes it as JSON.
#![allow(missing_docs)]

#[path = "../sim/mod.rs"]
mod sim;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_cache::faults::{Fault, plant};
use sim::simulation::Simulation;

/// Seeds after which a fault counts as missed.
const MOST_SEEDS: u64 = 10_000;
/// Seeds that must pass with no fault planted, or "caught" would mean nothing.
const CONTROL_SEEDS: u64 = 1_000;

thread_local! {
    /// The panic of this thread's last run: message, and file of the check.
    static CAUGHT_BY: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

struct Catch {
    fault: Fault,
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

fn hunt(fault: Fault, what: &'static str) -> Option<Catch> {
    plant(Some(fault));
    let catch = (0..MOST_SEEDS).find_map(|seed| {
        let (message, file) = broken_promise(seed)?;
        Some(Catch { fault, what, seeds: seed + 1, message, file })
    });
    plant(None);
    catch
}

/// Panics are the expected thing here: keep what they say, print nothing.
fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("").lines().next().unwrap_or("").to_owned();
        let path = info.location().map_or("", |l| l.file());
        let file = path.rsplit('/').next().unwrap_or("").to_owned();
        CAUGHT_BY.set(Some((message, file)));
    }));
}

#[test]
fn every_planted_fault_is_caught() {
    let default_hook = std::panic::take_hook();
    keep_panics_quiet();
    let control = (0..CONTROL_SEEDS).find_map(|seed| Some((seed, broken_promise(seed)?)));
    let (next, caught) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(fault, what)) = Fault::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let catch = hunt(fault, what);
                    caught.lock().expect("no panic while held").push((fault, catch));
                }
            });
        }
    });
    std::panic::set_hook(default_hook);
    assert_eq!(control, None, "without a fault every seed passes");

    let mut caught = caught.into_inner().expect("no panic while held");
    caught.sort_by_key(|&(fault, _)| fault);
    println!("{:<28} {:>6}  {:<16} caught by", "planted fault", "seeds", "in");
    for catch in caught.iter().filter_map(|(_, catch)| catch.as_ref()) {
        let Catch { fault, seeds, message, file, .. } = catch;
        println!("{:<28} {seeds:>6}  {file:<16} {message}", format!("{fault:?}"));
    }
    let missed: Vec<_> = caught.iter().filter(|(_, c)| c.is_none()).map(|&(fault, _)| fault).collect();
    println!("{} of {} caught", caught.len() - missed.len(), caught.len());
    if let Ok(path) = std::env::var("OCTAVO_ZOO_RESULT") {
        std::fs::write(&path, json(&caught)).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
    assert!(caught.len() >= 20, "the zoo has at least twenty animals");
    assert_eq!(missed, [], "faults that {MOST_SEEDS} seeds do not show");
}

fn json(caught: &[(Fault, Option<Catch>)]) -> String {
    let date = std::env::var("OCTAVO_ZOO_DATE").unwrap_or_default();
    let rows: Vec<_> = caught.iter().filter_map(|(_, catch)| catch.as_ref()).map(row).collect();
    format!(
        "{{\n  \"date\": \"{date}\",\n  \"command\": \"cargo test -p octavo-scheduler --features planted-faults --test \
         bug_zoo\",\n  \"planted\": {},\n  \"caught\": {},\n  \"faults\": [\n{}\n  ]\n}}\n",
        caught.len(),
        rows.len(),
        rows.join(",\n"),
    )
}

fn row(catch: &Catch) -> String {
    let text = |s: &str| format!("\"{}\"", s.trim().replace('\\', "\\\\").replace('"', "\\\""));
    format!(
        "    {{\"fault\": \"{:?}\", \"what\": {}, \"seeds\": {}, \"caught_by\": {}}}",
        catch.fault,
        text(catch.what),
        catch.seeds,
        text(&catch.message)
    )
}
