//! Precision and recall of one class over all images, from the match results of its detections.

use super::curves::{BestF1, Curve, Curves, RECALLS, recalls};
use super::matching::{MatchResult, Object};
use super::protocol::{ALL, AREAS, AT_50, AT_75, LIMITS, THRESHOLDS, average};

/// The metrics of one class.
pub(super) struct ClassScores {
    /// By area range; none if the class has no objects in that range.
    pub(super) areas: [Option<AreaScores>; AREAS.len()],
    pub(super) objects: usize,
    pub(super) detections: usize,
    pub(super) best_f1: Option<BestF1>,
    pub(super) curves: Option<Curves>,
}

/// The metrics of one class for objects of one area range.
pub(super) struct AreaScores {
    /// By IoU threshold: the average over recalls.
    pub(super) precision: [f64; THRESHOLDS.len()],
    /// By limit of detections and IoU threshold.
    recall: [[f64; THRESHOLDS.len()]; LIMITS],
}

impl AreaScores {
    /// The average over IoU thresholds.
    pub(super) fn precision(&self) -> f64 {
        average(self.precision)
    }

    /// The average over IoU thresholds, with this limit of detections per image: the first (0), second or third.
    pub(super) fn recall(&self, limit: usize) -> f64 {
        average(self.recall[limit])
    }
}

/// Counts the match results of the detections of one class, in descending order of score.
pub(super) struct Tally {
    areas: [AreaTally; AREAS.len()],
    /// Limits of detections per image, for recall.
    limits: [usize; LIMITS],
    detections: usize,
    /// Scores of the first and of the latest detection.
    scores: Option<[f64; 2]>,
    best_f1: Option<BestF1>,
}

/// The counts for one area range.
#[derive(Default)]
struct AreaTally {
    /// Number of objects.
    positives: usize,
    /// False positives at every IoU threshold, as most false positives are.
    false_positives: usize,
    thresholds: [ThresholdTally; THRESHOLDS.len()],
}

/// The counts for one area range and IoU threshold.
#[derive(Default)]
struct ThresholdTally {
    /// False positives at this threshold, but not at every one.
    false_positives: usize,
    /// The true positives, in descending order of score.
    true_positives: Vec<TruePositive>,
    /// The number of true positives with a rank within each limit of detections.
    found: [usize; LIMITS],
}

/// A detection that matches an object.
struct TruePositive {
    score: f64,
    /// Precision of all detections down to this score.
    precision: f64,
}

impl Tally {
    pub(super) fn new(objects: &[Object], limits: [usize; LIMITS]) -> Self {
        let mut areas: [AreaTally; AREAS.len()] = Default::default();
        for (area, tally) in areas.iter_mut().enumerate() {
            tally.positives = objects.iter().filter(|object| object.counted.thresholds(area) != 0).count();
        }
        Self { areas, limits, detections: 0, scores: None, best_f1: None }
    }

    /// Counts the next detection. `rank` is its rank by score within its image, from 0.
    pub(super) fn add(&mut self, score: f64, rank: usize, result: MatchResult) {
        const EVERY: u32 = (1 << THRESHOLDS.len()) - 1;
        if self.scores.is_some_and(|[_, latest]| score < latest) {
            self.update_best_f1();
        }
        self.scores = Some([self.scores.map_or(score, |[first, _]| first), score]);
        self.detections += 1;
        for (area, tally) in self.areas.iter_mut().enumerate() {
            match result.false_positive.thresholds(area) {
                EVERY => tally.false_positives += 1,
                some => bits(some).for_each(|threshold| tally.thresholds[threshold].false_positives += 1),
            }
            for threshold in bits(result.true_positive.thresholds(area)) {
                tally.thresholds[threshold].add(score, self.limits.map(|limit| rank < limit), tally.false_positives);
            }
        }
    }

