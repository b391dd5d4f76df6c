//! Where a data set is, and reading it.

use std::path::PathBuf;

use super::error::DataError;
use super::list::List;
use super::parsed::ImageSize;
use super::report::{OnProblem, Problem, Report};
use super::{Dataset, Format, classes};

/// Where a data set is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// COCO JSON file, CSV file, folder of Pascal VOC XML files, or folder of YOLO text files.
    pub annotations: PathBuf,
    /// Folder that file names are relative to. If absent: for COCO and CSV the folder of the file; for VOC the folder
    /// `JPEGImages` next to the annotations; for YOLO the path with `images` for the last `labels`. If VOC's or YOLO's does
    /// not exist, the folder of annotations.
    pub images: Option<PathBuf>,
    /// Format of the annotations. If absent, it is detected.
    pub format: Option<Format>,
    /// Text file with the names of the images to use, one per line, as VOC's `ImageSets/Main/train.txt`, with or without
    /// extension and folders. If absent, all are used.
    pub list: Option<PathBuf>,
    /// File of class names, which fixes their order: CSV `name,id`; text with one name per line, the first of id 0; or
    /// YOLO's `data.yaml`. If absent, the classes are those of the data, by id or by name.
    pub classes: Option<PathBuf>,
}

impl Source {
    /// All of the data at `annotations`, with defaults for everything else.
    pub fn new(annotations: impl Into<PathBuf>) -> Self {
        Self { annotations: annotations.into(), ..Self::default() }
    }

