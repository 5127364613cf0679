//! Audits: a call's answer beside the one that reads everything.

use super::report::AttentionReport;

/// What a call says that it left out, at most.
#[derive(Clone, Copy, Default)]
pub(super) struct Claim {
    /// Softmax mass.
    pub(super) mass: f32,
    /// Norm of the output's error.
    pub(super) error: f32,
    /// The longest of the values that were left out.
    pub(super) longest: f32,
}

/// An answer before its division: sums of e^(score - reference), and of values under these weights.
pub(super) struct Answer<'a> {
    pub(super) reference: f32,
    pub(super) sum: f32,
    pub(super) acc: &'a [f32],
}

/// How far two float32 sums over the same context may lie apart, relative to what was summed.
const ROUNDING: f64 = 2e-5;

/// Counts an audited call. False: `own` is further from `exact` than its claim, beyond what float32 rounds.
///
/// What is not a number on both sides agrees.
pub(super) fn compare(
    own: &Answer<'_>,
    exact: &Answer<'_>,
    claim: &Claim,
    report: &mut AttentionReport,
) -> bool {
    report.audited_calls += 1;
    let (kept, all) = (f64::from(own.sum), f64::from(exact.sum));
    let scale = (f64::from(own.reference) - f64::from(exact.reference)).exp();
    // How much of the exact mass the call did not read.
    let mass = 1.0 - kept * scale / all;
    let mean = |answer: &Answer<'_>, i: usize| f64::from(answer.acc[i]) / f64::from(answer.sum);
    let (mut apart, mut size) = (0.0, 0.0);
    for i in 0..own.acc.len() {
        apart += (mean(own, i) - mean(exact, i)).powi(2);
        size += mean(own, i).powi(2).max(mean(exact, i).powi(2));
    }
    let (error, size) = (apart.sqrt(), size.sqrt() + f64::from(claim.longest));
    if mass.is_nan() || error.is_nan() {
        let same = (0..own.acc.len()).all(|i| mean(own, i).is_nan() == mean(exact, i).is_nan());
        report.violations += u64::from(!same);
        return same;
    }
    report.max_audited_mass = report.max_audited_mass.max(mass as f32);
    report.max_audited_error = report.max_audited_error.max(error as f32);
    let holds = mass <= f64::from(claim.mass) + ROUNDING && error <= f64::from(claim.error) + ROUNDING * size;
    report.violations += u64::from(!holds);
    holds
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
        let claim = Claim { mass, error, longest: 1.0 };
        let own = Answer { reference: l, sum: s, acc: &a };
        let exact = Answer { reference: m, sum: t, acc: &b };
        let holds = compare(&own, &exact, &claim, &mut report);
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
