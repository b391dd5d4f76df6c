//! Ranges: histograms of activations, and the ranges of them that int8 covers.

use std::fmt;
use std::str::FromStr;

/// Number of bins of a histogram, half of them for each sign. Values are rounded to 256 steps, so there are at least
/// four bins per step.
const BINS: usize = 4096;

/// Number of bins between two candidate ranges of the entropy method.
const STRIDE: usize = 8;

/// A range of values.
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

    fn clip(self, low: f32, high: f32) -> Self {
        Self { low: self.low.max(low), high: self.high.min(high) }
    }
}

/// How the covered range is chosen from the measured values. Values outside the range are clipped to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeRule {
    /// From minimum to maximum.
    MinMax,
    /// Without a fraction of the values at each end.
    Percentile {
        /// Percentile of the upper end, from 50 to 100: 100 - `covered` percent of the values are cut at each end.
        covered: f64,
    },
    /// The range with the minimum Kullback-Leibler divergence between the distributions of values and quantized values.
    /// <https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf>
    Entropy,
}

impl RangeRule {
    /// The rule with the highest AP on BCCD; see the README.
    pub const DEFAULT: Self = Self::MinMax;
}

impl fmt::Display for RangeRule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::MinMax => write!(f, "minmax"),
            Self::Percentile { covered } => write!(f, "percentile:{covered}"),
            Self::Entropy => write!(f, "entropy"),
        }
    }
}

impl FromStr for RangeRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("percentile:").map(str::parse)) {
            ("minmax", _) => Ok(Self::MinMax),
            ("entropy", _) => Ok(Self::Entropy),
            (_, Some(Ok(covered))) if (50.0..=100.0).contains(&covered) => Ok(Self::Percentile { covered }),
            _ => Err("expected minmax, entropy, or percentile:P with P from 50 to 100".to_owned()),
        }
    }
}

/// Histogram of values, with bins of equal width around zero. Zeros are not counted, because every range contains zero
/// and quantization does not change it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    range: Range,
    /// The bins cover absolute values below this power of two.
    limit: f32,
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { range: Range::default(), limit: f32::MIN_POSITIVE, counts: vec![0; BINS] }
    }
}

impl Histogram {
    /// Counts `values`. A value that is not finite makes the range not finite.
    pub(crate) fn add(&mut self, values: &[f32]) {
        let (low, high) = values.iter().fold((0.0, 0.0), |(low, high): (f32, f32), value| {
            (if *value < low { *value } else { low }, if *value > high { *value } else { high })
        });
        let is_number = values.iter().fold(true, |all, value| all & !value.is_nan());
        let new = if is_number { Range { low, high } } else { Range { low: f32::NAN, high: f32::NAN } };
        self.range = Range { low: min_or_nan(self.range.low, new.low), high: -min_or_nan(-self.range.high, -new.high) };
        if !self.range.max_abs().is_finite() {
            return;
        }
        while self.range.max_abs() >= self.limit {
            self.widen();
        }
        let per_bin = (BINS / 2) as f32 / self.limit;
        for value in values.iter().filter(|value| **value != 0.0) {
            let bin = (value * per_bin).floor() + (BINS / 2) as f32;
            self.counts[(bin as usize).min(BINS - 1)] += 1;
        }
    }

    /// Doubles the covered values by merging pairs of bins.
    fn widen(&mut self) {
        self.limit *= 2.0;
        let mut counts = vec![0; BINS];
        for (pair, count) in self.counts.chunks_exact(2).zip(&mut counts[BINS / 4..]) {
            *count = pair.iter().sum();
        }
        self.counts = counts;
    }

    /// Minimum and maximum of the values; not finite if one of the values was not.
    pub(crate) fn min_max(&self) -> Range {
        self.range
    }

    /// The range that `rule` chooses.
    pub(crate) fn range(&self, rule: RangeRule) -> Range {
        match rule {
            RangeRule::MinMax => self.range,
            RangeRule::Percentile { covered } => self.percentile(covered),
            RangeRule::Entropy => self.min_divergence(),
        }
    }

    fn percentile(&self, covered: f64) -> Range {
        let total: u64 = self.counts.iter().sum();
        let max_cut = ((1.0 - covered / 100.0) * total as f64) as u64;
        // Cuts whole bins, from the end inwards, that contain at most this many values in total.
        let cut = |counts: &mut dyn Iterator<Item = &u64>| {
            let within = |sum: &mut u64, count: &u64| {
                *sum += count;
                (*sum <= max_cut).then_some(())
            };
            counts.scan(0, within).count()
        };
        let (low, high) = (cut(&mut self.counts.iter()), cut(&mut self.counts.iter().rev()));
        let width = 2.0 * self.limit / BINS as f32;
        self.range.clip((low as f32 * width - self.limit).min(0.0), (self.limit - high as f32 * width).max(0.0))
    }

