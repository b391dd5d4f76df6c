//! Results: what became of every image, in the formats that people and programs read.

mod coco;
mod csv;
mod compact_json;
mod folder;
mod json;
mod report_writer;
mod table;
mod target;
mod text;
mod yolo;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use models::spec::Class;

use crate::image_file::DecodeError;
use crate::video::Frame;
use crate::{Detection, DetectorError};
pub use coco::{ImageIds, ImageIdsError, NoImageId};
pub use folder::{Names, folder_name};
pub use json::outcome_json;
pub use report_writer::{ReportWriter, ReportWriterError};
pub use table::aligned;
pub use target::{Target, print};
pub use yolo::yolo;

/// What became of one image.
#[derive(Debug)]
pub struct Report {
    /// The image, as the user named it.
    pub file: PathBuf,
    /// Which frame of it this is about, if it is a video.
    pub frame: Option<Frame>,
    /// What was found in it, or why nothing could be.
    pub outcome: Result<Found, Failure>,
}

impl Report {
    /// What messages call the image.
    pub fn name(&self) -> String {
        match self.frame {
            None => self.file.display().to_string(),
            Some(Frame { number, time }) => format!("{}, frame {number} ({time:.2} s)", self.file.display()),
        }
    }
}

/// Why nothing could be found in an image.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It could not be read.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// The detector failed, which images of one run share.
    #[error(transparent)]
    Detector(#[from] Arc<DetectorError>),
    /// There is none, for this reason.
    #[error("{0}")]
    Missing(String),
}

/// What was found in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Pixels of the upright image.
    pub width: u32,
    /// Pixels of the upright image.
    pub height: u32,
    /// The best first.
    pub detections: Vec<Detection>,
}

/// Formats of results.
#[derive(Clone, Debug)]
pub enum Format {
    /// A list with one object per image, failed ones included.
    Json,
    /// The same objects, one per line.
    Ndjson,
    /// COCO's results: a list with one object per detection.
    Coco(ImageIds),
    /// One line per detection, after a line with the names of the columns.
    Csv,
    /// Lines for people.
    Text,
}

/// A stream of reports in one format, to stdout or to a file. A file appears under its name when the stream is finished.
#[derive(Debug)]
pub struct Output {
    format: Format,
    target: Target,
    /// Reports written so far; of COCO's results detections.
    count: usize,
}

impl Output {
    /// Opens a stream to `path`, where `-` is stdout.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn open(path: &Path, format: Format) -> io::Result<Self> {
        Ok(Self { format, target: Target::open(path)?, count: 0 })
    }

    /// Appends a report; `classes` are those of the spec. On stdout it is visible at once. When nobody reads stdout
    /// anymore, this and later reports go nowhere, which is no error.
    ///
    /// # Errors
    /// Those of the file system, and for COCO's results when the image has no id.
    pub fn write(&mut self, report: &Report, classes: &[Class]) -> io::Result<()> {
        let written = match &self.format {
            Format::Coco(ids) => {
                self.count = coco::write(&mut self.target, report, classes, ids, self.count)?;
                return self.target.show();
            }
            Format::Json => json::write(&mut self.target, report, classes, self.count),
            Format::Ndjson => json::write_line(&mut self.target, report, classes),
            Format::Csv => csv::write(&mut self.target, report, classes, self.count),
            Format::Text => text::write(&mut self.target, report, classes),
        };
        self.count += 1;
        written.and_then(|()| self.target.show())
    }

    /// Whether nobody reads what is written.
    pub fn is_closed(&self) -> bool {
        matches!(self.target, Target::Closed)
    }

    /// Ends the stream and gives a file its name.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(mut self) -> io::Result<()> {
        let ended = match self.format {
            Format::Json => json::end(&mut self.target, self.count),
            Format::Csv => csv::begin(&mut self.target, self.count),
            Format::Coco(_) => coco::end(&mut self.target, self.count),
            Format::Ndjson | Format::Text => Ok(()),
        };
        ended.and_then(|()| self.target.commit())
    }
}

#[cfg(test)]
mod samples {
    use super::*;
    use models::BoundingBox;

    /// Classes with every sign that a format must quote.
    pub(super) fn classes() -> Vec<Class> {
        vec![Class { id: 7, name: "cat".to_owned() }, Class { id: 90, name: "a \"b\", c".to_owned() }]
    }

    /// An image with two detections, one with none, one that failed, and a frame of a video.
    pub(super) fn reports() -> Vec<Report> {
        let detections = vec![
            Detection { class_index: 1, score: 0.875, bounding_box: BoundingBox::new(1.0, 2.5, 30.25, 40.0) },
            Detection { class_index: 0, score: 0.5, bounding_box: BoundingBox::new(0.0, 0.0, 4.0, 8.0) },
        ];
        vec![
            Report {
                file: "a.jpg".into(),
                frame: None,
                outcome: Ok(Found { width: 64, height: 48, detections: detections.clone() }),
            },
            Report {
                file: "b, c.jpg".into(),
                frame: None,
                outcome: Ok(Found { width: 1, height: 2, detections: Vec::new() }),
            },
            Report { file: "d.jpg".into(), frame: None, outcome: Err(DecodeError::Truncated.into()) },
            Report {
                file: "e.mp4".into(),
                frame: Some(Frame { number: 3, time: 0.125 }),
                outcome: Ok(Found { width: 16, height: 16, detections: detections[1..].to_vec() }),
            },
        ]
    }
}
