//! Non-maximum suppression: of several boxes on one object, keeps the highest-scoring one.
//!
//! The rule is torchvision's. Boxes are visited by descending score, equal scores by ascending index; a box is removed
//! if its IoU with a kept box exceeds the threshold. Removed boxes suppress nothing.

use models::BoundingBox;

/// Indices of the boxes that NMS keeps, highest score first; NaN scores come last. Boxes may be in any frame.
pub fn suppress(scored: &[(f32, BoundingBox)], threshold: f32) -> Vec<usize> {
    let scores = scored.iter().map(|(score, _)| if score.is_nan() { f32::NEG_INFINITY } else { *score });
    let ranks = scores.enumerate().map(|(index, score)| Rank::new(score, index)).collect();
    let mut kept = KeptBoxes::default();
    ByDescendingScore::new(ranks).filter(|index| kept.try_keep(&scored[*index].1, threshold)).collect()
}

/// The boxes of one suppression group that are kept so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptBoxes {
    blocks: Vec<Block>,
    count: usize,
}

impl KeptBoxes {
    /// Keeps the box unless a kept box suppresses it; whether it was kept.
    pub(crate) fn try_keep(&mut self, candidate: &BoundingBox, threshold: f32) -> bool {
        let area = candidate.area();
        if self.blocks.iter().any(|block| block.suppresses(candidate, area, threshold)) {
            return false;
        }
        let lane = self.count % LANES;
        if lane == 0 {
            self.blocks.push(Block::EMPTY);
        }
        if let Some(block) = self.blocks.last_mut() {
            (block.x1[lane], block.y1[lane]) = (candidate.x1, candidate.y1);
            (block.x2[lane], block.y2[lane]) = (candidate.x2, candidate.y2);
            block.area[lane] = area;
        }
        self.count += 1;
        true
    }
}

/// Boxes per block.
const LANES: usize = 8;

/// A few boxes, laid out so that the compiler vectorizes the computation of their IoUs with another box.
#[derive(Clone, Debug)]
struct Block {
    x1: [f32; LANES],
    y1: [f32; LANES],
    x2: [f32; LANES],
    y2: [f32; LANES],
    area: [f32; LANES],
}

impl Block {
    /// Boxes that overlap no other box.
    const EMPTY: Self = Self {
        x1: [f32::INFINITY; LANES],
        y1: [f32::INFINITY; LANES],
        x2: [f32::NEG_INFINITY; LANES],
        y2: [f32::NEG_INFINITY; LANES],
        area: [0.0; LANES],
    };

    /// Whether the IoU of any box with the candidate exceeds the threshold. Computes [`BoundingBox::iou`] for all
    /// boxes, without branches: where that returns 0 for a union without area, this has NaN, which exceeds no
    /// threshold.
    fn suppresses(&self, candidate: &BoundingBox, area: f32, threshold: f32) -> bool {
        let mut any = false;
        for i in 0..LANES {
            let width = (self.x2[i].min(candidate.x2) - self.x1[i].max(candidate.x1)).max(0.0);
            let height = (self.y2[i].min(candidate.y2) - self.y1[i].max(candidate.y1)).max(0.0);
            let intersection = width * height;
            any |= intersection / (self.area[i] + area - intersection) > threshold;
        }
        any
    }
}

/// Sort key of a score: higher scores are less and so come first; equal scores are ordered by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    descending: u32,
    index: u32,
}

impl Rank {
    /// The rank of a score, which must not be NaN. `index` must be less than 2^32.
    pub(crate) fn new(score: f32, index: usize) -> Self {
        let bits = score.to_bits();
        // As integers, the bits of positive floats are in ascending order, those of negative floats in descending
        // order.
        let ascending = if score.is_sign_negative() { !bits } else { bits | 1 << 31 };
        Self { descending: !ascending, index: index as u32 }
    }

    /// The score.
    pub(crate) fn score(self) -> f32 {
        let ascending = !self.descending;
        f32::from_bits(if ascending >> 31 == 0 { !ascending } else { ascending & !(1 << 31) })
    }

    /// The index.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }
}

/// Iterator over indices in the order of their ranks. Sorts only as many as are requested.
#[derive(Clone, Debug)]
pub(crate) struct ByDescendingScore {
    ranks: Vec<Rank>,
    sorted: usize,
    next: usize,
}

impl ByDescendingScore {
    /// Number of ranks sorted at first; each further step sorts three times as many as are sorted already.
    const FIRST_STEP: usize = 4096;

    pub(crate) fn new(ranks: Vec<Rank>) -> Self {
        Self { ranks, sorted: 0, next: 0 }
    }

    fn sort_more(&mut self) {
        let rest = &mut self.ranks[self.sorted..];
        let count = rest.len().min(Self::FIRST_STEP.max(3 * self.sorted));
        if count < rest.len() {
            rest.select_nth_unstable(count);
        }
        rest[..count].sort_unstable();
        self.sorted += count;
    }
}

