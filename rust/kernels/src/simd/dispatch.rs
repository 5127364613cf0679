//! Ops: generic work, compiled once for every instruction set.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::portable::Portable;
use super::vector::Simd;
use crate::context::Kernels;
use crate::isa::Isa;

/// Work that is compiled for every level.
pub(crate) trait Op {
    type Output;
    /// The work. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs `op` on the level of `kernels`.
pub(crate) fn dispatch<O: Op>(kernels: &Kernels, op: O) -> O::Output {
    match kernels.isa() {
        Isa::Portable => op.run(Portable),
        // SAFETY: a `Kernels` value exists only for a level that the machine has.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(op) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { run_avx512(op) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => {
            unreachable!("Kernels::new refuses x86 levels on other machines")
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<O: Op>(op: O) -> O::Output {
    // SAFETY: this function's own features.
    op.run(unsafe { Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn run_avx512<O: Op>(op: O) -> O::Output {
    // SAFETY: this function's own features.
    op.run(unsafe { Avx512::new() })
}
