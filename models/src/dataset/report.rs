//! The problems of a data set, counted by kind.

use std::fmt::{self, Display};

/// What to do with invalid entries of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnProblem {
    /// Return an error.
    Refuse,
    /// Drop them, clip boxes to their image, and report both. For training.
    Drop,
    /// Keep them unchanged where possible, and report them. For evaluation: pycocotools counts such boxes too, so
    /// results stay comparable.
    Keep,
}

/// An invalid entry of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is wrong.
    pub kind: ProblemKind,
    /// The image (file name or id), class or list entry.
    pub location: String,
    /// Id of the annotation, if the problem is about one.
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
    /// An image has the file name of an earlier one.
    RepeatedFileName,
    /// An image has no file name.
    NoFileName,
    /// The width or height of an image is missing or zero.
    NoSize,
    /// The image file, the only source of the size, is missing or not an image.
    Unreadable,
    /// The image list has an entry that matches no image.
    UnknownName,
    /// A box has the id of an image that does not exist.
    UnknownImage,
    /// A box is on an image that was dropped.
    DroppedImage,
    /// A box has a class that does not exist.
    UnknownClass,
    /// A box has the id of an earlier one. Never refused; pycocotools then matches wrongly.
    RepeatedAnnotation,
    /// A coordinate or area is infinite or NaN.
    NotFinite,
    /// A box has a width or height of zero or less.
    NoArea,
    /// A box is completely outside its image.
    Outside,
    /// A box extends beyond its image by more than a pixel.
    PartlyOutside,
    /// A box extends beyond its image by up to a pixel, as boxes with 1-based or rounded coordinates do. Never refused.
    Overshoot,
}

/// The problems of one data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What was done with the entries.
    pub on_problem: OnProblem,
    /// The problems, in the order they were found.
    pub problems: Vec<Problem>,
}

impl Problem {
    /// An entry on a line of a text file.
    pub(super) fn in_line(file: &str, line: u64, found: String) -> Self {
        Self { kind: ProblemKind::BadEntry, location: format!("{file} line {line}"), annotation: None, found }
    }

    /// A class that has an index only.
    pub(super) fn unnamed_class(index: &str) -> Self {
        Self { kind: ProblemKind::UnnamedClass, location: index.to_owned(), annotation: None, found: String::new() }
    }
}

impl Report {
    /// Maximum number of entries of a kind in a message.
    pub(super) const MAX_SHOWN: usize = 5;

    /// Number of problems of one kind.
    pub fn count(&self, kind: ProblemKind) -> usize {
        self.problems.iter().filter(|problem| problem.kind == kind).count()
    }

    /// Whether [`OnProblem::Refuse`] refuses the data set.
    pub fn is_serious(&self) -> bool {
        self.problems.iter().any(|problem| problem.kind.is_serious())
    }

