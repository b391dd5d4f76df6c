//! The boxes of one class, in the order in which average precision takes them.

use std::ops::Range;

use rayon::prelude::*;

use super::ScoredBox;
use crate::dataset::Annotation;

/// What is to be found of one class, and what was found.
pub(super) struct ClassBoxes<'a> {
    /// By image; those of one image in the order given.
    pub(super) objects: Vec<&'a Annotation>,
    /// Where the objects of each image begin in `objects`, and where the last ones end.
    starts: Vec<usize>,
    /// The best first; of equally sure ones those of the earlier image, then in the order given.
    pub(super) detections: Vec<ScoredBox>,
}

/// Measures every class, several at a time. Boxes whose class is not below `classes` don't count.
pub(super) fn measure_classes<'a, T: Send>(
    truth: &'a [Annotation],
    detections: &[ScoredBox],
    classes: usize,
    measure: impl Fn(&ClassBoxes<'a>) -> T + Sync,
) -> Vec<T> {
    let objects = by_class(classes, truth.iter().map(|object| (object.class_index, object)));
    let ranks =
        detections.iter().enumerate().map(|(place, detection)| (detection.class_index, Rank::new(detection, place)));
    let classes = objects.into_par_iter().zip(by_class(classes, ranks));
    // One by one, since a few classes may have most of the boxes.
    classes.with_max_len(1).map(|(objects, ranks)| measure(&ClassBoxes::new(objects, ranks, detections))).collect()
}

fn by_class<T>(classes: usize, boxes: impl Iterator<Item = (usize, T)>) -> Vec<Vec<T>> {
    let mut parts: Vec<_> = (0..classes).map(|_| Vec::new()).collect();
    for (class, one) in boxes {
        if let Some(part) = parts.get_mut(class) {
            part.push(one);
        }
    }
    parts
}

impl<'a> ClassBoxes<'a> {
    fn new(mut objects: Vec<&'a Annotation>, mut ranks: Vec<Rank>, detections: &[ScoredBox]) -> Self {
        // Stable, so that those of one image stay in order.
        objects.sort_by_key(|object| object.image);
        ranks.sort_unstable();
        // Fetched all at once, since boxes that lie apart in memory cost more than what is done with them.
        let detections = ranks.iter().map(|rank| detections[rank.place()]).collect();
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

    /// The places in `objects` of those of an image.
    pub(super) fn objects_of(&self, image: usize) -> Range<usize> {
        match self.starts.get(image..image + 2) {
            Some(&[start, end]) => start..end,
            _ => 0..0,
        }
    }
}

/// What a detection is sorted by: its score, the greatest first, then its image, then its place among all.
/// One number, because that is sorted several times as fast as three.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(u128);

impl Rank {
    fn new(detection: &ScoredBox, place: usize) -> Self {
        // No memory holds so many images or detections that 32 bits would not do.
        Self(u128::from(!ascending(detection.sort_score())) << 64 | (detection.image as u128) << 32 | place as u128)
    }

    fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Whole numbers in the order of the numbers.
fn ascending(number: f64) -> u64 {
    let bits = number.to_bits();
    if number.is_sign_negative() { !bits } else { bits | 1 << 63 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Rectangle;

    #[test]
    fn whole_numbers_are_in_the_order_of_the_numbers() {
        let numbers = [f64::NEG_INFINITY, -2.5, -1e-300, 0.0, 1e-300, 0.5, 1.0, f64::INFINITY];
        assert!(numbers.map(ascending).is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn the_surest_come_first_then_those_of_earlier_images_then_as_given() {
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
        };
        let truth = [(1, 4), (2, 1), (3, 4), (4, 0)].map(|(id, image)| object(id, image));
        let ids = |class: &ClassBoxes| {
            let of = |image| class.objects[class.objects_of(image)].iter().map(|object| object.id).collect::<Vec<_>>();
            [0, 1, 2, 4, 5, 6].map(of)
        };
        assert_eq!(measure_classes(&truth, &[], 1, ids), [[vec![4], vec![2], vec![], vec![1, 3], vec![], vec![]]]);
    }
}
