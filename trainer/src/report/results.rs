//! The results of a run on its validation data.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use models::dataset::Dataset;
use models::evaluation::{ClassSummary, ConfusionRule, Curves, ScoredBox, Summary, confusion_matrix};
use runtime::evaluation_report::{Details, EvaluationReport, Named};
use serde::Serialize;

use super::images::{self, ReportImage};
use super::number::short;

/// Maximum number of classes with a curve: those with the most objects.
const MAX_CURVES: usize = 100;

/// Score thresholds that are tried: the multiples of 1 / THRESHOLDS between 0 and 1.
const THRESHOLDS: u32 = 20;

/// Number of best images, and of worst images.
const RANKED: usize = 6;

/// Number of images that each kind of confusion should have, while there is room.
const EXAMPLES: usize = 3;

/// Maximum number of cells of the confusion matrix, the most frequent ones; more than a matrix that can be shown has.
const MAX_CELLS: usize = 1000;

/// Maximum number of images in the report, for its size.
const MAX_IMAGES: usize = 40;

/// The results of the best checkpoint.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    folder: String,
    pub(super) validation_images: usize,
    /// Without crowd regions.
    pub(super) objects: usize,
    pub(super) summary: Summary,
    pub(super) classes: Vec<Named<ClassSummary>>,
    /// The mean over the classes, and one for each class with objects.
    pub(super) curves: Vec<Precisions>,
    /// The score threshold with the highest F1 over all classes together; the default one if no detection is correct.
    pub(super) rule: ConfusionRule,
    /// At this threshold.
    pub(super) counts: Counts,
    /// The confusion matrix at this threshold: up to [`MAX_CELLS`] cells, the most frequent first.
    pub(super) confusions: Vec<Cell>,
    /// The best, the worst, and then examples of confusions.
    pub(super) images: Vec<ReportImage>,
    /// Indices in `images`.
    pub(super) best: Vec<usize>,
    pub(super) worst: Vec<usize>,
}

/// Precision at the recalls 0, 0.01, ... 1.
#[derive(Debug, Serialize)]
pub(super) struct Precisions {
    pub(super) name: String,
    pub(super) iou50: Vec<f64>,
    pub(super) iou75: Vec<f64>,
    /// The score threshold that reaches each recall at IoU 0.5; none for the mean.
    score: Option<Vec<f64>>,
}

/// A cell of the confusion matrix that is not 0: class indices, none for the background.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Cell {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) truth: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prediction: Option<usize>,
    pub(super) count: usize,
    /// Sum of the row.
    pub(super) row_total: usize,
    /// Indices of images of the report with this confusion.
    pub(super) images: Vec<usize>,
}

/// Numbers of objects, detections and correct detections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) objects: usize,
    pub(super) detections: usize,
    /// Number of pairs of an object and a detection with the same class.
    pub(super) right: usize,
}

/// The cells of a confusion matrix that are not 0, by classes of object and detection.
type Confusions = BTreeMap<[Option<usize>; 2], usize>;

impl Results {
    /// Evaluates detections and chooses images.
    pub(super) fn new(truth: &Dataset, detections: &[ScoredBox]) -> Self {
        let EvaluationReport { summary, classes, curves, .. } =
            EvaluationReport::new(truth, detections, &Details::default());
        let mut by_image = vec![Vec::new(); truth.images().len()];
        detections.iter().for_each(|found| by_image[found.image].push(*found));
        let rule = best_rule(truth, detections);
        let confused: Vec<_> =
            by_image.iter().enumerate().map(|(image, found)| confuse(truth, image, found, rule)).collect();
        let mut all = Confusions::new();
        confused.iter().flatten().for_each(|(classes, count)| *all.entry(*classes).or_default() += count);
        let mut cells: Vec<_> = all.iter().map(|(classes, count)| (*classes, *count)).collect();
        cells.sort_by_key(|(_, count)| Reverse(*count));
        cells.truncate(MAX_CELLS);
        let mut row_totals: HashMap<Option<usize>, usize> = HashMap::new();
        all.iter().for_each(|([truth, _], count)| *row_totals.entry(*truth).or_default() += count);

        let [best, worst] = best_and_worst(&confused.iter().map(Counts::of).collect::<Vec<_>>());
        let chosen = with_examples([best.as_slice(), &worst].concat(), &cells, &confused);
        let cell = |([truth, prediction], count): ([Option<usize>; 2], usize)| {
            let has = |position: &usize| confused[chosen[*position]].contains_key(&[truth, prediction]);
            let images = (0..chosen.len()).filter(has).collect();
            Cell { truth, prediction, count, row_total: row_totals[&truth], images }
        };
        Self {
            folder: truth.folder().display().to_string(),
            validation_images: truth.images().len(),
            objects: truth.annotations().iter().filter(|annotation| !annotation.crowd).count(),
            summary,
            curves: precisions(&curves, &classes),
            classes,
            rule,
            counts: Counts::of(&all),
            confusions: cells.into_iter().map(cell).collect(),
            images: images::read(truth, &chosen, &by_image, rule.score),
            best: (0..best.len()).collect(),
            worst: (best.len()..best.len() + worst.len()).collect(),
        }
    }
}

