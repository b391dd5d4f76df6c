//! What is wrong with a data set: each problem named, all of them counted.

use std::fmt::{self, Display};

/// What to do about entries of a data set that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnProblem {
    /// Read nothing.
    Refuse,
    /// Leave them out, clip boxes to their image, and report it. For training.
    Drop,
    /// Take what can be taken, unchanged, and report it. For evaluation: COCO's own program counts such boxes, and results
    /// are comparable only if all count the same.
    Keep,
}

/// One entry of a data set that makes no sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// File name of the image, or its id, or that of the class.
    pub place: String,
    /// Id of the annotation, when it is about one.
    pub annotation: Option<i64>,
    /// The offending values; may be empty.
    pub found: String,
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// An entry lacks a field, or has one of the wrong type.
    BadEntry,
    /// A class has no name: there is no class file. Never refused.
    UnnamedClass,
    /// A class has the id of an earlier one.
    RepeatedClass,
    /// An image has the id of an earlier one.
    RepeatedImage,
    /// An image has the file of an earlier one.
    RepeatedFileName,
    /// An image has no file name.
    NoFileName,
    /// An image has no width or height, or one of zero.
    NoSize,
    /// An image's size is in its file only, and that is not there or no image.
    Unreadable,
    /// The list of the part names an image that the data set does not have.
    UnknownName,
    /// A box is on an image that the data set does not list.
    UnknownImage,
    /// A box is on an image that was dropped.
    DroppedImage,
    /// A box is of a class that the data set does not list.
    UnknownClass,
    /// A box has the id of an earlier one. Never refused; pycocotools matches such boxes wrongly.
    RepeatedAnnotation,
    /// A coordinate or area is infinite or not a number.
    NotFinite,
    /// A box has a width or height of zero or less.
    NoArea,
    /// No part of a box is inside its image.
    Outside,
    /// A box exceeds its image by more than a pixel.
    PartlyOutside,
    /// A box exceeds its image by up to a pixel, as boxes with 1-based or rounded coordinates do. Never refused.
    Overshoot,
}

/// The problems of one data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What was done about them.
    pub on_problem: OnProblem,
    /// The problems, in the order they were found.
    pub problems: Vec<Problem>,
}

impl Problem {
    /// An entry on a line of a text file.
    pub(super) fn in_line(file: &str, line: u64, found: String) -> Self {
        Self { kind: ProblemKind::BadEntry, place: format!("{file} line {line}"), annotation: None, found }
    }

    /// A class that has an index only.
    pub(super) fn unnamed_class(index: &str) -> Self {
        Self { kind: ProblemKind::UnnamedClass, place: index.to_owned(), annotation: None, found: String::new() }
    }
}

impl Report {
    /// Number of entries of a kind that messages name.
    pub(super) const SHOWN: usize = 5;

    /// Number of problems of one kind.
    pub fn count(&self, kind: ProblemKind) -> usize {
        self.problems.iter().filter(|problem| problem.kind == kind).count()
    }

    /// Whether some problem is reason enough for [`OnProblem::Refuse`].
    pub fn is_serious(&self) -> bool {
        self.problems.iter().any(|problem| problem.kind.is_serious())
    }

    /// One line per kind of problem: how many, what happened to them, and where the first few are.
    pub fn lines(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.problems.iter().map(|problem| problem.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.into_iter().map(|kind| self.line(kind)).collect()
    }

    fn line(&self, kind: ProblemKind) -> String {
        let found: Vec<_> = self.problems.iter().filter(|problem| problem.kind == kind).collect();
        let (one, many, rest) = kind.words();
        let outcome = kind.outcome(self.on_problem);
        let what = if found.len() == 1 { one } else { many };
        format!("{} {what} {rest}{outcome}: {}", found.len(), named(&found))
    }
}

/// The first few of a list, and how many more there are.
pub fn named(list: &[impl Display]) -> String {
    let mut text = list.iter().take(Report::SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if list.len() > Report::SHOWN {
        text += &format!(" and {} more", list.len() - Report::SHOWN);
    }
    text
}

impl Display for Report {
    /// The lines of [`Report::lines`], on one line.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.lines().join("; "))
    }
}

impl Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.place)?;
        if let Some(id) = self.annotation {
            write!(formatter, " annotation {id}")?;
        }
        if !self.found.is_empty() {
            write!(formatter, " ({})", self.found)?;
        }
        Ok(())
    }
}

