//! The objects and detections of one class, in the order that average precision needs.

use std::ops::Range;

use rayon::prelude::*;

use super::protocol::ScoredBox;
use crate::dataset::Annotation;

/// The objects and detections of one class.
pub(super) struct ClassBoxes<'a> {
    /// Sorted by image; objects of one image in input order.
    pub(super) objects: Vec<&'a Annotation>,
    /// The start of each image's objects in `objects`, and the end of the last.
    starts: Vec<usize>,
    /// Sorted by descending score, then by image, then in input order.
    pub(super) detections: Vec<ScoredBox>,
}

/// Applies `measure` to every class, in parallel. Boxes with a class index of `classes` or more are ignored.
pub(super) fn measure_classes<'a, T: Send>(
    truth: &'a [Annotation],
    detections: &[ScoredBox],
    classes: usize,
    measure: impl Fn(&ClassBoxes<'a>) -> T + Sync,
) -> Vec<T> {
    let objects = by_class(classes, truth.iter().map(|object| (object.class_index, object)));
    let ranks =
        detections.iter().enumerate().map(|(index, detection)| (detection.class_index, Rank::new(detection, index)));
    let classes = objects.into_par_iter().zip(by_class(classes, ranks));
    // One class per task, since a few classes may have most of the boxes.
    classes.with_max_len(1).map(|(objects, ranks)| measure(&ClassBoxes::new(objects, ranks, detections))).collect()
}

fn by_class<T>(classes: usize, boxes: impl Iterator<Item = (usize, T)>) -> Vec<Vec<T>> {
    let mut parts: Vec<_> = (0..classes).map(|_| Vec::new()).collect();
    for (class_index, item) in boxes {
        if let Some(part) = parts.get_mut(class_index) {
            part.push(item);
        }
    }
    parts
}

impl<'a> ClassBoxes<'a> {
    fn new(mut objects: Vec<&'a Annotation>, mut ranks: Vec<Rank>, detections: &[ScoredBox]) -> Self {
        // Stable, so that objects of one image keep their order.
        objects.sort_by_key(|object| object.image);
        ranks.sort_unstable();
        // Copied in one pass, since reading boxes scattered in memory takes longer than evaluating them.
        let detections = ranks.iter().map(|rank| detections[rank.index()]).collect();
        let images = objects.last().map_or(0, |object| object.image + 1);
        let mut starts = vec![0; images + 1];
        for object in &objects {
            starts[object.image + 1] += 1;
        }
        for image in 0..images {
            starts[image + 1] += starts[image];
        }
        Self { objects, starts, detections }
    }

    /// The range in `objects` of an image's objects.
    pub(super) fn objects_of(&self, image: usize) -> Range<usize> {
        match self.starts.get(image..image + 2) {
            Some(&[start, end]) => start..end,
            _ => 0..0,
        }
    }
}

/// Sort key of a detection: descending score, then image, then index among all detections.
/// A single number, because it sorts several times faster than three.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u128);

impl Rank {
    fn new(detection: &ScoredBox, index: usize) -> Self {
        // 32 bits suffice: more images or detections would not fit into memory.
        Self(u128::from(!sortable_bits(detection.sort_score())) << 64 | (detection.image as u128) << 32 | index as u128)
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Maps numbers to integers in the same order; not for NaN.
fn sortable_bits(number: f64) -> u64 {
    let bits = number.to_bits();
    if number.is_sign_negative() { !bits } else { bits | 1 << 63 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Rectangle;

    #[test]
    fn sortable_bits_keep_the_order() {
        let numbers = [f64::NEG_INFINITY, -2.5, -1e-300, 0.0, 1e-300, 0.5, 1.0, f64::INFINITY];
        assert!(numbers.map(sortable_bits).is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn detections_are_sorted_by_score_then_image_then_input_order() {
        let scores = [(3, 0.5), (1, f64::NAN), (2, -0.0), (1, 0.5), (0, 0.0), (0, 0.9), (3, 0.5)];
        let detections: Vec<_> = (0..)
            .map(f64::from)
            .zip(scores)
            .map(|(x, (image, score))| ScoredBox {
                image,
                class_index: 0,
                score,
                rectangle: Rectangle { x, ..Rectangle::default() },
            })
            .collect();
        let found = |class: &ClassBoxes| class.detections.iter().map(|found| found.rectangle.x).collect::<Vec<_>>();
        assert_eq!(measure_classes(&[], &detections, 1, found), [[5.0, 3.0, 0.0, 6.0, 4.0, 2.0, 1.0]]);
    }

    #[test]
    fn objects_are_found_by_image() {
        let object = |id, image| Annotation {
            id,
            image,
            class_index: 0,
            rectangle: Rectangle::default(),
            area: 0.0,
            crowd: false,
            difficult: false,
        };
        let truth = [(1, 4), (2, 1), (3, 4), (4, 0)].map(|(id, image)| object(id, image));
        let ids = |class: &ClassBoxes| {
            let of = |image| class.objects[class.objects_of(image)].iter().map(|object| object.id).collect::<Vec<_>>();
            [0, 1, 2, 4, 5, 6].map(of)
        };
        assert_eq!(measure_classes(&truth, &[], 1, ids), [[vec![4], vec![2], vec![], vec![1, 3], vec![], vec![]]]);
    }
}
