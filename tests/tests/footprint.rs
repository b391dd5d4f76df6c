//! `exporter` and `trainer` leave no files behind except their output. `runtime/tests/footprint.rs` tests `runtime`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../src/footprint.rs"]
mod footprint;

use std::fs;
use std::process::Command;

use footprint::run_without_footprint;
use image::RgbImage;
use models::dataset::{Annotation, Dataset, Image, Rectangle};
use models::spec::NormKind;

#[test]
fn export_and_evaluation_leave_only_their_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut spec = tests::spec("resnet18", NormKind::FrozenBatch, 1);
    (spec.preprocessing.shorter_side, spec.preprocessing.longer_side) = (64, 64);
    tests::checkpoint(&spec, 1).write(&path("best.safetensors")).unwrap();
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 9])).save(path("a.png")).unwrap();
    let rectangle = Rectangle { x: 8.0, y: 8.0, width: 30.0, height: 20.0 };
    let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 64, height: 64 }];
    let annotations =
        vec![Annotation { id: 1, image: 0, class_index: 0, rectangle, area: 600.0, crowd: false, difficult: false }];
    let truth = Dataset::new("", images, annotations, spec.classes.clone()).unwrap();
    truth.write_coco(&path("truth.json")).unwrap();

    for (program, arguments) in [
        ("exporter", &["--checkpoint", "best.safetensors", "--out", "model.onnx"][..]),
        ("trainer", &["eval", "--model", "model.onnx", "--data", "truth.json", "--json", "eval.json"]),
    ] {
        let program = tests::programs().join(program);
        let output = run_without_footprint(Command::new(program).args(arguments).current_dir(folder.path()));
        assert!(output.status.success(), "{output:?}");
    }
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.png", "best.safetensors", "eval.json", "model.onnx", "truth.json"]);
}
