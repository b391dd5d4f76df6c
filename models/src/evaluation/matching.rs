//! Matches detections to objects, at all IoU thresholds and area ranges at once.

use super::protocol::{AREAS, THRESHOLDS};
use crate::dataset::Annotation;
use crate::rectangle::Rectangle;

/// A set of slots, one bit each. A slot is a pair of area range and IoU threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slots(u64);

impl Slots {
    const ALL: Self = Self((1 << (AREAS.len() * THRESHOLDS.len())) - 1);
    const NONE: Self = Self(0);

    /// All thresholds of the ranges that contain `area`.
    pub(super) fn of_area(area: f64) -> Self {
        let thresholds = (1 << THRESHOLDS.len()) - 1;
        let ranges = AREAS.iter().enumerate().filter(|(_, [low, high])| !(area < *low || area > *high));
        Self(ranges.fold(0, |slots, (range, _)| slots | thresholds << (range * THRESHOLDS.len())))
    }

    /// The thresholds that `overlap` reaches, in all ranges.
    fn of_overlap(overlap: f64) -> Self {
        let reached = THRESHOLDS.iter().filter(|threshold| overlap >= **threshold).count();
        let thresholds = (1 << reached) - 1;
        Self((0..AREAS.len()).fold(0, |slots, range| slots | thresholds << (range * THRESHOLDS.len())))
    }

    /// The thresholds of one area range: bit 0 is the lowest.
    pub(super) fn thresholds(self, area: usize) -> u32 {
        (self.0 >> (area * THRESHOLDS.len())) as u32 & ((1 << THRESHOLDS.len()) - 1)
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// A ground truth object.
pub(super) struct Object {
    rectangle: Rectangle,
    crowd: bool,
    /// The slots in which it counts; none for a crowd region.
    pub(super) counted: Slots,
    /// The slots in which a detection is matched to it. Crowd regions can be matched any number of times.
    matched: Slots,
}

impl Object {
    pub(super) fn new(annotation: &Annotation) -> Self {
        let Annotation { rectangle, area, crowd, .. } = *annotation;
        let counted = if crowd { Slots::NONE } else { Slots::of_area(area) };
        Self { rectangle, crowd, counted, matched: Slots::NONE }
    }
}

/// The result of a detection. It is ignored in slots of neither set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MatchResult {
    /// The slots in which it matches an object.
    pub(super) true_positive: Slots,
    /// The slots in which it matches no object, and its area is in range.
    pub(super) false_positive: Slots,
}

/// Index of an object that a detection overlaps by at least the lowest threshold, and the overlap.
pub(super) type Candidate = (usize, f64);

/// Matches a detection to the objects of its image, after all higher-scoring detections: to the unmatched object that
/// it overlaps most. `candidates` is a scratch buffer, reused between calls.
pub(super) fn match_detection(
    detection: &Rectangle,
    objects: &mut [Object],
    candidates: &mut Vec<Candidate>,
) -> MatchResult {
    let overlaps = objects.iter().map(|object| overlap(detection, object)).enumerate();
    candidates.clear();
    candidates.extend(overlaps.filter(|(_, overlap)| *overlap >= THRESHOLDS[0]));
    // Among equal overlaps, the last object wins.
    candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
    let mut unmatched = Slots::ALL;
    let mut true_positive = Slots::NONE;
    for &(index, overlap) in candidates.iter() {
        let object = &mut objects[index];
        let slots = unmatched.and(Slots::of_overlap(overlap)).and(object.counted).without(object.matched);
        object.matched = object.matched.or(slots);
        true_positive = true_positive.or(slots);
        unmatched = unmatched.without(slots);
    }
    // Crowd regions and objects outside the area range are matched last, regardless of the overlap.
    for &(index, overlap) in candidates.iter() {
        let object = &mut objects[index];
        let slots = unmatched.and(Slots::of_overlap(overlap)).without(object.counted).without(object.matched);
        if !object.crowd {
            object.matched = object.matched.or(slots);
        }
        unmatched = unmatched.without(slots);
    }
    MatchResult { true_positive, false_positive: unmatched.and(Slots::of_area(detection.area())) }
}

/// The IoU; for a crowd region, the fraction of the detection inside it, since any part of the region may be matched.
fn overlap(detection: &Rectangle, object: &Object) -> f64 {
    if object.crowd { detection.intersection_over_area(&object.rectangle) } else { detection.iou(&object.rectangle) }
}
