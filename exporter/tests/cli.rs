//! The program `exporter`, on checkpoints with random weights.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod fixture;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use image::{Rgb, RgbImage};
use models::{Anchors, Checkpoint, HeadOutputs, RgbView, preprocess};
use ndarray::{Array3, ArrayD, ArrayView3, Axis, IxDyn};
use runtime::{
    Candidates, Detector, DetectorOptions, Engine, EngineOptions, Outputs, postprocess, postprocess_candidates,
};

use fixture::{
    Folder, Random, checkpoint, checkpoint_for_small_images, checkpoint_with_ties, failure, images, noise, open,
    success, tensor, with_probe_outputs,
};

#[test]
fn exported_file_runs_at_every_size_and_contains_its_spec() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--out", "model.onnx"]));
    // 11,176,512 in the backbone (torchvision resnet18 without `fc`'s 513,000), 213,248 in the FPN, 89,590 in the heads.
    for line in ["model.onnx", "parameters   11,479,350", "GFLOPs at 608x1024", "MB", "(limit 3)"] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    assert_eq!(folder.files(), ["model.onnx", "runs"]);

    let engine = Engine::open(folder.path("model.onnx"), &EngineOptions::default()).unwrap();
    assert_eq!(*engine.spec(), checkpoint().spec);
    for (count, height, width) in [(1, 32, 32), (3, 64, 96), (2, 160, 32)] {
        let images = noise(&mut Random(7), &[count, 3, height, width], 1.0);
        let outputs = engine.run(images.into_dimensionality().unwrap().view()).unwrap().into_dense().unwrap();
        let (scores, offsets) = (outputs.scores(), outputs.offsets());
        let cells: usize = (3..8).map(|level| height.div_ceil(1 << level) * width.div_ceil(1 << level)).sum();
        assert_eq!(scores.dim(), (count, cells * 9, 2));
        assert_eq!(offsets.dim(), (count, cells * 9, 4));
        assert!(scores.iter().all(|score| *score > 0.0 && *score < 1.0));
    }
}

#[test]
fn default_exports_the_best_checkpoint_of_the_latest_run() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&[]));
    let first = fs::read(folder.path("retinanet.onnx")).unwrap();
    success(folder.exporter(&[]));
    assert!(first == fs::read(folder.path("retinanet.onnx")).unwrap(), "the same inputs give the same bytes");
}

#[test]
fn summary_lists_the_layers() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--summary"]));
    let row = |name: &str| printed.lines().find(|line| line.split_whitespace().next() == Some(name));
    assert!(row("layer4.1.conv2").unwrap().contains("[1, 512, 19, 32]"), "{printed}");
    assert!(row("total").unwrap().contains("11,479,350"), "{printed}");
}

#[test]
fn description_contains_everything_needed_to_use_the_file() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&[]));
    let printed = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    for line in [
        "RetinaNet with ResNet-18",
        "  images [N, 3, H, W] float32: normalized RGB images; H and W are multiples of 32",
        "shorter side is 608, or, if the longer side would exceed 1024",
        "mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]",
        "  classification [N, A, 2] float32",
        "  regression [N, A, 4] float32",
        "anchor of the cell (9 per cell)",
        "Centers: (x + 0.5, y + 0.5) * step",
        // 32 * sqrt(2) by 32 / sqrt(2): ratio 0.5, scale 1.
        "P3 width x height: 45.25x22.63 ",
        "center x = ax + 0.1 * dx * aw",
        "width = aw * exp(0.2 * dw)",
        "Keep scores above 0.05, per level all",
        "of the same class exceeds 0.5",
        "  1  5  platelet",
        "retinanet.program: a test",
        "retinanet.epoch: 3",
        "ONNX opset 17",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
}

#[test]
fn describe_refuses_files_that_exporter_did_not_write() {
    let folder = Folder::empty();
    fs::write(folder.path("text.onnx"), "no protocol buffers").unwrap();
    fs::write(folder.path("empty.onnx"), "").unwrap();
    for (file, reason) in
        [("text.onnx", "not an ONNX file"), ("empty.onnx", "no `retinanet.spec`"), ("none.onnx", "No such file")]
    {
        let message = failure(folder.exporter(&["--describe", file]));
        assert!(message.contains(&format!("`{file}`")) && message.contains(reason), "{message}");
    }
}

