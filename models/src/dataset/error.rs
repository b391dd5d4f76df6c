//! Errors of reading data sets.

use std::io;
use std::path::{Path, PathBuf};

use super::report::{Problem, Report};

/// Why a data set could not be read. The messages include their causes, so no variant has a `source`.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder cannot be read.
    #[error("cannot read `{}`: {reason}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the file system.
        reason: io::Error,
    },
    /// The file is not JSON, or a field is missing or has the wrong type.
    #[error("`{}` is not {expected}: {reason}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The expected content.
        expected: &'static str,
        /// What is wrong, with line and column.
        reason: serde_json::Error,
    },
    /// A line is invalid.
    #[error("`{}` line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// The offending text, and what was expected.
        reason: String,
    },
    /// A file or folder is not as expected.
    #[error("`{}` {reason}", .path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, beginning with a verb, and the next step.
        reason: String,
    },
    /// The files are well-formed, but entries are invalid and [`OnProblem::Refuse`](super::OnProblem::Refuse) was set.
    #[error("`{}` has invalid entries: {report}; correct or remove them", .path.display())]
    Refused {
        /// The file or folder of annotations.
        path: PathBuf,
        /// The problems.
        report: Report,
    },
    /// The data set has no usable images.
    #[error("`{}` has no usable images{}; image folder: `{}`", .path.display(), details(.report), .folder.display())]
    NoImages {
        /// The file or folder of annotations.
        path: PathBuf,
        /// The image folder.
        folder: PathBuf,
        /// The problems, such as why images were dropped.
        report: Report,
    },
}

impl DataError {
    pub(super) fn line(path: &Path, line: impl Into<u64>, reason: impl Into<String>) -> Self {
        Self::Line { path: path.to_owned(), line: line.into(), reason: reason.into() }
    }

    pub(crate) fn bad_entry(path: &Path, problem: &Problem) -> Self {
        Self::invalid(path, format!("has the invalid entry {problem}"))
    }

    pub(super) fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }
}

/// A colon and the problems; empty without problems.
fn details(report: &Report) -> String {
    let problems = report.to_string();
    if problems.is_empty() { problems } else { format!(": {problems}") }
}
