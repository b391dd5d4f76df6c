//! Post-processing: from the network's scores and offsets to detections.

mod limits;
mod selection;
mod top_k;

use models::{Anchors, BoundingBox, ModelSpec, Placement};
use ndarray::{ArrayView1, ArrayView2};

pub(crate) use selection::Selection;

/// A detected object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Index of the class in the spec.
    pub class_index: usize,
    /// Score, in [0, 1].
    pub score: f32,
    /// Box in pixels of the original image (upright, after EXIF rotation).
    pub bounding_box: BoundingBox,
}

/// The detections in one image, in pixels of the original image (upright, after EXIF rotation). The highest score comes
/// first; equal scores are in the order of anchors, then classes.
///
/// * `scores`: `[anchors, classes]`. Only scores above the threshold are considered; NaN scores are ignored.
/// * `offsets`: `[anchors, 4]`. Only those of candidates are decoded, and only until `max_detections` is reached.
///
/// Differs from yhenon/pytorch-retinanet (`retinanet/model.py`, 0348a9d) in the order, which is by class first there,
/// and in boxes without area after clipping (outside the image, or with NaN offsets): here they are not detections and
/// do not count towards `max_detections`. Since their IoU with every other box is 0, they would not suppress anything.
///
/// # Panics
/// When the outputs do not have one row per anchor and one score per class. [`Detector`](crate::Detector) checks that
/// for the outputs of a file.
pub fn postprocess(
    scores: ArrayView2<f32>,
    offsets: ArrayView2<f32>,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection::new(anchors, placement, spec).detections(scores, offsets)
}

/// The detections that COCO's metrics count: as [`postprocess`], but only the [`MAX_DETECTIONS`] highest-scoring ones of
/// each class. Stops early, because the first epochs of training may give all anchors a high score.
///
/// # Panics
/// As [`postprocess`].
pub fn postprocess_for_coco(
    scores: ArrayView2<f32>,
    offsets: ArrayView2<f32>,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection::for_coco(anchors, placement, spec).detections(scores, offsets)
}

/// Candidates in one image that were selected where the network ran, in any order. Entries with a score of 0 are padding.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// Scores: `[candidates]`, in [0, 1].
    pub scores: ArrayView1<'a, f32>,
    /// Anchor indices: `[candidates]`.
    pub anchors: ArrayView1<'a, i64>,
    /// Class indices: `[candidates]`.
    pub classes: ArrayView1<'a, i64>,
    /// Offsets: `[candidates, 4]`.
    pub offsets: ArrayView2<'a, f32>,
}

/// As [`postprocess`] and with the same result, from candidates instead of all scores: at least the `top_k` highest-scoring
/// ones of each feature level. The score threshold may be higher than the one that they were selected with.
///
/// # Panics
/// When the four arrays differ in length, or a candidate above the threshold has an invalid anchor or class index.
pub fn postprocess_candidates(
    candidates: &Candidates,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection::new(anchors, placement, spec).detections_of_candidates(candidates)
}

