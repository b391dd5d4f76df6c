//! float16 and int8.

use std::fs;

use image::{Rgb, RgbImage};
use models::{RgbView, preprocess};
use ndarray::{Array3, Axis};
use runtime::{Engine, EngineOptions};

use crate::fixture::{
    Folder, checkpoint, checkpoint_for_small_images, failure, open, resnet18_for_small_images, success, tensor,
    with_probe_outputs,
};

/// Adds an image whose normalized pixels are almost zero, so that its activations do not represent those of other images.
fn add_gray(folder: &Folder) {
    RgbImage::from_pixel(96, 96, Rgb([124, 116, 104])).save(folder.path("gray.png")).unwrap();
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

#[test]
fn fp16_overflow_missed_by_the_calibration_images_is_refused() {
    let mut checkpoint = resnet18_for_small_images();
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
    let mut untrained = resnet18_for_small_images();
    for head in ["classificationModel", "regressionModel"] {
        tensor(&mut untrained, &format!("{head}.output.weight")).fill(0.0);
    }
    for checkpoint in [resnet18_for_small_images(), with_probe_outputs(untrained)] {
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
    let folder = Folder::with(&resnet18_for_small_images());
    folder.add_images(3);
    let int8 = ["--precision", "int8", "--calibrate", "images"];
    success(folder.exporter(&["--out", "full.onnx"]));
    let printed = success(folder.exporter(&int8));
    let float_layers = printed.lines().find(|line| line.contains("fp32 layers")).unwrap();
    assert!(float_layers.ends_with(" conv1, regressionModel.output"), "{float_layers}");
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
    let folder = Folder::with(&resnet18_for_small_images());
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
