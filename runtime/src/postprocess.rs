//! Post-processing: from the network's outputs to detections.

use models::spec::{Clip, Suppression};
use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::{ArrayView1, ArrayView2};

use crate::nms::{BestFirst, KeptBoxes, Rank};
use crate::soft_nms::{Rival, soft_nms};

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Index of its class in the spec.
    pub class_index: usize,
    /// How certain the network is, in [0, 1].
    pub score: f32,
    /// Where it is, in pixels of the upright original image.
    pub bounding_box: BoundingBox,
}

/// The detections of one image, best score first and, among equal scores, in the order of anchors and then classes.
///
/// * `scores`: `[anchors, classes]`. Only what exceeds the threshold is looked at; what is not a number never does.
/// * `offsets`: `[anchors, 4]`. Only those of candidates are decoded, and with a cap on detections no more than it takes.
///
/// Differs from yhenon/pytorch-retinanet (`retinanet/model.py`, 0348a9d) in the order, which there is by class first, and in
/// one kind of box: what has no extent after clipping (it lies outside, or its offsets are no numbers) is no detection and does not count for the cap. Such a box
/// has an IoU of 0 with every other, so that it would have suppressed nothing.
///
/// # Panics
/// When the outputs do not have one row per anchor and one score per class. Outputs of a file that may be wrong are
/// checked where they enter, as [`Detector`](crate::Detector) does.
pub fn postprocess(
    scores: ArrayView2<f32>,
    offsets: ArrayView2<f32>,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection { anchors, placement, spec, wanted: None }.of_all(scores, offsets)
}

/// What a network hands over of one image that has selected its candidates itself. Their order means nothing, and a score
/// of 0 is none.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Scores: `[candidates]`, in [0, 1].
    pub scores: ArrayView1<'a, f32>,
    /// Rows of the anchors among all: `[candidates]`.
    pub anchors: ArrayView1<'a, i64>,
    /// Indices of the classes: `[candidates]`.
    pub classes: ArrayView1<'a, i64>,
    /// Offsets: `[candidates, 4]`.
    pub offsets: ArrayView2<'a, f32>,
}

/// The detections among candidates: those of [`postprocess`] on all scores, of which these are the best of each level by the
/// spec's `top_k`. The threshold may be higher than the one that they were selected by.
///
/// # Panics
/// When the four do not have one length, or an anchor or a class is not there, where its score exceeds the threshold.
pub fn postprocess_candidates(
    found: &Candidates,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection { anchors, placement, spec, wanted: None }.of_candidates(found)
}

/// By what detections are selected.
pub(crate) struct Selection<'a> {
    pub(crate) anchors: &'a Anchors,
    pub(crate) placement: &'a Placement,
    pub(crate) spec: &'a ModelSpec,
    /// For each class whether it is looked for; all are if absent. Scores of others count for nothing.
    pub(crate) wanted: Option<&'a [bool]>,
}

/// A score above the threshold, and where it stands.
struct Candidate {
    anchor: usize,
    class_index: usize,
    score: f32,
    offsets: [f32; 4],
}

