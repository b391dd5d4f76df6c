//! Matching: assigns each anchor to an object or to the background. <https://arxiv.org/abs/1708.02002>, section 4

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::boxes::BoundingBox;

/// Assigns anchors to the objects of an image by IoU. Without `allow_low_quality_matches`, an object that is too small
/// or too thin for every anchor gets none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Matcher {
    /// An anchor whose highest IoU is below this is background.
    pub background_iou_threshold: f32,
    /// An anchor whose highest IoU is at least this is positive for that object; between the two it is ignored.
    pub foreground_iou_threshold: f32,
    /// Whether the anchors with an object's highest IoU are positive too, however low that IoU is. As in torchvision
    /// and Detectron2, such an anchor is assigned to the object with which its own IoU is highest.
    pub allow_low_quality_matches: bool,
}

impl Default for Matcher {
    fn default() -> Self {
        Self { background_iou_threshold: 0.4, foreground_iou_threshold: 0.5, allow_low_quality_matches: false }
    }
}

/// The training target of an anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// No object.
    Background,
    /// None: too close to an object for background, and not close enough to be positive.
    Ignored,
    /// Positive for the object of this index.
    Object(usize),
}

impl Matcher {
    /// One assignment per anchor, to the box with the highest IoU, the first among equals. Pixels of the padded input.
    pub fn assign(&self, anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<Assignment> {
        let max_ious = if self.allow_low_quality_matches { max_ious(anchors, boxes) } else { Vec::new() };
        // Lower IoUs do not change the assignment.
        let min_iou = if self.allow_low_quality_matches {
            0.0
        } else {
            self.background_iou_threshold.min(self.foreground_iou_threshold)
        };
        let mut assignments = Vec::with_capacity(anchors.len());
        for anchors in anchors.chunks(Block::SIZE) {
            let mut block = Block::new(anchors);
            for (index, object) in boxes.iter().enumerate() {
                if block.may_reach(min_iou, object) {
                    block.update_best(object, index);
                }
            }
            for (object, &max_iou) in boxes.iter().zip(&max_ious) {
                if max_iou > 0.0 && block.may_reach(max_iou, object) {
                    block.mark_best_anchors(object, max_iou);
                }
            }
            let best = block.best_iou.iter().zip(&block.best_index).zip(&block.is_best_anchor).take(anchors.len());
            assignments.extend(best.map(|((&iou, &index), &is_best_anchor)| {
                if is_best_anchor { Assignment::Object(index as usize) } else { self.classify(iou, index) }
            }));
        }
        assignments
    }

    fn classify(&self, iou: f32, index: u32) -> Assignment {
        if iou >= self.foreground_iou_threshold {
            Assignment::Object(index as usize)
        } else if iou < self.background_iou_threshold {
            Assignment::Background
        } else {
            Assignment::Ignored
        }
    }
}

/// The maximum IoU of each box with any anchor.
pub(crate) fn max_ious(anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<f32> {
    let mut max_ious = vec![0.0; boxes.len()];
    for anchors in anchors.chunks(Block::SIZE) {
        let block = Block::new(anchors);
        for (object, max_iou) in boxes.iter().zip(&mut max_ious) {
            if block.may_reach(*max_iou, object) {
                *max_iou = block.ious(object).into_iter().fold(*max_iou, f32::max);
            }
        }
    }
    max_ious
}

/// A few consecutive anchors as arrays, so that the compiler vectorizes their IoUs, and the best object of each.
struct Block {
    x1: [f32; Block::SIZE],
    y1: [f32; Block::SIZE],
    x2: [f32; Block::SIZE],
    y2: [f32; Block::SIZE],
    area: [f32; Block::SIZE],
    best_iou: [f32; Block::SIZE],
    best_index: [u32; Block::SIZE],
    /// Whether no anchor has a higher IoU with some object.
    is_best_anchor: [bool; Block::SIZE],
    /// The smallest box that contains all anchors.
    hull: BoundingBox,
    min_area: f32,
    max_area: f32,
}

impl Block {
    const SIZE: usize = 128;

    /// A block of one to [`Self::SIZE`] anchors, padded with empty boxes.
    fn new(anchors: &[BoundingBox]) -> Self {
        let empty = BoundingBox::new(f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY);
        let mut block = Self {
            x1: [0.0; Self::SIZE],
            y1: [0.0; Self::SIZE],
            x2: [0.0; Self::SIZE],
            y2: [0.0; Self::SIZE],
            area: [0.0; Self::SIZE],
            best_iou: [f32::NEG_INFINITY; Self::SIZE],
            best_index: [0; Self::SIZE],
            is_best_anchor: [false; Self::SIZE],
            hull: empty,
            min_area: f32::INFINITY,
            max_area: 0.0,
        };
        for (i, anchor) in anchors.iter().enumerate() {
            (block.x1[i], block.y1[i], block.x2[i], block.y2[i]) = (anchor.x1, anchor.y1, anchor.x2, anchor.y2);
            block.area[i] = anchor.area();
            block.hull = BoundingBox {
                x1: block.hull.x1.min(anchor.x1),
                y1: block.hull.y1.min(anchor.y1),
                x2: block.hull.x2.max(anchor.x2),
                y2: block.hull.y2.max(anchor.y2),
            };
            block.min_area = block.min_area.min(block.area[i]);
            block.max_area = block.max_area.max(block.area[i]);
        }
        block
    }

    /// Whether an anchor of the block can have an IoU of at least `iou` with `object`.
    fn may_reach(&self, iou: f32, object: &BoundingBox) -> bool {
        /// Allows for rounding in the estimate.
        const SLACK: f32 = 0.999;
        let width = (self.hull.x2.min(object.x2) - self.hull.x1.max(object.x1)).max(0.0);
        let height = (self.hull.y2.min(object.y2) - self.hull.y1.max(object.y1)).max(0.0);
        (width * height).min(self.max_area) / object.area().max(self.min_area) >= SLACK * iou
    }

    /// The IoU of each anchor with `object`.
    fn ious(&self, object: &BoundingBox) -> [f32; Self::SIZE] {
        let object_area = object.area();
        let mut ious = [0.0; Self::SIZE];
        for (i, iou) in ious.iter_mut().enumerate() {
            let width = (self.x2[i].min(object.x2) - self.x1[i].max(object.x1)).max(0.0);
            let height = (self.y2[i].min(object.y2) - self.y1[i].max(object.y1)).max(0.0);
            let intersection = width * height;
            let union = self.area[i] + object_area - intersection;
            *iou = if union > 0.0 { intersection / union } else { 0.0 };
        }
        ious
    }

    /// Makes `object` the best object of every anchor that has a higher IoU with it than with all previous objects.
    fn update_best(&mut self, object: &BoundingBox, index: usize) {
        for (i, iou) in self.ious(object).into_iter().enumerate() {
            let is_better = iou > self.best_iou[i];
            self.best_iou[i] = if is_better { iou } else { self.best_iou[i] };
            self.best_index[i] = if is_better { index as u32 } else { self.best_index[i] };
        }
    }

    /// Marks the anchors whose IoU with `object` equals `max_iou`, its maximum over all anchors.
    fn mark_best_anchors(&mut self, object: &BoundingBox, max_iou: f32) {
        let ious = self.ious(object);
        for (is_best_anchor, iou) in self.is_best_anchor.iter_mut().zip(ious) {
            *is_best_anchor |= iou == max_iou;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchors::Anchors;
    use crate::spec::AnchorSpec;

    /// A reference implementation, one anchor at a time.
    fn reference(matcher: &Matcher, anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<Assignment> {
        let best = |anchor: &BoundingBox| {
            let ious = boxes.iter().map(|object| anchor.iou(object)).enumerate();
            ious.fold((0, f32::NEG_INFINITY), |best, (i, iou)| if iou > best.1 { (i, iou) } else { best })
        };
        let max_iou = |object: &BoundingBox| anchors.iter().map(|anchor| anchor.iou(object)).fold(0.0, f32::max);
        let max_ious: Vec<_> = boxes.iter().map(max_iou).collect();
        let is_best_anchor = |anchor: &BoundingBox| {
            let mut pairs = boxes.iter().zip(&max_ious);
            matcher.allow_low_quality_matches
                && pairs.any(|(object, max_iou)| *max_iou > 0.0 && anchor.iou(object) == *max_iou)
        };
        let classify = |anchor: &BoundingBox| match best(anchor) {
            (index, iou) if iou >= matcher.foreground_iou_threshold || is_best_anchor(anchor) => {
                Assignment::Object(index)
            }
            (_, iou) if iou < matcher.background_iou_threshold => Assignment::Background,
            _ => Assignment::Ignored,
        };
        anchors.iter().map(classify).collect()
    }

    /// Boxes of all sizes and shapes in an image of `side` pixels; some extend beyond it.
    fn scattered(count: u32, side: f32) -> Vec<BoundingBox> {
        let mut state = 7u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut scattered_box = || {
            let (x, y) = (side * uniform(), side * uniform());
            let (width, height) = (4.0 * 200f32.powf(uniform()), 4.0 * 200f32.powf(uniform()));
            BoundingBox::new(x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0)
        };
        (0..count).map(|_| scattered_box()).collect()
    }

    #[test]
    fn skipping_blocks_changes_nothing() {
        let anchors = Anchors::new(&AnchorSpec::default(), 320, 416);
        let boxes = scattered(60, 400.0);
        let (low, swapped) = (
            Matcher { background_iou_threshold: 0.0, foreground_iou_threshold: 0.1, allow_low_quality_matches: false },
            Matcher { background_iou_threshold: 0.5, foreground_iou_threshold: 0.2, allow_low_quality_matches: false },
        );
        let low_quality = Matcher { allow_low_quality_matches: true, ..Matcher::default() };
        for matcher in [Matcher::default(), low, swapped, low_quality] {
            let found = matcher.assign(anchors.boxes(), &boxes);
            assert_eq!(found, reference(&matcher, anchors.boxes(), &boxes));
            assert!(found.iter().any(|a| matches!(a, Assignment::Object(_))));
        }
    }

    #[test]
    fn order_of_boxes_only_changes_the_indices() {
        let anchors = Anchors::new(&AnchorSpec::default(), 256, 256);
        let boxes = scattered(20, 256.0);
        let reversed: Vec<_> = boxes.iter().rev().copied().collect();
        let swap = |a| if let Assignment::Object(i) = a { Assignment::Object(boxes.len() - 1 - i) } else { a };
        let found = Matcher::default().assign(anchors.boxes(), &reversed).into_iter().map(swap);
        assert!(found.eq(Matcher::default().assign(anchors.boxes(), &boxes)));
    }

    #[test]
    fn iou_equal_to_a_threshold_is_in_the_upper_range() {
        let object = BoundingBox::new(0.0, 0.0, 100.0, 100.0);
        let with_iou = |percent: f32| BoundingBox::new(0.0, 0.0, 100.0, percent);
        let cases = [
            (39.0, Assignment::Background),
            (40.0, Assignment::Ignored),
            (49.0, Assignment::Ignored),
            (50.0, Assignment::Object(0)),
            (100.0, Assignment::Object(0)),
        ];
        for (percent, expected) in cases {
            assert_eq!(Matcher::default().assign(&[with_iou(percent)], &[object]), [expected], "IoU of {percent} %");
        }
    }

    // torch.tensor([[0.6, 0.6]]).max(dim=1).indices
    #[test]
    fn the_first_of_equal_boxes_wins() {
        let object = BoundingBox::new(0.0, 0.0, 100.0, 100.0);
        let assigned = Matcher::default().assign(&[object], &[BoundingBox::default(), object, object]);
        assert_eq!(assigned, [Assignment::Object(1)]);
    }

    #[test]
    fn without_boxes_all_anchors_are_background() {
        let anchors = Anchors::new(&AnchorSpec::default(), 64, 64);
        let assigned = Matcher::default().assign(anchors.boxes(), &[]);
        assert!(assigned.len() == 774 && assigned.iter().all(|a| *a == Assignment::Background));
        assert!(Matcher::default().assign(&[], &[BoundingBox::default()]).is_empty());
    }

    // yhenon/pytorch-retinanet 0348a9d (`retinanet/losses.py`): no fallback to an object's best anchor.
    #[test]
    fn tiny_box_gets_no_anchor() {
        let anchors = Anchors::new(&AnchorSpec::default(), 128, 128);
        let assigned = Matcher::default().assign(anchors.boxes(), &[BoundingBox::new(60.0, 60.0, 66.0, 66.0)]);
        assert!(assigned.iter().all(|a| *a == Assignment::Background));
    }

    #[test]
    fn with_low_quality_matches_every_box_gets_an_anchor() {
        let anchors = Anchors::new(&AnchorSpec::default(), 128, 128);
        let boxes = [BoundingBox::new(60.0, 60.0, 66.0, 66.0), BoundingBox::new(2.0, 100.0, 126.0, 104.0)];
        let assigned =
            Matcher { allow_low_quality_matches: true, ..Matcher::default() }.assign(anchors.boxes(), &boxes);
        for index in 0..boxes.len() {
            assert!(assigned.contains(&Assignment::Object(index)), "box {index}");
        }
    }

    #[test]
    fn nan_boxes_match_no_anchor() {
        let anchors = Anchors::new(&AnchorSpec::default(), 64, 64);
        let assigned = Matcher::default().assign(anchors.boxes(), &[BoundingBox::new(f32::NAN, 0.0, 50.0, 50.0)]);
        assert!(assigned.iter().all(|a| *a == Assignment::Background));
    }
}