impl ProblemKind {
    /// Singular, plural, and what is wrong with them.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::BadEntry => ("entry", "entries", "that cannot be read"),
            Self::UnnamedClass => ("class", "classes", "without a name, as there is no classes.txt or data.yaml"),
            Self::RepeatedClass => ("class", "classes", "with an id already used"),
            Self::RepeatedImage => ("image", "images", "with an id already used"),
            Self::RepeatedFileName => ("image", "images", "with a file name already used"),
            Self::NoFileName => ("image", "images", "without file name"),
            Self::NoSize => ("image", "images", "without width and height"),
            Self::Unreadable => ("image", "images", "that cannot be read"),
            Self::UnknownName => ("name", "names", "in the list without an image"),
            Self::UnknownImage => ("box", "boxes", "on unknown images"),
            Self::DroppedImage => ("box", "boxes", "on dropped images"),
            Self::UnknownClass => ("box", "boxes", "of unknown category"),
            Self::RepeatedAnnotation => ("box", "boxes", "with an annotation id already used"),
            Self::NotFinite => ("box", "boxes", "with infinite coordinates"),
            Self::NoArea => ("box", "boxes", "of zero area"),
            Self::Outside => ("box", "boxes", "outside the image"),
            Self::PartlyOutside => ("box", "boxes", "partly outside the image"),
            Self::Overshoot => ("box", "boxes", "up to a pixel over the edge"),
        }
    }

    /// Whether [`OnProblem::Refuse`] refuses it.
    fn is_serious(self) -> bool {
        !matches!(self, Self::Overshoot | Self::RepeatedAnnotation | Self::UnnamedClass)
    }

    /// What happened to the entries, with a leading space.
    fn outcome(self, on_problem: OnProblem) -> &'static str {
        match (on_problem, self) {
            (OnProblem::Refuse, _) => "",
            (_, Self::RepeatedAnnotation | Self::UnnamedClass) => " kept",
            (OnProblem::Drop, Self::PartlyOutside | Self::Overshoot) => " clipped",
            (OnProblem::Drop, _) => " dropped",
            // There is no image or class to keep these for.
            (OnProblem::Keep, Self::BadEntry | Self::RepeatedClass | Self::RepeatedImage | Self::UnknownName) => {
                " dropped"
            }
            (OnProblem::Keep, Self::UnknownImage | Self::DroppedImage | Self::UnknownClass) => " dropped",
            (OnProblem::Keep, _) => " kept",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ProblemKind, place: &str, annotation: Option<i64>) -> Problem {
        Problem { kind, place: place.to_owned(), annotation, found: String::new() }
    }

    #[test]
    fn problems_are_counted_by_kind_and_the_first_are_named() {
        let problems = vec![
            problem(ProblemKind::NoArea, "BloodImage_00343.jpg", Some(2288)),
            problem(ProblemKind::RepeatedFileName, "a.jpg", None),
            problem(ProblemKind::NoArea, "BloodImage_00338.jpg", Some(887)),
        ];
        let report = |on_problem| Report { on_problem, problems: problems.clone() }.to_string();
        assert_eq!(
            report(OnProblem::Drop),
            "1 image with a file name already used dropped: a.jpg; \
             2 boxes of zero area dropped: BloodImage_00343.jpg annotation 2288, BloodImage_00338.jpg annotation 887"
        );
        assert!(report(OnProblem::Keep).contains("2 boxes of zero area kept: BloodImage_00343.jpg annotation 2288, "));
        assert!(report(OnProblem::Refuse).contains("2 boxes of zero area: BloodImage_00343.jpg annotation 2288, "));
    }

    #[test]
    fn a_long_list_is_named_in_part() {
        assert_eq!(named(&[1, 2, 3, 4, 5]), "1, 2, 3, 4, 5");
        assert_eq!(named(&[1, 2, 3, 4, 5, 6, 7]), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn a_report_without_problems_is_empty() {
        let report = Report { on_problem: OnProblem::Drop, problems: vec![] };
        assert!(!report.is_serious());
        assert_eq!(report.to_string(), "");
    }
}
