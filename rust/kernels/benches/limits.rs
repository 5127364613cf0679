//! What this machine allows, whatever the software: memory reads, int8 products, bfloat16 products.
//!
//! `cargo bench -p octavo-kernels --bench limits` prints one JSON object: bytes or operations a second with one thread
//! and with all (`-- --threads N` for another number). A rate is the median of several readings in the best
//! way found, and the best reading stands beside it. benches/compare divides by these.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use memmap2::{Advice, MmapMut};

/// Far more than any cache holds.
const BYTES: usize = 512 << 20;
/// Bytes of a cache line, and of an AVX-512 register.
const LINE: usize = 64;
const READINGS: usize = 9;
/// Turns of the inner loops that only compute: some milliseconds.
const TURNS: usize = 1 << 20;

/// Median and best of some readings, in units a second.
struct Rate {
    median: f64,
    best: f64,
}

/// Runs `f(thread)` on all threads at once, several times; `units` is the work of all threads together.
fn rate(threads: usize, units: f64, f: impl Fn(usize) + Sync) -> Rate {
    let mut readings: Vec<f64> = (0..=READINGS)
        .map(|_| {
            let barrier = Barrier::new(threads);
            let seconds = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads)
                    .map(|thread| {
                        let (f, barrier) = (&f, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            let start = Instant::now();
                            f(thread);
                            start.elapsed().as_secs_f64()
                        })
                    })
                    .collect();
                workers.into_iter().map(|w| w.join().expect("the loop does not panic")).fold(0.0, f64::max)
            });
            units / seconds
        })
        .skip(1) // The first warms up.
        .collect();
    readings.sort_by(f64::total_cmp);
    Rate { median: readings[READINGS / 2], best: readings[READINGS - 1] }
}

/// The best way to read memory with so many threads: streams a thread, and lines that are asked for ahead.
fn read(threads: usize, data: &[u8]) -> Rate {
    let share = data.len() / threads;
    let ways = [1, 2, 4, 8].into_iter().flat_map(|streams| [0, 8, 32, 64].map(|ahead| (streams, ahead)));
    ways.map(|(streams, ahead)| {
        rate(threads, (share * threads) as f64, |thread| {
            let part = &data[thread * share..(thread + 1) * share];
            match streams {
                1 => black_box(read_streams::<1>(part, ahead)),
                2 => black_box(read_streams::<2>(part, ahead)),
                4 => black_box(read_streams::<4>(part, ahead)),
                _ => black_box(read_streams::<8>(part, ahead)),
            };
        })
    })
    .max_by(|a, b| a.median.total_cmp(&b.median))
    .expect("there are ways")
}

/// Sums all words of `part`, in `STREAMS` equal pieces side by side, prefetching `ahead` lines.
fn read_streams<const STREAMS: usize>(part: &[u8], ahead: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has the instruction set.
        return unsafe { x86::read_avx512::<STREAMS>(part, ahead) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: as above.
        return unsafe { x86::read_avx2::<STREAMS>(part, ahead) };
    }
    let _ = ahead;
    let words = part.as_chunks::<8>().0;
    words.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_ne_bytes(*word)))
}

/// Name of the instructions, operations of one turn, and the loop of [`TURNS`] turns.
type Peak = (&'static str, f64, fn());

/// The fastest int8 product of this machine.
fn int8_peak() -> Option<Peak> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has the instruction set.
            return Some(("avx512 vpdpbusd", x86::CHAINS as f64 * 128.0, || unsafe { x86::int8_avx512() }));
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return Some(("avx2 vpmaddubsw", x86::CHAINS as f64 * 64.0, || unsafe { x86::int8_avx2() }));
        }
    }
    None
}

