//! Files that apply NMS themselves.

use models::Checkpoint;
use models::spec::{AnchorCenter, AnchorOrder, AnchorRounding, AnchorStride, Clip, Suppression};
use runtime::{Detection, Detector, DetectorOptions, Rules};

use crate::fixture::{Folder, checkpoint_with_detections, open, success, with_probe_outputs};

/// The same with every other choice that matters after the network.
fn other_checkpoint() -> Checkpoint {
    let mut checkpoint = checkpoint_with_detections();
    let spec = &mut checkpoint.spec;
    (spec.anchors.center, spec.anchors.stride) = (AnchorCenter::Zero, AnchorStride::Fitted);
    (spec.anchors.rounding, spec.anchors.order) = (AnchorRounding::Corners, AnchorOrder::ScaleMajor);
    (spec.box_coder.std, spec.box_coder.clamp) = ([1.0, 0.9, 0.8, 0.7], Some(0.05));
    (spec.postprocessing.clip, spec.postprocessing.suppression) = (Clip::Padded, Suppression::ClassAgnostic);
    spec.postprocessing.max_detections = Some(30);
    with_probe_outputs(checkpoint)
}

fn assert_same(found: &[Detection], expected: &[Detection], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.class_index, found.score), (expected.class_index, expected.score), "{what}");
        let corners = [found, expected].map(|detection| <[f32; 4]>::from(detection.bounding_box));
        assert!(corners[0].iter().zip(corners[1]).all(|(a, b)| (a - b).abs() < 1e-2), "{what}: {corners:?}");
    }
}

#[test]
fn end_to_end_files_give_the_detections_of_the_plain_file() {
    for (checkpoint, default_max) in [(checkpoint_with_detections(), 300), (other_checkpoint(), 30)] {
        let folder = Folder::with(&checkpoint);
        for size in [&[][..], &["--input-size", "96x160"]] {
            success(folder.exporter(&[size, &["--out", "plain.onnx"]].concat()));
            for (arguments, top_k, max) in [
                (&[][..], 1000, default_max),
                (&["--top-k", "60", "--opset", "13"], 60, default_max),
                (&["--max-detections", "5", "--batch-size", "2", "--opset", "18"], 1000, 5),
                (&["--input", "uint8", "--opset", "26"], 1000, default_max),
            ] {
                let printed = success(folder.exporter(&[size, arguments, &["--end-to-end"]].concat()));
                assert!(printed.contains("pixels in boxes"), "{printed}");
                let rules = Rules { top_k: Some(top_k), max_detections: Some(max), ..Rules::default() };
                let expected = folder.detect("plain.onnx", rules);
                assert!(expected.len() >= 5, "{}", expected.len());
                let found = folder.detect("retinanet.onnx", Rules::default());
                assert_same(&found, &expected, &format!("{size:?} {arguments:?}"));
                let engine = open(&folder, "retinanet.onnx");
                assert_eq!((engine.top_k(), engine.max_detections()), (Some(top_k), Some(max)));
            }
        }
    }
}

#[test]
fn rules_that_an_end_to_end_file_fixes_are_refused_by_name_and_others_filter() {
    let folder = Folder::with(&checkpoint_with_detections());
    success(folder.exporter(&["--end-to-end", "--max-detections", "3000"]));
    let all = folder.detect("retinanet.onnx", Rules::default());
    assert!(all.len() > 50 && all.len() < 3000, "{}", all.len());
    let above = folder.detect("retinanet.onnx", Rules { score_threshold: Some(0.6), ..Rules::default() });
    let expected: Vec<_> = all.iter().filter(|detection| detection.score > 0.6).copied().collect();
    assert!(!expected.is_empty() && expected.len() < all.len() && above == expected);
    let classes = Some(vec!["platelet".to_owned()]);
    let platelets = folder.detect("retinanet.onnx", Rules { classes, ..Rules::default() });
    assert!(!platelets.is_empty() && platelets.iter().all(|detection| detection.class_index == 1));
    let few = folder.detect("retinanet.onnx", Rules { max_detections: Some(3), ..Rules::default() });
    assert_eq!(few, all[..3]);
    for (rules, reason) in [
        (Rules { nms_threshold: Some(0.4), ..Rules::default() }, "--nms-iou"),
        (Rules { soft_nms: Some(0.4), ..Rules::default() }, "--soft-nms"),
        (Rules { suppression: Some(Suppression::ClassAgnostic), ..Rules::default() }, "--class-agnostic"),
        (Rules { top_k: Some(7), ..Rules::default() }, "1000 candidates per level"),
        (Rules { max_detections: Some(3001), ..Rules::default() }, "at most 3000"),
        (Rules { score_threshold: Some(0.4), ..Rules::default() }, "0.4 is below 0.5"),
    ] {
        let mut options = DetectorOptions::default();
        options.rules = rules;
        let message = Detector::open(folder.path("retinanet.onnx"), options).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}
