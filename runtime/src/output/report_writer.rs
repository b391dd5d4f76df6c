//! Numbers that a command ends with: a table for people, JSON for programs.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Target, compact_json, print};

/// Where the numbers go: as JSON to where that was asked for, and as a table to stdout unless the JSON goes there.
#[derive(Debug)]
pub struct ReportWriter {
    json: Option<(PathBuf, Target)>,
}

/// Numbers that can't be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {reason}", Target::name(.path))]
pub struct ReportWriterError {
    /// The file, or `-` for stdout.
    pub path: PathBuf,
    /// Why.
    pub reason: io::Error,
}

impl ReportWriter {
    /// Opens what is written to, so that what can't be written is found before the work. `json` is a file, or `-`.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn open(json: Option<&Path>) -> Result<Self, ReportWriterError> {
        let json = json.map(|path| match Target::open(path) {
            Ok(target) => Ok((path.to_owned(), target)),
            Err(reason) => Err(ReportWriterError { path: path.to_owned(), reason }),
        });
        Ok(Self { json: json.transpose()? })
    }

    /// Writes the numbers; `table` comes without the last line's end.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn publish(self, numbers: &impl Serialize, table: &str) -> Result<(), ReportWriterError> {
        let mut tabulated = true;
        if let Some((path, mut target)) = self.json {
            tabulated = !matches!(target, Target::Stdout(_));
            let written = compact_json::write(numbers, &mut target).and_then(|()| target.commit());
            written.map_err(|reason| ReportWriterError { path, reason })?;
        }
        if tabulated {
            print(table).map_err(|reason| ReportWriterError { path: "-".into(), reason })?;
        }
        Ok(())
    }
}
