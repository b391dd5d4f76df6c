//! CSV, as keras-retinanet and yhenon/pytorch-retinanet have it: a line `path,x1,y1,x2,y2,class` per box, in any order, and
//! `path,,,,,` for an image without boxes. <https://github.com/yhenon/pytorch-retinanet#csv-datasets>
//!
//! The numbers are the edges of the box in pixels: its width is `x2 - x1`. They need not be whole. Columns are separated by
//! commas, semicolons or tabs. A header with known names, as TensorFlow, DeepForest and others write it, gives the order of the
//! columns; other columns are ignored. Paths are relative to the image folder.

use std::collections::BTreeMap;
use std::path::Path;

use ::csv::StringRecord;

use super::error::DataError;
use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::report::Problem;
use super::text;
use crate::rectangle::Rectangle;

/// Names of columns in headers, in lower case.
const PATH: &[&str] =
    &["path", "image_path", "filename", "file_name", "file", "image", "image_name", "image_id", "img_path"];
const CLASS: &[&str] = &["class", "label", "name", "class_name", "category", "category_name", "labels"];
const LEFT: &[&str] = &["x1", "xmin", "x_min", "left", "x"];
const TOP: &[&str] = &["y1", "ymin", "y_min", "top", "y"];
const RIGHT: &[&str] = &["x2", "xmax", "x_max", "right"];
const BOTTOM: &[&str] = &["y2", "ymax", "y_max", "bottom"];
const WIDTH: &[&str] = &["width", "w", "image_width", "bbox_width"];
const HEIGHT: &[&str] = &["height", "h", "image_height", "bbox_height"];

/// Indices of the columns.
struct Columns {
    path: usize,
    /// Left, top, right, bottom; or left, top, width, height.
    edges: [usize; 4],
    has_sides: bool,
    /// Whether there is no header.
    is_plain: bool,
    class: usize,
    /// Width and height of the image.
    size: Option<[usize; 2]>,
}

/// Parses the file, without checking it.
pub(super) fn parse(path: &Path) -> Result<Parsed, DataError> {
    let text = text::read_text(path)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let mut images: BTreeMap<String, ParsedImage> = BTreeMap::new();
    let mut parsed = Parsed::default();
    let mut columns: Option<Columns> = None;
    for row in text::rows(path, &text) {
        let (line, row) = row?;
        let columns = match &columns {
            Some(columns) => columns,
            None => {
                let (first, is_header) = Columns::of(&row).map_err(|reason| DataError::line(path, line, reason))?;
                let columns = columns.insert(first);
                if is_header {
                    continue;
                }
                columns
            }
        };
        let read = columns.read(&row).map_err(|reason| Problem::in_line(&file, line, reason));
        let Some((file_name, size, object)) = parsed.keep(read) else { continue };
        let image = images.entry(file_name.to_owned()).or_default();
        image.size = image.size.or(size);
        image.boxes.extend(object);
    }
    if columns.is_some_and(|columns| columns.is_plain) {
        refuse_sides(path, &images)?;
    }
    parsed.images = images.into_iter().map(|(file_name, image)| ParsedImage { file_name, ..image }).collect();
    Ok(parsed)
}

/// Refuses rows without header of which most would have corners in the wrong order: they are something else.
fn refuse_sides(path: &Path, images: &BTreeMap<String, ParsedImage>) -> Result<(), DataError> {
    let is_swapped = |object: &&ParsedBox| match object.geometry {
        Geometry::Pixels(Rectangle { width, height, .. }) => width < 0.0 || height < 0.0,
        Geometry::Normalized(_) => false,
    };
    let boxes = || images.values().flat_map(|image| &image.boxes);
    let (swapped, all) = (boxes().filter(is_swapped).count(), boxes().count());
    if 2 * swapped <= all {
        return Ok(());
    }
    let reason = format!(
        "has x2 below x1 or y2 below y1 in {swapped} of {all} boxes, which look like widths and heights; if they are, add the \
         header path,x,y,width,height,class"
    );
    Err(DataError::invalid(path, reason))
}

/// Image, its size, and the box on it if there is one.
type Row<'a> = (&'a str, Option<(u32, u32)>, Option<ParsedBox>);

