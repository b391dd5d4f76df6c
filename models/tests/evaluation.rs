//! Metrics and curves match pycocotools; VOC metrics match a Python port of the VOC devkit.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::dataset::{Dataset, OnProblem};
use models::evaluation::{CocoResult, ResultFile, locate};
use models::evaluation::{Curve, Curves, Evaluation, Summary, VocSummary, evaluate, voc_average_precision};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The order of summation changes the last digits; nothing else may differ.
const TOLERANCE: f64 = 1e-12;

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
    numbers: BTreeMap<String, f64>,
    #[serde(default)]
    curves: Option<GoldenCurves>,
}

/// [`Curves`], run-length encoded: values with their number of repetitions.
#[derive(Deserialize)]
struct GoldenCurves {
    precision: Vec<(f64, usize)>,
    iou50: GoldenCurve,
    iou75: GoldenCurve,
}

#[derive(Deserialize)]
struct GoldenCurve {
    precision: Vec<(f64, usize)>,
    score: Vec<(f64, usize)>,
}

/// A case of `tests/golden/voc.json`: AP by area and by eleven points.
#[derive(Deserialize)]
struct VocCase {
    name: String,
    iou: f64,
    mean: [f64; 2],
    classes: Vec<[f64; 2]>,
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
    per_class: BTreeMap<i64, BTreeMap<String, f64>>,
}

/// pycocotools 2.0.11, by `tests/golden/evaluation.py write`
fn golden_cases() -> Vec<GoldenCase> {
    serde_json::from_str(include_str!("../../tests/golden/evaluation.json")).unwrap()
}

/// The ground truth of a case.
fn read(truth: &Value) -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("truth.json");
    fs::write(&path, truth.to_string()).unwrap();
    Dataset::read_coco(&path, OnProblem::Keep).unwrap().0
}

fn score(truth: &Dataset, results: &[CocoResult]) -> Evaluation {
    let boxes = locate(truth, results.iter().copied()).boxes;
    evaluate(truth.annotations(), &boxes, truth.classes().len())
}

/// The metrics of a summary by name.
fn named(summary: &impl Serialize) -> BTreeMap<String, f64> {
    let Value::Object(fields) = serde_json::to_value(summary).unwrap() else { panic!("a summary is a JSON object") };
    fields.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()
}

/// Asserts that `found` contains every value of `expected`.
fn assert_agree(case: &str, found: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>) {
    for (key, expected) in expected {
        let found = found[key];
        assert!((found - expected).abs() <= TOLERANCE, "{case}: {key} is {found}, pycocotools has {expected}");
    }
}

fn assert_curves_agree(case: &str, found: &Curves, expected: &GoldenCurves) {
    assert_runs_agree(case, &found.precision, &expected.precision);
    for (found, expected) in [(&found.iou50, &expected.iou50), (&found.iou75, &expected.iou75)] {
        let Curve { precision, score } = found;
        assert_runs_agree(case, precision, &expected.precision);
        assert_runs_agree(case, score, &expected.score);
    }
}

fn assert_runs_agree(case: &str, found: &[f64], expected: &[(f64, usize)]) {
    let expected: Vec<_> = expected.iter().flat_map(|&(number, count)| std::iter::repeat_n(number, count)).collect();
    let differs = |(found, expected): (&f64, &f64)| (found - expected).abs() > TOLERANCE;
    assert_eq!(found.len(), expected.len(), "{case}");
    assert!(!found.iter().zip(&expected).any(differs), "{case}: {found:?}, pycocotools has {expected:?}");
}

#[test]
fn metrics_of_edge_cases_match_pycocotools() {
    let cases = golden_cases();
    assert!(!cases.is_empty());
    for case in cases {
        let truth = read(&case.truth);
        let evaluation = score(&truth, &case.results);
        assert_agree(&case.name, &named(&evaluation.summary), &named(&case.summary));
        assert_eq!(evaluation.classes.len(), case.per_class.len());
        for (class_index, expected) in case.per_class.into_iter().enumerate() {
            assert_eq!(truth.classes()[class_index].id, expected.id, "{}", case.name);
            assert_agree(&case.name, &named(&evaluation.classes[class_index]), &expected.numbers);
            assert_eq!(evaluation.curves[class_index].is_some(), expected.curves.is_some(), "{}", case.name);
            if let (Some(found), Some(expected)) = (&evaluation.curves[class_index], &expected.curves) {
                assert_curves_agree(&case.name, found, expected);
            }
        }
    }
}

