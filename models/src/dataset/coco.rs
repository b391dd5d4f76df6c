//! COCO's JSON ground truth. <https://cocodataset.org/#format-data>

use std::collections::HashMap;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::json::{self, Entries, Four, Id, Number, Whole};
use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::report::{OnProblem, Problem, ProblemKind, Report};
use super::{Annotation, DataError, Dataset, Image, folder};
use crate::atomic_file::write_atomically;
use crate::rectangle::Rectangle;
use crate::spec::Class;

/// Key of annotations that COCO lacks, so that VOC's mark survives conversion.
const DIFFICULT: &str = "difficult";

impl Dataset {
    /// Reads COCO ground truth whose file names are relative to the folder of the file. It may have no images. Without `area`,
    /// a box has the area of its rectangle; without `iscrowd`, it is not a crowd. `difficult` is read as
    /// [`write_coco`](Self::write_coco) writes it. Other fields are ignored.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON, lacks a field, or has entries that `on_problem` refuses.
    pub fn read_coco(path: &Path, on_problem: OnProblem) -> Result<(Self, Report), DataError> {
        let checked = parse(path)?.check(None, on_problem);
        let (dataset, report) = checked.map_err(|report| DataError::Refused { path: path.to_owned(), report })?;
        Ok((dataset.with_folder(folder::folder_of(path)), report))
    }

    /// Writes COCO ground truth, in which difficult objects have the additional key `difficult`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_coco(&self, path: &Path) -> io::Result<()> {
        let images: Vec<_> = self.images.iter().map(image_value).collect();
        let annotations: Vec<_> = self.annotations.iter().map(|annotation| self.annotation_value(annotation)).collect();
        // pycocotools requires `info`.
        let truth = json!({ "info": {}, "categories": self.classes, "images": images, "annotations": annotations });
        write_atomically(path, |file| serde_json::to_writer(file, &truth).map_err(io::Error::from))
    }

    fn annotation_value(&self, annotation: &Annotation) -> Value {
        let Annotation { id, image, class_index, rectangle, area, crowd, difficult } = annotation;
        let Rectangle { x, y, width, height } = rectangle;
        let mut value = json!({
            "id": id,
            "image_id": self.images[*image].id,
            "category_id": self.classes[*class_index].id,
            "bbox": [x, y, width, height],
            "area": area,
            "iscrowd": u8::from(*crowd),
        });
        if *difficult {
            value[DIFFICULT] = 1.into();
        }
        value
    }
}

fn image_value(Image { id, file_name, width, height }: &Image) -> Value {
    json!({ "id": id, "file_name": file_name, "width": width, "height": height })
}

/// The part of COCO's ground truth that is about boxes. Entries are parsed one by one, so that one bad entry does not spoil
/// the file.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct GroundTruth {
    images: Entries<CocoImage>,
    annotations: Entries<ImageBox>,
    categories: Entries<Category>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: Id,
    file_name: Option<String>,
    width: Option<Number>,
    height: Option<Number>,
}

/// The id of an image, and a box on it.
struct ImageBox(Id, ParsedBox);

#[derive(Deserialize)]
struct CocoAnnotation<'a> {
    id: Option<Id>,
    image_id: Id,
    category_id: Whole,
    bbox: Option<Four>,
    #[serde(borrow)]
    segmentation: Option<&'a RawValue>,
    area: Option<Number>,
    iscrowd: Option<Number>,
    #[serde(borrow)]
    difficult: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Category {
    id: Whole,
    #[serde(deserialize_with = "text_or_number")]
    name: String,
}

fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(D::Error::custom(format!("{other}, expected a text"))),
    }
}

/// Parses the file, without checking it.
pub(super) fn parse(path: &Path) -> Result<Parsed, DataError> {
    let text = json::read(path)?;
    let expected = "a COCO data set (an object with images, annotations and categories)";
    let GroundTruth { images, annotations, categories } = json::parse(path, &text, expected)?;
    let mut parsed = Parsed::default();
    let classes = categories.named("categories").filter_map(|class| parsed.keep(class));
    parsed.classes = Some(classes.map(|Category { id, name }| Class { id: id.0, name }).collect());

    let mut indices = HashMap::new();
    for image in images.named("images") {
        let Some(CocoImage { id, file_name, width, height }) = parsed.keep(image) else { continue };
        let side = |side: Option<Number>| {
            let is_possible = |side: &f64| side.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(side);
            Some(side?.0).filter(is_possible).map(|side| side as u32)
        };
        let (file_name, size) = (file_name.unwrap_or_default(), side(width).zip(side(height)));
        let image = ParsedImage { id: id.whole(), file_name, size, ..ParsedImage::default() };
        indices.entry(id).or_insert(parsed.images.len());
        parsed.images.push(image);
    }
    // Ids that are not numbers have a meaning in this file only.
    if parsed.images.iter().any(|image| image.id.is_none()) {
        parsed.images.iter_mut().for_each(|image| image.id = None);
    }

    for annotation in annotations.named("annotations") {
        let Some(ImageBox(image_id, object)) = parsed.keep(annotation) else { continue };
        match indices.get(&image_id) {
            Some(index) => parsed.images[*index].boxes.push(object),
            None => {
                let (kind, location) = (ProblemKind::UnknownImage, format!("image {image_id}"));
                parsed.problems.push(Problem { kind, location, annotation: object.id, found: String::new() });
            }
        }
    }
    Ok(parsed)
}

