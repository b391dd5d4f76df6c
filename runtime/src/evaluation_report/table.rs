//! The report as tables.

use std::fmt;

use crate::output::aligned;

use super::{ConfusionReport, EvaluationReport, VocReport};

/// Maximum classes in the table of classes.
const MAX_CLASSES: usize = 100;

/// Maximum classes of a confusion matrix; more would be wider than a terminal.
const MAX_MATRIX_CLASSES: usize = 12;

/// Maximum confusions in the list that replaces a matrix.
const MAX_CONFUSIONS: usize = 20;

/// Maximum length of a class name; longer names are truncated.
const MAX_NAME_LENGTH: usize = 24;

/// Tables separated by empty lines, without a final line feed. A dash replaces metrics without objects.
impl fmt::Display for EvaluationReport {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}\n\n{}", self.summary_table(), self.class_table())?;
        if let Some(VocReport { iou, mean, .. }) = &self.voc {
            let (ap, ap11) = (number(mean.ap), number(mean.ap11));
            write!(formatter, "\n\nVOC at IoU {iou}: AP {ap} by area, {ap11} by 11 points")?;
        }
        if let Some(confusion) = &self.confusion {
            write!(formatter, "\n\n{confusion}")?;
        }
        Ok(())
    }
}

impl EvaluationReport {
    fn summary_table(&self) -> String {
        let s = &self.summary;
        let [first, second, third] = self.max_detections;
        let recalls = self.max_detections.map(|limit| format!("AR{limit}"));
        let rows = [
            ("AP", "0.50:0.95", "all", third, s.ap),
            ("AP50", "0.50", "all", third, s.ap50),
            ("AP75", "0.75", "all", third, s.ap75),
            ("APs", "0.50:0.95", "small", third, s.ap_small),
            ("APm", "0.50:0.95", "medium", third, s.ap_medium),
            ("APl", "0.50:0.95", "large", third, s.ap_large),
            (&recalls[0], "0.50:0.95", "all", first, s.ar1),
            (&recalls[1], "0.50:0.95", "all", second, s.ar10),
            (&recalls[2], "0.50:0.95", "all", third, s.ar100),
            ("ARs", "0.50:0.95", "small", third, s.ar_small),
            ("ARm", "0.50:0.95", "medium", third, s.ar_medium),
            ("ARl", "0.50:0.95", "large", third, s.ar_large),
        ];
        let rows = rows.map(|(name, iou, area, detections, value)| {
            [name.to_owned(), iou.to_owned(), area.to_owned(), detections.to_string(), number(value)]
        });
        let head = ["", "IoU", "area", "detections", "value"].map(str::to_owned);
        aligned([head].into_iter().chain(rows).map(Vec::from))
    }

    fn class_table(&self) -> String {
        let recall = format!("AR{}", self.max_detections[2]);
        let columns = ["class", "objects", "detections", "AP", "AP50", "AP75", &recall, "best F1", "at score"];
        let head = columns.into_iter().chain(self.voc.as_ref().map(|_| "VOC AP")).map(str::to_owned).collect();
        let rows = self.classes.iter().take(MAX_CLASSES).enumerate().map(|(index, class)| {
            let c = &class.value;
            let best = c.best_f1.map(|best| [best.f1, best.score].map(|value| format!("{value:.4}")));
            let best = best.unwrap_or_else(|| ["-", "-"].map(str::to_owned));
            let counts = [c.objects, c.detections].map(|count| count.to_string());
            let numbers = [c.ap, c.ap50, c.ap75, c.ar100].map(number);
            let voc = self.voc.as_ref().map(|voc| number(voc.classes[index].value.ap));
            [truncate(&class.name)].into_iter().chain(counts).chain(numbers).chain(best).chain(voc).collect()
        });
        let mut table = aligned([head].into_iter().chain(rows));
        if let more @ 1.. = self.classes.len().saturating_sub(MAX_CLASSES) {
            table += &format!("\nand {more} more classes; --json contains all");
        }
        table
    }
}

/// The matrix, or a list of the most frequent confusions if it would be too wide.
impl fmt::Display for ConfusionReport {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let rule = self.matrix.rule;
        write!(formatter, "Confusions at IoU {}, score at least {}: ", rule.iou, rule.score)?;
        if self.classes.len() <= MAX_MATRIX_CLASSES + 1 {
            write!(formatter, "ground truth in rows, detections in columns\n{}", self.matrix_table())
        } else {
            self.write_list(formatter)
        }
    }
}

impl ConfusionReport {
    fn matrix_table(&self) -> String {
        let head = [String::new()].into_iter().chain(self.classes.iter().map(|name| truncate(name))).collect();
        let rows = self.classes.iter().zip(&self.matrix.counts).map(|(name, counts)| {
            [truncate(name)].into_iter().chain(counts.iter().map(usize::to_string)).collect::<Vec<_>>()
        });
        aligned([head].into_iter().chain(rows))
    }

