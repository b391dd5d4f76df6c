//! COCO results: one list of all detections, as `runtime score` and pycocotools read it.
//! <https://cocodataset.org/#format-results>

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use models::spec::Class;
use serde::{Deserialize, Serialize};

use super::{Report, json};

/// Image ids, which identify images in COCO results.
#[derive(Clone, Debug, Default)]
pub struct ImageIds {
    /// The ids of a COCO file; if absent, the number in an image's file name is its id.
    listed: Option<Arc<Listed>>,
}

/// File names with their ids, by the last component of the file name.
type Listed = HashMap<String, Vec<(PathBuf, i64)>>;

/// Error of reading image ids.
#[derive(Debug, thiserror::Error)]
#[error("cannot read image ids from `{}`: {reason}; expected a COCO file whose `images` have `id` and `file_name`",
    .path.display())]
pub struct ImageIdsError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    pub reason: String,
}

/// Why an image has no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoImageId {
    /// No COCO file is given, and the file name is not a number.
    #[error("the file name is not a number to use as image id; pass a COCO file as --image-ids")]
    Name,
    /// The COCO file does not contain the image.
    #[error("no `file_name` in --image-ids matches this image; pass the image under its name in that file")]
    Unlisted,
    /// The COCO file contains several images that it may be.
    #[error("several `file_name`s in --image-ids match this image; include its folders in the path")]
    Ambiguous,
    /// The image is a frame of a video.
    #[error("frames of a video have no image ids; use --json, --ndjson or --csv instead of --coco")]
    Frame,
}

impl ImageIds {
    /// Reads the ids from `images` of a COCO file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a COCO file.
    pub fn read(path: &Path) -> Result<Self, ImageIdsError> {
        #[derive(Deserialize)]
        struct Truth {
            images: Vec<Image>,
        }
        #[derive(Deserialize)]
        struct Image {
            id: i64,
            file_name: PathBuf,
        }
        let error = |reason: String| ImageIdsError { path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(|reason| error(reason.to_string()))?;
        let truth: Truth = serde_json::from_slice(&bytes).map_err(|reason| error(reason.to_string()))?;
        Ok(Self::new(truth.images.into_iter().map(|Image { id, file_name }| (file_name, id))))
    }

    /// The ids of images with these file names.
    pub fn new(images: impl IntoIterator<Item = (PathBuf, i64)>) -> Self {
        let mut listed = Listed::new();
        for (file_name, id) in images {
            listed.entry(last_component(&file_name)).or_default().push((file_name, id));
        }
        Self { listed: Some(Arc::new(listed)) }
    }

    /// The id of an image. With a COCO file: the id of the only `file_name` that the path ends with or, if there is
    /// none, of the only one with the same last component. Without: the number in the file name, as for COCO's own
    /// images.
    ///
    /// # Errors
    /// When there is no id, or more than one.
    pub fn of(&self, file: &Path) -> Result<i64, NoImageId> {
        let Some(listed) = &self.listed else {
            return file.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).ok_or(NoImageId::Name);
        };
        let same = listed.get(&last_component(file)).map(Vec::as_slice).unwrap_or_default();
        let suffixes: Vec<_> = same.iter().filter(|(name, _)| file.ends_with(name)).collect();
        match (&suffixes[..], same) {
            ([(_, id)], _) | ([], [(_, id)]) => Ok(*id),
            ([], []) => Err(NoImageId::Unlisted),
            _ => Err(NoImageId::Ambiguous),
        }
    }
}

fn last_component(name: &Path) -> String {
    name.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[derive(Serialize)]
struct Entry {
    image_id: i64,
    category_id: i64,
    /// Left, top, width, height.
    bbox: [f32; 4],
    score: f32,
}

/// `earlier` is the number of detections written before. Returns the number written afterwards.
pub(super) fn write(
    out: &mut impl Write,
    report: &Report,
    classes: &[Class],
    ids: &ImageIds,
    earlier: usize,
) -> io::Result<usize> {
    let Ok(found) = &report.outcome else { return Ok(earlier) };
    let image_id = match report.frame {
        None => ids.of(&report.file),
        Some(_) => Err(NoImageId::Frame),
    };
    let image_id = image_id.map_err(|reason| io::Error::other(format!("`{}`: {reason}", report.name())))?;
    for (number, detection) in (earlier..).zip(&found.detections) {
        let b = &detection.bounding_box;
        let result = Entry {
            image_id,
            category_id: classes[detection.class_index].id,
            bbox: [b.x1, b.y1, b.width(), b.height()],
            score: detection.score,
        };
        json::begin_item(out, number)?;
        serde_json::to_writer(&mut *out, &result).map_err(io::Error::from)?;
    }
    Ok(earlier + found.detections.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples;
    use super::*;

    fn ids(images: &Value) -> ImageIds {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), json!({ "images": images }).to_string()).unwrap();
        ImageIds::read(file.path()).unwrap()
    }

    #[test]
    fn every_detection_is_an_entry_and_failed_images_have_no_entries() {
        let ids = ids(&json!([{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b, c.jpg"}]));
        let mut out = Vec::new();
        let mut count = 0;
        for report in samples::reports().into_iter().filter(|report| report.frame.is_none()) {
            count = write(&mut out, &report, &samples::classes(), &ids, count).unwrap();
        }
        super::json::end(&mut out, count).unwrap();
        let expected = json!([
            {"image_id": 5, "category_id": 90, "bbox": [1.0, 2.5, 29.25, 37.5], "score": 0.875},
            {"image_id": 5, "category_id": 7, "bbox": [0.0, 0.0, 4.0, 8.0], "score": 0.5},
        ]);
        assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn a_frame_has_no_id() {
        let frame = samples::reports().pop().unwrap();
        let error =
            write(&mut Vec::new(), &frame, &samples::classes(), &ImageIds::default(), 0).unwrap_err().to_string();
        assert!(error.contains("e.mp4, frame 3") && error.contains("--json"), "{error}");
    }

    #[test]
    fn no_detections_give_an_empty_list() {
        let mut out = Vec::new();
        super::json::end(&mut out, 0).unwrap();
        assert_eq!(out, b"[]\n");
    }

    #[test]
    fn a_number_as_file_name_is_the_id() {
        let ids = ImageIds::default();
        assert_eq!(ids.of(Path::new("val/000000397133.jpg")).unwrap(), 397_133);
        assert_eq!(ids.of(Path::new("cat.jpg")), Err(NoImageId::Name));
    }

    #[test]
    fn file_names_match_by_path_suffix_or_last_component() {
        let images = json!([
            {"id": 1, "file_name": "a/x.jpg"}, {"id": 2, "file_name": "b/x.jpg"}, {"id": 3, "file_name": "c/y.jpg"}
        ]);
        let ids = ids(&images);
        assert_eq!(ids.of(Path::new("/data/b/x.jpg")).unwrap(), 2);
        assert_eq!(ids.of(Path::new("elsewhere/y.jpg")).unwrap(), 3);
        assert_eq!(ids.of(Path::new("x.jpg")), Err(NoImageId::Ambiguous));
        assert_eq!(ids.of(Path::new("7.jpg")), Err(NoImageId::Unlisted));
    }

    #[test]
    fn the_error_of_a_file_without_images_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "[]").unwrap();
        let error = ImageIds::read(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("file_name"), "{error}");
    }
}