#[test]
fn a_file_that_does_not_reproduce_the_probe_is_not_written() {
    type Change = fn(&mut Checkpoint);
    let changes: [(&str, Change); 8] = [
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.logits[[1, 5, 1]] += 1e-3),
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.offsets[[0, 1160, 3]] -= 1e-3),
        ("does not reproduce", |checkpoint| checkpoint.probe.outputs.features[1][[1, 128, 31]] -= 1e-3),
        ("error is NaN times", |checkpoint| checkpoint.probe.outputs.logits[[0, 0, 0]] = f32::NAN),
        ("error is NaN times", |checkpoint| tensor(checkpoint, "conv1.weight").fill(f32::NAN)),
        ("does not reproduce", |checkpoint| *tensor(checkpoint, "regressionModel.output.bias") += 1e-5),
        ("does not reproduce", |checkpoint| {
            checkpoint.probe.rounding = [[f32::INFINITY; 2]; HeadOutputs::PARTS];
            *tensor(checkpoint, "regressionModel.conv4.weight") *= 1.01;
        }),
        ("probe are constant", |checkpoint| checkpoint.probe.outputs.features[0].fill(0.5)),
    ];
    for (expected, change) in changes {
        let mut checkpoint = checkpoint().clone();
        change(&mut checkpoint);
        let folder = Folder::with(&checkpoint);
        fs::write(folder.path("retinanet.onnx"), "the earlier file").unwrap();
        let message = failure(folder.exporter(&[]));
        assert!(message.contains(expected) && message.contains("no file was written"), "{message}");
        assert_eq!(fs::read(folder.path("retinanet.onnx")).unwrap(), b"the earlier file");
        assert_eq!(folder.files(), ["retinanet.onnx", "runs"]);
    }
}

#[test]
fn error_of_a_missing_checkpoint_mentions_trainer_fit() {
    let folder = Folder::empty();
    let message = failure(folder.exporter(&[]));
    assert!(message.contains("`runs/latest/best.safetensors`") && message.contains("`trainer fit`"), "{message}");
    assert!(folder.files().is_empty());
}

#[test]
fn damaged_other_and_misshapen_checkpoints_are_refused() {
    let folder = Folder::with(checkpoint());
    let best = folder.path("runs/latest/best.safetensors");
    let whole = fs::read(&best).unwrap();
    for (bytes, expected) in
        [(&whole[..whole.len() / 2], "damaged"), (&b"\x08\0\0\0\0\0\0\0{}      "[..], "not a checkpoint")]
    {
        fs::write(&best, bytes).unwrap();
        let message = failure(folder.exporter(&[]));
        assert!(message.contains("best.safetensors") && message.contains(expected), "{message}");
    }
    let mut misshapen = checkpoint().clone();
    misshapen.tensors.insert("fpn.P6.bias".to_owned(), ArrayD::zeros(IxDyn(&[9])));
    misshapen.tensors.remove("bn1.bias");
    misshapen.write(&best).unwrap();
    let message = failure(folder.exporter(&[]));
    assert!(message.contains("`fpn.P6.bias` has shape [9], expected [32]"), "{message}");
    assert!(message.contains("missing: bn1.bias"), "{message}");
    assert_eq!(folder.files(), ["runs"]);
}

#[test]
fn an_unwritable_target_is_reported_before_the_checkpoint_is_read() {
    let folder = Folder::empty();
    for out in ["nowhere/model.onnx", "."] {
        let message = failure(folder.exporter(&["--out", out]));
        assert!(message.contains(&format!("cannot write `{out}`")), "{message}");
    }
}

#[test]
fn a_missing_onnx_runtime_is_an_error_and_leaves_no_file() {
    let folder = Folder::with(checkpoint());
    let message = failure(folder.exporter(&["--onnxruntime", "/nonexistent/libonnxruntime.so"]));
    assert!(message.contains("/nonexistent/libonnxruntime.so"), "{message}");
    assert_eq!(folder.files(), ["runs"]);
}

