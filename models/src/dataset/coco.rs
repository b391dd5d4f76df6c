//! COCO's JSON ground truth. <https://cocodataset.org/#format-data>

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::report::{OnProblem, Problem, ProblemKind, Report};
use super::{Annotation, DataError, Dataset, Image, folder, text};
use crate::atomic_file::write_atomically;
use crate::rectangle::Rectangle;
use crate::spec::Class;

impl Dataset {
    /// Reads COCO ground truth whose file names are relative to the folder of the file. It may have no images. Without `area`,
    /// a box has the area of its rectangle; without `iscrowd`, it is not a crowd. Other fields are ignored.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, lacks a field, or has entries that `on_problem` refuses.
    pub fn read_coco(path: &Path, on_problem: OnProblem) -> Result<(Self, Report), DataError> {
        let checked = parse(path)?.check(None, on_problem);
        let (dataset, report) = checked.map_err(|report| DataError::Refused { path: path.to_owned(), report })?;
        Ok((Self { folder: folder::folder_of(path), ..dataset }, report))
    }

    /// Writes COCO ground truth.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_coco(&self, path: &Path) -> io::Result<()> {
        let image = |Image { id, file_name, width, height }: &Image| json!({ "id": id, "file_name": file_name, "width": width, "height": height });
        let images: Vec<_> = self.images.iter().map(image).collect();
        let annotations: Vec<_> = self.annotations.iter().map(|annotation| self.annotation_value(annotation)).collect();
        // pycocotools requires `info`.
        let truth = json!({ "info": {}, "categories": self.classes, "images": images, "annotations": annotations });
        write_atomically(path, |file| serde_json::to_writer(file, &truth).map_err(io::Error::from))
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
}

/// The part of COCO's ground truth that is about boxes.
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

/// COCO writes 0 and 1, others write false and true.
#[derive(Deserialize)]
#[serde(untagged, expecting = "`iscrowd` is neither 0 nor 1")]
enum Flag {
    Number(u64),
    Truth(bool),
}

/// Parses the file, without checking it.
pub(super) fn parse(path: &Path) -> Result<Parsed, DataError> {
    let expected = "a COCO data set (an object with images, annotations and categories)";
    let GroundTruth { images, annotations, categories } = text::read_json(path, expected)?;
    let mut indices = HashMap::new();
    let mut parsed = Parsed {
        classes: Some(categories.into_iter().map(|Category { id, name }| Class { id, name }).collect()),
        ..Parsed::default()
    };
    for CocoImage { id, file_name, width, height } in images {
        indices.entry(id).or_insert(parsed.images.len());
        parsed.images.push(ParsedImage {
            id: Some(id),
            file_name: file_name.unwrap_or_default(),
            size: width.zip(height),
            ..ParsedImage::default()
        });
    }
    for CocoAnnotation { id, image_id, category_id, bbox: [x, y, width, height], area, iscrowd } in annotations {
        let crowd = !matches!(iscrowd, None | Some(Flag::Number(0) | Flag::Truth(false)));
        let geometry = Geometry::Pixels(Rectangle { x, y, width, height });
        let drawn = ParsedBox { id: Some(id), class: ClassKey::Id(category_id), geometry, area, crowd };
        match indices.get(&image_id) {
            Some(index) => parsed.images[*index].boxes.push(drawn),
            None => {
                let place = format!("image {image_id}");
                let kind = ProblemKind::UnknownImage;
                parsed.problems.push(Problem { kind, place, annotation: Some(id), found: String::new() });
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dataset::ProblemKind;

    /// Reads `text` as a file of ground truth.
    fn read(text: &str, on_problem: OnProblem) -> Result<(Dataset, Report), DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.json");
        fs::write(&path, text).unwrap();
        Dataset::read_coco(&path, on_problem)
    }

    /// Ground truth of two images, with these annotations.
    fn truth(annotations: &str) -> String {
        let images = r#"[{"id": 8, "file_name": "b.png", "width": 64, "height": 32},
                         {"id": 2, "file_name": "a.png", "width": 64, "height": 32, "license": 3}]"#;
        let categories = r#"[{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 0, "name": "dog"}]"#;
        format!(r#"{{"images": {images}, "annotations": [{annotations}], "categories": {categories}}}"#)
    }

    #[test]
    fn a_written_data_set_reads_back_the_same() {
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
    fn entries_that_make_no_sense_are_refused_by_name() {
        let text = truth(r#"{"id": 2288, "image_id": 2, "category_id": 7, "bbox": [9, 9, 0, 0]}"#);
        let error = read(&text, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 box of zero area: a.png annotation 2288 (x 9, y 9, width 0, height 0"), "{error}");
        let (dataset, report) = read(&text, OnProblem::Drop).unwrap();
        assert_eq!((dataset.annotations.len(), report.count(ProblemKind::NoArea)), (0, 1));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Dataset::read_coco(Path::new("/no/such.json"), OnProblem::Drop).unwrap_err().to_string();
        assert!(error.starts_with("cannot read `/no/such.json`"), "{error}");
    }
}
