//! The format of a data set's files.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf, absolute};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::parsed::Parsed;
use super::{coco, csv, folder, text, voc, yolo};

/// Names of the parts of a data set.
const PARTS: [&str; 5] = ["train", "val", "valid", "validation", "test"];

/// A format of annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON file. <https://cocodataset.org/#format-data>
    Coco,
    /// A folder of XML files, one per image. The numbers are taken as edges, as in the other formats; nothing is shifted,
    /// although VOC itself counts from 1. <http://host.robots.ox.ac.uk/pascal/VOC/>
    Voc,
    /// Lines `path,x1,y1,x2,y2,class`. <https://github.com/yhenon/pytorch-retinanet#csv-datasets>
    Csv,
    /// A folder of text files, one per image. The images are those of the list; without list, those with labels, and
    /// in the default image folder all others too, which then have no boxes.
    /// <https://docs.ultralytics.com/datasets/detect/>
    Yolo,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Coco, Self::Voc, Self::Csv, Self::Yolo];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coco => "coco",
            Self::Voc => "voc",
            Self::Csv => "csv",
            Self::Yolo => "yolo",
        }
    }

    /// The annotations at `path`, and their format. In the folder of a data set, they are where Roboflow, CVAT and others put
    /// them.
    pub(super) fn detect(path: &Path) -> Result<(PathBuf, Self), DataError> {
        /// More than anyone puts before the first brace.
        const HEAD: u64 = 4096;
        if path.is_dir() {
            return Self::detect_in_folder(path);
        }
        let mut head = Vec::new();
        let file = File::open(path).map_err(text::cannot_read(path))?;
        file.take(HEAD).read_to_end(&mut head).map_err(text::cannot_read(path))?;
        let head = String::from_utf8(text::to_utf8(head))
            .unwrap_or_else(|head| String::from_utf8_lossy(head.as_bytes()).into());
        let name = path.to_string_lossy();
        let format = match head.trim_start().chars().next() {
            Some('{') => Self::Coco,
            _ if folder::has_extension(&name, &["json"]) => Self::Coco,
            Some('<') => {
                return Err(DataError::invalid(path, "is a single XML file; give the folder that contains it"));
            }
            _ if folder::has_extension(&name, &["yaml", "yml"]) => {
                let reason = "is YAML, which has no boxes; give the label folder, and this file as `classes`";
                return Err(DataError::invalid(path, reason));
            }
            _ => Self::Csv,
        };
        Ok((path.to_owned(), format))
    }

    fn detect_in_folder(path: &Path) -> Result<(PathBuf, Self), DataError> {
        /// Where Roboflow puts them, in each part.
        const ROBOFLOW: &str = "_annotations.coco.json";
        let coco = [ROBOFLOW, "annotations/instances_default.json"].map(|file| path.join(file));
        if let Some(file) = coco.into_iter().find(|file| file.is_file()) {
            return Ok((file, Self::Coco));
        }
        let known = [("Annotations", Self::Voc), ("labels", Self::Yolo), ("obj_train_data", Self::Yolo)];
        let known = known.map(|(name, format)| (path.join(name), format));
        let (path, found) = match known.into_iter().find(|(folder, _)| folder.is_dir()) {
            Some((folder, format)) => (folder, Some(format)),
            None => (path.to_owned(), None),
        };
        let is_part = |folder: &Path| ["images", "labels", ROBOFLOW].iter().any(|name| folder.join(name).exists());
        let parts = folder::folders(&path)?.into_iter();
        let parts: Vec<_> = parts.filter(|name| PARTS.contains(&&**name) || is_part(&path.join(name))).collect();
        if parts.len() > 1 {
            let reason = format!("has the parts {}; give one of these folders", parts.join(", "));
            return Err(DataError::invalid(&path, reason));
        }
        if let Some(format) = found {
            return Ok((path, format));
        }
        let format = match (folder::below(&path, &["xml"])?.is_empty(), yolo::label_files(&path)?.is_empty()) {
            (false, true) => Self::Voc,
            (true, false) => Self::Yolo,
            (false, false) => {
                let reason = "has both XML files (VOC) and text files (YOLO); set `format` to voc or yolo";
                return Err(DataError::invalid(&path, reason));
            }
            (true, true) => {
                let reason = "has neither XML files (VOC) nor text files (YOLO); give the folder that has, or a COCO JSON \
                              or CSV file, and its `format` (coco, voc, csv, yolo) if it is not recognized";
                return Err(DataError::invalid(&path, reason));
            }
        };
        Ok((path, format))
    }

    /// Parses the annotations, without checking them. `has_names`: the classes are in a file of their own.
    pub(super) fn parse(self, annotations: &Path, has_names: bool) -> Result<Parsed, DataError> {
        match self {
            Self::Coco => coco::parse(annotations),
            Self::Voc => voc::parse(annotations),
            Self::Csv => csv::parse(annotations),
            Self::Yolo => yolo::parse(annotations, has_names),
        }
    }

    /// The default image folder: that of the file for COCO and CSV, or for COCO's layout `images` next to `annotations`;
    /// `JPEGImages` next to VOC's annotations; for YOLO that with `images` for the last `labels` in the path. If VOC's or YOLO's
    /// does not exist, the folder of annotations.
    pub(super) fn image_folder(self, annotations: &Path) -> PathBuf {
        let path = absolute(annotations).unwrap_or_else(|_| annotations.to_owned());
        let found = match self {
            Self::Coco | Self::Csv => {
                let own = folder::folder_of(annotations);
                let is_layout =
                    self == Self::Coco && path.parent().is_some_and(|folder| folder.ends_with("annotations"));
                let images = path.parent().unwrap_or(&path).with_file_name("images");
                return if is_layout && images.is_dir() { images } else { own };
            }
            Self::Voc => path.canonicalize().unwrap_or(path).with_file_name("JPEGImages"),
            Self::Yolo => {
                let parts: Vec<_> = path.components().collect();
                let labels = parts.iter().rposition(|part| part.as_os_str() == "labels");
                let images =
                    |(index, part)| if Some(index) == labels { Component::Normal("images".as_ref()) } else { part };
                parts.into_iter().enumerate().map(images).collect()
            }
        };
        if found.is_dir() { found } else { annotations.to_owned() }
    }
}

