//! The twelve numbers are those of pycocotools.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::coco::{CocoResult, read_results};
use models::dataset::{Dataset, OnProblem};
use models::evaluation::{ClassSummary, Evaluation, Summary, evaluate};
use serde::Deserialize;
use serde_json::Value;

/// Sums in another order differ in the last digits, nothing else may.
const TOLERANCE: f64 = 1e-9;

/// A case of `tests/golden/evaluation.json`.
#[derive(Deserialize)]
struct GoldenCase {
    name: String,
    truth: Value,
    results: Vec<CocoResult>,
    summary: Summary,
    per_class: Vec<GoldenClass>,
}

#[derive(Deserialize)]
struct GoldenClass {
    id: i64,
    #[serde(flatten)]
    summary: ClassSummary,
}

/// A case of `evaluation/index.json` in the shared data.
#[derive(Deserialize)]
struct SharedCase {
    gt: PathBuf,
    dt: PathBuf,
    published: BTreeMap<String, f64>,
    #[serde(default)]
    pycocotools: BTreeMap<String, f64>,
    #[serde(default)]
    per_class: BTreeMap<i64, ClassSummary>,
}

fn score(truth: &Path, results: &[CocoResult]) -> (Dataset, Evaluation) {
    let (truth, _) = Dataset::read_coco(truth, OnProblem::Keep).expect("the case has valid ground truth");
    let evaluation = evaluate(&truth.annotations, &truth.locate(results).boxes, truth.classes.len());
    (truth, evaluation)
}

fn named(summary: &Summary) -> BTreeMap<String, f64> {
    let numbers = serde_json::to_value(summary).and_then(serde_json::from_value);
    numbers.expect("a summary is twelve names and numbers")
}

/// Asserts that `found` has every number of `expected`.
fn assert_agree(case: &str, found: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>) {
    for (key, expected) in expected {
        let found = found[key];
        assert!((found - expected).abs() <= TOLERANCE, "{case}: {key} is {found}, pycocotools has {expected}");
    }
}

fn assert_classes_agree(case: &str, found: &ClassSummary, expected: &ClassSummary) {
    let difference = (found.ap - expected.ap).abs().max((found.ar100 - expected.ar100).abs());
    assert!(difference <= TOLERANCE, "{case}: {found:?}, pycocotools has {expected:?}");
}

#[test]
fn awkward_sets_score_as_pycocotools_scores_them() {
    // pycocotools 2.0.11, by `tests/golden/evaluation.py write`
    let cases: Vec<GoldenCase> = serde_json::from_str(include_str!("../../tests/golden/evaluation.json")).unwrap();
    assert!(!cases.is_empty());
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        let path = folder.path().join("truth.json");
        fs::write(&path, case.truth.to_string()).unwrap();
        let (truth, evaluation) = score(&path, &case.results);
        assert_agree(&case.name, &named(&evaluation.summary), &named(&case.summary));
        assert_eq!(evaluation.classes.len(), case.per_class.len());
        for ((class, found), expected) in truth.classes.iter().zip(&evaluation.classes).zip(&case.per_class) {
            assert_eq!(class.id, expected.id, "{}", case.name);
            assert_classes_agree(&case.name, found, &expected.summary);
        }
    }
}

#[test]
fn published_sets_score_as_published() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA names no folder with the shared data");
        return;
    };
    let folder = Path::new(&data).join("evaluation");
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let cases: BTreeMap<String, SharedCase> = serde_json::from_str(&index).unwrap();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let results = read_results(&folder.join(&case.dt)).unwrap();
        let (truth, evaluation) = score(&folder.join(&case.gt), &results);
        assert_eq!(truth.locate(&results).boxes.len(), results.len(), "{name}");
        let found = named(&evaluation.summary);
        assert_eq!(found.len(), 12);
        assert_agree(&name, &found, &case.published);
        assert_agree(&name, &found, &case.pycocotools);
        for (id, expected) in &case.per_class {
            let class = truth.classes.binary_search_by_key(id, |class| class.id).unwrap();
            assert_classes_agree(&name, &evaluation.classes[class], expected);
        }
    }
}

#[test]
fn real_annotations_are_read_and_their_two_empty_boxes_named() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA names no folder with the shared data");
        return;
    };
    let folder = Path::new(&data).join("bccd");
    // Pictures and boxes with area of each split, and what is reported.
    let splits = [
        ("train", 205, 2804, "1 box of zero area dropped: BloodImage_00343.jpg annotation 2288"),
        ("val", 87, 1137, "1 box of zero area dropped: BloodImage_00338.jpg annotation 887"),
        ("test", 72, 945, ""),
    ];
    for (split, images, boxes, message) in splits {
        let path = folder.join(format!("derived/instances_{split}.json"));
        let (mut dataset, report) = Dataset::read_coco(&path, OnProblem::Drop).unwrap();
        assert_eq!((dataset.images.len(), dataset.annotations.len()), (images, boxes), "{split}");
        dataset.folder = folder.join("JPEGImages");
        assert_eq!(dataset.drop_missing_pictures(), []);
        let names: Vec<_> = dataset.classes.iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, ["RBC", "WBC", "Platelets"]);
        assert!(report.to_string().starts_with(message), "{report}");
        assert_eq!(report.problems.is_empty(), message.is_empty(), "{report}");
    }
}
