//! Ranges: which numbers a value takes, and which of them 8 bits should cover.

use std::fmt;
use std::str::FromStr;

/// Bins of a histogram. Half of them are for the numbers of one sign, so that there are at least four for each of the 256
/// steps that they are rounded to.
const BINS: usize = 4096;

/// Bins between two cuts that the search for the least entropy tries.
const STRIDE: usize = 8;

/// Numbers between which a value lies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Range {
    /// The smallest.
    pub(crate) low: f32,
    /// The largest.
    pub(crate) high: f32,
}

impl Range {
    /// The larger of the two sizes.
    pub(crate) fn reach(self) -> f32 {
        self.high.max(-self.low)
    }

    fn clip(self, low: f32, high: f32) -> Self {
        Self { low: self.low.max(low), high: self.high.min(high) }
    }
}

/// How the range that is covered follows from the numbers that were seen. What lies beyond is rounded to its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeRule {
    /// From the smallest to the largest.
    MinMax,
    /// All but a share of the numbers at each end.
    Percentile {
        /// The percentage that is covered at each end, from 50 to 100.
        covered: f64,
    },
    /// The range with which the rounded numbers' distribution differs least from theirs, by Kullback and Leibler's
    /// measure. <https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf>
    Entropy,
}

impl RangeRule {
    /// The rule that lost least on the blood cells; the README has the numbers.
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

/// Numbers that were seen, counted in bins of equal width around zero. Zeros are not counted, because every rule covers
/// them and they are rounded to themselves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    range: Range,
    /// The bins cover what is smaller than this, a power of two.
    reach: f32,
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { range: Range::default(), reach: f32::MIN_POSITIVE, counts: vec![0; BINS] }
    }
}

impl Histogram {
    /// Counts `values`. What is not finite makes the range so.
    pub(crate) fn add(&mut self, values: &[f32]) {
        let (low, high) = values.iter().fold((0.0, 0.0), |(low, high): (f32, f32), value| {
            (if *value < low { *value } else { low }, if *value > high { *value } else { high })
        });
        let is_number = values.iter().fold(true, |all, value| all & !value.is_nan());
        let seen = if is_number { Range { low, high } } else { Range { low: f32::NAN, high: f32::NAN } };
        self.range = Range { low: least(self.range.low, seen.low), high: -least(-self.range.high, -seen.high) };
        if !self.range.reach().is_finite() {
            return;
        }
        while self.range.reach() >= self.reach {
            self.widen();
        }
        let per_bin = (BINS / 2) as f32 / self.reach;
        for value in values.iter().filter(|value| **value != 0.0) {
            let bin = (value * per_bin).floor() + (BINS / 2) as f32;
            self.counts[(bin as usize).min(BINS - 1)] += 1;
        }
    }

    /// Doubles what the bins cover: two become one.
    fn widen(&mut self) {
        self.reach *= 2.0;
        let mut counts = vec![0; BINS];
        for (pair, count) in self.counts.chunks_exact(2).zip(&mut counts[BINS / 4..]) {
            *count = pair.iter().sum();
        }
        self.counts = counts;
    }

    /// The numbers that were seen; not finite when one of them was not.
    pub(crate) fn seen(&self) -> Range {
        self.range
    }

    /// The range that `rule` covers.
    pub(crate) fn range(&self, rule: RangeRule) -> Range {
        match rule {
            RangeRule::MinMax => self.range,
            RangeRule::Percentile { covered } => self.percentile(covered),
            RangeRule::Entropy => self.least_entropy(),
        }
    }

    fn percentile(&self, covered: f64) -> Range {
        let total: u64 = self.counts.iter().sum();
        let beyond = ((1.0 - covered / 100.0) * total as f64) as u64;
        // Whole bins from an end inwards, as long as no more than the share lies in them.
        let cut = |counts: &mut dyn Iterator<Item = &u64>| {
            let within = |sum: &mut u64, count: &u64| {
                *sum += count;
                (*sum <= beyond).then_some(())
            };
            counts.scan(0, within).count()
        };
        let (low, high) = (cut(&mut self.counts.iter()), cut(&mut self.counts.iter().rev()));
        let width = 2.0 * self.reach / BINS as f32;
        self.range.clip((low as f32 * width - self.reach).min(0.0), (self.reach - high as f32 * width).max(0.0))
    }

