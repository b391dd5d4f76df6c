//! Tables of average precision and recall, and precision-recall curves.

use models::evaluation::{ClassSummary, Curves, Summary};
use runtime::evaluation_report::{EvaluationReport, Named};

use super::chart::{Axis, Chart, Line, Size, Stroke};
use super::markup::Markup;
use super::text::{DASH, count, counted, fraction};

/// Maximum number of classes with a curve: those with the most objects.
const MAX_CURVES: usize = 100;

/// Number of curves that are visible without unfolding.
const OPEN_CURVES: usize = 20;

/// Number of rows above which a table scrolls.
const LONG_TABLE: usize = 25;

/// Table of COCO's twelve metrics.
pub(super) fn summary(s: &Summary, markup: &mut Markup) {
    let precision = [
        ("AP", "IoU 0.50 to 0.95", s.ap),
        ("AP50", "IoU 0.50", s.ap50),
        ("AP75", "IoU 0.75", s.ap75),
        ("APs", "small objects", s.ap_small),
        ("APm", "medium objects", s.ap_medium),
        ("APl", "large objects", s.ap_large),
    ];
    let recall = [
        ("AR1", "1 detection per image and class", s.ar1),
        ("AR10", "10 detections per image and class", s.ar10),
        ("AR100", "100 detections per image and class", s.ar100),
        ("ARs", "small objects", s.ar_small),
        ("ARm", "medium objects", s.ar_medium),
        ("ARl", "large objects", s.ar_large),
    ];
    markup.element("table", &[("class", &"numbers")], |markup| {
        for (title, rows) in [("Average precision", precision), ("Average recall, IoU 0.50 to 0.95", recall)] {
            markup.element("tbody", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    markup.phrase("th", &[("colspan", &3), ("class", &"group"), ("scope", &"rowgroup")], title);
                });
                for (name, meaning, value) in rows {
                    markup.element("tr", &[], |markup| {
                        markup.phrase("th", &[("scope", &"row")], name);
                        markup.phrase("td", &[("class", &"meaning")], meaning);
                        bar(markup, value);
                    });
                }
            });
        }
    });
}

/// Table of the metrics of each class.
pub(super) fn classes(classes: &[Named<ClassSummary>], markup: &mut Markup) {
    let kind = if classes.len() > LONG_TABLE { "scroll long" } else { "scroll" };
    markup.element("div", &[("class", &kind), ("tabindex", &0)], |markup| {
        markup.element("table", &[("class", &"classes")], |markup| {
            let groups = [("", 3), ("Average precision and recall", 4), ("At the best F1, IoU 0.50", 4)];
            let columns =
                ["Class", "objects", "detections", "AP", "AP50", "AP75", "AR100", "score", "F1", "precision", "recall"];
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[("class", &"groups")], |markup| {
                    for (name, width) in groups {
                        markup.phrase("td", &[("colspan", &width)], name);
                    }
                });
                markup.element("tr", &[], |markup| {
                    columns.iter().for_each(|name| markup.phrase("th", &[("scope", &"col")], name));
                });
            });
            markup.element("tbody", &[], |markup| classes.iter().for_each(|class| class_row(class, markup)));
        });
    });
}

fn class_row(Named { name, value, .. }: &Named<ClassSummary>, markup: &mut Markup) {
    markup.element("tr", &[], |markup| {
        markup.phrase("th", &[("scope", &"row")], name);
        for number in [value.objects, value.detections] {
            markup.phrase("td", &[], count(number));
        }
        for number in [value.ap, value.ap50, value.ap75, value.ar100] {
            bar(markup, number);
        }
        let best = value.best_f1.map(|best| [best.score, best.f1, best.precision, best.recall]);
        for text in best.map_or([DASH; 4].map(str::to_owned), |best| best.map(fraction)) {
            markup.phrase("td", &[], text);
        }
    });
}

/// A table cell with a number from 0 to 1, with a bar behind it.
fn bar(markup: &mut Markup, value: f64) {
    let filled = format!("--fraction:{:.1}%", if value >= 0.0 { 100.0 * value.min(1.0) } else { 0.0 });
    markup.phrase("td", &[("class", &"bar"), ("style", &filled)], fraction(value));
}

