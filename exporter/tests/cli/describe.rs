//! `--describe` and `--summary`.

use std::fs;

use crate::fixture::{Folder, checkpoint, checkpoint_with_detections, failure, success};

#[test]
fn summary_lists_the_layers() {
    let folder = Folder::with(checkpoint());
    let printed = success(folder.exporter(&["--summary"]));
    let row = |name: &str| printed.lines().find(|line| line.split_whitespace().next() == Some(name));
    assert!(row("layer4.1.conv2").unwrap().contains("[1, 32, 19, 32]"), "{printed}");
    assert!(row("total").unwrap().contains("4,277,654"), "{printed}");
}

#[test]
fn description_contains_everything_needed_to_use_the_file() {
    let folder = Folder::with(checkpoint());
    success(folder.exporter(&[]));
    let printed = success(folder.exporter(&["--describe", "retinanet.onnx"]));
    for line in [
        "RetinaNet with ResNet-50",
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
fn description_of_an_end_to_end_file_says_how_to_use_it() {
    let folder = Folder::with(&checkpoint_with_detections());
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
