//! Which detections have found an object, at every IoU threshold and area range at once.

use super::{AREAS, THRESHOLDS};
use crate::dataset::{Annotation, Rectangle};

/// A set of judgements, one bit for each area range and threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slots(u64);

impl Slots {
    const ALL: Self = Self((1 << (AREAS.len() * THRESHOLDS.len())) - 1);
    const NONE: Self = Self(0);

    /// All thresholds of the ranges that hold `area`.
    pub(super) fn of_area(area: f64) -> Self {
        let thresholds = (1 << THRESHOLDS.len()) - 1;
        let ranges = AREAS.iter().enumerate().filter(|(_, [low, high])| !(area < *low || area > *high));
        Self(ranges.fold(0, |slots, (range, _)| slots | thresholds << (range * THRESHOLDS.len())))
    }

    /// All ranges of the thresholds that `overlap` reaches.
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

/// An object to be found.
pub(super) struct Object {
    rectangle: Rectangle,
    crowd: bool,
    /// Where it counts; a crowd does nowhere.
    pub(super) counts: Slots,
    /// Where a detection has found it already. Crowds can be found again and again.
    taken: Slots,
}

impl Object {
    pub(super) fn new(annotation: &Annotation) -> Self {
        let Annotation { rectangle, area, crowd, .. } = *annotation;
        let counts = if crowd { Slots::NONE } else { Slots::of_area(area) };
        Self { rectangle, crowd, counts, taken: Slots::NONE }
    }
}

/// What became of a detection. In slots of neither kind it does not count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MatchResult {
    /// Where it found an object.
    pub(super) right: Slots,
    /// Where it found nothing although it should have.
    pub(super) wrong: Slots,
}

/// Place of an object that a detection overlaps by at least the lowest threshold, and by how much.
pub(super) type Rival = (usize, f64);

/// Judges a detection among the objects of its image, after all better detections: it takes the object that it overlaps
/// most among those still free. `rivals` is room that this needs, to be kept from detection to detection.
pub(super) fn judge(detection: &Rectangle, objects: &mut [Object], rivals: &mut Vec<Rival>) -> MatchResult {
    let overlaps = objects.iter().map(|object| overlap(detection, object)).enumerate();
    rivals.clear();
    rivals.extend(overlaps.filter(|(_, overlap)| *overlap >= THRESHOLDS[0]));
    // Of equal overlaps the last one wins.
    rivals.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
    let mut open = Slots::ALL;
    let mut right = Slots::NONE;
    for &(place, overlap) in rivals.iter() {
        let object = &mut objects[place];
        let found = open.and(Slots::of_overlap(overlap)).and(object.counts).without(object.taken);
        object.taken = object.taken.or(found);
        right = right.or(found);
        open = open.without(found);
    }
    // Objects that don't count are second choice, whatever the overlap.
    for &(place, overlap) in rivals.iter() {
        let object = &mut objects[place];
        let found = open.and(Slots::of_overlap(overlap)).without(object.counts).without(object.taken);
        if !object.crowd {
            object.taken = object.taken.or(found);
        }
        open = open.without(found);
    }
    MatchResult { right, wrong: open.and(Slots::of_area(detection.area())) }
}

/// IoU; the share of the detection when the object is a crowd, which may be matched by any part.
fn overlap(detection: &Rectangle, object: &Object) -> f64 {
    if object.crowd { detection.intersection_over_area(&object.rectangle) } else { detection.iou(&object.rectangle) }
}
