//! Many threads load, reload and unload adapters while others use them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::adapters::mock::{MockAnswer, answer, expected, mock_engine, with};
use crate::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A small generator: a round of its own for each thread.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*state >> 33) % below
}

/// Whether an answer is right for one of the contents that its name may have had.
fn check(name: usize, prompt: &str, count: usize, got: &MockAnswer) {
    assert_eq!(got.error, None);
    let contents = (0..4).map(|content| (name as u64 + 1) * 100 + content);
    let right = contents.map(|number| expected(prompt, number, count)).any(|text| text == got.texts[0]);
    assert!(right, "{prompt} with {}: {:?}", NAMES[name], got.texts);
}

#[test]
fn loads_and_requests_from_many_threads() {
    // Two of three adapters fit.
    let (engine, seen, folders) =
        mock_engine(|l| (l.max_lora_memory, l.max_loras, l.max_queue) = (850, 2, 64));
    // Each content lies in a folder of its own: files do not change below a registration.
    let folder = |index: usize, content: u64| {
        let number = (index as u64 + 1) * 100 + content;
        folders.write(&number.to_string(), number, 400)
    };
    let written: Vec<Vec<_>> = (0..3).map(|index| (0..4).map(|c| folder(index, c)).collect()).collect();
    std::thread::scope(|scope| {
        for (index, name) in NAMES.into_iter().enumerate() {
            let (engine, written) = (&engine, &written[index]);
            scope.spawn(move || {
                let mut state = index as u64 + 1;
                for round in 0..120 {
                    let folder = &written[draw(&mut state, 4) as usize];
                    engine.load_adapter(name, folder, None).expect("loaded");
                    if round % 7 == 6 {
                        engine.unload_adapter(name).expect("unloaded");
                    }
                    std::thread::sleep(Duration::from_micros(draw(&mut state, 500)));
                }
            });
        }
        for thread in 0..3u64 {
            let engine = &engine;
            scope.spawn(move || {
                let mut state = 77 + thread;
                for _ in 0..80 {
                    let (name, count) = (draw(&mut state, 3) as usize, draw(&mut state, 9) as u32 + 1);
                    let prompt = format!("prompt {}", draw(&mut state, 3));
                    let params = with(NAMES[name], count);
                    match engine.submit(Prompt::Text(prompt.clone(), true), &params) {
                        Ok(stream) if draw(&mut state, 5) == 0 => stream.cancel(),
                        Ok(stream) => check(name, &prompt, count as usize, &answer(&stream)),
                        Err(EngineError::AdapterNotFound(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    for name in NAMES {
        let _ = engine.unload_adapter(name);
    }
    for _ in 0..60_000 {
        let stats = engine.adapter_stats();
        if seen.alive.load(Ordering::SeqCst) == 0 && stats.running.is_empty() && stats.waiting.is_empty() {
            assert_eq!((stats.resident_bytes, engine.stats().blocks_live), (0, 0));
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("adapters stay: {:?}, {} packed", engine.adapter_stats(), seen.alive.load(Ordering::SeqCst));
}