#[test]
fn voc_metrics_of_edge_cases_match_the_devkit() {
    // numpy 2.4.6, by `tests/golden/voc.py`
    let cases: Vec<VocCase> = serde_json::from_str(include_str!("../../tests/golden/voc.json")).unwrap();
    assert!(!cases.is_empty());
    let sets = golden_cases();
    for VocCase { name, iou, mean, classes } in cases {
        let set = sets.iter().find(|set| set.name == name).unwrap();
        // The script treats crowds as the devkit treats difficult objects.
        let difficult = set.truth.to_string().replace("\"iscrowd\"", "\"difficult\"");
        for truth in [read(&set.truth), read(&serde_json::from_str(&difficult).unwrap())] {
            let boxes = locate(&truth, set.results.iter().copied()).boxes;
            let found = voc_average_precision(truth.annotations(), &boxes, truth.classes().len(), iou);
            assert_eq!(found.classes.len(), classes.len());
            for (found, expected) in found.classes.iter().zip(&classes).chain([(&found.mean, &mean)]) {
                let VocSummary { ap, ap11 } = *found;
                let differs = |(found, expected): (&f64, &f64)| (found - expected).abs() > TOLERANCE;
                let differs = [ap, ap11].iter().zip(expected).any(differs);
                assert!(!differs, "{name} at IoU {iou}: {found:?}, the devkit has {expected:?}");
            }
        }
    }
}

#[test]
fn metrics_of_published_results_match_the_published_ones() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set to the folder of the shared data");
        return;
    };
    let folder = Path::new(&data).join("evaluation");
    let index = fs::read_to_string(folder.join("index.json")).unwrap();
    let cases: BTreeMap<String, SharedCase> = serde_json::from_str(&index).unwrap();
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let (truth, _) = Dataset::read_coco(&folder.join(&case.gt), OnProblem::Keep).unwrap();
        let results = ResultFile::read(&folder.join(&case.dt)).unwrap().locate(&truth).unwrap();
        let evaluation = evaluate(truth.annotations(), &results.boxes, truth.classes().len());
        assert_eq!(results.boxes.len(), results.count(), "{name}");
        let found = named(&evaluation.summary);
        assert_eq!(found.len(), 12);
        assert_agree(&name, &found, &case.published);
        assert_agree(&name, &found, &case.pycocotools);
        for (id, expected) in &case.per_class {
            let class = truth.classes().binary_search_by_key(id, |class| class.id).unwrap();
            assert_agree(&name, &named(&evaluation.classes[class]), expected);
        }
    }
}

#[test]
fn real_annotations_are_read_and_their_two_empty_boxes_reported() {
    let Some(data) = std::env::var_os("RETINANET_DATA") else {
        eprintln!("skipped: RETINANET_DATA is not set to the folder of the shared data");
        return;
    };
    let folder = Path::new(&data).join("bccd");
    // Split, number of images, number of boxes with area, report.
    let splits = [
        ("train", 205, 2804, "1 box of zero area, dropped: BloodImage_00343.jpg annotation 2288"),
        ("val", 87, 1137, "1 box of zero area, dropped: BloodImage_00338.jpg annotation 887"),
        ("test", 72, 945, ""),
    ];
    for (split, images, boxes, message) in splits {
        let path = folder.join(format!("derived/instances_{split}.json"));
        let (dataset, report) = Dataset::read_coco(&path, OnProblem::Drop).unwrap();
        assert_eq!((dataset.images().len(), dataset.annotations().len()), (images, boxes), "{split}");
        let dataset = dataset.with_folder(folder.join("JPEGImages"));
        assert!((0..images).all(|image| dataset.path_of(image).is_file()), "{split}");
        let names: Vec<_> = dataset.classes().iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, ["RBC", "WBC", "Platelets"]);
        assert!(report.to_string().starts_with(message), "{report}");
        assert_eq!(report.problems.is_empty(), message.is_empty(), "{report}");
    }
}