impl Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text that is not the name of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a data set format, expected coco, voc, csv or yolo")]
pub struct ParseFormatError {
    /// The text.
    pub found: String,
}

impl FromStr for Format {
    type Err = ParseFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let format = Self::ALL.into_iter().find(|format| format.name() == text);
        format.ok_or_else(|| ParseFormatError { found: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, read};
    use super::super::{OnProblem, Source};
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let folder = folder(&[
            ("both/a.xml", "<annotation/>"),
            ("both/a.txt", ""),
            ("splits/labels/train/a.txt", ""),
            ("splits/labels/val/a.txt", ""),
            ("roboflow/train/labels/a.txt", ""),
            ("roboflow/valid/labels/a.txt", ""),
            ("roboflow/README.roboflow.txt", ""),
            ("none/a.jpg", ""),
            ("data.yaml", "names: [a]"),
            ("a.xml", "<annotation/>"),
        ]);
        let cases = [
            ("both", "set `format` to voc or yolo"),
            ("none", "neither XML files (VOC) nor text files (YOLO)"),
            ("splits", "labels` has the parts train, val; give one of these folders"),
            ("roboflow", "has the parts train, valid; give one of these folders"),
            ("data.yaml", "give the label folder, and this file as `classes`"),
            ("a.xml", "is a single XML file; give the folder"),
            ("missing", "cannot read `"),
        ];
        for (annotations, message) in cases {
            let source = Source::new(folder.path().join(annotations));
            let error = read(&source, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(annotations), "{error}");
        }
    }

    #[test]
    fn folders_of_other_tools_are_read_as_they_are() {
        let coco = r#"{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "dog"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [90, 40, 20, 20]}]}"#;
        let xml = "<annotation><object><name>dog</name><bndbox><xmin>90</xmin><ymin>40</ymin><xmax>110</xmax>\
                   <ymax>60</ymax></bndbox></object></annotation>";
        let label = "0 0.5 0.5 0.1 0.2";
        let cases: [(&str, &[(&str, &str)]); 6] = [
            ("Roboflow COCO", &[("x/_annotations.coco.json", coco), ("x/a.jpg", "")]),
            ("CVAT COCO", &[("x/annotations/instances_default.json", coco), ("x/images/default/a.jpg", "")]),
            ("VOC", &[("x/Annotations/a.xml", xml), ("x/JPEGImages/a.jpg", ""), ("x/labelmap.txt", "# label")]),
            ("Roboflow VOC", &[("x/a.xml", xml), ("x/a.jpg", "")]),
            (
                "CVAT YOLO",
                &[
                    ("x/obj_train_data/a.txt", label),
                    ("x/obj_train_data/a.jpg", ""),
                    ("x/obj.names", "dog\n"),
                    ("x/obj.data", "classes = 1\nnames = data/obj.names\n"),
                    ("x/train.txt", "data/obj_train_data/a.jpg\n"),
                ],
            ),
            (
                "Label Studio YOLO",
                &[
                    ("x/labels/a.txt", label),
                    ("x/images/a.jpg", ""),
                    ("x/classes.txt", "dog\n"),
                    ("x/notes.json", "{}"),
                ],
            ),
        ];
        for (tool, files) in cases {
            let folder = folder(files);
            let (dataset, report) = read(&Source::new(folder.path().join("x")), OnProblem::Refuse).unwrap();
            let [image] = &dataset.images[..] else { panic!("{tool}: {dataset:?}") };
            assert!(dataset.path_of(0).is_file() && image.width == 200, "{tool}: {image:?}");
            let names: Vec<_> = dataset.classes.iter().map(|class| class.name.as_str()).collect();
            let rectangle = dataset.annotations[0].rectangle;
            let sides = [rectangle.x, rectangle.y, rectangle.width, rectangle.height];
            assert_eq!(
                (names, sides, report.to_string()),
                (vec!["dog"], [90.0, 40.0, 20.0, 20.0], String::new()),
                "{tool}"
            );
        }
    }

    #[test]
    fn formats_parse_from_their_names() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            assert_eq!(serde_yaml::from_str::<Format>(format.name()).unwrap(), format);
        }
        assert_eq!(
            "COCO".parse::<Format>().unwrap_err().to_string(),
            "`COCO` is not a data set format, expected coco, voc, csv or yolo"
        );
    }
}
