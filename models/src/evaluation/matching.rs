//! Which detections have found an object: of one picture and class, at every IoU threshold and area range at once.

use rayon::prelude::*;

use super::{AREAS, DETECTIONS, ScoredBox, THRESHOLDS};
use crate::dataset::{Annotation, Rectangle};

/// A set of judgements, one bit for each area range and threshold.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) struct Slots(u64);

impl Slots {
    /// The judgement for one area range and threshold.
    pub(super) fn single(area: usize, threshold: usize) -> Self {
        Self(1 << (area * THRESHOLDS.len() + threshold))
    }

    /// Every slot, with its threshold.
    fn each() -> impl Iterator<Item = (Self, f64)> {
        let of_area = |area| THRESHOLDS.into_iter().enumerate().map(move |(i, bound)| (Self::single(area, i), bound));
        (0..AREAS.len()).flat_map(of_area)
    }

    /// All thresholds of the ranges that hold `area`.
    pub(super) fn of_area(area: f64) -> Self {
        let thresholds = (1 << THRESHOLDS.len()) - 1;
        let ranges = AREAS.iter().enumerate().filter(|(_, [low, high])| !(area < *low || area > *high));
        Self(ranges.fold(0, |slots, (range, _)| slots | thresholds << (range * THRESHOLDS.len())))
    }

    pub(super) fn contains(self, slot: Self) -> bool {
        self.0 & slot.0 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn insert(&mut self, slot: Self) {
        self.0 |= slot.0;
    }

    fn remove(&mut self, slot: Self) {
        self.0 &= !slot.0;
    }
}

/// A detection and what became of it.
pub(super) struct Candidate {
    pub(super) image: usize,
    /// Never NaN and never negative zero, so that a total order is the numeric one.
    pub(super) score: f64,
    rectangle: Rectangle,
    /// Where it found an object.
    pub(super) right: Slots,
    /// Where it found nothing although it should have. In slots of neither kind it does not count.
    pub(super) wrong: Slots,
}

impl Candidate {
    pub(super) fn new(detection: &ScoredBox) -> Self {
        let ScoredBox { image, score, rectangle, .. } = *detection;
        let score = if score.is_nan() { f64::NEG_INFINITY } else { score + 0.0 };
        Self { image, score, rectangle, right: Slots::default(), wrong: Slots::default() }
    }
}

/// Judges all candidates of one class. Both slices are sorted by picture, the candidates of a picture best first.
pub(super) fn judge(mut objects: &[&Annotation], candidates: &mut [Candidate]) {
    let mut pictures = Vec::new();
    for candidates in candidates.chunk_by_mut(|a, b| a.image == b.image) {
        let image = candidates[0].image;
        let earlier = objects.iter().take_while(|object| object.image < image).count();
        let here = objects[earlier..].iter().take_while(|object| object.image == image).count();
        let (mine, later) = objects[earlier..].split_at(here);
        objects = later;
        pictures.push(Picture { objects: mine, candidates });
    }
    pictures.par_iter_mut().with_min_len(64).for_each_init(Scratch::default, |scratch, picture| picture.judge(scratch));
}

/// The objects and the detections of one picture and class.
struct Picture<'a> {
    objects: &'a [&'a Annotation],
    /// Best first.
    candidates: &'a mut [Candidate],
}

/// Room for what [`Picture::judge`] computes, kept from picture to picture.
#[derive(Default)]
struct Scratch {
    /// Those of the picture, in their order.
    objects: Vec<Object>,
    /// Places of the objects that one detection overlaps by at least the lowest threshold, and by how much.
    rivals: Vec<(usize, f64)>,
}

struct Object {
    /// Where it counts.
    counts: Slots,
    /// Where a detection has found it already. Crowds can be found again and again.
    taken: Slots,
}

impl Picture<'_> {
    /// Judges the candidates, best first: each takes the object that it overlaps most among those still free.
    fn judge(&mut self, scratch: &mut Scratch) {
        scratch.objects.clear();
        scratch.objects.extend(self.objects.iter().map(|object| Object::new(object)));
        for candidate in self.candidates.iter_mut().take(DETECTIONS[2]) {
            candidate.wrong = Slots::of_area(candidate.rectangle.area());
            let overlaps = self.objects.iter().map(|object| overlap(&candidate.rectangle, object)).enumerate();
            scratch.rivals.clear();
            scratch.rivals.extend(overlaps.filter(|(_, overlap)| *overlap >= THRESHOLDS[0]));
            if scratch.rivals.is_empty() {
                continue;
            }
            for (slot, bound) in Slots::each() {
                let counting = scratch.best(slot, bound, true);
                // Objects that don't count are second choice, whatever the overlap.
                let Some(place) = counting.or_else(|| scratch.best(slot, bound, false)) else { continue };
                candidate.wrong.remove(slot);
                if counting.is_some() {
                    candidate.right.insert(slot);
                }
                if !self.objects[place].crowd {
                    scratch.objects[place].taken.insert(slot);
                }
            }
        }
    }
}

impl Scratch {
    /// The place of the free rival with the largest overlap from `bound`, among those that count or don't count.
    fn best(&self, slot: Slots, bound: f64, counts: bool) -> Option<usize> {
        let mut best = (None, bound);
        for &(place, overlap) in &self.rivals {
            let object = &self.objects[place];
            let eligible = object.counts.contains(slot) == counts && !object.taken.contains(slot);
            // Of equal overlaps the last one wins.
            if eligible && overlap >= best.1 {
                best = (Some(place), overlap);
            }
        }
        best.0
    }
}

impl Object {
    fn new(annotation: &Annotation) -> Self {
        let counts = if annotation.crowd { Slots::default() } else { Slots::of_area(annotation.area) };
        Self { counts, taken: Slots::default() }
    }
}

/// Intersection over union; over the detection's area when the object is a crowd, which may be matched by any part.
fn overlap(detection: &Rectangle, object: &Annotation) -> f64 {
    let (a, b) = (detection, &object.rectangle);
    let width = (a.width + a.x).min(b.width + b.x) - a.x.max(b.x);
    let height = (a.height + a.y).min(b.height + b.y) - a.y.max(b.y);
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let intersection = width * height;
    let union = if object.crowd { a.area() } else { a.area() + b.area() - intersection };
    intersection / union
}