#[test]
fn every_opset_can_be_exported_and_other_versions_are_refused() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(1);
    for opset in ["13", "18", "21", "26"] {
        for precision in [&["--precision", "fp32"][..], &["--precision", "int8", "--calibrate", "images"]] {
            success(folder.exporter(&[&["--opset", opset, "--out", "model.onnx"], precision].concat()));
            let described = success(folder.exporter(&["--describe", "model.onnx"]));
            assert!(described.contains(&format!("ONNX opset {opset}")), "{described}");
        }
    }
    for opset in ["12", "27", "x"] {
        assert!(failure(folder.exporter(&["--opset", opset])).contains("from 13 to 26"));
    }
}

#[test]
fn name_and_doc_string_are_written_to_the_file() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&["--name", "Blood cells", "--doc", "Finds cells, as of 2026."]));
    let described = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    assert!(described.starts_with("Finds cells, as of 2026."), "{described}");
    let bytes = fs::read(folder.path("retinanet.onnx")).unwrap();
    assert!(bytes.windows(11).any(|window| window == b"Blood cells"));
}

#[test]
fn external_data_is_a_separate_file_that_is_reused_for_the_same_weights() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&["--out", "single.onnx"]));
    for _ in 0..2 {
        success(folder.exporter(&["--external-data"]));
        let files = folder.files();
        let [data, model, ..] = &files[..] else { panic!("{files:?}") };
        assert!(data.starts_with("retinanet-") && data.ends_with(".bin") && model == "retinanet.onnx", "{files:?}");
        assert_eq!(files.len(), 4, "the same weights have the same file: {files:?}");
        assert!(fs::metadata(folder.path(model)).unwrap().len() < 200_000);
    }
    let images = noise(&mut Random(7), &[1, 3, 64, 32], 1.0).into_dimensionality().unwrap();
    let [single, double] = ["single.onnx", "retinanet.onnx"].map(|name| {
        let engine = Engine::open(folder.path(name), &EngineOptions::default()).unwrap();
        engine.run(images.view()).unwrap().into_dense().unwrap().offsets().to_owned()
    });
    assert_eq!(single, double);

    // A refused model leaves no weights file behind, and does not delete an existing one.
    let before = folder.files();
    let mut wrong = checkpoint().clone();
    *tensor(&mut wrong, "regressionModel.output.bias") += 0.01;
    wrong.write(&folder.path("runs/latest/best.safetensors")).unwrap();
    assert!(failure(folder.exporter(&["--external-data"])).contains("does not reproduce"));
    assert_eq!(folder.files(), before);
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

fn near(a: ArrayView3<f32>, b: ArrayView3<f32>) -> bool {
    a.dim() == b.dim() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
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
fn fp16_and_int8_can_be_combined_with_fixed_sizes_and_top_k() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(2);
    for precision in [&["--precision", "fp16"][..], &["--precision", "int8", "--calibrate", "images"]] {
        let variant = ["--top-k", "40", "--input-size", "96x128", "--batch-size", "2"];
        let printed = success(folder.exporter(&[precision, &variant[..]].concat()));
        assert!(printed.contains("differs from fp32") && printed.contains("differs from the plain file"), "{printed}");
        assert_eq!(folder.files(), ["images", "retinanet.onnx", "runs"]);
        let engine = open(&folder, "retinanet.onnx");
        assert_eq!((engine.size(), engine.batch(), engine.top_k()), (Some([96, 128]), Some(2), Some(40)));
    }
}

