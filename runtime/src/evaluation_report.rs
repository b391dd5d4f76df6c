//! The metrics of detections, as tables for people and as JSON for programs. `runtime eval`, `runtime score` and
//! `trainer` write the same report.

mod table;

use models::dataset::Dataset;
use models::evaluation::{
    ClassSummary, ConfusionMatrix, ConfusionRule, Curves, MAX_DETECTIONS, ScoredBox, Summary, VocSummary,
    confusion_matrix, evaluate_with_limits, voc_average_precision,
};
use schemars::JsonSchema;
use serde::Serialize;

/// Metrics beyond COCO's.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "args", derive(clap::Args))]
pub struct Details {
    /// Also compute Pascal VOC's average precision at this IoU: by area (VOC2010) and by 11 points (VOC2007).
    ///
    /// VOC's `difficult` objects are neither hits nor misses.
    #[cfg_attr(feature = "args", arg(long, value_name = "IOU", help_heading = "Metrics", num_args = 0..=1, default_missing_value = "0.5", value_parser = parse_iou))]
    pub voc_iou: Option<f64>,

    /// Also print the confusion matrix of detections with at least this score.
    ///
    /// Objects and detections of an image with an IoU of at least 0.5 are paired regardless of class, highest IoU first.
    #[cfg_attr(feature = "args", arg(long, value_name = "SCORE", help_heading = "Metrics", num_args = 0..=1, default_missing_value = "0.5", value_parser = parse_score))]
    pub confusion: Option<f64>,

    /// Detections per image and class that AR1, AR10 and AR100 count, like COCO's maxDets [default: 1,10,100].
    ///
    /// The last limit applies to all other metrics too. Raise it if images have more objects of a class.
    #[cfg_attr(feature = "args", arg(long, value_name = "N,N,N", help_heading = "Metrics", value_parser = parse_limits))]
    pub max_dets: Option<[usize; 3]>,
}

#[cfg(feature = "args")]
fn parse_limits(text: &str) -> Result<[usize; 3], String> {
    let limits = text.split(',').map(|limit| limit.trim().parse().ok());
    let limits = limits.collect::<Option<Vec<usize>>>().and_then(|limits| limits.try_into().ok());
    let ascending = limits.filter(|limits: &[usize; 3]| limits[0] > 0 && limits.is_sorted());
    ascending.ok_or_else(|| "expected three numbers in ascending order, such as 1,10,300".to_owned())
}

#[cfg(feature = "args")]
fn parse_iou(text: &str) -> Result<f64, String> {
    let iou = text.parse().ok().filter(|iou| *iou > 0.0 && *iou <= 1.0);
    iou.ok_or_else(|| "expected a number above 0 and at most 1".to_owned())
}

#[cfg(feature = "args")]
fn parse_score(text: &str) -> Result<f64, String> {
    let score: Option<f64> = text.parse().ok();
    score.filter(|score| score.is_finite()).ok_or_else(|| "expected a number".to_owned())
}

/// The metrics of detections on a data set. `Display` writes tables; serialized, it is an object with COCO's twelve
/// metrics and the details.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EvaluationReport {
    /// COCO's twelve metrics.
    #[serde(flatten)]
    pub summary: Summary,
    /// Detections per image and class that AR1, AR10 and AR100 count; the last limit applies to all other metrics too.
    pub max_detections: [usize; 3],
    /// The metrics of each class.
    pub classes: Vec<Named<ClassSummary>>,
    /// Precision-recall curves, for each class with objects.
    pub curves: Vec<Named<Curves>>,
    /// Pascal VOC's average precision, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voc: Option<VocReport>,
    /// The confusion matrix, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion: Option<ConfusionReport>,
}

/// A value of one class.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Named<T> {
    /// Id of the class in the data set.
    pub id: i64,
    /// Name of the class.
    pub name: String,
    /// The value.
    #[serde(flatten)]
    pub value: T,
}

/// Pascal VOC's average precision.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct VocReport {
    /// Minimum IoU of a detection and the object that it matches.
    pub iou: f64,
    /// Mean over the classes with objects.
    #[serde(flatten)]
    pub mean: VocSummary,
    /// The values of each class.
    pub classes: Vec<Named<VocSummary>>,
}

/// A confusion matrix with class names.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ConfusionReport {
    /// Names of rows and columns; the last is the background.
    pub classes: Vec<String>,
    /// Counts of the classes of objects (rows) and detections (columns).
    #[serde(flatten)]
    pub matrix: ConfusionMatrix,
}

impl EvaluationReport {
    /// Evaluates detections on a data set.
    pub fn new(truth: &Dataset, detections: &[ScoredBox], details: &Details) -> Self {
        let (objects, classes) = (truth.annotations(), truth.classes().len());
        let max_detections = details.max_dets.unwrap_or(MAX_DETECTIONS);
        let evaluation = evaluate_with_limits(objects, detections, classes, max_detections);
        let curves = named(truth, evaluation.curves);
        let curves = curves.filter_map(|Named { id, name, value }| Some(Named { id, name, value: value? }));
        let voc = details.voc_iou.map(|iou| voc_average_precision(objects, detections, classes, iou));
        let names = truth.classes().iter().map(|class| class.name.clone());
        let rule = details.confusion.map(|score| ConfusionRule { score, ..ConfusionRule::default() });
        Self {
            summary: evaluation.summary,
            max_detections,
            classes: named(truth, evaluation.classes).collect(),
            curves: curves.collect(),
            voc: voc.map(|voc| VocReport {
                iou: voc.iou,
                mean: voc.mean,
                classes: named(truth, voc.classes).collect(),
            }),
            confusion: rule.map(|rule| ConfusionReport {
                classes: names.chain(["background".to_owned()]).collect(),
                matrix: confusion_matrix(objects, detections, classes, rule),
            }),
        }
    }
}

fn named<T>(truth: &Dataset, values: Vec<T>) -> impl Iterator<Item = Named<T>> {
    let classes = truth.classes().iter().zip(values);
    classes.map(|(class, value)| Named { id: class.id, name: class.name.clone(), value })
}

#[cfg(test)]
mod samples {
    use models::dataset::{Annotation, Image, Rectangle};
    use models::spec::Class;

    use super::*;

    pub(super) const DETAILS: Details = Details { voc_iou: Some(0.5), confusion: Some(0.5), max_dets: None };

    /// One image with an object of each class except the last. Objects at even indices are detected as their class, the
    /// others as the next class.
    pub(super) fn report(classes: &[&str], details: &Details) -> EvaluationReport {
        let rectangle = |index: usize| Rectangle { x: 50.0 * index as f64, y: 0.0, width: 40.0, height: 40.0 };
        let objects = (0..classes.len() - 1).map(|class_index| {
            let rectangle = rectangle(class_index);
            Annotation { class_index, rectangle, area: 1600.0, ..Annotation::default() }
        });
        let detections = (0..classes.len() - 1).map(|index| ScoredBox {
            image: 0,
            class_index: index + index % 2,
            score: 0.75,
            rectangle: rectangle(index),
        });
        let images = vec![Image { id: 1, file_name: "a.png".to_owned(), width: 100, height: 100 }];
        let classes = (3..).zip(classes).map(|(id, name)| Class { id, name: (*name).to_owned() }).collect();
        let truth = Dataset::new("", images, objects.collect(), classes).unwrap();
        EvaluationReport::new(&truth, &detections.collect::<Vec<_>>(), details)
    }
}
