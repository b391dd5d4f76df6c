//! The range of the logits in int8 files.
//!
//! The layer that computes them has a seventh of all multiplications, so it is quantized, too. Its results have 256 values, which
//! must be close together where scores decide.

use std::collections::BTreeMap;

use models::ModelSpec;

use super::layers::layer_of;
use super::range::Range;
use crate::onnx::GraphProto;

/// The layer that computes the logits.
pub(super) const LAYER: &str = "classificationModel.output";

/// Scores that are this fraction of the score threshold, or less, become the same. The threshold counts as at most the one of
/// most detectors, since users may lower it.
const INDISTINCT_FRACTION: f32 = 0.02;
const USUAL_THRESHOLD: f32 = 0.05;

/// The highest logit of the range at least, a score of 0.98: the calibration images may have no such object.
const HIGH: f32 = 4.0;

/// The lowest logit: lower ones become this one.
pub(crate) fn lowest(spec: &ModelSpec) -> f32 {
    let score = INDISTINCT_FRACTION * spec.postprocessing.score_threshold.min(USUAL_THRESHOLD);
    (score / (1.0 - score)).ln()
}

/// Gives the logits of all levels one range: the calibration images may have objects on some levels only.
pub(super) fn set_range(graph: &GraphProto, ranges: &mut BTreeMap<String, Range>, spec: &ModelSpec) {
    let nodes = graph.node.iter().filter(|node| layer_of(graph, node) == Some(LAYER));
    let values: Vec<&str> = nodes.map(|node| node.output[0].as_str()).collect();
    let measured = values.iter().filter_map(|value| ranges.get(*value));
    let Range { low, high } = measured
        .fold(Range::default(), |all, range| Range { low: all.low.min(range.low), high: all.high.max(range.high) });
    let shared = Range { low: low.max(lowest(spec)), high: high.max(HIGH) };
    for value in values {
        ranges.entry(value.to_owned()).and_modify(|range| *range = shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{folded, spec, zeros};
    use models::spec::NormKind;

    #[test]
    fn all_levels_share_a_range_around_the_threshold() {
        let mut spec = spec(18, NormKind::FrozenBatch);
        spec.postprocessing.score_threshold = 0.05;
        let graph = folded(&spec, zeros(&spec));
        let level = |level: usize| match level {
            0 => LAYER.to_owned(),
            level => format!("{LAYER}_{level}"),
        };
        let other = Range { low: -30.0, high: 30.0 };
        let range = |ranges: [[f32; 2]; 5]| {
            let named = ranges.into_iter().enumerate();
            let mut ranges: BTreeMap<String, Range> =
                named.map(|(index, [low, high])| (level(index), Range { low, high })).collect();
            ranges.insert("another".to_owned(), other);
            set_range(&graph, &mut ranges, &spec);
            assert_eq!(ranges.remove("another"), Some(other));
            let range = ranges[LAYER];
            assert!(ranges.len() == 5 && ranges.values().all(|other| *other == range));
            range
        };
        // ln(0.001 / 0.999)
        let lowest = -6.906_755;
        assert!((super::lowest(&spec) - lowest).abs() < 1e-5);
        let found = range([[-20.0, -1.0], [-9.0, 6.5], [-9.0, 0.0], [-9.0, -2.0], [-9.0, -2.0]]);
        assert!((found.low - lowest).abs() < 1e-5 && found.high == 6.5);
        assert_eq!(range([[-4.0, -1.0]; 5]), Range { low: -4.0, high: 4.0 });
        spec.postprocessing.score_threshold = 0.5;
        assert!((super::lowest(&spec) - lowest).abs() < 1e-5);
        spec.postprocessing.score_threshold = 0.0;
        assert_eq!(super::lowest(&spec), f32::NEG_INFINITY);
    }
}
