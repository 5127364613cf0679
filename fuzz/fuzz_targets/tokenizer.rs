//! See `targets::tokenizer`.
#![no_main]

#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;

// libFuzzer's hook aborts at every panic, and those inside the tokenizers crate are expected: octavo catches them. One
// that leaves octavo still ends the process.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |data: &[u8]| targets::tokenizer(data));
