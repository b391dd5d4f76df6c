//! CSV as in keras-retinanet and yhenon/pytorch-retinanet: one line `path,x1,y1,x2,y2,class` per box, in any order, and
//! `path,,,,,` for an image without boxes. <https://github.com/yhenon/pytorch-retinanet#csv-datasets>
//!
//! Coordinates are box edges in pixels, so the width is `x2 - x1`; they need not be integers. There is no header. Paths
//! are relative to the image folder.

use std::collections::BTreeMap;
use std::path::Path;

use ::csv::{Position, ReaderBuilder, StringRecord, Trim};

use super::draft::{ClassKey, Draft};
use super::labeled::{LabeledBox, LabeledImage, fill_sizes};
use super::source::ResolvedSource;
use super::{DataError, Rectangle, classes, files};

/// Reads images and boxes of a file. Without a class file, the classes are those of all rows, listed or not.
pub(super) fn draft(source: &ResolvedSource) -> Result<Draft, DataError> {
    let text = files::read_text(source.annotations)?;
    let mut images: BTreeMap<String, LabeledImage> = BTreeMap::new();
    for row in rows(source.annotations, &text) {
        let (line, row) = row?;
        let at_line = |reason| DataError::line(source.annotations, line, reason);
        let (file_name, labeled) = parse_row(&row).map_err(|reason| at_line(with_hint(line, &row, reason)))?;
        let image = images.entry(file_name.to_owned()).or_insert_with_key(|name| LabeledImage::new(name.clone()));
        image.boxes.extend(labeled);
    }
    let classes = source.classes.clone().unwrap_or_else(|| classes::from_names(images.values().flat_map(class_names)));
    let images = images.into_values().collect();
    let (mut images, problems) = source.select(images, |image| &image.file_name)?;
    fill_sizes(&mut images, &source.folder, source.size_of);
    Ok(Draft::from_labeled(images, classes, problems))
}

/// The rows of a CSV text without header, each with the number of its first line. Rows may differ in length.
pub(super) fn rows(path: &Path, text: &str) -> impl Iterator<Item = Result<(u64, StringRecord), DataError>> {
    let mut builder = ReaderBuilder::new();
    let reader = builder.has_headers(false).flexible(true).trim(Trim::All).from_reader(text.as_bytes());
    reader.into_records().map(move |row| match row {
        Ok(row) => Ok((row.position().map_or(0, |position| line_number(text, position)), row)),
        Err(error) => Err(DataError::invalid(path, format!("is not CSV: {error}"))),
    })
}

/// The number of a row's first line. `position` is before any empty lines that precede the row.
fn line_number(text: &str, position: &Position) -> u64 {
    let rest = text.as_bytes().get(position.byte() as usize..).unwrap_or_default();
    let before = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() + before.filter(|byte| **byte == b'\n').count() as u64
}

/// The image path of a row, and its box if it has one.
fn parse_row(row: &StringRecord) -> Result<(&str, Option<LabeledBox>), String> {
    let fields: Vec<_> = row.iter().collect();
    let Ok([file_name, corners @ .., class]) = <[&str; 6]>::try_from(fields) else {
        return Err(format!("expected 6 columns (path,x1,y1,x2,y2,class), found {}", row.len()));
    };
    if file_name.is_empty() {
        return Err("the path is missing".to_owned());
    }
    if class.is_empty() && corners == [""; 4] {
        return Ok((file_name, None));
    }
    let [x1, y1, x2, y2] = corners.map(files::parse_number);
    let rectangle = Rectangle::between([x1?, y1?, x2?, y2?]);
    if class.is_empty() {
        return Err("the class is missing".to_owned());
    }
    Ok((file_name, Some(LabeledBox { class: ClassKey::Name(class.to_owned()), rectangle })))
}

/// Adds a hint to the reason if the row could be a header.
fn with_hint(line: u64, row: &StringRecord, reason: String) -> String {
    let header = line == 1 && row.iter().all(|field| files::parse_number(field).is_err());
    if header { format!("{reason}; if this is a header, remove it") } else { reason }
}

