//! JSON: a list with one object per image, each on its own line.

use std::io::{self, Write};

use models::spec::Class;
use schemars::{JsonSchema, Schema};
use serde::Serialize;

use super::{Failure, Found, Report};
use crate::schema;
use crate::video::Frame;

/// The schema of a list of images.
pub fn detections_schema() -> Schema {
    schema::written::<Vec<Image>>()
}

/// The object of one image.
#[derive(Serialize, JsonSchema)]
struct Image<'a> {
    /// The image file, as the user named it.
    file: String,
    #[serde(flatten)]
    frame: Option<FrameFields>,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

/// Failed images have `error` instead of the other fields.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Outcome<'a> {
    /// An image that was read.
    Found {
        /// Width of the original image, upright.
        width: u32,
        /// Height of the original image, upright.
        height: u32,
        /// Its detections, highest score first.
        detections: Vec<Object<'a>>,
    },
    /// An image that could not be read, or not be detected in.
    Failed {
        /// The reason.
        error: String,
    },
}

/// The frame of a video.
#[derive(Serialize, JsonSchema)]
struct FrameFields {
    /// Frame number, from 0.
    frame: u64,
    /// Time since the start of the video, in seconds.
    time: f64,
}

/// A detection.
#[derive(Serialize, JsonSchema)]
struct Object<'a> {
    /// Name of the class.
    label: &'a str,
    /// Id of the class in the data that the model was trained on.
    category_id: i64,
    /// In (0, 1).
    score: f32,
    /// `x1, y1, x2, y2` in pixels of the original image (upright, after EXIF rotation).
    #[serde(rename = "box")]
    corners: [f32; 4],
}

/// `earlier` is the number of reports written before.
pub(super) fn write(out: &mut impl Write, report: &Report, classes: &[Class], earlier: usize) -> io::Result<()> {
    begin_item(out, earlier)?;
    write_object(out, report, classes)
}

/// Begins a list, or separates its next item from the `earlier` ones.
pub(super) fn begin_item(out: &mut impl Write, earlier: usize) -> io::Result<()> {
    out.write_all(if earlier == 0 { b"[\n" } else { b",\n" })
}

/// Ends a list of `items`.
pub(super) fn end(out: &mut impl Write, items: usize) -> io::Result<()> {
    out.write_all(if items == 0 { b"[]\n" } else { b"\n]\n" })
}

/// Writes the same object as a line of NDJSON.
pub(super) fn write_line(out: &mut impl Write, report: &Report, classes: &[Class]) -> io::Result<()> {
    write_object(out, report, classes)?;
    out.write_all(b"\n")
}

fn write_object(out: &mut impl Write, report: &Report, classes: &[Class]) -> io::Result<()> {
    let file = report.file.to_string_lossy().into_owned();
    let frame = report.frame.map(|Frame { number, time }| FrameFields { frame: number, time });
    let image = Image { file, frame, outcome: Outcome::new(&report.outcome, classes) };
    serde_json::to_writer(out, &image).map_err(io::Error::from)
}

/// The JSON object of an image without `file`: its detections or `error`. `classes` are the classes of the spec.
pub fn outcome_json(outcome: &Result<Found, Failure>, classes: &[Class]) -> String {
    serde_json::to_string(&Outcome::new(outcome, classes)).expect("names and numbers are JSON")
}

impl<'a> Outcome<'a> {
    fn new(outcome: &Result<Found, Failure>, classes: &'a [Class]) -> Self {
        match outcome {
            Ok(Found { width, height, detections }) => {
                let objects = detections.iter().map(|detection| Object {
                    label: &classes[detection.class_index].name,
                    category_id: classes[detection.class_index].id,
                    score: detection.score,
                    corners: detection.bounding_box.into(),
                });
                Self::Found { width: *width, height: *height, detections: objects.collect() }
            }
            Err(failure) => Self::Failed { error: failure.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples;
    use super::*;

    fn text(reports: &[Report]) -> String {
        let mut out = Vec::new();
        for (earlier, report) in reports.iter().enumerate() {
            write(&mut out, report, &samples::classes(), earlier).unwrap();
        }
        end(&mut out, reports.len()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_image_is_an_object_in_the_list() {
        let expected = json!([
            {"file": "a.jpg", "width": 64, "height": 48, "detections": [
                {"label": "a \"b\", c", "category_id": 90, "score": 0.875, "box": [1.0, 2.5, 30.25, 40.0]},
                {"label": "cat", "category_id": 7, "score": 0.5, "box": [0.0, 0.0, 4.0, 8.0]},
            ]},
            {"file": "b, c.jpg", "width": 1, "height": 2, "detections": []},
            {"file": "d.jpg", "error": "the file is truncated"},
            {"file": "e.mp4", "frame": 3, "time": 0.125, "width": 16, "height": 16, "detections": [
                {"label": "cat", "category_id": 7, "score": 0.5, "box": [0.0, 0.0, 4.0, 8.0]},
            ]},
        ]);
        let text = text(&samples::reports());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        assert_eq!(text.lines().count(), 6);
    }

    #[test]
    fn ndjson_has_the_objects_of_the_json_list() {
        let mut out = Vec::new();
        for report in samples::reports() {
            write_line(&mut out, &report, &samples::classes()).unwrap();
        }
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(Value::from(lines), serde_json::from_str::<Value>(&text(&samples::reports())).unwrap());
    }

    #[test]
    fn no_images_give_an_empty_list() {
        assert_eq!(serde_json::from_str::<Value>(&text(&[])).unwrap(), json!([]));
    }
}
