//! Results of other implementations, from `numbers/numeric_cases.json` in the folder `RETINANET_DATA`.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::path::Path;

use models::spec::{AnchorCenter, AnchorOrder, AnchorRounding, AnchorSpec, BoxCoderSpec};
use models::{Assignment, BoundingBox, Grid, Matcher};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Asserts that our result equals the case's.
type Check = fn(&Value);

/// Names of cases and their checks.
const CHECKED: [(&str, Check); 12] = [
    ("box_iou_int", box_iou),
    ("box_iou_float", box_iou),
    ("box_area", box_area),
    ("tv_anchor_generator", torchvision_anchors),
    ("d2_anchors_offset0", |case| detectron2_anchors(case, AnchorCenter::Zero)),
    ("d2_anchors_offset_half", |case| detectron2_anchors(case, AnchorCenter::Half)),
    ("d2_matcher", detectron2_matcher),
    ("kr_anchors_layer", keras_retinanet_anchors),
    ("kr_anchors_for_shape_values", keras_retinanet_anchors),
    ("kr_anchors_for_shape_dimensions", keras_retinanet_anchor_count),
    ("centre_log_coder_yhenon_std_0.1_0.1_0.2_0.2", |case| box_coder(case, [0.1, 0.1, 0.2, 0.2])),
    ("centre_log_coder_weights_1", |case| box_coder(case, [1.0; 4])),
];

/// The other cases, and where or why not they are checked.
const NOT_CHECKED: [(&str, &str); 10] = [
    ("generalized_box_iou_int", "GIoU is a loss, in the trainer"),
    ("giou_loss", "the losses are in the trainer"),
    ("d2_diou_ciou", "there is no DIoU and no CIoU"),
    ("box_convert", "all boxes are x1, y1, x2, y2; `models::dataset` reads and writes COCO's format"),
    ("nms_float16_boxes", "runtime/tests/numeric_cases.rs"),
    ("nms_input_errors", "runtime/tests/numeric_cases.rs"),
    ("kr_filter_detections", "runtime/tests/numeric_cases.rs"),
    ("kr_bbox_transform_inv_CORNER_CODER", "another box coder; the file itself declares that it does not apply"),
    ("kr_smooth_l1", "the losses are in the trainer"),
    ("focal", "the losses are in the trainer"),
];

/// For values that the file contains with all digits; boxes are single precision.
const TOLERANCE: f64 = 1e-4;

#[test]
fn results_match_other_implementations() {
    let Some(cases) = cases() else { return };
    for (name, check) in CHECKED {
        println!("{name}");
        check(&cases[name]);
    }
}

#[test]
fn every_case_is_checked_or_listed_as_not_checked() {
    let Some(Value::Object(cases)) = cases() else { return };
    let found: BTreeSet<&str> = cases.keys().map(String::as_str).collect();
    let known = CHECKED.map(|(name, _)| name).into_iter().chain(NOT_CHECKED.map(|(name, _)| name));
    assert_eq!(found, known.collect());
}

fn cases() -> Option<Value> {
    let Some(folder) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set");
        return None;
    };
    let path = Path::new(&folder).join("numbers/numeric_cases.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_str(&text).expect("the file is JSON"))
}

fn get<T: DeserializeOwned>(case: &Value, key: &str) -> T {
    serde_json::from_value(case[key].clone()).unwrap_or_else(|error| panic!("`{key}`: {error}"))
}

fn assert_boxes(found: &[BoundingBox], expected: &[BoundingBox]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let corners = <[f32; 4]>::from(*found).into_iter().zip(<[f32; 4]>::from(*expected));
        let near = corners.into_iter().all(|(a, b)| f64::from((a - b).abs()) < TOLERANCE);
        assert!(near, "found {found:?}, expected {expected:?}");
    }
}

fn box_iou(case: &Value) {
    let (first, second) = if case["boxes"].is_null() { ("boxes1", "boxes2") } else { ("boxes", "boxes") };
    let (first, second): (Vec<BoundingBox>, Vec<BoundingBox>) = (get(case, first), get(case, second));
    let (expected, tolerance): (Vec<Vec<f64>>, f64) = (get(case, "expected"), get(case, "atol"));
    for (a, expected) in first.iter().zip(expected) {
        for (b, expected) in second.iter().zip(expected) {
            assert!((f64::from(a.iou(b)) - expected).abs() <= tolerance, "{a:?} and {b:?}");
        }
    }
}

fn box_area(case: &Value) {
    let (boxes, expected): (Vec<BoundingBox>, Vec<f64>) = (get(case, "boxes"), get(case, "expected"));
    for (b, expected) in boxes.iter().zip(expected) {
        // The file allows 1e-4; single precision has seven digits.
        let tolerance = get::<f64>(case, "atol").max(2e-7 * expected);
        assert!((f64::from(b.area()) - expected).abs() <= tolerance, "{b:?}");
    }
}

