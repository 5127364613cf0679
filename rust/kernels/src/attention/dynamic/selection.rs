//! Parameters and reports of the sequences of a call, and of a step.

use super::report::{AttentionReport, DynamicParams, Mode};

/// Choices of dynamic attention for the sequences of a call, and their reports.
#[derive(Debug)]
pub struct Selection<'a> {
    /// For each sequence, how much its queries may omit.
    pub choices: &'a [DynamicParams],
    /// For each sequence, a report, to which this call adds.
    pub reports: &'a mut [AttentionReport],
}

/// Selections of the calls of a step: all layers add to the same reports.
#[derive(Debug)]
pub struct Selector {
    params: DynamicParams,
    choices: Vec<DynamicParams>,
    reports: Vec<AttentionReport>,
}

impl Selector {
    /// A selector with these parameters; steps set the bound of each sequence.
    pub fn new(params: DynamicParams) -> Self {
        Self { params, choices: Vec::new(), reports: Vec::new() }
    }

    /// Maximum softmax mass that a query head omits, unless a step says otherwise.
    pub fn bound(&self) -> f32 {
        self.params.error_bound
    }

    /// Whether calls keep to their bound; in budget mode they do not.
    pub fn is_bounded(&self) -> bool {
        self.params.mode != Mode::Budget
    }

    /// Begins a step with one bound for each sequence.
    pub fn begin(&mut self, bounds: impl Iterator<Item = f32>) {
        let params = self.params;
        self.choices.clear();
        self.choices.extend(bounds.map(|error_bound| DynamicParams { error_bound, ..params }));
        self.reports.clear();
        self.reports.resize(self.choices.len(), AttentionReport::default());
    }

    /// The selection for one call of the step.
    pub fn selection(&mut self) -> Selection<'_> {
        Selection { choices: &self.choices, reports: &mut self.reports }
    }

    /// Reports of the step, one for each sequence, as named numbers.
    pub fn reports(&self) -> impl Iterator<Item = [(&'static str, f64); 16]> {
        self.reports.iter().map(AttentionReport::numbers)
    }
}
