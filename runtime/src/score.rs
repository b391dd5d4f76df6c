//! `runtime score`: COCO metrics of result files.

mod results;

use std::collections::HashMap;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Result, bail};
use clap::error::ErrorKind;
use models::dataset::{Dataset, Image, OnProblem, Report};
use models::evaluation::{LocatedResults, MAX_DETECTIONS, ScoredBox};
use runtime::evaluation_report::{Details, EvaluationReport};
use runtime::output::ReportWriter;
use runtime::progress::{say, warn};

use crate::paths::or_stdin;
use results::Results;

/// Compute the COCO metrics of detections that are already in a file, as pycocotools does.
///
/// All images of the ground truth count, also those without detections. Detections on other images are an error, and
/// detections of other categories are ignored with a warning.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// COCO ground truth: a JSON object with images, annotations and categories; `-` reads it from stdin.
    #[arg(long, value_name = "COCO.json", help_heading = "Data")]
    pub(crate) truth: PathBuf,
    /// Results: COCO results, a JSON list of objects with image_id, category_id, bbox and score (`-` reads it from stdin), or
    /// what `runtime detect` wrote with --json or --ndjson. Several files, such as those of shards, must not share images.
    #[arg(long, value_name = "RESULTS.json", num_args = 1.., required = true, help_heading = "Data")]
    pub(crate) detections: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) details: Details,
    /// Also write all numbers and the precision-recall curves as JSON; `-` writes them to stdout instead of the tables.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) json: Option<PathBuf>,
}

/// Prints the metrics to stdout, and warnings and notes about the files to stderr.
///
/// # Errors
/// When a file cannot be read or written, and when detections are on images that are not in the ground truth.
pub(crate) fn run(args: ScoreArgs) -> Result<()> {
    let paths = [&args.truth].into_iter().chain(&args.detections);
    if paths.filter(|path| path.as_os_str() == "-").count() > 1 {
        let message = "only one of --truth and --detections can be read from stdin\n";
        clap::Error::raw(ErrorKind::ArgumentConflict, message).exit();
    }
    let writer = ReportWriter::open(args.json.as_deref())?;
    let truth = or_stdin(&args.truth);
    // Both at once, since reading a file takes one thread and parsing it all others.
    let (results, read) = thread::scope(|scope| {
        let results =
            scope.spawn(|| args.detections.iter().map(|path| Results::read(path)).collect::<Result<Vec<_>>>());
        let read = Dataset::read_coco(truth, OnProblem::Keep);
        (results.join().unwrap_or_else(|panic| resume_unwind(panic)), read)
    });
    let truth = with_notes(truth, read?, &args.details);
    let (mut detections, mut files) = (Vec::new(), HashMap::new());
    for (path, results) in args.detections.iter().zip(results?) {
        let (located, images) = results.locate(path, &truth)?;
        for image in images {
            if let Some(first) = files.insert(image, path) {
                let Image { id, file_name, .. } = &truth.images()[image];
                let (first, second) = (first.display(), path.display());
                bail!("image `{file_name}` (id {id}) is in both `{first}` and `{second}`; pass each result once");
            }
        }
        detections.extend(known(path, located)?);
    }
    let report = EvaluationReport::new(&truth, &detections, &args.details);
    Ok(writer.publish(&report, &report.to_string())?)
}

/// Prints notes about the ground truth and returns it, including invalid boxes, as pycocotools does.
pub(crate) fn with_notes(path: &Path, (truth, report): (Dataset, Report), details: &Details) -> Dataset {
    for line in report.lines() {
        say(format_args!("note: `{}`: {line}", path.display()));
    }
    if truth.annotations().iter().any(|annotation| annotation.id == 0) {
        say(format_args!("note: `{}`: an annotation has id 0, which pycocotools never matches", path.display()));
    }
    let (max, [.., limit]) = (max_objects(&truth), details.max_dets.unwrap_or(MAX_DETECTIONS));
    if max > limit {
        say(format_args!(
            "note: `{}`: an image has {max} objects of one class; the metrics count at most {limit} detections of a \
             class in an image; count more with --max-dets",
            path.display()
        ));
    }
    truth
}

