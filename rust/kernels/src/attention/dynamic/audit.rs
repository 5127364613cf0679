//! Audits: calls of dynamic attention compared with dense attention.

use super::super::kv_cache::{KvElement, padded};
use super::super::state::SoftmaxState;
use super::report::{AttentionReport, ErrorBound};
use super::select::BlockSelector;
use super::task::DynamicTask;
use crate::simd::{LANES, Simd};

/// An output before its division: the sum of e^(score - reference), and of values under these weights.
struct UnnormalizedOutput<'a> {
    reference: f32,
    sum: f32,
    acc: &'a [f32],
}

/// Maximum relative difference of two float32 sums over the same context.
const ROUNDING: f64 = 2e-5;

/// Counts an audited call. Returns whether `own` is within its bound of `exact`, float32 rounding aside.
///
/// NaN in both outputs counts as equal.
fn audit_call(
    own: &UnnormalizedOutput<'_>,
    exact: &UnnormalizedOutput<'_>,
    bound: &ErrorBound,
    report: &mut AttentionReport,
) -> bool {
    report.audited_calls += 1;
    let (kept, all) = (f64::from(own.sum), f64::from(exact.sum));
    let scale = (f64::from(own.reference) - f64::from(exact.reference)).exp();
    // Share of the exact mass that the call omitted.
    let mass = 1.0 - kept * scale / all;
    let mean = |answer: &UnnormalizedOutput<'_>, i: usize| f64::from(answer.acc[i]) / f64::from(answer.sum);
    let (mut apart, mut size) = (0.0, 0.0);
    for i in 0..own.acc.len() {
        apart += (mean(own, i) - mean(exact, i)).powi(2);
        size += mean(own, i).powi(2).max(mean(exact, i).powi(2));
    }
    let (error, size) = (apart.sqrt(), size.sqrt() + f64::from(bound.max_value_norm));
    if mass.is_nan() || error.is_nan() {
        let same = (0..own.acc.len()).all(|i| mean(own, i).is_nan() == mean(exact, i).is_nan());
        report.violations += u64::from(!same);
        return same;
    }
    report.max_audited_mass = report.max_audited_mass.max(mass as f32);
    report.max_audited_error = report.max_audited_error.max(error as f32);
    let holds =
        mass <= f64::from(bound.mass) + ROUNDING && error <= f64::from(bound.output_error) + ROUNDING * size;
    report.violations += u64::from(!holds);
    holds
}

impl<E: KvElement> DynamicTask<'_, E> {
    /// Compares each call with dense attention, and replaces the output where the bound does not hold.
    #[inline(always)]
    pub(super) fn audit<S: Simd>(
        &self,
        s: S,
        state: &mut SoftmaxState,
        dense: &SoftmaxState,
        selector: &BlockSelector,
        report: &mut AttentionReport,
    ) {
        let vectors = padded(self.task.params.head_dim) / LANES;
        for (row, bound) in selector.bounds.iter().enumerate() {
            if !audit_call(&output(s, state, row, vectors), &output(s, dense, row, vectors), bound, report) {
                let part = row * vectors..(row + 1) * vectors;
                state.acc[part.clone()].copy_from_slice(&dense.acc[part]);
                state.sum[row] = dense.sum[row];
            }
        }
    }
}

/// A row's output.
#[inline(always)]
fn output<S: Simd>(s: S, state: &SoftmaxState, row: usize, vectors: usize) -> UnnormalizedOutput<'_> {
    UnnormalizedOutput {
        reference: state.reference[row],
        sum: s.reduce_add(s.load(&state.sum[row])),
        acc: state.acc[row * vectors..(row + 1) * vectors].as_flattened(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(
        own: (f32, f32, [f32; 2]),
        exact: (f32, f32, [f32; 2]),
        mass: f32,
        error: f32,
    ) -> AttentionReport {
        let mut report = AttentionReport::default();
        let answer = |(largest, sum, acc): &(f32, f32, [f32; 2])| (*largest, *sum, *acc);
        let ((l, s, a), (m, t, b)) = (answer(&own), answer(&exact));
        let bound = ErrorBound { mass, output_error: error, max_value_norm: 1.0 };
        let own = UnnormalizedOutput { reference: l, sum: s, acc: &a };
        let exact = UnnormalizedOutput { reference: m, sum: t, acc: &b };
        let holds = audit_call(&own, &exact, &bound, &mut report);
        assert_eq!(holds, report.violations == 0);
        report
    }

    /// A tenth of the mass was left out, and the output moved by 0.1.
    #[test]
    fn a_claim_holds_or_is_a_violation() {
        let (own, exact) = ((0.0, 0.9, [0.9, 0.0]), (0.0, 1.0, [0.9, 0.0]));
        let report = judge(own, exact, 0.11, 0.11);
        assert_eq!((report.audited_calls, report.violations), (1, 0));
        assert!(
            (report.max_audited_mass - 0.1).abs() < 1e-6 && (report.max_audited_error - 0.1).abs() < 1e-6
        );
        assert_eq!(judge(own, exact, 0.09, 0.11).violations, 1, "of the mass");
        assert_eq!(judge(own, exact, 0.11, 0.09).violations, 1, "of the output");
        assert_eq!(judge(own, exact, 0.0, 0.0).violations, 1, "a call that says it read everything");
    }

    #[test]
    fn sums_relative_to_different_scores_compare() {
        let shifted = (1.0, 0.9 / 1.0_f32.exp(), [0.9 / 1.0_f32.exp(), 0.0]);
        assert_eq!(judge(shifted, (0.0, 1.0, [1.0, 0.0]), 0.11, 0.01).violations, 0);
        assert_eq!(judge(shifted, (0.0, 1.0, [1.0, 0.0]), 0.09, 0.01).violations, 1);
    }

    #[test]
    fn what_is_not_a_number_agrees_with_itself_only() {
        let bad = (0.0, f32::NAN, [f32::NAN, f32::NAN]);
        assert_eq!(judge(bad, bad, 0.0, 0.0).violations, 0);
        assert_eq!(judge((0.0, 1.0, [1.0, 0.0]), bad, 0.5, 0.5).violations, 1);
    }
}
