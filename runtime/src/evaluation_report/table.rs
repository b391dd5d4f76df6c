//! The report for people.

use std::fmt;

use crate::output::aligned;

use super::{ConfusionReport, EvaluationReport, VocReport};

/// More classes have no row of their own.
const MOST_CLASSES: usize = 100;

/// More classes have no matrix of confusions, which would be wider than a terminal.
const WIDEST_MATRIX: usize = 12;

/// So many confusions are listed where there is no matrix.
const MOST_CONFUSIONS: usize = 20;

/// Longer names are cut.
const LONGEST_NAME: usize = 24;

/// Tables with an empty line between them, without the last line's end. A dash stands where there is no object to find.
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
        let rows = rows.map(|(name, iou, area, detections, value)| {
            [name.to_owned(), iou.to_owned(), area.to_owned(), detections.to_string(), number(value)]
        });
        let head = ["", "IoU", "area", "detections", "value"].map(str::to_owned);
        aligned([head].into_iter().chain(rows).map(Vec::from))
    }

    fn class_table(&self) -> String {
        let columns = ["class", "objects", "detections", "AP", "AP50", "AP75", "AR100", "best F1", "at score"];
        let head = columns.into_iter().chain(self.voc.as_ref().map(|_| "VOC AP")).map(str::to_owned).collect();
        let rows = self.classes.iter().take(MOST_CLASSES).enumerate().map(|(place, class)| {
            let c = &class.value;
            let best = c.best_f1.map(|best| [best.f1, best.score].map(|value| format!("{value:.4}")));
            let best = best.unwrap_or_else(|| ["-", "-"].map(str::to_owned));
            let counts = [c.objects, c.detections].map(|count| count.to_string());
            let numbers = [c.ap, c.ap50, c.ap75, c.ar100].map(number);
            let voc = self.voc.as_ref().map(|voc| number(voc.classes[place].value.ap));
            [cut(&class.name)].into_iter().chain(counts).chain(numbers).chain(best).chain(voc).collect()
        });
        let mut table = aligned([head].into_iter().chain(rows));
        if let more @ 1.. = self.classes.len().saturating_sub(MOST_CLASSES) {
            table += &format!("\nand {more} more classes; --json has them all");
        }
        table
    }
}

/// The matrix, or the most frequent confusions if it would be too wide.
impl fmt::Display for ConfusionReport {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let rule = self.matrix.rule;
        write!(formatter, "Confusions at IoU {} of detections scoring at least {}: ", rule.iou, rule.score)?;
        if self.classes.len() <= WIDEST_MATRIX + 1 {
            write!(formatter, "objects in rows, detections in columns\n{}", self.matrix_table())
        } else {
            self.write_list(formatter)
        }
    }
}

impl ConfusionReport {
    fn matrix_table(&self) -> String {
        let head = [String::new()].into_iter().chain(self.classes.iter().map(|name| cut(name))).collect();
        let rows = self.classes.iter().zip(&self.matrix.counts).map(|(name, counts)| {
            [cut(name)].into_iter().chain(counts.iter().map(usize::to_string)).collect::<Vec<_>>()
        });
        aligned([head].into_iter().chain(rows))
    }

    fn write_list(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let background = self.matrix.background();
        let confusions = self.matrix.confusions();
        let missed: usize = self.matrix.counts[..background].iter().map(|row| row[background]).sum();
        let unfounded: usize = self.matrix.counts[background].iter().sum();
        let mistaken: usize = confusions.iter().map(|confusion| confusion.count).sum();
        write!(
            formatter,
            "objects missed {missed}, taken for another class {mistaken}, detections of nothing {unfounded}"
        )?;
        if confusions.is_empty() {
            return Ok(());
        }
        let head = ["objects of", "taken for", "count", "of all"].map(str::to_owned);
        let rows = confusions.iter().take(MOST_CONFUSIONS).map(|confusion| {
            let all: usize = self.matrix.counts[confusion.truth].iter().sum();
            let names = [confusion.truth, confusion.prediction].map(|class| cut(&self.classes[class]));
            let [truth, prediction] = names;
            [truth, prediction, confusion.count.to_string(), all.to_string()]
        });
        write!(formatter, "\n{}", aligned([head].into_iter().chain(rows).map(Vec::from)))?;
        match confusions.len().saturating_sub(MOST_CONFUSIONS) {
            0 => Ok(()),
            more => write!(formatter, "\nand {more} rarer confusions; --json has them all"),
        }
    }
}

fn number(value: f64) -> String {
    if value < 0.0 { "-".to_owned() } else { format!("{value:.4}") }
}

fn cut(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Details, samples};

    /// The cells of the line that begins with this word.
    fn row<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
        let mut rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.find(|row| row.first() == Some(&first)).unwrap()
    }

    #[test]
    fn every_number_has_a_place_and_a_dash_where_nothing_is_to_be_found() {
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
    fn what_is_wanted_comes_after() {
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
    fn of_many_classes_the_confusions_are_listed() {
        let names: Vec<_> = (0..14).map(|class| format!("class-{class}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let text = samples::report(&names, &samples::DETAILS).to_string();
        let (_, list) = text.split_once("at least 0.5: ").unwrap();
        assert!(list.starts_with("objects missed 0, taken for another class 6, detections of nothing 0\n"), "{list}");
        assert_eq!(row(list, "class-1"), ["class-1", "class-2", "1", "1"]);
    }

    #[test]
    fn classes_beyond_a_hundred_are_counted() {
        let names = ["a name longer than anybody would like it to be"; 164];
        let text = samples::report(&names, &Details::default()).to_string();
        assert!(text.ends_with("\nand 64 more classes; --json has them all"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("a name longer than anyb… ")).count(), 100, "{text}");
    }
}
