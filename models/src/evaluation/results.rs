//! COCO result files. <https://cocodataset.org/#format-results>

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::protocol::ScoredBox;
use crate::atomic_file::write_atomically;
use crate::dataset::json::{self, Four, Number, Whole};
use crate::dataset::{DataError, Dataset};
use crate::rectangle::Rectangle;

/// One detection in a COCO result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoResult {
    /// Id of the image in the data set.
    pub image_id: i64,
    /// Id of the class in the data set.
    pub category_id: i64,
    /// Left, top, width and height in pixels of the image.
    pub bbox: [f64; 4],
    /// Confidence.
    pub score: f64,
}

/// A result file, with ids resolved to the images and classes of a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocatedResults {
    /// The detections on images and of classes of the data set, in the order of the file.
    pub boxes: Vec<ScoredBox>,
    /// Indices in the file of detections on other images.
    pub unknown_images: Vec<usize>,
    /// Indices in the file of detections on the data set's images, of other classes.
    pub unknown_classes: Vec<usize>,
}

/// An entry of a result file, in any notation of numbers.
#[derive(Deserialize)]
struct Entry {
    image_id: Whole,
    category_id: Whole,
    bbox: Four,
    score: Number,
}

/// Reads a COCO result file.
///
/// # Errors
/// When the file cannot be read, is not JSON, or has an invalid entry.
pub fn read_results(path: &Path) -> Result<Vec<CocoResult>, DataError> {
    let expected = "a COCO result file (a list of objects with image_id, category_id, bbox and score)";
    let text = json::read(path)?;
    let entries: Vec<&RawValue> = json::parse(path, &text, expected)?;
    let results = json::entries("", &entries, |Entry { image_id, category_id, bbox, score }| {
        Ok(CocoResult { image_id: image_id.0, category_id: category_id.0, bbox: bbox.bbox()?, score: score.0 })
    });
    let results: Result<Vec<_>, _> = results.into_iter().collect();
    results.map_err(|problem| DataError::bad_entry(path, &problem))
}

/// Writes a COCO result file.
///
/// # Errors
/// Those of the file system.
pub fn write_results(path: &Path, results: &[CocoResult]) -> io::Result<()> {
    write_atomically(path, |file| serde_json::to_writer(file, results).map_err(io::Error::from))
}

/// Resolves the ids of results to the images and classes of `truth`.
pub fn locate(truth: &Dataset, results: &[CocoResult]) -> LocatedResults {
    let classes: HashMap<_, _> = (0..).zip(truth.classes()).map(|(index, class)| (class.id, index)).collect();
    let mut located = LocatedResults::default();
    for (index, CocoResult { image_id, category_id, bbox: [x, y, width, height], score }) in results.iter().enumerate()
    {
        let Ok(image) = truth.images().binary_search_by_key(image_id, |image| image.id) else {
            located.unknown_images.push(index);
            continue;
        };
        let Some(class_index) = classes.get(category_id).copied() else {
            located.unknown_classes.push(index);
            continue;
        };
        let rectangle = Rectangle { x: *x, y: *y, width: *width, height: *height };
        located.boxes.push(ScoredBox { image, class_index, score: *score, rectangle });
    }
    located
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Image;
    use crate::spec::Class;

    #[test]
    fn results_in_any_notation_are_read_and_a_bad_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_results(&path).map_err(|error| error.to_string())
        };
        let text =
            r#"[{"image_id": 1.0, "category_id": "2", "bbox": [1, 2.5, "3", 4e0], "score": NaN, "segmentation": []}]"#;
        let result = read(text).unwrap().remove(0);
        assert_eq!((result.image_id, result.category_id, result.bbox), (1, 2, [1.0, 2.5, 3.0, 4.0]));
        assert!(result.score.is_nan());
        let good = r#"{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1}"#;
        for (bad, message) in [
            (
                good.replace("\"category_id\": 2", "\"category_id\": 2.5"),
                "invalid entry [1] (category_id: invalid value",
            ),
            (good.replace(", 4]", "]"), "invalid entry [1] (bbox: 3 numbers, expected x, y, width, height)"),
            (good.replace(", \"score\": 1", ""), "invalid entry [1] (missing field `score`)"),
        ] {
            let error = read(&format!("[{good}, {bad}]")).unwrap_err();
            assert!(error.contains("results.json") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn ids_of_results_are_resolved() {
        let image = |id| Image { id, file_name: id.to_string(), width: 64, height: 32 };
        let class = |id: i64| Class { id, name: id.to_string() };
        let images = [2, 8].map(image).to_vec();
        let truth = Dataset::new("", images, Vec::new(), [0, 7].map(class).to_vec()).unwrap();
        let result =
            |image_id, category_id| CocoResult { image_id, category_id, bbox: [1.0, 2.0, 3.0, 4.0], score: 0.5 };
        let results = [result(8, 7), result(3, 7), result(2, 0), result(2, 5)];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        write_results(&path, &results).unwrap();
        assert_eq!(read_results(&path).unwrap(), results);

        let located = locate(&truth, &results);
        let indices: Vec<_> = located.boxes.iter().map(|scored| (scored.image, scored.class_index)).collect();
        assert_eq!(indices, [(1, 1), (0, 0)]);
        assert_eq!((located.unknown_images, located.unknown_classes), (vec![1], vec![3]));
    }
}
