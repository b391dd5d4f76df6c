//! An axis of a chart: converts numbers to positions and labels.

/// A range of numbers, with ticks at round numbers.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::report) struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
    /// Positions of the ticks.
    pub(super) ticks: Vec<f64>,
}

/// Maximum number of decimals of a label. Numbers that need more are written with an exponent.
const MAX_DECIMALS: usize = 4;

/// Ratio of maximum to minimum above which an axis is logarithmic.
const WIDE: f64 = 20.0;

impl Axis {
    /// From zero to a round number of at least `high`, with about `ticks` ticks.
    pub(in crate::report) fn from_zero(high: f64, ticks: usize) -> Self {
        let high = if (1e-300..1e300).contains(&high) { high } else { 1.0 };
        let step = round_step(high / ticks as f64);
        // The tolerance prevents a fourth step for 3 * 0.1, which is slightly more than 0.3.
        let steps = (high / step - 1e-10).ceil();
        Self { low: 0.0, high: steps * step, logarithmic: false, ticks: multiples(step, 0.0, steps * step) }
    }

    /// From one whole number to another, with about `ticks` ticks at whole numbers. A single number is in the middle.
    pub(in crate::report) fn counting(low: f64, high: f64, ticks: usize) -> Self {
        let step = round_step((high - low).max(0.0) / ticks as f64).max(1.0);
        let margin = if high > low { 0.0 } else { 1.0 };
        let mut marks = multiples(step, low, high);
        if marks.is_empty() {
            marks.push(low);
        }
        Self { low: low - margin, high: high + margin, logarithmic: false, ticks: marks }
    }

    /// From one number to another, with about `ticks` ticks at whole numbers.
    pub(in crate::report) fn spanning(low: f64, high: f64, ticks: usize) -> Self {
        let step = round_step((high - low).max(0.0) / ticks as f64).max(1.0);
        Self { low, high, logarithmic: false, ticks: multiples(step, low, high) }
    }

    /// From zero; logarithmic if the numbers are positive and span a wide range.
    pub(in crate::report) fn fitting(low: f64, high: f64, ticks: usize) -> Self {
        if low > 1e-300 && high < 1e300 && high > WIDE * low {
            Self::logarithmic(low, high)
        } else {
            Self::from_zero(high, ticks)
        }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let inside = |tick: &f64| (low..=high).contains(tick);
        let decades: Vec<_> = powers.clone().map(|power| 10f64.powi(power)).filter(inside).collect();
        let finer = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power))).filter(inside);
        let ticks = if decades.len() > 3 { decades } else { finer.collect() };
        Self { low, high, logarithmic: true, ticks }
    }

    /// Whether the axis is logarithmic.
    pub(super) fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }

    /// Relative position of a number: 0 at the lower end, 1 at the upper end, below 0 or above 1 outside. `None` if the
    /// position is not finite.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.is_finite().then_some(place)
    }

    /// Label of a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        let step = if self.logarithmic || self.ticks.len() < 2 { tick } else { self.ticks[1] - self.ticks[0] };
        label(tick, step)
    }
}

/// A round number as text, exact to `step`.
fn label(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value.abs() >= 10_000.0 {
        let (unit, name) = if value.abs() >= 1e6 { (1e6, "M") } else { (1e3, "k") };
        return format!("{}{name}", (value / unit * 1e3).round() / 1e3);
    }
    // As many decimals as the step needs: two for steps of 0.25.
    let decimals = (0..=MAX_DECIMALS).find(|decimals| {
        let units = step * 10f64.powi(*decimals as i32);
        (units - units.round()).abs() < 1e-6 * units.abs()
    });
    match decimals {
        Some(decimals) => format!("{value:.decimals$}"),
        None => {
            let power = value.abs().log10().floor();
            format!("{}e{power}", (value / 10f64.powf(power) * 1e3).round() / 1e3)
        }
    }
}

/// The smallest number of at least `step` that is 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    if !(step.is_finite() && step > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(step.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= step * (1.0 - 1e-9)).unwrap_or(10.0);
    digit * power
}

fn multiples(step: f64, low: f64, high: f64) -> Vec<f64> {
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last).map(|count| count as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn ticks_are_at_round_numbers() {
        let cases: [(Axis, &[&str]); 9] = [
            (Axis::from_zero(0.83, 5), &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (Axis::from_zero(0.3, 3), &["0", "0.1", "0.2", "0.3"]),
            (Axis::from_zero(0.00023, 3), &["0", "0.0001", "0.0002", "0.0003"]),
            (Axis::from_zero(2.5e-6, 3), &["0", "1e-6", "2e-6", "3e-6"]),
            (Axis::from_zero(42_000.0, 3), &["0", "20k", "40k", "60k"]),
            (Axis::counting(1.0, 50.0, 5), &["10", "20", "30", "40", "50"]),
            (Axis::counting(1.0, 1.0, 5), &["1"]),
            (Axis::logarithmic(0.04, 1.3), &["0.05", "0.1", "0.2", "0.5", "1"]),
            (Axis::logarithmic(0.04, 1300.0), &["0.1", "1", "10", "100", "1000"]),
        ];
        for (axis, expected) in cases {
            assert_eq!(labels(&axis), expected, "{axis:?}");
        }
    }

    #[test]
    fn ends_are_at_zero_and_one_and_non_finite_numbers_have_no_position() {
        for axis in [Axis::from_zero(1.0, 5), Axis::counting(3.0, 9.0, 4), Axis::logarithmic(0.1, 10.0)] {
            assert_eq!((axis.place(axis.low), axis.place(axis.high)), (Some(0.0), Some(1.0)));
            assert_eq!([f64::NAN, f64::INFINITY].map(|value| axis.place(value)), [None; 2]);
        }
        assert_eq!(Axis::logarithmic(0.1, 10.0).place(0.0), None);
    }

    #[test]
    fn non_finite_and_extreme_ranges_give_a_valid_axis() {
        for high in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, f64::MAX] {
            for axis in [Axis::from_zero(high, 5), Axis::fitting(0.0, high, 5), Axis::fitting(high, high, 5)] {
                assert!(axis.ticks.len() < 20 && axis.place(axis.low) == Some(0.0), "{high}: {axis:?}");
            }
        }
    }
}