impl Columns {
    /// The columns by the first row, and whether that is a header.
    fn of(row: &StringRecord) -> Result<(Self, bool), String> {
        let plain = Self { path: 0, edges: [1, 2, 3, 4], has_sides: false, is_plain: true, class: 5, size: None };
        let column = |names: &[&str]| {
            names.iter().find_map(|name| row.iter().position(|field| field.eq_ignore_ascii_case(name)))
        };
        let all = |columns: [&[&str]; 4]| {
            let [a, b, c, d] = columns.map(column);
            Some([a?, b?, c?, d?])
        };
        let size = column(WIDTH).zip(column(HEIGHT)).map(|(width, height)| [width, height]);
        let corners = all([LEFT, TOP, RIGHT, BOTTOM]);
        let edges = corners.or_else(|| all([LEFT, TOP, WIDTH, HEIGHT]));
        let columns = (|| Some((column(PATH)?, edges?, column(CLASS)?)))();
        let Some((path, edges, class)) = columns else {
            let count = row.len();
            // pandas leaves the name of its index empty.
            let is_header = count > 1 && row.iter().all(|field| text::number(field).is_err() && !field.is_empty());
            return match (is_header, count) {
                (true, _) => {
                    let names = row.iter().collect::<Vec<_>>().join(",");
                    let expected = "expected a header such as path,x1,y1,x2,y2,class, or none";
                    Err(format!("`{names}` does not name all columns, {expected}"))
                }
                (false, 6) => Ok((plain, false)),
                (false, _) => {
                    let expected = "expected 6 columns (path,x1,y1,x2,y2,class), or a header that names them";
                    Err(format!("{expected}, found {count}"))
                }
            };
        };
        let has_sides = corners.is_none();
        Ok((Self { path, edges, has_sides, is_plain: false, class, size: size.filter(|_| !has_sides) }, true))
    }