/// Maximum number of objects of one class in one image.
fn max_objects(truth: &Dataset) -> usize {
    let mut counts = HashMap::new();
    for object in truth.annotations().iter().filter(|annotation| !annotation.crowd) {
        *counts.entry((object.image, object.class_index)).or_insert(0) += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

/// The detections of categories in the ground truth.
fn known(path: &Path, results: LocatedResults) -> Result<Vec<ScoredBox>> {
    let (count, shown) = (results.count(), path.display());
    if let Some(first) = results.unknown_images.first() {
        bail!(
            "{} of the {count} detections in `{shown}` are on images that are not in the ground truth, the first on \
             image_id {first}; pass the ground truth that these results belong to",
            results.unknown_images.len(),
        );
    }
    if let Some(first) = results.unknown_classes.first() {
        warn(format_args!(
            "{} of the {count} detections in `{shown}` have categories that are not in the ground truth, the first \
             category_id {first}; they are ignored",
            results.unknown_classes.len(),
        ));
    }
    Ok(results.boxes)
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Rectangle};
    use models::evaluation::Summary;
    use models::spec::Class;
    use serde_json::json;

    use super::*;

    /// Scores results on one image with one object. Returns the JSON.
    fn score(results: &str) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let [truth, detections, json] = ["truth", "detections", "json"].map(|name| folder.path().join(name));
        let text = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]}],
            "categories": [{"id": 3, "name": "cell"}]}"#;
        std::fs::write(&truth, text).unwrap();
        std::fs::write(&detections, results).unwrap();
        let details = Details { voc_iou: Some(0.5), confusion: Some(0.5), max_dets: None };
        run(ScoreArgs { truth, detections: vec![detections], details, json: Some(json.clone()) })?;
        Ok(std::fs::read_to_string(json).unwrap())
    }

    #[test]
    fn more_objects_than_counted_detections_are_noted() {
        let path = Path::new("truth.json");
        let rectangle = Rectangle { x: 0.0, y: 0.0, width: 5.0, height: 5.0 };
        let object = |id| Annotation { id, rectangle, area: 25.0, crowd: id == 101, ..Annotation::default() };
        let truth = |count| {
            let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 9, height: 9 }];
            let classes = vec![Class { id: 1, name: "cell".to_owned() }];
            Dataset::new("", images, (1..=count).map(object).collect(), classes).unwrap()
        };
        assert_eq!(max_objects(&truth(101)), 100);
        assert_eq!(max_objects(&truth(130)), 129);
        assert_eq!(max_objects(&truth(0)), 0);
        let report = Report { on_problem: OnProblem::Keep, problems: Vec::new() };
        assert_eq!(with_notes(path, (truth(130), report), &Details::default()).annotations().len(), 130);
    }

    #[test]
    fn the_json_has_the_twelve_coco_metrics_and_the_details() {
        let json = score(r#"[{"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}]"#).unwrap();
        let numbers: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
        let keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];
        let details = ["max_detections", "classes", "curves", "voc", "confusion"];
        assert_eq!(numbers.len(), keys.len() + details.len());
        assert!(keys.iter().all(|key| numbers[*key].is_f64()), "{json}");
        assert_eq!((numbers["APs"].as_f64(), numbers["ARm"].as_f64()), (Some(-1.0), Some(1.0)));
        let [limits, classes, curves, voc, confusion] = details.map(|key| &numbers[key]);
        assert_eq!(limits, &json!([1, 10, 100]));
        assert_eq!(
            (&classes[0]["name"], &classes[0]["objects"], &classes[0]["AR100"]),
            (&json!("cell"), &json!(1), &json!(1.0))
        );
        assert_eq!(classes[0]["best_f1"], json!({ "score": 0.9, "f1": 1.0, "precision": 1.0, "recall": 1.0 }));
        assert_eq!((&curves[0]["id"], &curves[0]["iou50"]["score"]), (&json!(3), &json!(vec![0.9; 101])));
        assert_eq!((&voc["AP"], &voc["classes"][0]["AP11"]), (&json!(1.0), &json!(1.0)));
        let expected = json!({
            "classes": ["cell", "background"], "iou": 0.5, "score": 0.5, "counts": [[1, 0], [0, 0]],
        });
        assert_eq!(confusion, &expected);
    }

    #[test]
    fn detections_of_unknown_categories_are_ignored() {
        let json = score(r#"[{"image_id": 1, "category_id": 4, "bbox": [10, 10, 40, 40], "score": 0.9}]"#).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap().ap, 0.0);
    }

    #[test]
    fn detections_on_unknown_images_are_errors() {
        let results = r#"[{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9},
            {"image_id": 77, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}]"#;
        let error = format!("{:#}", score(results).unwrap_err());
        assert!(error.contains("1 of the 2 detections"), "{error}");
        assert!(error.contains("the first on image_id 77"), "{error}");
    }

    #[test]
    fn without_detections_the_metrics_are_zero() {
        assert_eq!(serde_json::from_str::<Summary>(&score("[]").unwrap()).unwrap().ar100, 0.0);
    }
}
