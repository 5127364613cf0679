//! Limits of the machine, independent of the kernels: memory reads, and products of int8, bf16 and f32.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;
#[cfg(target_arch = "x86_64")]
use octavo_kernels::amx;

#[cfg(target_arch = "x86_64")]
use super::x86;

/// Bytes to read: more than any cache holds.
const BYTES: usize = 512 << 20;

/// Median and best of several readings, in units per second.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Median of the readings with the best loop.
    pub median: f64,
    /// Best of these readings.
    pub best: f64,
}

/// Limit of one product type.
#[derive(Debug, Clone, Copy)]
pub struct PeakRate {
    /// Operations per second; a multiply and an add count as two.
    pub rate: Rate,
    /// The fastest instruction.
    pub instruction: &'static str,
}

/// The limits of the machine with `threads` threads.
#[derive(Debug, Clone, Copy)]
pub struct MachineLimits {
    /// Number of threads.
    pub threads: usize,
    /// Memory reads in bytes per second.
    pub read: Rate,
    /// None without a supported instruction.
    pub int8: Option<PeakRate>,
    /// The limit of f32 on machines without bf16 products: kernels then widen bf16.
    pub bf16: Option<PeakRate>,
    /// As `int8`.
    pub f32: Option<PeakRate>,
}

impl MachineLimits {
    /// Measures with `readings` readings of each rate.
    ///
    /// # Errors
    /// When the buffer cannot be allocated.
    pub fn measure(threads: usize, readings: usize) -> std::io::Result<MachineLimits> {
        let mut data = MmapMut::map_anon(BYTES)?;
        // Small pages on kernels without huge pages.
        #[cfg(target_os = "linux")]
        let _ = data.advise(Advice::HugePage);
        data.fill(1);
        let compute = |found: Option<Loop>| {
            found.map(|(instruction, operations, run)| {
                let units = operations * threads as f64;
                PeakRate { rate: rate(threads, readings, units, |_| run()), instruction }
            })
        };
        Ok(MachineLimits {
            threads,
            read: read(threads, readings, &data),
            int8: compute(int8_peak()),
            bf16: compute(bf16_peak()),
            f32: compute(f32_peak()),
        })
    }
}

/// Runs `f(thread)` on all threads at once, several times; `units` is the work of all threads together.
fn rate(threads: usize, count: usize, units: f64, f: impl Fn(usize) + Sync) -> Rate {
    let mut readings: Vec<f64> = (0..=count)
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
    Rate { median: readings[count / 2], best: readings[count - 1] }
}

/// The best read rate over several numbers of streams per thread and prefetch distances.
fn read(threads: usize, readings: usize, data: &[u8]) -> Rate {
    let share = data.len() / threads;
    let ways = [1, 2, 4, 8].into_iter().flat_map(|streams| [0, 8, 32, 64].map(|ahead| (streams, ahead)));
    ways.map(|(streams, ahead)| {
        rate(threads, readings, (share * threads) as f64, |thread| {
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

/// Sums all words of `part` in `STREAMS` parallel streams, with a prefetch distance of `ahead` lines.
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

/// Name of the instruction, operations of one run, and the loop.
type Loop = (&'static str, f64, fn());

/// The fastest int8 product of this machine.
fn int8_peak() -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    {
        if amx::available() {
            return Some((
                "amx tdpbsud",
                (x86::TURNS * x86::TILE_CHAINS * x86::TILE_OPERATIONS) as f64,
                x86::int8_amx,
            ));
        }
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has the instruction set.
            return Some(("avx512 vpdpbusd", (x86::TURNS * x86::CHAINS * 128) as f64, || unsafe {
                x86::int8_avx512()
            }));
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return Some(("avx2 vpmaddubsw", (x86::TURNS * x86::CHAINS * 64) as f64, || unsafe {
                x86::int8_avx2()
            }));
        }
    }
    None
}

/// The fastest bf16 product of this machine; f32 on machines without bf16 products.
fn bf16_peak() -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    if amx::available() {
        return Some((
            "amx tdpbf16ps",
            (x86::TURNS * x86::TILE_CHAINS * x86::TILE_OPERATIONS / 2) as f64,
            x86::bf16_amx,
        ));
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the machine has the instruction set.
        return Some(("avx512 vdpbf16ps", (x86::TURNS * x86::CHAINS * 64) as f64, || unsafe {
            x86::bf16_avx512()
        }));
    }
    f32_peak()
}

/// The fastest f32 product of this machine.
fn f32_peak() -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instruction set.
            return Some(("avx512 vfmadd (f32)", (x86::TURNS * x86::CHAINS * 32) as f64, || unsafe {
                x86::f32_avx512()
            }));
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return Some(("avx2 vfmadd (f32)", (x86::TURNS * x86::CHAINS * 16) as f64, || unsafe {
                x86::f32_avx2()
            }));
        }
    }
    None
}
