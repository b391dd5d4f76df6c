//! Fixed sizes, candidates and inputs of bytes.

use std::fs;

use image::{Rgb, RgbImage};
use models::{Anchors, RgbView, preprocess, preprocess_bytes};
use ndarray::{ArrayView3, Axis};
use runtime::{
    Candidates, Detector, DetectorOptions, Engine, EngineOptions, Input, Outputs, PixelType, Pixels, Rules,
    postprocess, postprocess_candidates,
};

use crate::fixture::{
    Folder, checkpoint, checkpoint_with_detections, checkpoint_with_ties, image, images, open, success, tensor,
    with_probe_outputs,
};

fn near(a: ArrayView3<f32>, b: ArrayView3<f32>) -> bool {
    a.dim() == b.dim() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn top_k_candidates_give_the_same_detections_as_all_scores() {
    let mut plain = checkpoint().clone();
    plain.spec.postprocessing.score_threshold = 0.01;
    let mut one_class = checkpoint().clone();
    one_class.spec.classes.truncate(1);
    one_class.spec.postprocessing.score_threshold = 0.01;
    for name in ["weight", "bias"] {
        let tensor = tensor(&mut one_class, &format!("classificationModel.output.{name}"));
        tensor.slice_axis_inplace(Axis(0), (..9).into());
    }
    for checkpoint in [plain, checkpoint_with_ties(), with_probe_outputs(one_class)] {
        let folder = Folder::with(&checkpoint);
        success(folder.exporter(&["--out", "dense.onnx"]));
        let dense = open(&folder, "dense.onnx");
        for top_k in [1, 50, 1_000_000] {
            let printed = success(folder.exporter(&["--top-k", &top_k.to_string()]));
            assert!(printed.contains("differs from the plain file"), "{printed}");
            let selecting = open(&folder, "retinanet.onnx");
            let spec = selecting.spec();
            assert_eq!((selecting.top_k(), spec.postprocessing.top_k), (Some(top_k), Some(top_k)));
            for shape in [[1, 32, 32], [2, 64, 96], [1, 160, 32]] {
                let images = images(shape);
                let all = dense.run(images.view()).unwrap().into_dense().unwrap();
                let Outputs::Candidates(candidates) = selecting.run(images.view()).unwrap() else { panic!() };
                assert_eq!(candidates.images(), shape[0]);
                let anchors = Anchors::new(&spec.anchors, shape[1], shape[2]);
                let mut placement = spec.preprocessing.place(shape[2] as u32, shape[1] as u32);
                (placement.resized_height, placement.resized_width) = (shape[1] as u32, shape[2] as u32);
                for image in 0..shape[0] {
                    let (scores, offsets) = (all.scores(), all.offsets());
                    let (scores, offsets) = (scores.index_axis(Axis(0), image), offsets.index_axis(Axis(0), image));
                    let expected = postprocess(scores, offsets, &anchors, &placement, spec);
                    let found = postprocess_candidates(&candidates.of(image), &anchors, &placement, spec);
                    assert!(found == expected, "top_k {top_k}, {shape:?}");
                    assert!(!found.is_empty());
                    let levels = anchors.levels().each_ref().map(|level| level.len() * spec.class_count());
                    let expected: usize = levels.into_iter().map(|scores| scores.min(top_k)).sum();
                    assert_eq!(candidates.of(image).scores.len(), expected);
                }
            }
        }
    }
}

#[test]
fn fixed_sizes_are_in_the_file_and_do_not_change_its_outputs() {
    let folder = Folder::with(&checkpoint_with_ties());
    success(folder.exporter(&["--out", "plain.onnx"]));
    let plain = open(&folder, "plain.onnx");
    assert_eq!((plain.size(), plain.batch(), plain.top_k()), (None, None, None));
    for (arguments, size, batch) in [
        (&["--input-size", "96x64"][..], Some([96, 64]), None),
        (&["--batch-size", "3"], None, Some(3)),
        (&["--input-size", "96x64", "--batch-size", "3"], Some([96, 64]), Some(3)),
        (&["--input-size", "96x64", "--batch-size", "3", "--top-k", "70"], Some([96, 64]), Some(3)),
        (&["--input-size", "96x64", "--top-k", "70", "--opset", "13"], Some([96, 64]), None),
        (&["--batch-size", "3", "--top-k", "70", "--opset", "21", "--external-data"], None, Some(3)),
    ] {
        success(folder.exporter(arguments));
        let fixed = open(&folder, "retinanet.onnx");
        assert_eq!((fixed.size(), fixed.batch()), (size, batch), "{arguments:?}");
        assert_eq!(fixed.spec().preprocessing.input_size, size.map(|sides| sides.map(|side| side as u32)));
        for count in 1..=3 {
            let images = images([count, 96, 64]);
            let expected = plain.run(images.view()).unwrap().into_dense().unwrap();
            match fixed.run(images.view()).unwrap() {
                Outputs::Detections(_) => panic!("no file is end-to-end"),
                Outputs::Dense(found) => {
                    // With a larger batch, the order of summation may differ.
                    assert!(near(found.scores(), expected.scores()) && near(found.offsets(), expected.offsets()));
                }
                Outputs::Candidates(found) => {
                    assert_eq!(found.images(), count);
                    for image in 0..count {
                        let Candidates { scores, anchors, classes, .. } = found.of(image);
                        for ((score, anchor), class) in scores.iter().zip(anchors).zip(classes) {
                            let expected = expected.scores()[[image, *anchor as usize, *class as usize]];
                            assert!((*score - expected).abs() < 1e-6 || *score == 0.0 && expected <= 0.5);
                        }
                    }
                }
            }
        }
        let too_many = fixed.run(images([4, 96, 64]).view());
        match batch {
            Some(_) => assert!(too_many.unwrap_err().to_string().contains("4 images exceed")),
            None => assert!(too_many.is_ok()),
        }
        let other = fixed.run(images([1, 64, 96]).view());
        match size {
            Some(_) => {
                assert!(other.unwrap_err().to_string().contains("input is 64x96, but the model accepts only 96x64"))
            }
            None => assert!(other.is_ok()),
        }
    }
}

#[test]
fn detector_runs_every_variant_without_options() {
    let mut checkpoint = checkpoint_with_ties();
    (checkpoint.spec.preprocessing.shorter_side, checkpoint.spec.preprocessing.longer_side) = (96, 160);
    let folder = Folder::with(&checkpoint);
    // 160 x 96 pixels: the size that both the spec and `--input-size` give.
    let image = RgbImage::from_fn(160, 96, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
    let detect = |arguments: &[&str], threshold: Option<f32>| {
        success(folder.exporter(arguments));
        let mut options = DetectorOptions::default();
        options.rules.score_threshold = threshold;
        Detector::open(folder.path("retinanet.onnx"), options).map(|detector| detector.detect(&image).unwrap())
    };
    let expected = detect(&[], None).unwrap();
    assert!(expected.len() > 20);
    for arguments in [
        &["--top-k", "100000"][..],
        &["--input-size", "96x160", "--batch-size", "2"],
        &["--input-size", "96x160", "--top-k", "100000"],
    ] {
        let found = detect(arguments, None).unwrap();
        assert_eq!(found.len(), expected.len(), "{arguments:?}");
        for (found, expected) in found.iter().zip(&expected) {
            let corners = [found, expected].map(|detection| <[f32; 4]>::from(detection.bounding_box));
            assert!(
                (found.class_index, found.score) == (expected.class_index, expected.score),
                "{found:?} {expected:?}"
            );
            assert!(corners[0].iter().zip(corners[1]).all(|(a, b)| (a - b).abs() < 1e-3), "{found:?} {expected:?}");
        }
    }
    // With a smaller input, detections differ, but all are inside the image.
    let smaller = detect(&["--input-size", "64x64"], None).unwrap();
    assert!(!smaller.is_empty() && smaller.iter().all(|found| found.bounding_box.x2 <= 160.0));

    let high_scoring = detect(&["--top-k", "100000"], Some(0.6)).unwrap();
    assert!(!high_scoring.is_empty() && high_scoring.len() < expected.len());
    assert!(high_scoring == detect(&[], Some(0.6)).unwrap());
    let message = detect(&["--top-k", "100000"], Some(0.4)).unwrap_err().to_string();
    assert!(message.contains("0.4 is below 0.5") && message.contains("--top-k"), "{message}");
    assert!(open(&folder, "retinanet.onnx").run(images([1, 32, 32]).view()).unwrap().into_dense().is_err());
}

#[test]
fn a_file_whose_graph_and_metadata_disagree_is_refused() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&["--input-size", "96x64", "--top-k", "40"]));
    let whole = fs::read(folder.path("retinanet.onnx")).unwrap();
    for (original, replacement, reason) in [
        ("  - 96\n  - 64\n", "  - 64\n  - 96\n", "its input is 96x64, but its spec declares 64x96"),
        ("retinanet.top_k", "retinanet.top_x", "it has 4 outputs"),
    ] {
        let start = whole.windows(original.len()).position(|window| window == original.as_bytes()).unwrap();
        let changed = [&whole[..start], replacement.as_bytes(), &whole[start + original.len()..]].concat();
        let message = Engine::from_bytes("changed", &changed, &EngineOptions::default()).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn bytes_give_the_outputs_of_floats_to_the_last_bit() {
    let folder = Folder::with(&checkpoint_with_detections());
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
            folder.detect("bytes.onnx", Rules::default()),
            folder.detect("floats.onnx", Rules::default()),
            "{arguments:?}"
        );
    }
}