impl<'de> Deserialize<'de> for ImageBox {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        CocoAnnotation::deserialize(deserializer)?.into_box().map_err(D::Error::custom)
    }
}

impl CocoAnnotation<'_> {
    fn into_box(self) -> Result<ImageBox, String> {
        let rectangle = match self.bbox {
            None | Some(Four::Other(0)) => self.extent().ok_or("neither bbox nor polygon")?,
            Some(bbox) => {
                let [x, y, width, height] = bbox.bbox()?;
                Rectangle { x, y, width, height }
            }
        };
        let object = ParsedBox {
            id: self.id.and_then(|id| id.whole()),
            area: self.area.map(|area| area.0),
            crowd: self.iscrowd.is_some_and(|crowd| crowd.0 != 0.0),
            difficult: self.difficult.is_some_and(is_true),
            ..ParsedBox::new(ClassKey::Id(self.category_id.0), Geometry::Pixels(rectangle))
        };
        Ok(ImageBox(self.image_id, object))
    }

    /// The extent of its polygons.
    fn extent(&self) -> Option<Rectangle> {
        let polygons: Vec<Vec<f64>> = serde_json::from_str(self.segmentation?.get()).ok()?;
        Rectangle::around(polygons.iter().flat_map(|polygon| polygon.as_chunks().0).copied())
    }
}

