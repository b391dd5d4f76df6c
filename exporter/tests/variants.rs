//! Files that read bytes, that apply NMS themselves, and that lie in a model repository.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fixture;

use std::fs;

use image::{Rgb, RgbImage};
use models::spec::{AnchorCenter, AnchorOrder, AnchorRounding, AnchorStride, Clip, Suppression};
use models::{Checkpoint, RgbView, preprocess, preprocess_bytes};
use ndarray::Axis;
use runtime::{Check, Detection, Detector, DetectorOptions, EngineOptions, Input, PixelType, Pixels, Rules};

use fixture::{Folder, checkpoint_with_ties, failure, open, success, with_probe_outputs};

/// A checkpoint with hundreds of detections in small images.
fn checkpoint() -> Checkpoint {
    let mut checkpoint = checkpoint_with_ties();
    (checkpoint.spec.preprocessing.shorter_side, checkpoint.spec.preprocessing.longer_side) = (96, 160);
    checkpoint.spec.preprocessing.round_pixels = true;
    checkpoint
}

/// The same with every other choice that matters after the network.
fn other_checkpoint() -> Checkpoint {
    let mut checkpoint = checkpoint();
    let spec = &mut checkpoint.spec;
    (spec.anchors.center, spec.anchors.stride) = (AnchorCenter::Zero, AnchorStride::Fitted);
    (spec.anchors.rounding, spec.anchors.order) = (AnchorRounding::Corners, AnchorOrder::ScaleMajor);
    (spec.box_coder.std, spec.box_coder.clamp) = ([1.0, 0.9, 0.8, 0.7], Some(0.05));
    (spec.postprocessing.clip, spec.postprocessing.suppression) = (Clip::Padded, Suppression::ClassAgnostic);
    spec.postprocessing.max_detections = Some(30);
    with_probe_outputs(checkpoint)
}

/// An image that no side of the input fits exactly.
fn image() -> RgbImage {
    RgbImage::from_fn(150, 90, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]))
}

fn detect(folder: &Folder, file: &str, rules: Rules) -> Vec<Detection> {
    let mut options = DetectorOptions::default();
    options.rules = rules;
    Detector::open(folder.path(file), options).unwrap().detect(&image()).unwrap()
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
    for (checkpoint, default_max) in [(checkpoint(), 300), (other_checkpoint(), 30)] {
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
                let expected = detect(&folder, "plain.onnx", rules);
                assert!(expected.len() >= 5, "{}", expected.len());
                let found = detect(&folder, "retinanet.onnx", Rules::default());
                assert_same(&found, &expected, &format!("{size:?} {arguments:?}"));
                let engine = open(&folder, "retinanet.onnx");
                assert_eq!((engine.top_k(), engine.max_detections()), (Some(top_k), Some(max)));
            }
        }
    }
}

