//! The files and folders of a data set.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::list::ImageList;
use super::{DataError, Dataset, Format, ImageSize, OnProblem, Problem, Report, classes, coco, csv, voc, yolo};
use crate::spec::Class;

/// The files and folders of a data set, and which of its images to use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// COCO JSON file, CSV file, folder of Pascal VOC XML files, or folder of YOLO text files.
    pub annotations: PathBuf,
    /// Folder that image file names are relative to. Default for COCO and CSV: the folder of the file; for VOC:
    /// `JPEGImages` next to `annotations`; for YOLO: the path of `annotations` with `images` instead of the last
    /// `labels`. VOC and YOLO use `annotations` if that folder does not exist.
    pub images: Option<PathBuf>,
    /// Format of `annotations`. Default: detected.
    pub format: Option<Format>,
    /// Text file with the names of the images to use, one per line, with or without extension and folders, such as
    /// VOC's `ImageSets/Main/train.txt`. Default: all images.
    pub list: Option<PathBuf>,
    /// Class file, for all formats except COCO: CSV `name,id`; text with one name per line, with ids from 0; or YOLO's
    /// `data.yaml`. Default for CSV and VOC: the names in the data, sorted, with ids from 0; for YOLO: `classes.txt` in
    /// the label folder, or the class numbers.
    pub classes: Option<PathBuf>,
}

/// A [`Source`] with its defaults resolved and its image list and class file read.
pub(super) struct ResolvedSource<'a> {
    pub(super) annotations: &'a Path,
    /// The image folder, which file names are relative to.
    pub(super) folder: PathBuf,
    /// Whether `folder` is the default image folder, which contains only images of these annotations.
    pub(super) is_default_folder: bool,
    pub(super) list: Option<ImageList>,
    /// The classes of the class file, if one is given.
    pub(super) classes: Option<Vec<Class>>,
    pub(super) size_of: &'a ImageSize<'a>,
}

impl Source {
    /// All data at `annotations`, with defaults for everything else.
    pub fn new(annotations: impl Into<PathBuf>) -> Self {
        Self { annotations: annotations.into(), ..Self::default() }
    }

    /// All paths that are set.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { annotations, images, format: _, list, classes } = self;
        std::iter::once(annotations).chain(images).chain(list).chain(classes)
    }

    /// Reads the data set. `size_of` is called for image sizes that the annotations do not contain.
    ///
    /// # Errors
    /// When a file or folder cannot be read or is not as expected, when `on_problem` refuses entries, or when there are
    /// no images.
    pub fn read(&self, on_problem: OnProblem, size_of: &ImageSize) -> Result<(Dataset, Report), DataError> {
        let format = self.format.map_or_else(|| Format::detect(&self.annotations), Ok)?;
        let source = self.resolve(format, size_of)?;
        let draft = match format {
            Format::Coco => coco::draft(&source),
            Format::Voc => voc::draft(&source),
            Format::Csv => csv::draft(&source),
            Format::Yolo => yolo::draft(&source),
        };
        let path = self.annotations.clone();
        let (mut dataset, report) = match draft?.check(on_problem) {
            Ok(checked) => checked,
            Err(report) => return Err(DataError::Refused { path, report }),
        };
        if dataset.images.is_empty() {
            return Err(DataError::NoImages { path, folder: source.folder, report });
        }
        dataset.folder = source.folder;
        Ok((dataset, report))
    }

    fn resolve<'a>(&'a self, format: Format, size_of: &'a ImageSize) -> Result<ResolvedSource<'a>, DataError> {
        if let (Format::Coco, Some(path)) = (format, &self.classes) {
            return Err(DataError::invalid(path, "is not used: COCO JSON has its own classes; remove `classes`"));
        }
        let default = format.default_image_folder(&self.annotations);
        let folder = self.images.clone().unwrap_or_else(|| default.clone());
        let is_default_folder = folder == default
            || folder.canonicalize().ok().is_some_and(|folder| default.canonicalize().ok() == Some(folder));
        Ok(ResolvedSource {
            annotations: &self.annotations,
            folder,
            is_default_folder,
            list: self.list.as_deref().map(ImageList::read).transpose()?,
            classes: self.classes.as_deref().map(classes::read).transpose()?,
            size_of,
        })
    }
}

impl ResolvedSource<'_> {
    /// The items that the image list selects (without a list: all), and a problem for every entry without a match.
    pub(super) fn select<T>(
        &self,
        items: Vec<T>,
        name_of: impl Fn(&T) -> &str,
    ) -> Result<(Vec<T>, Vec<Problem>), DataError> {
        match &self.list {
            Some(list) => list.select(items, name_of),
            None => Ok((items, Vec::new())),
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

    /// A folder with the same image and box in all formats.
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
    fn formats_are_detected_and_give_the_same_data() {
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
    fn default_image_folder_depends_on_the_format() {
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
    fn wrong_format_is_an_error() {
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
    fn error_without_images_contains_the_reason() {
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
            assert!(error.contains("has no usable images; image folder: "), "{error}");
        }
    }

    #[test]
    fn paths_mut_returns_all_paths() {
        let mut sources = [Source::new("a"), Source::new("b")];
        sources[1].images = Some("c".into());
        sources[1].list = Some("d".into());
        sources[1].classes = Some("e".into());
        for path in sources.iter_mut().flat_map(Source::paths_mut) {
            *path = Path::new("base").join(&*path);
        }
        let path = |name: &str| Some(Path::new("base").join(name));
        let expected =
            Source { images: path("c"), format: None, list: path("d"), classes: path("e"), ..Source::new("base/b") };
        assert_eq!(sources, [Source::new("base/a"), expected]);
    }

    #[test]
    fn class_file_is_an_error_for_coco() {
        let folder = all_formats();
        let classes = Some(folder.path().join("list.txt"));
        let error =
            read(&Source { classes, ..Source::new(folder.path().join("coco.json")) }, OnProblem::Drop).unwrap_err();
        assert!(error.to_string().contains("remove `classes`"), "{error}");
    }

    #[test]
    fn source_is_read_from_yaml_and_unknown_keys_are_errors() {
        let source: Source = serde_yaml::from_str("{annotations: a, format: voc, list: b}").unwrap();
        let expected = Source { format: Some(Format::Voc), list: Some("b".into()), ..Source::new("a") };
        assert_eq!(source, expected);
        let text = serde_yaml::to_string(&source).unwrap();
        assert_eq!(serde_yaml::from_str::<Source>(&text).unwrap(), expected);
        let error = serde_yaml::from_str::<Source>("{annotations: a, folder: b}").unwrap_err().to_string();
        assert!(error.contains("unknown field `folder`"), "{error}");
    }
}