    fn write_list(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let background = self.matrix.background();
        let confusions = self.matrix.confusions();
        let missed: usize = self.matrix.counts[..background].iter().map(|row| row[background]).sum();
        let false_detections: usize = self.matrix.counts[background].iter().sum();
        let confused: usize = confusions.iter().map(|confusion| confusion.count).sum();
        write!(
            formatter,
            "{missed} objects missed, {confused} detected as another class, {false_detections} detections of background"
        )?;
        if confusions.is_empty() {
            return Ok(());
        }
        let head = ["ground truth", "detected as", "count", "objects"].map(str::to_owned);
        let rows = confusions.iter().take(MAX_CONFUSIONS).map(|confusion| {
            let objects: usize = self.matrix.counts[confusion.truth].iter().sum();
            let names = [confusion.truth, confusion.prediction].map(|class| truncate(&self.classes[class]));
            let [truth, prediction] = names;
            [truth, prediction, confusion.count.to_string(), objects.to_string()]
        });
        write!(formatter, "\n{}", aligned([head].into_iter().chain(rows).map(Vec::from)))?;
        match confusions.len().saturating_sub(MAX_CONFUSIONS) {
            0 => Ok(()),
            more => write!(formatter, "\nand {more} less frequent confusions; --json contains all"),
        }
    }
}

fn number(value: f64) -> String {
    if value < 0.0 { "-".to_owned() } else { format!("{value:.4}") }
}

fn truncate(name: &str) -> String {
    if name.chars().count() <= MAX_NAME_LENGTH {
        return name.to_owned();
    }
    name.chars().take(MAX_NAME_LENGTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Details, samples};

    /// The cells of the first line that starts with this word.
    fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
        let mut rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.find(|row| row.first() == Some(&first)).unwrap()
    }

    #[test]
    fn all_metrics_are_shown_with_a_dash_for_classes_without_objects() {
        let text = samples::report(&["cat", "dog", "cow"], &Details::default()).to_string();
        assert_eq!(text.lines().count(), 13 + 1 + 4, "{text}");
        assert_eq!(row(&text, "AP50"), ["AP50", "0.50", "all", "100", "0.5000"]);
        assert_eq!(row(&text, "APl"), ["APl", "0.50:0.95", "large", "100", "-"]);
        assert_eq!(row(&text, "cat"), ["cat", "1", "1", "1.0000", "1.0000", "1.0000", "1.0000", "1.0000", "0.7500"]);
        assert_eq!(row(&text, "dog"), ["dog", "1", "0", "0.0000", "0.0000", "0.0000", "0.0000", "-", "-"]);
        assert_eq!(row(&text, "cow"), ["cow", "0", "1", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn columns_are_aligned() {
        let text = samples::report(&["cat", "Hündin", "cow"], &samples::DETAILS).to_string();
        for table in text.split("\n\n").filter(|table| !table.starts_with("VOC")) {
            let widths: Vec<_> = table.lines().filter(|l| !l.starts_with("Conf")).map(|l| l.chars().count()).collect();
            assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
        }
    }

    #[test]
    fn requested_details_follow_the_coco_tables() {
        let text = samples::report(&["cat", "dog", "cow"], &samples::DETAILS).to_string();
        assert!(text.contains("\n\nVOC at IoU 0.5: AP 0.5000 by area, 0.5000 by 11 points\n"), "{text}");
        assert_eq!(row(&text, "class").last(), Some(&"AP"));
        assert_eq!(row(&text, "cat").last(), Some(&"1.0000"));
        let (_, matrix) = text.split_once("detections in columns\n").unwrap();
        let rows: Vec<_> = matrix.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = ["cat dog cow background", "cat 1 0 0 0", "dog 0 0 1 0", "cow 0 0 0 0", "background 0 0 0 0"];
        assert_eq!(rows, expected);
    }

    #[test]
    fn confusions_of_many_classes_are_a_list() {
        let names: Vec<_> = (0..14).map(|class| format!("class-{class}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let text = samples::report(&names, &samples::DETAILS).to_string();
        let (_, list) = text.split_once("at least 0.5: ").unwrap();
        let totals = "0 objects missed, 6 detected as another class, 0 detections of background\n";
        assert!(list.starts_with(totals), "{list}");
        assert_eq!(row(list, "class-1"), ["class-1", "class-2", "1", "1"]);
    }

    #[test]
    fn classes_beyond_a_hundred_are_only_counted() {
        let names = ["a name longer than anybody would like it to be"; 164];
        let text = samples::report(&names, &Details::default()).to_string();
        assert!(text.ends_with("\nand 64 more classes; --json contains all"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("a name longer than anyb… ")).count(), 100, "{text}");
    }
}
