//! The selection of detections from the network's outputs for one image.

use models::evaluation::MAX_DETECTIONS;
use models::spec::{Clip, Suppression};
use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::ArrayView2;

use super::limits::Limits;
use super::top_k::TopK;
use super::{Candidates, Detection};
use crate::nms::{ByDescendingScore, KeptBoxes, Rank};
use crate::soft_nms::{GroupedBox, soft_nms};

/// Selects detections from the outputs for one image.
pub(crate) struct Selection<'a> {
    pub(crate) anchors: &'a Anchors,
    pub(crate) placement: &'a Placement,
    pub(crate) spec: &'a ModelSpec,
    /// For each class, whether it is wanted; `None` for all. The scores of other classes are ignored.
    pub(crate) wanted: Option<&'a [bool]>,
    /// Maximum number of detections of each class: those with the highest scores; `None` for all.
    pub(crate) max_per_class: Option<usize>,
}

/// A score above the threshold, with its anchor, class and offsets.
struct Candidate {
    anchor: usize,
    class_index: usize,
    score: f32,
    offsets: [f32; 4],
}

impl<'a> Selection<'a> {
    /// All detections.
    pub(crate) fn new(anchors: &'a Anchors, placement: &'a Placement, spec: &'a ModelSpec) -> Self {
        Self { anchors, placement, spec, wanted: None, max_per_class: None }
    }

    /// Those that COCO's metrics count.
    pub(super) fn for_coco(anchors: &'a Anchors, placement: &'a Placement, spec: &'a ModelSpec) -> Self {
        Self { max_per_class: MAX_DETECTIONS.into_iter().max(), ..Self::new(anchors, placement, spec) }
    }

    /// As [`postprocess`](super::postprocess).
    pub(crate) fn detections(&self, scores: ArrayView2<f32>, offsets: ArrayView2<f32>) -> Vec<Detection> {
        let (rows, classes) = (self.anchors.boxes().len(), self.spec.class_count());
        assert_eq!(scores.dim(), (rows, classes), "shape of the scores");
        assert_eq!(offsets.dim(), (rows, 4), "shape of the offsets");
        assert!(u32::try_from(rows * classes).is_ok(), "number of scores exceeds 2^32");
        let scores = scores.as_standard_layout();
        let scores = scores.as_slice().expect("an array in standard layout is a slice");
        let candidate = |index: usize| {
            let (anchor, class_index) = (index / classes, index % classes);
            Candidate {
                anchor,
                class_index,
                score: scores[index],
                offsets: std::array::from_fn(|i| offsets[[anchor, i]]),
            }
        };
        self.apply_nms(self.candidates(scores), candidate)
    }

    /// As [`postprocess_candidates`](super::postprocess_candidates).
    pub(crate) fn detections_of_candidates(&self, candidates: &Candidates) -> Vec<Detection> {
        let Candidates { scores, anchors, classes, offsets } = candidates;
        let count = scores.len();
        assert_eq!(
            (anchors.len(), classes.len(), offsets.dim()),
            (count, count, (count, 4)),
            "lengths of the candidates"
        );
        let rules = &self.spec.postprocessing;
        let threshold = rules.score_threshold;
        let wanted = |index: &usize| self.wanted.is_none_or(|wanted| wanted[classes[*index] as usize]);
        let above = (0..count).filter(|index| scores[*index] > threshold);
        let mut order: Vec<usize> = above.filter(wanted).collect();
        // Equal scores are ordered by anchor and class, as in `detections`.
        order.sort_unstable_by_key(|index| (anchors[*index], classes[*index]));
        let mut ranks = Vec::new();
        let mut start = 0;
        for level in self.anchors.levels() {
            let end = order.partition_point(|index| (anchors[*index] as usize) < level.end);
            let of_level = (start..end).map(|position| Rank::new(scores[order[position]], position)).collect();
            ranks.append(&mut TopK::of(of_level, rules.top_k.unwrap_or(usize::MAX)).into_ranks());
            start = end;
        }
        assert_eq!(start, order.len(), "number of candidates with an anchor");
        let candidate = |position: usize| {
            let index = order[position];
            Candidate {
                anchor: anchors[index] as usize,
                class_index: classes[index] as usize,
                score: scores[index],
                offsets: std::array::from_fn(|i| offsets[[index, i]]),
            }
        };
        self.apply_nms(ranks, candidate)
    }

    /// The detections of an end-to-end file, as scores, class indices and boxes in pixels of the padded input, the highest
    /// score first. Only the score threshold, the wanted classes and the maximum number can still be applied.
    pub(crate) fn detections_of_end_to_end(&self, found: Vec<(f32, i32, BoundingBox)>) -> Vec<Detection> {
        let rules = &self.spec.postprocessing;
        let detections = found.into_iter().map(|(score, class, input)| Detection {
            class_index: class as usize,
            score,
            bounding_box: self.placement.to_original_image(&input),
        });
        let wanted = |detection: &Detection| self.wanted.is_none_or(|wanted| wanted[detection.class_index]);
        let above = detections.filter(|detection| detection.score > rules.score_threshold);
        above.filter(wanted).take(rules.max_detections.unwrap_or(usize::MAX)).collect()
    }

