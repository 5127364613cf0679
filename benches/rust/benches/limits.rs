//! Limits of the machine: memory reads, int8 products, bf16 products.
//!
//! `cargo bench -p octavo-bench --bench limits` prints one JSON object: bytes or operations per second with one
//! thread and with all (`-- --threads N` for another number). Each rate has the median and the best of several readings
//! with the best loop. benches/compare divides by these rates.

use octavo_bench::{MachineLimits, PeakRate, Rate};

const READINGS: usize = 9;

fn json(rate: Option<Rate>) -> String {
    rate.map_or("null".into(), |r| format!("{{\"median\": {:.4e}, \"best\": {:.4e}}}", r.median, r.best))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // `cargo test --benches` passes other flags; only a real bench run measures.
    if !arguments.iter().any(|flag| flag == "--bench") {
        return;
    }
    let given = arguments.iter().position(|flag| flag == "--threads").and_then(|i| arguments.get(i + 1));
    let all =
        given.map_or_else(octavo_kernels::default_threads, |n| n.parse().expect("--threads takes a number"));
    let measure = |threads| MachineLimits::measure(threads, READINGS).expect("memory for the buffer");
    let (many, one) = (measure(all), measure(1));
    let rate = |peak: Option<PeakRate>| json(peak.map(|p| p.rate));
    let name = |peak: Option<PeakRate>| peak.map_or("none", |p| p.instruction);
    println!(
        "{{\"threads\": {all}, \"read\": {}, \"read_one_thread\": {}, \"int8\": {}, \"int8_one_thread\": {}, \
         \"int8_instruction\": \"{}\", \"bf16\": {}, \"bf16_one_thread\": {}, \"bf16_instruction\": \"{}\"}}",
        json(Some(many.read)),
        json(Some(one.read)),
        rate(many.int8),
        rate(one.int8),
        name(many.int8),
        rate(many.bf16),
        rate(one.bf16),
        name(many.bf16),
    );
}
