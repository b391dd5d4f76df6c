//! Soft-NMS: an overlap with a higher-scoring box lowers a box's score instead of removing the box.
//! <https://arxiv.org/abs/1704.04503>, section 3, with the Gaussian penalty.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use models::BoundingBox;

use crate::nms::Rank;

/// A scored box, in pixels of the padded input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupedBox {
    pub(crate) score: f32,
    pub(crate) bounding_box: BoundingBox,
    /// Only boxes of the same group lower each other's scores.
    pub(crate) group: usize,
}

/// Indices and new scores of the boxes that soft-NMS keeps, highest score first; equal scores are ordered by index. A score
/// is multiplied by `exp(-IoU² / sigma)` for every higher-scoring kept box of the group. Boxes whose score does not exceed
/// `threshold` after that are removed and lower no scores.
pub(crate) fn soft_nms(boxes: &[GroupedBox], sigma: f32, threshold: f32) -> SoftNms<'_> {
    let groups = boxes.iter().map(|scored_box| scored_box.group + 1).max().unwrap_or(0);
    let ranks = boxes.iter().enumerate().map(|(index, scored_box)| Rank::new(scored_box.score, index));
    let heap = ranks.map(|rank| Reverse((rank, 0))).collect();
    SoftNms { boxes, sigma, threshold, kept_of_group: vec![Vec::new(); groups], heap }
}

/// The boxes that soft-NMS keeps, one at a time.
pub(crate) struct SoftNms<'a> {
    boxes: &'a [GroupedBox],
    sigma: f32,
    threshold: f32,
    kept_of_group: Vec<Vec<BoundingBox>>,
    /// The rank of every box by its score, lowered by the first kept boxes of its group, and their number.
    heap: BinaryHeap<Reverse<(Rank, usize)>>,
}

impl SoftNms<'_> {
    /// The next box, as if the boxes that `skip` names were not there.
    pub(crate) fn next(&mut self, skip: impl Fn(usize) -> bool) -> Option<(usize, f32)> {
        while let Some(Reverse((rank, compared))) = self.heap.pop() {
            let (mut score, index) = (rank.score(), rank.index());
            if skip(index) {
                continue;
            }
            let GroupedBox { bounding_box, group, .. } = self.boxes[index];
            let higher = &mut self.kept_of_group[group];
            // Scores never rise, so all boxes that score higher than this one have been kept or removed by now.
            for other in &higher[compared..] {
                let iou = bounding_box.iou(other);
                score *= (-iou * iou / self.sigma).exp();
            }
            if compared == higher.len() {
                higher.push(bounding_box);
                return Some((index, score));
            }
            if score > self.threshold {
                self.heap.push(Reverse((Rank::new(score, index), higher.len())));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMA: f32 = 0.5;

    fn boxes(count: usize) -> Vec<GroupedBox> {
        let mut state = 5u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut scored_box = |index: usize| {
            let (x, y) = (60.0 * unit(), 60.0 * unit());
            let bounding_box = BoundingBox::new(x, y, x + 10.0 + 40.0 * unit(), y + 10.0 + 40.0 * unit());
            // Some scores are equal.
            GroupedBox { score: (50.0 * unit()).floor() / 50.0, bounding_box, group: index % 3 }
        };
        (0..count).map(&mut scored_box).collect()
    }

    /// The paper's algorithm, figure 2, on all groups at once.
    fn reference(boxes: &[GroupedBox], threshold: f32) -> Vec<(usize, f32)> {
        let mut rest: Vec<(usize, f32)> = boxes.iter().map(|scored_box| scored_box.score).enumerate().collect();
        let mut kept = Vec::new();
        while !rest.is_empty() {
            let mut highest = 0;
            for position in 1..rest.len() {
                if rest[position].1 > rest[highest].1 {
                    highest = position;
                }
            }
            let (index, score) = rest.remove(highest);
            kept.push((index, score));
            for (other, score) in &mut rest {
                let (a, b) = (boxes[index], boxes[*other]);
                if a.group == b.group {
                    let iou = a.bounding_box.iou(&b.bounding_box);
                    *score *= (-iou * iou / SIGMA).exp();
                }
            }
            rest.retain(|(_, score)| *score > threshold);
        }
        kept
    }

    fn kept(boxes: &[GroupedBox], threshold: f32) -> Vec<(usize, f32)> {
        let mut kept = soft_nms(boxes, SIGMA, threshold);
        std::iter::from_fn(|| kept.next(|_| false)).collect()
    }

    #[test]
    fn result_is_that_of_the_papers_algorithm() {
        for (count, threshold) in [(0, 0.1), (1, 0.1), (2, 0.0), (300, 0.05), (300, 0.3)] {
            let mut boxes = boxes(count);
            boxes.retain(|scored_box| scored_box.score > threshold);
            assert_eq!(kept(&boxes, threshold), reference(&boxes, threshold));
        }
    }

    #[test]
    fn skipped_boxes_are_as_if_they_were_not_there() {
        let boxes = boxes(300);
        let mut kept = soft_nms(&boxes, SIGMA, 0.0);
        let found: Vec<_> = std::iter::from_fn(|| kept.next(|index| boxes[index].group == 1)).collect();
        let mut expected = reference(&boxes, 0.0);
        expected.retain(|(index, _)| boxes[*index].group != 1);
        assert_eq!(found, expected);
    }

    #[test]
    fn only_overlapping_boxes_of_the_group_are_lowered() {
        let scored_box =
            |score, x: f32, group| GroupedBox { score, bounding_box: BoundingBox::new(x, 0.0, x + 10.0, 10.0), group };
        let boxes =
            [scored_box(0.9, 0.0, 0), scored_box(0.8, 5.0, 0), scored_box(0.7, 100.0, 0), scored_box(0.6, 0.0, 1)];
        let lowered = 0.8 * (-1.0f32 / 9.0 / SIGMA).exp();
        let found = kept(&boxes, 0.05);
        assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2, 1, 3]);
        assert!((found[2].1 - lowered).abs() < 1e-6);
    }
}
