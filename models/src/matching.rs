//! Matching: which object, if any, each anchor shall learn. <https://arxiv.org/abs/1708.02002>, section 4

use serde::{Deserialize, Serialize};

use crate::boxes::BoundingBox;

/// Assigns anchors by their IoU with the objects of an image. Without `allow_low_quality_matches`, no object is guaranteed an anchor: one
/// that is too small or too thin for every anchor gets none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matcher {
    /// An anchor whose best IoU is below this is background.
    pub background_iou_threshold: f32,
    /// An anchor whose best IoU is at least this belongs to that object; between the two it is ignored.
    pub foreground_iou_threshold: f32,
    /// Whether the anchors that no other anchor surpasses in IoU with some object are foreground too, however low it is.
    /// Such an anchor belongs to the object of its own largest IoU, as in torchvision and Detectron2.
    pub allow_low_quality_matches: bool,
}

impl Default for Matcher {
    fn default() -> Self {
        Self { background_iou_threshold: 0.4, foreground_iou_threshold: 0.5, allow_low_quality_matches: false }
    }
}

/// What an anchor shall learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// There is nothing here.
    Background,
    /// Nothing: it is too close to an object to be background, and not close enough to be the object.
    Ignored,
    /// The object of this index.
    Object(usize),
}

impl Matcher {
    /// One assignment per anchor. An anchor belongs to the box of largest IoU, and to the first of several.
    pub fn assign(&self, anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<Assignment> {
        let largest = if self.allow_low_quality_matches { max_ious(anchors, boxes) } else { Vec::new() };
        // Below this the best IoU does not matter.
        let relevant = if self.allow_low_quality_matches {
            0.0
        } else {
            self.background_iou_threshold.min(self.foreground_iou_threshold)
        };
        let mut assignments = Vec::with_capacity(anchors.len());
        for anchors in anchors.chunks(Block::SIZE) {
            let mut block = Block::new(anchors);
            for (index, object) in boxes.iter().enumerate() {
                if block.may_reach(relevant, object) {
                    block.meet(object, index);
                }
            }
            for (object, &largest) in boxes.iter().zip(&largest) {
                if largest > 0.0 && block.may_reach(largest, object) {
                    block.raise(object, largest);
                }
            }
            let best = block.best_iou.iter().zip(&block.best_index).zip(&block.unsurpassed).take(anchors.len());
            assignments.extend(best.map(|((&iou, &index), &unsurpassed)| {
                if unsurpassed { Assignment::Object(index as usize) } else { self.judge(iou, index) }
            }));
        }
        assignments
    }

    fn judge(&self, iou: f32, index: u32) -> Assignment {
        if iou >= self.foreground_iou_threshold {
            Assignment::Object(index as usize)
        } else if iou < self.background_iou_threshold {
            Assignment::Background
        } else {
            Assignment::Ignored
        }
    }
}

/// The largest IoU of each box with any anchor.
pub(crate) fn max_ious(anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<f32> {
    let mut largest = vec![0.0; boxes.len()];
    for anchors in anchors.chunks(Block::SIZE) {
        let block = Block::new(anchors);
        for (object, largest) in boxes.iter().zip(&mut largest) {
            if block.may_reach(*largest, object) {
                *largest = block.ious(object).into_iter().fold(*largest, f32::max);
            }
        }
    }
    largest
}

/// A few neighboring anchors, laid out so that the compiler computes several IoUs at once, and their best objects.
struct Block {
    x1: [f32; Block::SIZE],
    y1: [f32; Block::SIZE],
    x2: [f32; Block::SIZE],
    y2: [f32; Block::SIZE],
    area: [f32; Block::SIZE],
    best_iou: [f32; Block::SIZE],
    best_index: [u32; Block::SIZE],
    /// Whether some object has its largest IoU here.
    unsurpassed: [bool; Block::SIZE],
    /// The smallest box around all of them.
    hull: BoundingBox,
    smallest_area: f32,
    largest_area: f32,
}

impl Block {
    const SIZE: usize = 128;

    /// A block of one to [`Self::SIZE`] anchors; boxes without extent fill it up.
    fn new(anchors: &[BoundingBox]) -> Self {
        let everywhere = BoundingBox::new(f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY);
        let mut block = Self {
            x1: [0.0; Self::SIZE],
            y1: [0.0; Self::SIZE],
            x2: [0.0; Self::SIZE],
            y2: [0.0; Self::SIZE],
            area: [0.0; Self::SIZE],
            best_iou: [f32::NEG_INFINITY; Self::SIZE],
            best_index: [0; Self::SIZE],
            unsurpassed: [false; Self::SIZE],
            hull: everywhere,
            smallest_area: f32::INFINITY,
            largest_area: 0.0,
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
            block.smallest_area = block.smallest_area.min(block.area[i]);
            block.largest_area = block.largest_area.max(block.area[i]);
        }
        block
    }

    /// Whether an anchor of the block can have an IoU of at least `iou` with `object`.
    fn may_reach(&self, iou: f32, object: &BoundingBox) -> bool {
        /// For rounding in the estimate.
        const SLACK: f32 = 0.999;
        let width = (self.hull.x2.min(object.x2) - self.hull.x1.max(object.x1)).max(0.0);
        let height = (self.hull.y2.min(object.y2) - self.hull.y1.max(object.y1)).max(0.0);
        (width * height).min(self.largest_area) / object.area().max(self.smallest_area) >= SLACK * iou
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

    /// Makes `object` the best of every anchor that has a larger IoU with it than with those it met before.
    fn meet(&mut self, object: &BoundingBox, index: usize) {
        for (i, iou) in self.ious(object).into_iter().enumerate() {
            let better = iou > self.best_iou[i];
            self.best_iou[i] = if better { iou } else { self.best_iou[i] };
            self.best_index[i] = if better { index as u32 } else { self.best_index[i] };
        }
    }

    /// Notes the anchors that no other surpasses in IoU with `object`, its largest being `largest`.
    fn raise(&mut self, object: &BoundingBox, largest: f32) {
        let ious = self.ious(object);
        for (unsurpassed, iou) in self.unsurpassed.iter_mut().zip(ious) {
            *unsurpassed |= iou == largest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchors::Anchors;
    use crate::spec::AnchorSpec;

    /// The definition, one anchor at a time.
    fn reference(matcher: &Matcher, anchors: &[BoundingBox], boxes: &[BoundingBox]) -> Vec<Assignment> {
        let best = |anchor: &BoundingBox| {
            let ious = boxes.iter().map(|object| anchor.iou(object)).enumerate();
            ious.fold((0, f32::NEG_INFINITY), |best, (i, iou)| if iou > best.1 { (i, iou) } else { best })
        };
        let largest = |object: &BoundingBox| anchors.iter().map(|anchor| anchor.iou(object)).fold(0.0, f32::max);
        let largest: Vec<_> = boxes.iter().map(largest).collect();
        let unsurpassed = |anchor: &BoundingBox| {
            let mut pairs = boxes.iter().zip(&largest);
            matcher.allow_low_quality_matches
                && pairs.any(|(object, largest)| *largest > 0.0 && anchor.iou(object) == *largest)
        };
        let judge = |anchor: &BoundingBox| match best(anchor) {
            (index, iou) if iou >= matcher.foreground_iou_threshold || unsurpassed(anchor) => Assignment::Object(index),
            (_, iou) if iou < matcher.background_iou_threshold => Assignment::Background,
            _ => Assignment::Ignored,
        };
        anchors.iter().map(judge).collect()
    }

    /// Boxes of all sizes and shapes in an image of `side` pixels, a few beyond its edges.
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
        let (lenient, absurd) = (
            Matcher { background_iou_threshold: 0.0, foreground_iou_threshold: 0.1, allow_low_quality_matches: false },
            Matcher { background_iou_threshold: 0.5, foreground_iou_threshold: 0.2, allow_low_quality_matches: false },
        );
        let generous = Matcher { allow_low_quality_matches: true, ..Matcher::default() };
        for matcher in [Matcher::default(), lenient, absurd, generous] {
            let found = matcher.assign(anchors.boxes(), &boxes);
            assert_eq!(found, reference(&matcher, anchors.boxes(), &boxes));
            assert!(found.iter().any(|a| matches!(a, Assignment::Object(_))));
        }
    }

    #[test]
    fn order_of_boxes_changes_indices_only() {
        let anchors = Anchors::new(&AnchorSpec::default(), 256, 256);
        let boxes = scattered(20, 256.0);
        let reversed: Vec<_> = boxes.iter().rev().copied().collect();
        let swap = |a| if let Assignment::Object(i) = a { Assignment::Object(boxes.len() - 1 - i) } else { a };
        let found = Matcher::default().assign(anchors.boxes(), &reversed).into_iter().map(swap);
        assert!(found.eq(Matcher::default().assign(anchors.boxes(), &boxes)));
    }

    #[test]
    fn thresholds_are_strict_as_the_paper_has_them() {
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
    fn without_boxes_all_is_background() {
        let anchors = Anchors::new(&AnchorSpec::default(), 64, 64);
        let assigned = Matcher::default().assign(anchors.boxes(), &[]);
        assert!(assigned.len() == 774 && assigned.iter().all(|a| *a == Assignment::Background));
        assert!(Matcher::default().assign(&[], &[BoundingBox::default()]).is_empty());
    }

    // REFERENCE 1.9: there is no fallback to an object's best anchor.
    #[test]
    fn a_tiny_box_gets_no_anchor() {
        let anchors = Anchors::new(&AnchorSpec::default(), 128, 128);
        let assigned = Matcher::default().assign(anchors.boxes(), &[BoundingBox::new(60.0, 60.0, 66.0, 66.0)]);
        assert!(assigned.iter().all(|a| *a == Assignment::Background));
    }

    #[test]
    fn with_low_quality_every_box_gets_an_anchor() {
        let anchors = Anchors::new(&AnchorSpec::default(), 128, 128);
        let boxes = [BoundingBox::new(60.0, 60.0, 66.0, 66.0), BoundingBox::new(2.0, 100.0, 126.0, 104.0)];
        let assigned =
            Matcher { allow_low_quality_matches: true, ..Matcher::default() }.assign(anchors.boxes(), &boxes);
        for index in 0..boxes.len() {
            assert!(assigned.contains(&Assignment::Object(index)), "box {index}");
        }
    }

    #[test]
    fn boxes_that_are_no_numbers_are_nobodys() {
        let anchors = Anchors::new(&AnchorSpec::default(), 64, 64);
        let assigned = Matcher::default().assign(anchors.boxes(), &[BoundingBox::new(f32::NAN, 0.0, 50.0, 50.0)]);
        assert!(assigned.iter().all(|a| *a == Assignment::Background));
    }
}
