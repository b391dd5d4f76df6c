//! YOLO: a folder with one text file per image, of the same name, with one line `class x y width height` per box: class
//! index, center and size, as fractions of the image's width and height.
//! <https://docs.ultralytics.com/datasets/detect/>
//!
//! With an image list, the images are those in the list. Without, they are those with a label file, which may be empty.
//! In the default image folder (`images/train` for `labels/train`, or the label folder itself), all other images are
//! included too; any other folder may contain images of other splits. An image without a label file has no boxes.
//! Subfolders are searched.
//!
//! Without a class file, `classes.txt` in the label folder contains the class names, as written by LabelImg. Without
//! that file, the class names are the numbers from 0 to the maximum in the folder.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf, absolute};

use super::draft::{ClassKey, Draft};
use super::images::{ImageIndex, split_extension};
use super::labeled::{LabeledBox, LabeledImage, fill_sizes};
use super::source::ResolvedSource;
use super::{DataError, IMAGE_EXTENSIONS, Problem, Rectangle, classes, files};
use crate::spec::Class;

/// File with the class names in the label folder.
const CLASSES_FILE: &str = "classes.txt";

/// More classes are treated as an error.
const MAX_CLASSES: u32 = 1 << 16;

/// The label files in a folder and its subfolders.
pub(super) fn label_files(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut files = files::list_files_recursively(folder, &["txt"])?;
    files.retain(|file| file != CLASSES_FILE);
    Ok(files)
}

/// The default image folder: `images/train` for `labels/train`.
pub(super) fn image_folder(annotations: &Path) -> Option<PathBuf> {
    let path = absolute(annotations).ok()?;
    let parts: Vec<_> = path.components().collect();
    let last = parts.iter().rposition(|part| part.as_os_str() == "labels")?;
    let renamed =
        (0..).zip(parts).map(|(index, part)| if index == last { Component::Normal("images".as_ref()) } else { part });
    Some(renamed.collect::<PathBuf>()).filter(|folder| folder.is_dir())
}

/// Reads images and boxes of a folder.
pub(super) fn draft(source: &ResolvedSource) -> Result<Draft, DataError> {
    let files = label_files(source.annotations)?;
    let parsed = files::read_in_parallel(&files, |file| read_labels(&source.annotations.join(file)))?;
    let classes = class_list(source, parsed.iter().flatten())?;
    let stems = files.iter().map(|file| file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem));
    let labels: HashMap<_, _> = stems.clone().zip(parsed).collect();

    let (mut images, problems) = select_images(source, stems)?;
    fill_sizes(&mut images, &source.folder, source.size_of);
    for image in &mut images {
        let labels = labels.get(split_extension(&image.file_name).0).map_or(&[][..], Vec::as_slice);
        // Without a size, the boxes stay fractions; the image is reported as a problem.
        let size = image.size.unwrap_or((1, 1));
        image.boxes = labels.iter().map(|label| label.labeled_box(size)).collect();
    }
    Ok(Draft::from_labeled(images, classes, problems))
}

/// The images to use. `stems` are the paths of the label files without extension.
fn select_images<'a>(
    source: &ResolvedSource,
    stems: impl Iterator<Item = &'a str>,
) -> Result<(Vec<LabeledImage>, Vec<Problem>), DataError> {
    let index = ImageIndex::new(&source.folder, files::list_files_recursively(&source.folder, &IMAGE_EXTENSIONS)?);
    let all = index.names().map(|name| LabeledImage::new(name.to_owned()));
    if source.list.is_some() {
        return source.select(all.collect(), |image| &image.file_name);
    }
    let mut images = Vec::new();
    for stem in stems {
        let image = index.find(stem)?.map(|name| LabeledImage::new(name.to_owned()));
        match image {
            Some(_) if source.is_default_folder => {}
            Some(image) => images.push(image),
            None => {
                let reason = format!("label file without an image in `{}`", source.folder.display());
                images.push(LabeledImage { unreadable: Some(reason), ..LabeledImage::new(stem.to_owned()) });
            }
        }
    }
    if source.is_default_folder {
        images.extend(all);
    }
    Ok((images, Vec::new()))
}

/// One line of a label file.
struct Label {
    class: u32,
    /// Center x, center y, width and height, as fractions of the image's width and height.
    fractions: [f64; 4],
}

impl Label {
    fn read(line: &str) -> Result<Self, String> {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let Ok([class, fractions @ ..]) = <[&str; 5]>::try_from(columns.as_slice()) else {
            let count = columns.len();
            let polygon = if count > 5 && count % 2 == 1 { ", like a polygon; export boxes only" } else { "" };
            return Err(format!("expected 5 columns (class x y width height), found {count}{polygon}"));
        };
        let class = files::parse_integer(class)?;
        if class >= MAX_CLASSES {
            return Err(format!("class {class} is too large, expected less than {MAX_CLASSES}"));
        }
        let [x, y, width, height] = fractions.map(files::parse_number);
        Ok(Self { class, fractions: [x?, y?, width?, height?] })
    }

    /// The box in pixels of an image of this width and height. Fractions are scaled before they are added, so that
    /// integer pixel edges stay integers up to the rounding in the file.
    fn labeled_box(&self, (width, height): (u32, u32)) -> LabeledBox {
        let [center_x, center_y, box_width, box_height] = self.fractions;
        let scale = |x: f64, y: f64| (x * f64::from(width), y * f64::from(height));
        let (width, height) = scale(box_width, box_height);
        let (x, y) = scale(center_x, center_y);
        let rectangle = Rectangle { x: x - width / 2.0, y: y - height / 2.0, width, height };
        LabeledBox { class: ClassKey::Id(self.class.into()), rectangle }
    }
}

