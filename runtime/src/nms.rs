//! Non-maximum suppression: of several boxes on one object, the best remains.
//!
//! The rule is torchvision's: best score first, the lower index first among equals; a box goes when its IoU with one that
//! remained exceeds the threshold. What was suppressed is never looked at again.

use models::BoundingBox;

/// Indices of the boxes that remain, best first. A score that is not a number comes last.
pub fn suppress(scored: &[(f32, BoundingBox)], threshold: f32) -> Vec<usize> {
    let scores = scored.iter().map(|(score, _)| if score.is_nan() { f32::NEG_INFINITY } else { *score });
    let ranks = scores.enumerate().map(|(index, score)| Rank::new(score, index)).collect();
    let mut kept = KeptBoxes::default();
    BestFirst::new(ranks).filter(|index| kept.try_keep(&scored[*index].1, threshold)).collect()
}

/// The boxes that remained so far, of those that may suppress each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptBoxes {
    blocks: Vec<Block>,
    count: usize,
}

impl KeptBoxes {
    /// Whether the box remains; then it is one of them.
    pub(crate) fn try_keep(&mut self, candidate: &BoundingBox, threshold: f32) -> bool {
        let area = candidate.area();
        if self.blocks.iter().any(|block| block.suppresses(candidate, area, threshold)) {
            return false;
        }
        let place = self.count % LANES;
        if place == 0 {
            self.blocks.push(Block::EMPTY);
        }
        if let Some(block) = self.blocks.last_mut() {
            (block.x1[place], block.y1[place]) = (candidate.x1, candidate.y1);
            (block.x2[place], block.y2[place]) = (candidate.x2, candidate.y2);
            block.area[place] = area;
        }
        self.count += 1;
        true
    }
}

/// Boxes per block.
const LANES: usize = 8;

/// A few boxes, laid out so that the compiler computes all their IoUs with another at once.
#[derive(Clone, Debug)]
struct Block {
    x1: [f32; LANES],
    y1: [f32; LANES],
    x2: [f32; LANES],
    y2: [f32; LANES],
    area: [f32; LANES],
}

impl Block {
    /// Boxes that overlap with nothing.
    const EMPTY: Self = Self {
        x1: [f32::INFINITY; LANES],
        y1: [f32::INFINITY; LANES],
        x2: [f32::NEG_INFINITY; LANES],
        y2: [f32::NEG_INFINITY; LANES],
        area: [0.0; LANES],
    };

    /// [`BoundingBox::iou`], eight times, and without a branch: where it has 0 for a union without area, there is
    /// something here that exceeds no threshold.
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

/// The place of a score among others: a higher score is less, that is, earlier; equal scores are ordered by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    descending: u32,
    index: u32,
}

impl Rank {
    /// The rank of a score that is a number. `index` must be below 2^32.
    pub(crate) fn new(score: f32, index: usize) -> Self {
        let bits = score.to_bits();
        // The bits of positive floats are in order, those of negative ones in reverse order.
        let ascending = if score.is_sign_negative() { !bits } else { bits | 1 << 31 };
        Self { descending: !ascending, index: index as u32 }
    }

    /// The score that it is the rank of.
    pub(crate) fn score(self) -> f32 {
        let ascending = !self.descending;
        f32::from_bits(if ascending >> 31 == 0 { !ascending } else { ascending & !(1 << 31) })
    }

    /// The index that it was given.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }
}

/// Indices in the order of their ranks, sorted only as far as they are asked for.
#[derive(Clone, Debug)]
pub(crate) struct BestFirst {
    ranks: Vec<Rank>,
    sorted: usize,
    next: usize,
}

impl BestFirst {
    /// How many are sorted at first; after that, each time three times as many as there were.
    const START: usize = 4096;

    pub(crate) fn new(ranks: Vec<Rank>) -> Self {
        Self { ranks, sorted: 0, next: 0 }
    }