#[test]
fn description_contains_fixed_sizes_and_candidates() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&["--input-size", "96x128", "--batch-size", "2", "--top-k", "40"]));
    let printed = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    for line in [
        "  images [2, 3, 96, 128] float32: normalized RGB images",
        "the height at most 96 and the width at most 128",
        "to height 96 and width 128",
        // 40 per level, except P7, which has one cell with 9 anchors and 2 classes.
        "  scores [2, 178] float32",
        "  anchors [2, 178] int64",
        "  classes [2, 178] int64",
        "  regression [2, 178, 4] float32",
        "Candidate j",
        "per level at most 40",
        "retinanet.top_k: 40",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
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
fn invalid_sizes_and_counts_are_refused_and_no_file_is_written() {
    let mut stretched = checkpoint().clone();
    stretched.spec.preprocessing.fixed_size = Some([96, 90]);
    let folder = Folder::with(&stretched);
    for (arguments, reason) in [
        (["--input-size", "96"], "both multiples of 32"),
        (["--input-size", "96x100"], "both multiples of 32"),
        (["--input-size", "0x96"], "both multiples of 32"),
        (["--batch-size", "0"], "1..=65535"),
        (["--batch-size", "many"], "invalid digit"),
        (["--top-k", "0"], "1.."),
        (["--top-k", "-3"], "-3 is not in 1.."),
        (["--input-size", "96x128"], "`preprocessing.input_size` is Some([96, 128])"),
    ] {
        let message = failure(folder.exporter(&arguments));
        assert!(message.contains(reason), "{message}");
        assert_eq!(folder.files(), ["runs"]);
    }
    success(folder.exporter(&["--input-size", "96x96"]));
}

#[test]
fn fp16_halves_the_file_size_and_matches_fp32() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&["--out", "full.onnx"]));
    let printed = success(folder.exporter(&["--out", "half.onnx", "--precision", "fp16"]));
    assert!(printed.contains("fp16         differs from fp32: logits 0.0"), "{printed}");
    assert!(!printed.contains("fp32 layers"), "nothing here overflows: {printed}");
    let size = |name: &str| fs::metadata(folder.path(name)).unwrap().len() as f64;
    assert!((0.49..0.52).contains(&(size("half.onnx") / size("full.onnx"))));
    let printed = success(folder.exporter(&["--precision", "fp16", "--keep-float", "layer4,fpn.P3_2"]));
    let float_layers = printed.lines().find(|line| line.contains("fp32 layers")).unwrap();
    assert!(float_layers.contains("layer4.1.conv2") && float_layers.contains("fpn.P3_2"), "{float_layers}");
    assert!(size("retinanet.onnx") > size("half.onnx"));
}

#[test]
fn layers_that_would_overflow_fp16_stay_fp32() {
    let mut checkpoint = checkpoint().clone();
    // The output of the first block's first convolution is 100,000 times larger; the next one compensates for it.
    *tensor(&mut checkpoint, "layer1.0.bn1.weight") *= 1e5;
    *tensor(&mut checkpoint, "layer1.0.bn1.bias") *= 1e5;
    *tensor(&mut checkpoint, "layer1.0.conv2.weight") *= 1e-5;
    let printed = success(Folder::with(&checkpoint).exporter(&["--precision", "fp16"]));
    let float_layers = printed.lines().find(|line| line.contains("fp32 layers")).unwrap();
    assert!(float_layers.ends_with("layer1.0.conv1, layer1.0.conv2"), "{float_layers}");
}

/// Adds an image whose normalized pixels are almost zero, so that its activations do not represent those of other images.
fn add_gray(folder: &Folder) {
    RgbImage::from_pixel(96, 96, Rgb([124, 116, 104])).save(folder.path("gray.png")).unwrap();
}

#[test]
fn fp16_overflow_missed_by_the_calibration_images_is_refused() {
    let mut checkpoint = checkpoint_for_small_images();
    for (name, factor) in
        [("bn1.bias", 0.0), ("bn1.running_mean", 0.0), ("layer1.0.bn1.bias", 0.0), ("layer1.0.bn1.running_mean", 0.0)]
    {
        *tensor(&mut checkpoint, name) *= factor;
    }
    *tensor(&mut checkpoint, "layer1.0.bn1.weight") *= 4e5;
    *tensor(&mut checkpoint, "layer1.0.conv2.weight") *= 2.5e-6;
    let folder = Folder::with(&with_probe_outputs(checkpoint));
    add_gray(&folder);
    let message = failure(folder.exporter(&["--precision", "fp16", "--calibrate", "gray.png"]));
    assert!(message.contains("fp16 differs too much from fp32") && message.contains("--calibrate"), "{message}");
    assert_eq!(folder.files(), ["gray.png", "runs"]);
}

