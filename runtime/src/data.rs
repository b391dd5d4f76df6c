//! Data sets: their command-line arguments, and reading them with the sizes of their images.

mod detect;

#[cfg(feature = "args")]
use std::path::PathBuf;

#[cfg(feature = "args")]
use clap::builder::{PossibleValuesParser, TypedValueParser};
#[cfg(feature = "args")]
use models::dataset::Format;
use models::dataset::{DataError, Dataset, OnProblem, Report, Source};

use crate::image_file;
pub use detect::{DetectDatasetError, class_indices, detect_dataset};

/// Arguments of a data set. Programs flatten this into their own arguments.
#[cfg(feature = "args")]
#[derive(Clone, Debug, clap::Args)]
pub struct DataArgs {
    /// Annotations: COCO JSON file, CSV file, folder of Pascal VOC XML files or folder of YOLO text files.
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data")]
    pub data: PathBuf,

    /// Folder that the annotations' file names are relative to [default: COCO, CSV: the file's folder; VOC: `JPEGImages`
    /// next to --data; YOLO: `images` in place of `labels`; else --data].
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub images: Option<PathBuf>,

    /// Format of the annotations [default: detected].
    #[arg(long, value_parser = format_parser(), help_heading = "Data")]
    pub format: Option<Format>,

    /// Text file that names the images to use, one per line, such as VOC's ImageSets/Main/test.txt [default: all].
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub list: Option<PathBuf>,

    /// Class names for CSV, VOC and YOLO: CSV `name,id`, one name per line, or YOLO's data.yaml [default: the names in the
    /// data, sorted].
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub classes: Option<PathBuf>,
}

#[cfg(feature = "args")]
impl DataArgs {
    /// The arguments as a [`Source`].
    pub fn source(&self) -> Source {
        let Self { data, images, format, list, classes } = self.clone();
        Source { annotations: data, images, format, list, classes }
    }
}

/// Reads a data set. Image sizes that its annotation files do not contain are read from the images.
///
/// # Errors
/// Those of [`Source::read`].
pub fn read(source: &Source, on_problem: OnProblem) -> Result<(Dataset, Report), DataError> {
    source.read(on_problem, &|path| image_file::size(path).map_err(|error| error.reason.to_string()))
}

#[cfg(feature = "args")]
fn format_parser() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| name.parse::<Format>())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    #[cfg(feature = "args")]
    use clap::Parser;
    use image::RgbImage;

    use super::*;

    #[cfg(feature = "args")]
    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        data: DataArgs,
    }

    #[cfg(feature = "args")]
    #[test]
    fn arguments_convert_to_a_source() {
        let source = |arguments: &str| Args::try_parse_from(arguments.split(' ')).map(|args| args.data.source());
        assert_eq!(source("test --data a").unwrap(), Source::new("a"));
        let expected = Source {
            annotations: "a".into(),
            images: Some("b".into()),
            format: Some(Format::Yolo),
            list: Some("c".into()),
            classes: Some("d".into()),
        };
        assert_eq!(source("test --data a --images b --format yolo --list c --classes d").unwrap(), expected);
        let error = source("test --data a --format xml").unwrap_err().to_string();
        assert!(error.contains("[possible values: coco, voc, csv, yolo]"), "{error}");
    }

    #[test]
    fn missing_sizes_are_read_from_the_images() {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::new(30, 20).save(folder.path().join("a.png")).unwrap();
        std::fs::write(folder.path().join("b.png"), "no image").unwrap();
        std::fs::write(folder.path().join("boxes.csv"), "a.png,1,2,3,4,dog\nb.png,1,2,3,4,dog\nc.png,,,,,\n").unwrap();
        let (dataset, report) = read(&Source::new(folder.path().join("boxes.csv")), OnProblem::Drop).unwrap();
        assert_eq!((dataset.images().len(), dataset.images()[0].width, dataset.images()[0].height), (1, 30, 20));
        let report = report.to_string();
        for part in
            ["2 images that cannot be read, dropped: b.png (not a JPEG, PNG", "c.png (not found in the image folder"]
        {
            assert!(report.contains(part), "{report}");
        }
    }

    #[test]
    fn sizes_read_from_images_equal_those_in_coco_annotations() {
        let Some(data) = std::env::var_os("RETINANET_DATA") else {
            eprintln!("skipped: RETINANET_DATA is not set");
            return;
        };
        let folder = PathBuf::from(data).join("bccd");
        let sizes = |file: &str| {
            let images = Some(folder.join("JPEGImages"));
            let source = Source { images, ..Source::new(folder.join("derived").join(file)) };
            let (dataset, _) = read(&source, OnProblem::Drop).unwrap();
            dataset.images().iter().map(|image| (image.width, image.height)).collect::<Vec<_>>()
        };
        assert_eq!(sizes("test.csv"), sizes("instances_test.json"));
    }
}
