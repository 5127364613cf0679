//! Reports of an executor: named numbers that the engine merges and passes on.

use std::borrow::Cow;

/// Named numbers about the work of a sequence, a request or the whole engine. The engine gives the names no meaning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report(Vec<(Cow<'static, str>, f64)>);

impl Report {
    /// The numbers and their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
    }

    /// The number of this name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Merges `other` into this report: the maximum of numbers whose names begin with `max_`, the sum of all others.
    pub fn merge(&mut self, other: &Report) {
        for (i, (name, value)) in other.0.iter().enumerate() {
            // Reports of one executor have the same names in the same order.
            let place = Some(i).filter(|i| self.0.get(*i).is_some_and(|(mine, _)| mine == name));
            match place.or_else(|| self.0.iter().position(|(mine, _)| mine == name)) {
                Some(i) if name.starts_with("max_") => self.0[i].1 = self.0[i].1.max(*value),
                Some(i) => self.0[i].1 += value,
                None => self.0.push((name.clone(), *value)),
            }
        }
    }
}

impl<N: Into<Cow<'static, str>>> FromIterator<(N, f64)> for Report {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(numbers: I) -> Self {
        Self(numbers.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_merge_by_name() {
        let mut total = Report::default();
        total.merge(&Report::from_iter([("calls", 2.0), ("max_mass", 0.5)]));
        total.merge(&Report::from_iter([("max_mass", 0.25), ("calls", 3.0), ("audits", 1.0)]));
        assert_eq!(total, Report::from_iter([("calls", 5.0), ("max_mass", 0.5), ("audits", 1.0)]));
        assert_eq!((total.get("calls"), total.get("none")), (Some(5.0), None));
    }
}