/// Whether this is 1 or true. The key is not COCO's, so other values are no mistake.
fn is_true(value: &RawValue) -> bool {
    serde_json::from_str(value.get()).is_ok_and(|Number(number)| number == 1.0)
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
               {"id": 2, "image_id": 2, "category_id": 0, "bbox": [0, 0, 64, 32], "segmentation": [[1, 2]], "difficult": true},
               {"id": 3, "image_id": 8, "category_id": 0, "bbox": [0, 0, 4, 2], "difficult": "hard to say"}"#,
        );
        let (dataset, report) = read(&text, OnProblem::Refuse).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["dog", "cat"]);
        let [large, small, _] = &dataset.annotations[..] else { panic!("{dataset:?}") };
        assert_eq!(dataset.annotations.iter().map(|one| one.difficult).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!((large.image, large.class_index, large.area, large.crowd), (0, 0, 2048.0, false));
        assert_eq!((small.image, small.class_index, small.area, small.crowd), (1, 1, 5.5, true));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("again.json");
        dataset.write_coco(&path).unwrap();
        let again = Dataset::read_coco(&path, OnProblem::Refuse).unwrap().0;
        assert_eq!(again.folder(), folder.path());
        assert_eq!(again.with_folder(dataset.folder()), dataset);
    }

    #[test]
    fn malformed_files_are_refused() {
        let cases = [
            (
                "{\n \"images\": [,]}",
                "is not a COCO data set (an object with images, annotations and categories): expected value",
            ),
            ("[1, 2]", "is not a COCO data set (an object with images, annotations and categories)"),
            (r#"{"images": [], "annotations": []}"#, "missing field `categories` at line 1 column 33"),
            ("PK\x03\x04", "is a zip archive (unpack it first), expected a COCO data set"),
            (
                r#"[{"annotations": [{"result": [{"value": {"rectanglelabels": ["a"]}}]}]}]"#,
                "is a Label Studio project",
            ),
            (r#"{"a.jpg": {"regions": [{"shape_attributes": {"name": "rect"}}]}}"#, "is a VIA project"),
            (r#"{"shapes": [], "imagePath": "a.jpg", "imageData": null}"#, "is a LabelMe file"),
            (r#"[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}]"#, "is a COCO result file"),
        ];
        for (text, message) in cases {
            let error = read(text, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains("truth.json` is ") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_bad_entry_is_named_by_field_and_does_not_spoil_the_file() {
        let good = r#"{"id": 2, "image_id": 2, "category_id": 7, "bbox": [1, 2, 3, 4]}"#;
        let cases = [
            (r#"{"id": 1, "image_id": 8, "category_id": 7}"#, "neither bbox nor polygon"),
            (
                r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [], "segmentation": []}"#,
                "neither bbox nor polygon",
            ),
            (r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2]}"#, "bbox: 2 numbers, expected x, y, width"),
            (
                r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2, "a", 4]}"#,
                "bbox[2]: invalid value: string \"a\"",
            ),
            (r#"{"id": 1, "image_id": 8, "category_id": "cat", "bbox": [1, 2, 3, 4]}"#, "category_id: invalid value"),
            (r#"{"id": 1, "image_id": 8, "category_id": 7.5, "bbox": [1, 2, 3, 4]}"#, "category_id: invalid value"),
            (r#"{"id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}"#, "missing field `image_id`"),
            (
                r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": "no"}"#,
                "iscrowd: invalid value",
            ),
            ("null", "invalid type: null, expected struct"),
        ];
        for (bad, message) in cases {
            let text = truth(&format!("{good}, {bad}"));
            let error = read(&text, OnProblem::Refuse).unwrap_err().to_string();
            assert!(error.contains(&format!("1 entry that cannot be read: annotations[1] ({message}")), "{error}");
            let (dataset, report) = read(&text, OnProblem::Drop).unwrap();
            assert_eq!((dataset.annotations.len(), report.count(ProblemKind::BadEntry)), (1, 1));
        }
    }

    #[test]
    fn numbers_in_any_notation_and_missing_ids_are_read() {
        let text = r#"{"images": [{"id": "8", "file_name": "a.png", "width": 64.0, "height": "32"}],
            "categories": [{"id": 7.0, "name": "cat"}], "annotations": [
            {"id": "5", "image_id": 8.0, "category_id": "7", "bbox": ["1", 2.0, 3e0, 4], "iscrowd": 0.0, "area": "9"},
            {"image_id": 8, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": true},
            {"id": null, "image_id": "8.0", "category_id": 7, "segmentation": [[9, 8, 19, 8, 10, 28], [0, 10, 5, 11]]}]}"#;
        let (dataset, report) = read(text, OnProblem::Refuse).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!((dataset.images[0].id, dataset.images[0].width, dataset.images[0].height), (8, 64, 32));
        let boxes = |index: usize| (dataset.annotations[index].id, dataset.annotations[index].rectangle);
        let first = Rectangle { x: 1.0, y: 2.0, width: 3.0, height: 4.0 };
        let extent = Rectangle { x: 0.0, y: 8.0, width: 19.0, height: 20.0 };
        assert_eq!([boxes(0), boxes(1), boxes(2)], [(5, first), (6, first), (7, extent)]);
        assert_eq!(
            dataset.annotations.iter().map(|annotation| annotation.crowd).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(dataset.annotations[0].area, 9.0);
    }

    #[test]
    fn class_names_may_be_numbers() {
        let names = |name: &str| {
            let text = format!(r#"{{"images": [], "annotations": [], "categories": [{{"id": 7, "name": {name}}}]}}"#);
            let (dataset, report) = read(&text, OnProblem::Drop).unwrap();
            (dataset.classes().first().map(|class| class.name.clone()), report.to_string())
        };
        for (name, expected) in [("5", "5"), ("\"007\"", "007"), ("1.5", "1.5")] {
            assert_eq!(names(name), (Some(expected.to_owned()), String::new()));
        }
        let (name, report) = names("null");
        assert_eq!(name, None);
        assert!(report.contains("categories[0] (name: null, expected a text)"), "{report}");
    }

    #[test]
    fn images_may_have_names_as_ids() {
        let text = r#"{"images": [{"id": "b.png", "file_name": "b.png", "width": 64, "height": 32},
            {"id": "a.png", "file_name": "a.png", "width": 64, "height": 32}], "categories": [{"id": 7, "name": "cat"}],
            "annotations": [{"id": 1, "image_id": "b.png", "category_id": 7, "bbox": [1, 2, 3, 4]}]}"#;
        let (dataset, _) = read(text, OnProblem::Refuse).unwrap();
        assert_eq!(dataset.images.iter().map(|image| image.id).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((dataset.annotations[0].image, dataset.images[1].file_name.as_str()), (1, "b.png"));
    }

    #[test]
    fn nan_is_a_bad_box_and_repeated_annotation_ids_are_named() {
        let text = truth(
            r#"{"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, NaN, 3, Infinity]},
            {"id": 1, "image_id": 8, "category_id": 7, "bbox": [1, 2, 3, 4]}"#,
        );
        let (dataset, report) = read(&text, OnProblem::Drop).unwrap();
        assert_eq!(dataset.annotations.len(), 1);
        let kinds: Vec<_> = report.problems.iter().map(|problem| problem.kind).collect();
        assert_eq!(kinds, [ProblemKind::NotFinite, ProblemKind::RepeatedAnnotation]);
    }

    #[test]
    fn other_encodings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.json");
        // In a class name, in a file name, and outside of texts.
        let text = truth("");
        for place in ["cat", "b.png", "images"] {
            let (before, after) = text.split_once(place).unwrap();
            fs::write(&path, [before.as_bytes(), b"caf\xE9", after.as_bytes()].concat()).unwrap();
            let error = Dataset::read_coco(&path, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains("truth.json` is not UTF-8 text; save the file as UTF-8"), "{error}");
        }
    }

    #[test]
    fn utf16_is_read() {
        let units = truth("").encode_utf16().collect::<Vec<_>>();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.json");
        for (mark, bytes) in [([0xFF, 0xFE], u16::to_le_bytes as fn(u16) -> [u8; 2]), ([0xFE, 0xFF], u16::to_be_bytes)]
        {
            fs::write(&path, [mark.to_vec(), units.iter().flat_map(|unit| bytes(*unit)).collect()].concat()).unwrap();
            assert_eq!(Dataset::read_coco(&path, OnProblem::Refuse).unwrap().0.images.len(), 2);
        }
    }

    #[test]
    fn invalid_boxes_are_refused_by_name() {
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
