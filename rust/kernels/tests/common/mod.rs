//! Helpers of the kernel tests: random numbers, contexts, comparison, and one test per instruction set.
#![allow(dead_code)] // Each test file uses its part.

pub mod int8;

use octavo_kernels::{Isa, Kernels};

/// splitmix64: the seed replays the test.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

pub fn kernels(isa: Isa, threads: usize) -> Kernels {
    Kernels::new(threads, Some(isa)).unwrap()
}

/// Every level of this machine with 1, 2 and 3 threads.
pub fn every_context() -> Vec<Kernels> {
    Isa::available().into_iter().flat_map(|isa| (1..=3).map(move |threads| kernels(isa, threads))).collect()
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Fails unless |got - want| <= tolerance * (|want| + scale of the row) everywhere.
pub fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (place, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        let bound = tolerance * (want.abs() + rms);
        assert!(error <= bound, "{what}: place {place}: got {got}, want {want}, error {error:e} > {bound:e}");
    }
}

/// Runs `fn name(isa: Isa)` once per instruction set; a level that the machine lacks is named and skipped.
#[macro_export]
macro_rules! on_each_isa {
    ($($name:ident),+ $(,)?) => {
        $crate::on_each_isa!(@level portable, Portable, $($name),+);
        $crate::on_each_isa!(@level avx2, Avx2, $($name),+);
        $crate::on_each_isa!(@level avx512, Avx512, $($name),+);
        $crate::on_each_isa!(@level amx, Amx, $($name),+);
    };
    (@level $level:ident, $isa:ident, $($name:ident),+) => {
        mod $level {
            $(#[test]
            fn $name() {
                let isa = octavo_kernels::Isa::$isa;
                if isa.is_available() {
                    super::$name(isa);
                } else {
                    eprintln!("skipped: this machine lacks {isa}");
                }
            })+
        }
    };
}