impl Counts {
    fn of(confusions: &Confusions) -> Self {
        let sum = |is_counted: fn([Option<usize>; 2]) -> bool| -> usize {
            confusions.iter().filter(|(classes, _)| is_counted(**classes)).map(|(_, count)| count).sum()
        };
        Self {
            objects: sum(|[truth, _]| truth.is_some()),
            detections: sum(|[_, prediction]| prediction.is_some()),
            right: sum(|[truth, prediction]| truth == prediction),
        }
    }

    /// Number of objects not detected with their class, plus detections without an object or with the wrong class.
    fn errors(self) -> usize {
        self.objects + self.detections - 2 * self.right
    }

    /// The harmonic mean of precision and recall; 1 without objects and detections.
    fn f1(self) -> f64 {
        match self.objects + self.detections {
            0 => 1.0,
            both => 2.0 * self.right as f64 / both as f64,
        }
    }
}

/// The score threshold with the highest F1 at IoU 0.5 over all classes together, out of 0.05, 0.1, ... 0.95; the lowest one
/// of equally good ones. The default rule if no detection is correct.
fn best_rule(truth: &Dataset, detections: &[ScoredBox]) -> ConfusionRule {
    let mut best = (0.0, ConfusionRule::default());
    for step in 1..THRESHOLDS {
        let rule = ConfusionRule { score: f64::from(step) / f64::from(THRESHOLDS), ..ConfusionRule::default() };
        let counts = confusion_matrix(truth.annotations(), detections, truth.classes().len(), rule).counts;
        let f1 = Counts::of(&sparse(&counts, Some)).f1();
        let is_any_correct = (0..counts.len() - 1).any(|class| counts[class][class] > 0);
        if is_any_correct && f1 > best.0 {
            best = (f1, rule);
        }
    }
    best.1
}

/// The confusions in one image. The matrix has only the classes of its boxes, because that of a thousand classes is large.
fn confuse(truth: &Dataset, image: usize, found: &[ScoredBox], rule: ConfusionRule) -> Confusions {
    let (mut objects, mut found) = (truth.annotations_of(image).to_vec(), found.to_vec());
    let indices = objects.iter_mut().map(|object| &mut object.class_index);
    let indices: Vec<_> = indices.chain(found.iter_mut().map(|found| &mut found.class_index)).collect();
    let mut classes: Vec<_> = indices.iter().map(|index| **index).collect();
    classes.sort_unstable();
    classes.dedup();
    for index in indices {
        *index = classes.partition_point(|class| *class < *index);
    }
    sparse(&confusion_matrix(&objects, &found, classes.len(), rule).counts, |index| classes.get(index).copied())
}

/// The cells of a matrix that are not 0. `class` tells the class of a row or column other than the last, the background.
fn sparse(counts: &[Vec<usize>], class: impl Fn(usize) -> Option<usize>) -> Confusions {
    let class = |index| if index + 1 == counts.len() { None } else { class(index) };
    let cells = counts
        .iter()
        .enumerate()
        .flat_map(|(truth, row)| row.iter().enumerate().map(move |(prediction, count)| ([truth, prediction], *count)));
    cells.filter(|(_, count)| *count > 0).map(|(cell, count)| (cell.map(&class), count)).collect()
}