fn class_names(image: &LabeledImage) -> impl Iterator<Item = &str> {
    image.boxes.iter().filter_map(|labeled| match &labeled.class {
        ClassKey::Name(name) => Some(name.as_str()),
        ClassKey::Id(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, ProblemKind, Source};

    /// A folder with this CSV and the empty images `a.jpg`, `b, c.jpg` and `d.jpg`, and its source.
    fn source(text: &str) -> (tempfile::TempDir, Source) {
        let folder = folder(&[("boxes.csv", text), ("a.jpg", ""), ("b, c.jpg", ""), ("d.jpg", "")]);
        let source = Source::new(folder.path().join("boxes.csv"));
        (folder, source)
    }

    #[test]
    fn rows_of_an_image_may_be_scattered_and_images_may_have_no_boxes() {
        let text = "d.jpg,1,2,11,22,dog\na.jpg,0,0,1.5,1,cat\n\"b, c.jpg\",,,,,\nd.jpg, 5 ,5,6,6, cat\n";
        let expected =
            ["a.jpg 200x100: cat 0 0 1.5 1", "b, c.jpg 200x100:", "d.jpg 200x100: dog 1 2 10 20, cat 5 5 1 1"];
        for text in [text, &text.replace('\n', "\r\n"), &format!("\u{feff}{text}\n\n")] {
            assert_eq!(read_valid(&source(text).1), expected);
        }
    }

    #[test]
    fn classes_are_sorted_by_name_unless_a_class_file_is_given() {
        let (folder, mut source) = source("a.jpg,0,0,1,1,dog\nd.jpg,0,0,1,1,cat\nd.jpg,0,0,1,1,cow");
        let ids = |source: &Source| {
            let (dataset, report) = read(source, OnProblem::Drop).unwrap();
            (dataset.classes.iter().map(|class| (class.id, class.name.clone())).collect::<Vec<_>>(), report)
        };
        let names =
            |names: &[(i64, &str)]| names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect::<Vec<_>>();
        assert_eq!(ids(&source).0, names(&[(0, "cat"), (1, "cow"), (2, "dog")]));

        let path = folder.path().join("classes.csv");
        std::fs::write(&path, "dog,3\ncat,4\n").unwrap();
        source.classes = Some(path);
        let (classes, report) = ids(&source);
        assert_eq!(classes, names(&[(3, "dog"), (4, "cat")]));
        assert_eq!(report.to_string(), "1 box with an unknown class, dropped: d.jpg annotation 3 (class `cow`)");
    }

    #[test]
    fn invalid_rows_are_reported_with_their_line() {
        let cases = [
            (
                "a.jpg,1,2,3,4,dog\n\na.jpg,1,2,3,4\n",
                "boxes.csv` line 3: expected 6 columns (path,x1,y1,x2,y2,class), found 5",
            ),
            ("a.jpg,1,2,3,4,dog\na.jpg,1,2,x,4,dog\n", "line 2: `x` is not a number"),
            ("a.jpg,1,2,,,dog", "line 1: `` is not a number"),
            ("a.jpg,1,2,3,4,", "line 1: the class is missing"),
            (",1,2,3,4,dog", "line 1: the path is missing"),
            (
                "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,dog",
                "line 1: `xmin` is not a number; if this is a header",
            ),
            ("a;1;2;3;4;dog", "class), found 1"),
            ("a.jpg,1,2,3,4,\"dog\na.jpg,1,2,3,4,dog", "line 1: "),
            ("\0\0", "line 1: expected 6 columns"),
        ];
        for (text, message) in cases {
            match read(&source(text).1, OnProblem::Drop) {
                Err(error) => assert!(error.to_string().contains(message), "{error}"),
                Ok((dataset, _)) => assert_eq!(lines(&dataset), ["a.jpg 200x100: dog\na.jpg,1,2,3,4,dog 1 2 2 2"]),
            }
        }
    }

    #[test]
    fn missing_images_are_reported_and_their_boxes_dropped() {
        let (_folder, source) = source("a.jpg,1,2,3,4,dog\ngone.jpg,1,2,3,4,dog\n");
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 image that cannot be read: gone.jpg (file not found)"), "{error}");
        let (dataset, report) = read(&source, OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["a.jpg 200x100: dog 1 2 2 2"]);
        assert_eq!([ProblemKind::Unreadable, ProblemKind::DroppedImage].map(|kind| report.count(kind)), [1, 1]);
        let (dataset, _) = read(&source, OnProblem::Keep).unwrap();
        assert_eq!(lines(&dataset)[1], "gone.jpg 0x0: dog 1 2 2 2");
    }
}