    /// Ranks of the scores above the threshold, at most `top_k` per feature level. An index is `anchor * classes +
    /// class`.
    fn candidates(&self, scores: &[f32]) -> Vec<Rank> {
        let (rules, classes) = (&self.spec.postprocessing, self.spec.class_count());
        let mut candidates = Vec::new();
        for level in self.anchors.levels() {
            let mut top_k = TopK::new(rules.score_threshold, rules.top_k.unwrap_or(usize::MAX));
            let (first, end) = (level.start * classes, level.end * classes);
            match self.wanted {
                None => top_k.scan(&scores[first..end], first, |_| true),
                Some(wanted) => top_k.scan(&scores[first..end], first, |index| wanted[index % classes]),
            }
            candidates.append(&mut top_k.into_ranks());
        }
        candidates
    }

    /// The candidates that NMS keeps, highest score first. `candidate` maps a rank's index to its candidate.
    fn apply_nms(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate) -> Vec<Detection> {
        match self.spec.postprocessing.soft_nms {
            Some(sigma) => self.soft_nms(ranks, candidate, sigma),
            None => self.greedy_nms(ranks, candidate),
        }
    }

    /// Greedy NMS: keeps boxes that no higher-scoring kept box overlaps by more than the threshold.
    fn greedy_nms(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate) -> Vec<Detection> {
        let rules = &self.spec.postprocessing;
        let mut kept = vec![KeptBoxes::default(); self.spec.class_count()];
        let mut limits = self.limits();
        // The classes of an anchor have the same box: without classes, the first one suppresses the others.
        let agnostic = rules.suppression == Suppression::ClassAgnostic && rules.nms_threshold < 1.0;
        let mut visited = vec![false; if agnostic { self.anchors.boxes().len() } else { 0 }];
        let mut detections = Vec::new();
        for index in ByDescendingScore::new(ranks) {
            if limits.are_reached() {
                break;
            }
            let candidate = candidate(index);
            let Candidate { anchor, class_index, score, .. } = candidate;
            if limits.skips(class_index) || (agnostic && visited[anchor]) {
                continue;
            }
            let Some(clipped) = self.decode(&candidate) else { continue };
            if agnostic {
                // The IoU of boxes so small that their area is zero is not 1.
                visited[anchor] = clipped.area() > 0.0;
            }
            if kept[self.group(class_index)].try_keep(&clipped, rules.nms_threshold) && limits.take(class_index) {
                let bounding_box = self.placement.to_original_image(&clipped);
                detections.push(Detection { class_index, score, bounding_box });
            }
        }
        detections
    }

    fn limits(&self) -> Limits {
        let rules = &self.spec.postprocessing;
        Limits::new(rules.max_detections, self.max_per_class, rules.suppression, self.spec.class_count())
    }

    /// Soft-NMS: lowers the scores of overlapping boxes, and keeps those that still exceed the threshold.
    fn soft_nms(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate, sigma: f32) -> Vec<Detection> {
        let rules = &self.spec.postprocessing;
        let candidates = ByDescendingScore::new(ranks).map(candidate);
        let decoded = candidates.filter_map(|candidate| {
            let bounding_box = self.decode(&candidate)?;
            Some((
                candidate.class_index,
                GroupedBox { score: candidate.score, bounding_box, group: self.group(candidate.class_index) },
            ))
        });
        let (class_indices, boxes): (Vec<_>, Vec<_>) = decoded.unzip();
        let mut limits = self.limits();
        let mut detections = Vec::new();
        let mut kept = soft_nms(&boxes, sigma, rules.score_threshold);
        while !limits.are_reached()
            && let Some((index, score)) = kept.next(|index| limits.skips(class_indices[index]))
        {
            let class_index = class_indices[index];
            if limits.take(class_index) {
                let bounding_box = self.placement.to_original_image(&boxes[index].bounding_box);
                detections.push(Detection { class_index, score, bounding_box });
            }
        }
        detections
    }

    /// The candidate's clipped box in pixels of the padded input; `None` if it has no area.
    fn decode(&self, candidate: &Candidate) -> Option<BoundingBox> {
        let Placement { padded_width, padded_height, resized_width, resized_height, .. } = *self.placement;
        let (width, height) = match self.spec.postprocessing.clip {
            Clip::Padded => (padded_width, padded_height),
            Clip::Image => (resized_width, resized_height),
        };
        let decoded = self.spec.box_coder.decode(&self.anchors.boxes()[candidate.anchor], candidate.offsets);
        let clipped = decoded.clip(width as f32, height as f32);
        (clipped.width() > 0.0 && clipped.height() > 0.0).then_some(clipped)
    }

    /// The group of a class; only boxes of the same group suppress each other.
    fn group(&self, class_index: usize) -> usize {
        match self.spec.postprocessing.suppression {
            Suppression::PerClass => class_index,
            Suppression::ClassAgnostic => 0,
        }
    }
}
