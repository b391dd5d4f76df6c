//! COCO's JSON files: ground truth and results. <https://cocodataset.org/#format-data>

use std::collections::HashSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::draft::{ClassKey, Draft, DraftBox, DraftImage};
use super::format::folder_of;
use super::source::ResolvedSource;
use super::{Annotation, DataError, Dataset, Image, OnProblem, Rectangle, Report, files};
use crate::evaluation::ScoredBox;
use crate::{spec::Class, write_atomically};

/// One detection in a COCO result file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CocoResult {
    /// Id of the image in the data set.
    pub image_id: i64,
    /// Id of the class in the data set.
    pub category_id: i64,
    /// `x, y, width, height` in pixels of the original image (upright, after EXIF rotation).
    pub bbox: [f64; 4],
    /// Confidence score; higher is more confident.
    pub score: f64,
}

/// The detections of a result file, with ids resolved to indices in a data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocatedResults {
    /// Detections whose image and class are in the data set, in the order of the file.
    pub boxes: Vec<ScoredBox>,
    /// Indices in the file of detections whose image is not in the data set.
    pub unknown_images: Vec<usize>,
    /// Indices in the file of detections whose image is in the data set, but whose class is not.
    pub unknown_classes: Vec<usize>,
}

impl Dataset {
    /// Reads COCO ground truth. File names are relative to the folder of the file. There may be no images. A missing
    /// `area` is computed from the box, a missing `iscrowd` means 0; segmentations and all other fields are ignored.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, lacks a field, or has entries that `on_problem` refuses.
    pub fn read_coco(path: &Path, on_problem: OnProblem) -> Result<(Self, Report), DataError> {
        let checked = read_truth(path)?.check(on_problem);
        let (dataset, report) = checked.map_err(|report| DataError::Refused { path: path.to_owned(), report })?;
        Ok((Self { folder: folder_of(path), ..dataset }, report))
    }

    /// Writes COCO ground truth.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_coco(&self, path: &Path) -> io::Result<()> {
        let images: Vec<_> = self.images.iter().map(image_value).collect();
        let annotations: Vec<_> = self.annotations.iter().map(|annotation| self.annotation_value(annotation)).collect();
        // pycocotools requires `info`.
        let truth = json!({ "info": {}, "categories": self.classes, "images": images, "annotations": annotations });
        write_json(path, &truth)
    }

    fn annotation_value(&self, annotation: &Annotation) -> Value {
        let Annotation { id, image, class_index, rectangle, area, crowd } = annotation;
        let Rectangle { x, y, width, height } = rectangle;
        json!({
            "id": id,
            "image_id": self.images[*image].id,
            "category_id": self.classes[*class_index].id,
            "bbox": [x, y, width, height],
            "area": area,
            "iscrowd": u8::from(*crowd),
        })
    }

    /// Resolves the ids of a result file to indices in this data set.
    pub fn locate(&self, results: &[CocoResult]) -> LocatedResults {
        let mut located = LocatedResults::default();
        for (index, result) in results.iter().enumerate() {
            let Ok(image) = self.images.binary_search_by_key(&result.image_id, |image| image.id) else {
                located.unknown_images.push(index);
                continue;
            };
            let Ok(class_index) = self.classes.binary_search_by_key(&result.category_id, |class| class.id) else {
                located.unknown_classes.push(index);
                continue;
            };
            located.boxes.push(ScoredBox {
                image,
                class_index,
                score: result.score,
                rectangle: rectangle(result.bbox),
            });
        }
        located
    }
}

/// Reads images and boxes of a file. Without an image list, they are those of [`Dataset::read_coco`].
pub(super) fn draft(source: &ResolvedSource) -> Result<Draft, DataError> {
    let mut draft = read_truth(source.annotations)?;
    let all: HashSet<_> = draft.images.iter().map(|image| image.id).collect();
    let (images, problems) = source.select(draft.images, |image| image.file_name.as_deref().unwrap_or_default())?;
    let selected: HashSet<_> = images.iter().map(|image| image.id).collect();
    draft.boxes.retain(|annotation| selected.contains(&annotation.image_id) || !all.contains(&annotation.image_id));
    Ok(Draft { images, problems, ..draft })
}

fn read_truth(path: &Path) -> Result<Draft, DataError> {
    let expected = "a COCO data set (an object with images, annotations and categories)";
    let GroundTruth { images, annotations, categories } = read_json(path, expected)?;
    Ok(Draft {
        classes: categories.into_iter().map(|Category { id, name }| Class { id, name }).collect(),
        images: images.into_iter().map(DraftImage::from).collect(),
        boxes: annotations.into_iter().map(DraftBox::from).collect(),
        problems: Vec::new(),
    })
}

/// Reads a COCO result file.
///
/// # Errors
/// When the file cannot be read, is not JSON, or lacks a field.
pub fn read_results(path: &Path) -> Result<Vec<CocoResult>, DataError> {
    read_json(path, "a COCO result file (a list of objects with image_id, category_id, bbox and score)")
}

/// Writes a COCO result file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_results(path: &Path, results: &[CocoResult]) -> io::Result<()> {
    write_json(path, &results)
}

fn image_value(image: &Image) -> Value {
    let Image { id, file_name, width, height } = image;
    json!({ "id": id, "file_name": file_name, "width": width, "height": height })
}

/// The fields of COCO ground truth that are used.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct GroundTruth {
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: i64,
    file_name: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    id: i64,
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    area: Option<f64>,
    iscrowd: Option<Flag>,
}

#[derive(Deserialize)]
struct Category {
    id: i64,
    name: String,
}