#[test]
fn int8_ranges_from_a_gray_image_are_refused_even_before_training() {
    let mut untrained = checkpoint_for_small_images();
    for head in ["classificationModel", "regressionModel"] {
        tensor(&mut untrained, &format!("{head}.output.weight")).fill(0.0);
    }
    for checkpoint in [checkpoint_for_small_images(), with_probe_outputs(untrained)] {
        let folder = Folder::with(&checkpoint);
        folder.add_images(2);
        add_gray(&folder);
        let int8 = |data: &str| folder.exporter(&["--precision", "int8", "--calibrate", data]);
        let message = failure(int8("gray.png"));
        assert!(
            message.contains("int8 differs too much from fp32") && message.contains("limits are 0.1 standard"),
            "{message}"
        );
        assert_eq!(folder.files(), ["gray.png", "images", "runs"]);
        success(int8("images"));
        success(folder.exporter(&["--precision", "fp16"]));
    }
}

#[test]
fn int8_quarters_the_file_size_and_hardly_changes_the_outputs() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(3);
    let int8 = ["--precision", "int8", "--calibrate", "images"];
    success(folder.exporter(&["--out", "full.onnx"]));
    let printed = success(folder.exporter(&int8));
    let float_layers = printed.lines().find(|line| line.contains("fp32 layers")).unwrap();
    assert!(float_layers.ends_with("classificationModel.output, conv1, regressionModel.output"), "{float_layers}");
    let bytes = fs::read(folder.path("retinanet.onnx")).unwrap();
    assert!(
        (0.25..0.28).contains(&(bytes.len() as f64 / fs::metadata(folder.path("full.onnx")).unwrap().len() as f64))
    );
    success(folder.exporter(&int8));
    assert!(bytes == fs::read(folder.path("retinanet.onnx")).unwrap(), "the same inputs give the same bytes");

    let [full, int8] =
        ["full.onnx", "retinanet.onnx"].map(|name| Engine::open(folder.path(name), &EngineOptions::default()).unwrap());
    let image = runtime::image_file::read(folder.path("images/0.png")).unwrap();
    let view = RgbView::new(image.width(), image.height(), image.as_raw()).unwrap();
    let images = preprocess(view, &full.spec().preprocessing).pixels.insert_axis(Axis(0));
    let [expected, found] = [full, int8].map(|engine| engine.run(images.view()).unwrap().into_dense().unwrap());
    let norm = |values: &Array3<f32>| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let (expected, found) = (expected.offsets().to_owned(), found.offsets().to_owned());
    let error = norm(&(&expected - &found)) / norm(&expected);
    assert!(error > 0.0 && error < 0.05, "relative error of the offsets: {error}");
}

#[test]
fn every_precision_option_has_an_effect() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(2);
    let int8 = |more: &[&str]| {
        success(folder.exporter(&[&["--precision", "int8", "--calibrate", "images"], more].concat()));
        fs::read(folder.path("retinanet.onnx")).unwrap()
    };
    let plain = int8(&[]);
    let changed = int8(&["--calibration-images", "1"]);
    assert!(changed != plain && changed.len() == plain.len());
    assert!(int8(&["--keep-float", "layer4"]).len() > plain.len() + 20_000_000);

    // Not `success`: it takes so long that it may report progress on stderr.
    let output = folder.exporter(&["--precision", "int8", "--calibrate", "images", "--sensitivity"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(plain == fs::read(folder.path("retinanet.onnx")).unwrap());
    let listed: Vec<_> = printed.lines().filter(|line| line.starts_with("    ")).collect();
    assert_eq!(listed.len(), 38, "{printed}");
    assert!(listed.iter().any(|line| line.contains("layer3.0.downsample.0")), "{printed}");
}

#[test]
fn too_large_an_ap_drop_has_its_own_exit_code_and_writes_no_file() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(2);
    fs::write(folder.path("boxes.csv"), "0.png,1,2,30,40,cell\n1.png,5,5,20,20,platelet\n").unwrap();
    fs::write(folder.path("retinanet.onnx"), "the earlier file").unwrap();
    let fp16 = ["--precision", "fp16", "--images", "images", "--eval", "boxes.csv", "--max-ap-drop"];
    // With a maximum drop of -1, every AP fails.
    let output = folder.exporter(&[&fp16[..], &["-1"]].concat());
    assert_eq!(output.status.code(), Some(3));
    let message = failure(output);
    assert!(message.contains("--max-ap-drop") && message.contains("AP drops from 0."), "{message}");
    assert_eq!(fs::read(folder.path("retinanet.onnx")).unwrap(), b"the earlier file");
    let printed = success(folder.exporter(&[&fp16[..], &["1"]].concat()));
    assert!(printed.contains("  AP           0."), "{printed}");
    assert_eq!(folder.files(), ["boxes.csv", "images", "retinanet.onnx", "runs"]);
}

