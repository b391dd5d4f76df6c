//! Selection of the highest scores.

use crate::nms::Rank;

/// Collects the `limit` highest scores above a threshold. The threshold rises once more than that are found.
pub(super) struct TopK {
    threshold: f32,
    limit: usize,
    ranks: Vec<Rank>,
}

impl TopK {
    pub(super) fn new(threshold: f32, limit: usize) -> Self {
        Self { threshold, limit, ranks: Vec::new() }
    }

    /// From ranks of scores that are all wanted.
    pub(super) fn of(ranks: Vec<Rank>, limit: usize) -> Self {
        Self { threshold: f32::NEG_INFINITY, limit, ranks }
    }

    /// Adds the scores above the threshold; `first` is the index of `scores[0]`. Few of millions of scores exceed it,
    /// so whole blocks are skipped, as fast as memory allows.
    pub(super) fn scan(&mut self, scores: &[f32], first: usize, wanted: impl Fn(usize) -> bool) {
        const BLOCK: usize = 64;
        for (block, start) in scores.chunks(BLOCK).zip((first..).step_by(BLOCK)) {
            let threshold = self.threshold;
            if block.iter().fold(false, |any, score| any | (*score > threshold)) {
                let above = block.iter().zip(start..).filter(|(score, _)| **score > threshold);
                let wanted = above.filter(|(_, index)| wanted(*index));
                self.ranks.extend(wanted.map(|(score, index)| Rank::new(*score, index)));
                // Selecting only at twice the limit keeps the amortized cost per score constant.
                if self.ranks.len() / 2 >= self.limit {
                    self.select();
                }
            }
        }
    }

    /// Drops all but the highest scores. The lowest of these becomes the threshold, since later scores must exceed it.
    fn select(&mut self) {
        if self.ranks.len() > self.limit {
            if let Some(last) = self.limit.checked_sub(1) {
                self.threshold = self.ranks.select_nth_unstable(last).1.score();
            }
            self.ranks.truncate(self.limit);
        }
    }

    pub(super) fn into_ranks(mut self) -> Vec<Rank> {
        self.select();
        self.ranks
    }
}
