//! A mixture of experts: each row goes to the experts that its router scores highest.
//!
//! Rows are grouped by expert: a step reads an expert's weights once. A row adds the outputs of its experts in order of
//! their index. Its bits do not depend on the experts of other rows.

use octavo_kernels as k;
use octavo_kernels::{Kernels, LoraRows, QuantizedRows};

use super::adapters::AtSite;
use super::batch::Batch;
use super::mlp::{Between, gated};
use super::model::Model;
use super::scratch::{MoeBuffers, Scratch, take};
use crate::adapter::Site;
use crate::spec::{MoeSpec, Scoring};
use crate::weights::{LayerWeights, MoeWeights};

impl Model {
    /// x += sum of the rows' experts(norm(x)); norms stand where the spec places them.
    pub(super) fn experts(
        &self,
        kernels: &Kernels,
        moe: &MoeSpec,
        layer: &LayerWeights,
        weights: &MoeWeights,
        batch: &Batch<'_>,
        s: &mut Scratch,
    ) {
        let (rows, hidden) = (batch.tokens.len(), self.spec.hidden);
        let at = |site| AtSite::new(batch.adapters, layer.index, site);
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let block_out = take(&mut s.block_out, rows * hidden);
        let input = self.mlp_input(kernels, layer.mlp_norm.as_deref(), x, normed);
        let b = &mut s.moe;
        route(kernels, moe, weights, input, rows, b, &mut s.projection.quantized);
        block_out.fill(0.0);
        for (expert, chosen) in weights.experts.iter().zip(&b.chosen) {
            if chosen.is_empty() {
                continue;
            }
            let gathered = take(&mut b.gathered, chosen.len() * hidden);
            let out = take(&mut b.expert_out, chosen.len() * hidden);
            for (to, &(row, _)) in gathered.chunks_exact_mut(hidden).zip(chosen) {
                to.copy_from_slice(&input[row as usize * hidden..][..hidden]);
            }
            let buffers = Between {
                gate_up: &mut s.qkv_gate_up,
                intermediate: &mut s.intermediate,
                projection: &mut s.projection,
                next: &mut s.activated,
            };
            let none = [AtSite::none(); 2];
            gated(kernels, (moe.intermediate, moe.activation), expert, gathered, out, none, buffers);
            for (out, &(row, weight)) in out.chunks_exact(hidden).zip(chosen) {
                add_weighted(&mut block_out[row as usize * hidden..][..hidden], out, weight);
            }
        }
        if let (Some((shared, gate)), Some(spec)) = (&weights.shared, &moe.shared) {
            let out = take(&mut b.expert_out, rows * hidden);
            let buffers = Between {
                gate_up: &mut s.qkv_gate_up,
                intermediate: &mut s.intermediate,
                projection: &mut s.projection,
                next: &mut s.activated,
            };
            let both = [Site::SharedGateUp, Site::SharedDown].map(at);
            gated(kernels, (spec.intermediate, moe.activation), shared, input, out, both, buffers);
            let gates = take(&mut b.scores, rows);
            gates.fill(1.0);
            if let Some(gate) = gate {
                let b = &mut s.projection;
                let adapters = LoraRows { runs: &at(Site::SharedGate).runs(), h: &mut b.low_rank };
                k::forward_lora(kernels, gate, input, None, adapters, gates, &mut b.quantized);
                k::sigmoid(kernels, gates);
            }
            for ((to, out), &gate) in
                block_out.chunks_exact_mut(hidden).zip(out.chunks_exact(hidden)).zip(&*gates)
            {
                add_weighted(to, out, gate);
            }
        }
        self.add_block_out(kernels, layer.mlp_post_norm.as_deref(), block_out, x);
    }
}

/// Fills `b.chosen`: for each expert the rows that use it, with their weights.
fn route(
    kernels: &Kernels,
    moe: &MoeSpec,
    weights: &MoeWeights,
    input: &[f32],
    rows: usize,
    b: &mut MoeBuffers,
    quantized: &mut QuantizedRows,
) {
    let scores = take(&mut b.scores, rows * moe.experts);
    weights.router.forward(kernels, input, rows, None, scores, quantized);
    match moe.scoring {
        Scoring::Softmax => k::softmax(kernels, scores, moe.experts),
        Scoring::Sigmoid => k::sigmoid(kernels, scores),
    }
    b.chosen.resize_with(moe.experts.max(b.chosen.len()), Vec::new);
    b.chosen.iter_mut().for_each(Vec::clear);
    let bias = weights.e_score_correction_bias.as_deref();
    for (row, scores) in scores.chunks_exact(moe.experts).enumerate() {
        for &(expert, weight) in b.router.choose(moe, bias, scores) {
            b.chosen[expert].push((row as u32, weight));
        }
    }
}

/// to += weight * from, each product and each sum rounded.
fn add_weighted(to: &mut [f32], from: &[f32], weight: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += weight * from;
    }
}
