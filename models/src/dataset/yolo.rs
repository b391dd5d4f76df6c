//! YOLO: a folder with one text file per image, of the same name, a line `class x y width height` per box: the index of its
//! class, its center and its sides, as fractions of the image's sides. <https://docs.ultralytics.com/datasets/detect/>
//!
//! A line `class x1 y1 x2 y2 x3 y3 ..` is a polygon; its box is its extent. The images are those of the list. Without list they
//! are those that have a label file, which may be empty, and, if the image folder belongs to these labels alone
//! (`images/train` for `labels/train`, or the folder of labels itself), all others in it. An image without label file has no
//! boxes. Folders below are read too.

use std::path::Path;

use super::error::DataError;
use super::parsed::{ClassKey, Geometry, Parsed, ParsedBox, ParsedImage};
use super::report::Problem;
use super::{classes, folder, text};
use crate::rectangle::Rectangle;

/// Classes from this index on must have names: without, a mistyped index would make as many classes.
const MAX_UNNAMED: u32 = 1000;

/// Parses the label files in a folder and below, without checking them. `has_names`: the classes are in a file elsewhere.
pub(super) fn parse(folder: &Path, has_names: bool) -> Result<Parsed, DataError> {
    let files = label_files(folder)?;
    let classes = if has_names { None } else { classes::find(folder)? };
    let mut parsed = Parsed { classes, ..Parsed::default() };
    let max_class = if has_names || parsed.classes.is_some() { u32::MAX } else { MAX_UNNAMED - 1 };
    let read = text::in_parallel(&files, |file| Ok((folder::stem(file), labels(folder, file, max_class)?)))?;
    for (stem, labels) in read {
        let boxes = labels.into_iter().filter_map(|label| parsed.keep(label)).collect();
        parsed.images.push(ParsedImage { stem: Some(stem), boxes, ..ParsedImage::default() });
    }
    Ok(parsed)
}

/// The label files in a folder and below.
pub(super) fn label_files(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut files = folder::below(folder, &["txt"])?;
    files.retain(|file| !classes::is_class_file(file));
    Ok(files)
}

fn labels(folder: &Path, file: &str, max_class: u32) -> Result<Vec<Result<ParsedBox, Problem>>, DataError> {
    let text = text::read_text(&folder.join(file))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    Ok(lines
        .map(|(number, line)| label(line, max_class).map_err(|reason| Problem::in_line(file, number, reason)))
        .collect())
}

