//! What is refused before a file is written.

use std::fs;

use ndarray::{ArrayD, IxDyn};

use crate::fixture::{Folder, checkpoint, checkpoint_for_small_images, checkpoint_with_detections, failure, success};

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
fn variants_that_a_spec_does_not_allow_are_refused_by_name() {
    let mut soft = checkpoint_with_detections();
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