    fn read<'a>(&self, row: &'a StringRecord) -> Result<Row<'a>, String> {
        let field =
            |column: usize| row.get(column).ok_or_else(|| format!("found {} columns, fewer than before", row.len()));
        let file_name = field(self.path)?;
        if file_name.is_empty() {
            return Err("the path is missing".to_owned());
        }
        let side = |column: usize| text::whole_number(row.get(column)?).ok().filter(|side| *side > 0);
        let size = self.size.and_then(|[width, height]| side(width).zip(side(height)));
        let class = field(self.class)?;
        let [x1, y1, x2, y2] = self.edges.map(field);
        let edges = [x1?, y1?, x2?, y2?];
        if class.is_empty() && edges == [""; 4] {
            return Ok((file_name, size, None));
        }
        let [x1, y1, x2, y2] = edges.map(text::number);
        let numbers = [x1?, y1?, x2?, y2?];
        let [x, y, width, height] = numbers;
        let rectangle = if self.has_sides { Rectangle { x, y, width, height } } else { Rectangle::between(numbers) };
        if class.is_empty() {
            return Err("the class is missing".to_owned());
        }
        Ok((file_name, size, Some(ParsedBox::new(ClassKey::Name(class.to_owned()), Geometry::Pixels(rectangle)))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, ProblemKind, Source};

    /// Where this CSV is, beside empty images `a.jpg`, `b, c.jpg` and `d.jpg`.
    fn source(text: &str) -> (tempfile::TempDir, Source) {
        let folder = folder(&[("boxes.csv", text), ("a.jpg", ""), ("b, c.jpg", ""), ("d.jpg", "")]);
        let source = Source::new(folder.path().join("boxes.csv"));
        (folder, source)
    }

    #[test]
    fn rows_of_an_image_need_not_be_adjacent_and_images_may_have_no_boxes() {
        let text = "d.jpg,1,2,11,22,dog\na.jpg,0,0,1.5,1,cat\n\"b, c.jpg\",,,,,\nd.jpg, 5 ,5,6,6, cat\n";
        let expected =
            ["a.jpg 200x100: cat 0 0 1.5 1", "b, c.jpg 200x100:", "d.jpg 200x100: dog 1 2 10 20, cat 5 5 1 1"];
        for text in [text, &text.replace('\n', "\r\n"), &format!("\u{feff}{text}\n\n")] {
            assert_eq!(read_valid(&source(text).1), expected);
        }
    }

    #[test]
    fn classes_are_numbered_by_name_without_class_file() {
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
    fn bad_rows_are_named_by_line() {
        let good = "a.jpg,1,2,3,4,dog\n";
        for (row, message) in [
            ("\na.jpg,1,2,3,4\n", "boxes.csv line 3 (found 5 columns"),
            ("a.jpg,1,2,x,4,dog\n", "line 2 (`x` is not a number)"),
            ("a.jpg,1,2,,,dog", "line 2 (`` is not a number)"),
            ("a.jpg,1,2,3,4,", "line 2 (the class is missing)"),
            (",1,2,3,4,dog", "line 2 (the path is missing)"),
        ] {
            let (_folder, source) = source(&format!("{good}{row}"));
            let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
            assert!(
                error.contains("1 entry that cannot be read: boxes.csv line ") && error.contains(message),
                "{error}"
            );
            assert_eq!(lines(&read(&source, OnProblem::Drop).unwrap().0), ["a.jpg 200x100: dog 1 2 2 2"]);
        }
    }

    #[test]
    fn a_first_row_without_known_columns_is_refused() {
        for (text, message) in [
            ("a.jpg,1,2,3,4\n", "boxes.csv` line 1: expected 6 columns (path,x1,y1,x2,y2,class), or a header"),
            ("a.jpg\n", "found 1"),
            ("a,b,c,d,e,f\na.jpg,1,2,3,4,dog", "line 1: `a,b,c,d,e,f` does not name all columns"),
            ("path,x1,y1,x2,y2\na.jpg,1,2,3,4", "does not name all columns"),
            ("\0\0", "line 1: expected 6 columns"),
        ] {
            let error = read(&source(text).1, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn headers_and_separators_of_other_tools_are_understood() {
        let expected = ["a.jpg 200x100: nut 53 2 26 26", "d.jpg 200x100: bolt 0 1 2 3"];
        for text in [
            "path,x1,y1,x2,y2,class\na.jpg,53,2,79,28,nut\nd.jpg,0,1,2,4,bolt",
            "image_path,xmin,ymin,xmax,ymax,label,score\na.jpg,53,2,79,28,nut,0.9\nd.jpg,0,1,2,4,bolt,0.8",
            "Filename;Xmin;Ymin;Xmax;Ymax;Class\na.jpg;53;2;79;28;nut\nd.jpg;0;1;2;4;bolt",
            "label\tname\tx\ty\twidth\theight\timage\nnut\t\t53\t2\t26\t26\ta.jpg\nbolt\t\t0\t1\t2\t3\td.jpg",
            "a.jpg;53;2;79;28;nut\nd.jpg;0;1;2;4;bolt",
            "a.jpg\t53\t2\t79\t28\tnut\nd.jpg\t0\t1\t2\t4\tbolt",
            "\"file_name\",\"left\",\"top\",\"right\",\"bottom\",\"category\"\na.jpg,53,2,79,28,nut\nd.jpg,0,1,2,4,bolt",
            "images\\a.jpg,53,2,79,28,nut\n.\\d.jpg,0,1,2,4,bolt",
            // pandas.DataFrame.to_csv
            ",image_path,xmin,ymin,xmax,ymax,label\n0,a.jpg,53,2,79,28,nut\n1,d.jpg,0,1,2,4,bolt",
        ] {
            assert_eq!(read_valid(&source(text).1), expected, "{text}");
        }
        // TensorFlow's header has the size of the image.
        let text = "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,300,400,nut,53,2,79,28";
        assert_eq!(read_valid(&source(text).1), ["a.jpg 300x400: nut 53 2 26 26"]);
    }

    #[test]
    fn widths_and_heights_without_header_are_named() {
        let rows = "a.jpg,53,60,26,26,nut\nd.jpg,10,20,30,40,bolt\na.jpg,80,20,10,10,nut\n";
        let error = read(&source(rows).1, OnProblem::Drop).unwrap_err().to_string();
        let message = "boxes.csv` has x2 below x1 or y2 below y1 in 2 of 3 boxes, which look like widths and heights; if they \
                       are, add the header path,x,y,width,height,class";
        assert!(error.contains(message), "{error}");
        let with_header = format!("path,x,y,width,height,class\n{rows}");
        assert_eq!(read_valid(&source(&with_header).1)[1], "d.jpg 200x100: bolt 10 20 30 40");
        // Few of them are mistakes.
        let (dataset, _) = read(&source(&rows.replace("53,60", "3,4")).1, OnProblem::Drop).unwrap();
        assert_eq!(dataset.annotations().len(), 2);
    }

    #[test]
    fn spaces_before_quotes_are_skipped() {
        let text = "\"a.jpg\", 1, 2, 11, 22, \"dog, big\"\n \"d.jpg\" ,1,2,11,22,  \"5\"\"\"\n";
        let expected = ["a.jpg 200x100: dog, big 1 2 10 20", "d.jpg 200x100: 5\" 1 2 10 20"];
        assert_eq!(read_valid(&source(text).1), expected);
        let unquoted = "a.jpg,1,2,11,22,5\" pipe\nd.jpg,1,2,11,22,6\" pipe\n";
        let expected = ["a.jpg 200x100: 5\" pipe 1 2 10 20", "d.jpg 200x100: 6\" pipe 1 2 10 20"];
        assert_eq!(read_valid(&source(unquoted).1), expected);
    }

    #[test]
    fn missing_images_are_reported_and_their_boxes_dropped() {
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