    /// Reads the data set. `size_of` is called for image sizes that the annotations do not give.
    ///
    /// # Errors
    /// When a file or folder cannot be read or has another format, when there are entries that `on_problem` refuses,
    /// and when there are no images.
    pub fn read(&self, on_problem: OnProblem, size_of: &ImageSize) -> Result<(Dataset, Report), DataError> {
        let list = self.list.as_deref().map(List::read).transpose()?;
        let mut order = self.classes.as_deref().map(classes::read).transpose()?;
        let (annotations, format) = match self.format {
            Some(format) => (self.annotations.clone(), format),
            None => Format::detect(&self.annotations)?,
        };
        let default = format.image_folder(&annotations);
        let folder = self.images.clone().unwrap_or_else(|| default.clone());

        let mut parsed = format.parse(&annotations, order.is_some())?;
        if format != Format::Coco {
            parsed.classes = order.take().or(parsed.classes);
        }
        // Before the list is applied, so that all parts of a data set have the same.
        if parsed.classes.is_none() {
            let classes = classes::of_boxes(&parsed.images);
            let unnamed = classes.iter().filter(|_| format == Format::Yolo);
            parsed.problems.extend(unnamed.map(|class| Problem::unnamed_class(&class.name)));
            parsed.classes = Some(classes);
        }
        // A folder elsewhere may hold the images of other parts.
        let is_default = || folder.canonicalize().ok() == default.canonicalize().ok();
        parsed.find_files(&folder, format == Format::Yolo && (list.is_some() || is_default()))?;
        if let Some(list) = &list {
            parsed.select(list)?;
        }
        parsed.measure(&folder, size_of);
        let path = self.annotations.clone();
        match parsed.check(order, on_problem) {
            Err(report) => Err(DataError::Refused { path, report }),
            Ok((dataset, report)) if dataset.images.is_empty() => Err(DataError::NoImages { path, folder, report }),
            Ok((dataset, report)) => Ok((dataset.with_folder(folder), report)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, read, read_valid};
    use super::*;

    const COCO: &str = r#"{"images": [{"id": 5, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 6, "file_name": "b.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 0, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 6, "category_id": 0, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": 0, "name": "dog"}]}"#;
    const VOC: &str = "<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax>\
        <ymax>22</ymax></bndbox></object></annotation>";

    /// A folder with an image and its box in all formats.
    fn all_formats() -> tempfile::TempDir {
        folder(&[
            ("coco.json", COCO),
            ("coco.txt", &format!("\u{feff}\n {COCO}")),
            ("boxes.csv", "a.jpg,1,2,11,22,dog\nb.jpg,0,0,1,1,dog\n"),
            ("voc/Annotations/a.xml", VOC),
            ("voc/JPEGImages/a.jpg", ""),
            ("yolo/labels/a.txt", "0 0.03 0.12 0.05 0.2"),
            ("yolo/labels/classes.txt", "dog"),
            ("yolo/images/a.jpg", ""),
            ("a.jpg", ""),
            ("b.jpg", ""),
            ("list.txt", "a.jpg\n"),
        ])
    }

    #[test]
    fn formats_are_detected_and_give_the_same_data_set() {
        let folder = all_formats();
        let sources = ["coco.json", "coco.txt", "boxes.csv", "voc/Annotations", "yolo/labels"].map(|annotations| {
            Source { list: Some(folder.path().join("list.txt")), ..Source::new(folder.path().join(annotations)) }
        });
        let formats = [Format::Coco, Format::Coco, Format::Csv, Format::Voc, Format::Yolo];
        for (source, format) in sources.into_iter().zip(formats) {
            assert_eq!(read_valid(&source), ["a.jpg 200x100: dog 1 2 10 20"]);
            assert_eq!(read_valid(&Source { format: Some(format), ..source }), ["a.jpg 200x100: dog 1 2 10 20"]);
        }
    }

    #[test]
    fn image_folders_have_defaults_by_format() {
        let folder = all_formats();
        let cases = [
            ("coco.json", ""),
            ("boxes.csv", ""),
            ("voc/Annotations", "voc/JPEGImages"),
            ("yolo/labels", "yolo/images"),
        ];
        for (annotations, expected) in cases {
            let source = Source::new(folder.path().join(annotations));
            assert_eq!(read(&source, OnProblem::Refuse).unwrap().0.folder, folder.path().join(expected));
            let source = Source { images: Some(folder.path().to_owned()), ..source };
            assert_eq!(read(&source, OnProblem::Refuse).unwrap().0.folder, folder.path());
        }
    }

    #[test]
    fn a_wrong_format_is_an_error() {
        let folder = all_formats();
        for format in Format::ALL {
            for annotations in ["coco.json", "boxes.csv", "voc/Annotations", "yolo/labels", "a.jpg", "none"] {
                let fits = matches!(
                    (format, annotations),
                    (Format::Coco, "coco.json")
                        | (Format::Csv, "boxes.csv")
                        | (Format::Voc, "voc/Annotations")
                        | (Format::Yolo, "yolo/labels")
                );
                let source = Source { format: Some(format), ..Source::new(folder.path().join(annotations)) };
                let result = read(&source, OnProblem::Drop);
                assert_eq!(result.is_ok(), fits, "{format} {annotations}: {result:?}");
            }
        }
    }

    #[test]
    fn no_usable_images_are_an_error_with_the_reason() {
        let folder = folder(&[("a.csv", "gone.jpg,1,2,3,4,dog\n"), ("empty.csv", "\n"), ("list.txt", "")]);
        let read = |source: &Source| read(source, OnProblem::Drop).unwrap_err().to_string();
        let error = read(&Source::new(folder.path().join("a.csv")));
        assert!(
            error.contains("a.csv` has no usable images: 1 image that cannot be read, dropped: gone.jpg"),
            "{error}"
        );
        assert!(error.contains(&format!("image folder: `{}`", folder.path().display())), "{error}");
        for (annotations, list) in [("empty.csv", None), ("a.csv", Some(folder.path().join("list.txt")))] {
            let error = read(&Source { list, ..Source::new(folder.path().join(annotations)) });
            assert!(error.contains("has no usable images; image folder:"), "{error}");
        }
    }

    #[test]
    fn a_class_file_orders_the_classes_of_coco() {
        let coco = COCO.replace("dog", "cat");
        let files = [("coco.json", coco.as_str()), ("names.txt", "dog\ncat"), ("a.jpg", ""), ("b.jpg", "")];
        let folder = folder(&files);
        let classes = Some(folder.path().join("names.txt"));
        let (dataset, _) =
            read(&Source { classes, ..Source::new(folder.path().join("coco.json")) }, OnProblem::Drop).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["dog", "cat"]);
        assert!(dataset.annotations.iter().all(|annotation| annotation.class_index == 1));
    }
}
