//! Deviation: the differences of values from expected values, and the variation of the expected values.

use ndarray::{ArrayView3, Axis};

/// Differences of values from expected values. One NaN among either makes `max`, `rms`, `systematic` and `relative` NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deviation {
    max: f64,
    squares: f64,
    /// Sum of the differences of each channel.
    sums: Vec<f64>,
    /// Number of expected values, the first of them, and the sum and sum of squares of their differences from the first.
    count: f64,
    first: f64,
    shifted: f64,
    shifted_squares: f64,
}

impl Deviation {
    /// Adds values, `[N, rows, channels]`. A shape other than the expected one counts as NaN.
    pub fn add(&mut self, expected: ArrayView3<f32>, found: ArrayView3<f32>) {
        if expected.dim() != found.dim() {
            self.max = f64::NAN;
            return;
        }
        self.sums.resize(expected.dim().2, 0.0);
        for (expected, found) in expected.lanes(Axis(2)).into_iter().zip(found.lanes(Axis(2))) {
            for ((expected, found), sum) in expected.iter().zip(found).zip(&mut self.sums) {
                let (expected, difference) = (f64::from(*expected), f64::from(*found) - f64::from(*expected));
                self.max = max_abs(self.max, difference);
                self.squares += difference * difference;
                *sum += difference;
                if self.count == 0.0 {
                    self.first = expected;
                }
                let shifted = expected - self.first;
                self.count += 1.0;
                self.shifted += shifted;
                self.shifted_squares += shifted * shifted;
            }
        }
    }

    /// The maximum absolute difference.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The root mean square of the differences.
    pub fn rms(&self) -> f64 {
        if self.max.is_nan() { f64::NAN } else { (self.squares / self.count.max(1.0)).sqrt() }
    }

    /// The part of the differences that all rows have in common: the root mean square of the channels' mean differences.
    /// Rounding errors cancel out in it, the effect of a wrong weight does not.
    pub fn systematic(&self) -> f64 {
        let channels = self.sums.len() as f64;
        let squares: f64 = self.sums.iter().map(|sum| (sum * channels / self.count.max(1.0)).powi(2)).sum();
        if self.max.is_nan() { f64::NAN } else { (squares / channels.max(1.0)).sqrt() }
    }

    /// The standard deviation of the expected values.
    pub fn expected_std(&self) -> f64 {
        let mean = self.shifted / self.count.max(1.0);
        (self.shifted_squares / self.count.max(1.0) - mean * mean).max(0.0).sqrt()
    }

    /// The root mean square of the expected values.
    pub fn expected_rms(&self) -> f64 {
        (self.first + self.shifted / self.count.max(1.0)).hypot(self.expected_std())
    }

    /// [`rms`](Self::rms) divided by [`expected_std`](Self::expected_std); 0 if there are no differences.
    pub fn relative(&self) -> f64 {
        let rms = self.rms();
        if rms == 0.0 { 0.0 } else { rms / self.expected_std() }
    }
}

/// The maximum of `max` and the absolute `value`. Unlike `f64::max`, it keeps NaN.
pub fn max_abs(max: f64, value: f64) -> f64 {
    let value = value.abs();
    if value > max || value.is_nan() { value } else { max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array3, array};

    fn deviation(expected: &Array3<f32>, found: &Array3<f32>) -> Deviation {
        let mut deviation = Deviation::default();
        deviation.add(expected.view(), found.view());
        deviation
    }

    #[test]
    fn deviations_are_absolute_and_relative_to_the_expected_std() {
        let expected = array![[[1.0, 3.0], [1.0, 3.0]]];
        let same = deviation(&expected, &expected);
        assert_eq!([same.max(), same.rms(), same.systematic(), same.relative()], [0.0; 4]);
        assert_eq!((same.expected_std(), same.expected_rms()), (1.0, 5f64.sqrt()));
        let common = deviation(&expected, &array![[[1.5, 3.0], [1.5, 3.0]]]);
        let opposite = deviation(&expected, &array![[[1.5, 3.0], [0.5, 3.0]]]);
        for off in [&common, &opposite] {
            assert_eq!((off.max(), off.rms(), off.relative()), (0.5, 0.125f64.sqrt(), 0.125f64.sqrt()));
        }
        assert_eq!((common.systematic(), opposite.systematic()), (0.125f64.sqrt(), 0.0));
        let mut halves = deviation(&array![[[1.0, 3.0]]], &array![[[1.5, 3.0]]]);
        halves.add(array![[[1.0, 3.0]]].view(), array![[[1.5, 3.0]]].view());
        assert_eq!(halves, common);
    }

    #[test]
    fn constants_of_any_magnitude_have_zero_std() {
        let expected = Array3::from_elem((2, 500, 3), -4.595_119_5);
        let same = deviation(&expected, &expected);
        assert_eq!((same.expected_std(), same.relative()), (0.0, 0.0));
        assert_eq!(deviation(&expected, &(&expected + 1e-5)).relative(), f64::INFINITY);
    }

    #[test]
    fn nan_and_mismatched_shapes_give_nan() {
        let expected = array![[[1.0, 2.0, 3.0]]];
        for channel in 0..3 {
            let mut found = array![[[9.0, 9.0, 9.0]]];
            found[[0, 0, channel]] = f32::NAN;
            for off in [deviation(&expected, &found), deviation(&found, &expected)] {
                assert!([off.max(), off.rms(), off.systematic(), off.relative()].iter().all(|value| value.is_nan()));
            }
        }
        assert!(deviation(&expected, &array![[[1.0, 2.0]]]).rms().is_nan());
        assert!(deviation(&array![[[f32::INFINITY]]], &array![[[f32::INFINITY]]]).max().is_nan());
        assert_eq!(deviation(&array![[[0.0]]], &array![[[f32::INFINITY]]]).max(), f64::INFINITY);
    }
}