impl Selection<'_> {
    /// As [`postprocess`].
    pub(crate) fn of_all(&self, scores: ArrayView2<f32>, offsets: ArrayView2<f32>) -> Vec<Detection> {
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
        self.select(self.candidates(scores), candidate)
    }

    /// As [`postprocess_candidates`].
    pub(crate) fn of_candidates(&self, found: &Candidates) -> Vec<Detection> {
        let Candidates { scores, anchors: rows, classes, offsets } = found;
        let count = scores.len();
        assert_eq!((rows.len(), classes.len(), offsets.dim()), (count, count, (count, 4)), "lengths of the candidates");
        let threshold = self.spec.postprocessing.score_threshold;
        let wanted = |index: &usize| self.wanted.is_none_or(|wanted| wanted[classes[*index] as usize]);
        let above = (0..count).filter(|index| scores[*index] > threshold);
        let mut order: Vec<usize> = above.filter(wanted).collect();
        // Equal scores go by anchor and class, as where there is a score for everything.
        order.sort_unstable_by_key(|index| (rows[*index], classes[*index]));
        let ranks = order.iter().enumerate().map(|(place, index)| Rank::new(scores[*index], place)).collect();
        let candidate = |place: usize| {
            let index = order[place];
            Candidate {
                anchor: rows[index] as usize,
                class_index: classes[index] as usize,
                score: scores[index],
                offsets: std::array::from_fn(|i| offsets[[index, i]]),
            }
        };
        self.select(ranks, candidate)
    }

    /// The scores above the threshold, at most `top_k` of each level; an index is that of anchor times classes plus class.
    fn candidates(&self, scores: &[f32]) -> Vec<Rank> {
        let (rules, classes) = (&self.spec.postprocessing, self.spec.class_count());
        let mut candidates = Vec::new();
        for level in self.anchors.levels() {
            let mut found = TopK::new(rules.score_threshold, rules.top_k.unwrap_or(usize::MAX));
            let (first, end) = (level.start * classes, level.end * classes);
            match self.wanted {
                None => found.scan(&scores[first..end], first, |_| true),
                Some(wanted) => found.scan(&scores[first..end], first, |index| wanted[index % classes]),
            }
            candidates.append(&mut found.into_ranks());
        }
        candidates
    }

    /// The candidates that remain, best first. `candidate` says what a rank's index stands for.
    fn select(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate) -> Vec<Detection> {
        match self.spec.postprocessing.soft_nms {
            Some(sigma) => self.soft_nms(ranks, candidate, sigma),
            None => self.suppress(ranks, candidate),
        }
    }

    /// Those that no better one suppresses.
    fn suppress(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate) -> Vec<Detection> {
        let rules = &self.spec.postprocessing;
        let mut kept = vec![KeptBoxes::default(); self.spec.class_count()];
        let mut detections = Vec::new();
        for index in BestFirst::new(ranks) {
            if rules.max_detections.is_some_and(|most| detections.len() >= most) {
                break;
            }
            let candidate = candidate(index);
            let Some(clipped) = self.decode(&candidate) else { continue };
            if kept[self.group(candidate.class_index)].try_keep(&clipped, rules.nms_threshold) {
                let bounding_box = self.placement.to_original_image(&clipped);
                detections.push(Detection { class_index: candidate.class_index, score: candidate.score, bounding_box });
            }
        }
        detections
    }

    /// Those whose score exceeds the threshold after what better ones take from it.
    fn soft_nms(&self, ranks: Vec<Rank>, candidate: impl Fn(usize) -> Candidate, sigma: f32) -> Vec<Detection> {
        let rules = &self.spec.postprocessing;
        let candidates = BestFirst::new(ranks).map(candidate);
        let decoded = candidates.filter_map(|candidate| {
            let bounding_box = self.decode(&candidate)?;
            Some((
                candidate.class_index,
                Rival { score: candidate.score, bounding_box, group: self.group(candidate.class_index) },
            ))
        });
        let (class_indices, rivals): (Vec<_>, Vec<_>) = decoded.unzip();
        let most = rules.max_detections.unwrap_or(usize::MAX);
        let remaining = soft_nms(&rivals, sigma, rules.score_threshold, most).into_iter().map(|(index, score)| {
            let bounding_box = self.placement.to_original_image(&rivals[index].bounding_box);
            Detection { class_index: class_indices[index], score, bounding_box }
        });
        remaining.collect()
    }

    /// Its box, clipped, in pixels of the input; none if that has no extent.
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

    /// Boxes of one group are rivals.
    fn group(&self, class_index: usize) -> usize {
        match self.spec.postprocessing.suppression {
            Suppression::PerClass => class_index,
            Suppression::ClassAgnostic => 0,
        }
    }
}

/// The best scores above a threshold, which rises when there are more than wanted.
struct TopK {
    threshold: f32,
    most: usize,
    ranks: Vec<Rank>,
}

impl TopK {
    fn new(threshold: f32, most: usize) -> Self {
        Self { threshold, most, ranks: Vec::new() }
    }

    /// Adds what is above the threshold. There are millions of scores and few are: whole blocks are skipped as fast as memory
    /// allows.
    fn scan(&mut self, scores: &[f32], first: usize, wanted: impl Fn(usize) -> bool) {
        const BLOCK: usize = 64;
        for (block, start) in scores.chunks(BLOCK).zip((first..).step_by(BLOCK)) {
            let threshold = self.threshold;
            if block.iter().fold(false, |any, score| any | (*score > threshold)) {
                let above = block.iter().zip(start..).filter(|(score, _)| **score > threshold);
                let wanted = above.filter(|(_, index)| wanted(*index));
                self.ranks.extend(wanted.map(|(score, index)| Rank::new(*score, index)));
                // Twice as many, so that the work of each selection is shared by as many additions.
                if self.ranks.len() / 2 >= self.most {
                    self.select();
                }
            }
        }
    }

    /// Drops all but the best. What comes later and is not better than the last of them would be dropped, too.
    fn select(&mut self) {
        if self.ranks.len() > self.most {
            if let Some(last) = self.most.checked_sub(1) {
                self.threshold = self.ranks.select_nth_unstable(last).1.score();
            }
            self.ranks.truncate(self.most);
        }
    }