    fn min_divergence(&self) -> Range {
        let (negative, positive) = self.counts.split_at(BINS / 2);
        let absolute: Vec<u64> = negative.iter().rev().zip(positive).map(|(a, b)| a + b).collect();
        // Each sign gets half of the 256 steps if both occur.
        let levels = if self.range.low < 0.0 { 128 } else { 256 };
        let cuts = (levels..=absolute.len()).step_by(STRIDE);
        let divergence = |cut: &usize| divergence(&absolute, *cut, levels);
        let cut = cuts.min_by(|a, b| divergence(a).total_cmp(&divergence(b))).unwrap_or(absolute.len());
        let limit = self.limit * cut as f32 / absolute.len() as f32;
        self.range.clip(-limit, limit)
    }
}

/// The minimum; NaN if `a` or `b` is NaN.
fn min_or_nan(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// Kullback-Leibler divergence between `counts` and their quantization to `levels` steps up to the bin `cut`.
fn divergence(counts: &[u64], cut: usize, levels: usize) -> f64 {
    let beyond: u64 = counts[cut..].iter().sum();
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let mut sum = 0.0;
    for level in 0..levels {
        let bins = level * cut / levels..(level + 1) * cut / levels;
        let inside: u64 = counts[bins.clone()].iter().sum();
        let occupied = counts[bins.clone()].iter().filter(|count| **count > 0).count();
        for bin in bins {
            // Values beyond the cut are clipped into the last bin.
            let clipped = if bin + 1 == cut { beyond } else { 0 };
            let before = (counts[bin] + clipped) as f64 / total as f64;
            if before > 0.0 {
                // A step distributes its values evenly over its occupied bins, without the clipped ones.
                let after = inside as f64 / occupied.max(1) as f64 / (total - beyond).max(1) as f64;
                sum += before * (before / after.max(f64::EPSILON)).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values);
        histogram
    }

    /// Bell-shaped values (sums of four uniform ones), followed by outliers.
    fn bell_with_outliers(outliers: &[f32]) -> Vec<f32> {
        let mut state = 1u64;
        let mut unit = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..20_000).map(|_| (0..4).map(|_| unit() - 0.5).sum()).chain(outliers.iter().copied()).collect()
    }

    #[test]
    fn rules_survive_a_round_trip_through_text() {
        for text in ["minmax", "entropy", "percentile:99.9"] {
            assert_eq!(text.parse::<RangeRule>().unwrap().to_string(), text);
        }
        for text in ["", "max", "percentile", "percentile:", "percentile:49", "percentile:101", "percentile:NaN"] {
            assert!(text.parse::<RangeRule>().unwrap_err().contains("percentile:P"), "{text}");
        }
    }

    #[test]
    fn minmax_covers_all_values_and_zero() {
        let range = |values: &[f32]| histogram(values).range(RangeRule::MinMax);
        assert_eq!(range(&[2.0, 5.0]), Range { low: 0.0, high: 5.0 });
        assert_eq!(range(&[-2.0, 1e-30, 1e30]), Range { low: -2.0, high: 1e30 });
        assert_eq!(range(&[]), Range { low: 0.0, high: 0.0 });
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!histogram(&[1.0, value, 2.0]).min_max().max_abs().is_finite());
        }
    }

    #[test]
    fn adding_values_in_parts_equals_adding_them_at_once() {
        let values = bell_with_outliers(&[70.0, -9.0]);
        let mut parts = Histogram::default();
        values.chunks(777).for_each(|part| parts.add(part));
        assert_eq!(parts, histogram(&values));
        assert_eq!(parts.counts.iter().sum::<u64>(), values.iter().filter(|value| **value != 0.0).count() as u64);
    }

    #[test]
    fn percentile_cuts_a_fraction_at_each_end() {
        let values: Vec<f32> = (0..100_000).map(|i| (i as f32 + 0.5) / 1000.0 - 25.0).collect();
        let bin = 2.0 * 128.0 / BINS as f32;
        for covered in [100.0, 99.0, 90.0] {
            let Range { low, high } = histogram(&values).range(RangeRule::Percentile { covered });
            let cut = (100.0 - covered) as f32;
            assert!((low - (-25.0 + cut)).abs() <= bin && (high - (75.0 - cut)).abs() <= bin, "{low} {high}");
        }
        let rectified: Vec<f32> = values.iter().map(|value| value.max(0.0)).collect();
        let range = histogram(&rectified).range(RangeRule::Percentile { covered: 99.0 });
        assert!(range.low == 0.0 && (range.high - 74.25).abs() <= bin, "zeros are not counted: {range:?}");
    }

    #[test]
    fn entropy_cuts_outliers_and_keeps_other_values() {
        let max_abs = |values: &[f32]| histogram(values).range(RangeRule::Entropy).max_abs();
        assert!(max_abs(&bell_with_outliers(&[])) > 1.2, "values up to 2, few of them above 1.5");
        let with_outlier = max_abs(&bell_with_outliers(&[40.0]));
        assert!((1.2..=4.0).contains(&with_outlier), "{with_outlier}");
        let flat: Vec<f32> = (0..100_000).map(|i| i as f32 / 1000.0).collect();
        assert!(max_abs(&flat) > 95.0, "{}", max_abs(&flat));
    }
}
