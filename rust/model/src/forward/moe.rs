//! A mixture of experts: each row goes to the experts that its router scores highest.
//!
//! Rows are grouped by expert, so that a step reads an expert's weights once. A row adds its experts in order of their
//! index, whatever other rows chose, so its bits do not depend on them.

use octavo_kernels as k;
use octavo_kernels::Kernels;

use super::mlp::{Between, gated};
use super::{Model, Scratch, take};
use crate::spec::{MoeSpec, Scoring};
use crate::weights::{LayerWeights, MoeWeights};

/// Memory of the block.
#[derive(Default)]
pub(super) struct Buffers {
    /// Router scores `[T, experts]`.
    scores: Vec<f32>,
    /// For each expert the rows that use it, with their weights.
    chosen: Vec<Vec<(u32, f32)>>,
    /// Rows of one expert, before and after it.
    gathered: Vec<f32>,
    expert_out: Vec<f32>,
    router: Router,
}

impl Model {
    /// x += sum of the rows' experts(norm(x)); norms stand where the spec places them.
    pub(super) fn experts(
        &self,
        kernels: &Kernels,
        moe: &MoeSpec,
        layer: &LayerWeights,
        weights: &MoeWeights,
        rows: usize,
        s: &mut Scratch,
    ) {
        let hidden = self.spec.hidden;
        let x = &mut s.x[..rows * hidden];
        let normed = take(&mut s.normed, rows * hidden);
        let branch = take(&mut s.branch, rows * hidden);
        let input = self.mlp_input(kernels, layer.mlp_norm.as_deref(), x, normed);
        let b = &mut s.moe;
        let scores = take(&mut b.scores, rows * moe.experts);
        weights.router.forward(kernels, input, rows, None, scores, &mut s.quantized);
        match moe.scoring {
            Scoring::Softmax => k::softmax(kernels, scores, moe.experts),
            Scoring::Sigmoid => k::sigmoid(kernels, scores),
        }
        b.chosen.resize_with(moe.experts.max(b.chosen.len()), Vec::new);
        b.chosen.iter_mut().for_each(Vec::clear);
        for (row, scores) in scores.chunks_exact(moe.experts).enumerate() {
            for &(expert, weight) in b.router.choose(moe, weights.e_score_correction_bias.as_deref(), scores)
            {
                b.chosen[expert].push((row as u32, weight));
            }
        }
        branch.fill(0.0);
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
                wide: &mut s.wide,
                inner: &mut s.inner,
                rows: &mut s.quantized,
                next: &mut s.activated,
            };
            gated(kernels, (moe.intermediate, moe.activation), expert, gathered, chosen.len(), out, buffers);
            for (out, &(row, weight)) in out.chunks_exact(hidden).zip(chosen) {
                add_weighted(&mut branch[row as usize * hidden..][..hidden], out, weight);
            }
        }
        if let (Some((shared, gate)), Some(spec)) = (&weights.shared, &moe.shared) {
            let out = take(&mut b.expert_out, rows * hidden);
            let buffers = Between {
                wide: &mut s.wide,
                inner: &mut s.inner,
                rows: &mut s.quantized,
                next: &mut s.activated,
            };
            gated(kernels, (spec.intermediate, moe.activation), shared, input, rows, out, buffers);
            let gates = take(&mut b.scores, rows);
            gates.fill(1.0);
            if let Some(gate) = gate {
                gate.forward(kernels, input, rows, None, gates, &mut s.quantized);
                k::sigmoid(kernels, gates);
            }
            for ((to, out), &gate) in
                branch.chunks_exact_mut(hidden).zip(out.chunks_exact(hidden)).zip(&*gates)
            {
                add_weighted(to, out, gate);
            }
        }
        self.add_branch(kernels, layer.mlp_post_norm.as_deref(), branch, x);
    }
}

/// to += weight * from, each product and each sum rounded.
fn add_weighted(to: &mut [f32], from: &[f32], weight: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += weight * from;
    }
}

/// Chooses the experts of a row.
#[derive(Default)]
struct Router {
    /// Scores for the choice.
    choice: Vec<f32>,
    /// (score, index) of what is being chosen among.
    order: Vec<(f32, usize)>,
    chosen: Vec<(usize, f32)>,
}