    fn into_ranks(mut self) -> Vec<Rank> {
        self.select();
        self.ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::spec::{BoxCoderSpec, Class, PostprocessingSpec};
    use ndarray::{Array1, Array2};

    const SIDE: usize = 64;
    const CLASSES: usize = 3;

    /// An image of 96x192 pixels, shown in the upper left 48x48 pixels of an input of 64x64.
    const PLACEMENT: Placement = Placement {
        original_width: 96,
        original_height: 192,
        resized_width: 48,
        resized_height: 48,
        padded_width: SIDE as u32,
        padded_height: SIDE as u32,
        common_scale: None,
    };

    fn spec(change: impl FnOnce(&mut PostprocessingSpec)) -> ModelSpec {
        let classes = (0..CLASSES as i64).map(|id| Class { id, name: id.to_string() }).collect();
        let mut spec = ModelSpec { classes, ..ModelSpec::default() };
        change(&mut spec.postprocessing);
        spec
    }

    /// Outputs that say nothing, to be changed.
    fn silence() -> (Anchors, Array2<f32>, Array2<f32>) {
        let anchors = Anchors::new(&ModelSpec::default().anchors, SIDE, SIDE);
        let rows = anchors.boxes().len();
        (anchors, Array2::zeros((rows, CLASSES)), Array2::zeros((rows, 4)))
    }

    /// Outputs that say anything: every score differs or is equal to a few others, offsets move and stretch.
    fn noise() -> (Anchors, Array2<f32>, Array2<f32>) {
        let (anchors, mut scores, mut offsets) = silence();
        let mut state = 3u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        scores.mapv_inplace(|_| (500.0 * unit()).floor() / 500.0);
        offsets.mapv_inplace(|_| 4.0 * (unit() - 0.5));
        (anchors, scores, offsets)
    }

    /// Says that `expected` is at `anchor`.
    fn say(offsets: &mut Array2<f32>, anchors: &Anchors, anchor: usize, expected: [f32; 4]) {
        let encoded = BoxCoderSpec::default().encode(&anchors.boxes()[anchor], &expected.into());
        offsets.row_mut(anchor).assign(&ndarray::arr1(&encoded));
    }

    /// What postprocessing means, one step after another and every step on everything.
    fn reference(scores: &Array2<f32>, offsets: &Array2<f32>, anchors: &Anchors, spec: &ModelSpec) -> Vec<Detection> {
        let rules = &spec.postprocessing;
        let mut all: Vec<(usize, Detection)> = Vec::new();
        for level in anchors.levels() {
            let mut found: Vec<(usize, Detection)> = Vec::new();
            for (anchor, class_index) in
                level.clone().flat_map(|anchor| (0..CLASSES).map(move |class_index| (anchor, class_index)))
            {
                let score = scores[[anchor, class_index]];
                let decoded =
                    spec.box_coder.decode(&anchors.boxes()[anchor], [0, 1, 2, 3].map(|i| offsets[[anchor, i]]));
                let side = if rules.clip == Clip::Image { 48.0 } else { 64.0 };
                if score > rules.score_threshold {
                    found.push((anchor, Detection { class_index, score, bounding_box: decoded.clip(side, side) }));
                }
            }
            found.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
            found.truncate(rules.top_k.unwrap_or(usize::MAX));
            all.extend(found);
        }
        all.sort_by(|(i, a), (j, b)| b.score.total_cmp(&a.score).then((i, a.class_index).cmp(&(j, b.class_index))));
        let mut kept: Vec<Detection> = Vec::new();
        let agnostic = rules.suppression == Suppression::ClassAgnostic;
        for (_, candidate) in all {
            let has_extent = candidate.bounding_box.width() > 0.0 && candidate.bounding_box.height() > 0.0;
            let mut rivals = kept.iter().filter(|other| agnostic || other.class_index == candidate.class_index);
            if has_extent && !rivals.any(|other| other.bounding_box.iou(&candidate.bounding_box) > rules.nms_threshold)
            {
                kept.push(candidate);
            }
        }
        kept.truncate(rules.max_detections.unwrap_or(usize::MAX));
        let original = |d: Detection| Detection { bounding_box: d.bounding_box.scale(2.0, 4.0), ..d };
        kept.into_iter().map(original).collect()
    }

    #[test]
    fn shortcuts_change_nothing() {
        let (anchors, scores, offsets) = noise();
        let rules: [fn(&mut PostprocessingSpec); 7] = [
            |_| (),
            |rules| rules.top_k = Some(20),
            |rules| rules.max_detections = Some(7),
            |rules| (rules.top_k, rules.max_detections) = (Some(50), Some(40)),
            |rules| rules.clip = Clip::Padded,
            |rules| rules.suppression = Suppression::ClassAgnostic,
            |rules| (rules.score_threshold, rules.nms_threshold) = (0.0, 0.9),
        ];
        for change in rules {
            let spec = spec(change);
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            let expected = reference(&scores, &offsets, &anchors, &spec);
            assert!(expected.len() > 5);
            assert_eq!(found, expected, "{:?}", spec.postprocessing);
        }
    }

    /// What a network with `top_k` in it hands over: the best of each level, with a score of 0 where there are no more.
    fn selected(
        scores: &Array2<f32>,
        offsets: &Array2<f32>,
        anchors: &Anchors,
        top_k: usize,
    ) -> Vec<(i64, i64, f32, [f32; 4])> {
        let mut all = Vec::new();
        for level in anchors.levels() {
            let pairs = level.clone().flat_map(|anchor| (0..CLASSES).map(move |class_index| (anchor, class_index)));
            let mut found: Vec<_> = pairs
                .map(|(anchor, class_index)| {
                    let score = scores[[anchor, class_index]];
                    let score = if score > 0.05 { score } else { 0.0 };
                    (anchor as i64, class_index as i64, score, [0, 1, 2, 3].map(|i| offsets[[anchor, i]]))
                })
                .collect();
            found.sort_by(|a, b| b.2.total_cmp(&a.2));
            found.truncate(top_k);
            all.extend(found);
        }
        all
    }

    /// Candidates as a network hands them over.
    struct Columns {
        scores: Array1<f32>,
        anchors: Array1<i64>,
        classes: Array1<i64>,
        offsets: Array2<f32>,
    }

    impl Columns {
        fn new(selected: &[(i64, i64, f32, [f32; 4])]) -> Self {
            Self {
                scores: selected.iter().map(|found| found.2).collect(),
                anchors: selected.iter().map(|found| found.0).collect(),
                classes: selected.iter().map(|found| found.1).collect(),
                offsets: ndarray::arr2(&selected.iter().map(|found| found.3).collect::<Vec<_>>()),
            }
        }

        fn candidates(&self) -> Candidates<'_> {
            let Self { scores, anchors, classes, offsets } = self;
            let (scores, anchors) = (scores.view(), anchors.view());
            Candidates { scores, anchors, classes: classes.view(), offsets: offsets.view() }
        }
    }