/// As [`postprocess_for_coco`], from the candidates of [`postprocess_candidates`].
///
/// # Panics
/// As [`postprocess_candidates`].
pub fn postprocess_candidates_for_coco(
    candidates: &Candidates,
    anchors: &Anchors,
    placement: &Placement,
    spec: &ModelSpec,
) -> Vec<Detection> {
    Selection::for_coco(anchors, placement, spec).detections_of_candidates(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::spec::{BoxCoderSpec, Class, Clip, PostprocessingSpec, Suppression};
    use ndarray::{Array1, Array2};

    const SIDE: usize = 64;
    const CLASSES: usize = 3;

    /// An image of 96x192 pixels, resized to the upper left 48x48 pixels of a 64x64 input.
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

    /// Outputs with all scores and offsets 0, to be changed.
    fn empty_outputs() -> (Anchors, Array2<f32>, Array2<f32>) {
        let anchors = Anchors::new(&ModelSpec::default().anchors, SIDE, SIDE);
        let rows = anchors.boxes().len();
        (anchors, Array2::zeros((rows, CLASSES)), Array2::zeros((rows, 4)))
    }

    /// Random outputs, in which some scores are equal.
    fn random_outputs() -> (Anchors, Array2<f32>, Array2<f32>) {
        let (anchors, mut scores, mut offsets) = empty_outputs();
        let mut state = 3u32;
        let mut unit = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        scores.mapv_inplace(|_| (500.0 * unit()).floor() / 500.0);
        offsets.mapv_inplace(|_| 4.0 * (unit() - 0.5));
        (anchors, scores, offsets)
    }

    /// Sets the offsets of `anchor` so that they decode to `expected`, in pixels of the padded input.
    fn set_box(offsets: &mut Array2<f32>, anchors: &Anchors, anchor: usize, expected: [f32; 4]) {
        let encoded = BoxCoderSpec::default().encode(&anchors.boxes()[anchor], &expected.into());
        offsets.row_mut(anchor).assign(&ndarray::arr1(&encoded));
    }

    /// Post-processing without shortcuts: every step on all boxes.
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
            let has_area = candidate.bounding_box.width() > 0.0 && candidate.bounding_box.height() > 0.0;
            let mut group = kept.iter().filter(|other| agnostic || other.class_index == candidate.class_index);
            if has_area && !group.any(|other| other.bounding_box.iou(&candidate.bounding_box) > rules.nms_threshold) {
                kept.push(candidate);
            }
        }
        kept.truncate(rules.max_detections.unwrap_or(usize::MAX));
        let original = |d: Detection| Detection { bounding_box: d.bounding_box.scale(2.0, 4.0), ..d };
        kept.into_iter().map(original).collect()
    }

    #[test]
    fn shortcuts_do_not_change_detections() {
        let (anchors, scores, offsets) = random_outputs();
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

    /// The outputs of a network exported with `--top-k`: the highest-scoring candidates of each level, padded with
    /// scores of 0.
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

    /// Candidates as a network outputs them.
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
    fn candidates_and_dense_outputs_give_equal_detections() {
        let (anchors, scores, offsets) = random_outputs();
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
    fn limit_per_class_keeps_the_highest_scores_of_each_class() {
        let (anchors, mut scores, offsets) = random_outputs();
        // Class 0 is noisy, class 2 rare.
        scores.column_mut(0).mapv_inplace(|score| 0.5 + score / 2.0);
        scores.column_mut(2).mapv_inplace(|score| score / 16.0);
        for max_detections in [None, Some(0), Some(40), Some(150), Some(5000)] {
            for suppression in [Suppression::PerClass, Suppression::ClassAgnostic] {
                for soft_nms in [None, Some(0.5)] {
                    let spec = spec(|rules| {
                        (rules.max_detections, rules.suppression, rules.soft_nms) =
                            (max_detections, suppression, soft_nms);
                    });
                    let all = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
                    for limit in [0, 1, 7, 30] {
                        let limited =
                            Selection { max_per_class: Some(limit), ..Selection::new(&anchors, &PLACEMENT, &spec) };
                        let mut counts = [0; CLASSES];
                        let mut expected = all.clone();
                        expected.retain(|detection| {
                            counts[detection.class_index] += 1;
                            counts[detection.class_index] <= limit
                        });
                        let found = limited.detections(scores.view(), offsets.view());
                        assert_eq!(found, expected, "{limit}, {:?}", spec.postprocessing);
                    }
                }
            }
        }
        let spec = spec(|rules| rules.nms_threshold = 0.9);
        let found = postprocess_for_coco(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
        let all = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
        assert_eq!(all.iter().filter(|detection| detection.class_index == 0).take(100).count(), 100);
        assert_eq!(found.iter().filter(|detection| detection.class_index == 0).count(), 100);
        assert!(all.len() > found.len());
    }

    #[test]
    fn unwanted_classes_are_not_reported_and_suppress_nothing() {
        let (anchors, scores, offsets) = random_outputs();
        let agnostic = |rules: &mut PostprocessingSpec| {
            (rules.suppression, rules.top_k) = (Suppression::ClassAgnostic, Some(20));
        };
        for spec in [spec(|_| ()), spec(agnostic)] {
            let mut without_class = scores.clone();
            without_class.column_mut(1).fill(0.0);
            let expected = postprocess(without_class.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            assert!(expected.len() > 5);
            let wanted = Some(&[true, false, true][..]);
            let selection = Selection { wanted, ..Selection::new(&anchors, &PLACEMENT, &spec) };
            assert_eq!(selection.detections(scores.view(), offsets.view()), expected);
        }
        let spec = spec(|rules| rules.top_k = Some(100_000));
        let selected = selected(&scores, &offsets, &anchors, 100_000);
        let wanted = Some(&[false, false, true][..]);
        let selection = Selection { wanted, ..Selection::new(&anchors, &PLACEMENT, &spec) };
        let found = selection.detections_of_candidates(&Columns::new(&selected).candidates());
        assert_eq!(found, selection.detections(scores.view(), offsets.view()));
        assert!(found.len() > 5 && found.iter().all(|detection| detection.class_index == 2));
    }

    #[test]
    fn soft_nms_lowers_scores_instead_of_removing_boxes() {
        let (anchors, mut scores, mut offsets) = empty_outputs();
        for (anchor, score, right) in [(5, 0.75, 40.0), (14, 0.5, 34.0)] {
            scores[[anchor, 2]] = score;
            set_box(&mut offsets, &anchors, anchor, [10.0, 10.0, right, 40.0]);
        }
        let find = |sigma, threshold| {
            let spec = spec(|rules| (rules.soft_nms, rules.score_threshold) = (sigma, threshold));
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            found.iter().map(|detection| detection.score).collect::<Vec<_>>()
        };
        assert_eq!(find(None, 0.05), [0.75]);
        // The overlap is 24 of 30 columns.
        let [first, lowered] = find(Some(0.5), 0.05)[..] else { panic!("expected two detections") };
        assert!(first == 0.75 && (lowered - 0.5 * (-0.8f32 * 0.8 / 0.5).exp()).abs() < 1e-3, "{lowered}");
        assert_eq!(find(Some(0.5), 0.2), [0.75]);
    }

    #[test]
    fn memory_layout_of_outputs_does_not_matter() {
        let (anchors, scores, offsets) = random_outputs();
        let spec = spec(|_| ());
        let expected = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
        let (scores, offsets) =
            (scores.t().as_standard_layout().to_owned(), offsets.t().as_standard_layout().to_owned());
        assert_eq!(postprocess(scores.t(), offsets.t(), &anchors, &PLACEMENT, &spec), expected);
    }

    #[test]
    fn zero_scores_give_no_detections() {
        let (anchors, scores, offsets) = empty_outputs();
        assert!(postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ())).is_empty());
    }

    #[test]
    fn scores_must_exceed_the_threshold() {
        let (anchors, mut scores, offsets) = empty_outputs();
        for (score, expected) in [(0.05, 0), (0.050_000_1, 1), (f32::NAN, 0), (1.0, 1)] {
            scores[[0, 1]] = score;
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
            assert_eq!(found.len(), expected, "score of {score}");
        }
    }

    #[test]
    fn boxes_are_in_pixels_of_the_original_image() {
        let (anchors, mut scores, mut offsets) = empty_outputs();
        scores[[5, 2]] = 0.75;
        set_box(&mut offsets, &anchors, 5, [8.0, 12.0, 30.0, 60.0]);
        let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
        let [Detection { class_index: 2, score: 0.75, bounding_box }] = found[..] else { panic!("{found:?}") };
        assert!((bounding_box.x1 - 16.0).abs() < 1e-3 && (bounding_box.y1 - 48.0).abs() < 1e-3, "{bounding_box:?}");
        assert!((bounding_box.x2 - 60.0).abs() < 1e-3 && bounding_box.y2 == 192.0, "{bounding_box:?}");
    }

    #[test]
    fn one_box_gives_a_detection_per_class_unless_nms_is_class_agnostic() {
        let (anchors, mut scores, offsets) = empty_outputs();
        scores.row_mut(0).assign(&ndarray::arr1(&[0.5, 0.75, 0.25]));
        let class_indices = |spec: ModelSpec| {
            let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec);
            found.iter().map(|detection| detection.class_index).collect::<Vec<_>>()
        };
        assert_eq!(class_indices(spec(|_| ())), [1, 0, 2]);
        assert_eq!(class_indices(spec(|rules| rules.suppression = Suppression::ClassAgnostic)), [1]);
    }

    #[test]
    fn boxes_without_area_are_dropped_and_huge_ones_clipped() {
        let (anchors, mut scores, mut offsets) = empty_outputs();
        scores.column_mut(0).slice_mut(ndarray::s![..5]).assign(&ndarray::arr1(&[0.9, 0.8, 0.7, 0.6, 0.5]));
        set_box(&mut offsets, &anchors, 0, [50.0, 10.0, 60.0, 20.0]);
        offsets[[1, 0]] = f32::NAN;
        offsets[[2, 3]] = f32::NAN;
        offsets[[3, 1]] = f32::INFINITY;
        offsets[[4, 2]] = 1e9;
        let found = postprocess(scores.view(), offsets.view(), &anchors, &PLACEMENT, &spec(|_| ()));
        let [Detection { score: 0.5, bounding_box, .. }] = found[..] else { panic!("{found:?}") };
        assert_eq!((bounding_box.x1, bounding_box.x2), (0.0, 96.0));
    }
}
