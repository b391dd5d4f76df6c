//! Files, their names and what is left behind.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use runtime::{Engine, EngineOptions, Rules};

use crate::fixture::{
    Folder, Random, checkpoint, checkpoint_for_small_images, checkpoint_with_detections, failure, noise,
    resnet18_for_small_images, success, tensor,
};

#[test]
fn exported_file_runs_at_every_size_and_contains_its_spec() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--out", "model.onnx"]));
    // 3,446,432 in the backbone (torchvision ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=4) without `fc`), 741,632 in
    // the FPN, 89,590 in the heads.
    for line in ["model.onnx", "parameters   4,277,654", "GFLOPs at 608x1024", "MB", "(limit 3)"] {
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
fn a_repository_has_the_verified_model_and_its_configuration() {
    let folder = Folder::with(&checkpoint_with_detections());
    let repository =
        |more: &[&str]| folder.exporter(&[&["--repository", "models", "--model-name", "cells"], more].concat());
    for _ in 0..2 {
        let printed = success(repository(&["--end-to-end", "--input-size", "96x160"]));
        assert!(printed.starts_with("models/cells/1/model.onnx"), "{printed}");
        assert_eq!(folder.files(), ["models", "runs"]);
        let config = fs::read_to_string(folder.path("models/cells/config.pbtxt")).unwrap();
        assert!(config.contains("dims: [3, 96, 160]") && config.contains("dims: [300, 4]"), "{config}");
        assert!(!folder.detect("models/cells/1/model.onnx", Rules::default()).is_empty());
    }
    // A refused model creates no folders.
    let mut wrong = checkpoint_with_detections();
    *tensor(&mut wrong, "regressionModel.output.bias") += 0.01;
    let folder = Folder::with(&wrong);
    assert!(failure(folder.exporter(&["--repository", "models"])).contains("does not reproduce"));
    assert_eq!(folder.files(), ["runs"]);
}

#[test]
fn a_signal_leaves_no_file() {
    let folder = Folder::with(&resnet18_for_small_images());
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
