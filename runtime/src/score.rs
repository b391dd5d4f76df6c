//! `runtime score`: COCO's twelve numbers for anyone's results.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use models::coco::{LocatedResults, read_results};
use models::dataset::{Dataset, OnProblem, Report};
use models::evaluation::{ScoredBox, Summary, evaluate};
use runtime::output::{Target, print};

use crate::cannot_write;
use crate::progress::say;

/// Score detections against ground truth, with the numbers that pycocotools would give.
///
/// All pictures of the ground truth count, those without detections too. Detections on other pictures are an error;
/// detections of other categories are left out with a warning.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// COCO ground truth: a JSON object with images, annotations and categories.
    #[arg(long, value_name = "COCO.json")]
    pub(crate) truth: PathBuf,
    /// COCO results: a JSON list of objects with image_id, category_id, bbox and score.
    #[arg(long, value_name = "RESULTS.json")]
    pub(crate) detections: PathBuf,
    /// Also write the twelve numbers as JSON to this file; `-` writes them to stdout, in place of the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Prints the numbers to stdout, and to stderr what is odd about the files.
///
/// # Errors
/// When a file cannot be read or written, or detections are on pictures that the ground truth does not have.
pub(crate) fn run(args: ScoreArgs) -> Result<()> {
    let publication = Publication::open(args.json)?;
    let truth = with_notes(&args.truth, Dataset::read_coco(&args.truth, OnProblem::Keep)?);
    let detections = read_detections(&args.detections, &truth)?;
    publication.publish(&evaluate(&truth.annotations, &detections, truth.classes.len()).summary)
}

/// Where the numbers go: as JSON to where they were asked for, and as a table to stdout unless the JSON goes there.
pub(crate) struct Publication {
    json: Option<(PathBuf, Target)>,
}

impl Publication {
    /// Opens what is written to, so that what cannot be written is found before the work.
    pub(crate) fn open(json: Option<PathBuf>) -> Result<Self> {
        let json = json.map(|path| match Target::open(&path) {
            Ok(target) => Ok((path, target)),
            Err(error) => Err(error).with_context(|| cannot_write(&path)),
        });
        Ok(Self { json: json.transpose()? })
    }

    /// Writes the numbers.
    pub(crate) fn publish(self, summary: &Summary) -> Result<()> {
        let mut tabulated = true;
        if let Some((path, mut target)) = self.json {
            tabulated = !matches!(target, Target::Stdout(_));
            let text = serde_json::to_string_pretty(summary)? + "\n";
            let written = target.write_all(text.as_bytes()).and_then(|()| target.commit());
            written.with_context(|| cannot_write(&path))?;
        }
        if tabulated {
            print(&table(summary)).context("cannot write to stdout")?;
        }
        Ok(())
    }
}

/// Ground truth as pycocotools takes it, boxes that make no sense included, once these are noted.
pub(crate) fn with_notes(path: &Path, (truth, report): (Dataset, Report)) -> Dataset {
    for line in report.lines() {
        say(format_args!("note: `{}`: {line}", path.display()));
    }
    if truth.annotations.iter().any(|annotation| annotation.id == 0) {
        say(format_args!("note: `{}`: an annotation has id 0; pycocotools never counts it as found", path.display()));
    }
    truth
}

/// The detections that count.
fn read_detections(path: &Path, truth: &Dataset) -> Result<Vec<ScoredBox>> {
    let results = read_results(path)?;
    let LocatedResults { boxes, unknown_images, unknown_classes } = truth.locate(&results);
    if let Some(first) = unknown_images.first() {
        bail!(
            "{} of the {} detections in `{}` are on pictures that the ground truth does not have, the first on image_id {}; \
             give the ground truth that these results were made for",
            unknown_images.len(),
            results.len(),
            path.display(),
            results[*first].image_id,
        );
    }
    if let Some(first) = unknown_classes.first() {
        say(format_args!(
            "warning: {} of the {} detections in `{}` are of categories that the ground truth does not have, the first of \
             category_id {}; they don't count",
            unknown_classes.len(),
            results.len(),
            path.display(),
            results[*first].category_id,
        ));
    }
    Ok(boxes)
}