impl Router {
    /// The experts of a row with their weights, from its scores.
    fn choose(&mut self, moe: &MoeSpec, bias: Option<&[f32]>, scores: &[f32]) -> &[(usize, f32)] {
        self.choice.clear();
        self.choice.extend_from_slice(scores);
        if let Some(bias) = bias {
            self.choice.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += bias);
        }
        if let Some(groups) = moe.groups {
            let size = moe.experts / groups.count;
            let mut kept = vec![false; groups.count];
            let group_scores: Vec<f32> =
                self.choice.chunks_exact(size).map(|g| sum_of_best(g, groups.best)).collect();
            for (_, group) in best(&mut self.order, &group_scores, groups.chosen) {
                kept[*group] = true;
            }
            for (group, choice) in self.choice.chunks_exact_mut(size).enumerate() {
                if !kept[group] {
                    choice.fill(f32::NEG_INFINITY);
                }
            }
        }
        let chosen = best(&mut self.order, &self.choice, moe.num_experts_per_tok);
        self.chosen.clear();
        self.chosen.extend(chosen.iter().map(|&(_, expert)| (expert, scores[expert])));
        let sum: f32 = self.chosen.iter().map(|c| c.1).sum();
        // Sigmoid scores may all be 0.
        let divisor = match (moe.normalize, moe.scoring) {
            (false, _) => 1.0,
            (true, Scoring::Softmax) => sum,
            (true, Scoring::Sigmoid) => sum + 1e-20,
        };
        self.chosen.iter_mut().for_each(|(_, weight)| *weight = *weight / divisor * moe.scale);
        &self.chosen
    }
}

/// The `count` highest values with their indices, highest first; of equal ones the first.
fn best<'a>(order: &'a mut Vec<(f32, usize)>, values: &[f32], count: usize) -> &'a [(f32, usize)] {
    order.clear();
    order.extend(values.iter().copied().enumerate().map(|(i, v)| (v, i)));
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    &order[..count.min(order.len())]
}

fn sum_of_best(values: &[f32], count: usize) -> f32 {
    let mut order = Vec::new();
    best(&mut order, values, count).iter().map(|v| v.0).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Activation, ExpertGroups};

    fn moe(experts: usize, num_experts_per_tok: usize) -> MoeSpec {
        MoeSpec {
            experts,
            num_experts_per_tok,
            intermediate: 1,
            activation: Activation::Silu,
            scoring: Scoring::Sigmoid,
            e_score_correction_bias: false,
            groups: None,
            normalize: false,
            scale: 2.0,
            shared: None,
        }
    }

    #[test]
    fn the_best_are_chosen_and_the_first_of_equals() {
        let chosen = Router::default().choose(&moe(4, 2), None, &[0.1, 0.5, 0.5, 0.5]).to_vec();
        assert_eq!(chosen, [(1, 1.0), (2, 1.0)]);
        let normal = MoeSpec { normalize: true, scale: 1.0, ..moe(4, 2) };
        let chosen = Router::default().choose(&normal, None, &[0.1, 0.3, 0.0, 0.2]).to_vec();
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        assert!((chosen[0].1 - 0.6).abs() < 1e-6 && (chosen[1].1 - 0.4).abs() < 1e-6);
    }

    #[test]
    fn a_bias_moves_the_choice_and_not_the_weights() {
        let chosen = Router::default().choose(&moe(3, 1), Some(&[0.0, 0.0, 9.0]), &[0.5, 0.4, 0.25]).to_vec();
        assert_eq!(chosen, [(2, 0.5)]);
    }

    #[test]
    fn only_experts_of_the_best_groups_are_used() {
        let groups = Some(ExpertGroups { count: 2, chosen: 1, best: 2 });
        let spec = MoeSpec { groups, ..moe(4, 2) };
        // The first group has the best expert, the second the better pair.
        let chosen = Router::default().choose(&spec, None, &[0.9, 0.0, 0.6, 0.5]).to_vec();
        assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3]);
    }
}
