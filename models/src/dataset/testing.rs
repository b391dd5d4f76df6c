//! Helpers for the tests of the formats.

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

/// Reads a source. Every file counts as an image of 200 x 100 pixels, regardless of its content.
pub(super) fn read(source: &Source, on_problem: OnProblem) -> Result<(Dataset, Report), DataError> {
    source.read(on_problem, &size)
}

/// The [`lines`] of a source without problems.
pub(super) fn read_valid(source: &Source) -> Vec<String> {
    let (dataset, report) = read(source, OnProblem::Refuse).unwrap();
    assert!(!report.is_serious(), "{report}");
    lines(&dataset)
}

fn size(path: &Path) -> Result<(u32, u32), String> {
    if path.is_file() { Ok((200, 100)) } else { Err("file not found".to_owned()) }
}

/// A line per image: `a.jpg 200x100: dog 1 2 10 20, cat ..` with left, top, width and height.
pub(super) fn lines(dataset: &Dataset) -> Vec<String> {
    let lines = dataset.images.iter().enumerate().map(|(index, image)| {
        let boxes = dataset.annotations_of(index).iter().map(|annotation| {
            let rectangle = annotation.rectangle;
            let class = &dataset.classes[annotation.class_index];
            let values = [rectangle.x, rectangle.y, rectangle.width, rectangle.height].map(|value| value.to_string());
            format!("{} {}", class.name, values.join(" "))
        });
        let boxes = boxes.collect::<Vec<_>>().join(", ");
        format!("{} {}x{}: {boxes}", image.file_name, image.width, image.height).trim_end().to_owned()
    });
    lines.collect()
}
