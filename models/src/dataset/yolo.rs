//! YOLO: a folder with one text file per image, of the same name, a line `class x y width height` per box: the number of
//! its class, its center and its sides, in shares of the image's. <https://docs.ultralytics.com/datasets/detect/>
//!
//! The images are those that the list names. Without list they are those that have a file of labels, which may be empty,
//! and where the image folder belongs to these labels alone (`images/train` for `labels/train`, or the folder of labels
//! itself) all others in it too; a folder elsewhere may hold the images of other parts. An image without labels has no
//! boxes. Folders below are looked into.
//!
//! Without class file, `classes.txt` among the labels names the classes, as LabelImg writes it; without that, they are
//! called by their numbers, from 0 to the largest in the folder.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf, absolute};

use super::draft::{ClassKey, Draft};
use super::images::{Images, split_extension};
use super::labeled::{LabeledBox, LabeledImage, measure};
use super::source::Part;
use super::{DataError, IMAGE_EXTENSIONS, Problem, Rectangle, classes, files};
use crate::spec::Class;

/// Class names among the labels.
const CLASSES: &str = "classes.txt";

/// More classes are taken for a mistake.
const MAX_CLASSES: u32 = 1 << 16;

/// The files of labels in a folder and below.
pub(super) fn label_files(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut files = files::below(folder, &["txt"])?;
    files.retain(|file| file != CLASSES);
    Ok(files)
}

/// The folder of images that goes with a folder of labels: `images/train` with `labels/train`.
pub(super) fn images(annotations: &Path) -> Option<PathBuf> {
    let path = absolute(annotations).ok()?;
    let parts: Vec<_> = path.components().collect();
    let place = parts.iter().rposition(|part| part.as_os_str() == "labels")?;
    let renamed =
        (0..).zip(parts).map(|(at, part)| if at == place { Component::Normal("images".as_ref()) } else { part });
    Some(renamed.collect::<PathBuf>()).filter(|folder| folder.is_dir())
}

/// The images and boxes of a folder.
pub(super) fn draft(part: &Part) -> Result<Draft, DataError> {
    let files = label_files(part.annotations)?;
    let read = files::in_parallel(&files, |file| labels(&part.annotations.join(file)))?;
    let classes = class_list(part, read.iter().flatten())?;
    let stems = files.iter().map(|file| file.rsplit_once('.').map_or(file.as_str(), |(stem, _)| stem));
    let labels: HashMap<_, _> = stems.clone().zip(read).collect();

    let (mut images, problems) = chosen(part, stems)?;
    measure(&mut images, &part.folder, part.size_of);
    for image in &mut images {
        let labels = labels.get(split_extension(&image.file_name).0).map_or(&[][..], Vec::as_slice);
        // Without a size they stay shares of it; the image is reported.
        let size = image.size.unwrap_or((1, 1));
        image.boxes = labels.iter().map(|label| label.labeled_box(size)).collect();
    }
    Ok(Draft::number(images, classes, problems))
}

/// The images that are meant, of which the labels have the names in `stems`.
fn chosen<'a>(
    part: &Part,
    stems: impl Iterator<Item = &'a str>,
) -> Result<(Vec<LabeledImage>, Vec<Problem>), DataError> {
    let found = Images::new(&part.folder, files::below(&part.folder, &IMAGE_EXTENSIONS)?);
    let all = found.names().map(|name| LabeledImage::new(name.to_owned()));
    if part.list.is_some() {
        return part.select(all.collect(), |image| &image.file_name);
    }
    let mut images = Vec::new();
    for stem in stems {
        let image = found.find(stem)?.map(|name| LabeledImage::new(name.to_owned()));
        match image {
            Some(_) if part.own_folder => {}
            Some(image) => images.push(image),
            None => {
                let reason = format!("there are labels for it, but it is not in `{}`", part.folder.display());
                images.push(LabeledImage { unreadable: Some(reason), ..LabeledImage::new(stem.to_owned()) });
            }
        }
    }
    if part.own_folder {
        images.extend(all);
    }
    Ok((images, Vec::new()))
}

/// One line.
struct Label {
    class: u32,
    /// Center and sides, in shares of the image's.
    shares: [f64; 4],
}

impl Label {
    fn read(line: &str) -> Result<Self, String> {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        let Ok([class, shares @ ..]) = <[&str; 5]>::try_from(columns.as_slice()) else {
            let count = columns.len();
            let polygon = if count > 5 && count % 2 == 1 { ", as of a polygon; export boxes only" } else { "" };
            return Err(format!("expected 5 columns, class x y width height, and found {count}{polygon}"));
        };
        let class = files::whole_number(class)?;
        if class >= MAX_CLASSES {
            return Err(format!("class {class}, expected less than {MAX_CLASSES}"));
        }
        let [x, y, width, height] = shares.map(files::number);
        Ok(Self { class, shares: [x?, y?, width?, height?] })
    }

    /// In pixels of an image. All is scaled before it is added: then what is whole in pixels is so but for the rounding of
    /// the file.
    fn labeled_box(&self, (width, height): (u32, u32)) -> LabeledBox {
        let [center_x, center_y, share_x, share_y] = self.shares;
        let scale = |share_of_x: f64, share_of_y: f64| (share_of_x * f64::from(width), share_of_y * f64::from(height));
        let (width, height) = scale(share_x, share_y);
        let (x, y) = scale(center_x, center_y);
        let rectangle = Rectangle { x: x - width / 2.0, y: y - height / 2.0, width, height };
        LabeledBox { class: ClassKey::Id(self.class.into()), rectangle }
    }
}

