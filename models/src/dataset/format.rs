//! Annotation formats and their detection.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DataError, files, voc, yolo};

/// Format of the annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON file. <https://cocodataset.org/#format-data>
    Coco,
    /// A folder of XML files, one per image. Coordinates are treated as edges, as in the other formats, and not
    /// shifted, although those of VOC itself are 1-based. <http://host.robots.ox.ac.uk/pascal/VOC/>
    Voc,
    /// Lines `path,x1,y1,x2,y2,class`. <https://github.com/yhenon/pytorch-retinanet#csv-datasets>
    Csv,
    /// A folder of text files, one per image. The images are those of the image list; without a list, those with a
    /// label file and, in the default image folder, all others, as images without boxes.
    /// <https://docs.ultralytics.com/datasets/detect/>
    Yolo,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Coco, Self::Voc, Self::Csv, Self::Yolo];

    /// The name in configurations and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coco => "coco",
            Self::Voc => "voc",
            Self::Csv => "csv",
            Self::Yolo => "yolo",
        }
    }

    /// Detects the format of the file or folder at `path`.
    pub(super) fn detect(path: &Path) -> Result<Self, DataError> {
        /// Bytes to read: enough for any whitespace before the first brace.
        const HEAD: u64 = 4096;
        if path.is_dir() {
            return Self::detect_in_folder(path);
        }
        let mut head = Vec::new();
        let file = File::open(path).map_err(files::cannot_read(path))?;
        file.take(HEAD).read_to_end(&mut head).map_err(files::cannot_read(path))?;
        let head = String::from_utf8_lossy(&head);
        let name = path.to_string_lossy();
        match head.trim_start_matches('\u{feff}').trim_start().chars().next() {
            Some('{') => Ok(Self::Coco),
            _ if files::has_extension(&name, &["json"]) => Ok(Self::Coco),
            Some('<') => Err(DataError::invalid(path, "is a single XML file; pass the folder that contains it")),
            _ if files::has_extension(&name, &["yaml", "yml"]) => {
                let reason = "is YAML, which contains no boxes; pass the label folder, and this file as `classes`";
                Err(DataError::invalid(path, reason))
            }
            _ => Ok(Self::Csv),
        }
    }

    fn detect_in_folder(path: &Path) -> Result<Self, DataError> {
        let voc = !voc::annotation_files(path)?.is_empty();
        // `path` may be the root folder of a data set, where text files are not labels.
        let subfolder = ["Annotations", "labels"].into_iter().find(|name| !voc && path.join(name).is_dir());
        if let Some(name) = subfolder {
            return Err(DataError::invalid(path, format!("has a subfolder `{name}`; pass that or a folder in it")));
        }
        let yolo = !yolo::label_files(path)?.is_empty();
        let found = match (voc, yolo) {
            (true, false) => return Ok(Self::Voc),
            (false, true) => return Ok(Self::Yolo),
            (true, true) => "has both XML files (VOC) and text files (YOLO); set `format` to voc or yolo",
            (false, false) => {
                "has neither XML files (VOC) nor text files (YOLO); pass a folder that does, or a COCO JSON or CSV \
                 file; set `format` (coco, voc, csv, yolo) if it is not detected"
            }
        };
        Err(DataError::invalid(path, found))
    }

    /// The image folder if none is given.
    pub(super) fn default_image_folder(self, annotations: &Path) -> PathBuf {
        let found = match self {
            Self::Coco | Self::Csv => Some(folder_of(annotations)),
            Self::Voc => voc::image_folder(annotations),
            Self::Yolo => yolo::image_folder(annotations),
        };
        found.unwrap_or_else(|| annotations.to_owned())
    }
}

/// The folder that contains a file.
pub(super) fn folder_of(file: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).to_owned()
}

impl Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The text is not the name of a format.
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
    fn undetected_formats_are_errors_with_the_next_step() {
        let files = [
            ("both/a.xml", "<annotation/>"),
            ("both/a.txt", ""),
            ("root/labels/train/a.txt", ""),
            ("root/README.txt", ""),
            ("none/a.jpg", ""),
            ("data.yaml", "names: [a]"),
            ("a.xml", "<annotation/>"),
        ];
        let folder = folder(&files);
        let cases = [
            ("both", "set `format` to voc or yolo"),
            ("none", "neither XML files (VOC) nor text files (YOLO)"),
            ("root", "has a subfolder `labels`; pass that or a folder in it"),
            ("data.yaml", "pass the label folder, and this file as `classes`"),
            ("a.xml", "is a single XML file; pass the folder"),
            ("missing", "cannot read `"),
        ];
        for (annotations, message) in cases {
            let source = Source::new(folder.path().join(annotations));
            let error = read(&source, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(annotations), "{error}");
        }
    }

    #[test]
    fn format_names_round_trip() {
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
