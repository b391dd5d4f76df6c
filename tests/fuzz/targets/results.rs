//! Arbitrary bytes as COCO results are evaluated or give an error.

#![no_main]

use std::sync::LazyLock;

use fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use models::dataset::{Dataset, OnProblem};
use models::evaluation::ResultFile;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);

static TRUTH: LazyLock<Dataset> = LazyLock::new(|| {
    let text = br#"{"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]}],
        "categories": [{"id": 3, "name": "cell"}]}"#;
    Dataset::read_coco(&SCRATCH.file("truth.json", text), OnProblem::Refuse).expect("the ground truth is valid").0
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(located) = ResultFile::read(&SCRATCH.file("results.json", bytes)).and_then(|file| file.locate(&TRUTH))
    else {
        return;
    };
    let evaluation = models::evaluation::evaluate(TRUTH.annotations(), &located.boxes, TRUTH.classes().len());
    let ap = evaluation.summary.ap;
    assert!((0.0..=1.0).contains(&ap), "AP is {ap}");
});
