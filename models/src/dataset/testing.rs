//! What the tests of the formats share.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{DataError, Dataset, OnProblem, Report, Source};

/// A folder with these files.
pub(super) fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Reads with images that are files of 200 x 100 pixels, whatever is in them.
pub(super) fn read(source: &Source, on_problem: OnProblem) -> Result<(Dataset, Report), DataError> {
    source.read(on_problem, &size)
}

/// The images and boxes of a source that is sound.
pub(super) fn read_sound(source: &Source) -> Vec<String> {
    let (dataset, report) = read(source, OnProblem::Refuse).unwrap();
    assert_eq!(report.problems, []);
    lines(&dataset)
}

fn size(path: &Path) -> Result<(u32, u32), String> {
    if path.is_file() { Ok((200, 100)) } else { Err("it is not there".to_owned()) }
}

/// A line per image: `a.jpg 200x100: dog 1 2 10 20, cat ..` with left, top, width and height.
pub(super) fn lines(dataset: &Dataset) -> Vec<String> {
    let lines = dataset.images.iter().enumerate().map(|(place, image)| {
        let boxes = dataset.annotations_of(place).iter().map(|annotation| {
            let rectangle = annotation.rectangle;
            let class = &dataset.classes[annotation.class_index];
            let sides = [rectangle.x, rectangle.y, rectangle.width, rectangle.height].map(|side| side.to_string());
            format!("{} {}", class.name, sides.join(" "))
        });
        let boxes = boxes.collect::<Vec<_>>().join(", ");
        format!("{} {}x{}: {boxes}", image.file_name, image.width, image.height).trim_end().to_owned()
    });
    lines.collect()
}