/// The best and the worst images by F1; no image is in both lists. Among equals, the best have found more objects, the
/// worst have more errors.
fn best_and_worst(counts: &[Counts]) -> [Vec<usize>; 2] {
    let f1 = |image: &usize| counts[*image].f1();
    let mut best: Vec<_> = (0..counts.len()).collect();
    best.sort_by(|a, b| f1(b).total_cmp(&f1(a)).then(counts[*b].right.cmp(&counts[*a].right)));
    best.truncate(RANKED.min(counts.len().div_ceil(2)));
    best.retain(|image| counts[*image].right > 0);
    let mut worst: Vec<_> =
        (0..counts.len()).filter(|image| counts[*image].errors() > 0 && !best.contains(image)).collect();
    worst.sort_by(|a, b| f1(a).total_cmp(&f1(b)).then(counts[*b].errors().cmp(&counts[*a].errors())));
    worst.truncate(RANKED);
    [best, worst]
}

/// The chosen images, and further ones so that the most frequent errors have examples.
fn with_examples(mut chosen: Vec<usize>, cells: &[([Option<usize>; 2], usize)], confused: &[Confusions]) -> Vec<usize> {
    for examples in 1..=EXAMPLES {
        for (classes, _) in cells.iter().filter(|([truth, prediction], _)| truth != prediction) {
            let has = |image: &usize| confused[*image].contains_key(classes);
            if chosen.iter().filter(|image| has(image)).count() < examples {
                chosen.extend((0..confused.len()).find(|image| has(image) && !chosen.contains(image)));
            }
            if chosen.len() >= MAX_IMAGES {
                return chosen;
            }
        }
    }
    chosen
}

fn precisions(curves: &[Named<Curves>], classes: &[Named<ClassSummary>]) -> Vec<Precisions> {
    let rounded = |values: &[f64]| values.iter().copied().map(short).collect::<Vec<_>>();
    let mean = |values: fn(&Curves) -> &Vec<f64>| {
        let at =
            |recall: usize| curves.iter().map(|class| values(&class.value)[recall]).sum::<f64>() / curves.len() as f64;
        rounded(&(0..curves.first().map_or(0, |class| values(&class.value).len())).map(at).collect::<Vec<_>>())
    };
    let all = Precisions {
        name: "all classes (mean)".to_owned(),
        iou50: mean(|class| &class.iou50.precision),
        iou75: mean(|class| &class.iou75.precision),
        score: None,
    };
    let objects: HashMap<_, _> = classes.iter().map(|class| (class.id, class.value.objects)).collect();
    let mut chosen: Vec<_> = curves.iter().collect();
    if chosen.len() > MAX_CURVES {
        chosen.sort_by_key(|class| Reverse(objects.get(&class.id)));
        chosen.truncate(MAX_CURVES);
    }
    let of_class = |class: &Named<Curves>| Precisions {
        name: class.name.clone(),
        iou50: rounded(&class.value.iou50.precision),
        iou75: rounded(&class.value.iou75.precision),
        score: Some(rounded(&class.value.iou50.score)),
    };
    (curves.len() > 1).then_some(all).into_iter().chain(chosen.into_iter().map(of_class)).collect()
}

#[cfg(test)]
mod tests {
    use models::dataset::{Annotation, Image, Rectangle};
    use models::spec::Class;

    use super::*;

    fn place(x: f64) -> Rectangle {
        Rectangle { x, y: 0.0, width: 10.0, height: 10.0 }
    }

    /// A data set whose images each have a dog (class index 1) and a cow (2).
    fn dataset(images: usize) -> Dataset {
        let image = |id| Image { id, file_name: format!("{id}.png"), width: 100, height: 50 };
        let object = |image, class_index, x| Annotation {
            id: 1,
            image,
            class_index,
            rectangle: place(x),
            area: 100.0,
            crowd: false,
            difficult: false,
        };
        let annotations = (0..images).flat_map(|image| [object(image, 1, 0.0), object(image, 2, 20.0)]).collect();
        let classes = (0..).zip(["cat", "dog", "cow"]).map(|(id, name)| Class { id, name: name.to_owned() }).collect();
        Dataset::new("", (0..images as i64).map(image).collect(), annotations, classes).unwrap()
    }