impl Iterator for ByDescendingScore {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.next == self.sorted {
            self.sort_more();
        }
        let rank = self.ranks.get(self.next)?;
        self.next += 1;
        Some(rank.index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(count: usize) -> Vec<(f32, BoundingBox)> {
        let mut state = 5u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut scored = || {
            let (x, y) = (100.0 * unit(), 100.0 * unit());
            (unit(), BoundingBox::new(x, y, x + 10.0 + 40.0 * unit(), y + 10.0 + 40.0 * unit()))
        };
        (0..count).map(|_| scored()).collect()
    }

    fn box_of_width(width: f32) -> BoundingBox {
        BoundingBox::new(0.0, 0.0, width, 10.0)
    }

    #[test]
    fn kept_boxes_do_not_overlap_and_removed_boxes_overlap_a_higher_scoring_one() {
        let scored = boxes(2_000);
        for threshold in [0.0, 0.3, 0.5, 0.9] {
            let kept = suppress(&scored, threshold);
            assert!(kept.windows(2).all(|pair| scored[pair[0]].0 >= scored[pair[1]].0));
            for (position, index) in kept.iter().enumerate() {
                let earlier = &kept[..position];
                assert!(earlier.iter().all(|other| scored[*other].1.iou(&scored[*index].1) <= threshold));
            }
            for removed in (0..scored.len()).filter(|index| !kept.contains(index)).step_by(37) {
                let suppresses = |&&index: &&usize| scored[index].1.iou(&scored[removed].1) > threshold;
                let suppressor = kept.iter().find(suppresses).expect("a kept box overlaps every removed box");
                assert!(scored[*suppressor].0 >= scored[removed].0);
            }
        }
    }

    #[test]
    fn order_of_boxes_does_not_matter() {
        let scored = boxes(300);
        let reversed: Vec<_> = scored.iter().rev().copied().collect();
        let found = suppress(&reversed, 0.5).into_iter().map(|index| scored.len() - 1 - index);
        assert!(found.eq(suppress(&scored, 0.5)));
    }

    #[test]
    fn suppressing_twice_changes_nothing() {
        let scored = boxes(300);
        let kept: Vec<_> = suppress(&scored, 0.5).into_iter().map(|index| scored[index]).collect();
        assert!(suppress(&kept, 0.5).into_iter().eq(0..kept.len()));
    }

    #[test]
    fn empty_input_gives_empty_output() {
        assert!(suppress(&[], 0.5).is_empty());
    }

    #[test]
    fn overlap_of_exactly_the_threshold_is_allowed() {
        let scored = [(0.9, box_of_width(10.0)), (0.8, box_of_width(5.0)), (0.7, box_of_width(5.1))];
        assert_eq!(suppress(&scored, 0.5), [0, 1]);
    }

    #[test]
    fn first_of_equal_scores_is_kept() {
        let scored = [(0.5, box_of_width(9.0)), (0.5, box_of_width(10.0)), (0.5, box_of_width(9.5))];
        assert_eq!(suppress(&scored, 0.5), [0]);
    }

    #[test]
    fn suppressed_boxes_suppress_nothing() {
        let scored = [(0.9, box_of_width(10.0)), (0.8, box_of_width(6.0)), (0.7, box_of_width(4.0))];
        assert_eq!(suppress(&scored, 0.5), [0, 2]);
    }

    #[test]
    fn infinite_and_nan_values_are_handled() {
        let infinite = BoundingBox::new(f32::NEG_INFINITY, 0.0, f32::INFINITY, 10.0);
        let undefined = BoundingBox::new(f32::NAN, 0.0, 1.0, 1.0);
        let scored =
            [(f32::NAN, box_of_width(10.0)), (0.5, box_of_width(10.0)), (f32::INFINITY, infinite), (-0.5, undefined)];
        assert_eq!(suppress(&scored, 0.5), [2, 1, 3]);
    }

    #[test]
    fn ranks_order_by_score_then_index() {
        let scores = [f32::INFINITY, 1.0, 0.5, f32::MIN_POSITIVE, 0.0, -1.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| Rank::new(pair[0], 9) < Rank::new(pair[1], 3)));
        assert!(Rank::new(0.5, 3) < Rank::new(0.5, 4));
        assert!(scores.iter().all(|score| Rank::new(*score, 9).score() == *score));
    }

    #[test]
    fn sorting_in_steps_sorts_everything() {
        let scores: Vec<f32> =
            boxes(3 * ByDescendingScore::FIRST_STEP).into_iter().map(|(score, _)| (score * 99.0).floor()).collect();
        let ranks: Vec<_> = scores.iter().enumerate().map(|(index, score)| Rank::new(*score, index)).collect();
        let mut expected: Vec<_> = (0..scores.len()).collect();
        expected.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        assert!(ByDescendingScore::new(ranks).eq(expected));
    }
}
