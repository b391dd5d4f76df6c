//! CSV, as keras-retinanet and yhenon/pytorch-retinanet have it: a line `path,x1,y1,x2,y2,class` per box, in any order, and
//! `path,,,,,` for an image without boxes. <https://github.com/yhenon/pytorch-retinanet#csv-datasets>
//!
//! The numbers are the edges of the box in pixels: its width is `x2 - x1`. They need not be whole. There is no header. Paths
//! are relative to the image folder.

use std::collections::BTreeMap;
use std::path::Path;

use ::csv::StringRecord;

use super::error::DataError;
use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::text;
use crate::rectangle::Rectangle;

/// Parses the file, without checking it.
pub(super) fn parse(path: &Path) -> Result<Parsed, DataError> {
    let text = text::read_text(path)?;
    let mut images: BTreeMap<String, ParsedImage> = BTreeMap::new();
    for row in text::rows(path, &text) {
        let (line, row) = row?;
        let at_line = |reason| DataError::line(path, line, reason);
        let (file_name, drawn) = read(&row).map_err(|reason| at_line(with_hint(line, &row, reason)))?;
        images.entry(file_name.to_owned()).or_default().boxes.extend(drawn);
    }
    let images = images.into_iter().map(|(file_name, image)| ParsedImage { file_name, ..image });
    Ok(Parsed { images: images.collect(), ..Parsed::default() })
}

/// The image of a row, and the box on it if there is one.
fn read(row: &StringRecord) -> Result<(&str, Option<ParsedBox>), String> {
    let fields: Vec<_> = row.iter().collect();
    let Ok([file_name, corners @ .., class]) = <[&str; 6]>::try_from(fields) else {
        return Err(format!("expected 6 columns, path,x1,y1,x2,y2,class, and found {}", row.len()));
    };
    if file_name.is_empty() {
        return Err("the path is missing".to_owned());
    }
    if class.is_empty() && corners == [""; 4] {
        return Ok((file_name, None));
    }
    let [x1, y1, x2, y2] = corners.map(text::number);
    let geometry = Geometry::Pixels(Rectangle::between([x1?, y1?, x2?, y2?]));
    if class.is_empty() {
        return Err("the class is missing".to_owned());
    }
    Ok((file_name, Some(ParsedBox::new(ClassKey::Name(class.to_owned()), geometry))))
}

/// What to say of a row: the first may be a header.
fn with_hint(line: u64, row: &StringRecord, reason: String) -> String {
    let header = line == 1 && row.iter().all(|field| text::number(field).is_err());
    if header { format!("{reason}; if this is a header, remove it") } else { reason }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_sound};
    use super::super::{OnProblem, ProblemKind, Source};

    /// Where this CSV is, beside empty images `a.jpg`, `b, c.jpg` and `d.jpg`.
    fn source(text: &str) -> (tempfile::TempDir, Source) {
        let folder = folder(&[("boxes.csv", text), ("a.jpg", ""), ("b, c.jpg", ""), ("d.jpg", "")]);
        let source = Source::new(folder.path().join("boxes.csv"));
        (folder, source)
    }

    #[test]
    fn rows_of_an_image_need_not_be_adjacent_and_an_image_may_be_without_boxes() {
        let text = "d.jpg,1,2,11,22,dog\na.jpg,0,0,1.5,1,cat\n\"b, c.jpg\",,,,,\nd.jpg, 5 ,5,6,6, cat\n";
        let expected =
            ["a.jpg 200x100: cat 0 0 1.5 1", "b, c.jpg 200x100:", "d.jpg 200x100: dog 1 2 10 20, cat 5 5 1 1"];
        for text in [text, &text.replace('\n', "\r\n"), &format!("\u{feff}{text}\n\n")] {
            assert_eq!(read_sound(&source(text).1), expected);
        }
    }

    #[test]
    fn classes_are_numbered_by_name_unless_a_file_says_otherwise() {
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
        assert_eq!(report.to_string(), "1 box of unknown category dropped: d.jpg annotation 3 (class `cow`)");
    }

    #[test]
    fn rows_that_make_no_sense_are_named_by_line() {
        let cases = [
            (
                "a.jpg,1,2,3,4,dog\n\na.jpg,1,2,3,4\n",
                "boxes.csv` line 3: expected 6 columns, path,x1,y1,x2,y2,class, and found 5",
            ),
            ("a.jpg,1,2,3,4,dog\na.jpg,1,2,x,4,dog\n", "line 2: `x` is not a number"),
            ("a.jpg,1,2,,,dog", "line 1: `` is not a number"),
            ("a.jpg,1,2,3,4,", "line 1: the class is missing"),
            (",1,2,3,4,dog", "line 1: the path is missing"),
            (
                "filename,xmin,ymin,xmax,ymax,class\na.jpg,1,2,3,4,dog",
                "line 1: `xmin` is not a number; if this is a header",
            ),
            ("a;1;2;3;4;dog", "class, and found 1"),
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
    fn images_that_are_not_there_are_reported_and_boxes_on_them_dropped() {
        let (_folder, source) = source("a.jpg,1,2,3,4,dog\ngone.jpg,1,2,3,4,dog\n");
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 image that cannot be read: gone.jpg (not found in the image folder)"), "{error}");
        let (dataset, report) = read(&source, OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["a.jpg 200x100: dog 1 2 2 2"]);
        assert_eq!([ProblemKind::Unreadable, ProblemKind::DroppedImage].map(|kind| report.count(kind)), [1, 1]);
        let (dataset, _) = read(&source, OnProblem::Keep).unwrap();
        assert_eq!(lines(&dataset)[1], "gone.jpg 0x0: dog 1 2 2 2");
    }
}