/// The numbers as people know them, without the last line's end; a dash where there is no object to find.
fn table(summary: &Summary) -> String {
    let s = summary;
    let rows = [
        ("AP", "0.50:0.95", "all", 100, s.ap),
        ("AP50", "0.50", "all", 100, s.ap50),
        ("AP75", "0.75", "all", 100, s.ap75),
        ("APs", "0.50:0.95", "small", 100, s.ap_small),
        ("APm", "0.50:0.95", "medium", 100, s.ap_medium),
        ("APl", "0.50:0.95", "large", 100, s.ap_large),
        ("AR1", "0.50:0.95", "all", 1, s.ar1),
        ("AR10", "0.50:0.95", "all", 10, s.ar10),
        ("AR100", "0.50:0.95", "all", 100, s.ar100),
        ("ARs", "0.50:0.95", "small", 100, s.ar_small),
        ("ARm", "0.50:0.95", "medium", 100, s.ar_medium),
        ("ARl", "0.50:0.95", "large", 100, s.ar_large),
    ];
    let mut table = format!("{:<7}{:<11}{:<8}{:>10}  value", "", "IoU", "area", "detections");
    for (name, iou, area, detections, value) in rows {
        let value = if value < 0.0 { "-".to_owned() } else { format!("{value:.4}") };
        table += &format!("\n{name:<7}{iou:<11}{area:<8}{detections:>10}  {value}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on one picture with one object and these results; gives the JSON that was written.
    fn score(results: &str) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let [truth, detections, json] = ["truth", "detections", "json"].map(|name| folder.path().join(name));
        let text = r#"{"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40]}],
            "categories": [{"id": 3, "name": "cell"}]}"#;
        std::fs::write(&truth, text).unwrap();
        std::fs::write(&detections, results).unwrap();
        run(ScoreArgs { truth, detections, json: Some(json.clone()) })?;
        Ok(std::fs::read_to_string(json).unwrap())
    }

    #[test]
    fn the_json_has_the_twelve_keys() {
        let json = score(r#"[{"image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}]"#).unwrap();
        let numbers: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
        let keys = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"];
        assert_eq!(numbers.len(), keys.len());
        assert!(keys.iter().all(|key| numbers[*key].is_f64()), "{json}");
        assert_eq!((numbers["APs"].as_f64(), numbers["ARm"].as_f64()), (Some(-1.0), Some(1.0)));
    }

    #[test]
    fn detections_of_other_categories_do_not_count() {
        let json = score(r#"[{"image_id": 1, "category_id": 4, "bbox": [10, 10, 40, 40], "score": 0.9}]"#).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap().ap, 0.0);
    }

    #[test]
    fn detections_on_other_pictures_are_refused() {
        let results = r#"[{"image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9},
            {"image_id": 77, "category_id": 3, "bbox": [1, 1, 4, 4], "score": 0.9}]"#;
        let error = format!("{:#}", score(results).unwrap_err());
        assert!(error.contains("1 of the 2 detections"), "{error}");
        assert!(error.contains("the first on image_id 77"), "{error}");
    }

    #[test]
    fn no_detections_at_all_score_zero() {
        assert_eq!(serde_json::from_str::<Summary>(&score("[]").unwrap()).unwrap().ar100, 0.0);
    }

    #[test]
    fn the_table_has_a_dash_where_nothing_is_to_be_found() {
        let summary = serde_json::from_str(&score("[]").unwrap()).unwrap();
        let table = table(&summary);
        assert_eq!(table.lines().count(), 13);
        let row =
            |name| table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|row| row[0] == name);
        assert_eq!(row("AP50").unwrap(), ["AP50", "0.50", "all", "100", "0.0000"]);
        assert_eq!(row("APl").unwrap(), ["APl", "0.50:0.95", "large", "100", "-"]);
    }
}
