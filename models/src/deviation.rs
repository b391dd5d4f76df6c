//! The deviation: how far numbers are from those that are expected, and how much these differ among each other.

use ndarray::{ArrayView3, Axis};

/// Differences of numbers from those that are expected. What is no number makes them NaN, wherever it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deviation {
    max: f64,
    squares: f64,
    /// Sums of the differences in each channel.
    sums: Vec<f64>,
    /// What is expected: how many numbers, the first, and of their differences from that the sum and the sum of the squares.
    count: f64,
    first: f64,
    shifted: f64,
    shifted_squares: f64,
}

impl Deviation {
    /// Counts numbers, `[N, rows, channels]`. Those of another shape than expected are as far off as what is no number.
    pub fn add(&mut self, expected: ArrayView3<f32>, found: ArrayView3<f32>) {
        if expected.dim() != found.dim() {
            self.max = f64::NAN;
            return;
        }
        self.sums.resize(expected.dim().2, 0.0);
        for (expected, found) in expected.lanes(Axis(2)).into_iter().zip(found.lanes(Axis(2))) {
            for ((expected, found), sum) in expected.iter().zip(found).zip(&mut self.sums) {
                let (expected, difference) = (f64::from(*expected), f64::from(*found) - f64::from(*expected));
                self.max = larger(self.max, difference);
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

    /// The largest absolute difference.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The root of the mean square of the differences.
    pub fn rms(&self) -> f64 {
        if self.max.is_nan() { f64::NAN } else { (self.squares / self.count.max(1.0)).sqrt() }
    }

    /// What all rows have in common: the root of the mean square of the channels' mean differences. What rounding does to the
    /// rows cancels here, what a wrong weight does does not.
    pub fn systematic(&self) -> f64 {
        let channels = self.sums.len() as f64;
        let squares: f64 = self.sums.iter().map(|sum| (sum * channels / self.count.max(1.0)).powi(2)).sum();
        if self.max.is_nan() { f64::NAN } else { (squares / channels.max(1.0)).sqrt() }
    }

    /// The standard deviation of what is expected.
    pub fn spread(&self) -> f64 {
        let mean = self.shifted / self.count.max(1.0);
        (self.shifted_squares / self.count.max(1.0) - mean * mean).max(0.0).sqrt()
    }

    /// The root of the mean square of what is expected.
    pub fn size(&self) -> f64 {
        (self.first + self.shifted / self.count.max(1.0)).hypot(self.spread())
    }

    /// [`rms`](Self::rms) in units of [`spread`](Self::spread); 0 if there are no differences.
    pub fn relative(&self) -> f64 {
        let rms = self.rms();
        if rms == 0.0 { 0.0 } else { rms / self.spread() }
    }
}

/// The larger size; `f64::max` would lose a NaN.
pub fn larger(largest: f64, other: f64) -> f64 {
    let other = other.abs();
    if other > largest || other.is_nan() { other } else { largest }
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
    fn differences_have_no_sign_and_are_in_units_of_the_spread() {
        let expected = array![[[1.0, 3.0], [1.0, 3.0]]];
        let same = deviation(&expected, &expected);
        assert_eq!([same.max(), same.rms(), same.systematic(), same.relative()], [0.0; 4]);
        assert_eq!((same.spread(), same.size()), (1.0, 5f64.sqrt()));
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
    fn constants_have_no_spread_whatever_their_size() {
        let expected = Array3::from_elem((2, 500, 3), -4.595_119_5);
        assert_eq!((deviation(&expected, &expected).spread(), deviation(&expected, &expected).relative()), (0.0, 0.0));
        assert_eq!(deviation(&expected, &(&expected + 1e-5)).relative(), f64::INFINITY);
    }

    #[test]
    fn nan_and_other_shapes_are_never_lost() {
        let expected = array![[[1.0, 2.0, 3.0]]];
        for place in 0..3 {
            let mut found = array![[[9.0, 9.0, 9.0]]];
            found[[0, 0, place]] = f32::NAN;
            for off in [deviation(&expected, &found), deviation(&found, &expected)] {
                assert!([off.max(), off.rms(), off.systematic(), off.relative()].iter().all(|value| value.is_nan()));
            }
        }
        assert!(deviation(&expected, &array![[[1.0, 2.0]]]).rms().is_nan());
        assert!(deviation(&array![[[f32::INFINITY]]], &array![[[f32::INFINITY]]]).max().is_nan());
        assert_eq!(deviation(&array![[[0.0]]], &array![[[f32::INFINITY]]]).max(), f64::INFINITY);
    }
}