    /// Updates the best F1 with all detections so far. Called after the last detection of each score, so that those of
    /// equal score are included together.
    fn update_best_f1(&mut self) {
        let AreaTally { positives, false_positives: at_every_threshold, thresholds } = &self.areas[ALL];
        let ThresholdTally { false_positives, true_positives, .. } = &thresholds[AT_50];
        let Some([_, score]) = self.scores.filter(|_| !true_positives.is_empty()) else { return };
        let detections = (true_positives.len() + at_every_threshold + false_positives) as f64;
        let (matched, positives) = (true_positives.len() as f64, *positives as f64);
        let f1 = 2.0 * matched / (detections + positives);
        if self.best_f1.is_none_or(|best| f1 > best.f1) {
            self.best_f1 = Some(BestF1 { f1, score, precision: matched / detections, recall: matched / positives });
        }
    }

    pub(super) fn finish(mut self) -> ClassScores {
        self.update_best_f1();
        let areas = self.areas.each_mut().map(|tally| (tally.positives > 0).then(|| tally.finish()));
        let all = &self.areas[ALL];
        ClassScores {
            areas,
            objects: all.positives,
            detections: self.detections,
            best_f1: self.best_f1,
            curves: (all.positives > 0).then(|| all.curves(self.scores.map_or(0.0, |[first, _]| first))),
        }
    }
}

impl AreaTally {
    fn finish(&mut self) -> AreaScores {
        let mut scores = AreaScores { precision: Default::default(), recall: Default::default() };
        for (threshold, tally) in self.thresholds.iter_mut().enumerate() {
            tally.make_precision_monotone();
            let precisions = tally.at_recalls(self.positives).map(|found| found.map_or(0.0, |found| found.precision));
            scores.precision[threshold] = precisions.sum::<f64>() / RECALLS as f64;
            for (recall, found) in scores.recall.iter_mut().zip(tally.found) {
                recall[threshold] = found as f64 / self.positives as f64;
            }
        }
        scores
    }

    /// `max_score` is the score of the first detection, which may be a false positive.
    fn curves(&self, max_score: f64) -> Curves {
        let mut precision = vec![0.0; RECALLS];
        for tally in &self.thresholds {
            for (sum, found) in precision.iter_mut().zip(tally.at_recalls(self.positives)) {
                *sum += found.map_or(0.0, |found| found.precision);
            }
        }
        precision.iter_mut().for_each(|sum| *sum /= THRESHOLDS.len() as f64);
        let curve = |threshold: usize| {
            let true_positives = self.thresholds[threshold].at_recalls(self.positives);
            let (precision, mut score): (Vec<_>, Vec<_>) =
                true_positives.map(|found| found.map_or((0.0, 0.0), |found| (found.precision, found.score))).unzip();
            // The first detection reaches recall 0 even if it is a false positive.
            score[0] = max_score;
            Curve { precision, score }
        };
        Curves { precision, iou50: curve(AT_50), iou75: curve(AT_75) }
    }
}

impl ThresholdTally {
    /// `counted`: whether the detection is within each limit.
    fn add(&mut self, score: f64, counted: [bool; LIMITS], at_every_threshold: usize) {
        let matched = self.true_positives.len() + 1;
        let all = (self.false_positives + at_every_threshold + matched) as f64;
        self.true_positives.push(TruePositive { score, precision: matched as f64 / (all + f64::EPSILON) });
        for (found, counted) in self.found.iter_mut().zip(counted) {
            *found += usize::from(counted);
        }
    }

    /// Raises every precision to the maximum at that recall or a higher one. Precision only falls between two true
    /// positives, so only those matter.
    fn make_precision_monotone(&mut self) {
        let mut max = 0.0_f64;
        for found in self.true_positives.iter_mut().rev() {
            max = max.max(found.precision);
            found.precision = max;
        }
    }

    /// For each of [`recalls`], the true positive that reaches it; none if it is not reached.
    fn at_recalls(&self, positives: usize) -> impl Iterator<Item = Option<&TruePositive>> {
        let mut index = 0;
        recalls().map(move |recall| {
            while index < self.true_positives.len() && ((index + 1) as f64 / positives as f64) < recall {
                index += 1;
            }
            self.true_positives.get(index)
        })
    }
}

/// The indices of the bits that are set.
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let index = set.trailing_zeros();
        set &= set.checked_sub(1)?;
        Some(index as usize)
    })
}