fn label(line: &str, max_class: u32) -> Result<ParsedBox, String> {
    let mut columns = line.split_ascii_whitespace();
    let class = text::whole_number(columns.next().unwrap_or_default())?;
    if class > max_class {
        return Err(format!(
            "class {class} has no name, and classes without names are less than {MAX_UNNAMED}; give a class file, or \
             correct the line"
        ));
    }
    let numbers = columns.map(text::number).collect::<Result<Vec<_>, _>>()?;
    let center_and_sides = match (numbers[..].as_array(), numbers.as_chunks()) {
        (Some(numbers), _) => *numbers,
        (None, (points @ [_, _, _, ..], [])) => {
            let Rectangle { x, y, width, height } = Rectangle::around(points.iter().copied()).unwrap_or_default();
            [x + width / 2.0, y + height / 2.0, width, height]
        }
        _ => {
            let count = 1 + numbers.len();
            return Err(format!("expected 5 columns (class x y width height) or a polygon, found {count}"));
        }
    };
    Ok(ParsedBox::new(ClassKey::Id(class.into()), Geometry::Normalized(center_and_sides)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, Source};
    use super::*;

    #[test]
    fn labels_are_fractions_of_the_image() {
        let text = "\u{feff}1 0.5 0.5 0.1 0.2\r\n\r\n0.0 5.0e-1 0.25 1 0.5\r\n";
        let folder = folder(&[("labels/a.txt", text), ("images/a.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        assert_eq!(read_valid(&source), ["a.jpg 200x100: 1 90 40 20 20, 0 0 0 200 50"]);
    }

    #[test]
    fn whole_pixels_stay_whole_up_to_the_rounding_of_the_file() {
        /// Half of the eighth decimal, of center and of half a side, in an image 10,000 pixels wide; and of doubles.
        const ROUNDING: f64 = (0.5e-8 + 0.25e-8) * 1e4 + 1e-9;
        for (left, right) in [(0u32, 10_000), (0, 1), (1, 2), (33, 9_999), (7_777, 7_778), (123, 4_567)] {
            let [center, side] = [f64::from(left + right) / 2e4, f64::from(right - left) / 1e4];
            let label = label(&format!("0 {center:.8} 0.5 {side:.8} 0"), 0).unwrap();
            let rectangle = label.geometry.in_pixels(10_000.0, 10.0);
            assert!((rectangle.x - f64::from(left)).abs() <= ROUNDING, "{rectangle:?}");
            assert!((rectangle.x + rectangle.width - f64::from(right)).abs() <= 2.0 * ROUNDING, "{rectangle:?}");
            assert_eq!((rectangle.y, rectangle.height), (5.0, 0.0));
        }
    }

    #[test]
    fn images_without_labels_are_read_from_the_default_folder_only() {
        let box_in_middle = "0 0.5 0.5 0.5 0.5";
        let files = [
            ("labels/train/a.txt", box_in_middle),
            ("labels/train/sub/b.v1.txt", ""),
            ("images/train/a.jpg", ""),
            ("images/train/sub/b.v1.png", ""),
            ("images/train/negative.jpg", ""),
        ];
        let folder = folder(&files);
        let mut source = Source::new(folder.path().join("labels/train"));
        let labeled = ["a.jpg 200x100: 0 50 25 100 50", "sub/b.v1.png 200x100:"];
        let all = [labeled[0], "negative.jpg 200x100:", labeled[1]];
        assert_eq!(read_valid(&source), all);
        assert_eq!(read(&source, OnProblem::Drop).unwrap().0.folder, folder.path().join("images/train"));
        // Given or default, it is the same folder.
        source.images = Some(folder.path().join("images/../images/train"));
        assert_eq!(read_valid(&source), all);

        std::fs::rename(folder.path().join("images/train"), folder.path().join("photos")).unwrap();
        source.images = Some(folder.path().join("photos"));
        assert_eq!(read_valid(&source), labeled);

        std::fs::write(folder.path().join("list.txt"), "gone\nother/a\n").unwrap();
        source.list = Some(folder.path().join("list.txt"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 list entry without a matching image: gone;"), "{error}");
        std::fs::write(folder.path().join("list.txt"), "photos/negative.jpg\na\n").unwrap();
        assert_eq!(read_valid(&source), [labeled[0], "negative.jpg 200x100:"]);
    }

    #[test]
    fn images_may_be_in_the_label_folder() {
        let folder = folder(&[("a.txt", ""), ("a.jpg", ""), ("b.jpg", ""), ("classes.txt", "dog\ncat\n")]);
        let source = Source::new(folder.path());
        assert_eq!(read_valid(&source), ["a.jpg 200x100:", "b.jpg 200x100:"]);
        let (dataset, _) = read(&source, OnProblem::Refuse).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["dog", "cat"]);
    }

    #[test]
    fn label_files_without_image_are_problems() {
        let label = "0 0.5 0.5 0.5 0.5";
        let folder = folder(&[("labels/a.txt", label), ("labels/b.txt", label), ("images/b.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 image that cannot be read: a (not found in the image folder"), "{error}");
        let (dataset, report) = read(&source, OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["b.jpg 200x100: 0 50 25 100 50"]);
        assert!(report.to_string().contains("1 box on dropped images, dropped"), "{report}");
    }

    #[test]
    fn classes_are_those_of_the_class_file_or_unnamed() {
        let mut files = vec![("x/a.txt", "0 0.5 0.5 0.1 0.1"), ("x/b.txt", "2 0.5 0.5 0.1 0.1"), ("list.txt", "a")];
        files.extend([("x/a.jpg", ""), ("x/b.jpg", ""), ("names", "names: {0: dog, 7: cat}")]);
        let folder = folder(&files);
        let mut source = Source { list: Some(folder.path().join("list.txt")), ..Source::new(folder.path().join("x")) };
        let names = |source: &Source| {
            let (dataset, report) = read(source, OnProblem::Drop).unwrap();
            (dataset.classes.into_iter().map(|class| class.name).collect::<Vec<_>>(), report.to_string())
        };
        let (classes, report) = names(&source);
        assert_eq!(classes, ["0", "1", "2"]);
        assert!(report.contains("3 classes without a name (no classes.txt or data.yaml), kept: 0, 1, 2"), "{report}");
        source.classes = Some(folder.path().join("names"));
        assert_eq!(names(&source), (vec!["dog".to_owned(), "cat".to_owned()], String::new()));
        source.list = None;
        assert_eq!(names(&source).1, "1 box with an unknown class, dropped: b.jpg annotation 2 (class id 2)");
    }

    #[test]
    fn large_class_indices_need_names() {
        let names: String = (0..2000).map(|class| format!("class {class}\n")).collect();
        let files = [("labels/a.txt", "1999 0.5 0.5 0.1 0.2"), ("images/a.jpg", ""), ("names", names.as_str())];
        let folder = folder(&files);
        let mut source = Source::new(folder.path().join("labels"));
        assert!(
            read(&source, OnProblem::Refuse).unwrap_err().to_string().contains("a.txt line 1 (class 1999 has no name")
        );
        source.classes = Some(folder.path().join("names"));
        assert_eq!(read_valid(&source), ["a.jpg 200x100: class 1999 90 40 20 20"]);
    }

    #[test]
    fn class_files_of_other_tools_are_found() {
        for (file, text) in [
            ("labels/train/classes.txt", "dog\ncat"),
            ("labels/classes.txt", "dog\ncat"),
            ("classes.txt", "dog\ncat"),
            ("obj.names", "dog\ncat\n"),
            ("data.yaml", "nc: 2\nnames: ['dog', 'cat']\n"),
        ] {
            let folder =
                folder(&[("labels/train/a.txt", "1 0.5 0.5 0.1 0.2"), ("images/train/a.jpg", ""), (file, text)]);
            let source = Source::new(folder.path().join("labels/train"));
            assert_eq!(read_valid(&source), ["a.jpg 200x100: cat 90 40 20 20"], "{file}");
        }
        // Given ones are used, whatever else is there.
        let files =
            [("labels/a.txt", "1 0.5 0.5 0.1 0.2"), ("images/a.jpg", ""), ("data.yaml", "nc: 3\nnames: [dog]\n")];
        let folder = folder(&[&files[..], &[("my.txt", "dog\ncat")]].concat());
        let classes = Some(folder.path().join("my.txt"));
        let source = Source { classes, ..Source::new(folder.path().join("labels")) };
        assert_eq!(read_valid(&source), ["a.jpg 200x100: cat 90 40 20 20"]);
    }

    #[test]
    fn polygons_become_their_extent() {
        let text = "0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6\n0 0.5 0.5 0.1 0.2\n0 0.5 0.5 0.6 0.5 0.55 0.7";
        let folder = folder(&[("labels/a.txt", text), ("images/a.jpg", "")]);
        let (dataset, _) = read(&Source::new(folder.path().join("labels")), OnProblem::Refuse).unwrap();
        let rectangles = dataset.annotations.iter().map(|annotation| annotation.rectangle);
        let rounded: Vec<_> = rectangles.map(|r| [r.x, r.y, r.width, r.height].map(f64::round)).collect();
        assert_eq!(rounded, [[20.0, 20.0, 40.0, 40.0], [90.0, 40.0, 20.0, 20.0], [100.0, 50.0, 20.0, 20.0]]);
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            ("0 0.1 0.1 0.2 0.1 0.9", "expected 5 columns (class x y width height) or a polygon, found 6"),
            ("0 0.1 0.1 0.2 0.1 0.2 0.3 0.9", "expected 5 columns (class x y width height) or a polygon, found 8"),
            ("0", "expected 5 columns"),
            ("dog 0.1 0.1 0.2 0.1", "`dog` is not a number"),
            ("-1 0.1 0.1 0.2 0.1", "`-1` is not a non-negative integer"),
            (
                "65535 0.1 0.1 0.2 0.1",
                "class 65535 has no name, and classes without names are less than 1000; give a class",
            ),
            ("0 0,1 0.1 0.2 0.1", "`0,1` is not a number"),
        ];
        for (line, message) in cases {
            let folder = folder(&[("labels/a.txt", &format!("0 0.5 0.5 0.1 0.1\n{line}\n")), ("images/a.jpg", "")]);
            let source = Source::new(folder.path().join("labels"));
            let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
            assert!(error.contains(&format!("1 entry that cannot be read: a.txt line 2 ({message}")), "{error}");
            assert_eq!(read(&source, OnProblem::Drop).unwrap().0.annotations.len(), 1);
        }
    }
}