#[test]
fn errors_name_the_wrong_precision_option_and_keep_the_earlier_file() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(2);
    fs::create_dir(folder.path("broken")).unwrap();
    fs::write(folder.path("broken/0.png"), "no image").unwrap();
    fs::create_dir(folder.path("empty")).unwrap();
    fs::write(folder.path("retinanet.onnx"), "the earlier file").unwrap();
    for (arguments, expected) in [
        ("--precision int8", "--calibrate <DATA>"),
        ("--precision int4", "possible values: fp32, fp16, int8"),
        ("--precision int8 --calibrate nowhere", "`nowhere`"),
        ("--precision int8 --calibrate empty", "cannot calibrate with `empty`"),
        ("--precision int8 --calibrate broken", "cannot calibrate with `broken/0.png`"),
        ("--precision int8 --calibrate images --keep-float layer9", "no convolution or block `layer9`"),
        ("--precision int8 --calibrate images --calibration-images 0", "--calibration-images"),
        ("--precision fp16 --calibration-images 9", "--calibrate <DATA>"),
        ("--calibrate images", "`--calibrate` has an effect only with --precision fp16 or int8"),
        ("--top-k 9 --keep-float layer4", "`--keep-float` has an effect only with --precision fp16 or int8"),
        (
            "--precision fp16 --calibrate images --sensitivity",
            "`--sensitivity` has an effect only with --precision int8",
        ),
        ("--sensitivity", "`--sensitivity` has an effect only with --precision int8"),
        ("--top-k 9 --eval boxes.csv --max-ap-drop 0.1", "`--max-ap-drop` has an effect only with --precision"),
        ("--precision fp16 --images images", "`--images` has an effect only with --calibrate or --eval"),
        ("--precision fp16 --eval nowhere.json", "nowhere.json"),
        ("--precision fp16 --max-ap-drop 0.1", "--eval <DATA>"),
        ("--precision fp16 --eval nowhere.json --max-ap-drop nan", "from -1 to 1"),
    ] {
        let output = folder.exporter(&arguments.split(' ').collect::<Vec<_>>());
        let message = failure(output);
        assert!(message.contains(expected), "{arguments}: {message}");
        assert_eq!(fs::read(folder.path("retinanet.onnx")).unwrap(), b"the earlier file", "{arguments}");
    }
    assert_eq!(folder.files(), ["broken", "empty", "images", "retinanet.onnx", "runs"]);
}

#[test]
fn a_signal_leaves_no_file() {
    let folder = Folder::with(&checkpoint_for_small_images());
    folder.add_images(3);
    for signal in ["INT", "TERM"] {
        let arguments = ["--precision", "int8", "--calibrate", "images", "--sensitivity", "--external-data"];
        let mut program = folder.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let partial = |name: &String| name.ends_with(".partial");
        while !folder.files().iter().any(partial) {
            assert!(program.try_wait().unwrap().is_none(), "ended before the signal");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The signal comes while the sensitivity is measured, which takes seconds.
        std::thread::sleep(Duration::from_millis(500));
        let kill = Command::new("kill").args([format!("-{signal}"), program.id().to_string()]).status();
        assert!(kill.unwrap().success());
        assert_eq!(program.wait().unwrap().code(), Some(130));
        assert_eq!(folder.files(), ["images", "runs"]);
    }
}
