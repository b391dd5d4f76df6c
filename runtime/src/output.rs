//! Output of results: a report per image, in several formats.

mod coco;
mod csv;
mod folder;
mod json;
mod report_writer;
mod table;
mod target;
mod text;
mod yolo;

use std::io;
use std::path::{Path, PathBuf};

use image::RgbImage;
use models::spec::Class;

use crate::image_file::DecodeError;
use crate::video::Frame;
use crate::{Detection, Detector, DetectorError};
pub use coco::{ImageIds, ImageIdsError, NoImageId};
pub use folder::{UniqueNames, folder_name};
pub use json::{detections_schema, outcome_json};
pub use report_writer::{ReportWriter, ReportWriterError};
pub use table::aligned;
pub use target::{Target, print};
pub use yolo::{yolo, yolo_data, yolo_with_scores};

/// The result of one image or frame.
#[derive(Debug)]
pub struct Report {
    /// The image file, as the user named it.
    pub file: PathBuf,
    /// The frame, if the file is a video.
    pub frame: Option<Frame>,
    /// The detections, or why there are none.
    pub outcome: Result<Found, Failure>,
}

impl Report {
    /// The name of the image or frame in messages.
    pub fn name(&self) -> String {
        match self.frame {
            None => self.file.display().to_string(),
            Some(Frame { number, time }) => format!("{}, frame {number} ({time:.2} s)", self.file.display()),
        }
    }
}

/// Why an image has no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// The detector failed.
    #[error(transparent)]
    Detector(#[from] DetectorError),
    /// There is no image, for this reason.
    #[error("{0}")]
    Missing(String),
}

/// The detections in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Width of the upright image, in pixels.
    pub width: u32,
    /// Height of the upright image, in pixels.
    pub height: u32,
    /// Highest score first, with boxes in pixels of the original image (upright, after EXIF rotation).
    pub detections: Vec<Detection>,
}

impl Found {
    /// The detections of `detector` in an image.
    ///
    /// # Errors
    /// As [`Detector::detect`].
    pub fn detect(detector: &Detector, image: &RgbImage) -> Result<Self, DetectorError> {
        let (width, height) = image.dimensions();
        Ok(Self { width, height, detections: detector.detect(image)? })
    }
}

/// Output formats.
#[derive(Clone, Debug)]
pub enum Format {
    /// A JSON list with one object per image, including failed images.
    Json,
    /// The same objects, one per line.
    Ndjson,
    /// COCO results: a JSON list with one object per detection.
    Coco(ImageIds),
    /// A header, then one line per detection.
    Csv,
    /// Human-readable text.
    Text,
}

/// Writes reports in one format to stdout or to a file. A file gets its name in [`Output::finish`]; NDJSON, which can be read
/// as it grows, at the first report.
#[derive(Debug)]
pub struct Output {
    format: Format,
    target: Target,
    /// Number of reports written so far; for COCO results, of detections.
    count: usize,
}

impl Output {
    /// Opens `path` for writing; `-` is stdout.
    ///
    /// # Errors
    /// When `path` cannot be written.
    pub fn open(path: &Path, format: Format) -> io::Result<Self> {
        Ok(Self { format, target: Target::open(path)?, count: 0 })
    }

    /// As [`Output::open`], but adds to a file that exists. Only for formats without beginning and end, such as NDJSON.
    ///
    /// # Errors
    /// When `path` cannot be written.
    pub fn append(path: &Path, format: Format) -> io::Result<Self> {
        Ok(Self { format, target: Target::append(path)?, count: 0 })
    }

    /// Writes a report; `classes` are the classes of the spec. Flushes, unless writing to a file. After the reader of
    /// stdout has closed it, reports are discarded without an error.
    ///
    /// # Errors
    /// I/O errors, and for COCO results when the image has no id.
    pub fn write(&mut self, report: &Report, classes: &[Class]) -> io::Result<()> {
        let written = match &self.format {
            Format::Coco(ids) => {
                self.count = coco::write(&mut self.target, report, classes, ids, self.count)?;
                return self.target.flush_unless_file();
            }
            Format::Json => json::write(&mut self.target, report, classes, self.count),
            Format::Ndjson => {
                self.target.publish()?;
                json::write_line(&mut self.target, report, classes)
            }
            Format::Csv => csv::write(&mut self.target, report, classes, self.count),
            Format::Text => text::write(&mut self.target, report, classes),
        };
        self.count += 1;
        written.and_then(|()| self.target.flush_unless_file())
    }

    /// Whether the reader has closed stdout or the pipe.
    pub fn is_closed(&self) -> bool {
        matches!(self.target, Target::Closed)
    }

    /// Completes the output and gives a file its name.
    ///
    /// # Errors
    /// I/O errors.
    pub fn finish(mut self) -> io::Result<()> {
        let ended = match self.format {
            Format::Json | Format::Coco(_) => json::end(&mut self.target, self.count),
            Format::Csv => csv::begin(&mut self.target, self.count),
            Format::Ndjson | Format::Text => Ok(()),
        };
        ended.and_then(|()| self.target.commit())
    }
}

#[cfg(test)]
mod samples {
    use super::*;
    use models::BoundingBox;

    /// Class names with all characters that a format must quote.
    pub(super) fn classes() -> Vec<Class> {
        vec![Class { id: 7, name: "cat".to_owned() }, Class { id: 90, name: "a \"b\", c".to_owned() }]
    }

    /// An image with two detections, one without detections, a failed one, and a frame of a video.
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
