//! Why a data set could not be read.

use std::io;
use std::path::{Path, PathBuf};

use super::report::Report;

/// Why a data set could not be read. Messages are complete: no variant has a source that a chain would print again.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system says no.
    #[error("cannot read `{}`: {reason}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        reason: io::Error,
    },
    /// Not JSON, or a field is missing or of a wrong type; the reason says which, in which line and column.
    #[error("`{}` is not {expected}: {reason}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is wrong, and where.
        reason: serde_json::Error,
    },
    /// A line makes no sense.
    #[error("`{}` line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// The offending text, and what it should be.
        reason: String,
    },
    /// A file or folder is not what it is given for.
    #[error("`{}` {reason}", .path.display())]
    Unfit {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, beginning with a verb, and the next step.
        reason: String,
    },
    /// What was read is well-formed, and entries of it make no sense.
    #[error("`{}` has entries that make no sense: {report}; correct them or have them dropped", .path.display())]
    Refused {
        /// The file or folder of annotations.
        path: PathBuf,
        /// What is wrong.
        report: Report,
    },
    /// There are no images, or none that can be used.
    #[error("`{}` gives no images{}; file names start from `{}`", .path.display(), because(.report), .folder.display())]
    NoImages {
        /// The file or folder of annotations.
        path: PathBuf,
        /// The folder of the images.
        folder: PathBuf,
        /// What became of them.
        report: Report,
    },
}

impl DataError {
    pub(super) fn line(path: &Path, line: impl Into<u64>, reason: impl Into<String>) -> Self {
        Self::Line { path: path.to_owned(), line: line.into(), reason: reason.into() }
    }

    pub(super) fn unfit(path: &Path, reason: impl Into<String>) -> Self {
        Self::Unfit { path: path.to_owned(), reason: reason.into() }
    }
}

/// The problems after a colon, where there are any.
fn because(report: &Report) -> String {
    let problems = report.to_string();
    if problems.is_empty() { problems } else { format!(": {problems}") }
}
