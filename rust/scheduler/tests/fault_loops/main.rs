//! Exhaustive loops over fixed workloads: one thing goes wrong at each moment in turn, and every promise holds.
//!
//! The moments come from a run in which nothing goes wrong. A promise that breaks panics inside the simulation; a
//! request that had no part in the trouble must still give the answer it gives alone.
#![allow(missing_docs)]

#[path = "../sim/mod.rs"]
mod sim;

use std::ops::Range;

use sim::intervention::Intervention;
use sim::simulation::Simulation;

/// Fixed workloads.
const WORKLOADS: Range<u64> = 0..40;
/// Those of the loop over requests and turns, which has many more moments.
const FEW_WORKLOADS: Range<u64> = 0..3;

/// Names workload and moment when a run panics.
struct Moment(u64, Intervention);

impl Drop for Moment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("workload {}, {:?}", self.0, self.1);
        }
    }
}

/// Runs the workloads with each of the interventions that `moments` makes from a quiet run of it.
fn each(workloads: Range<u64>, moments: impl Fn(&Simulation, u64) -> Vec<Intervention>) {
    let mut runs = 0;
    for workload in workloads {
        let mut quiet = Simulation::new(workload);
        let steps = quiet.run().steps;
        for intervention in moments(&quiet, steps) {
            let _name = Moment(workload, intervention);
            Simulation::with(workload, intervention).run();
            runs += 1;
        }
    }
    println!("{runs} runs");
    assert!(runs >= 500, "the workloads are too small: {runs} runs");
}

#[test]
fn each_request_cancelled_at_each_turn() {
    each(FEW_WORKLOADS, |quiet, _| {
        let turns = 0..quiet.turns;
        let of =
            |turn| quiet.request_ids().into_iter().map(move |request| Intervention::Cancel { request, turn });
        turns.flat_map(of).collect()
    });
}

#[test]
fn all_requests_cancelled_at_each_turn() {
    each(WORKLOADS, |quiet, _| (0..=quiet.turns).map(|turn| Intervention::CancelAll { turn }).collect());
}

#[test]
fn a_sequence_fails_at_each_step() {
    each(WORKLOADS, |_, steps| (1..=steps).map(|step| Intervention::FailSequence { step }).collect());
}

#[test]
fn a_whole_step_fails_at_each_step() {
    each(WORKLOADS, |_, steps| (1..=steps).map(|step| Intervention::FailStep { step }).collect());
}

#[test]
fn drained_at_each_turn() {
    each(WORKLOADS, |quiet, _| (0..=quiet.turns).map(|turn| Intervention::Drain { turn }).collect());
}

#[test]
fn a_consumer_stops_reading_at_each_token() {
    each(WORKLOADS, |quiet, _| (0..quiet.tokens).map(|token| Intervention::StopReading { token }).collect());
}