fn labels(path: &Path) -> Result<Vec<Label>, DataError> {
    let text = files::read_text(path)?;
    let lines = (1u64..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| Label::read(line).map_err(|reason| DataError::line(path, number, reason))).collect()
}

fn class_list<'a>(part: &Part, labels: impl Iterator<Item = &'a Label>) -> Result<Vec<Class>, DataError> {
    let beside = part.annotations.join(CLASSES);
    if let Some(classes) = &part.classes {
        Ok(classes.clone())
    } else if beside.is_file() {
        classes::read(&beside)
    } else {
        let count = labels.map(|label| i64::from(label.class) + 1).max().unwrap_or(0);
        Ok((0..count).map(|id| Class { id, name: id.to_string() }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, lines, read, read_sound};
    use super::super::{OnProblem, Source};
    use super::*;

    #[test]
    fn labels_are_shares_of_the_image() {
        let text = "\u{feff}1 0.5 0.5 0.1 0.2\r\n\r\n0.0 5.0e-1 0.25 1 0.5\r\n";
        let folder = folder(&[("labels/a.txt", text), ("images/a.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        assert_eq!(read_sound(&source), ["a.jpg 200x100: 1 90 40 20 20, 0 0 0 200 50"]);
    }

    #[test]
    fn whole_pixels_stay_whole_but_for_the_rounding_of_the_file() {
        /// Half of the eighth decimal, of center and of half a side, in an image 10,000 pixels wide; and of doubles.
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
    fn the_images_are_those_with_labels_and_in_their_own_folder_all() {
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
        assert_eq!(read_sound(&source), all);
        assert_eq!(read(&source, OnProblem::Drop).unwrap().0.folder, folder.path().join("images/train"));
        // Said or found, it is the same folder.
        source.images = Some(folder.path().join("images/../images/train"));
        assert_eq!(read_sound(&source), all);

        std::fs::rename(folder.path().join("images/train"), folder.path().join("photos")).unwrap();
        source.images = Some(folder.path().join("photos"));
        assert_eq!(read_sound(&source), labeled);

        std::fs::write(folder.path().join("list.txt"), "gone\nother/a\n").unwrap();
        source.list = Some(folder.path().join("list.txt"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(error.contains("1 name in the list without an image: gone;"), "{error}");
        std::fs::write(folder.path().join("list.txt"), "photos/negative.jpg\na\n").unwrap();
        assert_eq!(read_sound(&source), [labeled[0], "negative.jpg 200x100:"]);
    }

    #[test]
    fn images_may_lie_beside_their_labels() {
        let folder = folder(&[("a.txt", ""), ("a.jpg", ""), ("b.jpg", ""), ("classes.txt", "dog\ncat\n")]);
        let source = Source::new(folder.path());
        assert_eq!(read_sound(&source), ["a.jpg 200x100:", "b.jpg 200x100:"]);
        let (dataset, _) = read(&source, OnProblem::Refuse).unwrap();
        assert_eq!(dataset.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>(), ["dog", "cat"]);
    }

    #[test]
    fn labels_without_image_are_a_problem() {
        let label = "0 0.5 0.5 0.5 0.5";
        let folder = folder(&[("labels/a.txt", label), ("labels/b.txt", label), ("images/b.jpg", "")]);
        let source = Source::new(folder.path().join("labels"));
        let error = read(&source, OnProblem::Refuse).unwrap_err().to_string();
        assert!(
            error.contains("1 image that cannot be read: a (there are labels for it, but it is not in `"),
            "{error}"
        );
        let (dataset, report) = read(&source, OnProblem::Drop).unwrap();
        assert_eq!(lines(&dataset), ["b.jpg 200x100: 0 50 25 100 50"]);
        assert!(report.to_string().contains("1 box on dropped images dropped"), "{report}");
    }

    #[test]
    fn classes_are_those_of_the_file_or_numbers() {
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
        assert_eq!(names(&source).1, "1 box of unknown category dropped: b.jpg annotation 2 (category 2)");
    }

    #[test]
    fn lines_that_make_no_sense_are_named() {
        let cases = [
            (
                "0 0.1 0.1 0.2 0.1 0.2 0.2",
                "expected 5 columns, class x y width height, and found 7, as of a polygon; export boxes only",
            ),
            ("0 0.1 0.1 0.2 0.1 0.9", "expected 5 columns, class x y width height, and found 6"),
            ("0", "expected 5 columns"),
            ("dog 0.1 0.1 0.2 0.1", "`dog` is no number"),
            ("-1 0.1 0.1 0.2 0.1", "`-1` is no whole number from 0"),
            ("4294967295 0.1 0.1 0.2 0.1", "class 4294967295, expected less than 65536"),
            ("0 0,1 0.1 0.2 0.1", "`0,1` is no number"),
        ];
        for (line, message) in cases {
            let folder = folder(&[("labels/a.txt", &format!("0 0.5 0.5 0.1 0.1\n{line}\n")), ("images/a.jpg", "")]);
            let source = Source::new(folder.path().join("labels"));
            let error = read(&source, OnProblem::Drop).unwrap_err().to_string();
            assert!(error.contains(&format!("a.txt` line 2: {message}")), "{error}");
        }
    }
}
