//! Where a report goes.

use std::io;
use std::path::{Path, PathBuf};

use super::{EvaluationReport, json};
use crate::output::{Target, print};

/// Where a report goes: as JSON to where that is wanted, and as tables to stdout unless the JSON goes there.
#[derive(Debug)]
pub struct Publication {
    json: Option<(PathBuf, Target)>,
}

/// Why a report is not where it should be.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {reason}", Target::name(.path))]
pub struct PublicationError {
    /// What cannot be written; `-` is stdout.
    path: PathBuf,
    /// What the system says.
    reason: io::Error,
}

impl Publication {
    /// Opens what is written to, so that what cannot be written is found before the work; `-` is stdout.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn open(json: Option<&Path>) -> Result<Self, PublicationError> {
        let open = |path: &Path| {
            let path = path.to_owned();
            match Target::open(&path) {
                Ok(target) => Ok((path, target)),
                Err(reason) => Err(PublicationError { path, reason }),
            }
        };
        Ok(Self { json: json.map(open).transpose()? })
    }

    /// Writes the report.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(self, report: &EvaluationReport) -> Result<(), PublicationError> {
        let mut tabulated = true;
        if let Some((path, mut target)) = self.json {
            tabulated = !matches!(target, Target::Stdout(_));
            let written = json::write(report, &mut target).and_then(|()| target.commit());
            written.map_err(|reason| PublicationError { path, reason })?;
        }
        if tabulated {
            print(&report.to_string()).map_err(|reason| PublicationError { path: "-".into(), reason })?;
        }
        Ok(())
    }
}