/// The fastest bfloat16 product of this machine; float32 where it has none, since bfloat16 is then widened.
fn bf16_peak() -> Option<Peak> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the machine has the instruction set.
            return Some(("avx512 vdpbf16ps", x86::CHAINS as f64 * 64.0, || unsafe { x86::bf16_avx512() }));
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            return Some(("avx512 vfmadd (f32)", x86::CHAINS as f64 * 32.0, || unsafe { x86::f32_avx512() }));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return Some(("avx2 vfmadd (f32)", x86::CHAINS as f64 * 16.0, || unsafe { x86::f32_avx2() }));
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::mem::transmute;

    use super::{LINE, TURNS};

    /// Independent sums: more than latency times issue width, fewer than registers.
    pub const CHAINS: usize = 12;

    /// 1.0 in bfloat16.
    const ONE: i16 = 0x3f80;

    /// Asks for the line `ahead` lines after `line`.
    #[inline(always)]
    fn prefetch(line: *const u8, ahead: usize) {
        if ahead > 0 {
            // SAFETY: a prefetch of any address is harmless, and the address is only computed.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(ahead * LINE).cast()) };
        }
    }

    #[target_feature(enable = "avx512f")]
    pub fn read_avx512<const STREAMS: usize>(part: &[u8], ahead: usize) -> u64 {
        let piece = part.len() / STREAMS / LINE * LINE;
        let mut sums = [_mm512_setzero_si512(); STREAMS];
        for offset in (0..piece).step_by(LINE) {
            for (stream, sum) in sums.iter_mut().enumerate() {
                // SAFETY: offset + LINE <= piece, and STREAMS pieces fit into the part.
                let line = unsafe { part.as_ptr().add(stream * piece + offset) };
                prefetch(line, ahead);
                // SAFETY: as above; the load needs no alignment.
                *sum = _mm512_add_epi64(*sum, unsafe { _mm512_loadu_si512(line.cast()) });
            }
        }
        sums.iter().fold(0, |all: u64, &sum| all.wrapping_add(_mm512_reduce_add_epi64(sum) as u64))
    }

    #[target_feature(enable = "avx2")]
    pub fn read_avx2<const STREAMS: usize>(part: &[u8], ahead: usize) -> u64 {
        let piece = part.len() / STREAMS / LINE * LINE;
        let mut sums = [_mm256_setzero_si256(); STREAMS];
        for offset in (0..piece).step_by(LINE) {
            for (stream, sum) in sums.iter_mut().enumerate() {
                // SAFETY: offset + LINE <= piece, and STREAMS pieces fit into the part.
                let line = unsafe { part.as_ptr().add(stream * piece + offset) };
                prefetch(line, ahead);
                // SAFETY: as above; the loads need no alignment and cover one line.
                let (low, high) =
                    unsafe { (_mm256_loadu_si256(line.cast()), _mm256_loadu_si256(line.add(32).cast())) };
                *sum = _mm256_add_epi64(*sum, _mm256_add_epi64(low, high));
            }
        }
        let all = sums.iter().fold(_mm256_setzero_si256(), |all, &sum| _mm256_add_epi64(all, sum));
        _mm256_extract_epi64::<0>(all) as u64
    }

    /// A function that runs [`CHAINS`] chains of one instruction from registers, [`TURNS`] times.
    macro_rules! chains {
        ($name:ident, $features:literal, $zero:expr, $operand:expr, $step:expr) => {
            #[target_feature(enable = $features)]
            pub fn $name() {
                let mut sums = [$zero; CHAINS];
                let (a, b) = (black_box($operand), black_box($operand));
                for _ in 0..TURNS {
                    for sum in &mut sums {
                        *sum = $step(*sum, a, b);
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(int8_avx512, "avx512f,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi8(1), |sum, a, b| {
        _mm512_dpbusd_epi32(sum, a, b)
    });
    chains!(int8_avx2, "avx2", _mm256_setzero_si256(), _mm256_set1_epi8(1), |sum, a, b| {
        // As a kernel must: products of pairs in 16 bits, widened to 32 and added. The exclusive-or, cheap beside the
        // rest, keeps the products inside the loop.
        let pairs = _mm256_maddubs_epi16(a, _mm256_xor_si256(b, sum));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, a))
    });
    chains!(bf16_avx512, "avx512f,avx512bf16", _mm512_setzero_ps(), _mm512_set1_epi16(ONE), |sum, a, b| {
        // SAFETY: both types are 512 bits, and any bits are bfloat16 numbers.
        let (a, b) = unsafe { (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) };
        _mm512_dpbf16_ps(sum, a, b)
    });
    chains!(f32_avx512, "avx512f", _mm512_setzero_ps(), _mm512_set1_ps(1.0), |sum, a, b| _mm512_fmadd_ps(
        a, b, sum
    ));
    chains!(f32_avx2, "avx2,fma", _mm256_setzero_ps(), _mm256_set1_ps(1.0), |sum, a, b| _mm256_fmadd_ps(
        a, b, sum
    ));
}

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

    let mut data = MmapMut::map_anon(BYTES).expect("memory for the buffer");
    // Where the kernel refuses, small pages serve.
    #[cfg(target_os = "linux")]
    let _ = data.advise(Advice::HugePage);
    data.fill(1);

    let compute = |threads: usize, peak: &Option<Peak>| {
        peak.map(|(_, per_turn, run)| rate(threads, per_turn * (TURNS * threads) as f64, |_| run()))
    };
    let (int8, bf16) = (int8_peak(), bf16_peak());
    let name = |peak: &Option<Peak>| peak.map_or("none", |(name, ..)| name);
    println!(
        "{{\"threads\": {all}, \"read\": {}, \"read_one_thread\": {}, \"int8\": {}, \"int8_one_thread\": {}, \
         \"int8_instruction\": \"{}\", \"bf16\": {}, \"bf16_one_thread\": {}, \"bf16_instruction\": \"{}\"}}",
        json(Some(read(all, &data))),
        json(Some(read(1, &data))),
        json(compute(all, &int8)),
        json(compute(1, &int8)),
        name(&int8),
        json(compute(all, &bf16)),
        json(compute(1, &bf16)),
        name(&bf16),
    );
}
