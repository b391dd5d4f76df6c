//! COCO result files. <https://cocodataset.org/#format-results>

use std::io;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use super::protocol::ScoredBox;
use crate::atomic_file::write_atomically;
use crate::dataset::json::{self, Entries, Four, Number, Whole};
use crate::dataset::{DataError, Dataset};
use crate::rectangle::Rectangle;

/// One detection in a COCO result file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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

/// Results, with ids resolved to the images and classes of a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocatedResults {
    /// The detections on images and of classes of the data set, in the order of the file.
    pub boxes: Vec<ScoredBox>,
    /// The ids of the images of detections on other images.
    pub unknown_images: Vec<i64>,
    /// The ids of the classes of detections on the data set's images, of other classes.
    pub unknown_classes: Vec<i64>,
}

impl LocatedResults {
    /// Number of detections, known or not.
    pub fn count(&self) -> usize {
        self.boxes.len() + self.unknown_images.len() + self.unknown_classes.len()
    }
}

/// A result whose numbers may have any notation.
struct Entry(CocoResult);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            image_id: Whole,
            category_id: Whole,
            bbox: Four,
            score: Number,
        }
        let Fields { image_id, category_id, bbox, score } = Fields::deserialize(deserializer)?;
        let bbox = bbox.bbox().map_err(D::Error::custom)?;
        Ok(Self(CocoResult { image_id: image_id.0, category_id: category_id.0, bbox, score: score.0 }))
    }
}

/// A COCO result file.
pub struct ResultFile {
    path: PathBuf,
    entries: Entries<Entry>,
}

impl ResultFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file cannot be read or is not a JSON list.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let expected = "a COCO result file (a list of objects with image_id, category_id, bbox and score)";
        Ok(Self { path: path.to_owned(), entries: json::read_list(path, expected)? })
    }

    /// Resolves the ids to the images and classes of `truth`.
    ///
    /// # Errors
    /// When an entry is invalid.
    pub fn locate(self, truth: &Dataset) -> Result<LocatedResults, DataError> {
        let convert = |entries: Vec<Entry>| locate(truth, entries.into_iter().map(|Entry(result)| result));
        let located = self.entries.convert("", convert);
        let located = located.map_err(|problem| DataError::bad_entry(&self.path, &problem))?;
        let mut all = LocatedResults::default();
        all.boxes.reserve(located.iter().map(|part| part.boxes.len()).sum());
        for LocatedResults { boxes, unknown_images, unknown_classes } in located {
            all.boxes.extend(boxes);
            all.unknown_images.extend(unknown_images);
            all.unknown_classes.extend(unknown_classes);
        }
        Ok(all)
    }
}

/// Writes a COCO result file.
///
/// # Errors
/// Those of the file system.
pub fn write_results(path: &Path, results: &[CocoResult]) -> io::Result<()> {
    write_atomically(path, |file| serde_json::to_writer(file, results).map_err(io::Error::from))
}

/// Resolves the ids of results to the images and classes of `truth`.
pub fn locate(truth: &Dataset, results: impl IntoIterator<Item = CocoResult>) -> LocatedResults {
    let mut classes: Vec<_> = truth.classes().iter().map(|class| class.id).zip(0..).collect();
    classes.sort_unstable();
    let mut located = LocatedResults::default();
    for CocoResult { image_id, category_id, bbox: [x, y, width, height], score } in results {
        let Ok(image) = truth.images().binary_search_by_key(&image_id, |image| image.id) else {
            located.unknown_images.push(image_id);
            continue;
        };
        let Ok(class) = classes.binary_search_by_key(&category_id, |(id, _)| *id) else {
            located.unknown_classes.push(category_id);
            continue;
        };
        let class_index = classes[class].1;
        located.boxes.push(ScoredBox { image, class_index, score, rectangle: Rectangle { x, y, width, height } });
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
        let truth = truth(&[1], &[2]);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ResultFile::read(&path).and_then(|file| file.locate(&truth)).map_err(|error| error.to_string())
        };
        let text =
            r#"[{"image_id": 1.0, "category_id": "2", "bbox": [1, 2.5, "3", 4e0], "score": NaN, "segmentation": []}]"#;
        let found = read(text).unwrap().boxes[0];
        let rectangle = Rectangle { x: 1.0, y: 2.5, width: 3.0, height: 4.0 };
        assert_eq!((found.image, found.class_index, found.rectangle), (0, 0, rectangle));
        assert!(found.score.is_nan());
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
        let result =
            |image_id, category_id| CocoResult { image_id, category_id, bbox: [1.0, 2.0, 3.0, 4.0], score: 0.5 };
        let results = [result(8, 7), result(3, 7), result(2, 0), result(2, 5)];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        write_results(&path, &results).unwrap();
        let located = ResultFile::read(&path).unwrap().locate(&truth(&[2, 8], &[0, 7])).unwrap();
        let indices: Vec<_> = located.boxes.iter().map(|scored| (scored.image, scored.class_index)).collect();
        assert_eq!(indices, [(1, 1), (0, 0)]);
        assert_eq!((located.unknown_images, located.unknown_classes), (vec![3], vec![5]));
    }

    #[test]
    fn files_of_many_pieces_read_like_small_ones() {
        // `},{` in a text, in a nested list and in unknown fields: there, a file must not be cut.
        let traps = [r#""note": "},{""#, r#""parts": [{"a": 1}, {"a": [{},{}]}]"#, r#""score": 0.5"#];
        let entries = (0..60_000).map(|index| {
            let trap = traps[index % traps.len()];
            format!(
                r#"{{"image_id": {}, "category_id": 7, "bbox": [{index}, 0, 1, 1], "score": 0.25, {trap}}}"#,
                index % 3
            )
        });
        let entries: Vec<_> = entries.map(|entry| entry.replace(r#"0.25, "score": "#, "")).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let truth = truth(&[0, 1], &[7]);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ResultFile::read(&path).and_then(|file| file.locate(&truth))
        };
        for separator in [",", ", ", "\n,\n"] {
            let text = format!(" [{}]\n", entries.join(separator));
            assert!(text.len() > 3 << 20);
            let located = read(&text).unwrap();
            let found: Vec<_> = located.boxes.iter().map(|scored| scored.rectangle.x as usize).collect();
            assert_eq!(found, (0..60_000).filter(|index| index % 3 < 2).collect::<Vec<_>>());
            assert_eq!(located.unknown_images, [2; 20_000]);

            let bad = text.replace("[59000, 0, 1, 1]", "[59000, 0, 1]");
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains("invalid entry [59000] (bbox: 3 numbers"), "{error}");
            for length in [text.len() - 2, 2 << 20] {
                let error = read(&text[..length]).unwrap_err().to_string();
                assert!(error.contains("EOF"), "{error}");
            }
        }
    }

    #[test]
    fn an_entry_longer_than_a_piece_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        let note = "x".repeat(3 << 20);
        let entry =
            format!(r#"{{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 1, "note": "{note}"}}"#);
        std::fs::write(&path, format!("[{entry}]")).unwrap();
        let located = ResultFile::read(&path).unwrap().locate(&truth(&[1], &[2])).unwrap();
        assert_eq!((located.boxes.len(), located.count()), (1, 1));
    }

    fn truth(images: &[i64], classes: &[i64]) -> Dataset {
        let image = |id: &i64| Image { id: *id, file_name: id.to_string(), width: 64, height: 32 };
        let class = |id: &i64| Class { id: *id, name: id.to_string() };
        let (images, classes) = (images.iter().map(image).collect(), classes.iter().map(class).collect());
        Dataset::new("", images, Vec::new(), classes).unwrap()
    }
}
