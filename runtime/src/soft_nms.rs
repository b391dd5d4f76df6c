//! Soft non-maximum suppression: an overlap with a better box takes from the score, in place of removing the box.
//! <https://arxiv.org/abs/1704.04503>, section 3, with the Gaussian penalty.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use models::BoundingBox;

/// A box that may remain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rival {
    pub(crate) score: f32,
    pub(crate) bounding_box: BoundingBox,
    /// Only boxes of one group take from each other.
    pub(crate) group: usize,
}

/// Which boxes remain, by their index and with their new score, best first; the lower index first among equals. A score is
/// multiplied by `exp(-IoU² / sigma)` for every better box of the group; what does not exceed `threshold` then is gone, and takes
/// from nobody. Ends after `most`.
pub(crate) fn soft_nms(rivals: &[Rival], sigma: f32, threshold: f32, most: usize) -> Vec<(usize, f32)> {
    let groups = rivals.iter().map(|rival| rival.group + 1).max().unwrap_or(0);
    let mut better: Vec<Vec<BoundingBox>> = vec![Vec::new(); groups];
    let mut heap: BinaryHeap<_> =
        rivals.iter().enumerate().map(|(index, rival)| Entry { score: rival.score, index, compared: 0 }).collect();
    let mut remaining = Vec::new();
    while remaining.len() < most {
        let Some(Entry { mut score, index, compared }) = heap.pop() else { break };
        let Rival { bounding_box, group, .. } = rivals[index];
        let better = &mut better[group];
        // Only now is it known which boxes are better than this one, as scores never rise.
        for other in &better[compared..] {
            let iou = bounding_box.iou(other);
            score *= (-iou * iou / sigma).exp();
        }
        if compared == better.len() {
            better.push(bounding_box);
            remaining.push((index, score));
        } else if score > threshold {
            heap.push(Entry { score, index, compared: better.len() });
        }
    }
    remaining
}

/// A box in the queue.
struct Entry {
    /// With what the first `compared` better boxes took from it.
    score: f32,
    index: usize,
    compared: usize,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGMA: f32 = 0.5;

    fn rivals(count: usize) -> Vec<Rival> {
        let mut state = 5u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut rival = |index: usize| {
            let (x, y) = (60.0 * unit(), 60.0 * unit());
            let bounding_box = BoundingBox::new(x, y, x + 10.0 + 40.0 * unit(), y + 10.0 + 40.0 * unit());
            // Some scores are equal.
            Rival { score: (50.0 * unit()).floor() / 50.0, bounding_box, group: index % 3 }
        };
        (0..count).map(&mut rival).collect()
    }

    /// The paper's algorithm as its figure 2 has it, on all groups at once.
    fn reference(rivals: &[Rival], threshold: f32) -> Vec<(usize, f32)> {
        let mut rest: Vec<(usize, f32)> = rivals.iter().map(|rival| rival.score).enumerate().collect();
        let mut remaining = Vec::new();
        while !rest.is_empty() {
            let mut best = 0;
            for place in 1..rest.len() {
                if rest[place].1 > rest[best].1 {
                    best = place;
                }
            }
            let (index, score) = rest.remove(best);
            remaining.push((index, score));
            for (other, score) in &mut rest {
                let (a, b) = (rivals[index], rivals[*other]);
                if a.group == b.group {
                    let iou = a.bounding_box.iou(&b.bounding_box);
                    *score *= (-iou * iou / SIGMA).exp();
                }
            }
            rest.retain(|(_, score)| *score > threshold);
        }
        remaining
    }

    #[test]
    fn it_is_the_papers_algorithm() {
        for (count, threshold) in [(0, 0.1), (1, 0.1), (2, 0.0), (300, 0.05), (300, 0.3)] {
            let mut rivals = rivals(count);
            rivals.retain(|rival| rival.score > threshold);
            assert_eq!(soft_nms(&rivals, SIGMA, threshold, usize::MAX), reference(&rivals, threshold));
        }
    }

    #[test]
    fn a_cap_ends_it_early() {
        let rivals = rivals(300);
        assert_eq!(soft_nms(&rivals, SIGMA, 0.0, 7), reference(&rivals, 0.0)[..7]);
    }

    #[test]
    fn a_neighbor_is_lowered_and_a_stranger_is_not() {
        let rival =
            |score, x: f32, group| Rival { score, bounding_box: BoundingBox::new(x, 0.0, x + 10.0, 10.0), group };
        let rivals = [rival(0.9, 0.0, 0), rival(0.8, 5.0, 0), rival(0.7, 100.0, 0), rival(0.6, 0.0, 1)];
        let lowered = 0.8 * (-1.0f32 / 9.0 / SIGMA).exp();
        let found = soft_nms(&rivals, SIGMA, 0.05, usize::MAX);
        assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2, 1, 3]);
        assert!((found[2].1 - lowered).abs() < 1e-6);
    }
}