#[test]
fn rules_that_an_end_to_end_file_fixes_are_refused_by_name_and_others_filter() {
    let folder = Folder::with(&checkpoint());
    success(folder.exporter(&["--end-to-end", "--max-detections", "3000"]));
    let all = detect(&folder, "retinanet.onnx", Rules::default());
    assert!(all.len() > 50 && all.len() < 3000, "{}", all.len());
    let above = detect(&folder, "retinanet.onnx", Rules { score_threshold: Some(0.6), ..Rules::default() });
    let expected: Vec<_> = all.iter().filter(|detection| detection.score > 0.6).copied().collect();
    assert!(!expected.is_empty() && expected.len() < all.len() && above == expected);
    let classes = Some(vec!["platelet".to_owned()]);
    let platelets = detect(&folder, "retinanet.onnx", Rules { classes, ..Rules::default() });
    assert!(!platelets.is_empty() && platelets.iter().all(|detection| detection.class_index == 1));
    let few = detect(&folder, "retinanet.onnx", Rules { max_detections: Some(3), ..Rules::default() });
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

#[test]
fn bytes_give_the_outputs_of_floats_to_the_last_bit() {
    let folder = Folder::with(&checkpoint());
    let bytes = image().into_raw();
    let view = RgbView::new(150, 90, &bytes).unwrap();
    for arguments in [&[][..], &["--input-size", "96x160", "--batch-size", "2"]] {
        success(folder.exporter(&[arguments, &["--out", "floats.onnx"]].concat()));
        success(folder.exporter(&[arguments, &["--out", "bytes.onnx", "--input", "uint8"]].concat()));
        let [floats, bytes] = ["floats.onnx", "bytes.onnx"].map(|name| open(&folder, name));
        assert_eq!([floats.pixel_type(), bytes.pixel_type()], [PixelType::Float, PixelType::Bytes]);
        let spec = &floats.spec().preprocessing;
        let expected = floats.run(preprocess(view, spec).pixels.insert_axis(Axis(0)).view()).unwrap();
        let Ok((mut pixels, placement)) = preprocess_bytes(view, spec);
        let valid = [placement.resized_height as usize, placement.resized_width as usize];
        assert_eq!((valid, pixels.dim()), ([96, 160], (96, 160, 3)));
        for padding in [0, 77] {
            // What is in the padding does not matter.
            let valid = [valid[0] - 10, valid[1] - 20];
            pixels.slice_mut(ndarray::s![valid[0].., .., ..]).fill(padding);
            pixels.slice_mut(ndarray::s![.., valid[1].., ..]).fill(padding);
            let mut normalized = preprocess(view, spec).pixels;
            normalized.slice_mut(ndarray::s![.., valid[0].., ..]).fill(0.0);
            normalized.slice_mut(ndarray::s![.., .., valid[1]..]).fill(0.0);
            let padded = floats.run(normalized.insert_axis(Axis(0)).view()).unwrap().into_dense().unwrap();
            let input = Input { pixels: Pixels::Bytes(pixels.view().into()), valid };
            let found = bytes.run_inputs(&[&input], 1).unwrap().into_dense().unwrap();
            assert!(found.scores() == padded.scores() && found.offsets() == padded.offsets());
        }
        let Ok((pixels, _)) = preprocess_bytes(view, spec);
        let input = Input { pixels: Pixels::Bytes(pixels.into()), valid };
        let found = bytes.run_inputs(&[&input], 1).unwrap().into_dense().unwrap();
        let expected = expected.into_dense().unwrap();
        assert!(found.scores() == expected.scores() && found.offsets() == expected.offsets());
        let message = bytes.run(ndarray::Array4::zeros((1, 3, 96, 160)).view()).unwrap_err().to_string();
        assert!(message.contains("reads pixels as Bytes"), "{message}");
        assert_eq!(
            detect(&folder, "bytes.onnx", Rules::default()),
            detect(&folder, "floats.onnx", Rules::default()),
            "{arguments:?}"
        );
    }
}

#[test]
fn variants_that_a_spec_does_not_allow_are_refused_by_name() {
    let mut soft = checkpoint();
    soft.spec.postprocessing.soft_nms = Some(0.5);
    soft.spec.preprocessing.round_pixels = false;
    let folder = Folder::with(&soft);
    for (arguments, reason) in [
        (&["--end-to-end"][..], "soft-NMS"),
        (&["--input", "uint8"], "`preprocessing.round_pixels: true`"),
        (&["--max-detections", "7"], "--end-to-end"),
        (&["--end-to-end", "--max-detections", "0"], "--max-detections"),
        (&["--model-name", "cells"], "--repository"),
        (&["--repository", "models", "--model-name", "../cells"], "letters, digits"),
        (&["--repository", "models", "--out", "x.onnx"], "cannot be used with"),
    ] {
        let message = failure(folder.exporter(arguments));
        assert!(message.contains(reason), "{message}");
        assert_eq!(folder.files(), ["runs"]);
    }
}

#[test]
fn description_of_an_end_to_end_file_says_how_to_use_it() {
    let folder = Folder::with(&checkpoint());
    success(folder.exporter(&["--end-to-end", "--input", "uint8"]));
    let printed = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    for line in [
        "  images [N, H, W, 3] uint8: resized RGB images",
        "  sizes [N, 2] int64: height and width",
        "the file normalizes",
        "  num_detections [N, 1] int32: number of detections",
        "  detection_boxes [N, 300, 4] float32: boxes as x1, y1, x2, y2 in pixels of the input",
        "  detection_scores [N, 300] float32",
        "  detection_classes [N, 300] int32",
        "per level at most 1000",
        "Keep at most 300 detections",
        "retinanet.end_to_end: 300",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    assert!(!printed.contains("Anchors"), "{printed}");
}

#[test]
fn a_repository_has_the_verified_model_and_its_configuration() {
    let folder = Folder::with(&checkpoint());
    let repository =
        |more: &[&str]| folder.exporter(&[&["--repository", "models", "--model-name", "cells"], more].concat());
    for _ in 0..2 {
        let printed = success(repository(&["--end-to-end", "--input-size", "96x160"]));
        assert!(printed.starts_with("models/cells/1/model.onnx"), "{printed}");
        assert_eq!(folder.files(), ["models", "runs"]);
        let config = fs::read_to_string(folder.path("models/cells/config.pbtxt")).unwrap();
        assert!(config.contains("dims: [3, 96, 160]") && config.contains("dims: [300, 4]"), "{config}");
        assert!(!detect(&folder, "models/cells/1/model.onnx", Rules::default()).is_empty());
    }
    // A refused model creates no folders.
    let mut wrong = checkpoint();
    *fixture::tensor(&mut wrong, "regressionModel.output.bias") += 0.01;
    let folder = Folder::with(&wrong);
    assert!(failure(folder.exporter(&["--repository", "models"])).contains("does not reproduce"));
    assert_eq!(folder.files(), ["runs"]);
}

#[test]
fn every_variant_and_precision_carries_a_check_that_runs_elsewhere() {
    let folder = Folder::with(&checkpoint());
    folder.add_images(2);
    for (precision, limit) in [
        (&["--precision", "fp32"][..], 0.01),
        (&["--precision", "fp16"], 0.02),
        (&["--precision", "int8", "--calibrate", "images"], 0.11),
    ] {
        for variant in [
            &[][..],
            &["--top-k", "20", "--batch-size", "2"],
            &["--end-to-end", "--input", "uint8", "--input-size", "96x160"],
            &["--external-data"],
        ] {
            success(folder.exporter(&[precision, variant].concat()));
            let report = Check::run(&folder.path("retinanet.onnx"), &EngineOptions::default()).unwrap();
            assert!(report.passes() && report.limit == limit, "{precision:?} {variant:?}: {report}");
            assert!(limit > 0.01 || report.logits.rms() < 1e-5, "{variant:?}: {report}");
        }
    }
}

#[test]
fn a_file_says_where_it_was_proven_and_wrong_numbers_are_noticed() {
    let folder = Folder::with(&checkpoint());
    let printed = success(folder.exporter(&["--prove", "cpu,openvino:npu", "--end-to-end"]));
    assert!(printed.contains("  on cpu       RMS difference") && printed.contains("not proven: "), "{printed}");
    let path = folder.path("retinanet.onnx");
    let engine = open(&folder, "retinanet.onnx");
    let keys: Vec<_> = engine.info().metadata.keys().filter(|key| key.starts_with("retinanet.proven")).collect();
    assert_eq!(keys, ["retinanet.proven.cpu"]);
    let described = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    assert!(described.contains("retinanet.proven.cpu: ONNX Runtime 1.") && !described.contains("retinanet.check"));
    let whole = fs::read(&path).unwrap();
    success(folder.exporter(&["--prove", "cpu", "--end-to-end"]));
    assert!(whole == fs::read(&path).unwrap(), "the same inputs give the same bytes");

    // As if this machine computed other logits.
    let mut changed = whole.clone();
    let start = whole.windows(10).position(|window| window == b"\"logits\":\"").unwrap() + 10;
    changed[start..start + 4000].fill(b'0');
    fs::write(&path, &changed).unwrap();
    let report = Check::run(&path, &EngineOptions::default()).unwrap();
    assert!(!report.passes() && report.offsets.rms() < 1e-5, "{report}");
    changed[start] = b'x';
    fs::write(&path, &changed).unwrap();
    assert!(Check::run(&path, &EngineOptions::default()).unwrap_err().to_string().contains("not hexadecimal"));

    for (arguments, reason) in [(["--prove", "auto"], "`auto` is none"), (["--prove", "tpu"], "unknown provider `tpu`")]
    {
        assert!(failure(folder.exporter(&arguments)).contains(reason));
    }
}