fn torchvision_anchors(case: &Value) {
    let ([size], [height, width]): ([f64; 1], [usize; 2]) = (get(case, "sizes"), get(case, "feature"));
    let [image_height, image_width]: [usize; 2] = get(case, "image");
    let spec = AnchorSpec {
        ratios: get(case, "ratios"),
        scales: vec![1.0],
        center: AnchorCenter::Zero,
        rounding: AnchorRounding::Corners,
        ..AnchorSpec::default()
    };
    let grid = Grid { stride_y: image_height / height, stride_x: image_width / width, height, width };
    assert_boxes(&spec.level(size, &grid), &get::<Vec<_>>(case, "expected"));
}

fn detectron2_anchors(case: &Value, center: AnchorCenter) {
    let sizes: Vec<f64> = get(case, "sizes");
    let spec = AnchorSpec {
        ratios: get(case, "aspect_ratios_h_over_w"),
        scales: sizes.iter().map(|size| size / sizes[0]).collect(),
        center,
        order: AnchorOrder::ScaleMajor,
        ..AnchorSpec::default()
    };
    let [height, width]: [usize; 2] = get(case, "feature_hw");
    let stride = get(case, "stride");
    let grid = Grid { stride_y: stride, stride_x: stride, height, width };
    assert_boxes(&spec.level(sizes[0], &grid), &get::<Vec<_>>(case, "expected"));
}

/// The case contains either the grid or the image that it covers.
fn keras_retinanet_anchors(case: &Value) {
    let spec = AnchorSpec { ratios: get(case, "ratios"), scales: get(case, "scales"), ..AnchorSpec::default() };
    let stride: usize = get(case, "stride");
    let [height, width] = match case["feature_hw"].is_null() {
        true => get::<[usize; 2]>(case, "image").map(|side| side.div_ceil(stride)),
        false => get(case, "feature_hw"),
    };
    let grid = Grid { stride_y: stride, stride_x: stride, height, width };
    assert_boxes(&spec.level(get(case, "size"), &grid), &get::<Vec<_>>(case, "expected"));
}

fn keras_retinanet_anchor_count(case: &Value) {
    let spec = AnchorSpec { ratios: get(case, "ratios"), scales: get(case, "scales"), ..AnchorSpec::default() };
    let (sizes, strides): (Vec<f64>, Vec<usize>) = (get(case, "sizes"), get(case, "strides"));
    let image: [usize; 2] = get(case, "image");
    let levels = sizes.into_iter().zip(strides).map(|(size, stride)| {
        let [height, width] = image.map(|side| side.div_ceil(stride));
        spec.level(size, &Grid { stride_y: stride, stride_x: stride, height, width }).len()
    });
    assert_eq!(levels.sum::<usize>(), get::<usize>(case, "count"));
}

/// The case contains IoUs; here each anchor is matched with boxes cut from it to have these IoUs. Detectron2 also matches
/// each object with its best anchor, which yhenon/pytorch-retinanet does not (`retinanet/losses.py`, 0348a9d): those
/// anchors must be ignored here.
fn detectron2_matcher(case: &Value) {
    let [background_iou_threshold, foreground_iou_threshold]: [f32; 2] = get(case, "thresholds");
    let ious: Vec<Vec<f32>> = get(case, "iou_gt_by_anchor");
    let (matches, labels): (Vec<usize>, Vec<i32>) = (get(case, "matches"), get(case, "match_labels"));
    let best_anchors: BTreeSet<usize> = ious.iter().map(|row| argmax(row)).collect();
    for (anchor, (expected, label)) in matches.into_iter().zip(labels).enumerate() {
        let square = BoundingBox::new(0.0, 0.0, 1.0, 1.0);
        let boxes: Vec<_> = ious.iter().map(|row| BoundingBox { x2: row[anchor], ..square }).collect();
        let assigned = Matcher { background_iou_threshold, foreground_iou_threshold, allow_low_quality_matches: false }
            .assign(&[square], &boxes)[0];
        let assigned_label = match assigned {
            Assignment::Background => 0,
            Assignment::Ignored => -1,
            Assignment::Object(_) => 1,
        };
        assert_eq!(assigned_label, if best_anchors.contains(&anchor) { -1 } else { label }, "anchor {anchor}");
        let any_iou =
            Matcher { background_iou_threshold: 0.0, foreground_iou_threshold: 0.0, allow_low_quality_matches: false };
        assert_eq!(any_iou.assign(&[square], &boxes), [Assignment::Object(expected)], "anchor {anchor}");
    }
}

fn argmax(values: &[f32]) -> usize {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).expect("a row is not empty")
}

fn box_coder(case: &Value, std: [f32; 4]) {
    let coder = BoxCoderSpec { std, clamp: None };
    let (boxes, deltas): (Vec<BoundingBox>, Vec<[f32; 4]>) = (get(case, "boxes"), get(case, "deltas"));
    let decoded: Vec<_> = boxes.iter().zip(&deltas).map(|(anchor, offsets)| coder.decode(anchor, *offsets)).collect();
    assert_boxes(&decoded, &get::<Vec<_>>(case, "expected"));
    for ((anchor, target), offsets) in boxes.iter().zip(&decoded).zip(deltas) {
        let near = coder.encode(anchor, target).into_iter().zip(offsets).all(|(a, b)| (a - b).abs() < 1e-4);
        assert!(near, "offsets of {target:?} from {anchor:?}");
    }
}
