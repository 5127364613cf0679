//! Counts weights that are NaN or infinite while they are loaded: the mark of a damaged or overflowed checkpoint.
//!
//! Such a model loads, with a warning for each tensor. The pass reads the pages that packing reads next.

use std::sync::atomic::{AtomicUsize, Ordering};

use octavo_kernels::ThreadPool;

use crate::spec::Dtype;

/// Bytes of one task.
const PART_BYTES: usize = 1 << 20;
/// Bytes of one run, which is counted only if it has a non-finite value.
const RUN_BYTES: usize = 4096;
/// Maximum number of tensors that are named; the rest is counted.
const MAX_NAMED: usize = 8;

/// Tensors found with values that are not finite.
#[derive(Default)]
pub(crate) struct NonFinite {
    found: Vec<(String, usize)>,
}

impl NonFinite {
    /// Counts the non-finite values of the tensor `name`. Calls `taken` with bytes that have been read.
    pub fn scan(
        &mut self,
        pool: &ThreadPool,
        name: &str,
        dtype: Dtype,
        data: &[u8],
        taken: &(dyn Fn(&[u8]) + Sync),
    ) {
        let count = AtomicUsize::new(0);
        let parts: Vec<&[u8]> = data.chunks(PART_BYTES).collect();
        pool.run(parts.len(), &|i| {
            count.fetch_add(not_finite(parts[i], dtype), Ordering::Relaxed);
            taken(parts[i]);
        });
        if count.load(Ordering::Relaxed) > 0 {
            self.found.push((name.to_string(), count.into_inner()));
        }
    }

    /// One sentence for each tensor, up to a limit.
    pub fn warnings(self) -> Vec<String> {
        let more = self.found.len().saturating_sub(MAX_NAMED);
        let named = self.found.iter().take(MAX_NAMED).map(|(name, count)| {
            format!(
                "tensor {name} has {count} values that are NaN or infinite: outputs may be wrong. Download or convert \
                 the model again"
            )
        });
        named.chain((more > 0).then(|| format!("{more} more tensors have such values"))).collect()
    }
}

/// Number of values whose exponent bits are all set: infinities and NaN.
pub(crate) fn not_finite(data: &[u8], dtype: Dtype) -> usize {
    match dtype {
        Dtype::Float32 => count(data, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::Bfloat16 => count(data, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::Float16 => count(data, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
    }
}

/// Counts elements of N bytes. A run without any is passed over by a loop without branches.
fn count<const N: usize>(data: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> usize {
    let runs = data.chunks(RUN_BYTES).map(|run| run.as_chunks::<N>().0);
    let damaged = runs.filter(|run| run.iter().fold(false, |any, b| any | is_bad(*b)));
    damaged.map(|run| run.iter().filter(|b| is_bad(**b)).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_odd_value_is_counted_wherever_it_stands() {
        let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let fine = [f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE, 65504.0, 1e-40];
        for length in [1, 1023, 1024, 1025, 5000] {
            for at in [0, length / 2, length - 1] {
                for value in odd {
                    let mut values: Vec<f32> = fine.iter().cycle().take(length).copied().collect();
                    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
                    assert_eq!(not_finite(&bytes(&values), Dtype::Float32), 0);
                    values[at] = value;
                    assert_eq!(not_finite(&bytes(&values), Dtype::Float32), 1);
                    let bf16 = |x: &f32| half::bf16::from_bits((x.to_bits() >> 16) as u16).to_le_bytes();
                    let bytes = values.iter().flat_map(bf16).collect::<Vec<_>>();
                    assert_eq!(not_finite(&bytes, Dtype::Bfloat16), 1);
                    let f16 = |x: &f32| half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_le_bytes();
                    let small = values.iter().map(|x| if x.is_finite() { *x } else { f32::NAN });
                    let bytes = small.flat_map(|x| f16(&x)).collect::<Vec<_>>();
                    assert_eq!(not_finite(&bytes, Dtype::Float16), 1);
                }
            }
        }
    }
}