/// Precision-recall curves: the mean over the classes, and one for each class with objects.
pub(super) fn curves(report: &EvaluationReport, markup: &mut Markup) {
    let curves = &report.curves;
    if curves.is_empty() {
        return markup.phrase("p", &[("class", &"empty")], "No class has ground truth objects.");
    }
    markup.element("p", &[("class", &"remark")], |markup| {
        for (kind, name) in [("solid", "IoU 0.50"), ("dashed", "IoU 0.75")] {
            markup.phrase("span", &[("class", &format!("key {kind} c0"))], name);
        }
        markup.text(
            " Vertical axis: precision. Horizontal axis: recall. The area under a curve is its average precision.",
        );
    });
    let objects = |class: &Named<Curves>| {
        report.classes.iter().find(|other| other.id == class.id).map_or(0, |other| other.value.objects)
    };
    let mut chosen: Vec<_> = curves.iter().collect();
    if chosen.len() > MAX_CURVES {
        chosen.sort_by_key(|class| std::cmp::Reverse(objects(class)));
        chosen.truncate(MAX_CURVES);
        let text = format!("The {MAX_CURVES} classes with the most objects, of {}.", count(curves.len()));
        markup.phrase("p", &[("class", &"remark")], text);
    }
    let (open, folded) = chosen.split_at(chosen.len().min(OPEN_CURVES));
    markup.element("div", &[("class", &"small charts")], |markup| {
        if curves.len() > 1 {
            let iou50 = mean(curves.iter().map(|class| &class.value.iou50.precision));
            let iou75 = mean(curves.iter().map(|class| &class.value.iou75.precision));
            curve(markup, "all classes (mean)", &iou50, &iou75);
        }
        open.iter().for_each(|class| class_curve(markup, class));
    });
    if !folded.is_empty() {
        markup.element("details", &[], |markup| {
            markup.phrase("summary", &[], counted(folded.len(), "more class", "more classes"));
            markup.element("div", &[("class", &"small charts")], |markup| {
                folded.iter().for_each(|class| class_curve(markup, class));
            });
        });
    }
}

fn class_curve(markup: &mut Markup, Named { name, value, .. }: &Named<Curves>) {
    curve(markup, name, &value.iou50.precision, &value.iou75.precision);
}

/// Chart of precisions at equally spaced recalls from 0 to 1.
fn curve(markup: &mut Markup, title: &str, iou50: &[f64], iou75: &[f64]) {
    let line = |name, precision: &[f64], stroke| Line { name, points: corners(precision), color: 0, stroke };
    let chart = Chart {
        title,
        across: None,
        size: Size::SMALL,
        x: Axis::from_zero(1.0, 2),
        y: Axis::from_zero(1.0, 2),
        lines: vec![line("", iou75, Stroke::Dashed), line("", iou50, Stroke::Solid)],
        mark: None,
        notes: Vec::new(),
    };
    chart.draw(markup);
}

/// The points of a curve, without those inside its horizontal segments.
fn corners(precision: &[f64]) -> Vec<[f64; 2]> {
    let last = precision.len().saturating_sub(1);
    let turns = |place: &usize| {
        *place == 0
            || *place == last
            || precision[place - 1] != precision[*place]
            || precision[place + 1] != precision[*place]
    };
    let recall = |place: usize| place as f64 / last.max(1) as f64;
    (0..precision.len()).filter(turns).map(|place| [recall(place), precision[place]]).collect()
}

fn mean<'a>(curves: impl ExactSizeIterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let count = curves.len() as f64;
    let mut sums: Vec<f64> = Vec::new();
    for curve in curves {
        sums.resize(curve.len(), 0.0);
        sums.iter_mut().zip(curve).for_each(|(sum, precision)| *sum += precision / count);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_its_corners() {
        let precision = [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0];
        let kept: Vec<_> = corners(&precision).into_iter().map(|[recall, _]| 8.0 * recall).collect();
        assert_eq!(kept, [0.0, 2.0, 3.0, 6.0, 7.0, 8.0]);
        assert_eq!(corners(&[0.5]), [[0.0, 0.5]]);
        assert_eq!(corners(&[]), [[0.0; 2]; 0]);
    }

    #[test]
    fn the_mean_curve_averages_over_classes() {
        assert_eq!(mean([vec![1.0, 0.5], vec![0.5, 0.0]].iter()), [0.75, 0.25]);
    }
}