fn read_labels(path: &Path) -> Result<Vec<Label>, DataError> {
    let text = files::read_text(path)?;
    let lines = (1u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| Label::read(line).map_err(|reason| DataError::line(path, number, reason))).collect()
}

fn class_list<'a>(source: &ResolvedSource, labels: impl Iterator<Item = &'a Label>) -> Result<Vec<Class>, DataError> {
    let path = source.annotations.join(CLASSES_FILE);
    if let Some(classes) = &source.classes {
        Ok(classes.clone())
    } else if path.is_file() {
        classes::read(&path)
    } else {
        let count = labels.map(|label| i64::from(label.class) + 1).max().unwrap_or(0);
        Ok((0..count).map(|id| Class { id, name: id.to_string() }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_valid};
    use super::super::{OnProblem, Source};
    use super::*;

    #[test]
    fn labels_are_fractions_of_the_image_size() {
        let text = "\u{feff}1 0.5 0.5 0.1 0.2\r\n\r\n0.0 5.0e-1 0.25 1 0.5\r\n";
        let folder = folder(&[("labels/a.txt", text), ("images/a.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        assert_eq!(read_valid(&source), ["a.jpg 200x100: 1 90 40 20 20, 0 0 0 200 50"]);
    }

    #[test]
    fn integer_pixels_stay_integers_up_to_the_rounding_in_the_file() {
        /// Rounding to eight decimals, of the center and half a side, at 10,000 pixels; and rounding of doubles.
        const ROUNDING: f64 = (0.5e-8 + 0.25e-8) * 1e4 + 1e-9;
        for (left, right) in [(0u32, 10_000), (0, 1), (1, 2), (33, 9_999), (7_777, 7_778), (123, 4_567)] {
            let [center, side] = [f64::from(left + right) / 2e4, f64::from(right - left) / 1e4];
            let label = Label::read(&format!("0 {center:.8} 0.5 {side:.8} 0")).unwrap();
            let rectangle = label.labeled_box((10_000, 10)).rectangle;
            assert!((rectangle.x - f64::from(left)).abs() <= ROUNDING, "{rectangle:?}");
            assert!((rectangle.x + rectangle.width - f64::from(right)).abs() <= 2.0 * ROUNDING, "{rectangle:?}");
            assert_eq!((rectangle.y, rectangle.height), (5.0, 0.0));
        }
    }

    #[test]
    fn images_without_labels_are_included_in_the_default_folder_only() {
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
        // The default folder, set explicitly.
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
    fn label_files_without_image_are_reported() {
        let label = "0 0.5 0.5 0.5 0.5";
        let folder = folder(&[("labels/a.txt", label), ("labels/b.txt", label), ("images/b.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 image that cannot be read: a (label file without an image in `"), "{error}");
        let (dataset, report) = read(&source, OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["b.jpg 200x100: 0 50 25 100 50"]);
        assert!(report.to_string().contains("1 box on dropped images, dropped"), "{report}");
    }

    #[test]
    fn class_names_are_those_of_the_class_file_or_numbers() {
        let mut files = vec![("x/a.txt", "0 0.5 0.5 0.1 0.1"), ("x/b.txt", "2 0.5 0.5 0.1 0.1"), ("list.txt", "a")];
        files.extend([("x/a.jpg", ""), ("x/b.jpg", ""), ("data.yaml", "names: {0: dog, 7: cat}")]);
        let folder = folder(&files);
        let mut source = Source { list: Some(folder.path().join("list.txt")), ..Source::new(folder.path().join("x")) };
        let names = |source: &Source| {
            let (dataset, report) = read(source, OnProblem::Drop).unwrap();
            (dataset.classes.into_iter().map(|class| class.name).collect::<Vec<_>>(), report.to_string())
        };
        assert_eq!(names(&source).0, ["0", "1", "2"]);
        source.classes = Some(folder.path().join("data.yaml"));
        assert_eq!(names(&source), (vec!["dog".to_owned(), "cat".to_owned()], String::new()));
        source.list = None;
        assert_eq!(names(&source).1, "1 box with an unknown class, dropped: b.jpg annotation 2 (class id 2)");
    }

    #[test]
    fn invalid_lines_are_reported() {
        let cases = [
            (
                "0 0.1 0.1 0.2 0.1 0.2 0.2",
                "expected 5 columns (class x y width height), found 7, like a polygon; export boxes only",
            ),
            ("0 0.1 0.1 0.2 0.1 0.9", "expected 5 columns (class x y width height), found 6"),
            ("0", "expected 5 columns"),
            ("dog 0.1 0.1 0.2 0.1", "`dog` is not a number"),
            ("-1 0.1 0.1 0.2 0.1", "`-1` is not a non-negative integer"),
            ("4294967295 0.1 0.1 0.2 0.1", "class 4294967295 is too large, expected less than 65536"),
            ("0 0,1 0.1 0.2 0.1", "`0,1` is not a number"),
        ];
        for (line, message) in cases {
            let folder = folder(&[("labels/a.txt", &format!("0 0.5 0.5 0.1 0.1\n{line}\n")), ("images/a.jpg", "")]);
            let source = Source::new(folder.path().join("labels"));
            let error = read(&source, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains(&format!("a.txt` line 2: {message}")), "{error}");
        }
    }
}
