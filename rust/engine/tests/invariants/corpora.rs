//! The seed corpora of the fuzz targets, and random mutations of them, through the same functions that the fuzzer calls.

use std::path::Path;

use crate::random::Random;
use crate::targets;

/// Pieces that mean something to one of the formats.
const WORDS: [&[u8]; 14] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b":",
    b"null",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"{%",
    b"%}",
    b"{{",
    b"\xff",
];

/// A change or a few of `seed`.
fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(out.len() as u64 + 1) as usize;
        let end = (at + random.below(16) as usize).min(out.len());
        match random.below(6) {
            0 => out.truncate(at),
            1 => drop(out.drain(at..end)),
            2 if at < out.len() => out[at] ^= 1 << random.below(8),
            3 if at < out.len() => out[at] = random.next() as u8,
            4 => {
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            _ => {
                let word = WORDS[random.below(WORDS.len() as u64) as usize];
                out.splice(at..at, word.iter().copied());
            }
        }
    }
    out
}

fn run(name: &str, mutations: u64, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("corpus").map(|f| f.expect("file").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{name}: {} seeds", files.len());
    let mut random = Random(23);
    for file in &files {
        let seed = std::fs::read(file).expect("seed");
        target(&seed);
        for round in 0..mutations / files.len() as u64 {
            let input = mutated(&seed, &mut random);
            let caught = std::panic::catch_unwind(|| target(&input));
            assert!(
                caught.is_ok(),
                "{} mutation {round}: {:?}",
                file.display(),
                String::from_utf8_lossy(&input)
            );
        }
    }
}

#[test]
fn safetensors() {
    run("safetensors", 5000, targets::safetensors);
}

#[test]
fn index() {
    run("index", 5000, targets::index);
}

#[test]
fn config() {
    run("config", 5000, targets::config);
}

#[test]
fn adapter() {
    run("adapter", 3000, targets::adapter);
}

#[test]
fn tokenizer() {
    run("tokenizer", 3000, targets::tokenizer);
}

#[test]
fn template() {
    // Some seeds use all of the steps that a template may take.
    run("template", 500, targets::template);
}