    fn least_entropy(&self) -> Range {
        let (negative, positive) = self.counts.split_at(BINS / 2);
        let sizes: Vec<u64> = negative.iter().rev().zip(positive).map(|(a, b)| a + b).collect();
        // A sign takes half of the 256 steps where both occur.
        let levels = if self.range.low < 0.0 { 128 } else { 256 };
        let cuts = (levels..=sizes.len()).step_by(STRIDE);
        let divergence = |cut: &usize| divergence(&sizes, *cut, levels);
        let cut = cuts.min_by(|a, b| divergence(a).total_cmp(&divergence(b))).unwrap_or(sizes.len());
        let reach = self.reach * cut as f32 / sizes.len() as f32;
        self.range.clip(-reach, reach)
    }
}

/// The smaller number; NaN if one is.
fn least(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// Kullback and Leibler's divergence of what `levels` steps up to the bin `cut` make of `counts`.
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
            // All that lies beyond is rounded into the last bin.
            let clipped = if bin + 1 == cut { beyond } else { 0 };
            let before = (counts[bin] + clipped) as f64 / total as f64;
            if before > 0.0 {
                // The step spreads what it holds evenly; the clipped share was not seen there.
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

    /// Numbers of a bell, by a sum of four equally distributed ones, and a few far away.
    fn bell_with_strays(strays: &[f32]) -> Vec<f32> {
        let mut state = 1u64;
        let mut unit = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..20_000).map(|_| (0..4).map(|_| unit() - 0.5).sum()).chain(strays.iter().copied()).collect()
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in ["minmax", "entropy", "percentile:99.9"] {
            assert_eq!(text.parse::<RangeRule>().unwrap().to_string(), text);
        }
        for text in ["", "max", "percentile", "percentile:", "percentile:49", "percentile:101", "percentile:NaN"] {
            assert!(text.parse::<RangeRule>().unwrap_err().contains("percentile:P"), "{text}");
        }
    }

    #[test]
    fn the_widest_rule_covers_everything_and_zero() {
        let range = |values: &[f32]| histogram(values).range(RangeRule::MinMax);
        assert_eq!(range(&[2.0, 5.0]), Range { low: 0.0, high: 5.0 });
        assert_eq!(range(&[-2.0, 1e-30, 1e30]), Range { low: -2.0, high: 1e30 });
        assert_eq!(range(&[]), Range { low: 0.0, high: 0.0 });
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!histogram(&[1.0, value, 2.0]).seen().reach().is_finite());
        }
    }

    #[test]
    fn what_comes_in_parts_counts_as_what_comes_at_once() {
        let values = bell_with_strays(&[70.0, -9.0]);
        let mut parts = Histogram::default();
        values.chunks(777).for_each(|part| parts.add(part));
        assert_eq!(parts, histogram(&values));
        assert_eq!(parts.counts.iter().sum::<u64>(), values.iter().filter(|value| **value != 0.0).count() as u64);
    }

    #[test]
    fn a_percentile_leaves_out_its_share_at_each_end() {
        let values: Vec<f32> = (0..100_000).map(|i| (i as f32 + 0.5) / 1000.0 - 25.0).collect();
        let bin = 2.0 * 128.0 / BINS as f32;
        for covered in [100.0, 99.0, 90.0] {
            let Range { low, high } = histogram(&values).range(RangeRule::Percentile { covered });
            let share = (100.0 - covered) as f32;
            assert!((low - (-25.0 + share)).abs() <= bin && (high - (75.0 - share)).abs() <= bin, "{low} {high}");
        }
        let rectified: Vec<f32> = values.iter().map(|value| value.max(0.0)).collect();
        let range = histogram(&rectified).range(RangeRule::Percentile { covered: 99.0 });
        assert!(range.low == 0.0 && (range.high - 74.25).abs() <= bin, "zeros are not counted: {range:?}");
    }

    #[test]
    fn least_entropy_gives_up_what_strays_and_keeps_what_does_not() {
        let reach = |values: &[f32]| histogram(values).range(RangeRule::Entropy).reach();
        assert!(reach(&bell_with_strays(&[])) > 1.2, "a bell up to 2 with nearly nothing beyond 1.5");
        let strayed = reach(&bell_with_strays(&[40.0]));
        assert!((1.2..=4.0).contains(&strayed), "{strayed}");
        let flat: Vec<f32> = (0..100_000).map(|i| i as f32 / 1000.0).collect();
        assert!(reach(&flat) > 95.0, "{}", reach(&flat));
    }
}
