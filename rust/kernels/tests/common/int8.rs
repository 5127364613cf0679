//! The int8 form of KV blocks, written plainly: what its dequantised keys and values are.
#![allow(dead_code)] // Each test file uses its part.

use octavo_kernels::BLOCK_SIZE;

/// The next bf16 below, or x: cutting bits off goes towards zero.
fn down(x: f32) -> f32 {
    let cut = f32::from_bits(x.to_bits() & 0xffff_0000);
    if cut <= x { cut } else { f32::from_bits(cut.to_bits() + 0x1_0000) }
}

fn up(x: f32) -> f32 {
    -down(-x)
}

/// Keys `[len, width]`: a range per channel and whole block.
pub fn keys(k: &[f32], width: usize) -> Vec<f32> {
    let mut out = k.to_vec();
    for block in 0..k.len() / width / BLOCK_SIZE {
        for channel in 0..width {
            let places = || (0..BLOCK_SIZE).map(|t| (block * BLOCK_SIZE + t) * width + channel);
            let lo = down(places().map(|i| k[i]).fold(f32::INFINITY, f32::min));
            let hi = places().map(|i| k[i]).fold(f32::NEG_INFINITY, f32::max);
            let step = up((0.5 * hi - 0.5 * lo) / 127.5);
            for i in places() {
                let code = ((0.5 * k[i] - 0.5 * lo) / (0.5 * step)).clamp(0.0, 255.0).round_ties_even();
                out[i] = lo + step * if step > 0.0 { code } else { 0.0 };
            }
        }
    }
    out
}

/// Values `[.., head_dim]`: a scale per token and head.
pub fn values(v: &[f32], head_dim: usize) -> Vec<f32> {
    let rows = v.chunks(head_dim).map(|row| {
        let scale = up(row.iter().fold(0.0_f32, |a, x| a.max(x.abs())) / 127.0);
        row.iter().map(|x| scale * (x / scale).round_ties_even()).collect::<Vec<f32>>()
    });
    rows.flatten().collect()
}
