//! The few of an image's scores that can become detections, selected on the device: all scores are not copied to the CPU.

use models::Anchors;
use models::spec::PostprocessingSpec;
use ndarray::{ArrayView1, ArrayView2};
use runtime::Candidates;
use tch::Tensor;
use tch::kind::Element;

/// Scores above the threshold of one image, ordered by anchor, then class. With `top_k`, at least those that are among the
/// highest of their feature level.
pub(crate) struct ImageCandidates {
    scores: Vec<f32>,
    anchors: Vec<i64>,
    classes: Vec<i64>,
    /// Four per candidate.
    offsets: Vec<f32>,
}

impl ImageCandidates {
    /// Selects from `scores`, `[anchors, classes]`, and `offsets`, `[anchors, 4]`, both float32 on the same device.
    pub(crate) fn select(scores: &Tensor, offsets: &Tensor, anchors: &Anchors, rules: &PostprocessingSpec) -> Self {
        let classes = scores.size()[1];
        let flat = scores.reshape(-1);
        // Not NaN, which is above nothing.
        let above = flat.gt(f64::from(rules.score_threshold));
        for level in anchors.levels().iter().filter(|_| rules.top_k.is_some()) {
            let limit = rules.top_k.map_or(0, |top_k| top_k.max(1) as i64);
            let (start, count) = (level.start as i64 * classes, level.len() as i64 * classes);
            if count > limit {
                let mut above = above.narrow(0, start, count);
                let level = flat.narrow(0, start, count).masked_fill(&above.logical_not(), 0.0);
                // All that equal the lowest one, because post-processing chooses among them by their order.
                let lowest = level.topk(limit, 0, true, true).0.narrow(0, limit - 1, 1);
                let _ = above.logical_and_(&level.ge_tensor(&lowest));
            }
        }
        let indices = above.nonzero().squeeze_dim(1);
        let rows = indices.divide_scalar_mode(classes, "floor");
        Self {
            scores: values(&flat.index_select(0, &indices)),
            classes: values(&indices.remainder(classes)),
            offsets: values(&offsets.index_select(0, &rows).reshape(-1)),
            anchors: values(&rows),
        }
    }

    /// The candidates, for post-processing.
    pub(crate) fn view(&self) -> Candidates<'_> {
        let Self { scores, anchors, classes, offsets } = self;
        let offsets = ArrayView2::from_shape((scores.len(), 4), offsets).expect("each candidate has four offsets");
        Candidates {
            scores: ArrayView1::from(scores),
            anchors: ArrayView1::from(anchors),
            classes: ArrayView1::from(classes),
            offsets,
        }
    }
}

/// The values of a flat tensor on any device.
fn values<T: Element + Copy>(tensor: &Tensor) -> Vec<T> {
    Vec::try_from(tensor).expect("a flat tensor of this kind")
}

#[cfg(test)]
mod tests {
    use models::spec::Class;
    use models::{ModelSpec, Placement};
    use runtime::{postprocess, postprocess_candidates, postprocess_candidates_for_coco, postprocess_for_coco};
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn candidates_give_the_detections_of_all_scores() {
        let classes = (0..3).map(|id| Class { id, name: id.to_string() }).collect();
        let mut spec = ModelSpec { classes, ..ModelSpec::default() };
        let anchors = Anchors::new(&spec.anchors, 128, 128);
        let rows = anchors.boxes().len() as i64;
        let placement: Placement = spec.preprocessing.place(640, 640);
        let placement = Placement { padded_width: 128, padded_height: 128, ..placement };
        tch::manual_seed(0);
        // Few different scores, so that many equal the lowest of the highest ones; some are NaN.
        let scores = (Tensor::rand([rows, 3], (Kind::Float, Device::Cpu)) * 50.0).floor() / 50.0;
        let scores = scores.masked_fill(&scores.eq(0.5), f64::NAN);
        let offsets = Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
        let array = |tensor: &Tensor, width: usize| {
            let values: Vec<f32> = values(&tensor.reshape(-1));
            ndarray::Array2::from_shape_vec((rows as usize, width), values).unwrap()
        };
        let (all_scores, all_offsets) = (array(&scores, 3), array(&offsets, 4));
        for top_k in [None, Some(1), Some(40), Some(100_000)] {
            for threshold in [0.05, 0.7, 1.0] {
                (spec.postprocessing.top_k, spec.postprocessing.score_threshold) = (top_k, threshold);
                let candidates = ImageCandidates::select(&scores, &offsets, &anchors, &spec.postprocessing);
                let found = candidates.view();
                let expected = postprocess(all_scores.view(), all_offsets.view(), &anchors, &placement, &spec);
                assert_eq!(postprocess_candidates(&found, &anchors, &placement, &spec), expected, "{top_k:?}");
                assert_eq!(expected.is_empty(), threshold == 1.0);
                let expected = postprocess_for_coco(all_scores.view(), all_offsets.view(), &anchors, &placement, &spec);
                assert_eq!(postprocess_candidates_for_coco(&found, &anchors, &placement, &spec), expected);
            }
        }
    }
}
