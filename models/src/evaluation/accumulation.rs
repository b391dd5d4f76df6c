//! Precision and recall of one class over all pictures, from what became of its detections.

use super::matching::{Candidate, Slots};
use super::{ClassScores, DETECTIONS, THRESHOLDS, average};
use crate::dataset::Annotation;

/// Recalls at which precision is read: 0, 0.01, ... 1. The products are `numpy.linspace`'s; 35 / 100 would differ.
const RECALLS: usize = 101;
const RECALL_STEP: f64 = 0.01;

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

    /// The average over thresholds, with the best detection per picture.
    pub(super) fn recall_of_1(&self) -> f64 {
        average(self.recall[0])
    }

    /// The average over thresholds, with the best 10 detections per picture.
    pub(super) fn recall_of_10(&self) -> f64 {
        average(self.recall[1])
    }

    /// The average over thresholds, with the best 100 detections per picture.
    pub(super) fn recall_of_100(&self) -> f64 {
        average(self.recall[2])
    }
}

/// The numbers of one class, from its objects and its judged detections, the latter by picture, best first.
pub(super) fn accumulate(objects: &[&Annotation], candidates: &[Candidate]) -> ClassScores {
    let ranked = candidates.chunk_by(|a, b| a.image == b.image).flat_map(|group| group.iter().enumerate());
    let counting = ranked.filter(|(_, candidate)| !(candidate.right.is_empty() && candidate.wrong.is_empty()));
    let mut outcomes: Vec<Outcome> =
        counting.map(|(rank, &Candidate { score, right, wrong, .. })| Outcome { score, rank, right, wrong }).collect();
    // Stable: among equal scores, the earlier picture comes first.
    outcomes.sort_by(|a, b| b.score.total_cmp(&a.score));

    let mut scores = ClassScores::default();
    for (area, scores) in scores.iter_mut().enumerate() {
        // The threshold does not matter here.
        let slot = Slots::single(area, 0);
        let counts = |object: &&&Annotation| !object.crowd && Slots::of_area(object.area).contains(slot);
        let positives = objects.iter().filter(counts).count();
        if positives > 0 {
            *scores = Some(area_scores(area, positives, &outcomes));
        }
    }
    scores
}

/// A candidate in the order of the whole class.
struct Outcome {
    score: f64,
    /// Among those of its picture.
    rank: usize,
    right: Slots,
    wrong: Slots,
}

fn area_scores(area: usize, positives: usize, outcomes: &[Outcome]) -> AreaScores {
    let mut scores = AreaScores { precision: Default::default(), recall: Default::default() };
    let mut precisions = Vec::new();
    for threshold in 0..THRESHOLDS.len() {
        let slot = Slots::single(area, threshold);
        let mut wrong = 0;
        let mut found = [0; DETECTIONS.len()];
        precisions.clear();
        for outcome in outcomes {
            if outcome.right.contains(slot) {
                for (found, limit) in found.iter_mut().zip(DETECTIONS) {
                    *found += usize::from(outcome.rank < limit);
                }
                let right = precisions.len() + 1;
                precisions.push(right as f64 / ((wrong + right) as f64 + f64::EPSILON));
            }
            wrong += usize::from(outcome.wrong.contains(slot));
        }
        scores.precision[threshold] = average_precision(&mut precisions, positives);
        for (recall, found) in scores.recall.iter_mut().zip(found) {
            recall[threshold] = found as f64 / positives as f64;
        }
    }
    scores
}

/// The mean over recalls of the best precision at that recall or a higher one. `precisions` are those after each object
/// found: between two of them precision only falls, so these are all that matter.
fn average_precision(precisions: &mut [f64], positives: usize) -> f64 {
    for earlier in (1..precisions.len()).rev() {
        precisions[earlier - 1] = precisions[earlier - 1].max(precisions[earlier]);
    }
    let mut sum = 0.0;
    let mut place = 0;
    for step in 0..RECALLS {
        let recall = step as f64 * RECALL_STEP;
        while place < precisions.len() && ((place + 1) as f64 / positives as f64) < recall {
            place += 1;
        }
        sum += precisions.get(place).copied().unwrap_or(0.0);
    }
    sum / RECALLS as f64
}
