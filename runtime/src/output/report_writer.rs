//! Writes the final numbers of a command: as a table for people and as JSON for programs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::target::{Target, print};

/// Writes numbers as JSON to a file or stdout, if requested, and as a table to stdout unless the JSON goes there.
#[derive(Debug)]
pub struct ReportWriter {
    json: Option<(PathBuf, Target)>,
}

/// Error of writing the numbers.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {reason}", Target::name(.path))]
pub struct ReportWriterError {
    /// The file, or `-` for stdout.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: io::Error,
}

impl ReportWriter {
    /// Opens the JSON file, so that a program finds out before its work if it is not writable. `json` is a path, or `-`
    /// for stdout.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(json: Option<&Path>) -> Result<Self, ReportWriterError> {
        let json = json.map(|path| match Target::open(path) {
            Ok(target) => Ok((path.to_owned(), target)),
            Err(reason) => Err(ReportWriterError { path: path.to_owned(), reason }),
        });
        Ok(Self { json: json.transpose()? })
    }

    /// Writes the numbers; `table` has no final line feed.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn publish(self, numbers: &impl Serialize, table: &str) -> Result<(), ReportWriterError> {
        let mut print_table = true;
        if let Some((path, mut target)) = self.json {
            print_table = !matches!(target, Target::Stdout(_));
            let written = serde_json::to_writer_pretty(&mut target, numbers).map_err(io::Error::from);
            let written = written.and_then(|()| target.write_all(b"\n")).and_then(|()| target.commit());
            written.map_err(|reason| ReportWriterError { path, reason })?;
        }
        if print_table {
            print(table).map_err(|reason| ReportWriterError { path: "-".into(), reason })?;
        }
        Ok(())
    }
}
