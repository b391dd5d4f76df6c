//! The confusion matrix, as a table or as a list of the most frequent errors.

use runtime::evaluation_report::ConfusionReport;

use super::markup::{Attribute, Markup};
use super::text::{count, counted, percent};

/// Maximum number of classes shown as a matrix. More are shown as a list.
const WIDEST_MATRIX: usize = 30;

/// Maximum number of entries of the list without a matrix.
const LONGEST_LIST: usize = 30;

/// Maximum number of entries of the list next to a matrix.
const SHORTEST_LIST: usize = 8;

/// Fraction of the row above which a cell is so dark that its number must be light.
const STRONG: f64 = 0.55;

/// Name of the row of detections without an object, and of the column of missed objects.
const NOTHING: &str = "background";

pub(super) fn draw(report: &ConfusionReport, markup: &mut Markup) {
    let rule = report.matrix.rule;
    let text = format!(
        "Objects and detections with an IoU of at least {} are matched regardless of their classes, highest IoU first. Only \
         detections with a score of at least {:.2} count. The column “{NOTHING}” counts missed objects, the row “{NOTHING}” \
         detections without an object.",
        rule.iou, rule.score
    );
    markup.phrase("p", &[("class", &"remark")], text);
    if report.classes.len() <= WIDEST_MATRIX + 1 {
        markup.element("div", &[("class", &"beside")], |markup| {
            markup.element("div", &[], |markup| matrix(report, markup));
            markup.element("div", &[], |markup| list(report, SHORTEST_LIST, markup));
        });
    } else {
        list(report, LONGEST_LIST, markup);
    }
}

fn matrix(report: &ConfusionReport, markup: &mut Markup) {
    markup.element("div", &[("class", &"scroll"), ("tabindex", &0)], |markup| {
        markup.element("table", &[("class", &"matrix")], |markup| {
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    markup.element("th", &[("class", &"corner")], |markup| {
                        markup.phrase("span", &[], "objects ↓");
                        markup.text(" ");
                        markup.phrase("span", &[], "detected as →");
                    });
                    for name in &report.classes {
                        let attributes: [Attribute; 2] = [("scope", &"col"), ("title", name)];
                        markup.element("th", &attributes, |markup| markup.phrase("span", &[], name));
                    }
                });
            });
            markup.element("tbody", &[], |markup| {
                for truth in 0..report.classes.len() {
                    markup.element("tr", &[], |markup| row(report, truth, markup));
                }
            });
        });
    });
    markup.phrase("p", &[("class", &"remark")], "Cells are shaded by their fraction of the row.");
}

/// The row of class index `truth`, or of the detections without an object.
fn row(ConfusionReport { classes, matrix }: &ConfusionReport, truth: usize, markup: &mut Markup) {
    let background = matrix.background();
    let counts = &matrix.counts[truth];
    let all: usize = counts.iter().sum();
    markup.phrase("th", &[("scope", &"row"), ("title", &classes[truth])], &classes[truth]);
    for (prediction, &number) in counts.iter().enumerate() {
        let fraction = number as f64 / all.max(1) as f64;
        let of_all = format!("{} of {}", count(number), count(all));
        let said = match (truth, prediction) {
            _ if truth == background && prediction == background => {
                markup.phrase("td", &[("class", &"none")], "");
                continue;
            }
            (_, _) if truth == background => {
                format!("{of_all} detections without an object are {}", classes[prediction])
            }
            (_, _) if prediction == background => format!("{of_all} {} were missed", classes[truth]),
            _ => format!("{of_all} {} were detected as {}", classes[truth], classes[prediction]),
        };
        cell(markup, number, fraction, truth == prediction, &format!("{said}: {}", percent(fraction)));
    }
}

fn cell(markup: &mut Markup, number: usize, fraction: f64, right: bool, title: &str) {
    let class = match number {
        0 => "zero".to_owned(),
        _ => format!("{}{}", if right { "right" } else { "wrong" }, if fraction > STRONG { " strong" } else { "" }),
    };
    let style = format!("--fraction:{fraction:.3}");
    markup.phrase("td", &[("class", &class), ("style", &style), ("title", &title)], count(number));
}

/// The most frequent errors, including missed objects and detections without an object.
fn list(ConfusionReport { classes, matrix }: &ConfusionReport, longest: usize, markup: &mut Markup) {
    let background = matrix.background();
    let rows = matrix.counts.iter().enumerate();
    let cells = rows.flat_map(|(truth, counts)| {
        counts.iter().enumerate().map(move |(prediction, count)| (truth, prediction, *count))
    });
    let mut errors: Vec<_> = cells.filter(|(truth, prediction, count)| truth != prediction && *count > 0).collect();
    errors.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
    let sum = |chosen: &dyn Fn(usize, usize) -> bool| -> usize {
        errors.iter().filter(|(truth, prediction, _)| chosen(*truth, *prediction)).map(|(_, _, count)| count).sum()
    };
    let missed = sum(&|_, prediction| prediction == background);
    let unfounded = sum(&|truth, _| truth == background);
    let mistaken = sum(&|truth, prediction| truth != background && prediction != background);
    let text = format!(
        "{} missed, {} detected as another class, {} without an object.{}",
        counted(missed, "object", "objects"),
        count(mistaken),
        counted(unfounded, "detection", "detections"),
        if errors.is_empty() { "" } else { " The most frequent errors:" }
    );
    markup.phrase("p", &[], text);
    if errors.is_empty() {
        return;
    }
    markup.element("div", &[("class", &"scroll"), ("tabindex", &0)], |markup| {
        markup.element("table", &[("class", &"confusions")], |markup| {
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    for name in ["Object", "detected as", "count", "of all"] {
                        markup.phrase("th", &[("scope", &"col")], name);
                    }
                });
            });
            markup.element("tbody", &[], |markup| {
                for &(truth, prediction, number) in errors.iter().take(longest) {
                    let all: usize = matrix.counts[truth].iter().sum();
                    let fraction = number as f64 / all.max(1) as f64;
                    markup.element("tr", &[], |markup| {
                        markup.phrase("td", &[], &classes[truth]);
                        markup.phrase("td", &[], &classes[prediction]);
                        markup.phrase("td", &[], count(number));
                        let style = format!("--fraction:{:.1}%", 100.0 * fraction);
                        markup.phrase("td", &[("class", &"bar"), ("style", &style)], percent(fraction));
                    });
                }
            });
        });
    });
}