    fn sort_more(&mut self) {
        let rest = &mut self.ranks[self.sorted..];
        let count = rest.len().min(Self::START.max(3 * self.sorted));
        if count < rest.len() {
            rest.select_nth_unstable(count);
        }
        rest[..count].sort_unstable();
        self.sorted += count;
    }
}

impl Iterator for BestFirst {
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

    fn cornered(side: f32) -> BoundingBox {
        BoundingBox::new(0.0, 0.0, side, 10.0)
    }

    #[test]
    fn what_remains_does_not_overlap_and_what_goes_overlaps_with_a_better_one() {
        let scored = boxes(2_000);
        for threshold in [0.0, 0.3, 0.5, 0.9] {
            let remaining = suppress(&scored, threshold);
            assert!(remaining.windows(2).all(|pair| scored[pair[0]].0 >= scored[pair[1]].0));
            for (place, index) in remaining.iter().enumerate() {
                let better = &remaining[..place];
                assert!(better.iter().all(|rival| scored[*rival].1.iou(&scored[*index].1) <= threshold));
            }
            for gone in (0..scored.len()).filter(|index| !remaining.contains(index)).step_by(37) {
                let suppresses = |&&index: &&usize| scored[index].1.iou(&scored[gone].1) > threshold;
                let rival = remaining.iter().find(suppresses).expect("a box goes only because of another");
                assert!(scored[*rival].0 >= scored[gone].0);
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
        let remaining: Vec<_> = suppress(&scored, 0.5).into_iter().map(|index| scored[index]).collect();
        assert!(suppress(&remaining, 0.5).into_iter().eq(0..remaining.len()));
    }

    #[test]
    fn without_boxes_nothing_remains() {
        assert!(suppress(&[], 0.5).is_empty());
    }

    #[test]
    fn an_overlap_of_exactly_the_threshold_is_allowed() {
        let scored = [(0.9, cornered(10.0)), (0.8, cornered(5.0)), (0.7, cornered(5.1))];
        assert_eq!(suppress(&scored, 0.5), [0, 1]);
    }

    #[test]
    fn the_first_of_equal_scores_remains() {
        let scored = [(0.5, cornered(9.0)), (0.5, cornered(10.0)), (0.5, cornered(9.5))];
        assert_eq!(suppress(&scored, 0.5), [0]);
    }

    #[test]
    fn what_was_suppressed_suppresses_nothing() {
        let scored = [(0.9, cornered(10.0)), (0.8, cornered(6.0)), (0.7, cornered(4.0))];
        assert_eq!(suppress(&scored, 0.5), [0, 2]);
    }

    #[test]
    fn strange_numbers_do_no_harm() {
        let endless = BoundingBox::new(f32::NEG_INFINITY, 0.0, f32::INFINITY, 10.0);
        let nowhere = BoundingBox::new(f32::NAN, 0.0, 1.0, 1.0);
        let scored = [(f32::NAN, cornered(10.0)), (0.5, cornered(10.0)), (f32::INFINITY, endless), (-0.5, nowhere)];
        assert_eq!(suppress(&scored, 0.5), [2, 1, 3]);
    }

    #[test]
    fn ranks_are_in_order_of_scores_then_indices() {
        let scores = [f32::INFINITY, 1.0, 0.5, f32::MIN_POSITIVE, 0.0, -1.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| Rank::new(pair[0], 9) < Rank::new(pair[1], 3)));
        assert!(Rank::new(0.5, 3) < Rank::new(0.5, 4));
        assert!(scores.iter().all(|score| Rank::new(*score, 9).score() == *score));
    }

    #[test]
    fn sorting_piece_by_piece_is_sorting() {
        let scores: Vec<f32> =
            boxes(3 * BestFirst::START).into_iter().map(|(score, _)| (score * 99.0).floor()).collect();
        let ranks: Vec<_> = scores.iter().enumerate().map(|(index, score)| Rank::new(*score, index)).collect();
        let mut expected: Vec<_> = (0..scores.len()).collect();
        expected.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        assert!(BestFirst::new(ranks).eq(expected));
    }
}
