//! Precision and recall of one class over all images, from what became of its detections.

use super::curves::{Curve, Curves, RECALLS, recalls};
use super::matching::{MatchResult, Object};
use super::summary::{BestF1, average};
use super::{ALL, AREAS, AT_50, AT_75, DETECTIONS, THRESHOLDS};

/// The numbers of one class.
pub(super) struct ClassScores {
    /// By area; none where the class has no object of that area.
    pub(super) areas: [Option<AreaScores>; AREAS.len()],
    pub(super) objects: usize,
    pub(super) detections: usize,
    pub(super) best_f1: Option<BestF1>,
    pub(super) curves: Option<Curves>,
}

/// The numbers of one class for objects of one area range.
pub(super) struct AreaScores {
    /// By threshold: the average over recalls.
    pub(super) precision: [f64; THRESHOLDS.len()],
    /// By [`DETECTIONS`] and threshold.
    recall: [[f64; THRESHOLDS.len()]; DETECTIONS.len()],
}

impl AreaScores {
    /// The average over thresholds.
    pub(super) fn precision(&self) -> f64 {
        average(self.precision)
    }

    /// The average over thresholds, with the best detection per image.
    pub(super) fn recall_of_1(&self) -> f64 {
        average(self.recall[0])
    }

    /// The average over thresholds, with the best 10 detections per image.
    pub(super) fn recall_of_10(&self) -> f64 {
        average(self.recall[1])
    }

    /// The average over thresholds, with the best 100 detections per image.
    pub(super) fn recall_of_100(&self) -> f64 {
        average(self.recall[2])
    }
}

/// Counts what becomes of the detections of one class, the best first.
pub(super) struct Tally {
    areas: [AreaTally; AREAS.len()],
    detections: usize,
    /// Of the first detection and of the latest.
    scores: Option<[f64; 2]>,
    best_f1: Option<BestF1>,
}

/// For objects of one area range.
#[derive(Default)]
struct AreaTally {
    /// Objects.
    positives: usize,
    /// Detections that were wrong at every threshold, as most are that are wrong at any.
    wrong: usize,
    thresholds: [ThresholdTally; THRESHOLDS.len()],
}

/// For objects of one area range at one threshold.
#[derive(Default)]
struct ThresholdTally {
    /// Detections that were wrong here and not at every threshold.
    wrong: usize,
    /// Detections that were right.
    true_positives: Vec<TruePositive>,
    /// How many of them count, by [`DETECTIONS`].
    found: [usize; DETECTIONS.len()],
}

/// A detection that was right.
struct TruePositive {
    score: f64,
    /// Of all detections down to this one.
    precision: f64,
}

impl Tally {
    pub(super) fn new(objects: &[Object]) -> Self {
        let mut areas: [AreaTally; AREAS.len()] = Default::default();
        for (area, tally) in areas.iter_mut().enumerate() {
            tally.positives = objects.iter().filter(|object| object.counts.thresholds(area) != 0).count();
        }
        Self { areas, detections: 0, scores: None, best_f1: None }
    }

    /// Counts the next detection; `rank` is its place among those of its image.
    pub(super) fn add(&mut self, score: f64, rank: usize, result: MatchResult) {
        const EVERY: u32 = (1 << THRESHOLDS.len()) - 1;
        if self.scores.is_some_and(|[_, latest]| score < latest) {
            self.consider_latest();
        }
        self.scores = Some([self.scores.map_or(score, |[first, _]| first), score]);
        self.detections += 1;
        for (area, tally) in self.areas.iter_mut().enumerate() {
            match result.wrong.thresholds(area) {
                EVERY => tally.wrong += 1,
                some => bits(some).for_each(|threshold| tally.thresholds[threshold].wrong += 1),
            }
            for threshold in bits(result.right.thresholds(area)) {
                tally.thresholds[threshold].add(score, rank, tally.wrong);
            }
        }
    }

    /// Sees whether the detections so far are the best choice. Equally sure ones are chosen together.
    fn consider_latest(&mut self) {
        let AreaTally { positives, wrong, thresholds } = &self.areas[ALL];
        let ThresholdTally { wrong: wrong_here, true_positives, .. } = &thresholds[AT_50];
        let Some([_, score]) = self.scores.filter(|_| !true_positives.is_empty()) else { return };
        let (right, chosen, positives) =
            (true_positives.len() as f64, (true_positives.len() + wrong + wrong_here) as f64, *positives as f64);
        let f1 = 2.0 * right / (chosen + positives);
        if self.best_f1.is_none_or(|best| f1 > best.f1) {
            self.best_f1 = Some(BestF1 { f1, score, precision: right / chosen, recall: right / positives });
        }
    }

    pub(super) fn finish(mut self) -> ClassScores {
        self.consider_latest();
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
            tally.raise();
            let precisions = tally.at_recalls(self.positives).map(|found| found.map_or(0.0, |found| found.precision));
            scores.precision[threshold] = precisions.sum::<f64>() / RECALLS as f64;
            for (recall, found) in scores.recall.iter_mut().zip(tally.found) {
                recall[threshold] = found as f64 / self.positives as f64;
            }
        }
        scores
    }

    /// `highest` is the score of the first detection, right or wrong.
    fn curves(&self, highest: f64) -> Curves {
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
            // The first detection reaches recall 0 even if it is wrong.
            score[0] = highest;
            Curve { precision, score }
        };
        Curves { precision, iou50: curve(AT_50), iou75: curve(AT_75) }
    }
}

impl ThresholdTally {
    fn add(&mut self, score: f64, rank: usize, wrong_everywhere: usize) {
        let right = self.true_positives.len() + 1;
        let all = (self.wrong + wrong_everywhere + right) as f64;
        self.true_positives.push(TruePositive { score, precision: right as f64 / (all + f64::EPSILON) });
        for (found, limit) in self.found.iter_mut().zip(DETECTIONS) {
            *found += usize::from(rank < limit);
        }
    }

    /// Raises every precision to the best at that recall or a higher one. Between two true positives precision only falls, so these
    /// are all that matter.
    fn raise(&mut self) {
        let mut best = 0.0_f64;
        for found in self.true_positives.iter_mut().rev() {
            best = best.max(found.precision);
            found.precision = best;
        }
    }

    /// The true positives that reach the recalls at which precision is read.
    fn at_recalls(&self, positives: usize) -> impl Iterator<Item = Option<&TruePositive>> {
        let mut place = 0;
        recalls().map(move |recall| {
            while place < self.true_positives.len() && ((place + 1) as f64 / positives as f64) < recall {
                place += 1;
            }
            self.true_positives.get(place)
        })
    }
}

/// The places of the bits that are set.
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = set.trailing_zeros();
        set &= set.checked_sub(1)?;
        Some(place as usize)
    })
}