    /// One line per kind of problem: how many there are, what was done with them, and the first few.
    pub fn lines(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.problems.iter().map(|problem| problem.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.into_iter().map(|kind| self.line(kind)).collect()
    }

    fn line(&self, kind: ProblemKind) -> String {
        let found: Vec<_> = self.problems.iter().filter(|problem| problem.kind == kind).collect();
        let (singular, plural, description) = kind.words();
        let outcome = kind.outcome(self.on_problem);
        let noun = if found.len() == 1 { singular } else { plural };
        format!("{} {noun} {description}{outcome}: {}", found.len(), format_list(&found))
    }
}

/// The first few entries of a list as text, and how many more there are.
pub fn format_list(list: &[impl Display]) -> String {
    let mut text = list.iter().take(Report::MAX_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if list.len() > Report::MAX_SHOWN {
        text += &format!(" and {} more", list.len() - Report::MAX_SHOWN);
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
        formatter.write_str(&self.location)?;
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
    /// Singular, plural, and a description of the problem.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::BadEntry => ("entry", "entries", "that cannot be read"),
            Self::UnnamedClass => ("class", "classes", "without a name (no classes.txt or data.yaml)"),
            Self::RepeatedClass => ("class", "classes", "with a duplicate id"),
            Self::RepeatedImage => ("image", "images", "with a duplicate id"),
            Self::RepeatedFileName => ("image", "images", "with a duplicate file name"),
            Self::NoFileName => ("image", "images", "without a file name"),
            Self::NoSize => ("image", "images", "without width or height"),
            Self::Unreadable => ("image", "images", "that cannot be read"),
            Self::UnknownName => ("list entry", "list entries", "without a matching image"),
            Self::UnknownImage => ("box", "boxes", "with an unknown image id"),
            Self::DroppedImage => ("box", "boxes", "on dropped images"),
            Self::RepeatedAnnotation => {
                ("box", "boxes", "with a duplicate annotation id (pycocotools computes other metrics)")
            }
            Self::UnknownClass => ("box", "boxes", "with an unknown class"),
            Self::NotFinite => ("box", "boxes", "with NaN or infinite values"),
            Self::NoArea => ("box", "boxes", "of zero area"),
            Self::Outside => ("box", "boxes", "outside the image"),
            Self::PartlyOutside => ("box", "boxes", "partly outside the image"),
            Self::Overshoot => ("box", "boxes", "up to 1 pixel outside the image"),
        }
    }

    /// Whether [`OnProblem::Refuse`] refuses it.
    fn is_serious(self) -> bool {
        !matches!(self, Self::Overshoot | Self::RepeatedAnnotation | Self::UnnamedClass)
    }

    /// What was done with the entries, with a leading comma.
    fn outcome(self, on_problem: OnProblem) -> &'static str {
        match (on_problem, self) {
            (OnProblem::Refuse, _) => "",
            (_, Self::RepeatedAnnotation | Self::UnnamedClass) => ", kept",
            (OnProblem::Drop, Self::PartlyOutside | Self::Overshoot) => ", clipped",
            (OnProblem::Drop, _) => ", dropped",
            // These cannot be kept: their image or class is missing or ambiguous.
            (OnProblem::Keep, Self::BadEntry | Self::RepeatedClass | Self::RepeatedImage | Self::UnknownName) => {
                ", dropped"
            }
            (OnProblem::Keep, Self::UnknownImage | Self::DroppedImage | Self::UnknownClass) => ", dropped",
            (OnProblem::Keep, _) => ", kept",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: ProblemKind, location: &str, annotation: Option<i64>) -> Problem {
        Problem { kind, location: location.to_owned(), annotation, found: String::new() }
    }

    #[test]
    fn problems_are_counted_by_kind_and_the_first_are_shown() {
        let problems = vec![
            problem(ProblemKind::NoArea, "BloodImage_00343.jpg", Some(2288)),
            problem(ProblemKind::RepeatedFileName, "a.jpg", None),
            problem(ProblemKind::NoArea, "BloodImage_00338.jpg", Some(887)),
        ];
        let report = |on_problem| Report { on_problem, problems: problems.clone() }.to_string();
        assert_eq!(
            report(OnProblem::Drop),
            "1 image with a duplicate file name, dropped: a.jpg; \
             2 boxes of zero area, dropped: BloodImage_00343.jpg annotation 2288, BloodImage_00338.jpg annotation 887"
        );
        assert!(report(OnProblem::Keep).contains("2 boxes of zero area, kept: BloodImage_00343.jpg annotation 2288, "));
        assert!(report(OnProblem::Refuse).contains("2 boxes of zero area: BloodImage_00343.jpg annotation 2288, "));
    }

    #[test]
    fn long_lists_are_truncated() {
        assert_eq!(format_list(&[1, 2, 3, 4, 5]), "1, 2, 3, 4, 5");
        assert_eq!(format_list(&[1, 2, 3, 4, 5, 6, 7]), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn report_without_problems_is_empty() {
        let report = Report { on_problem: OnProblem::Drop, problems: vec![] };
        assert!(!report.is_serious());
        assert_eq!(report.to_string(), "");
    }
}
