//! Expected values of other implementations, from `numbers/numeric_cases.json` in the folder `RETINANET_DATA`.
//! `models/tests/numeric_cases.rs` lists which test uses which of its cases.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;

use models::spec::{Class, PostprocessingSpec};
use models::{Anchors, BoundingBox, ModelSpec};
use ndarray::{Array2, arr1};
use runtime::{postprocess, suppress};
use serde_json::Value;

fn cases() -> Option<Value> {
    let Some(folder) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set");
        return None;
    };
    let path = Path::new(&folder).join("numbers/numeric_cases.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(serde_json::from_str(&text).expect("the file is JSON"))
}

fn get<T: serde::de::DeserializeOwned>(case: &Value, key: &str) -> T {
    serde_json::from_value(case[key].clone()).unwrap_or_else(|error| panic!("`{key}`: {error}"))
}

#[test]
fn nms_equals_torchvision() {
    let Some(cases) = cases() else { return };
    let case = &cases["nms_float16_boxes"];
    let (boxes, scores): (Vec<BoundingBox>, Vec<f32>) = (get(case, "boxes"), get(case, "scores"));
    let scored: Vec<_> = scores.into_iter().zip(boxes).collect();
    assert_eq!(suppress(&scored, get(case, "iou")), get::<Vec<usize>>(case, "expected"));
}

#[test]
fn nms_of_no_boxes_is_empty() {
    let Some(cases) = cases() else { return };
    // The invalid inputs of this case cannot be expressed as a list of scored boxes.
    assert_eq!(get::<String>(&cases["nms_input_errors"], "empty"), "0 boxes -> empty result, no error");
    assert!(suppress(&[], 0.5).is_empty());
}

#[test]
fn detections_equal_keras_retinanet() {
    let Some(cases) = cases() else { return };
    for case in cases["kr_filter_detections"]["cases"].as_array().unwrap() {
        let (boxes, box_scores): (Vec<BoundingBox>, Vec<Vec<f32>>) = (get(case, "boxes"), get(case, "scores"));
        let classes = (0..box_scores[0].len() as i64).map(|id| Class { id, name: id.to_string() }).collect();
        let postprocessing = PostprocessingSpec { max_detections: Some(300), ..Default::default() };
        let mut spec = ModelSpec { classes, postprocessing, ..ModelSpec::default() };
        spec.preprocessing.shorter_side = 160;
        let placement = spec.preprocessing.place(160, 160);
        let anchors = Anchors::new(&spec.anchors, 160, 160);
        let rows = anchors.boxes().len();
        let (mut scores, mut offsets) = (Array2::zeros((rows, spec.class_count())), Array2::zeros((rows, 4)));
        for (row, (b, box_scores)) in boxes.iter().zip(box_scores).enumerate() {
            scores.row_mut(row).assign(&arr1(&box_scores));
            offsets.row_mut(row).assign(&arr1(&spec.box_coder.encode(&anchors.boxes()[row], b)));
        }

        let found = postprocess(scores.view(), offsets.view(), &anchors, &placement, &spec);
        let expected = case["out"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!((found.class_index, found.score), (get(expected, "label"), get(expected, "score")));
            let corners = <[f32; 4]>::from(found.bounding_box).into_iter().zip(get::<[f32; 4]>(expected, "box"));
            assert!(corners.into_iter().all(|(a, b)| (a - b).abs() < 1e-3), "{found:?}");
        }
    }
}
