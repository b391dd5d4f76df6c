//! Ranges of activations.

/// A range of values. It always contains zero, which quantization does not change.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Range {
    /// Minimum.
    pub(crate) low: f32,
    /// Maximum.
    pub(crate) high: f32,
}

impl Range {
    /// The maximum absolute value.
    pub(crate) fn max_abs(self) -> f32 {
        self.high.max(-self.low)
    }

    /// Extends the range to `values`. A value that is not finite makes the range not finite.
    pub(crate) fn add(&mut self, values: &[f32]) {
        let Self { low, high } = self;
        for value in values {
            *low = min_or_nan(*low, *value);
            *high = -min_or_nan(-*high, -*value);
        }
    }
}

/// The minimum; NaN if `a` or `b` is NaN.
fn min_or_nan(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_values_and_zero() {
        let range = |values: &[f32]| {
            let mut range = Range::default();
            values.chunks(2).for_each(|part| range.add(part));
            range
        };
        assert_eq!(range(&[2.0, 5.0, 3.0]), Range { low: 0.0, high: 5.0 });
        assert_eq!(range(&[-2.0, 1e-30, 1e30]), Range { low: -2.0, high: 1e30 });
        assert_eq!(range(&[]), Range { low: 0.0, high: 0.0 });
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!range(&[1.0, value, 2.0]).max_abs().is_finite());
        }
    }
}