/// COCO writes 0 and 1; some tools write false and true.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`iscrowd` is neither 0 nor 1")]
enum Flag {
    Number(u64),
    Bool(bool),
}

impl From<CocoImage> for DraftImage {
    fn from(image: CocoImage) -> Self {
        let CocoImage { id, file_name, width, height } = image;
        Self { id, file_name, width, height, unreadable: None }
    }
}

impl From<CocoAnnotation> for DraftBox {
    fn from(annotation: CocoAnnotation) -> Self {
        let CocoAnnotation { id, image_id, category_id, bbox, area, iscrowd } = annotation;
        let crowd = !matches!(iscrowd, None | Some(Flag::Number(0) | Flag::Bool(false)));
        Self { id, image_id, class: ClassKey::Id(category_id), rectangle: rectangle(bbox), area, crowd }
    }
}

/// The rectangle of a `bbox`.
fn rectangle([x, y, width, height]: [f64; 4]) -> Rectangle {
    Rectangle { x, y, width, height }
}

/// Reads the whole file before parsing, since parsing a stream is several times slower.
fn read_json<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T, DataError> {
    let text = files::read_bytes(path)?;
    serde_json::from_slice(&text).map_err(|reason| DataError::Json { path: path.to_owned(), expected, reason })
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_atomically(path, |file| serde_json::to_writer(file, value).map_err(io::Error::from))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dataset::ProblemKind;

    /// Reads `text` as a ground truth file.
    fn read(text: &str, on_problem: OnProblem) -> Result<(Dataset, Report), DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.json");
        fs::write(&path, text).unwrap();
        Dataset::read_coco(&path, on_problem)
    }

    /// Ground truth of two images with these annotations.
    fn truth(annotations: &str) -> String {
        let images = r#"[{"id": 8, "file_name": "b.png", "width": 64, "height": 32},
                         {"id": 2, "file_name": "a.png", "width": 64, "height": 32, "license": 3}]"#;
        let categories = r#"[{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 0, "name": "dog"}]"#;
        format!(r#"{{"images": {images}, "annotations": [{annotations}], "categories": {categories}}}"#)
    }

    #[test]
    fn written_data_set_reads_back_unchanged() {
        let text = truth(
            r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1.1, 2.2, 3.3, 4.4], "area": 5.5, "iscrowd": 1},
               {"id": 2, "image_id": 2, "category_id": 0, "bbox": [0, 0, 64, 32], "segmentation": [[1, 2]]}"#,
        );
        let (dataset, report) = read(&text, OnProblem::Refuse).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["dog", "cat"]);
        let [large, small] = &dataset.annotations[..] else { panic!("{dataset:?}") };
        assert_eq!((large.image, large.class_index, large.area, large.crowd), (0, 0, 2048.0, false));
        assert_eq!((small.image, small.class_index, small.area, small.crowd), (1, 1, 5.5, true));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("again.json");
        dataset.write_coco(&path).unwrap();
        let again = Dataset::read_coco(&path, OnProblem::Refuse).unwrap().0;
        assert_eq!(again.folder, folder.path());
        assert_eq!(Dataset { folder: dataset.folder.clone(), ..again }, dataset);
    }

    #[test]
    fn results_are_resolved_to_images_and_classes_by_id() {
        let (dataset, _) = read(&truth(""), OnProblem::Refuse).unwrap();
        let result =
            |image_id, category_id| CocoResult { image_id, category_id, bbox: [1.0, 2.0, 3.0, 4.0], score: 0.5 };
        let results = [result(8, 7), result(3, 7), result(2, 0), result(2, 5)];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.json");
        write_results(&path, &results).unwrap();
        assert_eq!(read_results(&path).unwrap(), results);

        let located = dataset.locate(&results);
        let indices: Vec<_> = located.boxes.iter().map(|scored| (scored.image, scored.class_index)).collect();
        assert_eq!(indices, [(1, 1), (0, 0)]);
        assert_eq!((located.unknown_images, located.unknown_classes), (vec![1], vec![3]));
    }

    #[test]
    fn malformed_files_are_refused_with_field_line_and_column() {
        let cases = [
            ("{\n \"images\": [,]}", "expected value at line 2 column 13"),
            ("[1, 2]", "is not a COCO data set (an object with images, annotations and categories)"),
            (r#"{"images": [], "annotations": []}"#, "missing field `categories` at line 1 column 33"),
            (&truth(r#"{"id": 1, "image_id": 8, "category_id": 7}"#), "missing field `bbox` at line 2 column"),
            (&truth(r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2]}"#), "invalid length 2"),
            (&truth(r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2, 3, NaN]}"#), "expected value at line"),
            (
                &truth(r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": "no"}"#),
                "`iscrowd` is neither 0 nor 1 at line 2 column",
            ),
        ];
        for (text, message) in cases {
            let error = read(text, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains("truth.json` is not a COCO data set") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn invalid_boxes_are_refused_or_dropped() {
        let text = truth(r#"{"id": 2288, "image_id": 2, "category_id": 7, "bbox": [9, 9, 0, 0]}"#);
        let error = read(&text, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 box of zero area: a.png annotation 2288 (x 9, y 9, width 0, height 0"), "{error}");
        let (dataset, report) = read(&text, OnProblem::Drop).unwrap();
        assert_eq!((dataset.annotations.len(), report.count(ProblemKind::NoArea)), (0, 1));
    }

    #[test]
    fn error_names_a_missing_file() {
        let error = Dataset::read_coco(Path::new("/no/such.json"), OnProblem::Drop).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `/no/such.json`"), "{error}");
    }
}