    #[test]
    fn candidates_say_what_all_scores_say() {
        let (anchors, scores, offsets) = noise();
        let rules: [fn(&mut PostprocessingSpec); 5] = [
            |_| (),
            |rules| rules.max_detections = Some(7),
            |rules| rules.clip = Clip::Padded,
            |rules| rules.suppression = Suppression::ClassAgnostic,
            |rules| rules.score_threshold = 0.5,
        ];
        for (top_k, change) in [20, 100_000].into_iter().flat_map(|top_k| rules.map(|change| (top_k, change))) {
            let spec = spec(|rules| {
                rules.top_k = Some(top_k);
                change(rules);
            });
            let mut selected = selected(&scores, &offsets, &anchors, top_k);
            let expected = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            assert!(expected.len() > 5);
            for _ in 0..2 {
                let columns = Columns::new(&selected);
                let found = postprocess_candidates(&columns.candidates(), &anchors, &PLACEMENT, &spec);
                assert_eq!(found, expected, "{:?}", spec.postprocessing);
                selected.reverse();
            }
        }
    }

    #[test]
    fn classes_that_are_not_wanted_neither_appear_nor_count() {
        let (anchors, scores, offsets) = noise();
        let agnostic = |rules: &mut PostprocessingSpec| {
            (rules.suppression, rules.top_k) = (Suppression::ClassAgnostic, Some(20));
        };
        for spec in [spec(|_| ()), spec(agnostic)] {
            let mut silenced = scores.clone();
            silenced.column_mut(1).fill(0.0);
            let expected = postprocess(silenced.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            assert!(expected.len() > 5);
            let wanted = Some(&[true, false, true][..]);
            let selection = Selection { anchors: &anchors, placement: &PLACEMENT, spec: &spec, wanted };
            assert_eq!(selection.of_all(scores.view(), offsets.view()), expected);
        }
        let spec = spec(|rules| rules.top_k = Some(100_000));
        let selected = selected(&scores, &offsets, &anchors, 100_000);
        let wanted = Some(&[false, false, true][..]);
        let selection = Selection { anchors: &anchors, placement: &PLACEMENT, spec: &spec, wanted };
        let found = selection.of_candidates(&Columns::new(&selected).candidates());
        assert_eq!(found, selection.of_all(scores.view(), offsets.view()));
        assert!(found.len() > 5 && found.iter().all(|detection| detection.class_index == 2));
    }

    #[test]
    fn soft_suppression_lowers_scores_in_place_of_removing_boxes() {
        let (anchors, mut scores, mut offsets) = silence();
        for (anchor, score, right) in [(5, 0.75, 40.0), (14, 0.5, 34.0)] {
            scores[[anchor, 2]] = score;
            say(&mut offsets, &anchors, anchor, [10.0, 10.0, right, 40.0]);
        }
        let find = |sigma, threshold| {
            let spec = spec(|rules| (rules.soft_nms, rules.score_threshold) = (sigma, threshold));
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            found.iter().map(|detection| detection.score).collect::<Vec<_>>()
        };
        assert_eq!(find(None, 0.05), [0.75]);
        // The overlap is 24 of 30 columns.
        let [best, lowered] = find(Some(0.5), 0.05)[..] else { panic!("not two") };
        assert!(best == 0.75 && (lowered - 0.5 * (-0.8f32 * 0.8 / 0.5).exp()).abs() < 1e-3, "{lowered}");
        assert_eq!(find(Some(0.5), 0.2), [0.75]);
    }

    #[test]
    fn layout_of_outputs_does_not_matter() {
        let (anchors, scores, offsets) = noise();
        let spec = spec(|_| ());
        let expected = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
        let (scores, offsets) =
            (scores.t().as_standard_layout().to_owned(), offsets.t().as_standard_layout().to_owned());
        assert_eq!(postprocess(scores.t(), offsets.t(), &anchors, &PLACEMENT, &spec), expected);
    }

    #[test]
    fn nothing_said_is_nothing_found() {
        let (anchors, scores, offsets) = silence();
        assert!(postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ())).is_empty());
    }

    #[test]
    fn a_score_must_exceed_the_threshold() {
        let (anchors, mut scores, offsets) = silence();
        for (score, expected) in [(0.05, 0), (0.050_000_1, 1), (f32::NAN, 0), (1.0, 1)] {
            scores[[0, 1]] = score;
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
            assert_eq!(found.len(), expected, "score of {score}");
        }
    }

    #[test]
    fn boxes_are_in_pixels_of_the_image() {
        let (anchors, mut scores, mut offsets) = silence();
        scores[[5, 2]] = 0.75;
        say(&mut offsets, &anchors, 5, [8.0, 12.0, 30.0, 60.0]);
        let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
        let [Detection { class_index: 2, score: 0.75, bounding_box }] = found[..] else { panic!("{found:?}") };
        assert!((bounding_box.x1 - 16.0).abs() < 1e-3 && (bounding_box.y1 - 48.0).abs() < 1e-3, "{bounding_box:?}");
        assert!((bounding_box.x2 - 60.0).abs() < 1e-3 && bounding_box.y2 == 192.0, "{bounding_box:?}");
    }

    #[test]
    fn one_box_may_belong_to_several_classes_unless_they_are_rivals() {
        let (anchors, mut scores, offsets) = silence();
        scores.row_mut(0).assign(&ndarray::arr1(&[0.5, 0.75, 0.25]));
        let class_indices = |spec: ModelSpec| {
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            found.iter().map(|detection| detection.class_index).collect::<Vec<_>>()
        };
        assert_eq!(class_indices(spec(|_| ())), [1, 0, 2]);
        assert_eq!(class_indices(spec(|rules| rules.suppression = Suppression::ClassAgnostic)), [1]);
    }

    #[test]
    fn boxes_without_extent_are_dropped_and_endless_ones_clipped() {
        let (anchors, mut scores, mut offsets) = silence();
        scores.column_mut(0).slice_mut(ndarray::s![..5]).assign(&ndarray::arr1(&[0.9, 0.8, 0.7, 0.6, 0.5]));
        say(&mut offsets, &anchors, 0, [50.0, 10.0, 60.0, 20.0]);
        offsets[[1, 0]] = f32::NAN;
        offsets[[2, 3]] = f32::NAN;
        offsets[[3, 1]] = f32::INFINITY;
        offsets[[4, 2]] = 1e9;
        let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
        let [Detection { score: 0.5, bounding_box, .. }] = found[..] else { panic!("{found:?}") };
        assert_eq!((bounding_box.x1, bounding_box.x2), (0.0, 96.0));
    }
}
