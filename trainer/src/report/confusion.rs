//! Which class is taken for which, as a matrix or as a list.

use runtime::evaluation_report::ConfusionReport;

use super::markup::Markup;
use super::text::{count, counted, percent};

/// More classes have a list instead of a matrix.
const WIDEST_MATRIX: usize = 30;

/// Entries of the list.
const LONGEST_LIST: usize = 30;

/// From this share on, the color of a cell is so strong that its number must be light.
const STRONG: f64 = 0.55;

/// What is said of a detection or an object without a partner.
const NOTHING: &str = "background";

pub(super) fn draw(report: &ConfusionReport, markup: &mut Markup) {
    let rule = report.matrix.rule;
    let text = format!(
        "Objects and detections that overlap by an IoU of at least {} are paired whatever their classes, the closest first; \
         detections count from the score {:.2} on. Objects paired with the {NOTHING} were missed, detections paired with it are \
         of nothing.",
        rule.iou, rule.score
    );
    markup.phrase("p", &[("class", &"remark")], text);
    if report.classes.len() <= WIDEST_MATRIX + 1 { matrix(report, markup) } else { list(report, markup) }
}

fn matrix(ConfusionReport { classes, matrix }: &ConfusionReport, markup: &mut Markup) {
    let background = matrix.background();
    markup.element("div", &[("class", &"scroll"), ("tabindex", &0)], |markup| {
        markup.element("table", &[("class", &"matrix")], |markup| {
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    markup.element("th", &[("class", &"corner")], |markup| {
                        markup.phrase("span", &[], "objects ↓");
                        markup.text(" ");
                        markup.phrase("span", &[], "taken for →");
                    });
                    for name in classes {
                        markup.element("th", &[("scope", &"col"), ("title", name)], |markup| {
                            markup.phrase("span", &[], name)
                        });
                    }
                });
            });
            markup.element("tbody", &[], |markup| {
                for (truth, counts) in matrix.counts.iter().enumerate() {
                    let all: usize = counts.iter().sum();
                    markup.element("tr", &[], |markup| {
                        markup.phrase("th", &[("scope", &"row"), ("title", &classes[truth])], &classes[truth]);
                        for (prediction, number) in counts.iter().enumerate() {
                            if truth == background && prediction == background {
                                markup.phrase("td", &[("class", &"none")], "");
                                continue;
                            }
                            let share = *number as f64 / all.max(1) as f64;
                            let title = if truth == background {
                                format!(
                                    "{} of nothing are {}: {}",
                                    counted(*number, "detection", "detections"),
                                    classes[prediction],
                                    percent(share)
                                )
                            } else {
                                let fate = if prediction == background {
                                    "were missed".to_owned()
                                } else {
                                    format!("were taken for {}", classes[prediction])
                                };
                                format!(
                                    "{} of {} {} {fate}: {}",
                                    count(*number),
                                    count(all),
                                    classes[truth],
                                    percent(share)
                                )
                            };
                            cell(markup, *number, share, truth == prediction, &title);
                        }
                    });
                }
            });
        });
    });
    markup.phrase("p", &[("class", &"remark")], "A cell is colored by its share of its row.");
}

fn cell(markup: &mut Markup, number: usize, share: f64, right: bool, title: &str) {
    let class = match number {
        0 => "zero".to_owned(),
        _ => format!("{}{}", if right { "right" } else { "wrong" }, if share > STRONG { " strong" } else { "" }),
    };
    let style = format!("--share:{share:.3}");
    markup.phrase("td", &[("class", &class), ("style", &style), ("title", &title)], count(number));
}

/// The most frequent errors, missed objects and detections of nothing among them.
fn list(ConfusionReport { classes, matrix }: &ConfusionReport, markup: &mut Markup) {
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
        "{} missed, {} taken for another class, {} of nothing. The most frequent:",
        counted(missed, "object was", "objects were"),
        count(mistaken),
        counted(unfounded, "detection is", "detections are")
    );
    markup.phrase("p", &[], text);
    markup.element("div", &[("class", &"scroll"), ("tabindex", &0)], |markup| {
        markup.element("table", &[("class", &"confusions")], |markup| {
            markup.element("thead", &[], |markup| {
                markup.element("tr", &[], |markup| {
                    for name in ["Objects of", "taken for", "count", "share of the row"] {
                        markup.phrase("th", &[("scope", &"col")], name);
                    }
                });
            });
            markup.element("tbody", &[], |markup| {
                for &(truth, prediction, number) in errors.iter().take(LONGEST_LIST) {
                    let all: usize = matrix.counts[truth].iter().sum();
                    let share = number as f64 / all.max(1) as f64;
                    markup.element("tr", &[], |markup| {
                        markup.phrase("td", &[], &classes[truth]);
                        markup.phrase("td", &[], &classes[prediction]);
                        markup.phrase("td", &[], count(number));
                        let style = format!("--share:{:.1}%", 100.0 * share);
                        markup.phrase("td", &[("class", &"bar"), ("style", &style)], percent(share));
                    });
                }
            });
        });
    });
}