    fn found(image: usize, class_index: usize, x: f64, score: f64) -> ScoredBox {
        ScoredBox { image, class_index, score, rectangle: place(x) }
    }

    /// The file names of the best and the worst images.
    fn ranked(images: usize, scored: &[ScoredBox]) -> [Vec<String>; 2] {
        let results = Results::new(&dataset(images), scored);
        [&results.best, &results.worst]
            .map(|list| list.iter().map(|image| results.images[*image].name.clone()).collect())
    }

    #[test]
    fn worst_images_have_the_lowest_f1_then_the_most_errors() {
        let scored = [
            found(0, 1, 0.0, 0.9),
            found(0, 2, 20.0, 0.9), // Both objects found.
            found(1, 1, 0.0, 0.9),  // One object found.
            found(3, 2, 0.0, 0.9),
            found(3, 0, 50.0, 0.9), // A wrong class, and a detection without an object.
        ];
        assert_eq!(ranked(4, &scored), [["0.png", "1.png"], ["3.png", "2.png"]]);
        assert_eq!(ranked(1, &scored[..2]), [vec!["0.png"], vec![]]);
        assert_eq!(ranked(2, &[]), [vec![], vec!["0.png", "1.png"]]);
        assert_eq!(ranked(0, &[]), [[""; 0], []]);
    }

    #[test]
    fn cells_of_the_confusion_matrix_have_their_images() {
        let scored = [found(0, 2, 0.0, 0.9), found(1, 1, 0.0, 0.9), found(1, 0, 50.0, 0.9)];
        let results = Results::new(&dataset(2), &scored);
        let cell = |truth, prediction| {
            results.confusions.iter().find(|cell| (cell.truth, cell.prediction) == (truth, prediction))
        };
        let names = |cell: Option<&Cell>| {
            let cell = cell.unwrap();
            (cell.count, cell.images.iter().map(|image| results.images[*image].name.as_str()).collect::<Vec<_>>())
        };
        assert_eq!(names(cell(Some(1), Some(2))), (1, vec!["0.png"]));
        assert_eq!(names(cell(None, Some(0))), (1, vec!["1.png"]));
        assert_eq!(cell(Some(1), Some(2)).unwrap().row_total, 2);
        let (missed, mut images) = names(cell(Some(2), None));
        images.sort_unstable();
        assert_eq!((missed, images), (2, vec!["0.png", "1.png"]));
        assert!(cell(Some(0), None).is_none());
        assert_eq!(results.counts, Counts { objects: 4, detections: 3, right: 1 });
        assert_eq!((results.counts.errors(), Counts::default().f1()), (5, 1.0));
    }

    #[test]
    fn frequent_errors_get_examples_until_there_is_no_more_room() {
        // Every image has two missed objects; the first 100 also have a detection without an object.
        let scored: Vec<_> = (0..100).map(|image| found(image, 0, 50.0, 0.9)).collect();
        let results = Results::new(&dataset(200), &scored);
        let examples = |prediction| {
            let cell = results.confusions.iter().find(|cell| cell.prediction == prediction && cell.truth != prediction);
            cell.unwrap().images.len()
        };
        assert!(results.images.len() <= MAX_IMAGES);
        assert!(examples(Some(0)) >= EXAMPLES && examples(None) >= EXAMPLES, "{:?}", results.confusions);
    }

    #[test]
    fn the_best_threshold_separates_correct_from_wrong_detections() {
        let truth = dataset(1);
        let detections =
            [found(0, 1, 0.0, 0.9), found(0, 2, 20.0, 0.62), found(0, 1, 300.0, 0.58), found(0, 1, 400.0, 0.3)];
        assert_eq!(best_rule(&truth, &detections).score, 0.6);
        assert_eq!(best_rule(&truth, &detections[2..]), ConfusionRule::default());
        assert_eq!(best_rule(&truth, &[]), ConfusionRule::default());
        assert_eq!(best_rule(&Dataset::default(), &[]), ConfusionRule::default());
    }
}
