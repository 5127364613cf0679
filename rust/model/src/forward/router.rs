//! The choice of a token's experts from its router scores.

use crate::spec::{MoeSpec, Scoring};

/// Chooses the experts of a row.
#[derive(Default)]
pub(super) struct Router {
    /// Scores for the choice.
    choice: Vec<f32>,
    /// (score, index) of what is being chosen among.
    order: Vec<(f32, usize)>,
    chosen: Vec<(usize, f32)>,
}

impl Router {
    /// The experts of a row with their weights, from its scores.
    pub(super) fn choose(&mut self, moe: &MoeSpec, bias: Option<&[f32]>, scores: &[f32]) -> &[(usize, f32)] {
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
    use crate::spec::{ActivationKind, ExpertGroups};

    fn moe(experts: usize, num_experts_per_tok: usize) -> MoeSpec {
        MoeSpec {
            experts,
            num_experts_per_tok,
            intermediate: 1,
            activation: ActivationKind::Silu,
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
